package backend

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestNewBackendIsUpReadyAndNamedByItsAddress(t *testing.T) {
	b := newTestBackend(t, Config{Address: "unix:/run/db.sock", Weight: 5, Tier: 3, MaxConnections: 7})
	if b.Name() != "unix:/run/db.sock" || b.Address() != b.Name() || b.Weight() != 5 || b.Tier() != 3 || b.MaxConnections() != 7 {
		t.Errorf("got %s %s %d %d %d", b.Name(), b.Address(), b.Weight(), b.Tier(), b.MaxConnections())
	}
	if !b.Up() || b.State() != Ready || !b.Usable() || b.Active() != 0 {
		t.Errorf("Up %v, State %v, Usable %v, Active %d", b.Up(), b.State(), b.Usable(), b.Active())
	}
}

func TestBadBackendsAreRefused(t *testing.T) {
	for _, c := range []Config{
		{},
		{Name: "a"},
		{Address: "a:1", Weight: -1},
		{Address: "a:1", Weight: 257},
		{Address: "a:1", Tier: -1},
		{Address: "a:1", MaxConnections: -1},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("New(%+v) succeeded", c)
		}
	}
	b := named(t, "a")
	if b.SetWeight(257) == nil || b.SetMaxConnections(-1) == nil || b.Weight() != 1 || b.MaxConnections() != 0 {
		t.Error("a setter took a bad value")
	}
}

func TestSettersKeepTheRest(t *testing.T) {
	b := newTestBackend(t, Config{Address: "a:1", Weight: 256})
	b.SetState(Maint)
	b.SetUp(false)
	if b.Weight() != 256 || b.State() != Maint || b.Up() || b.Usable() {
		t.Errorf("%d %v %v %v", b.Weight(), b.State(), b.Up(), b.Usable())
	}
	b.SetUp(true)
	b.SetState(Ready)
	if err := b.SetWeight(0); err != nil || b.Usable() || b.State() != Ready || !b.Up() {
		t.Errorf("%v %v %v %v", err, b.Usable(), b.State(), b.Up())
	}
}

func TestStateText(t *testing.T) {
	for state, text := range map[State]string{Ready: "ready", Drain: "drain", Maint: "maint"} {
		got, err := ParseState(text)
		if err != nil || got != state || state.String() != text {
			t.Errorf("%s: %v, %v", text, got, err)
		}
		if out, err := state.MarshalText(); err != nil || string(out) != text {
			t.Errorf("%s: MarshalText = %s, %v", text, out, err)
		}
	}
	s := Drain
	if err := s.UnmarshalText([]byte("Ready")); err == nil {
		t.Error("Ready is a state")
	}
	if got := State(9).String(); got != "state(9)" {
		t.Errorf("unknown state: %s", got)
	}
}

func TestBadGroupsAreRefusedAndChangeNothing(t *testing.T) {
	a := named(t, "a")
	g := newTestGroup(t, GroupConfig{}, a)
	for want, c := range map[string]GroupConfig{
		"cannot be renamed": {Name: "other", Backends: []*Backend{named(t, "b")}},
		"min_usable":        {Name: "test", MinUsable: 101},
		"slow_start":        {Name: "test", SlowStart: -time.Second},
		"named a":           {Name: "test", Backends: []*Backend{a, named(t, "a")}},
		"nil":               {Name: "test", Backends: []*Backend{a, nil}},
		"balance(9)":        {Name: "test", Balance: 9},
		"65536 backends":    {Name: "test", Backends: make([]*Backend, MaxBackends+1)},
	} {
		if err := g.Update(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Update: %v, want an error with %q", err, want)
		}
		if g.Name() != "test" || g.Balance() != LeastConn || !slices.Equal(g.Backends(), []*Backend{a}) {
			t.Fatalf("a refused Update left %v", g.Backends())
		}
	}
	if _, err := NewGroup(GroupConfig{}); err == nil {
		t.Error("a group without a name")
	}
	if _, err := NewGroup(GroupConfig{Name: "bad", MinUsable: -1}); err == nil || !strings.Contains(err.Error(), "bad") {
		t.Errorf("the error does not name the group: %v", err)
	}
}

