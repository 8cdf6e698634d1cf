package pool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// slots is what the tests queue for.
type slots struct{ free atomic.Int64 }

func (s *slots) take() bool {
	for {
		n := s.free.Load()
		if n == 0 {
			return false
		}
		if s.free.CompareAndSwap(n, n-1) {
			return true
		}
	}
}

func (s *slots) give(q *Queue, n int64) {
	s.free.Add(n)
	q.Wake()
}

// line lets n sessions join one after the other, and collects in which order they are served.
func line(ctx context.Context, q *Queue, s *slots, n int) (served <-chan int) {
	c := make(chan int, n)
	for i := range n {
		go func() {
			if q.Wait(ctx, s.take) == nil {
				c <- i
			}
		}()
		synctest.Wait()
	}
	return c
}

func TestQueueServesInOrderOfArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, s := NewQueue(0, 0), &slots{}
		served := line(t.Context(), q, s, 5)
		for i := range 5 {
			s.give(q, 1)
			synctest.Wait()
			if len(served) != 1 {
				t.Fatalf("turn %d: %d served by one slot", i, len(served))
			}
			if got := <-served; got != i {
				t.Errorf("turn %d: served session %d", i, got)
			}
		}
	})
}

func TestOneWakeServesAsManyAsThereAreSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, s := NewQueue(0, 0), &slots{}
		served := line(t.Context(), q, s, 5)
		s.give(q, 3)
		synctest.Wait()
		if len(served) != 3 || q.Len() != 2 {
			t.Errorf("%d served, %d wait, want 3 and 2", len(served), q.Len())
		}
		s.give(q, 2)
		synctest.Wait()
	})
}

func TestSlotFreedBeforeJoiningIsTaken(t *testing.T) {
	q, s := NewQueue(0, 0), &slots{}
	s.give(q, 1)
	if err := q.Wait(t.Context(), s.take); err != nil {
		t.Fatal(err)
	}
	if q.Len() != 0 {
		t.Errorf("%d wait", q.Len())
	}
}

func TestQueueFullIsRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, s := NewQueue(2, 0), &slots{}
		served := line(t.Context(), q, s, 2)
		if err := q.Wait(t.Context(), s.take); !errors.Is(err, ErrQueueFull) {
			t.Errorf("the third: %v, want ErrQueueFull", err)
		}
		s.give(q, 2)
		synctest.Wait()
		if len(served) != 2 {
			t.Errorf("%d of those who waited were served, want 2", len(served))
		}
	})
}

func TestQueueTimeoutIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, s := NewQueue(0, 800*time.Millisecond), &slots{}
		start := time.Now()
		go func() {
			for range 7 { // wake-ups that bring nothing do not extend the time
				time.Sleep(100 * time.Millisecond)
				q.Wake()
			}
		}()
		err := q.Wait(t.Context(), s.take)
		if !errors.Is(err, ErrQueueTimeout) || time.Since(start) != 800*time.Millisecond {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		if q.Len() != 0 {
			t.Errorf("%d wait", q.Len())
		}
	})
}

func TestLimitHoldsForThoseWhoJoinLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, s := NewQueue(1, time.Minute), &slots{}
		served := line(t.Context(), q, s, 1)
		q.Limit(2, time.Second)
		start := time.Now()
		if err := q.Wait(t.Context(), s.take); !errors.Is(err, ErrQueueTimeout) || time.Since(start) != time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		s.give(q, 1)
		synctest.Wait()
		if len(served) != 1 {
			t.Error("the first does not wait any more")
		}
	})
}

