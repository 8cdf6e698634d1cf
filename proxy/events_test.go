//go:build unix

package proxy_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/pool"
	"github.com/tproxy/tproxy/proxy"
)

// The exact sequence of events of every way that a session can go. Each line is one event: the session, what happened, with
// which backend, and what is known by then.

func TestSessionEndedByClient(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newEcho(t)).start()
		c := r.dial()
		roundTrip(t, c, "hello")
		finish(t, c)
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			1 close g/b1 attempts=1 up=5 down=5 half=client client_fin
		`)
	})
}

func TestSessionEndedByBackend(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		s := newStub(t)
		r := newRig(t, e, s.addr()).start()
		c := r.dial()
		b := s.next()
		io.WriteString(b, "bye")
		b.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "bye" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		c.Close()
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			1 close g/b1 attempts=1 up=0 down=3 half=backend backend_fin
		`)
	})
}

func TestSessionResetByEitherSide(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		s := newStub(t)
		r := newRig(t, e, s.addr()).start()
		c := r.dial()
		b := s.next()
		exchangeOnce(t, c, b)
		reset(c)
		wantReset(t, b)
		r.awaitClosed(1)
		c = r.dial()
		b = s.next()
		exchangeOnce(t, c, b)
		reset(b)
		wantReset(t, c)
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			1 close g/b1 attempts=1 up=1 down=1 client_rst
			2 accept
			2 open g/b1 attempts=1
			2 close g/b1 attempts=1 up=1 down=1 backend_rst
		`)
	})
}

// exchangeOnce sends a byte both ways.
func exchangeOnce(t *testing.T, a, b net.Conn) {
	t.Helper()
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		if _, err := io.WriteString(way[0], "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(way[1], make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
}

// endInOrder sends the client's FIN, and the backend's when that has arrived.
func endInOrder(t *testing.T, c, b *net.TCPConn) {
	t.Helper()
	c.CloseWrite()
	wantEOF(t, b)
	b.Close()
	wantEOF(t, c)
}

func TestClientOverLimitIsReset(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		s := newStub(t)
		r := newRig(t, e, s.addr())
		r.srv.MaxConnections, r.srv.RejectWhenFull = 1, true
		r.start()
		first := r.dial()
		b := s.next()
		exchangeOnce(t, first, b)
		r.wantRefused()
		r.awaitClosed(1)
		endInOrder(t, first, b)
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			1 close g/b1 attempts=1 up=1 down=1 half=client client_fin
			2 accept
			2 close over_limit: the listener has as many sessions as it may
		`)
		if n := len(s.conns); n != 0 {
			t.Errorf("%d more connections were made for the refused client", n)
		}
	})
}

func TestFailedConnectGoesToAnotherBackend(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newRefusing(t), newEcho(t)).start()
		c := r.dial()
		roundTrip(t, c, "hello")
		finish(t, c)
		r.tells(`
			1 accept
			1 connect_failed g/b1 attempts=1: connection refused
			1 open g/b2 attempts=2
			1 close g/b2 attempts=2 up=5 down=5 half=client client_fin
		`)
	})
}

func TestEveryBackendRefuses(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newRefusing(t), newRefusing(t)).start()
		r.wantUnserved()
		r.tells(`
			1 accept
			1 connect_failed g/b1 attempts=1: connection refused
			1 connect_failed g/b2 attempts=2: connection refused
			1 connect_failed g/b1 attempts=3: connection refused
			1 close attempts=3 connect_failed: connection refused
		`)
	})
}

func TestConnectTimeout(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newHole(t), newHole(t))
		r.group.Connect.Timeout, r.group.Connect.Attempts = 20*time.Millisecond, 2
		r.start()
		r.wantUnserved()
		r.tells(`
			1 accept
			1 connect_failed g/b1 attempts=1: i/o timeout
			1 connect_failed g/b2 attempts=2: i/o timeout
			1 close attempts=2 connect_failed: i/o timeout
		`)
	})
}

func TestNoUsableBackend(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newEcho(t))
		r.backends[0].SetUp(false)
		r.start()
		r.wantUnserved()
		r.tells(`
			1 accept
			1 close no_backend: no usable backend
		`)
	})
}

