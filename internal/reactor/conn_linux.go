package reactor

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A conn is one socket of the epoll engine. It is unregistered at first: a connection that is set up without waiting
// meets epoll only when its relay starts, with its first bytes already moved.
type conn struct {
	fd   int32
	slot int32 // in loop.conns, while registered
	gen  int32 // of the registration

	pending atomic.Uint32         // events that nobody has looked at yet
	relay   atomic.Pointer[relay] // nil before and after
	setup   atomic.Pointer[setup] // nil once the relay is established
	loop    *loop

	// What follows belongs to whoever runs the relay.
	bytes atomic.Uint64 // read here and written to the other side
	stash *stash        // read here, not yet taken by the other side; nil: nothing
	flags flags
	full  uint8 // reads in a row that filled the buffer
	small uint8 // spliced pieces in a row that were too small for splice to pay
}

// setup is what a connection needs only until its relay runs.
type setup struct {
	remote, local Addr
	hook          atomic.Pointer[func()] // called for events while there is no relay
	twin          int32                  // a socket for the backend's side, taken with this one; -1: none
	state         connState
	err           error
}

// setups are used again. A loop that still calls the hook of one wakes somebody for nothing, who looks and finds nothing.
var setups = sync.Pool{New: func() any { return new(setup) }}

func newSetup(remote Addr) *setup {
	u := setups.Get().(*setup)
	u.remote, u.local, u.twin, u.state, u.err = remote, Addr{}, -1, connected, nil
	return u
}

// A stash is what one side sent and the other has not taken yet, in a buffer or in a pipe.
type stash struct {
	rest  []byte // a window of chunk
	chunk *chunk
	pipe  *pipe
}

type connState uint8

const (
	connected connState = iota
	connecting
	retrying // a unix listener's queue is full: connect must be called again
)

type flags uint16

const (
	readable   flags = 1 << iota // there may be something to read
	hup                          // FIN or RST has arrived: a short read is not the end of what can be read
	urgent                       // there was urgent data: short reads prove nothing
	blocked                      // writing gave EAGAIN
	registered                   // with the loop
	outgoing                     // registered for EPOLLOUT as well
	eof                          // FIN was read
	shut                         // our FIN was sent
	broken                       // reset, or an error: nothing can be written
	drained                      // broken, and everything that had arrived was read
	failed                       // ERR was reported, or HUP of a unix socket: nobody is there any more
	splicing                     // the stream is worth a pipe
	noSplice                     // the kernel cannot splice this socket
	unixSocket
)

func (f flags) has(x flags) bool { return f&x != 0 }

func (c *conn) Remote() Addr {
	if u := c.setup.Load(); u != nil {
		return u.remote
	}
	return Addr{}
}

func (c *conn) Local() Addr {
	u := c.setup.Load()
	if u == nil {
		return Addr{}
	}
	if !u.local.IsValid() {
		u.local = sockname(c.fd)
	}
	return u.local
}

func (c *conn) Close() { c.end(false) }
func (c *conn) Reset() { c.end(true) }

// end closes the connection.
func (c *conn) end(reset bool) {
	if c.flags.has(registered) {
		c.loop.unregister(c, false)
	}
	c.establish()
	c.loop.sessions.Add(-1)
	if s := c.stash; s != nil {
		s.chunk.free()
		if s.pipe != nil {
			c.loop.pipes.put(c.loop.engine.kernel, s.pipe)
		}
		c.stash = nil
	}
	c.loop.engine.kernel.close(c.fd, reset && !c.flags.has(unixSocket))
}

// establish ends the set-up.
func (c *conn) establish() {
	if u := c.setup.Swap(nil); u != nil {
		u.hook.Store(nil)
		u.dropTwin()
		setups.Put(u)
	}
}

func (u *setup) dropTwin() {
	if u.twin >= 0 {
		closeSocket(u.twin)
		u.twin = -1
	}
}