func TestWhoLeavesTheQueueTakesNoTurnAlong(t *testing.T) {
	gone := errors.New("client gone")
	for leaver := range 3 {
		t.Run(fmt.Sprint("session ", leaver), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q, s := NewQueue(0, 0), &slots{}
				var served []int
				var mu sync.Mutex
				leave := context.CancelCauseFunc(nil)
				for i := range 3 {
					ctx, cancel := context.WithCancelCause(t.Context())
					defer cancel(nil)
					if i == leaver {
						leave = cancel
					}
					go func() {
						err := q.Wait(ctx, s.take)
						if err == nil {
							mu.Lock()
							defer mu.Unlock()
							served = append(served, i)
						} else if i != leaver || !errors.Is(err, gone) {
							t.Errorf("session %d: %v", i, err)
						}
					}()
					synctest.Wait()
				}
				leave(gone) // at the same moment as the wake-up
				s.give(q, 2)
				synctest.Wait()
				left := s.free.Load()
				if len(served)+int(left) != 2 || q.Len() != 2-len(served) || left > 0 && q.Len() > 0 {
					t.Errorf("served %v, %d slots free, %d wait", served, left, q.Len())
				}
			})
		})
	}
}

func TestContextEndedBeforeJoiningMakesNoTry(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := NewQueue(0, 0).Wait(ctx, func() bool { t.Error("tried"); return true })
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Sessions come, wait, leave and are served at random; every slot that is given must be taken while anybody waits, and those
// who are served are served in the order in which they joined.
func TestNoWakeUpIsLost(t *testing.T) {
	const sessions, room = 20_000, 8
	q, s := NewQueue(0, 0), &slots{}
	s.free.Store(room)
	var using atomic.Int64
	var served, left atomic.Int64
	var all sync.WaitGroup
	limit := make(chan struct{}, 300)
	for range sessions {
		limit <- struct{}{}
		all.Go(func() {
			defer func() { <-limit }()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			if rand.IntN(4) == 0 {
				go cancel()
			}
			if q.Len() > 0 || !s.take() {
				if q.Wait(ctx, s.take) != nil {
					left.Add(1)
					return
				}
			}
			if n := using.Add(1); n > room {
				t.Errorf("%d use %d slots", n, room)
			}
			for range rand.IntN(200) {
				_ = rand.Int()
			}
			using.Add(-1)
			served.Add(1)
			s.give(q, 1)
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Minute):
		t.Fatalf("%d slots free and %d sessions wait", s.free.Load(), q.Len())
	}
	if q.Len() != 0 || s.free.Load() != room || served.Load()+left.Load() != sessions {
		t.Errorf("%d wait, %d slots free, %d served, %d left", q.Len(), s.free.Load(), served.Load(), left.Load())
	}
}

// Order under contention: one gives slots as fast as it can, the sessions join in a known order.
func TestOrderHoldsUnderContention(t *testing.T) {
	const sessions = 2000
	q, s := NewQueue(0, 0), &slots{}
	var mu sync.Mutex
	var order []int
	var all sync.WaitGroup
	stop := make(chan struct{})
	giver := make(chan struct{})
	go func() {
		defer close(giver)
		for {
			select {
			case <-stop:
				return
			default:
				if s.free.Load() == 0 && rand.IntN(3) == 0 {
					s.give(q, 1)
				} else {
					q.Wake()
				}
				runtime.Gosched() // with one processor each turn would else wait for the end of this one's time slice
			}
		}
	}()
	joined := make(chan struct{})
	for i := range sessions {
		all.Go(func() {
			w, _, err := q.join()
			if err != nil {
				t.Error(err)
				return
			}
			joined <- struct{}{}
			defer q.leave(w)
			for range w.turn {
				if s.take() {
					mu.Lock()
					order = append(order, i)
					mu.Unlock()
					return
				}
			}
		})
		<-joined
	}
	all.Wait()
	close(stop)
	<-giver
	for i, got := range order {
		if got != i {
			t.Fatalf("turn %d was session %d", i, got)
		}
	}
}

func BenchmarkQueueNobodyWaits(b *testing.B) {
	q := NewQueue(0, 0)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if q.Len() == 0 {
				q.Wake()
			}
		}
	})
}

func BenchmarkQueueWait(b *testing.B) {
	q := NewQueue(0, time.Minute)
	b.ReportAllocs()
	for b.Loop() {
		if err := q.Wait(b.Context(), func() bool { return true }); err != nil {
			b.Fatal(err)
		}
	}
}
