package proxy

import (
	"sync"
	"sync/atomic"
)

// A Limit bounds the open sessions of all servers that share it. Servers at the limit stop accepting: the kernel's queue
// keeps the clients. The zero Limit is no limit. Its methods may be called concurrently.
type Limit struct {
	count counter
	full  atomic.Bool // a server stopped accepting

	mu      sync.Mutex
	servers []*Server
}

// NewLimit returns a limit of max sessions; 0 is no limit.
func NewLimit(max int) *Limit {
	l := new(Limit)
	l.SetMax(max)
	return l
}

// SetMax changes the limit. Sessions beyond it stay.
func (l *Limit) SetMax(max int) {
	l.count.max.Store(int64(max))
	l.resume()
}

// Max is the limit; 0 is none.
func (l *Limit) Max() int { return int(l.count.max.Load()) }

// Active is the number of open sessions.
func (l *Limit) Active() int { return int(l.count.n.Load()) }

func (l *Limit) take() bool {
	if l.count.take() {
		return true
	}
	l.full.Store(true)
	return l.count.take() // a slot that came free before full was seen
}

func (l *Limit) give() {
	l.count.n.Add(-1)
	if l.full.Load() && l.full.Swap(false) {
		l.resume()
	}
}

func (l *Limit) resume() {
	l.mu.Lock()
	servers := append([]*Server(nil), l.servers...)
	l.mu.Unlock()
	for _, s := range servers {
		s.resume()
	}
}

func (l *Limit) join(s *Server) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.servers = append(l.servers, s)
}

func (l *Limit) leave(s *Server) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, other := range l.servers {
		if other == s {
			l.servers = append(l.servers[:i], l.servers[i+1:]...)
			return
		}
	}
}

// A counter counts up to max, which may change and be below n.
type counter struct {
	n, max atomic.Int64
}

// take adds one unless that exceeds max. It never exceeds max for a moment either: a second taker would see that and
// stop accepting for nothing.
func (c *counter) take() bool {
	for {
		n, max := c.n.Load(), c.max.Load()
		if max > 0 && n >= max {
			return false
		}
		if c.n.CompareAndSwap(n, n+1) {
			return true
		}
	}
}
