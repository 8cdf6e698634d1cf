package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/internal/access"
	"github.com/tproxy/tproxy/internal/reactor"
)

// A session is one client connection, and its backend connection once there is one. Its life is
//
//	accept → admit → (preface) → lease a backend → connect → (header) → relay → close
//
// run is that line; whoever ends it, a refusal, a failed connect or the relay, ends it in close.
type session struct {
	acceptor *acceptor
	route    *route   // with a group once that is known
	preface  *preface // nil: nothing was asked for
	id       SessionID
	index    int32 // in its shard
	counted  bool  // against Settings.MaxConnections
	sourced  bool  // against Access.MaxPerSource
	pool     PoolResult
	attempts uint16
	killed   atomic.Uint32 // the Reason of kill

	remote       endpoint
	localIP      [16]byte      // the port is the listener's
	accepted     time.Duration // on the sessions' clock
	wait, dialed micros

	setup   *setup // nil once a backend serves, unless one was tried in vain
	lease   *backend.Lease
	slot    backend.Lease // what lease is, but for one that Unused took
	account *account      // set under the shard's lock
	link    reactor.Link  // likewise
}

// setup is what a session needs until a backend serves it.
type setup struct {
	client reactor.Conn
	tried  []*backend.Backend
	cancel context.CancelCauseFunc // ends the wait; under the shard's lock
}

// again is the set-up of a session that is back in it.
func (u *setup) again(client reactor.Conn) *setup {
	if u == nil {
		return &setup{client: client}
	}
	u.client = client
	return u
}

// errors that end the wait for a backend.
var (
	errClientReset = errors.New("the client reset")
	errKilled      = errors.New("killed")
	errFull        = errors.New("the listener has as many sessions as it may")
	errUnused      = fmt.Errorf("ended before a byte was exchanged: %w", io.EOF)
)

// epoch is the zero of the sessions' clock: a Duration is a third of a time.Time, and sessions are many.
var epoch = time.Now()

func clock() time.Duration { return time.Since(epoch) }

// micros is a time in microseconds, up to an hour: half a time.Duration.
type micros uint32

func toMicros(d time.Duration) micros {
	return micros(min(max(d, 0)/time.Microsecond, math.MaxUint32))
}

func (m micros) duration() time.Duration { return time.Duration(m) * time.Microsecond }

// An acceptor takes connections from one listener for its server.
type acceptor struct {
	server *Server
	engine reactor.Engine
	open   atomic.Bool // Listener.Start was called
	pacing atomic.Bool // a timer will make the listener look again
	addr   Addr        // where it listens; set before open

	// The listener's own, like the calls.
	paces   sync.WaitGroup // one while pacer is armed or its function runs
	pacer   *time.Timer
	counted bool         // Reserve took room against MaxConnections, for the call that follows
	paced   *access.Rate // Reserve took a token of it, likewise
}

// Reserve implements reactor.Acceptor.
func (a *acceptor) Reserve() bool {
	s := a.server
	if !a.open.Load() || !s.Limit.take() {
		return false
	}
	t := s.current.Load()
	a.counted = s.count.take()
	if (a.counted || t.RejectWhenFull) && a.pace(t.gate) {
		a.paced = t.gate.rate
		return true
	}
	s.unreserve(a.counted)
	return false
}

// Unreserve implements reactor.Acceptor. Another listener may have found no room meanwhile.
func (a *acceptor) Unreserve() {
	if a.paced != nil {
		a.paced.Give()
	}
	a.server.unreserve(a.counted)
	a.server.resume()
}

// unreserve gives back what Reserve took.
func (s *Server) unreserve(counted bool) {
	if counted {
		s.count.n.Add(-1)
	}
	s.Limit.give()
}

// Accepted implements reactor.Acceptor. An engine may have called Reserve long before a client came: what has changed since
// counts.
func (a *acceptor) Accepted(c reactor.Conn) {
	s := a.server
	if !a.counted {
		a.counted = s.count.take()
	}
	x := &session{acceptor: a, route: s.current.Load().begin, remote: compact(c.Remote()), localIP: c.Local().IP.Addr().As16(), accepted: clock(), counted: a.counted,
		setup: &setup{client: c}}
	s.open.add(x)
	s.observe(x.event(SessionAccepted))
	if !x.counted {
		x.refuse(OverLimit, errFull)
		return
	}
	if x.route.ProxyProtocol.Accept == HeaderOff { // otherwise the header says who the client is
		if why, err := x.admit(); why != NoReason {
			x.refuse(why, err)
			return
		}
	}
	go x.run(nil)
}

