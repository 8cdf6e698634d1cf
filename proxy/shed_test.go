//go:build unix

package proxy_test

import (
	"context"
	"testing"
	"time"

	"github.com/tproxy/tproxy/proxy"
)

func everything(proxy.SessionInfo) bool { return true }

func TestShedWithoutWindowEndsAllAtOnce(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newEcho(t), newEcho(t)).start()
		moved := r.dial()
		roundTrip(t, moved, "x")
		r.backends[0].SetUp(false)
		stays := r.dial()
		roundTrip(t, stays, "x")
		r.srv.Shed(within(t), 0, func(i proxy.SessionInfo) bool { return i.On(r.backends[0]) }, proxy.OnDown)
		wantReset(t, moved)
		if n := r.srv.Active(); n != 1 {
			t.Errorf("%d are left", n)
		}
		roundTrip(t, stays, "y")
		finish(t, stays)
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			1 close g/b1 attempts=1 up=1 down=1 on_down
			2 accept
			2 open g/b2 attempts=1
			2 close g/b2 attempts=1 up=2 down=2 half=client client_fin
		`)
	})
}

// The quiet sessions go one after the other, the busy one when the window is over.
func TestShedSpreadsAndLeavesBusySessionsForLast(t *testing.T) {
	const window = 800 * time.Millisecond
	r := newRig(t, newEngine(t, "auto"), newEcho(t)).start()
	for range 8 {
		roundTrip(t, r.dial(), "x")
	}
	busy := r.dial()
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if exchange(busy, "y") != nil {
					return
				}
			}
		}
	}()
	await(t, "sessions to be quiet", func() bool {
		n := 0
		for i := range r.srv.Sessions() {
			if i.Quiet > 1050*time.Millisecond {
				n++
			}
		}
		return n == 8
	})
	began := time.Now()
	r.srv.Shed(within(t), window, everything, proxy.DrainTimeout)
	took := time.Since(began)
	close(stop)
	<-done
	var ends []time.Duration
	var last proxy.Event
	for _, e := range r.rec.all() {
		if e.Kind == proxy.SessionClosed {
			ends, last = append(ends, e.Time.Sub(began)), e
		}
	}
	if len(ends) != 9 {
		t.Fatalf("%d ended", len(ends))
	}
	if took < window || last.Client.String() != busy.LocalAddr().String() || last.Reason != proxy.DrainTimeout {
		t.Errorf("it took %v; the last was %v, %v, at %v", took, last.Client, last.Reason, ends[8])
	}
	for i, at := range ends[:8] {
		if at > window*9/10 && i < 4 || at < window/20*time.Duration(i) {
			t.Errorf("session %d of 8 ended %v into %v", i+1, at, window)
		}
	}
}

func TestShedEndsWithContext(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newEcho(t)).start()
		c := r.dial()
		roundTrip(t, c, "x")
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		r.srv.Shed(ctx, patience, everything, proxy.DrainTimeout)
		roundTrip(t, c, "x")
		finish(t, c)
	})
}

func TestShedReturnsWhenNothingMatches(t *testing.T) {
	r := newRig(t, newEngine(t, "auto"), newEcho(t)).start()
	c := r.dial()
	roundTrip(t, c, "x")
	r.srv.Shed(within(t), patience, func(proxy.SessionInfo) bool { return false }, proxy.DrainTimeout)
	roundTrip(t, c, "x")
}
