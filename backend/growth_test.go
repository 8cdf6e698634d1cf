package backend

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const slowStart = 10 * time.Second

func restart(b *Backend) {
	b.SetUp(false)
	b.SetUp(true)
}

func TestSlowStartGrowsWeight(t *testing.T) {
	for _, balance := range []Balance{RoundRobin, LeastConn, Random} {
		t.Run(balance.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backends := weighted(t, 1, 1, 1, 1)
				g := newTestGroup(t, GroupConfig{Balance: balance, SlowStart: slowStart}, backends...)
				restart(backends[0])
				for _, test := range []struct{ percent, low, high int }{{0, 0, 100}, {20, 350, 900}, {50, 1000, 1900}, {100, 2200, 2800}} {
					if n := shares(t, g, 10_000)["b1"]; n < test.low || n > test.high {
						t.Errorf("at %d %% of the slow start b1 got %d of 10,000 sessions, want %d to %d", test.percent, n, test.low, test.high)
					}
					switch test.percent {
					case 0:
						time.Sleep(slowStart / 5)
					case 20:
						time.Sleep(slowStart * 3 / 10)
					case 50:
						time.Sleep(slowStart)
					}
				}
			})
		})
	}
}

func TestSlowStartHoldsSessionsByGrownWeight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backends := weighted(t, 1, 1)
		g := newTestGroup(t, GroupConfig{Balance: LeastConn, SlowStart: slowStart}, backends...)
		restart(backends[0])
		time.Sleep(slowStart / 2)
		for range 300 {
			lease(t, g)
		}
		if n := backends[0].Active(); n < 99 || n > 101 {
			t.Errorf("half grown it holds %d of 300 sessions, want 100", n)
		}
	})
}

func TestSlowStartTogetherIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backends := weighted(t, 1, 1, 2)
		g := newTestGroup(t, GroupConfig{Balance: RoundRobin, SlowStart: slowStart}, backends...)
		for _, b := range backends {
			b.SetUp(false)
		}
		wantError(t, g, ErrNone)
		for _, b := range backends {
			b.SetUp(true)
		}
		time.Sleep(time.Second)
		if got := shares(t, g, 40); got["b1"] != 10 || got["b2"] != 10 || got["b3"] != 20 {
			t.Errorf("three that came up at the same time share %v, want 10:10:20", got)
		}
	})
}

func TestSlowStartBringsKeysHomeOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backends := weighted(t, 1, 1, 1, 1)
		g := newTestGroup(t, GroupConfig{Balance: SourceHash, SlowStart: slowStart}, backends...)
		const clients = 1_000
		var home [clients]string
		for i := range home {
			home[i] = ownerOf(t, g, i)
		}
		restart(backends[0])
		var back [clients]bool
		before := 0
		for range 9 {
			time.Sleep(slowStart / 10)
			n := 0
			for i := range home {
				got := ownerOf(t, g, i)
				switch {
				case home[i] != "b1" && got != home[i]:
					t.Fatalf("client %d of %s was moved to %s", i, home[i], got)
				case home[i] == "b1" && got == "b1":
					back[i] = true
					n++
				case back[i]:
					t.Fatalf("client %d came home and was sent away again", i)
				}
			}
			if n <= before || n > before+80 {
				t.Errorf("%d clients are back, %d a second before", n, before)
			}
			before = n
		}
		time.Sleep(slowStart)
		for i := range home {
			if got := ownerOf(t, g, i); got != home[i] {
				t.Fatalf("client %d is served by %s in the end, at first by %s", i, got, home[i])
			}
		}
	})
}

func TestSlowStartGrowsTheLimit(t *testing.T) {
	for _, balance := range balances {
		t.Run(balance.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newTestBackend(t, Config{Address: "a:1", Weight: 1, MaxConnections: 100})
				g := newTestGroup(t, GroupConfig{Balance: balance, SlowStart: slowStart}, b)
				restart(b)
				for _, want := range []int{1, 25, 50, 75, 100, 100} {
					for {
						if _, err := g.Lease(1, nil); err != nil {
							break
						}
					}
					if b.Active() != want {
						t.Errorf("%d sessions, want %d", b.Active(), want)
					}
					time.Sleep(slowStart / 4)
				}
			})
		})
	}
}

func TestSlowStartTellsWaitersOfTheGrownLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBackend(t, Config{Address: "a:1", Weight: 1, MaxConnections: 10})
		g := newTestGroup(t, GroupConfig{SlowStart: slowStart}, b)
		g.OnFreed(func() {
			for {
				if _, err := g.Lease(1, nil); err != nil {
					return
				}
			}
		})
		restart(b)
		for i := range 9 {
			time.Sleep(slowStart / 10)
			time.Sleep(slowStart / 100)
			synctest.Wait()
			if b.Active() != i+1 {
				t.Errorf("%d sessions after %d seconds, want %d", b.Active(), i+1, i+1)
			}
		}
		time.Sleep(slowStart)
		synctest.Wait()
		if b.Active() != 10 {
			t.Errorf("%d sessions in the end, want 10", b.Active())
		}
	})
}

func TestSlowStartEndsWithItsTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := named(t, "a")
		g := newTestGroup(t, GroupConfig{SlowStart: slowStart}, b)
		var calls atomic.Int32
		g.OnFreed(func() { calls.Add(1) })
		restart(b)
		time.Sleep(2 * slowStart)
		synctest.Wait()
		if calls.Load() < 50 || g.view.Load().growing {
			t.Errorf("%d calls, growing %v", calls.Load(), g.view.Load().growing)
		}
		before := calls.Load()
		time.Sleep(time.Hour)
		synctest.Wait()
		if calls.Load() != before {
			t.Error("the timer goes on after the slow start")
		}
	})
}

func TestCloseStopsTheTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := named(t, "a")
		g := newTestGroup(t, GroupConfig{SlowStart: slowStart}, b)
		var calls atomic.Int32
		g.OnFreed(func() { calls.Add(1) })
		restart(b)
		time.Sleep(slowStart / 2)
		synctest.Wait()
		g.Close()
		before := calls.Load()
		time.Sleep(slowStart)
		synctest.Wait()
		if calls.Load() != before {
			t.Errorf("%d calls after Close", calls.Load()-before)
		}
	})
}

func TestNewBackendHasNoSlowStart(t *testing.T) {
	b := newTestBackend(t, Config{Address: "a:1", Weight: 1, MaxConnections: 5})
	g := newTestGroup(t, GroupConfig{SlowStart: slowStart}, b)
	for range 5 {
		lease(t, g)
	}
}
