package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/internal/reactor"
	"github.com/tproxy/tproxy/pool"
)

// SparesConfig says what connections a [Spares] keeps.
type SparesConfig struct {
	// Warm is how many are dialed in advance at each backend; 0: none.
	Warm int
	// MaxAge is how old one may become; servers close connections on which nobody logs in. 0 is no limit.
	MaxAge time.Duration
	// RefillRate is how many a second are dialed at most, at each backend; 0 is no limit.
	RefillRate int
	// ClientSpeaksFirst: what a backend sends before a client did is a fault, and the spare is closed. Otherwise it is a greeting, which the
	// client gets.
	ClientSpeaksFirst bool
	// TLSClients: the servers whose sessions take them have TLS. A session takes only spares of its own engine, and servers with TLS on
	// either side have another one than those without.
	TLSClients bool
	// Reset makes the connection of a session that the client ended cleanly fit for another client; nil: it never serves another.
	Reset *Reset
}

// A Spares keeps connections to the backends of one group that no client uses, so that a session need not wait for a connect.
// Make one with [NewSpares]. All methods may be called concurrently.
type Spares struct {
	engine  *Engine
	current atomic.Pointer[sparesSettings]

	mu     sync.Mutex
	closed bool
	pools  sync.Map // *backend.Backend to *spares; written under mu
}

type sparesSettings struct {
	SparesConfig
	group *Group
}

// spares are those of one backend.
type spares struct {
	*pool.Pool[*spare]
	engine  reactor.Engine
	tls     *tls.Config // of the group
	stop    context.CancelFunc
	running sync.WaitGroup
}

// errRetired is a dial for spares that an Update is about to end.
var errRetired = errors.New("the group has changed")

// A spare is an established connection that an event loop watches.
type spare struct {
	reactor.Conn
	silent bool // bytes on it are a fault
}

// Alive implements pool.Conn.
func (c *spare) Alive() bool {
	up, waiting := c.Check()
	return up && !(waiting && c.silent)
}

// NewSpares returns an empty Spares, whose connections are made by e.
func NewSpares(e *Engine) *Spares { return &Spares{engine: e} }

// Update keeps spares at these backends as c says, dialed as g's sessions dial. The spares of a backend that it knows already are kept
// unless c or the group's TLS differs; those of the others are closed.
func (s *Spares) Update(c SparesConfig, g *Group, backends []*backend.Backend) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	old := s.current.Swap(&sparesSettings{c, g})
	s.pools.Range(func(k, v any) bool {
		b := k.(*backend.Backend)
		if !slices.Contains(backends, b) || !old.equal(c) || old.group.TLS != g.TLS {
			s.pools.Delete(b)
			v.(*spares).end()
		}
		return true
	})
	if c.Warm == 0 && c.Reset == nil {
		return
	}
	for _, b := range backends {
		if _, ok := s.pools.Load(b); !ok {
			s.pools.Store(b, s.begin(c, g, b))
		}
	}
}

func (s *sparesSettings) equal(c SparesConfig) bool {
	a, b := s.SparesConfig, c
	a.Reset, b.Reset = nil, nil
	return a == b && s.Reset.equal(c.Reset)
}

func (s *Spares) begin(c SparesConfig, g *Group, b *backend.Backend) *spares {
	p := &spares{engine: s.engine.of(c.TLSClients || g.TLS != nil), tls: g.TLS}
	p.Pool = pool.New(pool.Config[*spare]{
		Dial: func(ctx context.Context) (*spare, error) { return s.dial(ctx, p, b) },
		Warm: c.Warm, MaxAge: c.MaxAge, RefillRate: float64(c.RefillRate),
		Reserve: b.Reserve, Unreserve: b.Unreserve,
	})
	if !b.Usable() {
		p.Pause()
	}
	ctx, stop := context.WithCancel(context.Background())
	p.stop = stop
	p.running.Go(func() { p.Run(ctx) })
	return p
}

// end closes the spares and returns when nothing of them runs any more.
func (p *spares) end() {
	p.stop()
	p.running.Wait()
}

// dial makes one spare of b for p.
func (s *Spares) dial(ctx context.Context, p *spares, b *backend.Backend) (*spare, error) {
	set := s.current.Load()
	if set.group.TLS != p.tls {
		return nil, errRetired
	}
	ctx, cancel := context.WithTimeoutCause(ctx, set.group.Connect.withDefaults().Timeout, errConnectTimeout)
	defer cancel()
	conn, err := set.group.dial(ctx, p.engine, b, nil)
	if err != nil {
		return nil, err
	}
	if p.tls != nil {
		if err := set.group.originate(ctx, conn, b); err != nil {
			return nil, err
		}
	}
	return p.watch(conn, set.ClientSpeaksFirst), nil
}

// watch makes the event loop close the connection when it is no good as a spare any more.
func (p *spares) watch(conn reactor.Conn, silent bool) *spare {
	c := &spare{conn, silent}
	conn.Watch(func() { p.Evict(c) })
	return c
}

// fit reports whether x may have them.
func (p *spares) fit(x *session) bool {
	return p.engine == x.acceptor.engine && p.tls == x.route.group.TLS
}

// of are the spares of b; nil if none are kept.
func (s *Spares) of(b *backend.Backend) *spares {
	if s == nil {
		return nil
	}
	if p, ok := s.pools.Load(b); ok {
		return p.(*spares)
	}
	return nil
}

// reuses reports whether connections may serve a second client.
func (s *Spares) reuses() bool {
	if s == nil {
		return false
	}
	set := s.current.Load()
	return set != nil && set.Reset != nil
}

// Sync must be called when a backend went up or down, or was drained: the spares of one that is not usable are closed.
func (s *Spares) Sync(b *backend.Backend) {
	p := s.of(b)
	switch {
	case p == nil:
	case b.Usable():
		p.Resume()
	default:
		p.Pause()
	}
}

// Freed must be called when sessions gave slots back: spares may take them.
func (s *Spares) Freed() {
	if set := s.current.Load(); set == nil || set.Warm == 0 {
		return
	}
	s.pools.Range(func(_, v any) bool {
		v.(*spares).SlotFreed()
		return true
	})
}

// Stats are those of the spares of b.
func (s *Spares) Stats(b *backend.Backend) pool.Stats {
	if p := s.of(b); p != nil {
		return p.Stats()
	}
	return pool.Stats{}
}

// Close closes all spares; none are made any more.
func (s *Spares) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.pools.Range(func(k, v any) bool {
		s.pools.Delete(k)
		v.(*spares).end()
		return true
	})
}
