package pool

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

var (
	// ErrQueueFull is returned by [Queue.Wait] when as many wait as may.
	ErrQueueFull = errors.New("queue full")
	// ErrQueueTimeout is returned by [Queue.Wait] when the time was over before the turn came.
	ErrQueueTimeout = errors.New("queue timeout")
)

// A Queue is a line of sessions, first in, first out: for a slot when every backend is at its cap, or for a
// backend to come up when none is usable. Only the one at the head tries; the others sleep. All methods may be
// called concurrently.
//
// Who joins is up to the caller, and so is fairness towards those who wait already:
//
//	if q.Len() > 0 || !try() {
//		err = q.Wait(ctx, try)
//	}
//
// Neither Len nor Wake takes a lock while nobody waits.
type Queue struct {
	waiting atomic.Int64 // the length of the list; written under mu

	mu         sync.Mutex
	max        int
	timeout    time.Duration
	head, tail *waiter
}

// A waiter is one session in the line.
type waiter struct {
	prev, next *waiter
	turn       chan struct{} // one token: look again
}

// NewQueue returns an empty queue in which at most max sessions wait, each for timeout at most; 0 is no limit.
func NewQueue(max int, timeout time.Duration) *Queue {
	return &Queue{max: max, timeout: timeout}
}

// Limit changes what [NewQueue] set. Who waits already stays, for the time that was set when it joined.
func (q *Queue) Limit(max int, timeout time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.max, q.timeout = max, timeout
}

// Timeout is how long one waits at most; 0 is no limit.
func (q *Queue) Timeout() time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.timeout
}

// Len is how many wait. A new session that does not join while Len is above 0 overtakes them.
func (q *Queue) Len() int { return int(q.waiting.Load()) }

// Wake makes the one at the head try. Call it after whatever try looks for has changed: a slot was given back, a
// backend came up. One call is enough however many slots came free: whoever succeeds hands on to the next.
func (q *Queue) Wake() {
	if q.waiting.Load() == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.head != nil {
		q.head.call()
	}
}

// Wait joins the end of the line and returns nil as soon as try, called at the head of it, returned true. try is called in the
// caller's goroutine, on arrival at the head and then once for each Wake at least, never by two sessions at
// a time; it may give up by returning true and saying so to the caller in its own way.
//
// Otherwise Wait returns [ErrQueueFull] at once, [ErrQueueTimeout], or the cause of ctx's end. Who leaves hands its turn on,
// so that no wake-up is lost with it.
func (q *Queue) Wait(ctx context.Context, try func() bool) error {
	w, timeout, err := q.join()
	if err != nil {
		return err
	}
	defer q.leave(w)

	var late <-chan time.Time
	if timeout > 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		late = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		default:
		}
		select {
		case <-w.turn:
			if try() {
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late:
			return ErrQueueTimeout
		}
	}
}

func (q *Queue) join() (*waiter, time.Duration, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.max > 0 && q.waiting.Load() >= int64(q.max) {
		return nil, 0, ErrQueueFull
	}
	w := &waiter{turn: make(chan struct{}, 1), prev: q.tail}
	if q.tail == nil {
		q.head = w
		w.call() // what it waits for may have come between its own try and now
	} else {
		q.tail.next = w
	}
	q.tail = w
	q.waiting.Add(1)
	return w, q.timeout, nil
}

func (q *Queue) leave(w *waiter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting.Add(-1)
	if w.next == nil {
		q.tail = w.prev
	} else {
		w.next.prev = w.prev
	}
	if w.prev != nil {
		w.prev.next = w.next
		return
	}
	q.head = w.next
	if q.head != nil {
		q.head.call()
	}
}

func (w *waiter) call() {
	select {
	case w.turn <- struct{}{}:
	default: // a token is there already
	}
}
