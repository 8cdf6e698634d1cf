package pool

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sethvargo/go-retry"
)

// ErrClosed is returned by a pool that was closed.
var ErrClosed = errors.New("pool closed")

// errNoConn is for a Dial that returns neither a connection nor an error.
var errNoConn = errors.New("pool: dial returned no connection")

// A Conn is a connection that a [Pool] can keep. The comparison tells connections apart, so a pointer it is, or an
// interface that holds one.
type Conn interface {
	comparable
	// Alive reports, without waiting, whether the peer has neither ended nor reset the connection, as far as it is known. An
	// event loop that sees an end makes Alive false first and calls [Pool.Evict] then. A Conn that cannot know returns true. It is
	// called by who takes or gives the connection, and with the pool's lock held while the connection is a spare: never beside a session that has it.
	Alive() bool
	// Close ends the connection. It is called with no lock held, once by the pool, and not at all for a connection that
	// left it.
	Close()
}

// Config says what a [Pool] keeps.
type Config[C Conn] struct {
	// Dial connects to the backend. It must return soon after ctx is done.
	Dial func(ctx context.Context) (C, error)
	// Warm is how many spares are dialed in advance and kept; 0: none, only what is Put is kept.
	Warm int
	// MaxAge is how old a spare may become, counted from its dial, or from Put. Each one gets up to a fifth less, so
	// that not all are renewed together. 0 is no limit.
	MaxAge time.Duration
	// RefillRate is how many dials a second are begun at most to reach Warm; 0 is no limit.
	RefillRate float64
	// BackoffBase is the pause after the first failed dial; it doubles with each that follows. 0 means 100ms.
	BackoffBase time.Duration
	// BackoffMax is the longest pause; 0 means 5s.
	BackoffMax time.Duration

	// Reserve takes one of the backend's slots for a dial that the pool begins, and Unreserve gives it back when the dial has
	// ended, well or not. Reserve must refuse when the slots that are taken, by sessions and by such dials, and idle, the number of
	// spares, reach the cap together. A spare itself holds no slot, so a session can always lease what spares occupy.
	//
	// Together with the rules for sessions (lease a slot first, then [Pool.TryGet], and dial only if there was no
	// spare; Put first, then release the slot) spares and sessions never exceed the cap.
	//
	// nil: there is no cap. Reserve is called with the pool's lock held and must not call the pool; Unreserve is not.
	Reserve   func(idle int) bool
	Unreserve func()
}

// A Pool keeps spares of one backend: connections that were dialed before a session asks for one, and connections that a
// session gave back. All methods may be called concurrently.
//
// The newest spare is taken first. It is the least likely to be dead, and has the longest time left of what the server gives a
// client to log in (ten seconds with MySQL); the oldest are renewed at MaxAge either way.
type Pool[C Conn] struct {
	cfg  Config[C]
	poke chan struct{} // one token: Run has something to do

	idle                 atomic.Int64 // spares; written under mu
	short                atomic.Bool  // Run waits for a slot: Reserve refused
	hits, reused, misses atomic.Uint64

	mu             sync.Mutex
	newest, oldest *spare[C]
	byConn         map[C]*spare[C]
	dialing        int
	nextDial       time.Time     // not before, because of RefillRate
	retryAt        time.Time     // not before, because of a failed dial
	backoff        retry.Backoff // nil: the last dial was well
	era            *era          // of the dials since the last Purge; nil: there were none
	paused         bool
	closed         bool
	running        bool
}

// A spare is a connection in the pool, or one that was lent and may come back.
type spare[C Conn] struct {
	conn         C
	pool         *Pool[C]
	newer, older *spare[C]
	loan         uint64 // number of the present or next loan; ended loans have smaller ones
	used         bool   // it was lent before
	expires      time.Time
}

// A Lent is a connection that left the pool and belongs to who got it. It is a value; of its copies the first that is given
// back or discarded counts. It may also be forgotten, and Conn used and closed like any other.
type Lent[C Conn] struct {
	Conn C
	// Reused says that the connection was lent before.
	Reused bool

	spare *spare[C]
	loan  uint64
}

