package proxy

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/internal/reactor"
)

// An idleLink is a relay that moves nothing by itself.
type idleLink struct {
	up, down atomic.Uint64
	busy     atomic.Bool // bytes have just moved
	end      func()      // called by Kill
}

func (l *idleLink) Start()                   {}
func (l *idleLink) Bytes() (up, down uint64) { return l.up.Load(), l.down.Load() }
func (l *idleLink) HalfClosed() bool         { return false }
func (l *idleLink) Quiet() time.Duration {
	if l.busy.Load() {
		return 0
	}
	return time.Hour
}
func (l *idleLink) Kill() {
	if l.end != nil {
		l.end()
	}
}

// newIdle is a server that has sessions without sockets, spread over backends.
func newIdle(t testing.TB, sessions, backends int) (s *Server, open []*session) {
	t.Helper()
	bg, err := backend.NewGroup(backend.GroupConfig{Name: "g", Balance: backend.RoundRobin, Backends: someBackends(t, "", backends)})
	if err != nil {
		t.Fatal(err)
	}
	e, err := NewEngine("portable")
	if err != nil {
		t.Fatal(err)
	}
	s = &Server{Name: "idle", Engine: e, Settings: Settings{Group: &Group{Backends: bg}}}
	if err := s.init(); err != nil {
		t.Fatal(err)
	}
	a := &acceptor{server: s}
	a.open.Store(true)
	for range sessions {
		open = append(open, openIdle(t, a))
	}
	return s, open
}

