package reactor

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A listener is one listening socket on one loop. One loop is enough: a nested epoll cannot wake just one of several
// (EPOLLEXCLUSIVE counts a waiter as woken only if it blocks in epoll_wait), and the sessions it accepts go to the loop
// with the fewest anyway.
type listener struct {
	loop     *loop
	fd       int32
	addr     Addr
	file     os.FileInfo // the socket's file, if it is ours
	acceptor Acceptor
	fixed    Addr // the local address of every connection; zero for a wildcard

	stalled atomic.Bool // Reserve said no
	keep    atomic.Bool // the file; see SetUnlinkOnClose

	// What follows belongs to the loop's goroutine.
	twin    int32 // the next session's socket for its backend; -1: none
	paused  bool
	backoff time.Duration
	closed  bool
	index   int // in loop.accepts
	resumes sync.WaitGroup
	timer   *time.Timer
}

// Accepting backs off for this long when the system is out of something, doubling.
const (
	firstPause = 10 * time.Millisecond
	longPause  = 500 * time.Millisecond
)

// acceptBatch is how many connections are accepted before other events get their turn.
const acceptBatch = 64

func bindListener(fd int32, addr Addr) error {
	if addr.IsUnix() {
		if err := RemoveStale(addr.Path); err != nil {
			return err
		}
		return bind(fd, addr)
	}
	if e := setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); e != 0 {
		return e
	}
	if addr.family() == unix.AF_INET6 {
		if e := setInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); e != 0 && addr.IP.Addr().IsUnspecified() {
			return e
		}
	}
	return bind(fd, addr)
}

func (e *Epoll) listen(fd int32, o ListenOptions, a Acceptor, ownsFile bool) (Listener, error) {
	addr := sockname(fd)
	backlog := o.Backlog
	if backlog <= 0 {
		backlog = 4096
	}
	if !addr.IsUnix() {
		// Accepted sockets inherit these, so that they cost nothing a connection.
		setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		setOptions(fd, o.Socket)
	}
	if err := unix.Listen(int(fd), backlog); err != nil {
		unix.Close(int(fd))
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	e.mu.Lock()
	l := e.loops[e.next%len(e.loops)]
	e.next++
	closed := e.closed
	e.mu.Unlock()
	if closed {
		unix.Close(int(fd))
		return nil, fmt.Errorf("listen on %s: %w", addr, ErrClosed)
	}
	ln := &listener{loop: l, fd: fd, addr: addr, acceptor: a, twin: -1}
	if ownsFile && addr.IsUnix() && addr.Path[0] != '@' {
		ln.file, _ = os.Lstat(addr.Path) // one that is gone need not be removed
	}
	if addr.IsUnix() || !addr.IP.Addr().IsUnspecified() {
		ln.fixed = addr
	}
	l.mu.Lock()
	ln.index = len(l.accepts)
	for i, other := range l.accepts {
		if other == nil {
			ln.index = i
			break
		}
	}
	if ln.index == len(l.accepts) {
		l.accepts = append(l.accepts, nil)
	}
	l.accepts[ln.index] = ln
	l.mu.Unlock()
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(ln.index), Pad: listenerEvent}
	if errno := e.kernel.epollCtl(l.ep, unix.EPOLL_CTL_ADD, fd, ev); errno != 0 {
		ln.Close()
		return nil, fmt.Errorf("listen on %s: epoll: %w", addr, errno)
	}
	return ln, nil
}

// Addr implements [Listener].
func (ln *listener) Addr() Addr { return ln.addr }

// Resume implements [Listener].
func (ln *listener) Resume() {
	if ln.stalled.CompareAndSwap(true, false) {
		ln.loop.post(ln.accept)
	}
}

// File implements [Listener].
func (ln *listener) File() (*os.File, error) {
	var fd int
	err := ErrClosed
	done := make(chan struct{})
	if ln.loop.post(func() {
		if !ln.closed {
			fd, err = unix.FcntlInt(uintptr(ln.fd), unix.F_DUPFD_CLOEXEC, 0)
		}
		close(done)
	}) {
		<-done
	}
	if err != nil {
		return nil, fmt.Errorf("duplicate the socket of %s: %w", ln.addr, err)
	}
	return os.NewFile(uintptr(fd), ln.addr.String()), nil
}

// SetSocketOptions implements [Listener].
func (ln *listener) SetSocketOptions(o SocketOptions) {
	if ln.addr.IsUnix() {
		return
	}
	done := make(chan struct{})
	if ln.loop.post(func() {
		if !ln.closed {
			setOptions(ln.fd, o)
		}
		close(done)
	}) {
		<-done
	}
}

// SetUnlinkOnClose implements [Listener].
func (ln *listener) SetUnlinkOnClose(unlink bool) { ln.keep.Store(!unlink) }

