package backend

import (
	"testing"

	"pgregory.net/rapid"
)

func TestFreeSetIsASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.OneOf(rapid.IntRange(0, 130), rapid.IntRange(4_000, 10_000)).Draw(t, "n")
		s := newFreeSet(n)
		in := make([]bool, n)
		for i := range in {
			in[i] = true
		}
		check := func() {
			i := 0
			for want := range n {
				if in[want] {
					if got := s.next(i); got != want {
						t.Fatalf("next(%d) = %d, want %d", i, got, want)
					}
					i = want + 1
				}
			}
			if got := s.next(i); got < n {
				t.Fatalf("next(%d) = %d, want none", i, got)
			}
		}
		check()
		if n == 0 {
			return
		}
		for range rapid.IntRange(1, 5).Draw(t, "rounds") {
			from := rapid.IntRange(0, n-1).Draw(t, "from")
			to := rapid.IntRange(from, n-1).Draw(t, "to")
			add := rapid.Bool().Draw(t, "add")
			for i := from; i <= to; i++ {
				if in[i] = add; add {
					s.add(i)
				} else {
					s.remove(i)
				}
			}
			check()
		}
	})
}
