package proxy

import (
	"context"
	"errors"
	"fmt"
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
// A backend that was tried is not tried again while another is usable; when all were, there is a pause before the next.
func (x *session) connect(lease *backend.Lease) (conn reactor.Conn, why Reason, err error) {
	p := patience{session: x}
	defer p.done()
	c := x.settings.connect
	var began time.Duration
	var backoff retry.Backoff
	for {
		if lease == nil {
			if lease, err = x.choose(&p); err != nil {
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
			if err := p.sleep(backoff); err != nil {
				return nil, x.failure(err), err
			}
			if lease, err = x.choose(&p); err != nil {
				return nil, x.failure(err), err
			}
			b = lease.Backend()
		}
		timeout := c.Timeout
		if x.settings.Group.Hold == nil {
			timeout = min(timeout, c.Total-(clock()-began))
		}
		conn, err = x.dial(b, &p, timeout)
		if err == nil {
			x.lease = lease
			return conn, NoReason, nil
		}
		lease.Release()
		lease = nil
		x.setup.tried = append(x.setup.tried, b)
		if why := x.failure(err); why != ConnectFailure {
			return nil, why, err
		}
		x.connectFailed(b, err)
		if x.exhausted(clock() - began) {
			return nil, ConnectFailure, err
		}
	}
}

// exhausted reports whether a session that has dialed for that long, in vain, gives up. One that may be held goes on, at the
// pace of the back-off.
func (x *session) exhausted(d time.Duration) bool {
	g, c := x.settings.Group, x.settings.connect
	if g.Hold != nil {
		return d >= g.Hold.Timeout()
	}
	return int(x.attempts) >= c.Attempts || d >= c.Total
}

// connectFailed tells of one attempt.
func (x *session) connectFailed(b *backend.Backend, err error) {
	g := x.settings.Group
	if g.Health != nil {
		g.Health.Report(b, err)
	}
	e := x.event(ConnectFailed)
	e.Group, e.Backend, e.Err = g.Backends.Name(), b.Name(), err
	x.acceptor.server.observe(e)
}

// choose leases a backend. It waits in the queue if all are at their cap, and is held if none is usable.
func (x *session) choose(p *patience) (*backend.Lease, error) {
	g, key := x.settings.Group, x.key()
	lease, err := (*backend.Lease)(nil), backend.ErrFull
	try := func() bool {
		lease, err = g.Backends.Lease(key, x.setup.tried)
		return err == nil
	}
	if (g.Queue == nil || g.Queue.Len() == 0) && try() {
		return lease, nil
	}
	start := clock()
	defer func() { x.wait += toMicros(clock() - start) }()
	if errors.Is(err, backend.ErrNone) && g.Hold != nil {
		wait := g.Hold.Wait(p.context(), func() bool { return try() || errors.Is(err, backend.ErrFull) })
		if errors.Is(wait, pool.ErrQueueTimeout) {
			return nil, fmt.Errorf("%w within %v", backend.ErrNone, g.Hold.Timeout())
		}
		if wait != nil {
			return nil, wait
		}
	}
	if errors.Is(err, backend.ErrFull) && g.Queue != nil {
		if wait := g.Queue.Wait(p.context(), try); wait != nil {
			return nil, wait
		}
	}
	return lease, err
}

// dial makes one connect.
func (x *session) dial(b *backend.Backend, p *patience, timeout time.Duration) (reactor.Conn, error) {
	g := x.settings.Group
	start := clock()
	x.attempts++
	t, err := g.target(b)
	if err != nil {
		return nil, err
	}
	addr := t.fixed
	var ctx context.Context
	if !addr.IsValid() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(p.context(), timeout, errConnectTimeout)
		defer cancel()
		if addr, err = t.addr(ctx); err != nil {
			return nil, err
		}
	}
	conn, err := x.acceptor.engine.Dial(addr, x.setup.client, reactor.DialOptions{Socket: x.settings.socket})
	if err != nil {
		return nil, err
	}
	if !conn.Connected() {
		if ctx == nil {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeoutCause(p.context(), timeout, errConnectTimeout)
			defer cancel()
		}
		if err := conn.Established(ctx); err != nil {
			conn.Close()
			t.failed()
			return nil, err
		}
	}
	x.dialed = toMicros(clock() - start)
	if g.Health != nil {
		g.Health.Report(b, nil)
	}
	return conn, nil
}

// failure is the reason a session ends with when err ends its set-up.
func (x *session) failure(err error) Reason {
	switch {
	case errors.Is(err, errClientReset):
		return ClientRST
	case errors.Is(err, errKilled):
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

func (p *patience) sleep(b retry.Backoff) error {
	d, _ := b.Next()
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
