// Command fleet simulates many replicas of tproxy behind a router, and prints how many sessions and clients move when a replica or a backend is lost
// or added, as Markdown tables:
//
//	go run ./bench/fleet            the tables of docs/scale.md, in a minute
//	go run ./bench/fleet -seed 2    with others lost
//
// It compares source_hash, read through package backend as it is, with a Maglev table and with hash modulo N. Only the columns of times depend on the machine.
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"
)

func main() {
	seed := flag.Uint64("seed", 1, "which replicas and backends are lost, and which session goes where")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "fleet: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	random := rand.New(rand.NewPCG(*seed, 0))
	fmt.Printf("Seed %d.\n", *seed)
	backends(random)
	replicas(random)
	both(random)
}

// trials is how many different members are lost, or sets of them, for one figure.
const trials = 10

var (
	replicaCounts = []int{5, 10, 25, 50, 100}
	backendCounts = []int{100, 1_000, 10_000}
)

var schemes = []struct {
	name  string
	make  scheme
	exact bool // the table is no sample
}{{"`source_hash`", sourceHash, true}, {"Maglev", maglev, true}, {"modulo", modulo, false}}

// upTo is 0 … n-1.
func upTo(n int) []int {
	members := make([]int, n)
	for i := range members {
		members[i] = i
	}
	return members
}

// A change is how many members are lost, and how many are added.
type change struct{ lost, added int }

// apply returns the members after the change, and who is gone; new ones have numbers from n up.
func (c change) apply(n int, random *rand.Rand) (after []int, gone map[int32]bool) {
	gone = make(map[int32]bool)
	for _, m := range random.Perm(n)[:c.lost] {
		gone[int32(m)] = true
	}
	after = slices.DeleteFunc(upTo(n+c.added), func(m int) bool { return gone[int32(m)] })
	return after, gone
}

// backends prints what becomes of clients when backends come and go.
func backends(random *rand.Rand) {
	fmt.Print("\n### Backends\n\nShare of clients that get another backend, in %; after the + the part that nothing required.\n\n")
	fmt.Println("| backends | table | one lost | one added | 10 % lost | 10 % added | most to mean | build, least |")
	fmt.Println("|---|---|---|---|---|---|---|---|")
	for _, n := range backendCounts {
		for _, s := range schemes {
			before, _ := s.make(upTo(n))
			fmt.Printf("| %d | %s |", n, s.name)
			var built []time.Duration
			for _, c := range []change{{lost: 1}, {added: 1}, {lost: n / 10}, {added: n / 10}} {
				var share, needless float64
				times := trials
				if c.lost == 0 {
					times = 1 // the same ones every time
				}
				for range times {
					members, gone := c.apply(n, random)
					after, took := s.make(members)
					built = append(built, took)
					all, vain := moved(before, after, func(m int32) bool { return gone[m] }, func(m int32) bool { return int(m) >= n })
					share += all / float64(times)
					needless += vain / float64(times)
				}
				fmt.Printf(" %s |", percents(share-needless, needless))
			}
			if s.exact {
				fmt.Printf(" %.2f | %.3g ms |\n", before.spread(n), float64(slices.Min(built))/1e6)
			} else {
				fmt.Println(" 1 | |")
			}
		}
	}
}

func percents(needed, needless float64) string {
	if needless == 0 {
		return fmt.Sprintf("%.3g", 100*needed)
	}
	return fmt.Sprintf("%.3g + %.3g", 100*needed, 100*needless)
}

// replicas prints what becomes of sessions when replicas come and go behind a router that keeps no state of sessions: one whose packets come
// to another replica is reset there. A resilient router that waits until a bucket is quiet before it gives it to a new replica cuts none.
func replicas(random *rand.Rand) {
	fmt.Print("\n### Replicas\n\nShare of established sessions that are cut, in %.\n\n")
	fmt.Println("| replicas | | modulo | resilient | Maglev | most to mean, resilient |")
	fmt.Println("|---|---|---|---|---|---|")
	for _, n := range replicaCounts {
		lost := random.IntN(n)
		others := slices.DeleteFunc(upTo(n), func(m int) bool { return m == lost })
		fixed := newResilient(upTo(n))
		cut := func(s scheme, after []int) float64 {
			a, _ := s(upTo(n))
			b, _ := s(after)
			return 100 * differing(a, b)
		}
		less, more := fixed.without(int32(lost), others), fixed.with(int32(n), upTo(n))
		fmt.Printf("| %d | one lost | %.3g | %.3g | %.3g | %.2f |\n", n, cut(modulo, others), 100*differing(fixed, less), cut(maglev, others), less.spread(n-1))
		fmt.Printf("| %d | one added | %.3g | 0 to %.3g | %.3g | %.2f |\n", n, cut(modulo, upTo(n+1)), 100*differing(fixed, more), cut(maglev, upTo(n+1)), more.spread(n+1))
	}
}

// differing is the share of slots with another owner.
func differing(a, b table) float64 {
	none := func(int32) bool { return false }
	share, _ := moved(a, b, none, none)
	return share
}

// sessions is how many are simulated for one row.
const sessions = 1 << 18

// both prints what one lost replica and one lost backend do at once.
func both(random *rand.Rand) {
	fmt.Printf("\n### A replica and a backend lost at once\n\n%d sessions, shares in %%.\n\n", sessions)
	fmt.Println("| replicas | backends | cut, modulo router | cut, resilient router | another backend, `source_hash` | Maglev | modulo |")
	fmt.Println("|---|---|---|---|---|---|---|")
	one := change{lost: 1}
	for _, n := range backendCounts {
		members, gone := one.apply(n, random)
		var before, after []table
		for _, s := range schemes {
			b, _ := s.make(upTo(n))
			a, _ := s.make(members)
			before, after = append(before, b), append(after, a)
		}
		for _, r := range replicaCounts {
			others, down := one.apply(r, random)
			var lost int32
			for m := range down {
				lost = m
			}
			naive, _ := modulo(upTo(r))
			naiveAfter, _ := modulo(others)
			fixed := newResilient(upTo(r))
			fixedAfter := fixed.without(lost, others)
			var cutNaive, cutFixed int
			elsewhere := make([]int, len(schemes))
			for range sessions {
				flow, client := random.Uint64(), random.Uint64()
				f, g := flow%uint64(len(naive)), flow%uint64(len(fixed))
				end := gone[before[0][client%uint64(len(before[0]))]]
				if end || naive[f] != naiveAfter[f] {
					cutNaive++
				}
				if end || fixed[g] != fixedAfter[g] {
					cutFixed++
				}
				for i := range schemes {
					if k := client % uint64(len(before[i])); before[i][k] != after[i][k] {
						elsewhere[i]++
					}
				}
			}
			share := func(n int) float64 { return 100 * float64(n) / sessions }
			fmt.Printf("| %d | %d | %.3g | %.3g | %.3g | %.3g | %.3g |\n", r, n, share(cutNaive), share(cutFixed), share(elsewhere[0]), share(elsewhere[1]), share(elsewhere[2]))
		}
	}
}
