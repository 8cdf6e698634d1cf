package backend

import (
	"math/bits"
	"slices"
)

// A class is the candidates of a tier that have one weight. Candidates are sorted by weight, so that they stand side by side, and
// what is computed of weights is computed once a class, of which there are at most 256.
type class struct {
	weight uint32
	first  uint32 // candidate
	size   uint32
}

// classesOf returns the classes of candidates of which count[w] have weight w, the heaviest first.
func classesOf(count *[MaxWeight + 1]int) []class {
	var classes []class
	first := uint32(0)
	for w := MaxWeight; w > 0; w-- {
		if n := uint32(count[w]); n > 0 {
			classes = append(classes, class{uint32(w), first, n})
			first += n
		}
	}
	return classes
}

// A cycle is a weighted order of candidates in which each comes exactly as often as its weight, divided by the greatest common
// divisor of all weights, and as evenly spread as the others allow: turn k of a candidate of weight w stands at
// (k+½)/w of the way, and at no time is the candidate more than ½ + w·n/(2·length) turns away from its exact share.
//
// Candidates of one class have their turns side by side, so a cycle need not be written out: it is a sequence of runs, in
// each of which every candidate of one class has a turn. There are at most 1+2+…+256 = 32,896 runs, however many
// candidates there are and however long the cycle is; with equal weights there is one.
type cycle struct {
	classes   []class
	order     []uint8  // the class of each run; it follows from the weights of the classes alone
	positions []uint32 // where each run begins
	length    uint32
}

// newCycle computes a cycle, with the order of an older one if the weights are the same.
func newCycle(classes []class, old *cycle) cycle {
	y := cycle{classes: classes}
	sameWeight := func(a, b class) bool { return a.weight == b.weight }
	if old != nil && slices.EqualFunc(classes, old.classes, sameWeight) {
		y.order = old.order
	} else {
		y.order = orderOf(classes)
	}
	y.positions = make([]uint32, len(y.order))
	for i, c := range y.order {
		y.positions[i] = y.length
		y.length += classes[c].size
	}
	return y
}

func orderOf(classes []class) []uint8 {
	var divisor uint32
	for _, c := range classes {
		divisor = gcd(c.weight, divisor)
	}
	// Two different (k+½)/w with w up to 256 are at least 2^-17 apart, so 18 bits keep their order.
	var keys []uint32
	for i, c := range classes {
		w := c.weight / divisor
		for k := range w {
			keys = append(keys, (2*k+1)<<17/w<<8|uint32(i))
		}
	}
	slices.Sort(keys)
	order := make([]uint8, len(keys))
	for i, key := range keys {
		order[i] = uint8(key)
	}
	return order
}

// turn returns the candidate whose turn it is at the n-th choice.
func (y *cycle) turn(n uint64) int {
	position := uint32(n % uint64(y.length))
	lo, hi := 0, len(y.positions)
	for hi-lo > 1 {
		if mid := int(uint(lo+hi) / 2); y.positions[mid] <= position {
			lo = mid
		} else {
			hi = mid
		}
	}
	return int(y.classes[y.order[lo]].first + position - y.positions[lo])
}

func gcd(a, b uint32) uint32 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// A lottery draws candidates with probability proportional to their weight: a class by the alias method, which takes one
// look, then one of its candidates.
type lottery []ticket

// A ticket wins its own class below cut, of 2^24, and the alias from there.
type ticket struct {
	cut          uint32
	class, alias class
}

func newLottery(classes []class) lottery {
	var total uint64
	shares := make([]uint64, len(classes)) // of each class, times their number; total is what one ticket holds
	for i, c := range classes {
		share := uint64(c.weight) * uint64(c.size)
		shares[i] = share * uint64(len(classes))
		total += share
	}
	var small, large []int
	sort := func(i int) {
		if shares[i] < total {
			small = append(small, i)
		} else {
			large = append(large, i)
		}
	}
	for i := range classes {
		sort(i)
	}
	y := make(lottery, len(classes))
	for len(small) > 0 {
		// Shares are integers that add up to total a ticket, so whenever one is small another is large.
		i, j := small[len(small)-1], large[len(large)-1]
		small, large = small[:len(small)-1], large[:len(large)-1]
		y[i] = ticket{uint32(shares[i] << 24 / total), classes[i], classes[j]}
		shares[j] -= total - shares[i]
		sort(j)
	}
	for _, i := range large {
		y[i] = ticket{1 << 24, classes[i], classes[i]}
	}
	return y
}

// draw returns a candidate for 64 random bits.
func (y lottery) draw(random uint64) int {
	at := random >> 32 * uint64(len(y)) // 32 bits of fraction
	t := &y[at>>32]
	c := &t.class
	if uint32(at)>>8 >= t.cut {
		c = &t.alias
	}
	i, _ := bits.Mul64(random<<32, uint64(c.size))
	return int(c.first) + int(i)
}
