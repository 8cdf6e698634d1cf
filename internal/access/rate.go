package access

import (
	"sync"
	"sync/atomic"
	"time"
)

// A pace is a token bucket written as times (GCRA): its state is one moment, full, at which the bucket will be full again.
// A full that has passed says the same as one that has just come, so nothing needs to be remembered of whoever is idle.
type pace struct {
	interval time.Duration // in which one token comes
	slack    time.Duration // how far full may be ahead for there to be a token
}

func newPace(perSecond, burst int) pace {
	interval := time.Second / time.Duration(perSecond)
	return pace{interval, time.Duration(burst-1) * interval}
}

// take returns the new full, and whether there was a token.
func (p pace) take(full, now time.Duration) (time.Duration, bool) {
	full = max(full, now)
	if full-now > p.slack {
		return full, false
	}
	return full + p.interval, true
}

// wait is how long it takes from now until there is a token; 0 if there is one.
func (p pace) wait(full, now time.Duration) time.Duration {
	return max(full-now-p.slack, 0)
}

// A Rate is a token bucket. Make one with [NewRate]. Its methods may be called by many goroutines at once and take no lock.
type Rate struct {
	pace pace
	full atomic.Int64
}

// NewRate returns a full bucket of burst tokens into which perSecond come, both at least 1.
func NewRate(perSecond, burst int) *Rate {
	return &Rate{pace: newPace(perSecond, burst)}
}

// Take takes a token if there is one.
func (r *Rate) Take(now time.Duration) bool {
	for {
		old := r.full.Load()
		full, ok := r.pace.take(time.Duration(old), now)
		if !ok {
			return false
		}
		if r.full.CompareAndSwap(old, int64(full)) {
			return true
		}
	}
}

// Give returns a token that was taken and not used.
func (r *Rate) Give() { r.full.Add(-int64(r.pace.interval)) }

// Wait is how long it takes from now until Take finds a token, if nobody is faster; 0 if there is one.
func (r *Rate) Wait(now time.Duration) time.Duration {
	return r.pace.wait(time.Duration(r.full.Load()), now)
}

// Rates is a token bucket for each source, in memory of a fixed size: 2 MiB, of which the system gives what is touched.
// Make one with [NewRates]. Its methods may be called by many goroutines at once; sources are spread over many locks.
//
// There is room for 65,536 sources with a bucket that is not full. When more come within a burst's time, the one that
// would be full soonest is forgotten: it gets a full bucket too early. No source ever gets too few tokens.
type Rates struct {
	pace  pace
	hash  hasher
	locks [rateLocks]struct {
		sync.Mutex
		_ [56]byte
	}
	sets [rateSets]rateSet
}

const (
	rateLocks = 64
	rateSets  = 1 << 13
	rateWays  = 8
)

// A rateSet is where the sources of one hash can be: a few places, looked at one by one.
type rateSet [rateWays]struct {
	source Source
	full   time.Duration
}

// NewRates returns full buckets of burst tokens into which perSecond come, both at least 1.
func NewRates(perSecond, burst int) *Rates {
	return &Rates{pace: newPace(perSecond, burst), hash: newHasher()}
}

// Allow takes a token of s if there is one.
func (r *Rates) Allow(s Source, now time.Duration) bool {
	i := r.hash.hash(s) % rateSets
	lock := &r.locks[i%rateLocks]
	lock.Lock()
	defer lock.Unlock()
	set := &r.sets[i]
	place, full := 0, now
	for k := range set {
		if set[k].source == s {
			place, full = k, set[k].full
			break
		}
		if set[k].full < set[place].full {
			place = k
		}
	}
	full, ok := r.pace.take(full, now)
	set[place].source, set[place].full = s, full
	return ok
}
