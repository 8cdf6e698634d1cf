package backend

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var balances = []Balance{LeastConn, RoundRobin, Random, SourceHash, First}

// A runner is what testing.T and testing.B have in common, with themselves as T.
type runner[T any] interface {
	testing.TB
	Run(name string, f func(T)) bool
}

func forEachBalance[T runner[T]](r T, f func(T, Balance)) {
	for _, balance := range balances {
		r.Run(balance.String(), func(r T) { f(r, balance) })
	}
}

// meet runs one and other in two goroutines, again and again: one begins when other calls together. When both have ended it runs check.
func meet(rounds int, one func(round int), other func(round int, together func()), check func(round int)) {
	var asked, done atomic.Int64 // rounds
	var wg sync.WaitGroup
	await := func(n *atomic.Int64, round int) {
		for n.Load() <= int64(round) {
			runtime.Gosched()
		}
	}
	wg.Go(func() {
		for round := range rounds {
			await(&asked, round)
			one(round)
			done.Add(1)
		}
	})
	defer wg.Wait()
	defer asked.Store(int64(rounds)) // when check has ended the test
	for round := range rounds {
		other(round, func() { asked.Add(1) })
		await(&done, round)
		check(round)
	}
}

func address(i int) string { return fmt.Sprintf("10.%d.%d.%d:80", i>>16&255, i>>8&255, i&255) }

func newTestBackend(tb testing.TB, c Config) *Backend {
	tb.Helper()
	b, err := New(c)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// newTestGroup fills in the name and the backends of c, and closes the group at the end of the test.
func newTestGroup(tb testing.TB, c GroupConfig, backends ...*Backend) *Group {
	tb.Helper()
	c.Name, c.Backends = "test", backends
	g, err := NewGroup(c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(g.Close)
	return g
}
