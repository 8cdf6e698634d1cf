//go:build unix

package proxy_test

import (
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/health"
	"github.com/tproxy/tproxy/proxy"
)

// A pause comes only before a backend that this session tried already.
func TestBackoffOnlyWhenAllWereTried(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newRefusing(t), newRefusing(t), newRefusing(t))
		r.group.Connect = proxy.Connect{Attempts: 5, BackoffBase: 2 * patience, BackoffMax: 2 * patience, Total: 10 * patience}
		r.start()
		c := r.dial()
		r.awaitEvents(proxy.ConnectFailed, 3) // no pause is waited for so long
		reset(c)
		r.awaitClosed(1)
		if n := r.rec.count(proxy.ConnectFailed); n != 3 {
			t.Errorf("no pause before connect 4; the story is\n%s", r.rec.story())
		}
	})
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newRefusing(t), newRefusing(t), newRefusing(t))
		r.group.Connect = proxy.Connect{Attempts: 5, BackoffBase: 40 * time.Millisecond, BackoffMax: 40 * time.Millisecond}
		r.start()
		r.wantUnserved()
		r.awaitClosed(1)
		events := r.rec.all()
		if len(events) != 7 {
			t.Fatalf("the story is\n%s", r.rec.story())
		}
		for _, i := range []int{4, 5} {
			if d := events[i].Time.Sub(events[i-1].Time); d < 30*time.Millisecond {
				t.Errorf("%v before connect %d", d, events[i].Attempts)
			}
		}
	})
}

func TestTriedBackendIsLeftOutWhileAnotherIsUsable(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newRefusing(t), newDrop(t), newRefusing(t), newEcho(t))
		r.group.Connect.Attempts = 4
		r.start()
		c := r.dial()
		r.awaitEvents(proxy.SessionOpened, 2)
		roundTrip(t, c, "x")
		finish(t, c)
		r.tells(`
			1 accept
			1 connect_failed g/b1 attempts=1: connection refused
			1 open g/b2 attempts=2
			1 connect_failed g/b2 attempts=2: EOF
			1 connect_failed g/b3 attempts=3: connection refused
			1 open g/b4 attempts=4
			1 close g/b4 attempts=4 up=1 down=1 half=client client_fin
		`)
	})
}

func TestTotalEndsTheAttempts(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		h := new(healthRecorder)
		r := newRig(t, e, newHole(t))
		r.group.Health = h
		r.group.Connect = proxy.Connect{Attempts: 1000, Timeout: patience, Total: 30 * time.Millisecond, BackoffBase: time.Millisecond}
		r.start()
		r.wantUnserved()
		r.tells(`
			1 accept
			1 connect_failed g/b1 attempts=1: i/o timeout
			1 close attempts=1 connect_failed: i/o timeout
		`)
		h.want(t, "b1: i/o timeout")
	})
}

// A back-off that outlasts Total is not waited for: the connect after it would have no time, and the backend would be blamed.
func TestBackoffBeyondTotalIsTheEnd(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		h := new(healthRecorder)
		r := newRig(t, e, newRefusing(t))
		r.group.Health = h
		r.group.Connect = proxy.Connect{Attempts: 10, Total: patience, BackoffBase: 2 * patience, BackoffMax: 2 * patience}
		r.start()
		r.wantUnserved()
		r.tells(`
			1 accept
			1 connect_failed g/b1 attempts=1: connection refused
			1 close attempts=1 connect_failed: connection refused
		`)
		h.want(t, "b1: connection refused")
	})
}

// A session that may be held goes on until the backend is there: a restart costs nobody a connection.
func TestHeldSessionSurvivesRefusals(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		fd, address := bound(t)
		r := newRig(t, e, address)
		r.hold(patience)
		r.start()
		c := r.dial()
		r.awaitEvents(proxy.ConnectFailed, 10)
		if err := syscall.Listen(fd, 16); err != nil {
			t.Fatal(err)
		}
		r.awaitEvents(proxy.SessionOpened, 1)
		reset(c)
		r.awaitClosed(1)
		if got := r.rec.reasons()[0]; got != proxy.ClientRST {
			t.Errorf("reason %q", got)
		}
	})
}

// A connect that takes longer than a session may be held leaves it its other attempts.
func TestHoldTakesNoAttempts(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newHole(t), newEcho(t))
		r.group.Connect.Timeout = 20 * time.Millisecond
		r.hold(10 * time.Millisecond)
		r.start()
		c := r.dial()
		roundTrip(t, c, "hello")
		finish(t, c)
		r.tells(`
			1 accept
			1 connect_failed g/b1 attempts=1: i/o timeout
			1 open g/b2 attempts=2
			1 close g/b2 attempts=2 up=5 down=5 half=client client_fin
		`)
	})
}

func TestHoldEndsRefusals(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newRefusing(t))
		r.hold(50 * time.Millisecond)
		r.group.Connect.Attempts = 1
		r.start()
		r.wantUnserved()
		r.awaitClosed(1)
		events := r.rec.all()
		if last := events[len(events)-1]; last.Reason != proxy.ConnectFailure || last.Duration < 50*time.Millisecond {
			t.Errorf("%v after %d attempts", last.Reason, last.Attempts)
		}
	})
}

func TestClientResetsInBackoff(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newRefusing(t))
		r.group.Connect = proxy.Connect{BackoffBase: patience, BackoffMax: patience, Total: 2 * patience}
		r.start()
		c := r.dial()
		r.awaitEvents(proxy.ConnectFailed, 1)
		reset(c)
		r.tells(`
			1 accept
			1 connect_failed g/b1 attempts=1: connection refused
			1 close attempts=1 client_rst: the client reset
		`)
	})
}

