package backend

import (
	"fmt"
	"sync/atomic"
	"testing"
)

// sizes are the group sizes of the target: choosing among the last costs at most twice choosing among the first.
var sizes = []int{10, 10_000}

// BenchmarkChoose is the choice and the slot, without the Lease: no allocation.
func BenchmarkChoose(b *testing.B) {
	forEachBalance(b, func(b *testing.B, balance Balance) {
		for _, weights := range []string{"equal", "mixed"} {
			for _, n := range sizes {
				b.Run(fmt.Sprintf("%s/%d", weights, n), func(b *testing.B) {
					g := newTestGroup(b, GroupConfig{Balance: balance}, benchBackends(b, n, weights == "mixed")...)
					b.ReportAllocs()
					key := uint64(0)
					for b.Loop() {
						key += golden
						chosen := g.view.Load().choose(key, nil)
						chosen.giveBack()
					}
				})
			}
		}
	})
}

// BenchmarkLease is what a session pays, at first on one goroutine and then on all processors.
func BenchmarkLease(b *testing.B) {
	forEachBalance(b, func(b *testing.B, balance Balance) {
		for _, n := range sizes {
			b.Run(fmt.Sprint(n), func(b *testing.B) {
				g := newTestGroup(b, GroupConfig{Balance: balance}, benchBackends(b, n, false)...)
				b.ReportAllocs()
				key := uint64(0)
				var l Lease
				for b.Loop() {
					key += golden
					if err := g.LeaseInto(&l, key, nil); err != nil {
						b.Fatal(err)
					}
					l.Release()
				}
			})
		}
	})
}

func BenchmarkLeaseParallel(b *testing.B) {
	forEachBalance(b, func(b *testing.B, balance Balance) {
		for _, n := range sizes {
			b.Run(fmt.Sprint(n), func(b *testing.B) {
				g := newTestGroup(b, GroupConfig{Balance: balance}, benchBackends(b, n, false)...)
				b.ReportAllocs()
				var streams atomic.Uint64
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					key := mix(streams.Add(1))
					for pb.Next() {
						key += golden
						l, err := g.Lease(key, nil)
						if err != nil {
							b.Error(err)
							return
						}
						l.Release()
					}
				})
			})
		}
	})
}

// BenchmarkNearlyFull frees and takes the only slot of a full group, again and again.
func BenchmarkNearlyFull(b *testing.B) {
	forEachBalance(b, func(b *testing.B, balance Balance) {
		for _, n := range sizes {
			b.Run(fmt.Sprint(n), func(b *testing.B) {
				g, leases := fullGroup(b, balance, n)
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					i = (i + 7919) % n
					leases[i].Release()
					l, err := g.Lease(uint64(i)*golden, nil)
					if err != nil {
						b.Fatal(err)
					}
					leases[i] = l
				}
			})
		}
	})
}

// BenchmarkFull is what a session pays to hear that it has to wait.
func BenchmarkFull(b *testing.B) {
	forEachBalance(b, func(b *testing.B, balance Balance) {
		for _, n := range sizes {
			b.Run(fmt.Sprint(n), func(b *testing.B) {
				g, _ := fullGroup(b, balance, n)
				b.ReportAllocs()
				for b.Loop() {
					if _, err := g.Lease(1, nil); err == nil {
						b.Fatal("a lease of a full group")
					}
				}
			})
		}
	})
}

// BenchmarkHealthFlip is one SetUp, view and all.
func BenchmarkHealthFlip(b *testing.B) {
	forEachBalance(b, func(b *testing.B, balance Balance) {
		for _, weights := range []string{"equal", "mixed"} {
			for _, n := range sizes {
				b.Run(fmt.Sprintf("%s/%d", weights, n), func(b *testing.B) {
					backends := benchBackends(b, n, weights == "mixed")
					newTestGroup(b, GroupConfig{Balance: balance}, backends...)
					b.ReportAllocs()
					up := false
					for b.Loop() {
						backends[n/2].SetUp(up)
						up = !up
					}
				})
			}
		}
	})
}

func BenchmarkHashTable(b *testing.B) {
	for _, n := range []int{10, smallTier, smallTier + 1, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			backends := benchBackends(b, n, false)
			weights := make([]uint16, n)
			for i, backend := range backends {
				weights[i] = uint16(backend.Weight())
			}
			b.ReportAllocs()
			for b.Loop() {
				newHashTable(backends, weights)
			}
		})
	}
}

func benchBackends(tb testing.TB, n int, mixed bool) []*Backend {
	backends := make([]*Backend, n)
	for i := range backends {
		weight := 1
		if mixed {
			weight = 1 + i*37%MaxWeight
		}
		backends[i] = newTestBackend(tb, Config{Address: address(i), Weight: weight})
	}
	return backends
}

// fullGroup returns a group whose backends have one slot each, and the lease of the i-th.
func fullGroup(tb testing.TB, balance Balance, n int) (*Group, []*Lease) {
	backends := make([]*Backend, n)
	number := make(map[*Backend]int, n)
	for i := range backends {
		backends[i] = newTestBackend(tb, Config{Address: address(i), Weight: 1, MaxConnections: 1})
		number[backends[i]] = i
	}
	g := newTestGroup(tb, GroupConfig{Balance: balance}, backends...)
	leases := make([]*Lease, n)
	for i := range backends {
		l, err := g.Lease(uint64(i)*golden, nil)
		if err != nil {
			tb.Fatal(err)
		}
		leases[number[l.Backend()]] = l
	}
	return g, leases
}
