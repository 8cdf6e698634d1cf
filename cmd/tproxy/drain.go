package main

import (
	"context"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/tproxy/tproxy/internal/admin"
	"github.com/tproxy/tproxy/proxy"
)

// drain ends the instance and returns how many sessions were cut at the deadline, or at once when now is done. This is the
// whole order of stopping, also of an instance whose successor serves: then nobody is told to look elsewhere, and there is nothing to wait for
// before it stops accepting; who asks at the admin address is answered by the successor.
func (i *instance) drain(now context.Context) (cut int) {
	replaced := i.replaced.Load()
	if !replaced {
		i.state.Store(admin.Draining)
		notify(i.log, daemon.SdNotifyStopping)
	}
	i.abandon()
	i.committing.Lock() // a reload that has come that far is finished first; a later one sees the state
	r := i.current.Load()
	i.committing.Unlock()
	c := r.config.Drain
	if replaced {
		i.stopAnswering()
		c.Delay = 0
	}
	i.log.Info("draining", "delay", c.Delay, "timeout", c.Timeout, "sessions", i.limit.Active())
	wait(now, c.Delay)

	ctx, cancel := context.WithCancel(now)
	defer cancel()
	if c.Timeout > 0 {
		ctx, cancel = context.WithTimeout(now, c.Timeout)
		defer cancel()
	}
	var all sync.WaitGroup
	for _, s := range r.servers() {
		all.Go(func() {
			if c.Spread && c.Timeout > 0 {
				var spread sync.WaitGroup
				defer spread.Wait()
				shed, stop := context.WithCancel(ctx)
				defer stop()
				spread.Go(func() { spreadIdle(shed, s, c.Timeout) })
			}
			s.Shutdown(ctx)
		})
	}
	for _, g := range r.groups {
		g.quiesce()
	}
	all.Wait()
	for _, s := range r.servers() {
		cut += s.KillAll(proxy.DrainTimeout)
	}
	i.close()
	i.log.Info("stopped", "cut", cut)
	return cut
}

// idleAfter is how long no byte must have moved in a session that is idle.
const idleAfter = time.Second

// spreadIdle closes idle sessions until ctx is done, evenly over the window but for its very end: those that are left at the deadline were in
// use, and count as cut.
func spreadIdle(ctx context.Context, s *proxy.Server, window time.Duration) {
	end := time.Now().Add(window - min(window/10, idleAfter))
	for ctx.Err() == nil {
		s.Shed(ctx, max(time.Until(end), 0), idle, proxy.DrainTimeout) // until none is idle
		wait(ctx, idleAfter/4)
	}
}

// idle leaves half-closed sessions to their timer.
func idle(s proxy.SessionInfo) bool { return !s.HalfClosed && s.Quiet >= idleAfter }

func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