func someBackends(t testing.TB, prefix string, n int) (all []*backend.Backend) {
	t.Helper()
	for i := range n {
		b, err := backend.New(backend.Config{Name: fmt.Sprintf("%sb%d", prefix, i), Address: "127.0.0.1:1", Weight: 1})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

func openIdle(t testing.TB, a *acceptor) *session {
	t.Helper()
	s := a.server
	if !a.Reserve() {
		t.Fatal("not reserved")
	}
	now := s.current.Load()
	lease, err := now.Group.Backends.Lease(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	x := &session{acceptor: a, route: now.byDefault, counted: true, lease: lease}
	s.open.add(x)
	link := new(idleLink)
	link.end = func() { endIdle(x) }
	account := s.accounts.of(now.Group.Backends, lease.Backend(), &s.open)
	x.locked(func() { x.link, x.account = link, account })
	return x
}

func endIdle(x *session) {
	e := x.event(SessionClosed)
	e.Reason = Reason(x.killed.Load())
	e.Up, e.Down = x.link.Bytes()
	x.close(e)
}

func total(all []Traffic) (active int, up, down uint64) {
	for _, t := range all {
		active, up, down = active+t.Active, up+t.Up, down+t.Down
	}
	return active, up, down
}

// Sessions move bytes, end and begin while the totals are read: they are never less than before, and exact in the end.
func TestTrafficIsExactAndNeverDecreases(t *testing.T) {
	const workers, each, moves = 4, 100, 20
	s, _ := newIdle(t, 0, 3)
	var workersDone sync.WaitGroup
	for range workers {
		workersDone.Go(func() {
			a := &acceptor{server: s}
			a.open.Store(true)
			for range each {
				x := openIdle(t, a)
				for range moves {
					x.link.(*idleLink).up.Add(1)
					x.link.(*idleLink).down.Add(2)
				}
				endIdle(x)
			}
		})
	}
	ended := make(chan struct{})
	go func() { workersDone.Wait(); close(ended) }()
	before := make(map[string]Traffic)
	for running := true; running; {
		select {
		case <-ended:
			running = false
		default:
		}
		for _, now := range s.Traffic() {
			if b := before[now.Backend]; now.Up < b.Up || now.Down < b.Down {
				t.Fatalf("%s went from %d and %d to %d and %d", now.Backend, b.Up, b.Down, now.Up, now.Down)
			}
			before[now.Backend] = now
		}
	}
	if active, up, down := total(s.Traffic()); active != 0 || up != workers*each*moves || down != 2*up {
		t.Errorf("%d active, %d up, %d down", active, up, down)
	}
}

// Backends come and go with every reload. What is kept of them is bounded, and no byte is lost from the totals, not even those of a session that
// outlives its backend's account.
func TestTrafficOfBackendsThatLeft(t *testing.T) {
	s, _ := newIdle(t, 0, 3)
	g := s.Group.Backends
	a := &acceptor{server: s}
	a.open.Store(true)
	var want, before uint64
	long := openIdle(t, a)
	for i := range 200 {
		members := someBackends(t, fmt.Sprintf("r%d-", i), 3)
		if err := g.Update(backend.GroupConfig{Name: "g", Balance: backend.RoundRobin, Backends: members}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			x := openIdle(t, a)
			n := uint64(rand.IntN(1000))
			x.link.(*idleLink).up.Add(n)
			want += n
			endIdle(x)
		}
		_, up, _ := total(s.Traffic())
		if up < before || up != want {
			t.Fatalf("reload %d: %d up before, %d now, want %d", i, before, up, want)
		}
		before = up
	}
	rows := s.Traffic()
	if len(rows) > 2*(2*3+16)+1 {
		t.Errorf("%d rows after 200 reloads", len(rows))
	}
	long.link.(*idleLink).up.Add(7)
	endIdle(long)
	if _, up, _ := total(s.Traffic()); up != want+7 {
		t.Errorf("%d up, want %d", up, want+7)
	}
}

// A session may end on an account that was closed under it: its backend left, gave its slot back early, and came again.
func TestClosedAccountBooksToTheGroup(t *testing.T) {
	s, open := newIdle(t, 1, 1)
	x := open[0]
	x.link.(*idleLink).up.Store(5)
	if err := s.Group.Backends.Update(backend.GroupConfig{Name: "g", Balance: backend.RoundRobin}); err != nil {
		t.Fatal(err)
	}
	x.lease.Release()
	s.accounts.mu.Lock()
	s.accounts.fold(&s.open)
	s.accounts.mu.Unlock()
	endIdle(x)
	rows := s.Traffic()
	if len(rows) != 1 || rows[0] != (Traffic{Group: "g", Up: 5}) {
		t.Errorf("traffic is %+v", rows)
	}
}

// Where backends are dialed is kept for the members of a group, not for all that ever were.
func TestTargetsAreBounded(t *testing.T) {
	bg, err := backend.NewGroup(backend.GroupConfig{Name: "g"})
	if err != nil {
		t.Fatal(err)
	}
	g := &Group{Backends: bg}
	for i := range 200 {
		members := someBackends(t, fmt.Sprintf("r%d-", i), 3)
		if err := bg.Update(backend.GroupConfig{Name: "g", Backends: members}); err != nil {
			t.Fatal(err)
		}
		for _, b := range members {
			first, err := g.target(b)
			if err != nil {
				t.Fatal(err)
			}
			if again, _ := g.target(b); again != first {
				t.Error("a member's target was forgotten")
			}
		}
	}
	n := 0
	g.targets.Range(func(any, any) bool { n++; return true })
	if n > 2*(3+1)+16 || int64(n) != g.known.Load() {
		t.Errorf("%d targets are kept, %d counted", n, g.known.Load())
	}
}

// What was shed is gone when Shed returns, and who was spared is there.
func TestShedManySessions(t *testing.T) {
	s, open := newIdle(t, 500, 2)
	b := open[0].lease.Backend()
	s.Shed(t.Context(), 0, func(i SessionInfo) bool { return i.On(b) }, Rebalanced)
	if n := s.Active(); n != 250 || b.Active() != 0 {
		t.Errorf("%d are left, %d of them on the backend", n, b.Active())
	}
	if n := s.KillAll(DrainTimeout); n != 250 || s.Active() != 0 {
		t.Errorf("%d killed, %d left", n, s.Active())
	}
}

// The quiet sessions go one after the other, the busy one when the window is over.
func TestShedSpreadsAndLeavesBusySessionsForLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const window = 9 * time.Second
		s, open := newIdle(t, 9, 1)
		busy := open[4]
		busy.link.(*idleLink).busy.Store(true)
		began := time.Now()
		var ends []time.Duration
		var last SessionID
		s.Observer = ObserverFunc(func(e Event) {
			ends, last = append(ends, time.Since(began)), e.ID
			if e.Reason != DrainTimeout {
				t.Errorf("session %d ended: %v", e.ID, e.Reason)
			}
		})
		s.Shed(t.Context(), window, func(SessionInfo) bool { return true }, DrainTimeout)
		if len(ends) != 9 || last != busy.id || ends[8] != window {
			t.Fatalf("%v; the last was %d, the busy one is %d", ends, last, busy.id)
		}
		for i, at := range ends[:8] {
			if want := window / 9 * time.Duration(i+1); at < want-time.Second || at > want+time.Second {
				t.Errorf("session %d of 9 ended %v into %v, want %v", i+1, at, window, want)
			}
		}
	})
}