// Paused implements reactor.Acceptor.
func (a *acceptor) Paused(err error) {
	if err != nil {
		a.server.paused.Add(1)
		a.server.observe(Event{Kind: AcceptPaused, Err: err})
		return
	}
	a.server.paused.Add(-1)
	a.server.observe(Event{Kind: AcceptResumed})
}

// run takes the session from accept to the relay, which ends it later. lease is the backend to try first, nil to choose one.
func (x *session) run(lease *backend.Lease) {
	conn, reason, err := x.setUp(lease)
	if reason != NoReason {
		x.refuse(reason, err)
		return
	}
	s := x.acceptor.server
	s.observe(x.event(SessionOpened))
	link := x.acceptor.engine.Relay(x.setup.client, conn, x)
	account := s.accounts.of(x.route.group.Backends, x.lease.Backend(), &s.open)
	x.locked(func() {
		x.link, x.account = link, account
		if x.setup.tried == nil {
			x.setup = nil
		}
	})
	if x.killed.Load() != 0 {
		link.Kill()
	}
	link.Start()
}

// setUp is everything that may wait: the preface, and the connection to a backend.
func (x *session) setUp(lease *backend.Lease) (conn reactor.Conn, why Reason, err error) {
	p := patience{session: x}
	defer p.done()
	if x.route.group == nil {
		if why, err = x.readPreface(&p); why != NoReason {
			return nil, why, err
		}
	}
	return x.connect(&p, lease)
}

// Options implements reactor.Handler.
func (x *session) Options() *reactor.RelayOptions { return &x.route.relay }

// Unused implements reactor.Handler: a backend that took the connection and ended it before a byte was exchanged counts as
// a failed connect, if another backend can serve instead, or the group holds its clients. Otherwise the client sees what the backend did.
func (x *session) Unused(client reactor.Conn, _ reactor.Cause) bool {
	b := x.lease.Backend()
	if x.killed.Load() != 0 {
		return false
	}
	if x.pool == PoolHit || x.pool == PoolReused {
		// A spare that died at that moment says nothing about the backend: the session makes a connection of its own.
		again := x.lease
		x.pool = PoolMiss
		x.locked(func() { x.link, x.account, x.setup, x.lease = nil, nil, x.setup.again(client), nil })
		go x.run(again)
		return true
	}
	if int(x.attempts) >= x.route.connect.Attempts {
		return false
	}
	tried := []*backend.Backend{b}
	if x.setup != nil {
		tried = append(tried, x.setup.tried...)
	}
	next, err := x.route.group.Backends.Lease(x.key(), tried)
	if err == nil && slices.Contains(tried, next.Backend()) {
		next.Release()
		next = nil
	}
	// A group that holds its clients is expected to come back: a backend that is on its way down ends what its kernel had accepted.
	if next == nil && x.route.group.Hold == nil {
		return false
	}
	x.locked(func() { x.link, x.account, x.setup = nil, nil, &setup{client: client, tried: tried} })
	x.lease.Release()
	x.lease = nil
	x.route.group.unused(b)
	x.connectFailed(b, errUnused)
	go x.run(next)
	return true
}

// Ended implements reactor.Handler.
func (x *session) Ended(r reactor.Result) {
	e := x.event(SessionClosed)
	if r.Down > 0 {
		x.route.group.answered(x.lease.Backend())
	}
	if r.Backend != nil {
		x.giveBack(r.Backend)
	}
	e.Up, e.Down, e.FirstByte, e.HalfClosedBy = r.Up, r.Down, r.FirstByte, r.HalfClosed
	e.Reason = x.reason(r.Cause)
	x.close(e)
}

// giveBack makes the connection a spare again, in the background, if the reset exchange succeeds. The lease goes with it: the slot is
// free when the connection is a spare or closed.
func (x *session) giveBack(conn reactor.Conn) {
	g, lease := x.route.group, x.lease
	s := g.Spares.of(lease.Backend())
	x.lease = nil
	x.acceptor.server.background.Go(func() {
		defer lease.Release()
		set := g.Spares.current.Load()
		if s == nil || !s.fit(x) || set.Reset == nil || set.Reset.run(x.acceptor.server.ctx, conn) != nil {
			conn.Close()
			return
		}
		// Its greeting is gone: whatever it says from now on is an answer to the last client.
		s.Adopt(s.watch(conn, true)).Put()
	})
}