// empty reports whether the other side has taken everything.
func (c *conn) empty() bool {
	return c.stash == nil || len(c.stash.rest) == 0 && (c.stash.pipe == nil || c.stash.pipe.held == 0)
}

// ready takes events from the loop l.
func (c *conn) ready(l *loop, events uint32) {
	c.pending.Or(events)
	if r := c.relay.Load(); r != nil {
		r.kick(l)
		return
	}
	if u := c.setup.Load(); u != nil {
		if f := u.hook.Load(); f != nil {
			(*f)()
		}
	}
}

func (c *conn) Connected() bool {
	u := c.setup.Load()
	return u == nil || u.state == connected
}

func (c *conn) Established(ctx context.Context) error {
	u := c.setup.Load()
	if u == nil {
		return nil
	}
	for u.state == retrying {
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return u.fail(err)
		}
		c.connect(u)
	}
	if u.err != nil || u.state == connected {
		return u.err
	}
	signal := make(chan struct{}, 1)
	f := func() {
		select {
		case signal <- struct{}{}:
		default:
		}
	}
	u.hook.Store(&f)
	defer u.hook.Store(nil)
	c.flags |= outgoing
	if e := c.loop.register(c); e != 0 {
		return u.fail(e)
	}
	for {
		select {
		case <-ctx.Done():
			return u.fail(context.Cause(ctx))
		case <-signal:
		}
		if c.pending.Load()&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) == 0 {
			continue
		}
		switch e, err := unix.GetsockoptInt(int(c.fd), unix.SOL_SOCKET, unix.SO_ERROR); {
		case err != nil:
			return u.fail(err)
		case e != 0:
			return u.fail(syscall.Errno(e))
		}
		u.state = connected
		return nil
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (u *setup) fail(err error) error {
	u.err = fmt.Errorf("dial %s: %w", u.remote, err)
	return u.err
}

// connect calls connect(2), and once more when that is under way: over loopback the handshake is complete by then, and no
// event is needed to learn it.
func (c *conn) connect(u *setup) {
	u.state = connecting
	var rsa unix.RawSockaddrAny
	size := u.remote.encode(&rsa)
	if size == 0 {
		u.fail(unix.ENAMETOOLONG)
		return
	}
	e := connect(c.fd, &rsa, size)
	if e == unix.EINPROGRESS {
		e = connect(c.fd, &rsa, size)
	}
	switch {
	case e == 0 || e == unix.EISCONN:
		u.state = connected
	case e == unix.EALREADY || e == unix.EINPROGRESS || e == unix.EINTR:
	case e == unix.EAGAIN && c.flags.has(unixSocket):
		u.state = retrying
	case e == unix.EAGAIN:
		u.fail(unix.EADDRNOTAVAIL) // no local port is free: connect(2) says EAGAIN then
	default:
		u.fail(e)
	}
}

// settingUp is the set-up of a connection that is in no relay.
func (c *conn) settingUp() *setup {
	u := c.setup.Load()
	if u == nil { // a relay let go of it
		u = newSetup(Addr{})
		c.setup.Store(u)
	}
	return u
}

func (c *conn) OnReset(f func()) {
	if f == nil {
		c.Watch(nil)
		return
	}
	reset := uint32(unix.EPOLLERR | unix.EPOLLHUP)
	if c.flags.has(unixSocket) {
		reset = unix.EPOLLERR // HUP says that it was closed, and what it sent counts
	}
	var once atomic.Bool
	c.Watch(func() {
		if c.pending.Load()&reset != 0 && once.CompareAndSwap(false, true) {
			f()
		}
	})
}

func (c *conn) Watch(f func()) {
	u := c.settingUp()
	if f == nil {
		u.hook.Store(nil)
		return
	}
	u.hook.Store(&f)
	if c.flags.has(registered) {
		f() // events before this moment called nobody
		return
	}
	c.loop.register(c) // if that fails, what happens is noticed when the relay starts
}

