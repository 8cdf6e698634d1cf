package pool

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A fakeConn is a connection to a fakeBackend.
type fakeConn struct {
	number int
	born   time.Time
	dead   atomic.Bool
	closed atomic.Int32
	user   atomic.Int32 // who has it, for the stress test
	looks  atomic.Int32 // if not 0: it dies after so many looks
	uses   int          // belongs to who has the connection, and Alive reads it
	b      *fakeBackend
}

func (c *fakeConn) Alive() bool {
	if c.looks.Load() > 0 && c.looks.Add(-1) == 0 {
		defer c.dead.Store(true)
	}
	return !c.dead.Load() && c.closed.Load() == 0 && c.uses >= 0
}

func (c *fakeConn) Close() {
	if c.closed.Add(1) > 1 {
		c.b.closedTwice.Add(1)
	}
	c.b.open.Add(-1)
}

// A fakeBackend makes connections, and counts slots as a backend does: one a lease, one a dial that the pool begins.
type fakeBackend struct {
	limit       int64 // 0: none
	slots       atomic.Int64
	reserved    atomic.Int64
	open        atomic.Int64 // connections
	peak        atomic.Int64
	closedTwice atomic.Int64

	mu    sync.Mutex
	all   []*fakeConn
	dials []time.Time
	err   error
	delay time.Duration
}

var errRefused = errors.New("refused")

func (b *fakeBackend) dial(ctx context.Context) (*fakeConn, error) {
	b.mu.Lock()
	b.dials = append(b.dials, time.Now())
	delay, err := b.delay, b.err
	b.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c := &fakeConn{number: len(b.all), born: time.Now(), b: b}
	b.all = append(b.all, c)
	for n := b.open.Add(1); ; {
		peak := b.peak.Load()
		if n <= peak || b.peak.CompareAndSwap(peak, n) {
			return c, nil
		}
	}
}

func (b *fakeBackend) fail(err error) { b.mu.Lock(); defer b.mu.Unlock(); b.err = err }

func (b *fakeBackend) conns() []*fakeConn {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.all)
}

func (b *fakeBackend) dialed() int { b.mu.Lock(); defer b.mu.Unlock(); return len(b.dials) }

// take takes a slot unless extra and those that are taken reach the limit.
func (b *fakeBackend) take(extra int64) bool {
	for {
		n := b.slots.Load()
		if b.limit > 0 && n+extra >= b.limit {
			return false
		}
		if b.slots.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (b *fakeBackend) config(c Config[*fakeConn]) Config[*fakeConn] {
	c.Dial = b.dial
	c.Reserve = func(idle int) bool {
		if !b.take(int64(idle)) {
			return false
		}
		b.reserved.Add(1)
		return true
	}
	c.Unreserve = func() { b.reserved.Add(-1); b.slots.Add(-1) }
	return c
}

// pooled runs a pool inside a bubble, and checks afterwards that everything was given back.
func pooled(t *testing.T, b *fakeBackend, c Config[*fakeConn], test func(t *testing.T, p *Pool[*fakeConn])) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := New(b.config(c))
		ctx, stop := context.WithCancel(t.Context())
		ran := make(chan error)
		go func() { ran <- p.Run(ctx) }()
		synctest.Wait()
		test(t, p)
		stop()
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
		if s := p.Stats(); s.Spares != 0 || s.Dialing != 0 || b.reserved.Load() != 0 || b.closedTwice.Load() != 0 || len(p.byConn) != 0 {
			t.Errorf("left over: %+v, %d slots reserved, %d closed twice", s, b.reserved.Load(), b.closedTwice.Load())
		}
	})
}