// Close implements [Listener].
func (ln *listener) Close() error {
	done := make(chan struct{})
	closing := func() {
		ln.closed = true
		ln.recovered() // every pause ends, if only with the listener
		if ln.timer != nil && ln.timer.Stop() {
			ln.resumes.Done()
		}
		if ln.paused {
			ln.loop.engine.takeSpare() // as many as there are; the next pause looks after the rest
		}
		ln.loop.mu.Lock()
		ln.loop.accepts[ln.index] = nil
		ln.loop.mu.Unlock()
		// While another process has the socket, closing a descriptor of it does not end epoll's interest.
		ln.loop.engine.kernel.epollCtl(ln.loop.ep, unix.EPOLL_CTL_DEL, ln.fd, unix.EpollEvent{})
		unix.Close(int(ln.fd))
		ln.dropTwin()
		if ln.file != nil && !ln.keep.Load() {
			if now, err := os.Lstat(ln.addr.Path); err == nil && os.SameFile(now, ln.file) {
				os.Remove(ln.addr.Path)
			}
		}
		close(done)
	}
	if !ln.loop.post(closing) {
		return ErrClosed
	}
	<-done
	ln.resumes.Wait()
	return nil
}

// room reserves a place for one more connection. The flag is raised before the second look, so that a place that
// becomes free in between is not missed.
func (ln *listener) room() bool {
	if ln.acceptor.Reserve() {
		return true
	}
	ln.stalled.Store(true)
	if !ln.acceptor.Reserve() {
		return false
	}
	ln.stalled.Store(false)
	return true
}

// accept takes what waits. A session's two descriptors are taken together, the socket for the backend first: so a client
// that was accepted never lacks one, and at the limit the kernel's queue keeps the clients.
func (ln *listener) accept() {
	if ln.closed || ln.paused {
		return
	}
	for range acceptBatch {
		if !ln.room() {
			ln.dropTwin()
			return
		}
		errno := syscall.Errno(0)
		if ln.twin < 0 {
			ln.twin, errno = socket(unix.AF_INET)
		}
		var rsa unix.RawSockaddrAny
		fd := int32(-1)
		if errno == 0 {
			fd, errno = accept4(ln.fd, &rsa)
		} else {
			ln.twin = -1
		}
		if errno == 0 {
			ln.accepted(fd, &rsa)
			continue
		}
		ln.acceptor.Unreserve()
		switch errno {
		case unix.EAGAIN:
			ln.recovered()
			return
		case unix.ECONNABORTED, unix.EINTR, unix.EPERM, unix.EPROTO, unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.ETIMEDOUT,
			unix.ENETDOWN, unix.ENETUNREACH, unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ENONET:
			// These concern that one connection (accept(2): pending network errors, and a firewall's EPERM).
		default: // out of something (EMFILE, ENFILE, ENOBUFS, ENOMEM), or what would only be repeated
			ln.pause(errno)
			return
		}
	}
	ln.loop.post(ln.accept)
}

func (ln *listener) accepted(fd int32, rsa *unix.RawSockaddrAny) {
	ln.recovered()
	c := &conn{fd: fd, loop: ln.loop.engine.quietest()}
	u := newSetup(decode(rsa))
	u.local, u.twin = ln.fixed, ln.twin
	c.setup.Store(u)
	ln.twin = -1
	if ln.addr.IsUnix() {
		c.flags |= unixSocket
	}
	c.loop.sessions.Add(1)
	ln.acceptor.Accepted(c)
	ln.loop.spawned = true
}

// pause stops accepting for a while. The engine's spare descriptors are free meanwhile; accepting goes on when they could
// be taken back.
func (ln *listener) pause(errno syscall.Errno) {
	ln.paused = true
	ln.dropTwin()
	ln.loop.engine.giveSpare()
	if ln.backoff == 0 {
		ln.acceptor.Paused(errno)
	}
	ln.backoff = min(max(firstPause, 2*ln.backoff), longPause)
	ln.resumes.Add(1)
	ln.timer = time.AfterFunc(ln.backoff, func() {
		defer ln.resumes.Done()
		ln.loop.post(ln.resume)
	})
}

func (ln *listener) resume() {
	if ln.closed {
		return
	}
	ln.paused = false
	if !ln.loop.engine.takeSpare() {
		ln.pause(unix.EMFILE)
		return
	}
	ln.accept()
}

// recovered ends a pause for the acceptor.
func (ln *listener) recovered() {
	if ln.backoff > 0 {
		ln.backoff = 0
		ln.acceptor.Paused(nil)
	}
}

func (ln *listener) dropTwin() {
	if ln.twin >= 0 {
		closeSocket(ln.twin)
		ln.twin = -1
	}
}
