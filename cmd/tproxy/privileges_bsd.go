//go:build unix && !linux

package main

// keepBinding has nothing to keep: there are no capabilities here.
func keepBinding() (finish func() (kept bool, err error), err error) {
	return func() (bool, error) { return false, nil }, nil
}
