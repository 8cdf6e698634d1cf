package reactor

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A relay is one established session. It is driven by events, one turn at a time: whoever wins state runs it, an event that
// comes meanwhile makes the winner run once more. Everything that is not atomic belongs to the winner.
type relay struct {
	client, backend *conn
	handler         Handler

	state   atomic.Int32
	killed  atomic.Bool
	timer   atomic.Bool  // its time in the wheel has come
	halves  atomic.Int32 // how many sides have sent their FIN
	last    atomic.Int64 // when a byte moved last, in the engine's milliseconds
	started int64        // in the engine's microseconds

	firstByte int32 // microseconds from started; 0: none yet
	unsent    int32 // of both sides when the idle timer looked last
	spread    uint8 // of RelayOptions.Session
	first     Side  // who sent FIN first
	cause     Cause
	kept      bool // Handler.Unused said that the session goes on
	optioned  bool // the backend's socket options are set

	slot       int16 // in the wheel, under loop.mu; -1: none
	prev, next *relay
}

// States of a relay. One that has ended stays running.
const (
	idle int32 = iota
	running
	dirty // running, and something happened meanwhile
)

const (
	turnBytes   = 1 << 20                               // what one direction moves before others get their turn
	fullReads   = 2                                     // so many full reads in a row make a stream that is spliced
	smallPieces = 8                                     // so many small spliced pieces in a row make it one that is copied again
	smallPiece  = 8 << 10                               // what copying does as cheaply
	settleAfter = int64(time.Second / time.Millisecond) // a session that lasts gets its socket options then
)

// setupBuffers are for the first turn of a relay, which does not run on its loop.
var setupBuffers = sync.Pool{New: func() any { b := make([]byte, chunkSize); return &b }}

// Relay implements [Engine].
func (e *Epoll) Relay(client, backend Conn, h Handler) Link {
	r := &relay{client: client.(*conn), backend: backend.(*conn), handler: h, slot: -1}
	r.state.Store(running)
	return r
}

// loop is where the relay runs.
func (r *relay) loop() *loop { return r.client.loop }

// Start implements [Link]. The first bytes are moved before epoll is told of sockets it does not know yet: for a short
// session that saves the events that say no more than "writable".
func (r *relay) Start() {
	c, b := r.client, r.backend
	r.started = r.loop().engine.micros()
	r.last.Store(r.started / 1000)
	r.spread = uint8(rand.Uint32())
	c.establish()
	if b.loop != c.loop {
		b.move(c.loop)
	}
	b.establish()
	c.flags |= readable
	if c.flags.has(eof) { // read by a relay that let go of it
		r.first = Client
		r.halves.Store(1)
	}
	if b.flags.has(registered) {
		b.flags |= readable
	}
	b.bytes.Store(0) // it may have served before
	c.relay.Store(r)
	b.relay.Store(r)
	buf := setupBuffers.Get().(*[]byte)
	if r.turn(nil, *buf) && r.attach() {
		r.release(nil, *buf)
	}
	setupBuffers.Put(buf)
}

// move makes l the loop of an established connection that another one watched.
func (c *conn) move(l *loop) {
	if c.flags.has(registered) {
		c.loop.unregister(c, true)
	}
	c.loop.sessions.Add(-1)
	c.loop = l
	l.sessions.Add(1)
}

// attach registers what is not registered yet and starts the timers; false: the relay has ended.
func (r *relay) attach() bool {
	for _, c := range [...]*conn{r.client, r.backend} {
		if c.flags.has(registered) {
			continue
		}
		if c.flags.has(blocked) {
			c.flags |= outgoing
		}
		if r.loop().register(c) != 0 {
			r.end(Failed, true)
			return false
		}
	}
	r.loop().schedule(r, r.due())
	return true
}

// kick gives the relay a turn on its loop.
func (r *relay) kick(l *loop) {
	if l != r.loop() {
		r.loop().post(func() { r.kick(r.loop()) })
		return
	}
	for !r.state.CompareAndSwap(idle, running) {
		if r.state.Load() == dirty || r.state.CompareAndSwap(running, dirty) {
			return
		}
	}
	if r.turn(l, l.buf) {
		r.release(l, l.buf)
	}
}

