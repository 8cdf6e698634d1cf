package proxy

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"github.com/sethvargo/go-retry"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/internal/reactor"
	"github.com/tproxy/tproxy/pool"
)

// errConnectTimeout is a connect that Connect.Timeout or Connect.Total ended.
var errConnectTimeout = fmt.Errorf("connect timeout: %w", os.ErrDeadlineExceeded)

// connect leases backends and dials them until one answers. On success the lease is in x and the reason is NoReason; otherwise
// nothing is held.
//
// A backend that was tried is not tried again while another is usable; when all were, there is a pause before the next, unless there
// would be no time left after it.
func (x *session) connect(p *patience, lease *backend.Lease) (conn reactor.Conn, why Reason, err error) {
	c := x.route.connect
	var began time.Duration
	var backoff retry.Backoff
	var last error // of the dial before
	for {
		if lease == nil {
			if lease, err = x.choose(p); err != nil {
				return nil, x.failure(err), err
			}
		}
		b := lease.Backend()
		if began == 0 {
			began = clock()
		} else if slices.Contains(x.setup.tried, b) {
			lease.Release()
			if backoff == nil {
				backoff = retry.WithJitterPercent(20, retry.WithCappedDuration(c.BackoffMax, retry.NewExponential(c.BackoffBase)))
			}
			d, _ := backoff.Next()
			if x.route.group.Hold == nil && clock()-began+d >= c.Total {
				return nil, ConnectFailure, last
			}
			if err := p.sleep(d); err != nil {
				return nil, x.failure(err), err
			}
			if lease, err = x.choose(p); err != nil {
				return nil, x.failure(err), err
			}
			b = lease.Backend()
		}
		timeout, left := c.Timeout, c.Total
		if last != nil {
			left -= clock() - began
		}
		if x.route.group.Hold == nil {
			timeout = min(timeout, left)
		}
		if timeout <= 0 {
			lease.Release()
			return nil, ConnectFailure, last
		}
		conn, err = x.dial(b, p, timeout)
		if err == nil {
			x.lease = lease
			return conn, NoReason, nil
		}
		lease.Release()
		lease, last = nil, err
		if !slices.Contains(x.setup.tried, b) {
			x.setup.tried = append(x.setup.tried, b)
		}
		if why := x.failure(err); why != ConnectFailure {
			return nil, why, err
		}
		x.connectFailed(b, err)
		if x.exhausted(clock() - began) {
			return nil, ConnectFailure, err
		}
	}
}

// exhausted reports whether a session that has dialed for that long, in vain, gives up. One that may be held then goes on for as long as
// that, at the pace of the back-off.
func (x *session) exhausted(d time.Duration) bool {
	g, c := x.route.group, x.route.connect
	if int(x.attempts) < c.Attempts && d < c.Total {
		return false
	}
	if g.Hold == nil {
		return true
	}
	hold := g.Hold.Timeout()
	return hold > 0 && d >= hold
}

// connectFailed tells of one attempt.
func (x *session) connectFailed(b *backend.Backend, err error) {
	g := x.route.group
	if g.Health != nil {
		g.Health.Report(b, err)
	}
	e := x.event(ConnectFailed)
	e.Group, e.Backend, e.Err = g.Backends.Name(), b.Name(), err
	x.acceptor.server.observe(e)
}

// choose leases a backend. It waits in the queue if all are at their cap, and is held if none is usable.
func (x *session) choose(p *patience) (*backend.Lease, error) {
	g, key := x.route.group, x.key()
	err := backend.ErrFull
	try := func() bool {
		err = g.Backends.LeaseInto(&x.slot, key, x.setup.tried)
		return err == nil
	}
	if (g.Queue == nil || g.Queue.Len() == 0) && try() {
		return &x.slot, nil
	}
	if errors.Is(err, backend.ErrNone) && g.Hold != nil {
		wait := x.standIn(g.Hold, p, func() bool { return try() || errors.Is(err, backend.ErrFull) })
		if errors.Is(wait, pool.ErrQueueTimeout) {
			return nil, fmt.Errorf("%w within %v", backend.ErrNone, g.Hold.Timeout())
		}
		if wait != nil {
			return nil, wait
		}
	}
	if errors.Is(err, backend.ErrFull) && g.Queue != nil {
		if wait := x.standIn(g.Queue, p, try); wait != nil {
			return nil, wait
		}
	}
	if err != nil {
		return nil, err
	}
	return &x.slot, nil
}

