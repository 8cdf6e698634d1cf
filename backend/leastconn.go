package backend

import (
	"math/bits"
	"math/rand/v2"
)

// exact is up to how many candidates leastConn looks at all of them. It is the number of bits in a word.
const exact = 64

// draws is at how many candidates it looks otherwise.
const draws = 4

// turns is how many turns may fall to candidates that are not among the equally good ones before the next in order is taken.
const turns = 8

// leastConn proposes the candidate with the fewest sessions for its weight.
func (t *tier) leastConn(r *request) (int, *Backend) {
	if len(t.candidates) > exact {
		return t.drawn(draws, r)
	}
	var best load
	var equal uint64 // the candidates as good as best
	for i := range t.candidates {
		b := t.candidate(i)
		l, ok := t.load(b, r)
		switch {
		case !ok || r.excludes(b):
		case equal == 0 || l.less(best):
			best, equal = l, 1<<i
		case !best.less(l):
			equal |= 1 << i
		}
	}
	if equal == 0 {
		return 0, nil
	}
	i := bits.TrailingZeros64(equal)
	if equal&(equal-1) != 0 {
		i = t.turnOf(equal, best, r)
	}
	return i, t.candidate(i)
}

// turnOf returns one of the equally good candidates, by turns: sessions that are over before the next begins are spread by weight.
func (t *tier) turnOf(equal uint64, l load, r *request) int {
	var i int
	for range turns {
		i = t.cycle.turn(t.cursor.Add(1) - 1)
		// With no sessions the load says nothing of the weight, so a slow start must act here.
		if equal>>i&1 != 0 && (l.sessions > 0 || t.accepts(t.candidate(i), r)) {
			return i
		}
	}
	return (i + bits.TrailingZeros64(bits.RotateLeft64(equal, -i))) % exact
}

// drawn proposes the least loaded of n candidates drawn at random by weight, the first of equals.
func (t *tier) drawn(n int, r *request) (at int, best *Backend) {
	var least load
	for range n {
		i := t.lottery.draw(rand.Uint64())
		b := t.candidate(i)
		if l, ok := t.load(b, r); ok && (best == nil || l.less(least)) && t.accepts(b, r) {
			at, best, least = i, b, l
		}
	}
	return at, best
}

// A load is sessions for a weight, kept as a fraction so that comparing is exact.
type load struct{ sessions, weight int64 }

func (l load) less(o load) bool { return l.sessions*o.weight < o.sessions*l.weight }

// load returns the load of b; false if it is full.
func (t *tier) load(b *Backend, r *request) (load, bool) {
	l := load{int64(b.Active()), int64(b.load().weight())}
	limit := t.growth.limit(b, r.now)
	if t.growth.running() {
		l.weight *= t.growth.part(b.rose.Load(), r.now)
	}
	return l, limit == 0 || l.sessions < limit
}