func TestUnusedBackendIsFailedConnect(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newDrop(t), newEcho(t)).start()
		c := r.dial()
		r.awaitEvents(proxy.SessionOpened, 2)
		roundTrip(t, c, "hello")
		finish(t, c)
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			1 connect_failed g/b1 attempts=1: EOF
			1 open g/b2 attempts=2
			1 close g/b2 attempts=2 up=5 down=5 half=client client_fin
		`)
	})
}

func TestUnusedBackendWithoutAnother(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newDrop(t)).start()
		c := r.dial()
		wantEOF(t, c)
		c.Close()
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			1 close g/b1 attempts=1 half=backend backend_fin
		`)
	})
}

func TestUnusedBackendThenRefusedConnect(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newDrop(t), newRefusing(t))
		r.group.Connect.Attempts = 2
		r.start()
		r.wantUnserved()
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			1 connect_failed g/b1 attempts=1: EOF
			1 connect_failed g/b2 attempts=2: connection refused
			1 close attempts=2 connect_failed: connection refused
		`)
	})
}

// busy is a rig whose only backend has one slot, taken by a session; the client and the backend's end of it.
func busy(t *testing.T, e *proxy.Engine, prepare func(r *rig)) (r *rig, c, b *net.TCPConn) {
	t.Helper()
	s := newStub(t)
	r = newRig(t, e, s.addr())
	if err := r.backends[0].SetMaxConnections(1); err != nil {
		t.Fatal(err)
	}
	prepare(r)
	r.start()
	c = r.dial()
	b = s.next()
	exchangeOnce(t, c, b)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the story:\n%s", r.rec.story())
		}
	})
	return r, c, b
}

// awaitInLine waits until somebody has waited in q for a while.
func awaitInLine(t *testing.T, q *pool.Queue) {
	t.Helper()
	var since time.Time
	await(t, "a session in line", func() bool {
		if q.Len() > 0 && since.IsZero() {
			since = time.Now()
		}
		return !since.IsZero() && time.Since(since) > 2*time.Millisecond
	})
}

func TestSessionWaitsInQueue(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r, first, b := busy(t, e, func(r *rig) { r.queue(10, patience) })
		second := r.dial()
		awaitInLine(t, r.group.Queue)
		endInOrder(t, first, b)
		r.awaitEvents(proxy.SessionOpened, 2)
		reset(second)
		r.awaitClosed(2)
		last := r.rec.all()[5]
		if last.Wait < time.Millisecond || last.Wait > last.Duration {
			t.Errorf("waited %v of %v", last.Wait, last.Duration)
		}
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			1 close g/b1 attempts=1 up=1 down=1 half=client client_fin
			2 accept
			2 open g/b1 attempts=1 waited
			2 close g/b1 attempts=1 waited client_rst
		`)
	})
}

func TestNoQueue(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r, _, _ := busy(t, e, func(*rig) {})
		r.wantUnserved()
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			2 accept
			2 close queue_full: every usable backend is at max_connections
		`)
	})
}

func TestQueueFull(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r, _, _ := busy(t, e, func(r *rig) { r.queue(1, patience) })
		r.dial()
		awaitInLine(t, r.group.Queue)
		r.wantUnserved()
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			2 accept
			3 accept
			3 close queue_full: queue full
		`)
	})
}

func TestQueueTimeout(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r, _, _ := busy(t, e, func(r *rig) { r.queue(1, 10*time.Millisecond) })
		r.wantUnserved()
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			2 accept
			2 close waited queue_timeout: queue timeout
		`)
	})
}

func TestClientResetsInQueue(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r, _, _ := busy(t, e, func(r *rig) { r.queue(1, patience) })
		c := r.dial()
		awaitInLine(t, r.group.Queue)
		reset(c)
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			2 accept
			2 close waited client_rst: the client reset
		`)
		if n := r.group.Queue.Len(); n != 0 {
			t.Errorf("%d wait", n)
		}
	})
}

// A client that has sent its request and its FIN still wants the answer.
func TestClientFINInQueueIsNoEnd(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		s := newStub(t)
		r := newRig(t, e, s.addr())
		q := r.queue(1, patience)
		if err := r.backends[0].SetMaxConnections(1); err != nil {
			t.Fatal(err)
		}
		r.start()
		first := r.dial()
		b := s.next()
		exchangeOnce(t, first, b)
		second := r.dial()
		io.WriteString(second, "question")
		second.CloseWrite()
		awaitInLine(t, q)
		reset(first)
		b = s.next()
		if got, err := io.ReadAll(b); string(got) != "question" || err != nil {
			t.Errorf("the backend got %q, %v", got, err)
		}
		io.WriteString(b, "answer")
		b.Close()
		if got, err := io.ReadAll(second); string(got) != "answer" || err != nil {
			t.Errorf("the client got %q, %v", got, err)
		}
	})
}

