package reactor_test

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"github.com/tproxy/tproxy/internal/reactor"
)

func TestDialToNobodyIsRefused(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		gone := ipv4.listen(t)
		gone.Close()
		c, err := e.Dial(reactor.AddrOf(gone.Addr()), nil, reactor.Addr{})
		if err == nil {
			err = c.Established(context.Background())
			if c.Connected() {
				t.Error("Connected")
			}
			c.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("error is %v", err)
		}
	})
}

func TestDialOfAPathThatIsNotThere(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		c, err := e.Dial(unixPath.anyAddr(t), nil, reactor.Addr{})
		if err == nil {
			err = c.Established(context.Background())
			c.Reset()
		}
		if !errors.Is(err, syscall.ENOENT) {
			t.Errorf("error is %v", err)
		}
	})
}

func TestEstablishedSaysWhyTheContextEnded(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		ln := ipv4.listen(t)
		c, err := e.Dial(reactor.AddrOf(ln.Addr()), nil, reactor.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if c.Connected() {
			t.Skip("connected before anybody waited: there is nothing to cancel")
		}
		why := errors.New("the client has left")
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(why)
		if err := c.Established(ctx); err != nil && !errors.Is(err, why) {
			t.Errorf("error is %v", err)
		}
		// It may be waited for again.
		if err := c.Established(context.Background()); err != nil {
			t.Errorf("then: %v", err)
		}
		if !c.Connected() {
			t.Error("not Connected")
		}
		if err := c.Established(ctx); err != nil {
			t.Errorf("of a connected one: %v", err)
		}
	})
}

func TestADialedConnThatNobodyWaitedForIsClosed(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		ln := ipv4.listen(t)
		for i := range 20 {
			c, err := e.Dial(reactor.AddrOf(ln.Addr()), nil, reactor.Addr{})
			if err != nil {
				t.Fatal(err)
			}
			c.OnReset(func() { t.Error("a reset that nobody sent") })
			if i%2 == 0 {
				c.Close()
			} else {
				c.Reset()
			}
		}
	})
}

func TestDialFromASourceAddress(t *testing.T) {
	source := netip.MustParseAddr("127.0.0.2")
	conform(t, func(t *testing.T, e reactor.Engine) {
		ln := ipv4.listen(t)
		c, err := e.Dial(reactor.AddrOf(ln.Addr()), nil, reactor.TCP(netip.AddrPortFrom(source, 0)))
		if err == nil {
			defer c.Close()
			err = c.Established(context.Background())
		}
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Skip("only 127.0.0.1 is local here")
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer got.Close()
		if a := reactor.AddrOf(got.RemoteAddr()); a.IP.Addr() != source || a != c.Local() {
			t.Errorf("came from %v, Local says %v", a, c.Local())
		}
	})
}

func TestDialToNoAddressIsAnError(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		if _, err := e.Dial(reactor.Addr{}, nil, reactor.Addr{}); err == nil {
			t.Error("no error")
		}
	})
}

func TestOnResetOfAClientThatWaits(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		for name, before := range map[string]bool{"told before": true, "told after": false} {
			s := r.connect()
			calls := make(chan struct{}, 4)
			told := func() { calls <- struct{}{} }
			if before {
				s.near.OnReset(told)
				sendRST(s.client)
			} else {
				sendRST(s.client)
				s.near.OnReset(told)
			}
			receive(t, calls, name)
			s.near.OnReset(nil)
			s.near.Close()
			s.far.Close()
			if len(calls) > 0 {
				t.Errorf("%s: called more than once", name)
			}
		}
	})
}

func TestOnResetOfASpare(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).connect()
		reset := make(chan struct{})
		s.far.OnReset(func() { close(reset) })
		sendRST(s.backend)
		receive(t, reset, "the reset")
		s.near.Close()
		s.far.Close()
	})
}

// TestOnResetLeavesTheConnAsItIs: what comes before the relay, data and FIN, is for the relay, and is no reset.
func TestOnResetLeavesTheConnAsItIs(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		for _, f := range []func(){nil, func() { t.Error("a FIN was taken for a reset") }} {
			s := r.connect()
			s.near.OnReset(func() { t.Error("data or FIN was taken for a reset") })
			s.far.OnReset(func() { t.Error("a greeting was taken for a reset") })
			send(t, s.client, "request")
			sendFIN(t, s.client)
			send(t, s.backend, "greeting")
			if f == nil {
				s.near.OnReset(nil)
				s.far.OnReset(nil)
			} else {
				s.near.OnReset(f) // and Relay withdraws it
			}
			s.relay(reactor.RelayOptions{})
			wants(t, "the backend", s.backend, "request", endFIN)
			s.backend.Close()
			wants(t, "the client", s.client, "greeting", endFIN)
			s.result(reactor.ClientFIN)
		}
	})
}

func TestOnResetIsNotCalledWhenWithdrawnOrRelayed(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		for _, withdraw := range []bool{true, false} {
			s := r.connect()
			s.near.OnReset(func() { t.Error("called") })
			if withdraw {
				s.near.OnReset(nil)
			}
			s.relay(reactor.RelayOptions{})
			sendRST(s.client)
			wants(t, "the backend", s.backend, "", endRST)
			s.result(reactor.ClientRST)
		}
	})
}

// TestARelayOfAConnThatWasResetBefore ends at once, and rightly.
func TestARelayOfAConnThatWasResetBefore(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).connect()
		reset := make(chan struct{})
		s.near.OnReset(func() { close(reset) })
		sendRST(s.client)
		receive(t, reset, "the reset")
		s.relay(reactor.RelayOptions{})
		wants(t, "the backend", s.backend, "", endRST)
		s.result(reactor.ClientRST)
	})
}
