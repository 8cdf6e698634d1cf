package backend

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// MaxBackends is how many backends a group may have.
const MaxBackends = none

// none is the number of no candidate.
const none = 1<<16 - 1

// members is what a configuration says of a group, and what follows from that alone. It is immutable.
type members struct {
	balance   Balance
	minUsable int
	slowStart time.Duration
	list      []*Backend // as configured
	byTier    []*Backend // the same, lowest tier first
	tierEnds  []int      // where each tier ends in byTier
	index     map[*Backend]int
	byName    map[string]*Backend
}

func newMembers(c GroupConfig) (*members, error) {
	switch {
	case int(c.Balance) >= len(balanceText):
		return nil, fmt.Errorf("unknown %v", c.Balance)
	case c.MinUsable < 0 || c.MinUsable > 100:
		return nil, fmt.Errorf("min_usable %d is not in 0..100", c.MinUsable)
	case c.SlowStart < 0:
		return nil, fmt.Errorf("slow_start %v is negative", c.SlowStart)
	case len(c.Backends) > MaxBackends:
		return nil, fmt.Errorf("%d backends are more than %d", len(c.Backends), MaxBackends)
	}
	m := &members{
		balance:   c.Balance,
		minUsable: c.MinUsable,
		slowStart: c.SlowStart,
		list:      slices.Clone(c.Backends),
		byTier:    slices.Clone(c.Backends),
		index:     make(map[*Backend]int, len(c.Backends)),
		byName:    make(map[string]*Backend, len(c.Backends)),
	}
	for i, b := range m.list {
		if b == nil {
			return nil, fmt.Errorf("backend %d of the list is nil", i)
		}
		if _, ok := m.byName[b.name]; ok {
			return nil, fmt.Errorf("two backends are named %s", b.name)
		}
		m.byName[b.name] = b
	}
	slices.SortStableFunc(m.byTier, func(a, b *Backend) int { return a.tier - b.tier })
	for i, b := range m.byTier {
		m.index[b] = i
		if i+1 == len(m.byTier) || m.byTier[i+1].tier != b.tier {
			m.tierEnds = append(m.tierEnds, i+1)
		}
	}
	return m, nil
}

// A view is a group at one moment: its members and everything derived from them and from their status. It is immutable, but
// for the hints in the free sets. A change makes a new one.
type view struct {
	members *members
	tiers   []tier // in ascending order
	usable  int    // candidates of all tiers
	open    bool   // health is disregarded
	growing bool   // a slow start is under way
	grown   int64  // when the last of them ends
}

// A tier is one tier of a group: its backends, and which of them are candidates. Candidates are numbered in the order that the balance
// wants: First as configured, SourceHash by name, the others by weight.
type tier struct {
	balance    Balance
	start      int        // of the tier in members.byTier
	backends   []*Backend // of members.byTier
	candidates []uint16   // backends[candidates[i]] is candidate i
	where      []uint16   // and where is the inverse; none for those that are no candidates
	free       freeSet    // of candidates
	growth     growth

	cursor  *atomic.Uint64 // of the group, for cycle
	cycle   cycle          // RoundRobin, and LeastConn if it is exact
	lottery lottery        // Random, and LeastConn if it is not
	table   *hashTable     // SourceHash
}

// newView looks at each member once and takes time proportional to their number, unless a weight changed under SourceHash. What it can
// use of the previous view of the same group it does.
func newView(m *members, previous *view, cursor *atomic.Uint64, now int64) *view {
	v := &view{members: m, tiers: make([]tier, len(m.tierEnds)), grown: now}
	seen := make([]status, len(m.byTier))
	var eligible, up int
	for i, b := range m.byTier {
		seen[i] = b.load()
		if seen[i].eligible() {
			eligible++
			if seen[i].up() {
				up++
			}
		}
	}
	v.usable = up
	if v.open = up*100 < m.minUsable*eligible; v.open {
		v.usable = eligible
		for i := range seen {
			seen[i] |= statusUp
		}
	}

	candidates, where := make([]uint16, v.usable), make([]uint16, len(m.byTier))
	start := 0
	for i, end := range m.tierEnds {
		t := &v.tiers[i]
		*t = tier{balance: m.balance, start: start, backends: m.byTier[start:end], candidates: candidates, where: where[start:end], cursor: cursor}
		var old *tier
		if i < len(previous.tiers) {
			old = &previous.tiers[i]
		}
		t.enroll(seen[start:end], old)
		candidates = candidates[len(t.candidates):]
		t.free = newFreeSet(len(t.candidates))
		if m.slowStart > 0 {
			t.growth = newGrowth(m.slowStart, t, now)
			if t.growth.running() {
				v.grown = max(v.grown, t.growth.ends)
				v.growing = true
			}
		}
		start = end
	}
	return v
}