func TestNameOfBackend(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		_, port, _ := net.SplitHostPort(newEcho(t))
		r := newRig(t, e, net.JoinHostPort("localhost", port)).start()
		for range 3 {
			c := r.dial()
			roundTrip(t, c, "x")
			finish(t, c)
		}
	})
}

func TestNameThatDoesNotResolve(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, "no-such-host.invalid:80")
		r.group.Connect.Attempts = 1
		r.start()
		r.wantUnserved()
		r.awaitClosed(1)
		last := r.rec.all()[2]
		if last.Reason != proxy.ConnectFailure || last.Err == nil || !strings.Contains(last.Err.Error(), "no-such-host.invalid") {
			t.Errorf("%v: %v", last.Reason, last.Err)
		}
	})
}

func TestAddressThatIsNone(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		for _, address := range []string{"nonsense", "127.0.0.1:http", "unix:"} {
			r := newRig(t, e, address)
			r.group.Connect.Attempts = 1
			r.start()
			r.wantUnserved()
			r.awaitClosed(1)
			if last := r.rec.all()[2]; last.Err == nil || !strings.Contains(last.Err.Error(), "b1") {
				t.Errorf("%s: %v", address, last.Err)
			}
		}
	})
}

// Out of descriptors is nobody's fault but ours: no backend is blamed, and a session that may be held goes on when there are some.
func TestNoDescriptorsIsNotTheBackendsFault(t *testing.T) {
	e := newEngine(t, "portable") // the epoll engine takes both of a session's descriptors at accept
	r := newRig(t, e, newEcho(t))
	q := r.hold(patience)
	checker := health.New(health.Config{Group: "g", Rule: health.Rule{Failures: 1}})
	watch := checker.Add(r.backends[0])
	r.group.Health = healthFunc(func(_ *backend.Backend, err error) { watch.Report(err) })
	r.backends[0].SetUp(false)
	r.start()
	c := r.dial()
	awaitInLine(t, q)

	release := exhaustDescriptors(t)
	r.backends[0].SetUp(true)
	r.awaitEvents(proxy.ConnectFailed, 2)
	up := r.backends[0].Up()
	release()

	if !up {
		t.Error("the backend was taken down")
	}
	if err := r.rec.all()[1].Err; !errors.Is(err, syscall.EMFILE) {
		t.Errorf("the connect failed with %v", err)
	}
	roundTrip(t, c, "hello")
	finish(t, c)
	r.awaitClosed(1)
}

type healthFunc func(*backend.Backend, error)

func (f healthFunc) Report(b *backend.Backend, err error) { f(b, err) }

// exhaustDescriptors leaves none until release.
func exhaustDescriptors(t *testing.T) (release func()) {
	t.Helper()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	small := before
	small.Cur = uint64(openDescriptors()) + 16
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &small); err != nil {
		t.Fatal(err)
	}
	var all []*os.File
	for {
		f, err := os.Open(os.DevNull)
		if errors.Is(err, syscall.EMFILE) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	return sync.OnceFunc(func() {
		// At once: who gets one that is closed here would find that there is no other.
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
		for _, f := range all {
			f.Close()
		}
	})
}

func TestListenerPausesWithoutDescriptors(t *testing.T) {
	for _, closed := range []bool{false, true} {
		eachEngine(t, func(t *testing.T, e *proxy.Engine) {
			r := newRig(t, e, newEcho(t)).start()
			c := r.dial()
			roundTrip(t, c, "x")
			finish(t, c)
			r.awaitClosed(1)
			fd, _ := bound(t) // a client whose socket is there already
			release := exhaustDescriptors(t)
			defer release()
			ip := r.front.IP
			if err := syscall.Connect(fd, &syscall.SockaddrInet4{Port: int(ip.Port()), Addr: ip.Addr().As4()}); err != nil {
				t.Fatal(err)
			}
			r.awaitEvents(proxy.AcceptPaused, 1)
			if !r.srv.Paused() {
				t.Error("not paused")
			}
			if closed {
				r.srv.Listeners()[0].Close()
			} else {
				release()
			}
			r.awaitEvents(proxy.AcceptResumed, 1)
			if r.srv.Paused() {
				t.Error("still paused")
			}
			if n := r.rec.count(proxy.AcceptPaused); n != 1 {
				t.Errorf("paused %d times", n)
			}
			if !closed {
				r.awaitEvents(proxy.SessionOpened, 2)
			}
		})
	}
}

// A backend that takes every connection and ends it unused fails as one that refuses does: its connects are no successes in between.
func TestUnusedBackendGoesDown(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		checker := health.New(health.Config{Group: "g", Rule: health.Rule{Failures: 3}})
		s := newStub(t)
		r := newRig(t, e, s.addr(), newEcho(t))
		watch := checker.Add(r.backends[0])
		r.group.Health = healthFunc(func(b *backend.Backend, err error) {
			if b == r.backends[0] {
				watch.Report(err)
			}
		})
		r.start()
		opens, ends := 0, 0
		unused := func() {
			t.Helper()
			c := r.dial()
			s.next().Close()
			opens += 2
			r.awaitEvents(proxy.SessionOpened, opens)
			roundTrip(t, c, "x")
			finish(t, c)
			ends++
			r.awaitClosed(ends)
		}
		unused()
		unused()
		if !r.backends[0].Up() {
			t.Fatal("two failures of three took it down")
		}
		c := r.dial()
		b := s.next()
		exchangeOnce(t, c, b)
		endInOrder(t, c, b)
		opens++
		ends++
		r.awaitClosed(ends)
		unused()
		unused()
		if !r.backends[0].Up() {
			t.Fatal("its answer in between was not counted")
		}
		unused()
		if r.backends[0].Up() {
			t.Error("it is still up")
		}
	})
}
