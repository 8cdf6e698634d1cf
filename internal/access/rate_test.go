package access

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestBurstThenAsManyAsComeBack(t *testing.T) {
	r := NewRate(10, 3)
	at := time.Hour
	steps := []struct {
		after time.Duration
		want  int // tokens that there are
	}{
		{0, 3}, {0, 0}, {99 * time.Millisecond, 0}, {time.Millisecond, 1}, {200 * time.Millisecond, 2}, {150 * time.Millisecond, 1}, {50 * time.Millisecond, 1},
		{time.Hour, 3}, {0, 0},
	}
	for i, s := range steps {
		at += s.after
		got := 0
		for r.Take(at) {
			got++
		}
		if got != s.want {
			t.Fatalf("step %d: %d tokens, want %d", i, got, s.want)
		}
		if wait := r.Wait(at); wait <= 0 || wait > 100*time.Millisecond || r.Take(at+wait-1) || !r.Take(at+wait) {
			t.Fatalf("step %d: the next token is not there after %v", i, wait)
		}
		r.Give()
	}
	if wait := NewRate(1, 1).Wait(0); wait != 0 {
		t.Errorf("a full bucket: wait %v", wait)
	}
}

func TestTokenThatWasNotUsedComesBack(t *testing.T) {
	r := NewRate(1, 2)
	for range 100 {
		if !r.Take(0) {
			t.Fatal("a token is lost")
		}
		r.Give()
	}
	got := 0
	for r.Take(0) {
		got++
	}
	if got != 2 {
		t.Errorf("%d tokens, want 2", got)
	}
}

// A listener that pauses for as long as Wait says accepts at the rate, and nobody is turned away.
func TestPausingKeepsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := NewRate(40, 4)
		for range 204 {
			for !r.Take(time.Since(start)) {
				time.Sleep(r.Wait(time.Since(start)))
			}
		}
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("204 sessions at 40 a second, 4 at once: %v", took)
		}
	})
}

func TestRateWithManyAtOnce(t *testing.T) {
	r := NewRate(1000, 500)
	var taken atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 1000 {
				if r.Take(time.Duration(i) * time.Microsecond) {
					taken.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := taken.Load(); n != 500 {
		t.Errorf("%d tokens of 500 (the next comes after a millisecond)", n)
	}
}

func TestEachSourceHasItsRate(t *testing.T) {
	r := NewRates(10, 10)
	allowed := func(s Source, at time.Duration) (n int) {
		for range 40 {
			if r.Allow(s, at) {
				n++
			}
		}
		return n
	}
	for _, tt := range []struct {
		source uint32
		at     time.Duration
		want   int
	}{
		{1, 0, 10}, {1, 0, 0}, {2, 0, 10}, {1, 99 * time.Millisecond, 0}, {1, 100 * time.Millisecond, 1}, {2, 500 * time.Millisecond, 5}, {1, time.Minute, 10},
	} {
		if got := allowed(source(tt.source), tt.at); got != tt.want {
			t.Errorf("source %d at %v: %d, want %d", tt.source, tt.at, got, tt.want)
		}
	}
	if n := allowed(Source{}, 0); n != 10 {
		t.Errorf("the zero source: %d", n)
	}
}

// In a flood everybody new is let in, who is over the rate stays out while there is room, and memory stays what it was.
func TestRatesInAFloodOfSources(t *testing.T) {
	before := heap()
	r := NewRates(1, 1)
	if used := heap() - before; used > 3<<20 {
		t.Errorf("%d bytes", used)
	}
	const perSecond = 10_000
	greedy, greedyIn := source(flood), 0
	for i := range uint32(flood) {
		now := time.Duration(i) * time.Second / perSecond
		if !r.Allow(source(i), now) {
			t.Fatalf("source %d is refused its first session", i)
		}
		if r.Allow(greedy, now) {
			greedyIn++
		}
	}
	if seconds := flood / perSecond; greedyIn > seconds+10 { // a few more if its set is full of others that are not idle
		t.Errorf("%d sessions of one source in %d s at 1 a second", greedyIn, seconds)
	}
	if used := heap() - before; used > 3<<20 {
		t.Errorf("%d bytes after the flood", used)
	}

	// All at one moment: more than there is room for. Nobody gets too few.
	for i := range uint32(flood) {
		if !r.Allow(source(i), time.Hour) {
			t.Fatalf("source %d of many at once is refused its first session", i)
		}
	}
}

func BenchmarkRate(b *testing.B) {
	r := NewRate(1_000_000, 1000)
	start := time.Now()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r.Take(time.Since(start))
		}
	})
}

func BenchmarkRates(b *testing.B) {
	r := NewRates(10, 10)
	start := time.Now()
	var next atomic.Uint32
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for i := next.Add(1 << 20); pb.Next(); i++ {
			r.Allow(source(i%200_000), time.Since(start))
		}
	})
}
