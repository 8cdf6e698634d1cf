package reactor

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// FuzzRelay drives the state machine of a relay over a fake kernel. ops is what happens between the events of its loop, calls what
// happens inside of its system calls. The model knows what must come out:
//
//   - every byte once and in order; a prefix when the session is cut (fakeSocket.take)
//   - FIN only after everything before it was delivered, and only if it was sent (fakeKernel.shutdown, fakeSession.Ended)
//   - a reset delivers first what was received, and is never a clean end
//   - both connections are closed once, Ended comes once, with a cause that really happened
//   - nothing stands still that could move (world.settled), and nothing spins
//   - timers come neither early nor late
//   - no slot, pipe, timer or count is left over
func FuzzRelay(f *testing.F) {
	for _, s := range relaySeeds {
		f.Add(s.ops, s.calls)
	}
	f.Fuzz(func(t *testing.T, ops, calls []byte) {
		if len(ops) > 4096 || len(calls) > 4096 {
			return
		}
		synctest.Test(t, func(t *testing.T) { fuzzRelay(t, ops, calls) })
	})
}

// A script is bytes that decide; at its end nothing special happens any more.
type script []byte

func (s *script) next() byte {
	if len(*s) == 0 {
		return 0
	}
	b := (*s)[0]
	*s = (*s)[1:]
	return b
}

// A world is a client, its session, and the backends that it tries.
type world struct {
	t     *testing.T
	k     *fakeKernel
	e     *Epoll
	loops [2]*loop // the relay runs on the first one

	client   *fakeSocket
	near     *conn
	session  *fakeSession // the one that runs, or ran last
	sessions []*fakeSession
	options  RelayOptions

	again     int  // how many more backends are tried when one was unused
	inside    bool // the next relay is started inside of Unused
	far       byte // how the next backend's connection is set up: farRegistered, farElsewhere
	killed    bool
	refused   bool      // the system refused something
	acted     time.Time // when somebody did something last
	late      []func()  // events that a loop has taken out of epoll but not handled yet
	finishing bool
}

const (
	farRegistered = 1 << iota
	farElsewhere
)

// A fakeSession is the Handler of one relay.
type fakeSession struct {
	w       *world
	backend *fakeSocket
	link    *relay
	started time.Time
	last    time.Time // when a byte or a FIN moved last
	fins    []*fakeSocket
	gone    bool // Unused let go of the client
	ended   []Result
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, k: newFakeKernel(t)}
	w.e = &Epoll{kernel: w.k, start: time.Now()}
	if testing.Verbose() {
		w.e.kernel = tracedKernel{w.k}
	}
	for i := range w.loops {
		w.loops[i] = &loop{engine: w.e, ep: i + 1, buf: make([]byte, chunkSize), done: make(chan struct{})}
		w.e.loops = append(w.e.loops, w.loops[i])
	}
	w.k.moved = func(s *fakeSocket) {
		w.session.last = time.Now()
		w.acted = time.Now()
	}
	w.k.finTaken = func(s *fakeSocket) {
		if x := w.session; !slices.Contains(x.fins, s) {
			x.fins = append(x.fins, s)
			x.last = time.Now()
		}
	}
	w.k.failed = func(syscall.Errno) { w.refused = true }
	w.client = w.k.socket(fakeNoise[:4<<20], 200<<10)
	w.near = w.conn(w.client, w.loops[0])
	return w
}

func (w *world) conn(s *fakeSocket, l *loop) *conn {
	c := &conn{fd: s.fd, loop: l}
	if s.unix {
		c.flags |= unixSocket
	}
	c.setup.Store(newSetup(Addr{}))
	l.sessions.Add(1)
	return c
}

// connect makes the next backend, and a session with it.
func (w *world) connect() *fakeSession {
	x := &fakeSession{w: w, backend: w.k.socket(fakeNoise[(4<<20)-len(w.sessions)*1000:], 200<<10)}
	x.backend.unix = w.client.unix
	opposite(w.client, x.backend)
	w.sessions = append(w.sessions, x)
	w.session = x
	l := w.loops[0]
	if w.far&farElsewhere != 0 {
		l = w.loops[1]
	}
	b := w.conn(x.backend, l)
	if w.far&farRegistered != 0 {
		b.flags |= outgoing
		l.register(b)
	}
	x.link = w.e.Relay(w.near, b, x).(*relay)
	return x
}

