package reactor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// readAhead is how much of a connection is read before it is relayed, where its socket cannot be watched otherwise.
const readAhead = 4 << 10

// lingerUnknown is how long data that was written last is given to arrive, where the system does not tell.
const lingerUnknown = 200 * time.Millisecond

// longAgo as a deadline ends a Read that is waiting.
var longAgo = time.Unix(1, 0)

// A handshaker is a [crypto/tls.Conn].
type handshaker interface {
	HandshakeContext(context.Context) error
}

type writeCloser interface {
	CloseWrite() error
}

// A portableConn is a connection of package net and what is known about its peer.
type portableConn struct {
	engine *Portable
	target Addr        // of a dialed connection
	dial   DialOptions // likewise
	failed error       // why it could not be connected

	nc     net.Conn        // nil until a dialed connection is connected
	socket net.Conn        // what is under nc when that is TLS; else nc
	raw    syscall.RawConn // of socket; nil if it has no descriptor
	ready  bool            // no TLS handshake is missing

	// What was read and not relayed yet, and the error that came after it. The owner's, or the watcher's while it runs.
	head    []byte
	headErr error

	mu      sync.Mutex
	onReset func()
	watcher chan struct{} // closed when the watching goroutine has ended; nil if none was started
	reset   bool          // the peer has reset; an EOF that is read after that is no FIN
	arrived bool          // the watching goroutine of Watch has read something
	ended   bool          // likewise, the end of the stream or an error
	finSent bool
}

func (c *portableConn) adopt(nc net.Conn) {
	c.nc, c.socket = nc, nc
	for {
		w, ok := c.socket.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c.socket = w.NetConn()
	}
	if sc, ok := c.socket.(syscall.Conn); ok {
		c.raw, _ = sc.SyscallConn()
	}
	_, tls := nc.(handshaker)
	c.ready = !tls
}

func (c *portableConn) isTCP() bool {
	_, ok := c.socket.(*net.TCPConn)
	return ok
}

func (c *portableConn) isTLS() bool { return c.nc != c.socket }

// setOptions leaves out what the system refuses: macOS refuses everything for a connection that its peer has reset.
func (c *portableConn) setOptions(o SocketOptions) {
	tcp, ok := c.socket.(*net.TCPConn)
	if !ok {
		return
	}
	k := net.KeepAliveConfig{
		Enable: o.KeepaliveIdle > 0, Idle: o.KeepaliveIdle, Interval: o.KeepaliveInterval, Count: o.KeepaliveCount,
	}
	if k.Interval == 0 {
		k.Interval = -1 // package net has a default of its own for 0
	}
	if k.Count == 0 {
		k.Count = -1
	}
	tcp.SetKeepAliveConfig(k)
	if o.UserTimeout > 0 {
		setUserTimeout(c.raw, o.UserTimeout)
	}
}

func (c *portableConn) Local() Addr {
	if c.nc == nil {
		return c.dial.Source
	}
	return AddrOf(c.nc.LocalAddr())
}

func (c *portableConn) Remote() Addr {
	if c.nc == nil {
		return c.target
	}
	return AddrOf(c.nc.RemoteAddr())
}

func (c *portableConn) Connected() bool { return c.nc != nil && c.ready }

// Established connects a dialed connection, and makes the handshake of a TLS one. When ctx is done it may be called
// again, but not after a TLS handshake, which cannot be taken up again.
func (c *portableConn) Established(ctx context.Context) error {
	switch {
	case c.Connected():
		return nil
	case c.failed != nil:
		return c.failed
	case c.nc == nil:
		return c.connect(ctx)
	}
	f := c.stopWatch() // it would keep the handshake from reading
	if err := c.nc.(handshaker).HandshakeContext(ctx); err != nil {
		c.failed = fmt.Errorf("TLS with %s: %w", c.Remote(), causeOr(ctx, err))
		return c.failed
	}
	c.ready = true
	c.OnReset(f)
	return nil
}