// enroll sets candidates and where, and what the balance needs.
func (t *tier) enroll(seen []status, old *tier) {
	switch t.balance {
	case First:
		t.number(seen, nil)
	case SourceHash:
		var table *hashTable
		if old != nil {
			table = old.table
		}
		t.table = tableOf(table, t.backends, seen)
		t.number(seen, t.table.byName)
	default:
		t.sort(seen, old)
	}
}

// number numbers the candidates in the given order of backends; nil means their own.
func (t *tier) number(seen []status, order []uint16) {
	n := 0
	for k := range seen {
		i := k
		if order != nil {
			i = int(order[k])
		}
		t.where[i] = none
		if seen[i].usable() {
			t.where[i] = uint16(n)
			t.candidates[n] = uint16(i)
			n++
		}
	}
	t.candidates = t.candidates[:n]
}

// sort numbers the candidates by weight, those of one weight in their own order.
func (t *tier) sort(seen []status, old *tier) {
	var count, next [MaxWeight + 1]int
	for _, s := range seen {
		if s.usable() {
			count[s.weight()]++
		}
	}
	classes := classesOf(&count)
	for _, c := range classes {
		next[c.weight] = int(c.first)
	}
	n := 0
	for i, s := range seen {
		t.where[i] = none
		if s.usable() {
			k := next[s.weight()]
			next[s.weight()]++
			t.where[i] = uint16(k)
			t.candidates[k] = uint16(i)
			n++
		}
	}
	t.candidates = t.candidates[:n]
	if t.balance == RoundRobin || t.balance == LeastConn && n <= exact {
		var cycle *cycle
		if old != nil {
			cycle = &old.cycle
		}
		t.cycle = newCycle(classes, cycle)
	} else {
		t.lottery = newLottery(classes)
	}
}

func (t *tier) candidate(i int) *Backend { return t.backends[t.candidates[i]] }

// find returns the tier of b and its number there, if it is a candidate.
func (v *view) find(b *Backend) (t *tier, candidate int, ok bool) {
	i, ok := v.members.index[b]
	if !ok {
		return nil, 0, false
	}
	k := 0
	for i >= v.members.tierEnds[k] {
		k++
	}
	t = &v.tiers[k]
	c := t.where[i-t.start]
	return t, int(c), c != none
}

// holds reports whether b is a candidate.
func (v *view) holds(b *Backend) bool {
	_, _, ok := v.find(b)
	return ok
}

// reopen notes that b, which was full, is so no longer.
func (v *view) reopen(b *Backend) {
	if t, i, ok := v.find(b); ok {
		t.free.add(i)
	}
}

// A request is one call of Lease.
type request struct {
	key   uint64
	tried []*Backend
	now   int64 // set when a slow start is under way
}

// choose takes a slot on a backend; nil if there is none, or all that may be chosen are full.
func (v *view) choose(key uint64, tried []*Backend) *Backend {
	t := v.lowest(tried)
	if t == nil && len(tried) > 0 {
		tried = nil
		t = v.lowest(nil)
	}
	if t == nil {
		return nil
	}
	r := request{key: key, tried: tried}
	if t.growth.running() {
		r.now = now()
	}
	return t.pick(&r)
}

// lowest returns the lowest tier that has a candidate which was not tried; nil if there is none.
func (v *view) lowest(tried []*Backend) *tier {
	for k := range v.tiers {
		t := &v.tiers[k]
		untried := len(t.candidates)
		if untried > len(tried) {
			return t
		}
		for i, b := range tried {
			if of, _, ok := v.find(b); ok && of == t && !slices.Contains(tried[:i], b) {
				untried--
			}
		}
		if untried > 0 {
			return t
		}
	}
	return nil
}