func (x *fakeSession) start() {
	x.started, x.last = time.Now(), time.Now()
	x.w.acted = x.started
	x.link.Start()
}

func (x *fakeSession) Options() *RelayOptions { return &x.w.options }

func (x *fakeSession) Unused(c Conn, cause Cause) bool {
	w := x.w
	if x.gone || len(x.ended) > 0 {
		w.t.Fatal("Unused after the end")
	}
	b := x.backend
	if b.took > 0 || w.client.took > 0 || b.next > 0 || b.taken > len(b.urgent) || c != Conn(w.near) {
		w.t.Fatal("Unused, and bytes were exchanged")
	}
	if cause == BackendFIN && !b.fin || cause == BackendRST && !b.dead && !b.unix && !w.refused {
		w.t.Fatalf("Unused because of %d", cause)
	}
	if w.again == 0 {
		if w.k.meanwhile != nil {
			w.k.meanwhile() // the client is nobody's now
			w.concurrently()
		}
		return false
	}
	w.again--
	x.gone = true
	next := w.connect()
	if w.inside {
		next.start()
	} else {
		w.late = append(w.late, next.start)
	}
	return true
}

func (x *fakeSession) Ended(r Result) {
	w := x.w
	x.ended = append(x.ended, r)
	if len(x.ended) > 1 || x.gone {
		w.t.Fatal("Ended twice, or after Unused")
	}
	c, b := w.client, x.backend
	if r.Up != uint64(b.took) || r.Down != uint64(c.took) {
		w.t.Fatalf("%d bytes up and %d down, the result says %+v", b.took, c.took, r)
	}
	if r.Backend != nil {
		if r.Cause != ClientFIN || b.closed || b.dead && b.err == 0 {
			w.t.Fatalf("a backend was kept: %+v", r)
		}
		r.Backend.Close()
	}
	if !c.closed || !b.closed {
		w.t.Fatal("Ended before both connections were closed")
	}
	x.checkCause(r)
	x.checkEnd(r, c, b)
	x.checkEnd(r, b, c)
}

func (x *fakeSession) checkCause(r Result) {
	w, c, b := x.w, x.w.client, x.backend
	quiet, age := time.Since(x.last)+time.Millisecond, time.Since(x.started)+time.Millisecond
	one := w.options.CloseOnFIN || w.options.KeepBackend
	ok := false
	switch r.Cause {
	case ClientFIN:
		ok = c.fin && (b.fin || one) && r.HalfClosed == Client
	case BackendFIN:
		ok = b.fin && (c.fin || one) && r.HalfClosed == Backend
	case ClientRST:
		ok = c.dead || c.unix && c.gone
	case BackendRST:
		ok = b.dead || b.unix && b.gone
	case IdleTimeout:
		ok = w.options.Idle > 0 && quiet >= w.options.Idle
	case HalfCloseTimeout:
		ok = w.options.HalfClose > 0 && quiet >= w.options.HalfClose && (c.fin || b.fin)
	case SessionTimeout:
		ok = w.options.Session > 0 && age >= w.options.Session*9/10
	case Killed:
		ok = w.killed
	case Failed:
		ok = w.refused
	}
	if !ok {
		w.t.Fatalf("the cause is %d (%+v); client %s; backend %s", r.Cause, r, c, b)
	}
	if r.HalfClosed == Client && !c.fin || r.HalfClosed == Backend && !b.fin {
		w.t.Fatalf("no FIN, and the result says %+v", r)
	}
}

// checkEnd checks what to got of from when the relay has ended.
func (x *fakeSession) checkEnd(r Result, from, to *fakeSocket) {
	w := x.w
	side := BackendFIN
	if to == x.backend {
		side = ClientFIN
	}
	clean := to.shut || !to.wasReset && !to.unix
	cutClean := w.options.CloseOnFIN && r.Cause != side && r.Cause <= BackendFIN || r.Backend != nil
	if clean && !cutClean && (!from.fin || to.lacks() > 0) {
		w.t.Fatalf("a clean end after %d bytes of %d; FIN is %v; %+v", to.next, from.sent, from.fin, r)
	}
	if clean && cutClean && !to.shut && r.Cause == side && to.lacks() > 0 {
		w.t.Fatalf("FIN before everything was delivered: %+v", r)
	}
	cause, end := ClientRST, ClientFIN
	if from == x.backend {
		cause, end = BackendRST, BackendFIN
	}
	healthy := !to.dead && !to.gone && !w.refused && !w.killed && !x.expired()
	if healthy && r.Cause == cause && (to.lacks() > 0 || to.wasReset && to.got < to.took) {
		w.t.Fatalf("a reset before everything was delivered: %d bytes are missing, %d of %d have arrived; %+v", to.lacks(), to.got, to.took, r)
	}
	if healthy && r.Cause == end && to.lacks() > 0 {
		w.t.Fatalf("a clean end, and %d bytes are missing: %+v", to.lacks(), r)
	}
}

