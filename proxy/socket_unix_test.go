//go:build unix

package proxy_test

import (
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"
)

const (
	errRefused = syscall.ECONNREFUSED
	errReset   = syscall.ECONNRESET
)

// newRefusing is the address of a backend that refuses: the port is bound, so that nobody else gets it, and nobody listens.
func newRefusing(t *testing.T) string {
	t.Helper()
	_, address := bound(t)
	return address
}

// newHole is the address of a backend that never answers a connect: its queue is full.
func newHole(t *testing.T) string {
	t.Helper()
	fd, address := bound(t)
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for limit := patience; ; limit = 50 * time.Millisecond { // one has room everywhere, and is connected however long it takes
		c, err := net.DialTimeout("tcp", address, limit)
		if err != nil {
			return address
		}
		t.Cleanup(func() { c.Close() })
	}
}

func bound(t *testing.T) (fd int, address string) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	syscall.CloseOnExec(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, net.JoinHostPort("127.0.0.1", strconv.Itoa(sa.(*syscall.SockaddrInet4).Port))
}