// later lets the time pass, and everything that happens meanwhile.
func later(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func mustGet(t *testing.T, p *Pool[*fakeConn]) Lent[*fakeConn] {
	t.Helper()
	l, ok := p.TryGet()
	if !ok {
		t.Fatalf("no spare: %+v", p.Stats())
	}
	return l
}

func TestWarmSparesAreDialedAtTheRefillRate(t *testing.T) {
	b := &fakeBackend{}
	pooled(t, b, Config[*fakeConn]{Warm: 20, RefillRate: 10}, func(t *testing.T, p *Pool[*fakeConn]) {
		later(1010 * time.Millisecond)
		if n := p.Stats().Spares; n != 11 {
			t.Errorf("%d spares after a second at ten a second", n)
		}
		later(10 * time.Second)
		if n := p.Stats().Spares; n != 20 || b.dialed() != 20 {
			t.Errorf("%d spares, %d dials in the end", n, b.dialed())
		}
		mustGet(t, p).Discard()
		synctest.Wait()
		if n := p.Stats().Spares; n != 20 {
			t.Errorf("%d spares after one was taken", n)
		}
	})
}

func TestIdlePoolDoesNothing(t *testing.T) {
	b := &fakeBackend{}
	pooled(t, b, Config[*fakeConn]{Warm: 4}, func(t *testing.T, p *Pool[*fakeConn]) {
		later(24 * time.Hour)
		if b.dialed() != 4 {
			t.Errorf("%d dials in a day", b.dialed())
		}
	})
}

func TestNewestSpareIsTakenFirst(t *testing.T) {
	b := &fakeBackend{}
	pooled(t, b, Config[*fakeConn]{Warm: 3, RefillRate: 1}, func(t *testing.T, p *Pool[*fakeConn]) {
		later(5 * time.Second)
		for _, want := range []int{2, 1, 0} {
			if l := mustGet(t, p); l.Conn.number != want {
				t.Errorf("connection %d, want %d", l.Conn.number, want)
			}
		}
	})
}

func TestFailedDialsBackOff(t *testing.T) {
	b := &fakeBackend{err: errRefused}
	c := Config[*fakeConn]{Warm: 4, BackoffBase: time.Second, BackoffMax: 8 * time.Second}
	pooled(t, b, c, func(t *testing.T, p *Pool[*fakeConn]) {
		first := b.dialed() // those that began together count once
		var pauses []time.Duration
		last := time.Now()
		for range 6 {
			for n := b.dialed(); b.dialed() == n; {
				later(10 * time.Millisecond)
			}
			pauses = append(pauses, time.Since(last))
			last = time.Now()
		}
		for i, want := range []time.Duration{1, 2, 4, 8, 8, 8} {
			if d := pauses[i] - want*time.Second; d.Abs() > want*time.Second/8 {
				t.Errorf("pause %d: %v, want about %ds", i+1, pauses[i], want)
			}
		}
		if first != 4 || b.dialed() > 4+6*4 {
			t.Errorf("%d dials at first, %d in all", first, b.dialed())
		}
		b.fail(nil)
		later(9 * time.Second)
		if n := p.Stats().Spares; n != 4 {
			t.Fatalf("%d spares once the backend is back", n)
		}
		b.fail(errRefused)
		n := b.dialed()
		mustGet(t, p)
		later(1200 * time.Millisecond)
		if got := b.dialed() - n; got != 2 {
			t.Errorf("%d dials in the first second of new failures, want 2: the success was to forget the old ones", got)
		}
	})
}

func TestSparesAreRenewedBeforeMaxAge(t *testing.T) {
	b := &fakeBackend{}
	c := Config[*fakeConn]{Warm: 5, MaxAge: 10 * time.Second, RefillRate: 50}
	pooled(t, b, c, func(t *testing.T, p *Pool[*fakeConn]) {
		for range 1000 {
			later(100 * time.Millisecond)
			if n := p.Stats().Spares; n > 5 {
				t.Fatalf("%d spares", n)
			}
			if rand.IntN(50) == 0 {
				l := mustGet(t, p)
				if age := time.Since(l.Conn.born); age >= 10*time.Second {
					t.Errorf("a spare of %v was handed out", age)
				}
				l.Discard()
			}
			for _, c := range b.conns() {
				if age := time.Since(c.born); c.Alive() && age > 10*time.Second {
					t.Fatalf("a spare of %v is kept", age)
				}
			}
		}
		if n := b.dialed(); n < 50 || n > 5*100/8+100 {
			t.Errorf("%d dials in 100s", n)
		}
	})
}

func TestMaxAgeHoldsWithoutRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBackend{}
		p := New(b.config(Config[*fakeConn]{MaxAge: time.Second}))
		l, err := p.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.Put()
		time.Sleep(time.Second)
		if _, ok := p.TryGet(); ok || b.open.Load() != 0 {
			t.Errorf("handed out: %v, %d open", ok, b.open.Load())
		}
	})
}