// expired is whether a timer may have cut the session, even if the cause is an earlier one.
func (x *fakeSession) expired() bool {
	o, quiet, age := x.w.options, time.Since(x.last)+time.Millisecond, time.Since(x.started)+time.Millisecond
	return o.Idle > 0 && quiet >= o.Idle || o.HalfClose > 0 && quiet >= o.HalfClose || o.Session > 0 && age >= o.Session*9/10
}

func (s *fakeSocket) String() string {
	return fmt.Sprintf("{sent %d read %d fin %v dead %v gone %v err %v; took %d got %d shut %v closed %v reset %v edge %v}",
		s.sent, s.taken, s.fin, s.dead, s.gone, s.err, s.took, s.got, s.shut, s.closed, s.wasReset, s.edge)
}

// alive is whether the running session has not ended.
func (w *world) alive() bool { return len(w.session.ended) == 0 }

// side is one of the two peers.
func (w *world) side(b byte) *fakeSocket {
	if b&1 == 0 {
		return w.client
	}
	return w.session.backend
}

// Things that peers do. The lowest bit of what follows is the side.
const (
	actSend = iota
	actSendMany
	actRead
	actReadAll
	actFIN
	actReset
	actTimeOut
	actUrgent
	actClose
	actKill
	acts
)

func (w *world) act(what, arg byte) {
	w.acted = time.Now()
	s := w.side(arg)
	switch what {
	case actSend:
		s.peerSends(1 + int(arg>>1)*7)
	case actSendMany:
		s.peerSends(1 + int(arg>>1)*9001)
	case actRead:
		s.peerReads(1 + int(arg>>1)*1009)
	case actReadAll:
		s.peerReads(1 << 30)
	case actFIN:
		s.peerFIN()
	case actReset:
		s.peerReset(unix.ECONNRESET)
	case actTimeOut:
		s.peerReset(unix.ETIMEDOUT)
	case actUrgent:
		s.peerSendsUrgent()
	case actClose:
		s.peerCloses()
	case actKill:
		if w.session.link != nil {
			w.killed = true
			w.session.link.Kill()
		}
	}
}

// dispatch gives a loop one batch of events.
func (w *world) dispatch(l *loop, most int) bool {
	n := w.k.wait(l.ep, l.events[:most])
	if n == 0 && len(l.again) == 0 {
		return false
	}
	l.dispatch(n)
	return true
}

// concurrently is what the loop's goroutine does while Start runs in another: it takes events, and finds the relay running.
func (w *world) concurrently() {
	for _, l := range w.loops {
		var ev [4]unix.EpollEvent
		for _, ev := range ev[:w.k.wait(l.ep, ev[:])] {
			if c := l.conns[ev.Fd]; c != nil && c.gen == ev.Pad {
				c.ready(l, ev.Events)
			}
		}
	}
}

// detach takes events out of epoll, as a loop that is slow to handle them.
func (w *world) detach(l *loop) {
	var ev [4]unix.EpollEvent
	for _, ev := range ev[:w.k.wait(l.ep, ev[:])] {
		if c := l.conns[ev.Fd]; c != nil && c.gen == ev.Pad {
			w.late = append(w.late, func() { c.ready(l, ev.Events) })
		}
	}
}

func (w *world) runLate() {
	late := w.late
	w.late = nil
	for _, f := range late {
		f()
	}
}

// quiesce runs both loops until nothing is left to do.
func (w *world) quiesce() {
	calls := w.k.calls
	for busy := true; busy; {
		w.runLate()
		busy = len(w.late) > 0
		for _, l := range w.loops {
			busy = l.drain() || busy
			busy = w.dispatch(l, len(l.events)) || busy
		}
		if w.k.calls-calls > 100_000 {
			w.t.Fatal("the relay spins")
		}
	}
	w.settled()
}

