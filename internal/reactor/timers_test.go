package reactor_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/reactor"
)

// TestTimers runs the cases side by side: most of their time is waiting. A case gets a limit, and says false when this machine stood still
// for so much of it that nothing can be told: then it gets a longer one.
func TestTimers(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		for name, test := range timers {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				limit := 250 * time.Millisecond
				for !test(t, newRig(t, e), limit) {
					if limit *= 2; limit > patience {
						t.Fatal("this machine stands still")
					}
				}
			})
		}
	})
}

func stoodStill(t *testing.T, since time.Time, tolerable time.Duration) bool {
	t.Helper()
	gap := time.Since(since)
	if gap <= tolerable {
		return false
	}
	t.Logf("this machine needed %v for what should take less than %v", gap, tolerable)
	return true
}

// pulse is the time between two signs of life.
func pulse(limit time.Duration) time.Duration { return limit / 10 }

// trickle sends a byte to the other side at every pulse, for two limits, the first one soon after last. It returns when it sent the last one.
func trickle(t *testing.T, from, to net.Conn, last time.Time, limit time.Duration) (_ time.Time, told bool) {
	t.Helper()
	tick := time.NewTicker(pulse(limit))
	defer tick.Stop()
	for end := time.Now().Add(2 * limit); last.Before(end); {
		<-tick.C
		before := last
		last = time.Now()
		_, err := from.Write([]byte("x"))
		if err == nil {
			_, err = io.ReadFull(to, make([]byte, 1))
		}
		if err != nil {
			if stoodStill(t, before, limit/2) {
				return last, false
			}
			t.Fatal(err)
		}
	}
	return last, true
}

// isOpenAfter fails if the session has ended although something happened at last.
func (s *session) isOpenAfter(last time.Time, limit time.Duration) (told bool) {
	s.t.Helper()
	select {
	case r := <-s.ended:
		if stoodStill(s.t, last, limit/2) {
			return false
		}
		s.t.Fatalf("the session has ended: %s", causes[r.Cause])
	default:
	}
	return true
}

var timers = map[string]func(*testing.T, *rig, time.Duration) (told bool){
	"idle ends a quiet session":                          idleEndsAQuietSession,
	"a trickle in one direction is not idle":             aTrickleInOneDirectionIsNotIdle,
	"half_close is about inactivity":                     halfCloseTimeoutIsAboutInactivity,
	"half_close starts with the FIN":                     halfCloseTimeoutStartsWithTheFIN,
	"session ends a busy one":                            sessionTimeoutEndsABusySession,
	"idle ends a session with a reader that never reads": idleEndsASessionWithAReaderThatNeverReads,
	"idle bounds the delivery before a reset":            idleBoundsTheDeliveryBeforeAReset,
}

func idleEndsAQuietSession(t *testing.T, r *rig, limit time.Duration) (told bool) {
	start := time.Now()
	s := r.open(reactor.RelayOptions{Idle: limit})
	wants(t, "the client", s.client, "", endRST)
	within(t, time.Since(start), limit)
	wants(t, "the backend", s.backend, "", endRST)
	s.result(reactor.IdleTimeout)
	return true
}

func aTrickleInOneDirectionIsNotIdle(t *testing.T, r *rig, limit time.Duration) (told bool) {
	start := time.Now()
	s := r.open(reactor.RelayOptions{Idle: limit, HalfClose: limit / 5})
	if start, told = trickle(t, s.backend, s.client, start, limit); !told || !s.isOpenAfter(start, limit) {
		return false
	}
	wants(t, "the client", s.client, "", endRST)
	within(t, time.Since(start), limit)
	s.result(reactor.IdleTimeout)
	return true
}

func halfCloseTimeoutIsAboutInactivity(t *testing.T, r *rig, limit time.Duration) (told bool) {
	s := r.open(reactor.RelayOptions{HalfClose: limit, Idle: time.Minute})
	start := time.Now()
	sendFIN(t, s.client)
	wants(t, "the backend", s.backend, "", endFIN)
	if start, told = trickle(t, s.backend, s.client, start, limit); !told || !s.isOpenAfter(start, limit) {
		return false
	}
	wants(t, "the client", s.client, "", endRST)
	within(t, time.Since(start), limit)
	if r := s.result(reactor.HalfCloseTimeout); r.HalfClosed != reactor.Client {
		t.Errorf("result is %+v", r)
	}
	return true
}

func halfCloseTimeoutStartsWithTheFIN(t *testing.T, r *rig, limit time.Duration) (told bool) {
	s := r.open(reactor.RelayOptions{HalfClose: limit})
	await(t, "more quiet than the limit", func() bool { return s.link.Quiet() > limit*5/4 })
	s.isOpen() // it is not half-closed
	start := time.Now()
	sendFIN(t, s.backend)
	s.backend.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 1)
	_, err := s.backend.Read(buf)
	if endOf(err) != endRST {
		t.Errorf("the backend got %v", err)
	}
	within(t, time.Since(start), limit)
	if r := s.result(reactor.HalfCloseTimeout); r.HalfClosed != reactor.Backend {
		t.Errorf("result is %+v", r)
	}
	return true
}

func sessionTimeoutEndsABusySession(t *testing.T, r *rig, limit time.Duration) (told bool) {
	start := time.Now()
	s := r.open(reactor.RelayOptions{Session: limit, Idle: time.Minute})
	tick := time.NewTicker(pulse(limit) / 5)
	defer tick.Stop()
	for range tick.C {
		if _, err := s.client.Write([]byte("x")); err != nil {
			break
		}
	}
	took := time.Since(start)
	if took < limit*8/10 || took > limit*11/10+patience/2 {
		t.Errorf("took %v with a limit of %v", took, limit)
	}
	s.result(reactor.SessionTimeout)
	return true
}

func idleEndsASessionWithAReaderThatNeverReads(t *testing.T, r *rig, limit time.Duration) (told bool) {
	s := r.open(reactor.RelayOptions{Idle: limit})
	sender := background(func() {
		for {
			if _, err := s.client.Write(noise[:64<<10]); err != nil {
				return
			}
		}
	})
	s.result(reactor.IdleTimeout)
	sender()
	return true
}

// idleBoundsTheDeliveryBeforeAReset: the client has reset, and the backend never reads what it had sent.
func idleBoundsTheDeliveryBeforeAReset(t *testing.T, r *rig, limit time.Duration) (told bool) {
	start := time.Now()
	s := r.open(reactor.RelayOptions{Idle: limit})
	s.backend.(*net.TCPConn).SetReadBuffer(4 << 10)
	if err := sendNoise(s.client, 0, 1<<20, newPace(1, false, 64<<10)); err != nil {
		if stoodStill(t, start, limit/2) {
			return false
		}
		t.Fatal(err)
	}
	sendRST(s.client)
	if stoodStill(t, start, limit/2) {
		return false
	}
	s.result(reactor.ClientRST)
	return true
}

// within checks that something took about as long as a limit says.
func within(t *testing.T, took, limit time.Duration) {
	t.Helper()
	if took < limit*9/10 || took > limit+patience/2 {
		t.Errorf("took %v with a limit of %v", took, limit)
	}
}