// release gives state back, after as many turns as were asked for meanwhile.
func (r *relay) release(l *loop, buf []byte) {
	for !r.state.CompareAndSwap(running, idle) {
		r.state.Store(running)
		if !r.turn(l, buf) {
			return
		}
	}
}

// turn moves what can be moved and draws the conclusions; false: the relay has ended, and is not to be touched again.
// l is nil while the relay does not run on its loop.
func (r *relay) turn(l *loop, buf []byte) bool {
	c, b := r.client, r.backend
	c.take()
	b.take()
	if r.killed.Load() {
		return r.end(Killed, true)
	}
	again := r.flow(c, b, l, buf)
	again = r.flow(b, c, l, buf) || again
	if c.flags.has(broken) && !c.flags.has(drained) {
		again = r.flow(c, b, l, buf) || again
	}
	if !r.settle() {
		return false
	}
	if r.timer.Swap(false) && !r.tick() {
		return false
	}
	if again {
		if l != nil {
			l.again = append(l.again, r)
		} else {
			r.loop().post(func() { r.kick(r.loop()) })
		}
	}
	return true
}

// take turns events into what they mean.
func (c *conn) take() {
	ev := c.pending.Swap(0)
	if ev == 0 {
		return
	}
	if ev&unix.EPOLLOUT != 0 {
		c.flags &^= blocked
	}
	if ev&unix.EPOLLPRI != 0 {
		c.flags |= urgent | readable
	}
	if ev&(unix.EPOLLIN|unix.EPOLLRDHUP) != 0 {
		c.flags |= readable
	}
	if ev&(unix.EPOLLRDHUP|unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		c.flags |= hup
	}
	if ev&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		c.flags |= readable
		c.flags &^= blocked
		// HUP alone is the end only of a unix socket: it was closed. TCP says so once both FINs are through, and may still have
		// to deliver what was sent.
		if ev&unix.EPOLLERR != 0 || c.flags.has(unixSocket) {
			c.flags |= failed
		}
		if ev&unix.EPOLLERR != 0 && c.flags.has(eof) {
			c.flags |= broken | drained // after its FIN nothing can be read that would tell of the reset
		}
	}
}

// flow moves bytes from src to dst until src has no more, dst takes no more, or the turn is over (true).
func (r *relay) flow(src, dst *conn, l *loop, buf []byte) (again bool) {
	k := r.loop().engine.kernel
	for moved := 0; moved < turnBytes; {
		switch {
		case dst.flags.has(broken):
			return false
		case src.stash != nil && len(src.stash.rest) > 0:
			if dst.flags.has(blocked) {
				return false
			}
			n := r.write(src, dst, src.stash.rest)
			moved += n
			if src.stash.rest = src.stash.rest[n:]; len(src.stash.rest) == 0 {
				src.stash.chunk.free()
				src.stash = nil
			}
		case src.stash != nil && src.stash.pipe.held > 0:
			if dst.flags.has(blocked) {
				return false
			}
			p := src.stash.pipe
			n, e := k.splice(p.r, dst.fd, p.held)
			if e != 0 {
				r.writeFailed(dst, e)
				continue
			}
			p.held -= n
			moved += n
			r.moved(src, n)
		case src.flags.has(eof|drained) || !src.flags.has(readable) || dst.flags.has(blocked):
			r.dropPipe(src)
			return false
		case src.flags.has(urgent) && k.atMark(src.fd):
			r.urgent(src, dst)
		case src.flags.has(splicing) && l != nil && !src.flags.has(urgent) && r.takePipe(src):
			r.spliceIn(src)
		default:
			moved += r.copy(src, dst, buf)
		}
	}
	return true
}

// copy reads once and writes what it read; what dst does not take stays with src.
func (r *relay) copy(src, dst *conn, buf []byte) int {
	n, e := r.loop().engine.kernel.recv(src.fd, buf, 0)
	if !r.read(src, n, e) {
		return 0
	}
	if n < len(buf) && src.flags&(urgent|unixSocket|failed|broken) == 0 {
		// A short read has taken everything; after RDHUP that includes the FIN.
		src.flags &^= readable
		if src.flags.has(hup) {
			r.fin(src)
		}
	}
	if n < len(buf)/2 {
		src.full = 0
	} else if src.full++; src.full >= fullReads && !src.flags.has(noSplice) {
		src.flags |= splicing
	}
	sent := r.write(src, dst, buf[:n])
	if sent < n {
		r.dropPipe(src)
		chunk := newChunk(n - sent)
		src.stash = &stash{chunk: chunk, rest: chunk.data[:copy(chunk.data, buf[sent:n])]}
	}
	return n
}