func TestEvictedSpareIsClosedAndReplaced(t *testing.T) {
	b := &fakeBackend{}
	pooled(t, b, Config[*fakeConn]{Warm: 3}, func(t *testing.T, p *Pool[*fakeConn]) {
		dead := b.conns()[1]
		dead.dead.Store(true)
		p.Evict(dead)
		p.Evict(dead)
		synctest.Wait()
		if s := p.Stats(); s.Spares != 3 || b.open.Load() != 3 || dead.closed.Load() != 1 {
			t.Errorf("%+v, %d open", s, b.open.Load())
		}
		l := mustGet(t, p)
		p.Evict(l.Conn) // it is the session's now
		if l.Conn.closed.Load() != 0 {
			t.Error("a connection that was taken is closed by Evict")
		}
	})
}

// An event loop may look at a connection after a session has taken it; a look takes the error of the socket, which is the session's. The race
// detector sees a look beside the session.
func TestConnectionThatWasTakenIsLookedAtByNobodyElse(t *testing.T) {
	b := &fakeBackend{}
	p := New(b.config(Config[*fakeConn]{Warm: 2}))
	ctx, stop := context.WithCancel(t.Context())
	var run, work sync.WaitGroup
	run.Go(func() { p.Run(ctx) })
	for range 2 {
		work.Go(func() {
			for i := range 500 {
				l, err := p.Get(ctx)
				if err != nil {
					t.Error(err)
					return
				}
				l.Conn.uses++
				if i%2 == 0 {
					l.Put()
				} else {
					l.Discard()
				}
			}
		})
	}
	work.Go(func() { // the event loop
		for range 500 {
			all := b.conns()
			for _, c := range all[max(0, len(all)-4):] {
				p.Evict(c)
			}
		}
	})
	work.Wait()
	stop()
	run.Wait()
	if b.open.Load() != 0 {
		t.Errorf("%d are open", b.open.Load())
	}
}

func TestDeadSpareIsNotHandedOut(t *testing.T) {
	b := &fakeBackend{}
	p := New(b.config(Config[*fakeConn]{}))
	var spares []Lent[*fakeConn]
	for range 3 {
		l, err := p.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		spares = append(spares, l)
	}
	for _, l := range spares {
		l.Put()
	}
	spares[2].Conn.dead.Store(true) // and the event loop has not come to Evict yet
	spares[1].Conn.dead.Store(true)
	if l := mustGet(t, p); l.Conn != spares[0].Conn {
		t.Errorf("connection %d", l.Conn.number)
	}
	if _, ok := p.TryGet(); ok || b.open.Load() != 1 {
		t.Errorf("another spare: %v, %d open", ok, b.open.Load())
	}
}

func TestSpareThatDiesBeforeItIsKeptIsEvicted(t *testing.T) {
	b := &fakeBackend{}
	pooled(t, b, Config[*fakeConn]{}, func(t *testing.T, p *Pool[*fakeConn]) {
		l, err := p.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.Conn.dead.Store(true)
		p.Evict(l.Conn)
		if l.Put() {
			t.Error("a dead connection is kept")
		}
		if p.Stats().Spares != 0 || l.Conn.closed.Load() != 1 {
			t.Errorf("%+v, closed %d times", p.Stats(), l.Conn.closed.Load())
		}
	})
}

// The event loop calls Evict just before the connection is a spare: nobody would ever close it.
func TestSpareThatDiesWhileItIsPutIsEvicted(t *testing.T) {
	b := &fakeBackend{}
	p := New(b.config(Config[*fakeConn]{}))
	l, err := p.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.Conn.looks.Store(1)
	l.Put()
	if p.Stats().Spares != 0 || l.Conn.closed.Load() != 1 {
		t.Errorf("%+v, closed %d times", p.Stats(), l.Conn.closed.Load())
	}
}