func TestHoldUntilBackendComesUp(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newEcho(t))
		q := r.hold(patience)
		r.backends[0].SetUp(false)
		r.start()
		c := r.dial()
		awaitInLine(t, q)
		r.backends[0].SetUp(true)
		roundTrip(t, c, "hello")
		finish(t, c)
		r.tells(`
			1 accept
			1 open g/b1 attempts=1 waited
			1 close g/b1 attempts=1 waited up=5 down=5 half=client client_fin
		`)
	})
}

func TestHoldTimeout(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newEcho(t))
		r.hold(10 * time.Millisecond)
		r.backends[0].SetUp(false)
		r.start()
		r.wantUnserved()
		r.tells(`
			1 accept
			1 close waited no_backend: no usable backend
		`)
	})
}

// kill ends the only session that no backend serves, or the only one.
func kill(t *testing.T, r *rig, why proxy.Reason) {
	t.Helper()
	var id proxy.SessionID
	for i := range r.srv.Sessions() {
		if id == 0 || i.Backend == "" {
			id = i.ID
		}
	}
	if !r.srv.Kill(id, why) {
		t.Errorf("there is no session %d", id)
	}
}

func TestKillInConnect(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newHole(t)).start()
		c := r.dial()
		await(t, "the connect", func() bool { return r.backends[0].Active() == 1 })
		kill(t, r, proxy.KilledByAdmin)
		wantReset(t, c)
		r.tells(`
			1 accept
			1 close attempts=1 killed
		`)
	})
}

func TestKillInQueue(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r, _, _ := busy(t, e, func(r *rig) { r.queue(1, patience) })
		c := r.dial()
		awaitInLine(t, r.group.Queue)
		kill(t, r, proxy.OnRemoved)
		wantReset(t, c)
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			2 accept
			2 close waited on_removed
		`)
	})
}

func TestFirstKillWins(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r, c, b := busy(t, e, func(*rig) {})
		for i := range r.srv.Sessions() {
			r.srv.Kill(i.ID, proxy.Rebalanced)
			r.srv.Kill(i.ID, proxy.OnDown)
		}
		wantReset(t, c)
		wantReset(t, b)
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			1 close g/b1 attempts=1 up=1 down=1 rebalanced
		`)
	})
}

func TestKillWithoutReasonIsKilled(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r, _, _ := busy(t, e, func(r *rig) { r.queue(1, patience) })
		r.dial()
		awaitInLine(t, r.group.Queue)
		r.srv.KillAll(proxy.NoReason)
		r.awaitClosed(2)
		for _, why := range r.rec.reasons() {
			if why != proxy.KilledByAdmin {
				t.Errorf("reason %q", why)
			}
		}
	})
}

// A kill that comes between two connects is the cause, whatever comes of the second.
func TestKillBetweenConnects(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newRefusing(t), newRefusing(t))
		r.group.Connect.Attempts = 2
		r.srv.Observer = proxy.ObserverFunc(func(ev proxy.Event) {
			r.rec.Observe(ev)
			if ev.Kind == proxy.ConnectFailed {
				r.srv.Kill(ev.ID, proxy.OnDown)
			}
		})
		r.start()
		r.wantRefused()
		r.tells(`
			1 accept
			1 connect_failed g/b1 attempts=1: connection refused
			1 close attempts=2 on_down
		`)
	})
}

// Shutdown does not return before the last event of the last session was observed.
func TestShutdownWaitsForTheLastEvent(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newEcho(t))
		observing, proceed := make(chan bool), make(chan bool)
		r.srv.Observer = proxy.ObserverFunc(func(ev proxy.Event) {
			if ev.Kind == proxy.SessionClosed {
				observing <- true
				<-proceed
			}
			r.rec.Observe(ev)
		})
		r.start()
		c := r.dial()
		roundTrip(t, c, "x")
		r.srv.Listeners()[0].Close()
		reset(c)
		receive(t, observing, "the last event")
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		if err := r.srv.Shutdown(ctx); err == nil {
			t.Error("Shutdown returned while the event was being observed")
		}
		close(proceed)
		if err := r.srv.Shutdown(within(t)); err != nil || r.rec.count(proxy.SessionClosed) != 1 {
			t.Errorf("Shutdown: %v, after\n%s", err, r.rec.story())
		}
	})
}