// spliceIn reads once into the pipe, which is empty.
func (r *relay) spliceIn(src *conn) {
	n, e := r.loop().engine.kernel.splice(src.fd, src.stash.pipe.w, src.stash.pipe.size)
	if e == unix.EINVAL {
		src.flags |= noSplice
		src.flags &^= splicing
		return
	}
	if n == 0 && e == 0 {
		// The FIN; or an urgent byte, where splice stops, and the FIN behind it. Reading tells which.
		src.flags |= urgent
		src.flags &^= splicing
		return
	}
	if !r.read(src, n, e) {
		return
	}
	src.stash.pipe.held = n
	if n >= smallPiece {
		src.small = 0
	} else if src.small++; src.small >= smallPieces {
		src.small, src.full = 0, 0
		src.flags &^= splicing
	}
}

// urgent passes the urgent byte on as what it is.
func (r *relay) urgent(src, dst *conn) {
	var b [1]byte
	k := r.loop().engine.kernel
	if n, e := k.recv(src.fd, b[:], unix.MSG_OOB|unix.MSG_PEEK); e != 0 || n != 1 {
		// Not there yet, or read already: the next read steps over the mark.
		r.copy(src, dst, b[:])
		return
	}
	n, e := k.send(dst.fd, b[:], unix.MSG_OOB)
	if e != 0 {
		r.writeFailed(dst, e)
		return
	}
	k.recv(src.fd, b[:], unix.MSG_OOB)
	r.moved(src, n)
}

// read draws the conclusions from a read; true: it brought n > 0 bytes.
func (r *relay) read(src *conn, n int, e syscall.Errno) bool {
	switch {
	case e == unix.EAGAIN:
		src.flags &^= readable
	case e != 0:
		src.flags |= broken | drained
		r.blame(src, e)
	case n == 0 && src.flags.has(broken):
		src.flags |= drained // a failed write has told of the reset before
	case n == 0:
		r.fin(src)
	default:
		if src == r.backend && r.firstByte == 0 {
			r.firstByte = int32(max(1, min(r.loop().engine.micros()-r.started, 1<<31-1)))
		}
		return true
	}
	return false
}

func (r *relay) fin(src *conn) {
	src.flags |= eof
	now := r.loop().engine.now()
	r.last.Store(now)
	if r.halves.Add(1) == 1 {
		r.first = r.side(src)
		if r.handler.Options().HalfClose > 0 && r.client.flags.has(registered) {
			r.loop().schedule(r, r.due())
		}
	}
}

// write sends p, which came from src, and returns how much dst took.
func (r *relay) write(src, dst *conn, p []byte) int {
	n, e := r.loop().engine.kernel.send(dst.fd, p, 0)
	if e != 0 {
		r.writeFailed(dst, e)
		return 0
	}
	r.moved(src, n)
	if n < len(p) {
		r.block(dst)
	}
	return n
}

func (r *relay) moved(src *conn, n int) {
	src.bytes.Add(uint64(n))
	r.last.Store(r.loop().engine.now())
}

func (r *relay) writeFailed(dst *conn, e syscall.Errno) {
	if e == unix.EAGAIN {
		r.block(dst)
		return
	}
	// What dst sent before it was reset may still be waiting to be read.
	dst.flags |= broken | readable
	if dst.flags.has(eof) {
		dst.flags |= drained
	}
	r.blame(dst, e)
}

// block waits for room to write, which epoll is asked to tell only when it was needed once.
func (r *relay) block(dst *conn) {
	dst.flags |= blocked
	if !dst.flags.has(registered) || dst.flags.has(outgoing) {
		return
	}
	dst.flags |= outgoing
	if e := r.loop().engine.kernel.epollCtl(dst.loop.ep, unix.EPOLL_CTL_MOD, dst.fd, dst.interest()); e != 0 { // the kernel reports anew what is true now
		dst.flags |= broken | drained
		r.blame(dst, e)
	}
}

func (r *relay) blame(c *conn, e syscall.Errno) {
	switch {
	case r.cause != 0:
	case e == unix.ENOMEM || e == unix.ENOBUFS:
		r.cause = Failed
	case c == r.client:
		r.cause = ClientRST
	default:
		r.cause = BackendRST
	}
}