// standIn waits in q, and counts the time unless the session is turned away at once.
func (x *session) standIn(q *pool.Queue, p *patience, try func() bool) error {
	start := clock()
	err := q.Wait(p.context(), try)
	if !errors.Is(err, pool.ErrQueueFull) {
		x.wait += toMicros(clock() - start)
	}
	return err
}

// dial takes a spare or makes one connect.
func (x *session) dial(b *backend.Backend, p *patience, timeout time.Duration) (reactor.Conn, error) {
	g := x.route.group
	x.attempts = min(x.attempts, math.MaxUint16-1) + 1
	if conn := x.takeSpare(b); conn != nil {
		return conn, nil
	}
	start := clock()
	conn, err := x.connectTo(b, p, timeout)
	if err != nil {
		return nil, err
	}
	if err := x.sendProxy(conn); err != nil {
		conn.Close()
		return nil, fmt.Errorf("PROXY header to %s: %w", b.Name(), err)
	}
	if g.TLS != nil {
		ctx, cancel := context.WithTimeoutCause(p.context(), timeout-(clock()-start), errConnectTimeout)
		defer cancel()
		if err := g.originate(ctx, conn, b); err != nil {
			return nil, err
		}
	}
	x.dialed = toMicros(clock() - start)
	g.connected(b)
	return conn, nil
}

// connectTo makes the connection. Where there is nothing to wait for, over loopback as a rule, it costs no context and no timer.
func (x *session) connectTo(b *backend.Backend, p *patience, timeout time.Duration) (reactor.Conn, error) {
	g, e := x.route.group, x.acceptor.engine
	t, err := g.target(b)
	if err != nil {
		return nil, err
	}
	var conn reactor.Conn
	if t.fixed.IsValid() {
		if conn, err = e.Dial(t.fixed, x.setup.client, g.source(t.fixed)); err != nil || conn.Connected() {
			return conn, err
		}
	}
	ctx, cancel := context.WithTimeoutCause(p.context(), timeout, errConnectTimeout)
	defer cancel()
	if conn == nil {
		return g.dial(ctx, e, b, x.setup.client)
	}
	if err := conn.Established(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// takeSpare takes a living spare of b, with the header sent, if there is one and the session may have it.
func (x *session) takeSpare(b *backend.Backend) reactor.Conn {
	s := x.route.group.Spares.of(b)
	if s == nil || !s.fit(x) {
		return nil
	}
	for x.pool != PoolMiss { // which says as well that a spare was no good: now a connect is due
		l, ok := s.TryGet()
		if !ok {
			x.pool = PoolMiss
			break
		}
		l.Conn.Watch(nil)
		if err := x.sendProxy(l.Conn.Conn); err != nil {
			l.Discard()
			continue
		}
		x.pool, x.dialed = PoolHit, 0
		if l.Reused {
			x.pool = PoolReused
		}
		return l.Conn.Conn
	}
	return nil
}

// failure is the reason a session ends with when err ends its set-up.
func (x *session) failure(err error) Reason {
	switch {
	case errors.Is(err, errClientReset):
		return ClientRST
	case x.killed.Load() != 0:
		return Reason(x.killed.Load())
	case errors.Is(err, ErrServerClosed):
		return DrainTimeout
	case errors.Is(err, pool.ErrQueueFull), errors.Is(err, backend.ErrFull):
		return QueueFull
	case errors.Is(err, pool.ErrQueueTimeout):
		return QueueTimeout
	case errors.Is(err, backend.ErrNone):
		return NoBackend
	}
	return ConnectFailure
}

// patience is how long a session's set-up waits: until the client resets, or somebody kills the session. It costs
// nothing until there is something to wait for.
type patience struct {
	session *session
	ctx     context.Context
}

func (p *patience) context() context.Context {
	if p.ctx != nil {
		return p.ctx
	}
	x := p.session
	ctx, cancel := context.WithCancelCause(x.acceptor.server.ctx)
	p.ctx = ctx
	x.locked(func() { x.setup.cancel = cancel })
	if x.killed.Load() != 0 {
		cancel(errKilled)
	}
	x.setup.client.OnReset(func() { cancel(errClientReset) })
	return ctx
}

func (p *patience) sleep(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-p.context().Done():
		return context.Cause(p.ctx)
	}
}

func (p *patience) done() {
	x := p.session
	if p.ctx == nil {
		return
	}
	x.setup.client.OnReset(nil)
	var cancel context.CancelCauseFunc
	x.locked(func() { cancel, x.setup.cancel = x.setup.cancel, nil })
	cancel(nil)
}