func TestOldestSpareDiesFirst(t *testing.T) {
	b := &fakeBackend{}
	p := New(b.config(Config[*fakeConn]{MaxAge: time.Hour}))
	for range 100 {
		c, err := b.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p.Adopt(c).Put()
	}
	for s := p.oldest; s.newer != nil; s = s.newer {
		if s.newer.expires.Before(s.expires) {
			t.Fatal("a newer spare dies sooner: Run would not see it")
		}
	}
	p.Close()
}

func TestPurgeReplacesSparesAndDropsDials(t *testing.T) {
	b := &fakeBackend{}
	pooled(t, b, Config[*fakeConn]{Warm: 2}, func(t *testing.T, p *Pool[*fakeConn]) {
		old := b.conns()
		b.mu.Lock()
		b.delay = time.Minute
		b.mu.Unlock()
		mustGet(t, p).Discard()
		synctest.Wait()
		if s := p.Stats(); s.Spares != 1 || s.Dialing != 1 {
			t.Fatalf("%+v", s)
		}
		b.mu.Lock()
		b.delay = 0
		b.mu.Unlock()
		p.Purge()
		later(time.Millisecond)
		if s := p.Stats(); s.Spares != 2 || s.Dialing != 0 || b.open.Load() != 2 {
			t.Errorf("%+v, %d open", s, b.open.Load())
		}
		for _, c := range old {
			if c.Alive() {
				t.Errorf("connection %d outlived Purge", c.number)
			}
		}
	})
}

func TestPausedPoolStaysEmpty(t *testing.T) {
	b := &fakeBackend{}
	pooled(t, b, Config[*fakeConn]{Warm: 3}, func(t *testing.T, p *Pool[*fakeConn]) {
		l := mustGet(t, p)
		synctest.Wait()
		n := b.dialed()
		p.Pause()
		p.Pause()
		if p.Stats().Spares != 0 || b.open.Load() != 1 {
			t.Errorf("%+v, %d open at once after Pause", p.Stats(), b.open.Load())
		}
		p.Purge()
		if l.Put() || l.Conn.Alive() {
			t.Error("a paused pool keeps what is Put")
		}
		later(time.Hour)
		if b.dialed() != n {
			t.Errorf("%d dials while paused", b.dialed()-n)
		}
		p.Resume()
		p.Resume()
		synctest.Wait()
		if p.Stats().Spares != 3 {
			t.Errorf("%+v after Resume", p.Stats())
		}
	})
}

func TestResumeForgetsBackOff(t *testing.T) {
	b := &fakeBackend{err: errRefused}
	pooled(t, b, Config[*fakeConn]{Warm: 1, BackoffBase: time.Hour, BackoffMax: time.Hour}, func(t *testing.T, p *Pool[*fakeConn]) {
		p.Pause()
		b.fail(nil)
		p.Resume()
		synctest.Wait()
		if p.Stats().Spares != 1 {
			t.Errorf("%+v", p.Stats())
		}
	})
}

func TestPutConnectionIsHandedOutAgain(t *testing.T) {
	b := &fakeBackend{}
	pooled(t, b, Config[*fakeConn]{}, func(t *testing.T, p *Pool[*fakeConn]) {
		l, err := p.Get(t.Context())
		if err != nil || l.Reused {
			t.Fatal(l, err)
		}
		if !l.Put() {
			t.Fatal("not kept")
		}
		again, err := p.Get(t.Context())
		if err != nil || again.Conn != l.Conn || !again.Reused {
			t.Errorf("%+v, %v", again, err)
		}
		if s := p.Stats(); s.Misses != 1 || s.Reused != 1 || s.Hits != 0 {
			t.Errorf("%+v", s)
		}
		again.Discard()
		own := &fakeConn{b: b}
		b.open.Add(1)
		if !p.Adopt(own).Put() {
			t.Error("an adopted connection is not kept")
		}
		if l := mustGet(t, p); l.Conn != own || !l.Reused {
			t.Errorf("%+v", l)
		}
	})
}

