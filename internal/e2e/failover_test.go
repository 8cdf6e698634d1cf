//go:build linux

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"
)

// quickHealth sees within a fraction of a second what happens to a backend of these tests.
const quickHealth = `health: {probe: send_expect, send: "PING\n", expect: "PONG\n", interval: 300ms, fast_interval: 100ms, timeout: 500ms, rise: 2, fall: 2, hold_down: {base: 0s}}`

func TestFaultyBackendsFailNoConnect(t *testing.T) {
	s := newStorm(t, 3, func(b []*server) string {
		return fmt.Sprintf(`
listeners: {main: {address: "127.0.0.1:0", group: main}}
groups: {main: {backends: [{name: b1, address: %q}, {name: b2, address: %q}, {name: b3, address: %q}], %s}}
drain: {timeout: 1s}
`, b[0].address, b[1].address, b[2].address, quickHealth)
	})
	ctx, stop := context.WithTimeout(t.Context(), duration(5*time.Second))
	defer stop()
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		s.load(ctx, 200, func(r *rand.Rand) string {
			if r.IntN(40) == 0 {
				return "numbered"
			}
			return "short"
		})
	}()
	for ctx.Err() == nil {
		f := []func(*server) *incident{s.killed, s.stopped, s.refusing}[s.dice.IntN(3)]
		b := s.servers[s.dice.IntN(3)]
		i := f(b)
		wait(ctx, time.Duration(200+s.dice.IntN(800))*time.Millisecond)
		s.over(i)
		s.healthy(3)
		wait(ctx, time.Duration(s.dice.IntN(500))*time.Millisecond)
	}
	<-loaded
	s.settle()
}

// healthy waits until n backends of the main group are usable.
func (s *storm) healthy(n int) {
	s.t.Helper()
	s.within(2*time.Second, func() string { return s.unusable(n) })
}

// unusable says how many backends of the main group are usable unless n are.
func (s *storm) unusable(n int) string {
	if usable := s.usable("main"); usable != n {
		return fmt.Sprintf("%d of %d backends are usable", usable, n)
	}
	return ""
}

// within waits until nothing is missing, and fails the test when that takes longer than limit, in time that the machine gives this process: a
// ticker skips what nobody was there to see.
func (s *storm) within(limit time.Duration, missing func() string) {
	s.t.Helper()
	const step = 10 * time.Millisecond
	tick := time.NewTicker(step)
	defer tick.Stop()
	start := time.Now()
	for left := limit / step; ; left-- {
		what := missing()
		if what == "" {
			return
		}
		if left == 0 {
			s.t.Fatalf("after %v (%v): %s", limit, time.Since(start), what)
		}
		<-tick.C
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// A backend that restarts without cutting a session costs no client anything: those that come meanwhile are held.
func TestHoldBridgesRestarts(t *testing.T) {
	s := newStorm(t, 1, func(b []*server) string {
		return fmt.Sprintf(`
listeners: {greet: {address: "127.0.0.1:0", group: main}}
groups: {main: {backends: [{name: b1, address: %q}], hold: 10s, health: {interval: 300ms, fast_interval: 100ms, timeout: 500ms, fall: 2, hold_down: {base: 0s}}}}
drain: {timeout: 1s}
`, b[0].greets)
	})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		s.load(ctx, 100, func(*rand.Rand) string { return "greeted" })
	}()
	b := s.servers[0]
	for range 10 {
		b.tell("refuse")
		b.tell("finish")
		b.kill()
		wait(ctx, time.Duration(50+s.dice.IntN(200))*time.Millisecond)
		b.start()
		s.healthy(1)
		wait(ctx, 50*time.Millisecond)
	}
	stop()
	<-loaded
	s.settle()
}

// killed, stopped and refusing begin a fault of one backend.

func (s *storm) killed(b *server) *incident {
	i := s.incident("kill", b.name, true)
	b.kill()
	i.end = b.start
	return i
}

func (s *storm) stopped(b *server) *incident {
	i := s.incident("SIGSTOP", b.name, false)
	b.signal(syscall.SIGSTOP)
	i.end = func() { b.signal(syscall.SIGCONT) }
	return i
}

// refusing ends those whom the backend's kernel has accepted and the backend has not.
func (s *storm) refusing(b *server) *incident {
	i := s.incident("refuse", b.name, true)
	b.tell("refuse")
	i.end = func() { b.tell("accept") }
	return i
}

func (s *storm) incident(name, backend string, cuts bool) *incident {
	i := &incident{name: name, backend: backend, cuts: cuts, from: time.Now(), to: time.Now().Add(time.Hour)}
	s.ledger.fault(i)
	return i
}

// over ends a fault.
func (s *storm) over(i *incident) {
	if i.end != nil {
		i.end()
	}
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	i.to = time.Now()
}
