//go:build unix

package reactor

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// canWatch says that a goroutine can wait for a reset without reading the socket.
const canWatch = true

func setBacklog(ln net.Listener, n int) error {
	sc, ok := ln.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	return control(raw, func(fd int) error { return syscall.Listen(fd, n) })
}

// duplicate returns another descriptor of the socket. File of package net would do so too, but its descriptor turns the socket,
// and whoever else has it, into blocking mode when it is passed on.
func duplicate(sc syscall.Conn) (fd int, err error) {
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, err
	}
	err = control(raw, func(from int) (err error) {
		fd, err = unix.FcntlInt(uintptr(from), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	return fd, err
}

func duplicateFile(sc syscall.Conn, name string) (*os.File, error) {
	fd, err := duplicate(sc)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// queueOf is another descriptor of a listener of package net, whose own cannot be waited for without accepting. It is nil where
// that is not possible either.
func queueOf(ln net.Listener) *os.File {
	switch ln.(type) {
	case *net.TCPListener, *net.UnixListener:
	default:
		return nil
	}
	f, err := duplicateFile(ln.(syscall.Conn), "queue of "+ln.Addr().String())
	if err != nil {
		return nil
	}
	if f.SetReadDeadline(time.Time{}) != nil { // package os cannot wait for it
		f.Close()
		return nil
	}
	return f
}

// awaitClient returns when a client waits in the queue, or it was closed.
func awaitClient(queue *os.File) {
	raw, err := queue.SyscallConn()
	if err != nil {
		return
	}
	raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}

// control calls f with the descriptor, which stays open meanwhile.
func control(raw syscall.RawConn, f func(fd int) error) error {
	var ferr error
	err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) })
	return errors.Join(err, ferr)
}

func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// isAborted reports whether err of accept(2) is about one client that has left already. Linux passes on here what the
// network said about it.
func isAborted(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case syscall.ECONNABORTED, syscall.EINTR, syscall.EPROTO, syscall.ENOPROTOOPT, syscall.EHOSTDOWN,
		syscall.EHOSTUNREACH, syscall.EOPNOTSUPP, syscall.ENETUNREACH, syscall.ENETDOWN, syscall.ECONNRESET:
		return true
	}
	return false
}

// isShortage reports whether err says that this system, not the peer, is short of something.
func isShortage(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM:
		return true
	}
	return false
}
