package reactor

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernel is what a relay asks of the operating system. It is a seam: tests drive the relay's state machine over a fake
// one that is short, slow and broken at will.
type kernel interface {
	recv(fd int32, p []byte, flags int) (int, syscall.Errno)
	send(fd int32, p []byte, flags int) (int, syscall.Errno)
	splice(from, to int32, n int) (int, syscall.Errno)
	shutdown(fd int32) syscall.Errno
	// unsent is the number of bytes that the peer has not acknowledged; 0 where that cannot be known.
	unsent(fd int32) int
	// atMark reports whether the next byte of fd is the urgent one.
	atMark(fd int32) bool
	close(fd int32, reset bool)
	// pipe makes a non-blocking pipe and returns its ends and its capacity.
	pipe() (r, w int32, size int, e syscall.Errno)
	// epollCtl adds, changes or removes (op) what the epoll instance ep is told of fd.
	epollCtl(ep, op int, fd int32, ev unix.EpollEvent) syscall.Errno
}

// linux makes system calls on non-blocking descriptors without telling the scheduler (RawSyscall): none of them can
// block, so the hand-over of the processor would cost more than the call.
type linux struct{}

func (linux) recv(fd int32, p []byte, flags int) (int, syscall.Errno) {
	for {
		n, _, e := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(flags), 0, 0)
		if e != unix.EINTR {
			return int(n), e
		}
	}
}

func (linux) send(fd int32, p []byte, flags int) (int, syscall.Errno) {
	for {
		n, _, e := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(flags|unix.MSG_NOSIGNAL), 0, 0)
		if e != unix.EINTR {
			return int(n), e
		}
	}
}

func (linux) splice(from, to int32, n int) (int, syscall.Errno) {
	for {
		m, _, e := syscall.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if e != unix.EINTR {
			return int(m), e
		}
	}
}

func (linux) shutdown(fd int32) syscall.Errno {
	_, _, e := syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return e
}

func (linux) unsent(fd int32) int {
	n, err := unix.IoctlGetInt(int(fd), unix.TIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

func (linux) atMark(fd int32) bool {
	n, err := unix.IoctlGetInt(int(fd), unix.SIOCATMARK)
	return err == nil && n != 0
}

func (linux) close(fd int32, reset bool) {
	if reset {
		linger := unix.Linger{Onoff: 1}
		syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&linger)), unsafe.Sizeof(linger), 0)
	}
	closeSocket(fd)
}

// closeSocket never blocks: a socket without a linger time, and a pipe, are closed in the background. The only error that
// matters, EBADF, would be a fault of ours.
func closeSocket(fd int32) { syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// tellRuntime makes a system call that the scheduler is told of. The runtime's monitor thread sleeps while nothing runs, and
// only such a call wakes it before its time. Without it a loop that is busy would keep others from the poller and from
// their share of the processor; with it at every call, the thread would be woken for every message.
func tellRuntime() { syscall.Syscall(unix.SYS_GETPID, 0, 0, 0) }

func epollWait(ep int, ev []unix.EpollEvent) (int, syscall.Errno) {
	n, _, e := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(unsafe.SliceData(ev))), uintptr(len(ev)), 0, 0, 0)
	return int(n), e
}

func (linux) epollCtl(ep, op int, fd int32, ev unix.EpollEvent) syscall.Errno {
	_, _, e := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(ep), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	return e
}

func (linux) pipe() (r, w int32, size int, e syscall.Errno) {
	var fds [2]int
	err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC)
	if err != nil {
		return -1, -1, 0, err.(syscall.Errno)
	}
	// An unprivileged user whose pipes take too many pages gets less: what the pipe was made with, down to a page or two (pipe(7)).
	if size, err = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		if size, err = unix.FcntlInt(uintptr(fds[1]), unix.F_GETPIPE_SZ, 0); err != nil {
			size = os.Getpagesize()
		}
	}
	return int32(fds[0]), int32(fds[1]), size, 0
}

func accept4(fd int32, rsa *unix.RawSockaddrAny) (int32, syscall.Errno) {
	size := uint32(unix.SizeofSockaddrAny)
	n, _, e := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(rsa)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if e == 0 && size <= 2 {
		rsa.Addr.Data[0] = 0 // an unnamed unix peer: the path is empty
	}
	return int32(n), e
}

func socket(family int) (int32, syscall.Errno) {
	fd, _, e := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	return int32(fd), e
}

func connect(fd int32, rsa *unix.RawSockaddrAny, size uint32) syscall.Errno {
	_, _, e := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(rsa)), uintptr(size))
	return e
}

func setInt(fd int32, level, option int, value int32) syscall.Errno {
	_, _, e := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&value)), 4, 0)
	return e
}