func (c *conn) Check() (up, waiting bool) {
	var b [1]byte
	n, e := c.loop.engine.kernel.recv(c.fd, b[:], unix.MSG_PEEK)
	waiting = n == 1 && e == 0
	ended := c.pending.Load()&(unix.EPOLLRDHUP|unix.EPOLLERR|unix.EPOLLHUP) != 0
	if waiting && !ended { // the bytes hide an end behind them, and the loop may not have heard of it yet
		p := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLRDHUP}}
		n, _ := unix.Poll(p, 0)
		ended = n > 0
	}
	return !ended && (waiting || e == unix.EAGAIN), waiting
}

func (c *conn) Send(p []byte) error {
	n, e := c.loop.engine.kernel.send(c.fd, p, 0)
	if e == 0 && n < len(p) {
		e = unix.EAGAIN
	}
	if e != 0 {
		return fmt.Errorf("send %d bytes: %w", len(p), e)
	}
	return nil
}

func (c *conn) Peek(ctx context.Context, p []byte, n int) (int, error) {
	if _, err := c.Await(ctx, min(n, len(p))); err != nil && err != io.EOF {
		return 0, err
	}
	m, e := c.loop.engine.kernel.recv(c.fd, p, unix.MSG_PEEK)
	switch {
	case e == unix.EAGAIN:
		return 0, io.EOF // Await has seen the end
	case e != 0:
		return 0, fmt.Errorf("read: %w", e)
	case m < min(n, len(p)):
		return m, io.EOF
	}
	return m, nil
}

func (c *conn) Await(ctx context.Context, n int) (int, error) {
	u := c.settingUp()
	outer := u.hook.Load()
	defer u.hook.Store(outer)
	signal := make(chan struct{}, 1)
	f := func() {
		select {
		case signal <- struct{}{}:
		default:
		}
		if outer != nil {
			(*outer)()
		}
	}
	u.hook.Store(&f)
	low := 1
	for {
		events := c.pending.Load()
		m, err := unix.IoctlGetInt(int(c.fd), unix.SIOCINQ)
		if err != nil {
			return 0, fmt.Errorf("read: %w", err)
		}
		if m >= n {
			return m, nil
		}
		if events&unix.EPOLLERR != 0 {
			return m, fmt.Errorf("read: %w", unix.ECONNRESET)
		}
		if events&(unix.EPOLLRDHUP|unix.EPOLLHUP) != 0 {
			return m, io.EOF
		}
		if !c.flags.has(registered) {
			if e := c.loop.register(c); e != 0 {
				return m, fmt.Errorf("read: %w", e)
			}
			continue // what came before is not reported
		}
		if low != n { // fewer looks at a client that sends byte by byte; the kernel may still tell of less than n
			low = n
			setInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, int32(n))
			defer setInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, 1)
			continue // they may have come before
		}
		select {
		case <-signal:
		case <-ctx.Done():
			return m, context.Cause(ctx)
		}
	}
}

func (c *conn) Discard(n int) error {
	var b [512]byte
	for n > 0 {
		m, e := c.loop.engine.kernel.recv(c.fd, b[:min(n, len(b))], 0)
		if e != 0 {
			return fmt.Errorf("read: %w", e)
		}
		if m == 0 {
			return io.ErrUnexpectedEOF
		}
		n -= m
	}
	return nil
}

// setOptions sets what o asks for; TCP only.
func setOptions(fd int32, o SocketOptions) {
	if o.KeepaliveIdle <= 0 {
		setInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0)
	} else {
		setInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, seconds(o.KeepaliveIdle))
		if o.KeepaliveInterval > 0 {
			setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, seconds(o.KeepaliveInterval))
		}
		if o.KeepaliveCount > 0 {
			setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, int32(o.KeepaliveCount))
		}
	}
	setInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, milliseconds(o.UserTimeout))
}

// milliseconds and seconds round up: they are the kernel's units, and 0 would be another meaning.
func milliseconds(d time.Duration) int32 {
	return int32((d + time.Millisecond - 1) / time.Millisecond)
}

func seconds(d time.Duration) int32 {
	return int32((d + time.Second - 1) / time.Second)
}
