//go:build unix

package reactor

import (
	"errors"
	"net"
	"os"
	"syscall"

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
