package backend

import (
	"math/bits"
	"slices"
	"strings"
	"sync"
)

// A hashTable says which backend of a tier a key belongs to, whoever is up.
//
// It has a fixed number of slots, which a key is hashed to, and each slot belongs to a backend by an exponential race: every backend makes
// an endless stream of arrivals, each at a time and in a slot. The times between its arrivals are exponentially distributed
// with a rate equal to its weight, the slots uniform, both pseudo-random and seeded by the backend's name alone. A slot belongs to the
// first to arrive there. So
//
//   - the chance to own a slot is the backend's share of all weights;
//   - without a backend, its slots go to the next to arrive there and nothing else changes; a new one takes slots only for
//     itself; more weight only gains slots, less only loses some. No table can move fewer keys;
//   - neither the order of the list nor the process plays a part.
//
// This is rendezvous hashing for every slot at once, in time that depends on the number of slots and not of backends: about slots·ln(slots)
// arrivals fill the table. The share of one of n equal backends is within some √(n/slots) of the mean (standard deviation):
// 1.2 % for 10 backends, 10 % for 650, 5 % for 651, 20 % for 10,000. The larger table is no larger still because it should fit a
// processor's cache: with 2^20 slots, choosing among 10,000 backends took more than twice as long as among 10, and making it ten times as long.
//
// Above smallTier backends of any weight the table is larger. It is another table then: the step from 650 to 651 moves most keys.
type hashTable struct {
	backends []*Backend
	weights  []uint16
	byName   []uint16 // the backends sorted by name
	slots    []uint16 // owners
	shift    int      // hash >> shift is the slot
}

const (
	smallTier      = 650
	smallTableBits = 16
	largeTableBits = 18
)

// tableOf returns the table of the backends: the old one if that is it.
func tableOf(old *hashTable, backends []*Backend, statuses []status) *hashTable {
	weights := make([]uint16, len(backends))
	for i, s := range statuses {
		weights[i] = uint16(s.weight())
	}
	if old != nil && slices.Equal(old.backends, backends) && slices.Equal(old.weights, weights) {
		return old
	}
	return newHashTable(backends, weights)
}

func newHashTable(backends []*Backend, weights []uint16) *hashTable {
	size := smallTableBits
	if len(backends) > smallTier {
		size = largeTableBits
	}
	t := &hashTable{
		backends: backends,
		weights:  weights,
		byName:   make([]uint16, len(backends)),
		shift:    64 - size,
	}
	for i := range t.byName {
		t.byName[i] = uint16(i)
	}
	slices.SortFunc(t.byName, func(i, j uint16) int { return strings.Compare(backends[i].name, backends[j].name) })

	var total uint64
	streams := make([]stream, 0, len(backends))
	for rank, i := range t.byName {
		if weights[i] > 0 {
			streams = append(streams, newStream(backends[i].seed, uint64(weights[i]), uint64(rank)))
			total += uint64(weights[i])
		}
	}
	if total == 0 {
		return t
	}

	// An entry is time<<16 | rank of the earliest arrival. All arrivals before the horizon are made, of every backend, so what is in
	// the table is final; later ones only matter to slots that are still empty.
	first := make([]uint64, 1<<size)
	for i := range first {
		first[i] = empty
	}
	perSlot := uint64(1)<<(size+timeBits)/total + 1 // the time in which one arrival comes to a slot, on average
	for horizon := perSlot * uint64(size*7/10+2); ; horizon += perSlot * 2 {
		for i := range streams {
			streams[i].run(horizon, first, t.shift)
		}
		if !slices.Contains(first, empty) {
			break
		}
	}
	t.slots = make([]uint16, len(first))
	for i, f := range first {
		t.slots[i] = t.byName[f&0xFFFF]
	}
	return t
}

// empty is later than any arrival.
const empty = ^uint64(0)

// timeBits is how many binary digits the fraction of a time has, in units of the mean time between arrivals at weight 1. 22
// are left for the whole part, and a table is full by 2^21 even with one backend of weight 1.
const timeBits = 26

// A stream is the arrivals of one backend. Everything is computed with integers, so that it is the same on every processor:
// math.Log need not be.
type stream struct {
	rank    uint64
	counter uint64 // of SplitMix64
	work    uint64 // the time of the last arrival times weight, in units of 2^-expBits
	inverse uint64 // turns work into time
}

func newStream(seed, weight, rank uint64) stream {
	return stream{rank: rank, counter: seed, inverse: 1 << (64 - expBits + timeBits) / weight}
}

// run makes the arrivals before the horizon, of those that it has not made before.
func (s *stream) run(horizon uint64, first []uint64, shift int) {
	ln := logarithms()
	for {
		random := mix(s.counter + golden)
		work := s.work + exponential(random<<(64-shift), ln)
		time, _ := bits.Mul64(work, s.inverse)
		if time >= horizon {
			return
		}
		s.counter += golden
		s.work = work
		slot := &first[random>>shift]
		*slot = min(*slot, time<<16|s.rank)
	}
}

// expBits is how many binary digits the fraction of exponential and of its logarithms has.
const expBits = 32

// ln2 is the natural logarithm of 2 in units of 2^-expBits.
const ln2 = 2977044472

// exponential returns a number that is exponentially distributed with mean 1, in units of 2^-expBits, for a uniformly distributed one: it
// is -ln(uniform/2^64), with an error below 2^-22. ln is [logarithms].
func exponential(uniform uint64, ln *[1025]uint64) uint64 {
	uniform |= 1 << 19 // below what a table of either size leaves of 64 random bits: not 0, and in the middle of its interval
	zeros := bits.LeadingZeros64(uniform)
	mantissa := uniform << zeros << 1 // the digits after the leading 1
	i, rest := mantissa>>54, mantissa<<10>>32
	return uint64(zeros+1)*ln2 - (ln[i] + (ln[i+1]-ln[i])*rest>>32)
}

// logarithms returns ln(1+i/1024) for i = 0..1024, in units of 2^-expBits.
var logarithms = sync.OnceValue(func() *[1025]uint64 {
	var table [1025]uint64
	for i := range table[:1024] {
		// The binary digits of log2(x) for 1 ≤ x < 2: square x; if that is 2 or more the digit is 1, and x is halved.
		x := uint64(1024+i) << 53 // in units of 2^-63
		var log2 uint64
		for range 40 {
			hi, _ := bits.Mul64(x, x) // in units of 2^-62
			log2 <<= 1
			if hi>>63 != 0 {
				log2 |= 1
				x = hi
			} else {
				x = hi << 1
			}
		}
		hi, lo := bits.Mul64(log2, ln2)
		table[i] = hi<<24 | lo>>40
	}
	table[1024] = ln2
	return &table
})

// sourceHash proposes the owner of the key; after the first attempt, when the owner will not do, that of the key hashed again. So the keys
// of a backend that is down are spread over all others, and come back when it is up.
func (t *tier) sourceHash(r *request, attempt int) (int, *Backend) {
	h := mix(r.key + uint64(attempt)*golden)
	owner := t.table.slots[h>>t.table.shift]
	i := t.where[owner]
	if i == none {
		from, _ := bits.Mul64(h, uint64(len(t.candidates)))
		return int(from), nil
	}
	b := t.backends[owner]
	// While it starts slowly, the same keys stay away, and fewer of them as time goes on.
	if r.excludes(b) || !t.growth.admits(b, uint16(mix(r.key^b.seed)), r.now) {
		return int(i), nil
	}
	return int(i), b
}
