//go:build !linux

package reactor

import "errors"

// New starts the engine of that name: "auto" (epoll in Linux, else portable), "epoll" or "portable".
func New(name string) (Engine, error) {
	if name == "epoll" {
		return nil, errors.New("the epoll engine is for Linux only (auto and portable work here)")
	}
	return NewPortable(), nil
}
