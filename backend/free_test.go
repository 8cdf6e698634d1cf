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

func TestFreeSetFindsWhatIsAddedWhileAnotherIsRemoved(t *testing.T) {
	s := newFreeSet(200)
	for i := range 200 {
		s.remove(i)
	}
	var version uint64
	meet(8_000, func(int) {
		s.remove(100)
	}, func(round int, together func()) {
		s.add(100)
		version = s.version.Load()
		together()
		for range round % 256 { // so that they meet in every way
			s.next(0)
		}
		s.add(101)
	}, func(round int) {
		if got := s.next(0); got != 101 || s.version.Load() == version {
			t.Fatalf("round %d: next(0) = %d, want 101 and a new version", round, got)
		}
		s.remove(101)
	})
}
