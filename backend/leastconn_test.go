package backend

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

func TestLeastConnPrefersTheFree(t *testing.T) {
	backends := weighted(t, 1, 1)
	g := newTestGroup(t, GroupConfig{Balance: LeastConn}, backends...)
	busy := lease(t, g).Backend()
	for range 10 {
		l := lease(t, g)
		if l.Backend() == busy {
			t.Fatal("a session went to the busy backend")
		}
		l.Release()
	}
}

func TestLeastConnHoldsSessionsByWeight(t *testing.T) {
	for _, weights := range [][]int{{1, 2}, {2, 1}, {1, 2, 3}, {256, 128, 64}, {1, 1, 1, 1}} {
		backends := weighted(t, weights...)
		g := newTestGroup(t, GroupConfig{Balance: LeastConn}, backends...)
		total := 0
		for _, w := range weights {
			total += w
		}
		for range 10 * total {
			lease(t, g)
		}
		for i, b := range backends {
			if b.Active() != 10*weights[i] {
				t.Errorf("weights %v: %v has %d sessions, want %d", weights, b, b.Active(), 10*weights[i])
			}
		}
	}
}

// TestLeastConnIsExact compares every choice with the definition, up to the largest group that is looked through.
func TestLeastConnIsExact(t *testing.T) {
	weights := make([]int, exact)
	for i := range weights {
		weights[i] = 1 + rand.IntN(8)
	}
	backends := weighted(t, weights...)
	g := newTestGroup(t, GroupConfig{Balance: LeastConn}, backends...)
	var leases []*Lease
	for range 5_000 {
		var least float64
		for i, b := range backends {
			if load := float64(b.Active()) / float64(weights[i]); i == 0 || load < least {
				least = load
			}
		}
		l := lease(t, g)
		b := l.Backend()
		if load := float64(b.Active()-1) / float64(b.Weight()); load != least {
			t.Fatalf("a session went to load %v while there was %v", load, least)
		}
		if leases = append(leases, l); rand.IntN(3) == 0 {
			leases[rand.IntN(len(leases))].Release()
		}
	}
}

func TestLeastConnSpreadsShortSessionsByWeight(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Balance: LeastConn}, weighted(t, 1, 1, 2)...)
	if got, want := shares(t, g, 40), "map[b1:10 b2:10 b3:20]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestLeastConnAmongManyStaysLevel(t *testing.T) {
	backends := benchBackends(t, 1_000, false)
	g := newTestGroup(t, GroupConfig{Balance: LeastConn}, backends...)
	for range 20_000 {
		lease(t, g)
	}
	if most := mostSessions(backends); most > 23 {
		t.Errorf("of 20,000 sessions on 1,000 backends one has %d, want 20 and hardly more", most)
	}
}

func TestFirstFillsInOrder(t *testing.T) {
	var backends []*Backend
	for i, w := range []int{1, 256, 7} {
		backends = append(backends, newTestBackend(t, Config{Address: address(i), Weight: w, MaxConnections: 2}))
	}
	g := newTestGroup(t, GroupConfig{Balance: First}, backends...)
	var leases []*Lease
	for range 5 {
		leases = append(leases, lease(t, g))
	}
	for i, want := range []int{2, 2, 1} {
		if got := backends[i].Active(); got != want {
			t.Errorf("backend %d has %d sessions, want %d", i, got, want)
		}
	}
	leases[1].Release()
	if got := lease(t, g).Backend(); got != backends[0] {
		t.Errorf("the session went to %v, want the first, which was free again", got)
	}
}