func (r *relay) side(c *conn) Side {
	if c == r.client {
		return Client
	}
	return Backend
}

func (r *relay) takePipe(src *conn) bool {
	if src.stash != nil {
		return true
	}
	p, e := r.loop().pipes.get(r.loop().engine.kernel)
	if e != 0 { // out of descriptors: copying needs none
		src.flags &^= splicing
		src.full = 0
		return false
	}
	src.stash = &stash{pipe: p}
	return true
}

// dropPipe gives an empty pipe back.
func (r *relay) dropPipe(src *conn) {
	if src.stash != nil && src.stash.pipe != nil {
		r.loop().pipes.put(r.loop().engine.kernel, src.stash.pipe)
		src.stash = nil
	}
}

// settle passes on FIN and RST once everything before them is delivered; false: the relay has ended.
func (r *relay) settle() bool {
	c, b := r.client, r.backend
	if r.cause == Failed {
		return r.end(Failed, true) // no peer is to blame, and no event of one would end the session
	}
	if b.flags.has(eof|broken) && !r.kept && r.unused() {
		return false
	}
	if c.flags.has(broken) || b.flags.has(broken) {
		return r.settleReset()
	}
	if c.flags.has(eof) && b.flags.has(eof) && c.empty() && b.empty() {
		if r.first == Client {
			return r.end(ClientFIN, false)
		}
		return r.end(BackendFIN, false)
	}
	return r.settleFIN(c, b) && r.settleFIN(b, c)
}

// unused asks about a backend that ended before a byte was exchanged; true: the relay let go of the client.
func (r *relay) unused() bool {
	c, b := r.client, r.backend
	if c.bytes.Load() > 0 || b.bytes.Load() > 0 || !b.empty() || c.flags.has(broken) || c.flags.has(eof) && c.empty() {
		return false
	}
	cause := BackendFIN
	if b.flags.has(broken) {
		if !b.flags.has(drained) {
			return false // it may have sent something before
		}
		cause = BackendRST
	}
	r.kept = true
	// The handler may start another relay with the client at once, so everything is given up before it is asked.
	r.loop().unschedule(r)
	c.relay.Store(nil)
	var ev uint32
	if c.flags.has(readable) {
		ev |= unix.EPOLLIN
	}
	if c.flags.has(hup) {
		ev |= unix.EPOLLRDHUP
	}
	if c.flags.has(failed) {
		ev |= unix.EPOLLHUP
	}
	c.pending.Or(ev)
	r.dropPipe(c)
	if r.handler.Unused(c, cause) {
		b.end(true)
		return true
	}
	c.relay.Store(r)
	r.state.Store(dirty) // what came meanwhile has only been noted
	if c.flags.has(registered) {
		r.loop().schedule(r, r.due())
	}
	return false
}

// settleReset resets the living side once it has everything that the broken one had sent.
func (r *relay) settleReset() bool {
	from, to := r.client, r.backend
	if !from.flags.has(broken) {
		from, to = to, from
	}
	r.blame(from, unix.ECONNRESET)
	switch {
	case to.flags.has(broken | failed):
		return r.end(r.cause, true)
	case !from.flags.has(drained) || !from.empty():
		return true // to is blocked: it goes on when there is room
	case r.loop().engine.kernel.unsent(to.fd) == 0:
		return r.end(r.cause, true)
	}
	// A reset now would throw away what the kernel has not delivered yet: look again in a tick.
	if to.flags.has(registered) {
		r.loop().schedule(r, r.due())
	}
	return true
}

// settleFIN passes the FIN of src on to dst.
func (r *relay) settleFIN(src, dst *conn) bool {
	if !src.flags.has(eof) || !src.empty() || dst.flags.has(shut) {
		return true
	}
	if src == r.client && r.handler.Options().KeepBackend && !dst.flags.has(hup|eof|failed) && dst.empty() {
		return r.keep()
	}
	if r.handler.Options().CloseOnFIN {
		switch {
		case r.side(src) != r.first:
			return true // what came before the first FIN is not delivered yet
		case src == r.client:
			return r.end(ClientFIN, false)
		}
		return r.end(BackendFIN, false)
	}
	dst.flags |= shut
	if e := r.loop().engine.kernel.shutdown(dst.fd); e != 0 {
		r.writeFailed(dst, e)
		return r.settleReset()
	}
	return true
}

