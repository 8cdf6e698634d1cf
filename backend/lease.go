package backend

import (
	"errors"
	"sync/atomic"
)

// Errors of [Group.Lease]; test for them with [errors.Is].
var (
	// ErrNone: the group has no usable backend.
	ErrNone = errors.New("no usable backend")
	// ErrFull: there are usable backends, and all that may be chosen are at their limit.
	ErrFull = errors.New("every usable backend is at max_connections")
)

// A Lease is one slot on a backend, from [Group.Lease] or [Group.LeaseInto] to [Lease.Release]. Its methods may be called concurrently. It
// must not be copied.
type Lease struct {
	backend  *Backend
	released atomic.Bool
}

// Backend is whose slot it is, also after Release.
func (l *Lease) Backend() *Backend { return l.backend }

// Release gives the slot back. Only the first call does something.
func (l *Lease) Release() {
	if !l.released.Swap(true) {
		l.backend.release()
	}
}