func TestShutdownWaitsForSessions(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r, c, b := busy(t, e, func(*rig) {})
		done := make(chan error)
		go func() { done <- r.srv.Shutdown(within(t)) }()
		await(t, "the listener to be closed", func() bool { return len(r.srv.Listeners()) == 0 })
		exchangeOnce(t, c, b)
		endInOrder(t, c, b)
		if err := receive(t, done, "Shutdown"); err != nil {
			t.Error(err)
		}
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			1 close g/b1 attempts=1 up=2 down=2 half=client client_fin
		`)
	})
}

func TestShutdownReturnsWithContext(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r, c, b := busy(t, e, func(*rig) {})
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(io.ErrNoProgress)
		if err := r.srv.Shutdown(ctx); err != io.ErrNoProgress {
			t.Errorf("Shutdown: %v", err)
		}
		exchangeOnce(t, c, b) // it goes on
	})
}

func TestCloseResetsSessions(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r, c, b := busy(t, e, func(r *rig) { r.queue(1, patience) })
		second := r.dial()
		awaitInLine(t, r.group.Queue)
		if err := r.srv.Close(); err != nil {
			t.Error(err)
		}
		for _, x := range []net.Conn{c, b, second} {
			wantReset(t, x)
		}
		if got := r.rec.reasons(); len(got) != 2 || got[0] != proxy.DrainTimeout || got[1] != proxy.DrainTimeout {
			t.Errorf("reasons are %q", got)
		}
	})
}

func TestCloseEndsConnect(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newHole(t)).start()
		c := r.dial()
		await(t, "the connect", func() bool { return r.backends[0].Active() == 1 })
		if err := r.srv.Close(); err != nil {
			t.Error(err)
		}
		wantReset(t, c)
		r.tells(`
			1 accept
			1 close attempts=1 drain_timeout
		`)
	})
}

func TestEventsNameTheAddresses(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newEcho(t)).start()
		c := r.dial()
		roundTrip(t, c, "hello")
		await(t, "the bytes to be counted", func() bool { t := r.srv.Traffic()[0]; return t.Up == 5 && t.Down == 5 })
		for i := range r.srv.Sessions() {
			if i.Client.String() != c.LocalAddr().String() || i.Local != r.front || i.Group != "g" || i.Backend != "b1" || i.Listener != "front" ||
				i.Up != 5 || i.Down != 5 || i.Attempts != 1 || !i.On(r.backends[0]) {
				t.Errorf("session is %+v", i)
			}
		}
		finish(t, c)
		r.awaitClosed(1)
		for _, ev := range r.rec.all() {
			if ev.Client.String() != c.LocalAddr().String() || ev.Local != r.front || ev.Listener != "front" || ev.Time.IsZero() {
				t.Errorf("event is %+v", ev)
			}
		}
		ends := r.rec.all()[2]
		if ends.FirstByte <= 0 || ends.FirstByte > ends.Duration || ends.Connect > ends.Duration {
			t.Errorf("first byte after %v, connect %v, duration %v", ends.FirstByte, ends.Connect, ends.Duration)
		}
	})
}

func TestHealthLearnsFromConnects(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		h := new(healthRecorder)
		r := newRig(t, e, newRefusing(t), newDrop(t), newEcho(t))
		r.group.Health = h
		r.start()
		c := r.dial()
		r.awaitEvents(proxy.SessionOpened, 2)
		roundTrip(t, c, "hello")
		finish(t, c)
		r.awaitClosed(1)
		h.want(t, "b1: connection refused", "b2: ok", "b2: EOF", "b3: ok")
	})
}

var _ proxy.Health = (*healthRecorder)(nil)

func (h *healthRecorder) Report(b *backend.Backend, err error) {
	text := "ok"
	if err != nil {
		text = cause(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reports = append(h.reports, b.Name()+": "+text)
}
