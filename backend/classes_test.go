package backend

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// order returns the names that n sessions get, one after the other.
func order(tb testing.TB, g *Group, n int) string {
	tb.Helper()
	var names []string
	for range n {
		l := lease(tb, g)
		names = append(names, l.Backend().Name())
		l.Release()
	}
	return strings.Join(names, " ")
}

func weighted(tb testing.TB, weights ...int) []*Backend {
	tb.Helper()
	var backends []*Backend
	for i, w := range weights {
		backends = append(backends, newTestBackend(tb, Config{Name: fmt.Sprintf("b%d", i+1), Address: address(i), Weight: w}))
	}
	return backends
}

func TestRoundRobinTakesTurns(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Balance: RoundRobin}, weighted(t, 7, 7, 7, 7)...)
	if got, want := order(t, g, 9), "b1 b2 b3 b4 b1 b2 b3 b4 b1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestRoundRobinInterleavesWeights(t *testing.T) {
	for _, test := range []struct {
		weights []int
		want    string
	}{
		{[]int{1, 2}, "b2 b1 b2"},
		{[]int{100, 50}, "b1 b2 b1"},
		{[]int{1, 0, 3}, "b3 b3 b1 b3"},
		{[]int{5, 1, 1}, "b1 b1 b1 b2 b3 b1 b1"},
		{[]int{2, 2, 1}, "b1 b2 b3 b1 b2"},
	} {
		g := newTestGroup(t, GroupConfig{Balance: RoundRobin}, weighted(t, test.weights...)...)
		if got := order(t, g, strings.Count(test.want, " ")+1); got != test.want {
			t.Errorf("%v: got %s, want %s", test.weights, got, test.want)
		}
	}
}

func TestRoundRobinSharesAreExactAfterAnyChange(t *testing.T) {
	backends := weighted(t, 1, 2, 3, 4)
	g := newTestGroup(t, GroupConfig{Balance: RoundRobin}, backends...)
	exactly := func(want map[string]int) {
		t.Helper()
		total := 0
		for _, n := range want {
			total += n
		}
		if got := shares(t, g, total); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	shares(t, g, 3)
	exactly(map[string]int{"b1": 1, "b2": 2, "b3": 3, "b4": 4})
	backends[2].SetUp(false)
	exactly(map[string]int{"b1": 10, "b2": 20, "b4": 40})
	shares(t, g, 2)
	backends[2].SetUp(true)
	exactly(map[string]int{"b1": 1, "b2": 2, "b3": 3, "b4": 4})
	shares(t, g, 5)
	if err := g.Update(GroupConfig{Name: "test", Balance: RoundRobin, Backends: backends[:2]}); err != nil {
		t.Fatal(err)
	}
	exactly(map[string]int{"b1": 10, "b2": 20})
}

func drawWeights(t *rapid.T) (weights []int, count *[MaxWeight + 1]int) {
	weights = rapid.SliceOfN(rapid.OneOf(rapid.IntRange(1, 4), rapid.IntRange(1, MaxWeight)), 1, 20).Draw(t, "weights")
	slices.SortFunc(weights, func(a, b int) int { return b - a })
	count = new([MaxWeight + 1]int)
	for _, w := range weights {
		count[w]++
	}
	return weights, count
}

func TestCycleIsExactAndSmooth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights, count := drawWeights(t)
		y := newCycle(classesOf(count), nil)
		if again := newCycle(classesOf(count), &y); !slices.Equal(again.positions, y.positions) || again.length != y.length {
			t.Fatalf("made from an old one the cycle is another")
		}
		divisor := uint32(0)
		for _, w := range weights {
			divisor = gcd(uint32(w), divisor)
		}
		turns := make([]int, len(weights))
		length, n := float64(y.length), float64(len(weights))
		for p := range y.length {
			turns[y.turn(uint64(p))]++
			for i, w := range weights {
				w := float64(uint32(w) / divisor)
				if off := math.Abs(float64(turns[i]) - float64(p+1)*w/length); off > .5+w*n/(2*length)+1e-9 {
					t.Fatalf("after %d of %d turns candidate %d of weight %v is %v turns away from its share", p+1, y.length, i, w, off)
				}
			}
		}
		for i, w := range weights {
			if turns[i] != w/int(divisor) {
				t.Fatalf("candidate %d had %d turns, want %d", i, turns[i], w/int(divisor))
			}
		}
	})
}

func TestCycleOfAllWeightsIsBounded(t *testing.T) {
	var count [MaxWeight + 1]int
	for w := 1; w <= MaxWeight; w++ {
		count[w] = 250
	}
	y := newCycle(classesOf(&count), nil)
	if runs, length := len(y.order), int(y.length); runs != 32_896 || length != 250*32_896 {
		t.Errorf("%d runs, length %d", runs, length)
	}
	last := y.turn(uint64(y.length) - 1)
	if first := y.turn(uint64(y.length)); first != 0 || last < 0 || last >= 250*MaxWeight {
		t.Errorf("the cycle ends with %d and begins again with %d", last, first)
	}
}

func TestLotteryIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights, count := drawWeights(t)
		classes := classesOf(count)
		y := newLottery(classes)
		total := 0
		for _, w := range weights {
			total += w
		}
		chance := make(map[uint32]float64) // by weight, times the number of tickets
		for _, ticket := range y {
			cut := float64(ticket.cut) / (1 << 24)
			chance[ticket.class.weight] += cut
			chance[ticket.alias.weight] += 1 - cut
		}
		for _, c := range classes {
			want := float64(c.weight*c.size) / float64(total) * float64(len(y))
			if math.Abs(chance[c.weight]-want) > float64(len(y))/(1<<24) {
				t.Fatalf("weight %d has the chance %v, want %v", c.weight, chance[c.weight], want)
			}
		}
		for _, random := range []uint64{0, math.MaxUint32, 1 << 32, math.MaxUint64} {
			if i := y.draw(random); i < 0 || i >= len(weights) {
				t.Fatalf("draw(%#x) = %d of %d", random, i, len(weights))
			}
		}
	})
}

func TestRandomFollowsWeights(t *testing.T) {
	g := newTestGroup(t, GroupConfig{Balance: Random}, weighted(t, 1, 1, 2)...)
	got := shares(t, g, 40_000)
	for name, want := range map[string]int{"b1": 10_000, "b2": 10_000, "b3": 20_000} {
		if got[name] < want*95/100 || got[name] > want*105/100 { // 5 % is more than five standard deviations
			t.Errorf("got %v, want 1:1:2", got)
		}
	}
}

func TestRandomAvoidsTheLoaded(t *testing.T) {
	backends := benchBackends(t, 100, false)
	g := newTestGroup(t, GroupConfig{Balance: Random}, backends...)
	for range 10_000 {
		lease(t, g)
	}
	if most := mostSessions(backends); most > 108 { // one random choice would give some 125
		t.Errorf("of 10,000 sessions on 100 backends one has %d", most)
	}
}

func mostSessions(backends []*Backend) int {
	most := 0
	for _, b := range backends {
		most = max(most, b.Active())
	}
	return most
}
