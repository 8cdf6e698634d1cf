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
	target Addr  // of a dialed connection
	source Addr  // likewise
	failed error // why it could not be connected

	nc     net.Conn        // nil until a dialed connection is connected
	socket net.Conn        // what is under nc when that is TLS; else nc
	raw    syscall.RawConn // of socket; nil if it has no descriptor
	ready  bool            // no TLS handshake is missing

	mu       sync.Mutex
	head     []byte // what was read and not relayed yet
	headErr  error  // the end that was read after it
	watching *watch
	reset    bool // the peer has reset; an EOF that is read after that is no FIN
	finSent  bool
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

// wrap ends the watch meanwhile: the layer reads what the watcher would. The function of the watch may still run, and look at c.
func (c *portableConn) wrap(layer func(net.Conn) net.Conn) {
	f := c.stopWatch()
	c.mu.Lock()
	under := c.nc
	if len(c.head) > 0 || c.headErr != nil {
		under = &peeked{Conn: under, head: c.head, err: c.headErr}
		c.head, c.headErr = nil, nil
	}
	c.adopt(layer(under))
	c.mu.Unlock()
	c.Watch(f)
}

// A peeked is a connection from which something was read already.
type peeked struct {
	net.Conn
	head []byte
	err  error // that came after it
}

func (p *peeked) NetConn() net.Conn { return p.Conn }

func (p *peeked) Read(b []byte) (int, error) {
	if len(p.head) > 0 {
		n := copy(b, p.head)
		p.head = p.head[n:]
		return n, nil
	}
	if p.err != nil {
		return 0, p.err
	}
	return p.Conn.Read(b)
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
	setUserTimeout(c.raw, o.UserTimeout)
}

func (c *portableConn) Local() Addr {
	if c.nc == nil {
		return c.source
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
	f := c.stopWatch() // or the handshake could not read
	if err := c.shake(ctx); err != nil {
		c.failed = fmt.Errorf("TLS with %s: %w", c.Remote(), err)
		return c.failed
	}
	c.ready = true
	c.Watch(f)
	return nil
}

// shake makes the handshake. Given ctx itself, package tls would close the connection, where its owner may want to reset it.
func (c *portableConn) shake(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { c.socket.SetDeadline(longAgo) })
	err := c.nc.(handshaker).HandshakeContext(context.WithoutCancel(ctx))
	if !stop() {
		return context.Cause(ctx)
	}
	return err
}

func (c *portableConn) connect(ctx context.Context) error {
	d := net.Dialer{LocalAddr: c.source.Net(), KeepAlive: -1, Control: dialControl(c.source)}
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
	c.Watch(c.stopWatch())
	return nil
}

func causeOr(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// read is Read, first of what was read before.
func (c *portableConn) read(p []byte) (int, error) {
	c.mu.Lock()
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		c.mu.Unlock()
		return n, nil
	}
	c.head = nil
	err := c.headErr
	c.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return c.nc.Read(p)
}

// unread gives back what read returned.
func (c *portableConn) unread(p []byte, err error) {
	c.mu.Lock()
	rest := c.head
	c.head = nil
	c.mu.Unlock()
	c.keep(p, nil)
	c.keep(rest, err)
}

// keep adds what was read to what waits for the relay.
func (c *portableConn) keep(p []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.head = append(c.head, p...)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.headErr = err
	}
}

// kept is how much waits for the relay, and the end that was read after it.
func (c *portableConn) kept() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.head), c.headErr
}

func (c *portableConn) Peek(ctx context.Context, p []byte, n int) (int, error) {
	_, err := c.Await(ctx, min(n, len(p)))
	c.mu.Lock()
	defer c.mu.Unlock()
	return copy(p, c.head), err
}

// Pieces in which Await reads. They grow with what comes.
const (
	firstPiece = 512
	longPiece  = 16 << 10
)

// Await reads, and keeps what it has read.
func (c *portableConn) Await(ctx context.Context, n int) (int, error) {
	if have, _ := c.kept(); have >= n {
		return have, nil
	}
	defer c.Watch(c.stopWatch())
	have, err := c.kept() // the watch may have read
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.nc.SetReadDeadline(longAgo)
		close(stopped)
	})
	piece := make([]byte, firstPiece)
	for have < n && err == nil {
		var m int
		m, err = c.nc.Read(piece)
		c.keep(piece[:m], err)
		have += m
		if m == len(piece) && m < longPiece {
			piece = make([]byte, 2*m)
		}
	}
	if !stop() {
		<-stopped
		c.nc.SetReadDeadline(time.Time{})
	}
	switch {
	case have >= n:
		return have, nil
	case err == io.EOF:
		return have, err
	}
	return have, fmt.Errorf("read: %w", causeOr(ctx, err))
}

func (c *portableConn) Discard(n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > len(c.head) {
		return io.ErrUnexpectedEOF
	}
	c.head = c.head[n:]
	return nil
}

const sendTime = time.Second

// Send waits a second where the contract says not at all: package net has no other way.
func (c *portableConn) Send(p []byte) error {
	c.nc.SetWriteDeadline(time.Now().Add(sendTime))
	defer c.nc.SetWriteDeadline(time.Time{})
	if _, err := c.nc.Write(p); err != nil {
		return fmt.Errorf("send %d bytes: %w", len(p), err)
	}
	return nil
}

func (c *portableConn) sentFIN() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.finSent
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
	c.watching = nil
	return c.nc != nil
}