// settled checks that nothing stands still that could move, and that memory is bounded.
func (w *world) settled() {
	x := w.session
	if x.started.IsZero() || !w.alive() {
		return
	}
	c, b := w.client, x.backend
	for _, d := range [][2]*fakeSocket{{c, b}, {b, c}} {
		from, to := d[0], d[1]
		if held := from.taken - to.next; held > max(chunkSize, w.k.pipeSize)+len(from.urgent) {
			w.t.Fatalf("%d bytes are held", held)
		}
		if w.refused || to.dead || to.shut || to.unix && to.gone || !to.writable() || from.unix && from.gone && from.err != 0 {
			continue
		}
		if to.lacks() > 0 {
			w.t.Fatalf("stuck: %d bytes wait, and there is room\nfrom %s\nto %s", to.lacks(), from, to)
		}
		second := w.options.CloseOnFIN && to.fin // it waits for what came before the first
		if from.fin && !from.dead && !(from.unix && from.gone) && !second {
			w.t.Fatalf("stuck: the FIN was not passed on\nfrom %s\nto %s", from, to)
		}
	}
}

// sleep lets time pass, and wakes the loop for its timers.
func (w *world) sleep(d time.Duration) {
	l := w.loops[0]
	for end := time.Now().Add(d); ; {
		next := end
		if at, ok := l.wheel.next(); ok {
			next = earlier(next, w.e.start.Add(time.Duration(at)*time.Millisecond))
		}
		time.Sleep(time.Until(next))
		l.runTimers()
		for l.drain() {
		}
		if !time.Now().Before(end) {
			break
		}
	}
	w.punctual()
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// punctual checks that no timer is overdue.
func (w *world) punctual() {
	x := w.session
	if x.started.IsZero() || !w.alive() {
		return
	}
	const late = 3 * tick * time.Millisecond
	if d := w.options.Session; d > 0 && time.Since(x.started) > d*11/10+late {
		w.t.Fatalf("a session of %v lives for %v", d, time.Since(x.started))
	}
	// What the kernel has not delivered buys one more period.
	quiet := time.Since(later(w.acted, x.last))
	if d := w.options.Idle; d > 0 && quiet > 2*d+late {
		w.t.Fatalf("a session with an idle limit of %v is quiet for %v", d, quiet)
	}
	if d := w.options.HalfClose; d > 0 && quiet > 2*d+late && x.link.HalfClosed() {
		w.t.Fatalf("a session with a half-close limit of %v is quiet for %v", d, quiet)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// The first bytes of ops.
const (
	optionCloseOnFIN = 1 << iota
	optionKeepBackend
	optionUnix
	optionIdle
	optionHalfClose
	optionSession
	optionSmallBuffer
	optionTinyRoom
)

const (
	setupAgain    = 3 // how many more backends
	setupInside   = 4
	setupWatched  = 8 // the client is registered before the relay starts
	setupFar      = 0x30
	setupBigPipe  = 0x40
	setupTinyPipe = 0x80
)

// Operations beyond acts.
const (
	opConnect = acts + iota
	opStart
	opDispatch
	opDispatchOne
	opDrain
	opQuiesce
	opDetach
	opLate
	opSleep
	opSleepLong
	ops
)

func (w *world) set(options, setup byte) {
	has := func(o byte) bool { return options&o != 0 }
	if w.options.CloseOnFIN = has(optionCloseOnFIN); !w.options.CloseOnFIN {
		w.options.KeepBackend = has(optionKeepBackend)
	}
	if has(optionUnix) {
		w.client.unix = true
		w.near.flags |= unixSocket
	}
	if has(optionIdle) {
		w.options.Idle = 700 * time.Millisecond
	}
	if has(optionHalfClose) {
		w.options.HalfClose = 400 * time.Millisecond
	}
	if has(optionSession) {
		w.options.Session = 3 * time.Second
	}
	if has(optionSmallBuffer) {
		w.loops[0].buf = make([]byte, 1<<10)
	}
	if has(optionTinyRoom) {
		w.client.room = 5000
	}
	w.again = int(setup & setupAgain)
	w.inside = setup&setupInside != 0
	w.far = setup & setupFar >> 4
	switch {
	case setup&setupBigPipe != 0:
		w.k.pipeSize = pipeSize
	case setup&setupTinyPipe != 0:
		w.k.pipeSize = 4 << 10
	}
	if setup&setupWatched != 0 {
		w.near.OnReset(func() {})
	}
}

// during is what happens inside of system calls.
func (w *world) during(calls *script) {
	busy := false
	w.k.meanwhile = func() {
		if busy || w.finishing {
			return
		}
		busy = true
		defer func() { busy = false }()
		switch b := calls.next(); {
		case b < 0x80: // nothing
		case b < 0xc0:
			w.act(b&0x3f>>1%acts, calls.next()&^1|b&1)
		case b < 0xd0:
			w.concurrently()
		}
	}
	w.k.fault = func() fault {
		if w.finishing {
			return noFault
		}
		switch b := calls.next(); {
		case b < 0xc0:
			return noFault
		case b < 0xe0:
			return full
		case b < 0xf4:
			return short
		case b < 0xfa:
			return unfit
		default:
			return exhausted
		}
	}
}

func fuzzRelay(t *testing.T, opsIn, callsIn []byte) {
	script, calls := script(opsIn), script(callsIn)
	w := newWorld(t)
	w.set(script.next(), script.next())
	x := w.connect()
	w.during(&calls)
	for len(script) > 0 && x.started.IsZero() {
		switch op, arg := script.next()%ops, byte(0); op {
		case opStart:
			x.start()
		default:
			arg = script.next()
			w.op(op, arg)
		}
	}
	for len(script) > 0 && w.alive() {
		op := script.next() % ops
		w.op(op, script.next())
	}
	if x.started.IsZero() {
		x.start()
	}
	w.finish()
}

func (w *world) op(op, arg byte) {
	l := w.loops[arg&1]
	switch op {
	case opConnect, opStart: // only once
	case opDispatch:
		w.dispatch(l, len(l.events))
	case opDispatchOne:
		w.dispatch(l, 1)
	case opDrain:
		l.drain()
	case opQuiesce:
		w.quiesce()
	case opDetach:
		w.detach(l)
	case opLate:
		w.runLate()
	case opSleep:
		w.quiesce()
		w.sleep(time.Duration(arg) * 7 * time.Millisecond)
	case opSleepLong:
		w.quiesce()
		w.sleep(time.Duration(arg) * 499 * time.Millisecond)
	default:
		w.act(op, arg)
	}
}

// finish lets both peers end in order, unless they have ended otherwise. The session must end by that alone, at once.
func (w *world) finish() {
	w.finishing = true
	for range 5 {
		w.quiesce()
		for range 1000 {
			c, b := w.client, w.session.backend
			c.peerReads(1 << 30)
			b.peerReads(1 << 30)
			c.peerFIN()
			b.peerFIN()
			if !c.edge && !b.edge {
				break
			}
			w.quiesce()
		}
		if !w.alive() {
			break
		}
		w.sleep(tick * time.Millisecond)
	}
	if w.alive() {
		w.t.Fatalf("stuck: both sides have finished\nclient %s %b\nbackend %s %b", w.client, w.near.flags, w.session.backend, w.session.link.backend.flags)
	}
	w.quiesce()
	w.empty()
}

// empty checks that nothing is left over.
func (w *world) empty() {
	for _, s := range w.k.sockets {
		if !s.closed {
			w.t.Fatalf("a socket was not closed: %s", s)
		}
	}
	pooled := 0
	for i, l := range w.loops {
		if n := l.sessions.Load(); n != 0 || l.wheel.count != 0 || len(l.free) != len(l.conns) || len(l.posted) != 0 || len(l.again) != 0 {
			w.t.Fatalf("loop %d: %d sessions, %d timers, %d of %d slots free, %d posted", i, n, l.wheel.count, len(l.free), len(l.conns), len(l.posted))
		}
		for _, p := range l.pipes.idle {
			if len(w.k.pipes[p.r].data) > 0 || p.held > 0 {
				w.t.Fatal("a pipe in the pool is not empty")
			}
		}
		pooled += 2 * len(l.pipes.idle)
	}
	if len(w.k.pipes) != pooled {
		w.t.Fatalf("%d ends of pipes are open, %d in the pool", len(w.k.pipes), pooled)
	}
}

type relaySeed struct{ ops, calls []byte }

// seed writes the beginning of a script, and its operations.
func seed(options, setup byte, operations ...byte) relaySeed {
	return relaySeed{ops: append([]byte{options, setup}, operations...)}
}

func (s relaySeed) with(calls ...byte) relaySeed {
	s.calls = calls
	return s
}

// Sides, as arguments; a size is added in steps of two.
const (
	cl byte = iota
	be
)

var relaySeeds = []relaySeed{
	seed(0, 0, actSend, cl, opStart, opQuiesce, 0, actSend, be|4, opQuiesce, 0, actFIN, cl, opQuiesce, 0, actFIN, be),
	seed(0, 0, opStart, actFIN, be, opQuiesce, 0),
	seed(0, 2, opStart, actFIN, be, opQuiesce, 0, actSend, cl|8, opQuiesce, 0, actFIN, be, opQuiesce, 0),
	seed(0, 2|setupInside, actSend, cl|8, actReset, be, opStart, opQuiesce, 0, actSend, be|8),
	seed(0, 1|setupWatched|farRegistered<<4, opDispatch, 0, actReset, be, opStart, opQuiesce, 0),
	seed(0, (farRegistered|farElsewhere)<<4, opDetach, 1, opStart, opLate, 0, actSend, be|8, opQuiesce, 0, actReset, be),
	seed(0, 0, opStart, actSendMany, cl|200, opQuiesce, 0, actSendMany, be|250, opQuiesce, 0, actReset, cl, opQuiesce, 0, actReadAll, be),
	seed(optionSmallBuffer, setupBigPipe, opStart, actSendMany, cl|250, opQuiesce, 0, actReadAll, be, opQuiesce, 0, actSendMany, cl|250, opQuiesce, 0, actReadAll, be, opQuiesce, 0, actReset, cl),
	seed(optionSmallBuffer, setupTinyPipe, opStart, actSendMany, be|50, opQuiesce, 0, actUrgent, be, actSend, be|20, actFIN, be, opQuiesce, 0),
	seed(optionSmallBuffer, 0, opStart, actSendMany, cl|20, opDispatch, 0).with(0, 0, 0, 0xfa, 0, 0xf5, 0, 0xff),
	seed(0, 0, opStart, actUrgent, cl, actSend, cl|10, opQuiesce, 0, actUrgent, be, opQuiesce, 0, actFIN, be),
	seed(optionIdle, 0, opStart, opSleep, 101, actSend, cl|2, opSleep, 101, opSleep, 101),
	seed(optionHalfClose|optionIdle|optionTinyRoom, 0, opStart, actFIN, cl, opSleep, 50, actSendMany, be|8, opSleep, 50, actRead, cl|8, opSleep, 60, opSleep, 60),
	seed(optionSession, 0, opStart, actSend, be, opSleepLong, 7),
	seed(optionCloseOnFIN, 0, opStart, actSend, be|4, actFIN, be, opQuiesce, 0),
	seed(optionKeepBackend, 0, opStart, actSend, cl|4, actSend, be|4, opQuiesce, 0, actFIN, cl, opQuiesce, 0),
	seed(optionKeepBackend|optionTinyRoom, 0, opStart, actSendMany, be|4, opQuiesce, 0, actFIN, cl, opQuiesce, 0, actFIN, be),
	seed(optionUnix, 0, opStart, actSend, cl|4, actClose, cl, opQuiesce, 0, actSend, be|4, opQuiesce, 0),
	seed(optionTinyRoom, 0, opStart, actSendMany, be|40, opQuiesce, 0, actFIN, be, actFIN, cl, opQuiesce, 0, actReset, cl),
	seed(0, 0, opStart, actSendMany, be|240, actClose, cl, opQuiesce, 0),
	seed(0, 0, opStart, actKill, 0, opDrain, 0),
	seed(0, 0, actKill, 0, opDrain, 0, opStart),
	seed(0, 0, opStart, actTimeOut, be, opQuiesce, 0),
	seed(0, 0, opStart, actSendMany, be|100, opQuiesce, 0, actReset, be, actSend, cl|4, opQuiesce, 0, actReadAll, cl).with(0, 0, 0, 0xd0, 0x80, 6),
	seed(0, 0, actSendMany, cl|30, opStart).with(0, 0xd0, 0xc1, 0, 0x8b, 0, 0x88, 0),
	seed(optionTinyRoom, farRegistered<<4, actSendMany, be|8, opStart, opQuiesce, 0, actReadAll, cl, opQuiesce, 0),
	seed(optionUnix, 0, opStart, opQuiesce, 0, actSend, cl|100, opQuiesce, 0).with(0, 0, 0, 0, 0, 0, 0, 0xe5),
}