func TestSecondPutOfALoanDoesNothing(t *testing.T) {
	b := &fakeBackend{}
	p := New(b.config(Config[*fakeConn]{}))
	first, err := p.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !first.Put() || first.Put() {
		t.Error("the first Put is not the one that counts")
	}
	first.Discard()
	if p.Stats().Spares != 1 || !first.Conn.Alive() {
		t.Fatalf("%+v", p.Stats())
	}
	second := mustGet(t, p)
	// Somebody else has it now: the first loan is over for good.
	if first.Put() {
		t.Error("a connection that another session has is Put")
	}
	first.Discard()
	if !second.Conn.Alive() || p.Stats().Spares != 0 {
		t.Error("a connection that another session has is closed")
	}
	second.Discard()
	second.Discard()
	if second.Put() || p.Stats().Spares != 0 || b.open.Load() != 0 || b.closedTwice.Load() != 0 {
		t.Errorf("%+v, %d open, %d closed twice", p.Stats(), b.open.Load(), b.closedTwice.Load())
	}
}

func TestClosedPoolHandsOutNothing(t *testing.T) {
	b := &fakeBackend{}
	p := New(b.config(Config[*fakeConn]{Warm: 2}))
	l, err := p.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other, err := p.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other.Put()
	p.Close()
	p.Close()
	if other.Conn.Alive() {
		t.Error("a spare outlived Close")
	}
	if l.Put() || l.Conn.closed.Load() != 1 {
		t.Error("Put after Close keeps the connection")
	}
	if _, err := p.Get(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Get after Close: %v", err)
	}
	if _, ok := p.TryGet(); ok {
		t.Error("TryGet after Close")
	}
	p.Evict(l.Conn)
	p.Purge()
	p.Pause()
	p.Resume()
	p.SlotFreed()
	if err := p.Run(t.Context()); err != nil {
		t.Errorf("Run after Close: %v", err)
	}
	if b.dialed() != 2 || b.open.Load() != 0 || b.closedTwice.Load() != 0 {
		t.Errorf("%d dials, %d open", b.dialed(), b.open.Load())
	}
}

func TestNoConnectionIsNeverHandedOut(t *testing.T) {
	p := New(Config[*fakeConn]{Dial: func(context.Context) (*fakeConn, error) { return nil, nil }})
	if l, err := p.Get(t.Context()); err == nil {
		t.Errorf("%+v", l)
	}
	var none Lent[*fakeConn]
	none.Discard()
	if none.Put() || p.Adopt(nil).Put() || p.Stats().Spares != 0 {
		t.Error("nothing is kept as a spare")
	}
}

func TestGetFailsWithTheErrorOfDial(t *testing.T) {
	b := &fakeBackend{err: errRefused}
	if _, err := New(b.config(Config[*fakeConn]{})).Get(t.Context()); !errors.Is(err, errRefused) {
		t.Error(err)
	}
}

func TestSecondRunIsRefused(t *testing.T) {
	pooled(t, &fakeBackend{}, Config[*fakeConn]{}, func(t *testing.T, p *Pool[*fakeConn]) {
		if err := p.Run(t.Context()); err == nil {
			t.Error("a second Run runs")
		}
	})
}

func TestRunEndsItsDials(t *testing.T) {
	b := &fakeBackend{delay: time.Hour}
	pooled(t, b, Config[*fakeConn]{Warm: 3}, func(t *testing.T, p *Pool[*fakeConn]) {
		if s := p.Stats(); s.Dialing != 3 {
			t.Errorf("%+v", s)
		}
		p.Close() // pooled checks that nothing is left
	})
}

