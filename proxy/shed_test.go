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
