package reactor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Epoll is the engine of event loops over raw sockets; Linux only.
type Epoll struct {
	loops  []*loop
	kernel kernel
	start  time.Time // zero of the engine's clock

	mu    sync.Mutex
	spare []int // descriptors held back for others while accepting backs off; see listener.pause
	next  int   // loop of the next listener

	closed bool
}

// spareDescriptors are given up at EMFILE, so that what else the process does (its admin address, its log) can go on.
const spareDescriptors = 4

// NewEpoll starts an engine with that many event loops; 0 means one for each processor Go may use. The caller closes it.
func NewEpoll(loops int) (*Epoll, error) {
	if loops <= 0 {
		loops = runtime.GOMAXPROCS(0)
	}
	e := &Epoll{kernel: linux{}, start: time.Now()}
	e.takeSpare()
	for range loops {
		l, err := newLoop(e)
		if err != nil {
			e.Close()
			return nil, err
		}
		e.loops = append(e.loops, l)
		go l.run()
	}
	return e, nil
}

// Name implements [Engine].
func (e *Epoll) Name() string { return "epoll" }

// Close implements [Engine].
func (e *Epoll) Close() error {
	e.mu.Lock()
	again := e.closed
	e.closed = true
	e.mu.Unlock()
	if again {
		return nil
	}
	for _, l := range e.loops {
		l.close()
	}
	e.giveSpare()
	return nil
}

// Alive implements [Engine].
func (e *Epoll) Alive(ctx context.Context) error {
	came := make(chan struct{}, len(e.loops))
	for _, l := range e.loops {
		if !l.post(func() { came <- struct{}{} }) {
			return ErrClosed
		}
	}
	for range e.loops {
		select {
		case <-came:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// now is the engine's clock in milliseconds; it never jumps.
func (e *Epoll) now() int64 { return e.micros() / 1000 }

func (e *Epoll) micros() int64 { return int64(time.Since(e.start) / time.Microsecond) }

// quietest is the loop with the fewest connections.
func (e *Epoll) quietest() *loop {
	best := e.loops[0]
	for _, l := range e.loops[1:] {
		if l.sessions.Load() < best.sessions.Load() {
			best = l
		}
	}
	return best
}

// takeSpare opens what giveSpare closed and reports whether it could.
func (e *Epoll) takeSpare() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.spare) < spareDescriptors {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return false
		}
		e.spare = append(e.spare, fd)
	}
	return true
}

func (e *Epoll) giveSpare() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, fd := range e.spare {
		unix.Close(fd)
	}
	e.spare = nil
}

// Dial implements [Engine].
func (e *Epoll) Dial(addr Addr, near Conn, source Addr) (Conn, error) {
	if !addr.IsValid() {
		return nil, errors.New("dial: no address")
	}
	if e.loops[0].isClosed() {
		return nil, fmt.Errorf("dial %s: %w", addr, ErrClosed)
	}
	c, u := &conn{fd: -1}, newSetup(addr)
	c.setup.Store(u)
	if n, ok := near.(*conn); ok {
		c.loop = n.loop
		if nu := n.setup.Load(); nu != nil && addr.family() == unix.AF_INET {
			c.fd, nu.twin = nu.twin, -1
		} else if nu != nil {
			nu.dropTwin()
		}
	} else {
		c.loop = e.quietest()
	}
	if c.fd < 0 {
		fd, errno := socket(addr.family())
		if errno != 0 {
			return nil, fmt.Errorf("dial %s: socket: %w", addr, errno)
		}
		c.fd = fd
	}
	c.loop.sessions.Add(1)
	if addr.IsUnix() {
		c.flags |= unixSocket
	} else {
		setInt(c.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if source.IsValid() {
		if err := bindSource(c.fd, source); err != nil {
			c.Close()
			return nil, fmt.Errorf("dial %s from %s: %w", addr, source, err)
		}
	}
	c.connect(u)
	return c, nil
}

// bindSource binds to an address and leaves the port to connect(2), which may then use one port for many backends.
func bindSource(fd int32, source Addr) error {
	if source.IP.Port() == 0 && !source.IsUnix() {
		setInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	}
	return bind(fd, source)
}

func bind(fd int32, a Addr) error {
	switch a.family() {
	case unix.AF_UNIX:
		return unix.Bind(int(fd), &unix.SockaddrUnix{Name: a.Path})
	case unix.AF_INET:
		return unix.Bind(int(fd), &unix.SockaddrInet4{Addr: a.IP.Addr().Unmap().As4(), Port: int(a.IP.Port())})
	default:
		return unix.Bind(int(fd), &unix.SockaddrInet6{Addr: a.IP.Addr().As16(), Port: int(a.IP.Port()), ZoneId: scopeID(a.IP.Addr().Zone())})
	}
}

// Listen implements [Engine]. The file of a unix socket that nobody listens on is replaced; any other file is an error.
func (e *Epoll) Listen(addr Addr, o ListenOptions, a Acceptor) (Listener, error) {
	fd, errno := socket(addr.family())
	if errno != 0 {
		return nil, fmt.Errorf("listen on %s: socket: %w", addr, errno)
	}
	if err := bindListener(fd, addr); err != nil {
		unix.Close(int(fd))
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return e.listen(fd, o, a, addr.IsUnix())
}

// Serve implements [Engine] for *net.TCPListener and *net.UnixListener.
func (e *Epoll) Serve(ln net.Listener, o ListenOptions, a Acceptor) (Listener, error) {
	defer ln.Close()
	sc, ok := ln.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("serve %T: the epoll engine takes listeners of package net only", ln)
	}
	owned := false
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
		owned = true
	}
	fd, err := duplicate(sc)
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	return e.listen(int32(fd), o, a, owned)
}