func TestUpdateKeepsSessionsOfMembersThatStay(t *testing.T) {
	a, b, c := named(t, "a"), named(t, "b"), named(t, "c")
	g := newTestGroup(t, GroupConfig{Balance: RoundRobin}, a, b)
	l1, l2 := lease(t, g), lease(t, g)
	a.SetUp(false)
	if err := g.Update(GroupConfig{Name: "test", Balance: First, Backends: []*Backend{c, a}}); err != nil {
		t.Fatal(err)
	}
	if a.Active() != 1 || b.Active() != 1 || a.Up() {
		t.Errorf("a has %d sessions, b %d; a up: %v", a.Active(), b.Active(), a.Up())
	}
	wantOnly(t, shares(t, g, 10), "c")
	if got, ok := g.Lookup("c"); !ok || got != c {
		t.Errorf("Lookup(c) = %v, %v", got, ok)
	}
	if _, ok := g.Lookup("b"); ok {
		t.Error("b left and is still found")
	}
	freed := 0
	g.OnFreed(func() { freed++ })
	l1.Release()
	l2.Release()
	if a.Active() != 0 || b.Active() != 0 || freed != 1 {
		t.Errorf("a has %d sessions, b %d; %d calls for the one that is a member, want 1", a.Active(), b.Active(), freed)
	}
}

func TestABackendMayBeInTwoGroups(t *testing.T) {
	b := newTestBackend(t, Config{Address: "a:1", Weight: 1, MaxConnections: 1})
	g1, g2 := newTestGroup(t, GroupConfig{}, b), newTestGroup(t, GroupConfig{Balance: First}, b)
	l := lease(t, g1)
	wantError(t, g2, ErrFull)
	freed := 0
	g2.OnFreed(func() { freed++ })
	l.Release()
	if freed != 1 {
		t.Errorf("%d calls, want 1", freed)
	}
	lease(t, g2).Release()
	b.SetUp(false)
	wantError(t, g1, ErrNone)
	wantError(t, g2, ErrNone)
}

func TestFreedIsCalledWhenALowerTierTakesOver(t *testing.T) {
	full := newTestBackend(t, Config{Address: "a:1", Weight: 1, MaxConnections: 1})
	spare := newTestBackend(t, Config{Address: "b:1", Weight: 1, Tier: 1})
	g := newTestGroup(t, GroupConfig{}, full, spare)
	lease(t, g)
	wantError(t, g, ErrFull)
	var got *Lease
	g.OnFreed(func() { got = lease(t, g) })
	full.SetUp(false)
	if got == nil || got.Backend() != spare {
		t.Errorf("the waiter got %v", got)
	}
}

func TestCloseLeavesLeasesValid(t *testing.T) {
	a := named(t, "a")
	g := newTestGroup(t, GroupConfig{}, a)
	l := lease(t, g)
	g.Close()
	g.Close()
	wantError(t, g, ErrNone)
	if g.Usable() != 0 || len(g.Backends()) != 0 {
		t.Errorf("after Close: %d usable of %v", g.Usable(), g.Backends())
	}
	if err := g.Update(GroupConfig{Name: "test", Backends: []*Backend{a}}); err == nil {
		t.Error("Update after Close succeeded")
	}
	l.Release()
	a.SetUp(false)
	if a.Active() != 0 || len(a.memberOf()) != 0 {
		t.Errorf("%d sessions, member of %d groups", a.Active(), len(a.memberOf()))
	}
}

func TestLeaseErrorsNameTheGroup(t *testing.T) {
	g := newTestGroup(t, GroupConfig{})
	if _, err := g.Lease(0, nil); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "group test: ") {
		t.Errorf("got %v", err)
	}
}

// TestWaiterThatTriesOnceMoreMissesNothing is the protocol that OnFreed asks of a queue.
func TestWaiterThatTriesOnceMoreMissesNothing(t *testing.T) {
	b := newTestBackend(t, Config{Address: "a:1", Weight: 1, MaxConnections: 2})
	g := newTestGroup(t, GroupConfig{}, b)
	var mu sync.Mutex
	var waiting []chan struct{}
	g.OnFreed(func() {
		mu.Lock()
		defer mu.Unlock()
		if len(waiting) > 0 {
			close(waiting[0])
			waiting = waiting[1:]
		}
	})
	take := func() *Lease {
		for {
			wake := make(chan struct{})
			mu.Lock()
			waiting = append(waiting, wake)
			mu.Unlock()
			l, err := g.Lease(0, nil)
			if err == nil {
				mu.Lock()
				if i := slices.Index(waiting, wake); i >= 0 {
					waiting = slices.Delete(waiting, i, i+1)
				} else if len(waiting) > 0 { // woken for nothing: pass it on
					close(waiting[0])
					waiting = waiting[1:]
				}
				mu.Unlock()
				return l
			}
			<-wake
		}
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 200 {
				take().Release()
			}
		})
	}
	wg.Wait()
}