func (x *session) reason(c reactor.Cause) Reason {
	switch c {
	case reactor.ClientFIN:
		return ClientFIN
	case reactor.BackendFIN:
		return BackendFIN
	case reactor.ClientRST:
		return ClientRST
	case reactor.BackendRST:
		return BackendRST
	case reactor.IdleTimeout:
		return Idle
	case reactor.HalfCloseTimeout:
		return HalfCloseTimeout
	case reactor.SessionTimeout:
		return SessionTimeout
	case reactor.Killed:
		return Reason(x.killed.Load())
	}
	return Internal
}

// refuse ends a session that has no backend: no byte of the client goes anywhere. A client that is not let in, or whose session was
// ended, is reset; one that nobody can serve is closed, which is a reset too if it has sent anything.
func (x *session) refuse(why Reason, err error) {
	switch why {
	case QueueFull, QueueTimeout, NoBackend, ConnectFailure:
		x.setup.client.Close()
	default:
		x.setup.client.Reset()
	}
	e := x.event(SessionClosed)
	e.Reason, e.Err = why, err
	x.close(e)
}

// close is the one exit. The session gives back everything it holds, and then it is told of.
func (x *session) close(e Event) {
	s := x.acceptor.server
	if x.lease != nil {
		x.lease.Release()
	}
	x.leave()
	s.open.remove(x, e.Up, e.Down)
	s.unreserve(x.counted)
	s.resume()
	s.observe(e)
	if s.open.told() {
		s.emptied()
	}
}

// kill ends the session with that reason, whatever it is doing. The first kill wins.
func (x *session) kill(why Reason) {
	if why == NoReason {
		why = KilledByAdmin
	}
	if !x.killed.CompareAndSwap(0, uint32(why)) {
		return
	}
	var link reactor.Link
	var cancel context.CancelCauseFunc
	x.locked(func() {
		if link = x.link; x.setup != nil {
			cancel = x.setup.cancel
		}
	})
	if link != nil {
		link.Kill()
	}
	if cancel != nil {
		cancel(errKilled)
	}
}

// locked runs f under the lock that others read the session's fields with.
func (x *session) locked(f func()) {
	sh, _ := x.acceptor.server.open.shard(x.id)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	f()
}

func (x *session) event(k Kind) Event {
	e := Event{Kind: k, ID: x.id, Client: x.remote.addr(), Local: x.localAddr(), Attempts: int(x.attempts), Pool: x.pool,
		Wait: x.wait.duration(), Connect: x.dialed.duration(),
		Duration: clock() - x.accepted}
	if x.preface != nil {
		e.Claimed, e.SNI = x.preface.source, x.preface.serverName
	}
	if x.lease != nil {
		e.Group, e.Backend = x.route.group.Backends.Name(), x.lease.Backend().Name()
	}
	return e
}

func (x *session) info() (i SessionInfo) {
	x.locked(func() {
		i = SessionInfo{ID: x.id, Listener: x.acceptor.server.Name, Client: x.remote.addr(), Local: x.localAddr(), Age: clock() - x.accepted}
		if x.account != nil {
			i.Group, i.Backend, i.backend = x.account.group, x.account.name, x.account.backend
		}
		if x.link != nil && x.preface != nil {
			i.Claimed, i.SNI = x.preface.source, x.preface.serverName
		}
		if x.link != nil {
			i.Up, i.Down = x.link.Bytes()
			i.Quiet, i.HalfClosed = x.link.Quiet(), x.link.HalfClosed()
			i.Attempts, i.Pool = int(x.attempts), x.pool
		}
	})
	return i
}

// localAddr is where the client connected to.
func (x *session) localAddr() Addr {
	if x.remote.kind == unixEndpoint || x.remote.kind == noEndpoint {
		return x.acceptor.addr
	}
	local := endpoint{kind: x.remote.kind, ip: x.localIP, port: x.acceptor.addr.IP.Port()}
	if netip.AddrFrom16(x.localIP).IsLinkLocalUnicast() {
		local.zone = x.remote.zone
	}
	return local.addr()
}

// key is what source_hash goes by.
func (x *session) key() uint64 {
	c := x.client()
	switch {
	case c == unnamed:
		return backend.KeyString(x.acceptor.addr.Path)
	case c.IsUnix():
		return backend.KeyString(c.Path)
	}
	return backend.Key(c.IP.Addr())
}