// tick is run when the relay's time in the wheel has come; false: it has ended.
func (r *relay) tick() bool {
	now := r.loop().engine.now()
	if !r.optioned && now >= r.started/1000+settleAfter {
		r.optioned = true
		if o := r.handler.Options().Backend; !r.backend.flags.has(unixSocket) && o != (SocketOptions{}) {
			setOptions(r.backend.fd, o)
		}
	}
	if at := r.expires(); at != 0 && now >= at {
		return r.end(SessionTimeout, true)
	}
	if cause, at := r.quietLimit(); cause != 0 && now >= at {
		k := r.loop().engine.kernel
		left := int32(k.unsent(r.client.fd) + k.unsent(r.backend.fd))
		if left == 0 || left == r.unsent {
			return r.end(cause, true)
		}
		r.unsent = left // a slow reader has taken some of it: that is progress too
		r.last.Store(now)
	}
	r.loop().schedule(r, r.due())
	return true
}

// quietLimit is the limit on silence that is reached first, and when; 0: there is none.
func (r *relay) quietLimit() (cause Cause, at int64) {
	last := r.last.Load()
	if d := r.handler.Options().Idle; d > 0 {
		cause, at = IdleTimeout, last+d.Milliseconds()
	}
	if d := r.handler.Options().HalfClose; d > 0 && r.halves.Load() == 1 {
		if h := last + d.Milliseconds(); cause == 0 || h < at {
			cause, at = HalfCloseTimeout, h
		}
	}
	return cause, at
}

// expires is when RelayOptions.Session is over, spread by ±10 %; 0: never.
func (r *relay) expires() int64 {
	d := r.handler.Options().Session.Milliseconds()
	if d <= 0 {
		return 0
	}
	return r.started/1000 + d*(900+200*int64(r.spread)/255)/1000
}

// due is when the relay must be looked at again if nothing happens.
func (r *relay) due() int64 {
	at := r.loop().engine.now() + wheelSlots*tick
	if cause, t := r.quietLimit(); cause != 0 {
		at = min(at, t)
	}
	if t := r.expires(); t != 0 {
		at = min(at, t)
	}
	if !r.optioned {
		at = min(at, r.started/1000+settleAfter)
	}
	if (r.client.flags | r.backend.flags).has(broken) {
		at = min(at, r.loop().engine.now()+tick) // until the other side has everything
	}
	return at
}

// end closes everything and tells the handler. It returns false, for its callers to return.
func (r *relay) end(cause Cause, reset bool) bool {
	r.loop().unschedule(r)
	up, down := r.client.bytes.Load(), r.backend.bytes.Load()
	r.backend.end(reset)
	r.client.end(reset)
	if r.cause != 0 {
		cause = r.cause
	}
	r.handler.Ended(r.result(cause, up, down))
	return false
}

func (r *relay) result(cause Cause, up, down uint64) Result {
	return Result{Cause: cause, HalfClosed: r.first, Up: up, Down: down, FirstByte: time.Duration(r.firstByte) * time.Microsecond}
}

// keep ends the session and lets go of the backend's connection.
func (r *relay) keep() bool {
	r.loop().unschedule(r)
	b := r.backend
	up, down := r.client.bytes.Load(), b.bytes.Load()
	b.flags &= registered | outgoing | urgent | unixSocket | noSplice
	b.full, b.small = 0, 0
	b.relay.Store(nil)
	r.client.end(false)
	res := r.result(ClientFIN, up, down)
	res.Backend = b
	r.handler.Ended(res)
	return false
}

// Bytes implements [Link].
func (r *relay) Bytes() (up, down uint64) { return r.client.bytes.Load(), r.backend.bytes.Load() }

// Quiet implements [Link].
func (r *relay) Quiet() time.Duration {
	return time.Duration(r.loop().engine.now()-r.last.Load()) * time.Millisecond
}

// HalfClosed implements [Link].
func (r *relay) HalfClosed() bool { return r.halves.Load() == 1 }

// Kill implements [Link].
func (r *relay) Kill() {
	r.killed.Store(true)
	r.loop().post(func() { r.kick(r.loop()) })
}
