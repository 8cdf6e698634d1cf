package reactor

import (
	"bytes"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPostFromManyGoroutinesRunsEverythingOnceAndInOrder(t *testing.T) {
	l := newEngine(t, 1).loops[0]
	const posters, each = 8, 2000
	var last [posters]int // the loop's goroutine alone touches it
	var all, ran sync.WaitGroup
	ran.Add(posters * each)
	for p := range posters {
		all.Go(func() {
			for i := range each {
				l.post(func() {
					if last[p] != i {
						t.Errorf("poster %d: %d came when %d was next", p, i, last[p])
					}
					last[p]++
					ran.Done()
				})
			}
		})
	}
	all.Wait()
	done := make(chan struct{})
	go func() { ran.Wait(); close(done) }()
	receive(t, done, "everything that was posted")
}

// TestAPostIsSeenHoweverTheLoopIsAboutToSleep: each one comes when the loop has just run the one before.
func TestAPostIsSeenHoweverTheLoopIsAboutToSleep(t *testing.T) {
	l := newEngine(t, 1).loops[0]
	ran := make(chan struct{})
	for i := range 5000 {
		l.post(func() { ran <- struct{}{} })
		receive(t, ran, "a post")
		for range i % 50 { // to meet it a little later each time
			l.engine.now()
		}
	}
}

// TestATimerThatIsSetWhileTheLoopGoesToSleepIsNotMissed: the loop has computed how long to sleep, and has not gone yet.
func TestATimerThatIsSetWhileTheLoopGoesToSleepIsNotMissed(t *testing.T) {
	e := &Epoll{kernel: linux{}, start: time.Now()}
	l, err := newLoop(e)
	if err != nil {
		t.Fatal(err)
	}
	defer l.file.Close()
	until := l.deadline()
	l.schedule(&relay{slot: -1}, e.now()+tick)
	l.file.SetReadDeadline(until) // as run does: the wake-up of schedule is gone
	if !l.drain() {
		t.Fatal("the loop goes to sleep with the deadline from before the timer")
	}
	if until := l.deadline(); until.IsZero() || time.Until(until) > 2*tick*time.Millisecond {
		t.Errorf("it sleeps until %v", until)
	}
}

func TestTimersOfAQuietLoopArePunctual(t *testing.T) {
	r := newRig(t, 1)
	for range 3 {
		s := r.connect()
		s.options.Idle = 150 * time.Millisecond
		start := time.Now()
		s.link.Start()
		receive(t, s.ended, "the end")
		if took := time.Since(start); took < 149*time.Millisecond || took > time.Second {
			t.Errorf("it took %v", took)
		}
		s.client.Close()
		s.server.Close()
	}
}

// TestClosingALoopRunsWhatItTook: a post that was taken runs, one that was not does not.
func TestClosingALoopRunsWhatItTook(t *testing.T) {
	for range 50 {
		e, err := NewEpoll(1)
		if err != nil {
			t.Fatal(err)
		}
		var took, ran atomic.Int32
		var posters sync.WaitGroup
		begun := make(chan struct{}, 4)
		for range cap(begun) {
			posters.Go(func() {
				begun <- struct{}{}
				for e.loops[0].post(func() { ran.Add(1) }) {
					took.Add(1)
				}
			})
		}
		<-begun
		e.Close()
		posters.Wait()
		if took.Load() != ran.Load() {
			t.Fatalf("%d were taken, %d have run", took.Load(), ran.Load())
		}
	}
}

// fakeLoop is a loop over a fake kernel, run by the test.
func fakeLoop(t *testing.T) (*fakeKernel, *loop) {
	k := newFakeKernel(t)
	e := &Epoll{kernel: k, start: time.Now()}
	l := &loop{engine: e, ep: 1, buf: make([]byte, chunkSize), done: make(chan struct{})}
	e.loops = []*loop{l}
	return k, l
}

func TestAnEventOfAFormerOwnerOfASlotReachesNobody(t *testing.T) {
	k, l := fakeLoop(t)
	var events [3]unix.EpollEvent
	var old [3]*conn
	for i := range old {
		s := k.socket(fakeNoise, 100)
		s.peerSends(1)
		old[i] = &conn{fd: s.fd, loop: l}
		l.register(old[i])
	}
	if n := k.wait(l.ep, events[:]); n != len(old) {
		t.Fatalf("%d events", n)
	}
	var fresh [3]*conn
	for i, c := range old {
		l.sessions.Add(1)
		c.Close()
		fresh[i] = &conn{fd: k.socket(fakeNoise, 100).fd, loop: l}
		l.register(fresh[i])
	}
	if len(l.conns) != len(old) {
		t.Fatalf("%d slots for %d connections", len(l.conns), len(fresh))
	}
	copy(l.events[:], events[:])
	l.dispatch(len(events))
	for i := range old {
		if ev := fresh[i].pending.Load() | old[i].pending.Load(); ev != 0 {
			t.Errorf("%d: the event %#x reached somebody", i, ev)
		}
	}
}

func TestGenerationsBeginAgainWithoutMeetingTheMarkOfListeners(t *testing.T) {
	k, l := fakeLoop(t)
	l.gen = math.MaxInt32 - 1
	for _, want := range []int32{math.MaxInt32, 1, 2} {
		c := &conn{fd: k.socket(fakeNoise, 100).fd, loop: l}
		l.register(c)
		if c.gen != want {
			t.Errorf("generation %d, want %d", c.gen, want)
		}
	}
}

func TestAFailedRegistrationLeavesNothing(t *testing.T) {
	k, l := fakeLoop(t)
	c := &conn{fd: k.socket(fakeNoise, 100).fd, loop: l}
	k.fault = func() fault { return exhausted }
	if e := l.register(c); e != unix.ENOSPC {
		t.Errorf("error is %v", e)
	}
	if c.flags != 0 || len(l.free) != len(l.conns) || l.conns[0] != nil {
		t.Errorf("flags %b, %d of %d slots free", c.flags, len(l.free), len(l.conns))
	}
}

func TestTheSlotsOfAPeakAreGivenBack(t *testing.T) {
	k, l := fakeLoop(t)
	var conns []*conn
	for range 3000 {
		c := &conn{fd: k.socket(fakeNoise, 100).fd, loop: l}
		l.register(c)
		conns = append(conns, c)
	}
	for _, c := range conns {
		l.unregister(c, true)
	}
	if len(l.conns)+cap(l.free) != 0 {
		t.Errorf("%d slots, %d free ones are kept", len(l.conns), cap(l.free))
	}
}

// TestABackendIsMovedToTheLoopOfItsClient: a spare waited on another loop, and something may have happened there, or happens
// just then.
func TestABackendIsMovedToTheLoopOfItsClient(t *testing.T) {
	for name, test := range map[string]func(*session){
		"quiet":    func(*session) {},
		"greeting": func(s *session) { io.WriteString(s.server, "greeting") },
		"much":     func(s *session) { s.server.Write(bytes.Repeat([]byte("greeting"), 40_000)) },
		"FIN":      func(s *session) { io.WriteString(s.server, "greeting"); s.server.CloseWrite() },
		"reset":    func(s *session) { s.server.SetLinger(0); s.server.Close() },
	} {
		for _, when := range []string{"before", "meanwhile"} {
			t.Run(name+" "+when, func(t *testing.T) {
				r := newRig(t, 2)
				for range 12 {
					s := r.connect()
					// The backend's connection as a spare of the other loop.
					s.far.Close()
					s.server.Close()
					s.far, s.server = r.dial(nil)
					other := r.engine.loops[0]
					if s.near.loop == other {
						other = r.engine.loops[1]
					}
					s.far.loop.sessions.Add(-1)
					other.sessions.Add(1)
					s.far.loop = other
					s.far.Watch(func() {})
					s.link = r.engine.Relay(s.near, s.far, s).(*relay)
					var acts sync.WaitGroup
					if when == "before" {
						test(s)
					} else {
						acts.Go(func() { test(s) })
					}
					s.link.Start()
					if s.far.loop != s.near.loop {
						t.Error("it was not moved")
					}
					switch name {
					case "reset":
						s.client.SetReadDeadline(time.Now().Add(patience))
						if _, err := s.client.Read(make([]byte, 1)); !isReset(err) {
							t.Errorf("the client got %v", err)
						}
					case "quiet":
						passes(t, s.client, s.server, "hello")
						passes(t, s.server, s.client, "hello")
					default:
						gets(t, s.client, "greeting")
						passes(t, s.client, s.server, "hello")
					}
					if name == "much" {
						io.CopyN(io.Discard, s.client, 8*39_999)
					}
					acts.Wait()
					s.close(t)
				}
			})
		}
	}
}