func TestSparesLeaveRoomForSessions(t *testing.T) {
	b := &fakeBackend{limit: 4}
	pooled(t, b, Config[*fakeConn]{Warm: 3}, func(t *testing.T, p *Pool[*fakeConn]) {
		var sessions []Lent[*fakeConn]
		for i := range 4 {
			if !b.take(0) {
				t.Fatalf("session %d: no slot", i)
			}
			l, err := p.Get(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			sessions = append(sessions, l)
			synctest.Wait()
			if want := min(3, 3-i); p.Stats().Spares != want {
				t.Errorf("%d sessions: %d spares, want %d", i+1, p.Stats().Spares, want)
			}
		}
		if b.take(0) {
			t.Error("a fifth session has a slot")
		}
		for i, l := range sessions {
			l.Discard()
			b.slots.Add(-1)
			p.SlotFreed()
			synctest.Wait()
			if want := min(3, i+1); p.Stats().Spares != want {
				t.Errorf("%d sessions ended: %d spares, want %d", i+1, p.Stats().Spares, want)
			}
		}
		if b.peak.Load() != 4 {
			t.Errorf("%d connections at once, want 4", b.peak.Load())
		}
	})
}

// Sessions come and go, put back and discard, spares die, the pool is purged and paused: no connection has two users, the
// cap holds at every moment, and everything is given back.
func TestConcurrentUse(t *testing.T) {
	const limit = 12
	b := &fakeBackend{limit: limit}
	p := New(b.config(Config[*fakeConn]{Warm: 5, MaxAge: 5 * time.Millisecond, BackoffBase: time.Millisecond, BackoffMax: time.Millisecond}))
	ctx, stop := context.WithCancel(t.Context())
	var run, work sync.WaitGroup
	run.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	queue := NewQueue(0, 0)
	lease := func() bool { return b.take(0) }
	var served atomic.Int64
	for worker := range 16 {
		work.Go(func() {
			for i := range 500 {
				if queue.Len() > 0 || !lease() {
					// A dial of the pool that ends frees a slot, too; its Unreserve would wake in the proxy.
					wait, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
					err := queue.Wait(wait, lease)
					cancel()
					if err != nil {
						continue
					}
				}
				l, err := p.Get(ctx)
				if err == nil {
					if !l.Conn.user.CompareAndSwap(0, int32(worker)+1) {
						t.Errorf("a connection has two users")
					}
					served.Add(1)
					switch i % 5 {
					case 0:
						l.Conn.dead.Store(true)
					case 1:
						p.Evict(l.Conn)
					}
					l.Conn.user.Store(0)
					if i%3 == 0 {
						l.Discard()
					} else {
						l.Put()
					}
					l.Put()
				} else if !errors.Is(err, errRefused) {
					t.Error(err)
				}
				b.slots.Add(-1)
				p.SlotFreed()
				queue.Wake()
			}
		})
	}
	work.Go(func() { // the backend's moods
		for i := range 300 {
			switch i % 6 {
			case 0:
				p.Purge()
			case 1:
				p.Pause()
			case 2:
				p.Resume()
			case 3:
				b.fail(errRefused)
			case 4:
				b.fail(nil)
			case 5:
				if all := b.conns(); len(all) > 0 {
					c := all[len(all)-1]
					c.dead.Store(true)
					p.Evict(c)
				}
			}
			p.Stats()
		}
	})
	work.Wait()
	stop()
	run.Wait()
	if served.Load() == 0 || b.peak.Load() > limit {
		t.Errorf("%d served, %d connections at once", served.Load(), b.peak.Load())
	}
	if b.open.Load() != 0 || b.slots.Load() != 0 || b.reserved.Load() != 0 || b.closedTwice.Load() != 0 {
		t.Errorf("left over: %d open, %d slots, %d reserved, %d closed twice", b.open.Load(), b.slots.Load(), b.reserved.Load(), b.closedTwice.Load())
	}
}

func BenchmarkTryGetPut(b *testing.B) {
	back := &fakeBackend{}
	p := New(back.config(Config[*fakeConn]{MaxAge: time.Hour}))
	l, err := p.Get(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	l.Put()
	b.ReportAllocs()
	for b.Loop() {
		l, ok := p.TryGet()
		if !ok {
			b.Fatal("no spare")
		}
		l.Put()
	}
}

func BenchmarkTryGetMiss(b *testing.B) {
	p := New(Config[*fakeConn]{})
	b.ReportAllocs()
	for b.Loop() {
		p.TryGet()
	}
}

func TestHotPathAllocatesNothing(t *testing.T) {
	b := &fakeBackend{}
	p := New(b.config(Config[*fakeConn]{MaxAge: time.Hour}))
	l, err := p.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.Put()
	if n := testing.AllocsPerRun(1000, func() {
		l, _ := p.TryGet()
		l.Put()
	}); n != 0 {
		t.Errorf("%v allocations for TryGet and Put", n)
	}
	l = mustGet(t, p)
	if n := testing.AllocsPerRun(1000, func() { p.TryGet() }); n != 0 {
		t.Errorf("%v allocations for a miss", n)
	}
	l.Discard()
}
