package backend

import (
	"math/bits"
	"sync/atomic"
)

// A freeSet knows which candidates may have a free slot, so that a tier of 10,000 of which all or nearly all are full is not
// searched one by one. Bit i of words is set unless candidate i was seen full; bit j of summary is set unless word j is 0.
//
// A set bit promises nothing. A clear bit means full, but for a moment: whoever clears it looks at the candidate again
// and sets it if a slot came free meanwhile, and likewise for a word and its bit in summary. Whoever found nothing must
// search again if version has changed meanwhile: then either nothing was free, or the one who corrects a bit, or somebody who
// was told of a slot after that, finds it.
type freeSet struct {
	words   []atomic.Uint64
	summary []atomic.Uint64
	version *atomic.Uint64 // counts what was added
}

// newFreeSet returns the set of 0..n-1.
func newFreeSet(n int) freeSet {
	words := (n + 63) / 64
	all := make([]atomic.Uint64, words+(words+63)/64+1)
	last := len(all) - 1
	s := freeSet{words: all[:words], summary: all[words:last], version: &all[last]}
	fill(s.words, n)
	fill(s.summary, words)
	return s
}

func fill(words []atomic.Uint64, n int) {
	for i := range words {
		words[i].Store(^uint64(0) >> max(0, 64*(i+1)-n))
	}
}

func (s freeSet) add(i int) {
	s.words[i/64].Or(1 << (i % 64))
	s.addWord(i / 64)
}

func (s freeSet) addWord(w int) {
	if bit := uint64(1) << (w % 64); s.summary[w/64].Load()&bit == 0 {
		s.summary[w/64].Or(bit)
	}
	s.version.Add(1)
}

// remove clears bit i; the caller then looks again whether i has become free, and if so adds it.
func (s freeSet) remove(i int) {
	w := i / 64
	bit := uint64(1) << (i % 64)
	if s.words[w].And(^bit)&^bit != 0 {
		return
	}
	s.summary[w/64].And(^(1 << (w % 64)))
	if s.words[w].Load() != 0 {
		s.addWord(w)
	}
}

// next returns the smallest member from i up, or a number larger than any member.
func (s freeSet) next(i int) int {
	w := i / 64
	if w >= len(s.words) {
		return len(s.words) * 64
	}
	if rest := s.words[w].Load() >> (i % 64); rest != 0 {
		return i + bits.TrailingZeros64(rest)
	}
	for w++; w < len(s.words); w++ {
		rest := s.summary[w/64].Load() >> (w % 64)
		if rest == 0 {
			w |= 63
			continue
		}
		w += bits.TrailingZeros64(rest)
		if word := s.words[w].Load(); word != 0 {
			return w*64 + bits.TrailingZeros64(word)
		}
	}
	return len(s.words) * 64
}