func (c *portableConn) connect(ctx context.Context) error {
	d := net.Dialer{LocalAddr: c.dial.Source.Net(), KeepAlive: -1, Control: dialControl(c.dial.Source)}
	d.SetMultipathTCP(false)
	host := c.target.Path
	if !c.target.IsUnix() {
		host = c.target.String()
	}
	nc, err := d.DialContext(ctx, c.target.Network(), host)
	if err != nil {
		if deadline, ok := ctx.Deadline(); ok && errors.Is(err, os.ErrDeadlineExceeded) && !time.Now().Before(deadline) {
			<-ctx.Done() // the socket's timer may be the first to fire
		}
		if ctx.Err() != nil {
			return fmt.Errorf("dial %s: %w", c.target, context.Cause(ctx))
		}
		c.failed = err
		return err
	}
	c.adopt(nc)
	c.setOptions(c.dial.Socket)
	c.OnReset(c.stopWatch())
	return nil
}

func causeOr(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// OnReset watches in a goroutine of its own. When OnReset(nil) returns, f is not running and will not be called; so f
// must not call it, nor Established or Relay.
func (c *portableConn) OnReset(f func()) {
	c.stopWatch()
	if f == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onReset = f
	if c.nc == nil {
		return
	}
	done := make(chan struct{})
	if c.engine.start(func() { c.watch(done) }) == nil {
		c.watcher = done
	}
}

// Watch reads ahead in a goroutine of its own.
func (c *portableConn) Watch(f func()) {
	c.stopWatch()
	if f == nil || c.nc == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	done := make(chan struct{})
	if c.engine.start(func() { c.watchAll(f, done) }) == nil {
		c.watcher = done
	}
}

// watchAll calls f for everything that is read, until as much is read as may wait here.
func (c *portableConn) watchAll(f func(), done chan struct{}) {
	defer close(done)
	buf := make([]byte, readAhead)
	for len(c.head) < readAhead && c.headErr == nil {
		n, err := c.nc.Read(buf[:readAhead-len(c.head)])
		c.head = append(c.head, buf[:n]...)
		interrupted := errors.Is(err, os.ErrDeadlineExceeded)
		if !interrupted {
			c.headErr = err
		}
		c.mu.Lock()
		c.arrived, c.ended = len(c.head) > 0, c.headErr != nil
		c.mu.Unlock()
		if interrupted {
			return
		}
		f()
	}
}

// Check knows what Watch has read.
func (c *portableConn) Check() (up, waiting bool) {
	c.mu.Lock()
	up, waiting = c.nc != nil && !c.ended, c.arrived
	c.mu.Unlock()
	return up && !c.isReset(), waiting
}

// sendTime bounds Send: a few bytes fit into the send queue, or something is wrong.
const sendTime = time.Second

func (c *portableConn) Send(p []byte) error {
	c.nc.SetWriteDeadline(time.Now().Add(sendTime))
	defer c.nc.SetWriteDeadline(time.Time{})
	if _, err := c.nc.Write(p); err != nil {
		return fmt.Errorf("send %d bytes: %w", len(p), err)
	}
	return nil
}

func (c *portableConn) Peek(ctx context.Context, p []byte, n int) (int, error) {
	f := c.stopWatch()
	stop := context.AfterFunc(ctx, func() { c.nc.SetReadDeadline(longAgo) })
	n = min(n, len(p))
	var interrupted error
	for len(c.head) < n && c.headErr == nil && interrupted == nil {
		m, err := c.nc.Read(p[:len(p)-len(c.head)])
		c.head = append(c.head, p[:m]...)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			interrupted = causeOr(ctx, err)
		} else {
			c.headErr = err
		}
	}
	if !stop() && ctx.Err() != nil {
		interrupted = context.Cause(ctx)
	}
	c.nc.SetReadDeadline(time.Time{})
	c.OnReset(f)
	m := copy(p, c.head)
	switch {
	case m >= n:
		return m, nil
	case interrupted != nil:
		return m, interrupted
	case c.headErr != io.EOF:
		return m, fmt.Errorf("read: %w", c.headErr)
	}
	return m, io.EOF
}

func (c *portableConn) Discard(n int) error {
	if n > len(c.head) {
		return io.ErrUnexpectedEOF
	}
	c.head = c.head[n:]
	return nil
}

// stopWatch ends the watching goroutine and returns the function that is now not called.
func (c *portableConn) stopWatch() func() {
	c.mu.Lock()
	f, watcher := c.onReset, c.watcher
	c.onReset, c.watcher = nil, nil
	c.mu.Unlock()
	if watcher != nil {
		c.nc.SetReadDeadline(longAgo)
		<-watcher
		c.nc.SetReadDeadline(time.Time{})
	}
	return f
}

