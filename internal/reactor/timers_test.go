package reactor_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/reactor"
)

// limit is long enough for a machine that is busy with other tests, and pulse is a small part of it.
const (
	limit = 250 * time.Millisecond
	pulse = 25 * time.Millisecond
)

// trickle sends a byte to the other side at every pulse, for two limits. It returns when it sent the last one.
func trickle(t *testing.T, from, to net.Conn) (last time.Time) {
	t.Helper()
	tick := time.NewTicker(pulse)
	defer tick.Stop()
	last = time.Now()
	for end := last.Add(2 * limit); last.Before(end); {
		<-tick.C
		before := last
		last = time.Now()
		_, err := from.Write([]byte("x"))
		if err == nil {
			_, err = io.ReadFull(to, make([]byte, 1))
		}
		if err != nil {
			onTime(t, before)
			t.Fatal(err)
		}
	}
	return last
}

// onTime skips the test if this machine let more time pass since the last pulse than a limit can bear.
func onTime(t *testing.T, last time.Time) {
	t.Helper()
	if gap := time.Since(last); gap > limit/2 {
		t.Skipf("this machine stood still for %v", gap)
	}
}

// TestTimers runs the cases side by side: most of their time is waiting.
func TestTimers(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		for name, test := range timers {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, newRig(t, e))
			})
		}
	})
}

var timers = map[string]func(*testing.T, *rig){
	"idle ends a quiet session":                          idleEndsAQuietSession,
	"a trickle in one direction is not idle":             aTrickleInOneDirectionIsNotIdle,
	"half_close is about inactivity":                     halfCloseTimeoutIsAboutInactivity,
	"half_close starts with the FIN":                     halfCloseTimeoutStartsWithTheFIN,
	"session ends a busy one":                            sessionTimeoutEndsABusySession,
	"idle ends a session with a reader that never reads": idleEndsASessionWithAReaderThatNeverReads,
	"idle bounds the delivery before a reset":            idleBoundsTheDeliveryBeforeAReset,
}

func idleEndsAQuietSession(t *testing.T, r *rig) {
	start := time.Now()
	s := r.open(reactor.RelayOptions{Idle: limit})
	wants(t, "the client", s.client, "", endRST)
	within(t, time.Since(start), limit)
	wants(t, "the backend", s.backend, "", endRST)
	s.result(reactor.IdleTimeout)
}

func aTrickleInOneDirectionIsNotIdle(t *testing.T, r *rig) {
	s := r.open(reactor.RelayOptions{Idle: limit, HalfClose: limit / 5})
	start := trickle(t, s.backend, s.client)
	s.isOpen()
	wants(t, "the client", s.client, "", endRST)
	within(t, time.Since(start), limit)
	s.result(reactor.IdleTimeout)
}

func halfCloseTimeoutIsAboutInactivity(t *testing.T, r *rig) {
	s := r.open(reactor.RelayOptions{HalfClose: limit, Idle: time.Minute})
	sendFIN(t, s.client)
	wants(t, "the backend", s.backend, "", endFIN)
	start := trickle(t, s.backend, s.client)
	s.isOpen()
	wants(t, "the client", s.client, "", endRST)
	within(t, time.Since(start), limit)
	if r := s.result(reactor.HalfCloseTimeout); r.HalfClosed != reactor.Client {
		t.Errorf("result is %+v", r)
	}
}

func halfCloseTimeoutStartsWithTheFIN(t *testing.T, r *rig) {
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
}

func sessionTimeoutEndsABusySession(t *testing.T, r *rig) {
	start := time.Now()
	s := r.open(reactor.RelayOptions{Session: limit, Idle: time.Minute})
	tick := time.NewTicker(pulse / 5)
	defer tick.Stop()
	for range tick.C {
		if _, err := s.client.Write([]byte("x")); err != nil {
			break
		}
	}
	took := time.Since(start)
	if took < limit*8/10 || took > limit*11/10+5*time.Second {
		t.Errorf("took %v with a limit of %v", took, limit)
	}
	s.result(reactor.SessionTimeout)
}

func idleEndsASessionWithAReaderThatNeverReads(t *testing.T, r *rig) {
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
}

// idleBoundsTheDeliveryBeforeAReset: the client has reset, and the backend never reads what it had sent.
func idleBoundsTheDeliveryBeforeAReset(t *testing.T, r *rig) {
	s := r.open(reactor.RelayOptions{Idle: limit})
	s.backend.(*net.TCPConn).SetReadBuffer(4 << 10)
	if err := sendNoise(s.client, 0, 1<<20, newPace(1, false, 64<<10)); err != nil {
		t.Fatal(err)
	}
	sendRST(s.client)
	s.result(reactor.ClientRST)
}

// within checks that something took about as long as a limit says.
func within(t *testing.T, took, limit time.Duration) {
	t.Helper()
	if took < limit*9/10 || took > limit+5*time.Second {
		t.Errorf("took %v with a limit of %v", took, limit)
	}
}
