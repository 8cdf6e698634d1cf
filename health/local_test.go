package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
)

func TestLocal(t *testing.T) {
	dial := func(errno syscall.Errno) error {
		return fmt.Errorf("dial db1: %w", &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", errno)})
	}
	tests := []struct {
		err  error
		want bool
	}{
		{nil, false},
		{dial(syscall.EMFILE), true},
		{dial(syscall.ENFILE), true},
		{dial(syscall.ENOBUFS), true},
		{dial(syscall.ENOMEM), true},
		{dial(syscall.EADDRNOTAVAIL), true},
		{dial(syscall.EADDRINUSE), true},
		{dial(syscall.EPERM), true},
		{fmt.Errorf("dial db1: %w", context.Canceled), true},
		{net.ErrClosed, true},
		{dial(syscall.ECONNREFUSED), false},
		{dial(syscall.ETIMEDOUT), false},
		{dial(syscall.EHOSTUNREACH), false},
		{dial(syscall.ENETUNREACH), false},
		{dial(syscall.EACCES), false},
		{dial(syscall.EAGAIN), false}, // the queue of a unix socket is full
		{dial(syscall.ENOENT), false},
		{fmt.Errorf("dial db1: %w", context.DeadlineExceeded), false},
		{os.ErrDeadlineExceeded, false},
		{io.EOF, false},
		{errors.New("no"), false},
	}
	for _, tt := range tests {
		if got := Local(tt.err); got != tt.want {
			t.Errorf("Local(%v) = %v", tt.err, got)
		}
	}
}
