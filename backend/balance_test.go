package backend

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// lease takes a slot for a random client, and fails the test if it does not get one.
func lease(tb testing.TB, g *Group, tried ...*Backend) *Lease {
	tb.Helper()
	l, err := g.Lease(rand.Uint64(), tried)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// shares counts whom n sessions get, one after the other.
func shares(tb testing.TB, g *Group, n int, tried ...*Backend) map[string]int {
	tb.Helper()
	got := make(map[string]int)
	for range n {
		l := lease(tb, g, tried...)
		got[l.Backend().Name()]++
		l.Release()
	}
	return got
}

// named makes a backend of weight 1.
func named(tb testing.TB, name string) *Backend {
	tb.Helper()
	return newTestBackend(tb, Config{Name: name, Address: "10.0.0.1:80", Weight: 1})
}

func wantOnly(tb testing.TB, got map[string]int, names ...string) {
	tb.Helper()
	allowed := make(map[string]bool)
	for _, name := range names {
		allowed[name] = true
	}
	for name := range got {
		if !allowed[name] {
			tb.Errorf("sessions went to %v, want only %v", got, names)
			return
		}
	}
}

func wantError(tb testing.TB, g *Group, want error, tried ...*Backend) {
	tb.Helper()
	if l, err := g.Lease(1, tried); !errors.Is(err, want) {
		tb.Fatalf("Lease = %v, %v; want %v", l, err, want)
	}
}

// conformance is what holds for every balance.
var conformance = map[string]func(*testing.T, Balance){
	"EmptyGroupHasNone": func(t *testing.T, balance Balance) {
		g := newTestGroup(t, GroupConfig{Balance: balance})
		wantError(t, g, ErrNone)
		wantError(t, g, ErrNone, named(t, "a"))
	},

	"OneBackendGetsAll": func(t *testing.T, balance Balance) {
		g := newTestGroup(t, GroupConfig{Balance: balance}, named(t, "a"))
		wantOnly(t, shares(t, g, 20), "a")
	},

	"WeightZeroGetsNothing": func(t *testing.T, balance Balance) {
		zero := newTestBackend(t, Config{Name: "zero", Address: "z:1"})
		g := newTestGroup(t, GroupConfig{Balance: balance}, zero, named(t, "a"), named(t, "b"))
		wantOnly(t, shares(t, g, 200), "a", "b")
		for _, b := range g.Backends() {
			if err := b.SetWeight(0); err != nil {
				t.Fatal(err)
			}
		}
		wantError(t, g, ErrNone)
		if err := zero.SetWeight(256); err != nil {
			t.Fatal(err)
		}
		wantOnly(t, shares(t, g, 20), "zero")
	},

	"DownDrainAndMaintGetNothing": func(t *testing.T, balance Balance) {
		a, b := named(t, "a"), named(t, "b")
		g := newTestGroup(t, GroupConfig{Balance: balance}, a, b)
		a.SetUp(false)
		wantOnly(t, shares(t, g, 50), "b")
		a.SetUp(true)
		for _, s := range []State{Drain, Maint} {
			b.SetState(s)
			wantOnly(t, shares(t, g, 50), "a")
		}
		a.SetState(Drain)
		wantError(t, g, ErrNone)
		b.SetState(Ready)
		wantOnly(t, shares(t, g, 50), "b")
	},

	"LimitIsKept": func(t *testing.T, balance Balance) {
		var backends []*Backend
		for i := range 5 {
			backends = append(backends, newTestBackend(t, Config{Address: address(i), Weight: 1 + i, MaxConnections: 1 + i}))
		}
		g := newTestGroup(t, GroupConfig{Balance: balance}, backends...)
		for range 1 + 2 + 3 + 4 + 5 {
			lease(t, g)
		}
		for _, b := range backends {
			if b.Active() != b.MaxConnections() {
				t.Errorf("%v has %d sessions, want %d", b, b.Active(), b.MaxConnections())
			}
		}
		wantError(t, g, ErrFull)
	},

	"ReleaseGivesBackOnce": func(t *testing.T, balance Balance) {
		a := newTestBackend(t, Config{Address: "a:1", Weight: 1, MaxConnections: 2})
		g := newTestGroup(t, GroupConfig{Balance: balance}, a)
		l := lease(t, g)
		lease(t, g)
		wantError(t, g, ErrFull)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(l.Release)
		}
		wg.Wait()
		if a.Active() != 1 {
			t.Fatalf("%d sessions after one of two was released ten times, want 1", a.Active())
		}
		lease(t, g)
		wantError(t, g, ErrFull)
		if l.Backend() != a {
			t.Error("a released lease forgot its backend")
		}
	},

	"RaisedLimitIsUsedAtOnce": func(t *testing.T, balance Balance) {
		a := newTestBackend(t, Config{Address: "a:1", Weight: 1, MaxConnections: 1})
		g := newTestGroup(t, GroupConfig{Balance: balance}, a)
		lease(t, g)
		wantError(t, g, ErrFull)
		if err := a.SetMaxConnections(2); err != nil {
			t.Fatal(err)
		}
		l := lease(t, g)
		wantError(t, g, ErrFull)
		if err := a.SetMaxConnections(1); err != nil {
			t.Fatal(err)
		}
		l.Release()
		wantError(t, g, ErrFull)
		if err := a.SetMaxConnections(0); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			lease(t, g)
		}
	},

	"TriedIsLeftOutWhileAnotherIsUsable": func(t *testing.T, balance Balance) {
		a, b, c := named(t, "a"), named(t, "b"), named(t, "c")
		g := newTestGroup(t, GroupConfig{Balance: balance}, a, b, c)
		wantOnly(t, shares(t, g, 100, a), "b", "c")
		wantOnly(t, shares(t, g, 100, b, a, b), "c")
		wantOnly(t, shares(t, g, 100, a, b, c), "a", "b", "c")
		b.SetUp(false)
		c.SetUp(false)
		wantOnly(t, shares(t, g, 10, a), "a")
		wantOnly(t, shares(t, g, 10, b, named(t, "stranger")), "a")
	},

	"UntriedButFullMeansWait": func(t *testing.T, balance Balance) {
		a := newTestBackend(t, Config{Name: "a", Address: "a:1", Weight: 1})
		b := newTestBackend(t, Config{Name: "b", Address: "b:1", Weight: 1, MaxConnections: 1})
		g := newTestGroup(t, GroupConfig{Balance: balance}, a, b)
		l := lease(t, g, a)
		wantError(t, g, ErrFull, a)
		l.Release()
		wantOnly(t, shares(t, g, 10, a), "b")
	},

	"LowerTierOnlyWhenNoneAboveIsUsable": func(t *testing.T, balance Balance) {
		tier2 := newTestBackend(t, Config{Name: "tier2", Address: "a:1", Weight: 1, Tier: 2})
		tier7 := newTestBackend(t, Config{Name: "tier7", Address: "b:1", Weight: 256, Tier: 7})
		first := newTestBackend(t, Config{Name: "first", Address: "c:1", Weight: 1, MaxConnections: 1})
		g := newTestGroup(t, GroupConfig{Balance: balance}, tier7, tier2, first)
		wantOnly(t, shares(t, g, 20), "first")
		l := lease(t, g)
		wantError(t, g, ErrFull)
		l.Release()
		first.SetUp(false)
		wantOnly(t, shares(t, g, 20), "tier2")
		tier2.SetState(Maint)
		wantOnly(t, shares(t, g, 20), "tier7")
		first.SetUp(true)
		wantOnly(t, shares(t, g, 20), "first")
	},

	"TriedTierFallsThrough": func(t *testing.T, balance Balance) {
		a := named(t, "a")
		b := newTestBackend(t, Config{Name: "b", Address: "b:1", Weight: 1, Tier: 1})
		g := newTestGroup(t, GroupConfig{Balance: balance}, b, a)
		wantOnly(t, shares(t, g, 10, a), "b")
		wantOnly(t, shares(t, g, 10, a, b), "a")
	},

	"FailsOpenBelowMinUsable": func(t *testing.T, balance Balance) {
		var backends []*Backend
		for _, name := range []string{"a", "b", "c", "d"} {
			backends = append(backends, named(t, name))
		}
		g := newTestGroup(t, GroupConfig{Balance: balance, MinUsable: 50}, backends...)
		backends[0].SetUp(false)
		backends[1].SetUp(false)
		wantOnly(t, shares(t, g, 50), "c", "d")
		if g.FailsOpen() || g.Usable() != 2 {
			t.Errorf("at min_usable: FailsOpen %v, Usable %d", g.FailsOpen(), g.Usable())
		}
		backends[2].SetUp(false)
		if !g.FailsOpen() || g.Usable() != 4 {
			t.Errorf("below min_usable: FailsOpen %v, Usable %d", g.FailsOpen(), g.Usable())
		}
		wantOnly(t, shares(t, g, 10, backends[1], backends[2], backends[3]), "a")
		backends[3].SetUp(false)
		shares(t, g, 10)
		for _, b := range backends[:3] {
			b.SetState(Drain)
		}
		wantOnly(t, shares(t, g, 50), "d")
		backends[3].SetState(Maint)
		wantError(t, g, ErrNone)
	},

	"FreedIsCalled": func(t *testing.T, balance Balance) {
		a := newTestBackend(t, Config{Address: "a:1", Weight: 1, MaxConnections: 1})
		g := newTestGroup(t, GroupConfig{Balance: balance}, a)
		calls := 0
		g.OnFreed(func() {
			if g.Usable() > 0 { // a lock held here would deadlock on the next line
				l := lease(t, g)
				g.OnFreed(nil)
				l.Release()
			}
			calls++
			g.OnFreed(func() { calls++ })
		})
		expect := func(what string, want int) {
			t.Helper()
			if calls != want {
				t.Errorf("after %s: %d calls, want %d", what, calls, want)
			}
		}
		l := lease(t, g)
		expect("Lease", 0)
		l.Release()
		expect("Release", 1)
		l.Release()
		expect("a second Release", 1)
		a.SetUp(false)
		expect("down", 1)
		a.SetUp(true)
		expect("up", 2)
		a.SetUp(true)
		expect("up again", 2)
		if err := a.SetMaxConnections(2); err != nil {
			t.Fatal(err)
		}
		expect("a new limit", 3)
		if err := g.Update(GroupConfig{Name: "test", Balance: balance, Backends: []*Backend{a, named(t, "b")}}); err != nil {
			t.Fatal(err)
		}
		expect("Update", 4)
	},

	"ManyFullBackendsAreSearched": func(t *testing.T, balance Balance) {
		g, leases := fullGroup(t, balance, 300)
		for _, i := range rand.Perm(300) {
			wantError(t, g, ErrFull)
			leases[i].Release()
			if got := lease(t, g).Backend(); got != leases[i].Backend() {
				t.Fatalf("the session went to %v, want the only free one, %v", got, leases[i].Backend())
			}
		}
	},

	"SlotFreedDuringASearchIsFound": func(t *testing.T, balance Balance) {
		a := newTestBackend(t, Config{Address: "a:1", Weight: 1, MaxConnections: 1})
		g := newTestGroup(t, GroupConfig{Balance: balance}, a)
		meet(2_000, func(round int) {
			if l, err := g.Lease(0, nil); err == nil {
				l.Release()
			}
		}, func(round int, together func()) {
			l := lease(t, g)
			together()
			for range round % 256 { // so that they meet in every way
				a.Active()
			}
			l.Release()
		}, func(int) {
			lease(t, g).Release()
		})
	},

	"LimitHoldsUnderConcurrency": func(t *testing.T, balance Balance) {
		const limit = 3
		backends := make([]*Backend, 8)
		held := make(map[*Backend]*atomic.Int32)
		for i := range backends {
			backends[i] = newTestBackend(t, Config{Address: address(i), Weight: 1 + i%2, MaxConnections: limit})
			held[backends[i]] = new(atomic.Int32)
		}
		g := newTestGroup(t, GroupConfig{Balance: balance}, backends...)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				var mine []*Lease
				for range 100 {
					if l, err := g.Lease(rand.Uint64(), nil); err == nil {
						if n := held[l.Backend()].Add(1); n > limit {
							t.Errorf("%v has %d sessions", l.Backend(), n)
						}
						mine = append(mine, l)
					} else if !errors.Is(err, ErrFull) {
						t.Errorf("Lease: %v", err)
					}
					if len(mine) > 0 && rand.IntN(2) == 0 {
						held[mine[0].Backend()].Add(-1)
						mine[0].Release()
						mine = mine[1:]
					}
				}
				for _, l := range mine {
					held[l.Backend()].Add(-1)
					l.Release()
				}
			})
		}
		wg.Wait()
		wantAllSlots(t, g, limit*len(backends))
	},

	"ChangesUnderLoadLoseNothing": func(t *testing.T, balance Balance) {
		const limit = 2
		backends := make([]*Backend, 70)
		for i := range backends {
			backends[i] = newTestBackend(t, Config{Address: address(i), Weight: 1, MaxConnections: limit, Tier: i / 60})
		}
		g := newTestGroup(t, GroupConfig{Balance: balance}, backends...)
		rarely := 10
		if balance == SourceHash {
			rarely = 100 // each computes a table
		}
		var changing, loading sync.WaitGroup
		var done atomic.Bool
		for range 4 {
			changing.Go(func() {
				for range 300 {
					b := backends[rand.IntN(len(backends))]
					switch rand.IntN(5) {
					case 0:
						b.SetState(State(rand.IntN(3)))
					case 1:
						if rand.IntN(rarely) == 0 {
							_ = b.SetWeight(rand.IntN(3))
						}
					case 2:
						if rand.IntN(rarely) == 0 {
							members := backends[rand.IntN(8):]
							if err := g.Update(GroupConfig{Name: "test", Balance: balance, Backends: members}); err != nil {
								t.Error(err)
							}
						}
					default:
						b.SetUp(rand.IntN(2) == 0)
					}
				}
			})
			loading.Go(func() {
				for !done.Load() {
					l1, err1 := g.Lease(rand.Uint64(), nil)
					l2, err2 := g.Lease(rand.Uint64(), backends[:2])
					for _, err := range []error{err1, err2} {
						if err != nil && !errors.Is(err, ErrFull) && !errors.Is(err, ErrNone) {
							t.Error(err)
						}
					}
					if err1 == nil {
						l1.Release()
					}
					if err2 == nil {
						l2.Release()
					}
				}
			})
		}
		changing.Wait()
		done.Store(true)
		loading.Wait()
		if err := g.Update(GroupConfig{Name: "test", Balance: balance, Backends: backends[:60]}); err != nil {
			t.Fatal(err)
		}
		for _, b := range backends {
			b.SetUp(true)
			b.SetState(Ready)
			if err := b.SetWeight(1); err != nil {
				t.Fatal(err)
			}
		}
		wantAllSlots(t, g, 60*limit)
	},

	"NobodyComesAfterADrainedBackendWasSeenIdle": func(t *testing.T, balance Balance) {
		a, b := named(t, "a"), named(t, "b")
		g := newTestGroup(t, GroupConfig{Balance: balance}, a, b)
		var idle, done atomic.Bool
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for !done.Load() {
					l, err := g.Lease(rand.Uint64(), nil)
					if err != nil {
						t.Error(err)
						return
					}
					if l.Backend() == a && idle.Load() {
						t.Error("a session on a drained backend that had none left")
					}
					l.Release()
				}
			})
		}
		for range 100 {
			a.SetState(Drain)
			for a.Active() != 0 {
				runtime.Gosched()
			}
			idle.Store(true)
			runtime.Gosched()
			idle.Store(false)
			a.SetState(Ready)
		}
		done.Store(true)
		wg.Wait()
	},

	"LeaseIntoAllocatesNothing": func(t *testing.T, balance Balance) {
		g := newTestGroup(t, GroupConfig{Balance: balance}, benchBackends(t, 100, true)...)
		g.OnFreed(func() {})
		tried := g.Backends()[:2]
		if n := testing.AllocsPerRun(100, func() { g.view.Load().choose(1, tried).release() }); n != 0 {
			t.Errorf("choosing allocates %v times", n)
		}
		var l Lease
		if n := testing.AllocsPerRun(100, func() {
			if err := g.LeaseInto(&l, 1, tried); err != nil {
				t.Fatal(err)
			}
			l.Release()
		}); n != 0 {
			t.Errorf("LeaseInto and Release allocate %v times", n)
		}
	},
}

// wantAllSlots takes every slot of the group, one by one.
func wantAllSlots(t *testing.T, g *Group, want int) {
	t.Helper()
	for _, b := range g.Backends() {
		if b.Active() != 0 {
			t.Errorf("%v has %d sessions after all ended", b, b.Active())
		}
	}
	for i := range want {
		if _, err := g.Lease(rand.Uint64(), nil); err != nil {
			t.Fatalf("slot %d of %d: %v", i+1, want, err)
		}
	}
	wantError(t, g, ErrFull)
}

func TestBalances(t *testing.T) {
	for name, test := range conformance {
		t.Run(name, func(t *testing.T) { forEachBalance(t, test) })
	}
}

func TestBalanceText(t *testing.T) {
	for _, balance := range balances {
		var got Balance
		text, err := balance.MarshalText()
		if err == nil {
			err = got.UnmarshalText(text)
		}
		if err != nil || got != balance {
			t.Errorf("%v came back as %v, %v", balance, got, err)
		}
	}
	if _, err := ParseBalance("leastconn"); err == nil {
		t.Error("leastconn is a balance")
	}
	if got := Balance(99).String(); got != "balance(99)" {
		t.Errorf("unknown balance: %s", got)
	}
}