// Stats is what a pool has done and holds.
type Stats struct {
	Spares  int // idle now
	Dialing int // being dialed to become spares
	// Hits are spares that were handed out new, Reused those handed out again, Misses the requests that found none.
	Hits, Reused, Misses uint64
}

// New returns a pool. It dials in advance only while [Pool.Run] runs.
func New[C Conn](c Config[C]) *Pool[C] {
	if c.BackoffBase <= 0 {
		c.BackoffBase = 100 * time.Millisecond
	}
	c.BackoffMax = max(cmp.Or(c.BackoffMax, 5*time.Second), c.BackoffBase)
	if c.Reserve == nil {
		c.Reserve = func(int) bool { return true }
	}
	if c.Unreserve == nil {
		c.Unreserve = func() {}
	}
	return &Pool[C]{cfg: c, poke: make(chan struct{}, 1), byConn: make(map[C]*spare[C])}
}

// TryGet takes a spare if there is a living one. It never waits and never dials. Without spares it costs one atomic load and
// one addition.
func (p *Pool[C]) TryGet() (Lent[C], bool) {
	for p.idle.Load() > 0 {
		l, expires, ok := p.take()
		if !ok {
			break
		}
		if l.Conn.Alive() && (expires.IsZero() || time.Now().Before(expires)) {
			if l.Reused {
				p.reused.Add(1)
			} else {
				p.hits.Add(1)
			}
			return l, true
		}
		l.Conn.Close()
	}
	p.misses.Add(1)
	return Lent[C]{}, false
}

// take removes the newest spare.
func (p *Pool[C]) take() (l Lent[C], expires time.Time, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.newest
	if s == nil {
		return l, expires, false
	}
	p.remove(s)
	l = Lent[C]{Conn: s.conn, Reused: s.used, spare: s, loan: s.loan}
	s.used = true
	return l, s.expires, true
}

// Get takes a spare, or dials. It takes no slot: where there is a cap, the caller has leased one. The error is that
// of Dial, or [ErrClosed].
func (p *Pool[C]) Get(ctx context.Context) (Lent[C], error) {
	if l, ok := p.TryGet(); ok {
		return l, nil
	}
	p.mu.Lock()
	closed := p.closed
	p.mu.Unlock()
	if closed {
		return Lent[C]{}, ErrClosed
	}
	c, err := p.connect(ctx)
	if err != nil {
		return Lent[C]{}, err
	}
	return p.Adopt(c), nil
}

func (p *Pool[C]) connect(ctx context.Context) (C, error) {
	var none C
	c, err := p.cfg.Dial(ctx)
	if err == nil && c == none {
		err = errNoConn
	}
	return c, err
}

// Adopt makes a connection that was dialed elsewhere one that can be Put into the pool. It is to be adopted once.
func (p *Pool[C]) Adopt(c C) Lent[C] {
	var none C
	if c == none {
		return Lent[C]{}
	}
	return Lent[C]{Conn: c, spare: &spare[C]{conn: c, pool: p, used: true}}
}

// Put gives the connection back as a spare, fit to serve anybody, and reports whether it was kept. Otherwise it is closed:
// it was dead, or the pool is closed or paused. If this loan has ended before, Put does nothing.
func (l Lent[C]) Put() bool {
	if !l.end() {
		return false
	}
	c, p := l.spare.conn, l.spare.pool
	kept := false
	if c.Alive() {
		p.mu.Lock()
		if kept = !p.closed && !p.paused; kept {
			p.add(l.spare)
		}
		p.mu.Unlock()
	}
	if !kept {
		c.Close()
		return false
	}
	p.settle(c)
	return true
}

// Discard closes the connection. If this loan has ended before, Discard does nothing.
func (l Lent[C]) Discard() {
	if l.end() {
		l.spare.conn.Close()
	}
}

// end ends the loan, and reports whether it had not ended before.
func (l Lent[C]) end() bool {
	if l.spare == nil {
		return false
	}
	p := l.spare.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.spare.loan != l.loan {
		return false
	}
	l.spare.loan++
	return true
}

