package backend

import (
	"math/rand/v2"
	"slices"
)

// attempts is how often a balancer may propose before the tier is searched for any free slot.
var attempts = [...]int{LeastConn: 2, RoundRobin: 8, Random: 2, SourceHash: 8, First: 0}

// pick takes a slot on a candidate that is not among r.tried; nil if all of those are full. A balancer proposes a candidate and
// its number, or, with a nil Backend, only where to search.
func (t *tier) pick(r *request) *Backend {
	i := 0
	for attempt := range attempts[t.balance] {
		var b *Backend
		switch t.balance {
		case LeastConn:
			i, b = t.leastConn(r)
		case RoundRobin:
			i, b = t.roundRobin(r)
		case Random:
			i, b = t.random(r)
		case SourceHash:
			i, b = t.sourceHash(r, attempt)
		}
		if b != nil && t.take(i, b, r) {
			return b
		}
	}
	return t.search(i, r)
}

// search takes the next free slot from a candidate on, cyclically. A slow start counts for limits only.
func (t *tier) search(from int, r *request) *Backend {
	for {
		version := t.free.version.Load()
		for _, stretch := range [2][2]int{{from, len(t.candidates)}, {0, from}} {
			for i := t.free.next(stretch[0]); i < stretch[1]; i = t.free.next(i + 1) {
				if b := t.candidate(i); !r.excludes(b) && t.take(i, b, r) {
					return b
				}
			}
		}
		if t.free.version.Load() == version {
			return nil
		}
	}
}

// take takes a slot on candidate i, which is b, and notes if it is full. One that has reached only the limit of its slow start stays in
// the free set, because nobody would say when that has grown.
func (t *tier) take(i int, b *Backend, r *request) bool {
	if b.acquire(t.growth.limit(b, r.now)) {
		return true
	}
	if b.full() {
		t.free.remove(i)
		if !b.full() {
			t.free.add(i)
		}
	}
	return false
}

// excludes reports whether b was tried.
func (r *request) excludes(b *Backend) bool {
	return len(r.tried) > 0 && slices.Contains(r.tried, b)
}

// accepts reports whether r may have b, as far as what was tried and a slow start are concerned.
func (t *tier) accepts(b *Backend, r *request) bool {
	return !r.excludes(b) && (!t.growth.running() || t.growth.admits(b, uint16(rand.Uint32()), r.now))
}

// roundRobin proposes the candidate whose turn it is.
func (t *tier) roundRobin(r *request) (int, *Backend) {
	i := t.cycle.turn(t.cursor.Add(1) - 1)
	if b := t.candidate(i); t.accepts(b, r) {
		return i, b
	}
	return i, nil
}

// random proposes the less loaded of two candidates.
func (t *tier) random(r *request) (int, *Backend) { return t.drawn(2, r) }
