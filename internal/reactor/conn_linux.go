package reactor

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A conn is one socket of the epoll engine. It is unregistered at first: a connection that is set up without waiting
// meets epoll only when its relay starts, with its first bytes already moved.
type conn struct {
	fd     int32
	slot   int32  // in loop.conns, while registered
	gen    int32  // of the registration
	events uint32 // registered; 0: not registered
	loop   *loop  // where it is registered; nil: nowhere
	home   *loop  // where its relay will run

	relay   atomic.Pointer[relay]
	pending atomic.Uint32          // events that nobody has looked at yet
	hook    atomic.Pointer[func()] // called for events while there is no relay
	setup   *setup                 // nil once the relay is established

	// What follows belongs to whoever runs the relay.
	flags flags
	full  uint8         // reads in a row that filled the buffer
	small uint8         // spliced pieces in a row that were too small for splice to pay
	bytes atomic.Uint64 // read here and written to the other side
	rest  []byte        // read here, not yet taken by the other side; a window of chunk
	chunk *chunk
	pipe  *pipe
}

// setup is what a connection needs only until its relay runs.
type setup struct {
	remote, local Addr
	options       SocketOptions // to be set when the session has lasted a second; zero: none, or inherited
	twin          int32         // a socket for the backend's side, taken with this one; -1: none
	state         connState
	err           error
}

type connState uint8

const (
	connected connState = iota
	connecting
	retrying // a unix listener's queue is full: connect must be called again
)

type flags uint16

const (
	readable flags = 1 << iota // there may be something to read
	hup                        // FIN or RST has arrived: a short read is not the end of what can be read
	urgent                     // there was urgent data: short reads prove nothing
	blocked                    // writing gave EAGAIN
	eof                        // FIN was read
	shut                       // our FIN was sent
	broken                     // reset, or an error: nothing can be written
	drained                    // broken, and everything that had arrived was read
	failed                     // ERR or HUP was reported
	splicing                   // the stream is worth a pipe
	noSplice                   // the kernel cannot splice this socket
	unixSocket
)

func (f flags) has(x flags) bool { return f&x != 0 }

const (
	quietEvents = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLPRI
	allEvents   = quietEvents | unix.EPOLLOUT
)

func (c *conn) Remote() Addr {
	if c.setup == nil {
		return Addr{}
	}
	return c.setup.remote
}

func (c *conn) Local() Addr {
	if c.setup == nil {
		return Addr{}
	}
	if !c.setup.local.IsValid() {
		c.setup.local = sockname(c.fd)
	}
	return c.setup.local
}

func (c *conn) Close() { c.end(false) }
func (c *conn) Reset() { c.end(true) }

// end closes a connection that is in no relay.
func (c *conn) end(reset bool) {
	c.hook.Store(nil)
	if c.loop != nil {
		c.loop.unregister(c, false)
	}
	c.dropTwin()
	if c.home != nil {
		c.home.sessions.Add(-1)
	}
	c.chunk.free()
	c.chunk, c.rest = nil, nil
	c.home.engine.kernel.close(c.fd, reset && !c.flags.has(unixSocket))
}

func (c *conn) dropTwin() {
	if c.setup != nil && c.setup.twin >= 0 {
		unix.Close(int(c.setup.twin))
		c.setup.twin = -1
	}
}

// ready takes events from the loop l.
func (c *conn) ready(l *loop, events uint32) {
	c.pending.Or(events)
	if r := c.relay.Load(); r != nil {
		r.kick(l)
	} else if f := c.hook.Load(); f != nil {
		(*f)()
	}
}

func (c *conn) Connected() bool { return c.setup == nil || c.setup.state == connected }

func (c *conn) Established(ctx context.Context) error {
	for c.setup.state == retrying {
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return c.failure(err)
		}
		c.connect()
	}
	if c.setup.err != nil || c.setup.state == connected {
		return c.setup.err
	}
	signal := make(chan struct{}, 1)
	f := func() {
		select {
		case signal <- struct{}{}:
		default:
		}
	}
	c.hook.Store(&f)
	defer c.hook.Store(nil)
	if e := c.home.register(c, allEvents); e != 0 {
		return c.failure(e)
	}
	for {
		select {
		case <-ctx.Done():
			return c.failure(context.Cause(ctx))
		case <-signal:
		}
		if c.pending.Load()&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) == 0 {
			continue
		}
		switch e, err := unix.GetsockoptInt(int(c.fd), unix.SOL_SOCKET, unix.SO_ERROR); {
		case err != nil:
			return c.failure(err)
		case e != 0:
			return c.failure(syscall.Errno(e))
		}
		c.setup.state = connected
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

func (c *conn) failure(err error) error {
	c.setup.err = fmt.Errorf("dial %s: %w", c.setup.remote, err)
	return c.setup.err
}

// connect calls connect(2), and once more when that is under way: over loopback the handshake is complete by then, and no
// event is needed to learn it.
func (c *conn) connect() {
	var rsa unix.RawSockaddrAny
	size := c.setup.remote.encode(&rsa)
	if size == 0 {
		c.failure(unix.ENAMETOOLONG)
		return
	}
	e := connect(c.fd, &rsa, size)
	if e == unix.EINPROGRESS {
		e = connect(c.fd, &rsa, size)
	}
	switch e {
	case 0, unix.EISCONN:
		c.setup.state = connected
	case unix.EALREADY, unix.EINPROGRESS, unix.EINTR:
		c.setup.state = connecting
	case unix.EAGAIN:
		c.setup.state = retrying
		if !c.setup.remote.IsUnix() {
			c.setup.state = connecting
			c.failure(unix.EADDRNOTAVAIL) // no local port is free: connect(2) says EAGAIN then
		}
	default:
		c.setup.state = connecting
		c.failure(e)
	}
}

func (c *conn) OnReset(f func()) {
	if f == nil {
		c.hook.Store(nil)
		return
	}
	var once atomic.Bool
	check := func() {
		if c.pending.Load()&(unix.EPOLLERR|unix.EPOLLHUP) != 0 && once.CompareAndSwap(false, true) {
			f()
		}
	}
	c.hook.Store(&check)
	if c.loop == nil {
		if c.home.register(c, quietEvents) != 0 {
			return // without an event the reset is noticed when the relay starts
		}
	}
	check()
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
	if o.UserTimeout > 0 {
		setInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int32(o.UserTimeout.Milliseconds()))
	}
}

// seconds rounds up: a second is the kernel's unit.
func seconds(d time.Duration) int32 {
	return int32((d + time.Second - 1) / time.Second)
}
