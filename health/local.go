package health

import (
	"context"
	"errors"
	"net"
	"syscall"

	"github.com/tproxy/tproxy/internal/reactor"
)

// Local reports whether err says something about this machine or this process rather than about the backend: it is out
// of descriptors, memory or ports, its own packet filter refused (EPERM, also when the connection table is full), or
// the dial was given up by us. Such an error never counts against a backend. nil is not local.
//
// A deadline that passed is not local: the backend was too slow. A context cancelled with a cause of its own is
// only recognized if that cause wraps [context.Canceled].
func Local(err error) bool {
	for _, local := range [...]error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, syscall.EPERM,
		context.Canceled, net.ErrClosed, reactor.ErrClosed,
	} {
		if errors.Is(err, local) {
			return true
		}
	}
	return false
}
