package pool

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/sethvargo/go-retry"
)

// errRunning is returned by a second Run.
var errRunning = errors.New("pool: Run is running already")

// Run keeps Warm spares and closes those that are too old, until ctx is done or the pool is closed. Then it closes the pool,
// waits for the dials that run, and returns nil. It is one goroutine, which sleeps while nothing is to be done, and one for
// each dial.
func (p *Pool[C]) Run(ctx context.Context) error {
	p.mu.Lock()
	if p.running {
		p.mu.Unlock()
		return errRunning
	}
	p.running = true
	p.mu.Unlock()

	ctx, cancel := context.WithCancel(ctx)
	var dials sync.WaitGroup
	defer dials.Wait()
	defer p.Close()
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-p.poke:
		}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil
		}
		now := time.Now()
		tooOld := p.expire(now)
		n, wait := p.refill(now)
		if n > 0 && p.era == nil {
			p.era = newEra(ctx)
		}
		e := p.era
		p.mu.Unlock()
		tooOld.close()
		for range n {
			dials.Go(func() { p.dial(e) })
		}
		timer.Reset(wait)
	}
}

// An era is the time between two Purges. What is dialed in one is not kept in another.
type era struct {
	ctx  context.Context
	stop context.CancelFunc
}

func newEra(ctx context.Context) *era {
	ctx, stop := context.WithCancel(ctx)
	return &era{ctx, stop}
}

// expire removes the spares that are too old.
func (p *Pool[C]) expire(now time.Time) (all dropped[C]) {
	for s := p.oldest; s != nil && !s.expires.IsZero() && !now.Before(s.expires); s = p.oldest {
		all = append(all, s.conn)
		p.remove(s)
	}
	return all
}

// refillCredit is the time whose unused dials may be made up for at once: a timer is late now and then, and that must not
// make the rate a lower one.
const refillCredit = 50 * time.Millisecond

// refill takes slots for the dials that are to begin now, and says how many, and when to look again.
func (p *Pool[C]) refill(now time.Time) (n int, wait time.Duration) {
	wait = math.MaxInt64
	if p.oldest != nil && !p.oldest.expires.IsZero() {
		wait = p.oldest.expires.Sub(now)
	}
	p.short.Store(false)
	for !p.paused && int(p.idle.Load())+p.dialing < p.cfg.Warm {
		if rest := max(p.nextDial.Sub(now), p.retryAt.Sub(now)); rest > 0 {
			return n, min(wait, rest)
		}
		// Before Reserve: a slot that is given back between its look and the store must not be missed.
		p.short.Store(true)
		if !p.cfg.Reserve(int(p.idle.Load())) {
			return n, wait
		}
		p.short.Store(false)
		p.dialing++
		n++
		if p.cfg.RefillRate > 0 {
			if earliest := now.Add(-refillCredit); p.nextDial.Before(earliest) {
				p.nextDial = earliest
			}
			p.nextDial = p.nextDial.Add(time.Duration(float64(time.Second) / p.cfg.RefillRate))
		}
	}
	return n, wait
}

// dial makes one spare, for which a slot was taken.
func (p *Pool[C]) dial(e *era) {
	c, err := p.connect(e.ctx)
	p.mu.Lock()
	p.dialing--
	current := e == p.era // so neither paused nor closed, which purge
	switch {
	case !current: // an error says nothing about what the backend is now
	case err != nil:
		p.backOff()
	default:
		p.backoff, p.retryAt = nil, time.Time{}
		p.add(&spare[C]{conn: c, pool: p})
	}
	p.mu.Unlock()
	switch {
	case err != nil:
	case current:
		p.settle(c)
	default:
		c.Close()
	}
	p.cfg.Unreserve()
	p.wake()
}

// backOff delays the next dial. The backoff is built at the first failure and dropped at the first success; failures
// of dials that ran at the same time count once.
func (p *Pool[C]) backOff() {
	now := time.Now()
	if now.Before(p.retryAt) {
		return
	}
	if p.backoff == nil {
		p.backoff = retry.WithJitterPercent(10, retry.WithCappedDuration(p.cfg.BackoffMax, retry.NewExponential(p.cfg.BackoffBase)))
	}
	pause, _ := p.backoff.Next() // it never stops
	p.retryAt = now.Add(pause)
}