func (c *portableConn) watch(done chan struct{}) {
	defer close(done)
	if canWatch && c.raw != nil {
		if !c.awaitReset() {
			return
		}
	} else if !c.ready || !c.readAhead() {
		return
	}
	c.mu.Lock()
	f := c.onReset
	c.onReset = nil
	c.mu.Unlock()
	if f != nil {
		f()
	}
}

// awaitReset returns true when the peer has reset the connection; false when the wait was interrupted, a FIN was sent,
// or this system cannot tell. It reads nothing.
func (c *portableConn) awaitReset() bool {
	if canWatch && c.raw != nil {
		c.raw.Read(func(uintptr) bool { return c.isReset() || c.sentFIN() })
	}
	return c.isReset()
}

// readAhead reads until the peer resets (true), ends, was interrupted, or has sent as much as may wait here.
func (c *portableConn) readAhead() bool {
	buf := make([]byte, readAhead)
	n := copy(buf, c.head)
	for n < len(buf) && c.headErr == nil {
		m, err := c.nc.Read(buf[n:])
		n += m
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		c.headErr = err
	}
	c.head = buf[:n]
	return c.headErr != nil && c.headErr != io.EOF && !errors.Is(c.headErr, net.ErrClosed)
}

// isReset reports whether the peer has reset, as far as it is known.
func (c *portableConn) isReset() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	// After both FINs a TCP socket looks like one that was reset.
	if !c.reset && !c.finSent && c.raw != nil && hasReset(c.raw, c.isTCP()) {
		c.reset = true
	}
	return c.reset
}

// setReset remembers that a read or write found the peer gone. The kernel says so once; the other goroutine would then
// read an EOF.
func (c *portableConn) setReset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reset = true
}

func (c *portableConn) sentFIN() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.finSent
}

// read is Read, first of what was read before.
func (c *portableConn) read(p []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	c.head = nil
	if err := c.headErr; err != nil {
		return 0, err
	}
	return c.nc.Read(p)
}

// unread gives back what read returned.
func (c *portableConn) unread(p []byte, err error) {
	c.head = append(append(make([]byte, 0, len(p)+len(c.head)), p...), c.head...)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.headErr = err
	}
}

// canCloseWrite reports whether a FIN can be sent.
func (c *portableConn) canCloseWrite() bool {
	_, ok := c.nc.(writeCloser)
	return ok
}

// closeWrite sends a FIN, or its like. For TLS that must fit into the send queue within 5 s.
func (c *portableConn) closeWrite() error {
	if h, ok := c.nc.(handshaker); ok && !c.ready {
		if err := h.HandshakeContext(context.Background()); err != nil {
			return err
		}
	}
	c.mu.Lock()
	c.finSent = true
	c.mu.Unlock()
	return c.nc.(writeCloser).CloseWrite()
}

// queue is what the kernel holds for the peer: how many bytes, and a number that changes when the peer takes some.
func (c *portableConn) queue() (unsent int, mark uint64, known bool) {
	if c.raw == nil {
		return 0, 0, false
	}
	return sendQueue(c.raw, c.isTCP())
}

// drain waits until the kernel has delivered what was written, the peer is gone, or done is closed.
func (c *portableConn) drain(done <-chan struct{}) {
	if c.raw == nil {
		return // no kernel in between: Write returned when the peer had read
	}
	wait := 250 * time.Microsecond
	for {
		unsent, _, known := c.queue()
		switch {
		case !known:
			wait = lingerUnknown
		case unsent == 0 || c.isReset():
			return
		}
		// No event tells that a send queue has become empty.
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-done:
			t.Stop()
			return
		}
		if !known {
			return
		}
		wait = min(2*wait, 20*time.Millisecond)
	}
}

func (c *portableConn) Close() {
	if c.abandon() {
		c.nc.Close()
	}
}

func (c *portableConn) Reset() {
	if !c.abandon() {
		return
	}
	if tcp, ok := c.socket.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.socket.Close() // not nc: TLS would say goodbye
}

// abandon withdraws the watching function; the close that follows ends its goroutine. It returns false if there is
// nothing to close.
func (c *portableConn) abandon() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onReset = nil
	return c.nc != nil
}