// BenchmarkShedLook is one look of Shed at 9,000 sessions; there are some twenty a second at most, and fewer when they are dear.
func BenchmarkShedLook(b *testing.B) {
	s, _ := newIdle(b, 9000, 10)
	b.ReportAllocs()
	var left []candidate
	for b.Loop() {
		left, _ = s.candidates(left[:0], func(i SessionInfo) bool { return !i.HalfClosed })
	}
	if len(left) != 9000 {
		b.Errorf("%d matched", len(left))
	}
}

func BenchmarkTraffic(b *testing.B) {
	for _, n := range []struct{ sessions, backends int }{{0, 10}, {9000, 10}, {0, 10000}} {
		b.Run(fmt.Sprintf("sessions=%d/backends=%d", n.sessions, n.backends), func(b *testing.B) {
			s, _ := newIdle(b, n.sessions, n.backends)
			a := &acceptor{server: s}
			a.open.Store(true)
			for range n.backends {
				endIdle(openIdle(b, a))
			}
			b.ReportAllocs()
			for b.Loop() {
				s.Traffic()
			}
		})
	}
}

// BenchmarkEvent is what telling of a session costs; it must not allocate.
func BenchmarkEvent(b *testing.B) {
	s, open := newIdle(b, 1, 1)
	var last Kind
	s.Observer = ObserverFunc(func(e Event) { last = e.Kind })
	b.ReportAllocs()
	for b.Loop() {
		s.observe(open[0].event(SessionOpened))
	}
	_ = last
}

func TestEventsDoNotAllocate(t *testing.T) {
	s, open := newIdle(t, 1, 1)
	n := 0
	s.Observer = ObserverFunc(func(Event) { n++ })
	open[0].remote = compact(mustAddr(t, "[2001:db8::1]:1"))
	if got := testing.AllocsPerRun(100, func() { s.observe(open[0].event(SessionClosed)) }); got != 0 {
		t.Errorf("%v allocations an event", got)
	}
}

func mustAddr(t testing.TB, s string) Addr {
	t.Helper()
	a, err := reactor.ParseAddr(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// An endpoint gives back the address it was made of.
func TestEndpointKeepsTheAddress(t *testing.T) {
	for _, s := range []string{"127.0.0.1:80", "[::1]:65535", "[2001:db8::7]:1", "[fe80::1%3]:53", "0.0.0.0:0"} {
		if a := mustAddr(t, s); compact(a).addr() != a {
			t.Errorf("%v came back as %v", a, compact(a).addr())
		}
	}
	if a := compact(mustAddr(t, "[::ffff:192.0.2.1]:1")).addr(); a.String() != "192.0.2.1:1" || !a.IP.Addr().Is4() {
		t.Errorf("a mapped address came back as %v", a)
	}
	if compact(Addr{}).addr().IsValid() || !compact(reactor.Unix("/x")).addr().IsUnix() {
		t.Error("no address, or a unix socket, came back as something else")
	}
}