// settle is called when c has just become a spare: if it died before Evict could find it, it goes now. Otherwise Run has
// to mind its age.
func (p *Pool[C]) settle(c C) {
	p.Evict(c)
	p.wake()
}

// Evict closes c if it is a spare that is not alive. A connection that is no spare belongs to somebody else and is not even looked at. It is
// quick, and meant for the event loop that sees the end of a spare, or bytes on it that nobody asked for.
func (p *Pool[C]) Evict(c C) {
	p.mu.Lock()
	s := p.byConn[c]
	dead := s != nil && !c.Alive()
	if dead {
		p.remove(s)
	}
	p.mu.Unlock()
	if dead {
		c.Close()
	}
}

// Purge closes all spares and drops the dials that run: they lead to what the backend was. New ones are dialed, unless the
// pool is paused.
func (p *Pool[C]) Purge() {
	p.mu.Lock()
	dropped := p.purge()
	p.mu.Unlock()
	dropped.close()
	p.wake()
}

// Pause purges, and keeps the pool empty until [Pool.Resume]: the backend is down, or takes no new sessions.
func (p *Pool[C]) Pause() {
	p.mu.Lock()
	p.paused = true
	dropped := p.purge()
	p.mu.Unlock()
	dropped.close()
	p.wake()
}

// Resume ends a Pause. The first dial is not delayed by earlier failures.
func (p *Pool[C]) Resume() {
	p.mu.Lock()
	if p.paused {
		p.paused, p.backoff, p.retryAt = false, nil, time.Time{}
	}
	p.mu.Unlock()
	p.wake()
}

// Close purges for good, and makes Run return; the end of Run closes, too. Connections that are lent live on, and are closed by Put. Closing twice is no error.
func (p *Pool[C]) Close() {
	p.mu.Lock()
	p.closed = true
	dropped := p.purge()
	p.mu.Unlock()
	dropped.close()
	p.wake()
}

// SlotFreed is to be called after a session gave its slot back: the pool may have waited for one. If it has not, the call costs
// one atomic load.
func (p *Pool[C]) SlotFreed() {
	if p.short.Load() {
		p.wake()
	}
}

// Stats may be called at any time.
func (p *Pool[C]) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Stats{Spares: int(p.idle.Load()), Dialing: p.dialing, Hits: p.hits.Load(), Reused: p.reused.Load(), Misses: p.misses.Load()}
}

// add puts s at the newest end. It dies no sooner than the one before it, so the oldest is always the next to die.
func (p *Pool[C]) add(s *spare[C]) {
	s.expires = time.Time{}
	if age := p.cfg.MaxAge; age > 0 {
		s.expires = time.Now().Add(age - rand.N(age/5+1))
		if p.newest != nil && s.expires.Before(p.newest.expires) {
			s.expires = p.newest.expires
		}
	}
	s.older = p.newest
	if p.newest == nil {
		p.oldest = s
	} else {
		p.newest.newer = s
	}
	p.newest = s
	p.byConn[s.conn] = s
	p.idle.Add(1)
}

func (p *Pool[C]) remove(s *spare[C]) {
	if s.newer == nil {
		p.newest = s.older
	} else {
		s.newer.older = s.older
	}
	if s.older == nil {
		p.oldest = s.newer
	} else {
		s.older.newer = s.newer
	}
	s.newer, s.older = nil, nil
	delete(p.byConn, s.conn)
	p.idle.Add(-1)
	p.wake()
}

// dropped are connections to close when the lock is released.
type dropped[C Conn] []C

func (d dropped[C]) close() {
	for _, c := range d {
		c.Close()
	}
}

func (p *Pool[C]) purge() (all dropped[C]) {
	for p.oldest != nil {
		all = append(all, p.oldest.conn)
		p.remove(p.oldest)
	}
	if p.era != nil {
		p.era.stop()
		p.era = nil
	}
	return all
}

func (p *Pool[C]) wake() {
	select {
	case p.poke <- struct{}{}:
	default:
	}
}
