package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tproxy/tproxy/internal/access"
	"github.com/tproxy/tproxy/internal/clienthello"
	"github.com/tproxy/tproxy/internal/reactor"
)

// ErrServerClosed is returned by Serve and ListenAndServe after Shutdown or Close.
var ErrServerClosed = errors.New("proxy: server closed")

// A Server accepts clients on one or more addresses and splices each to a backend of its group. The exported fields
// must not be changed after the first call of a method; Update changes the settings of a running server. All methods may be
// called concurrently.
type Server struct {
	// Name is the listener's name in events.
	Name string
	Settings

	// Limit is shared with other servers; nil is no limit.
	Limit *Limit
	// Backlog is the length of the kernel's accept queue; 0 means 4096.
	Backlog int
	// Engine moves the bytes; nil: an engine of the server's own, "auto", that ends with it.
	Engine *Engine
	// Observer is told of every transition; nil: nobody is.
	Observer Observer

	start    sync.Once
	startErr error
	own      bool // the engine is ours
	ctx      context.Context
	cancel   context.CancelCauseFunc

	current   atomic.Pointer[settings]
	count     counter
	listeners atomic.Pointer[[]*Listener]
	paused    atomic.Int32 // listeners that back off
	open      registry
	accounts  accounts

	background sync.WaitGroup // connections that are on their way back to the spares

	mu      sync.Mutex
	closing bool
	once    sync.Once
	empty   chan struct{} // closed when the last session has ended after Shutdown or Close began
	closed  chan struct{} // closed when the listeners are
}

// Settings are what can be changed while a server runs. A session keeps those it was accepted with.
type Settings struct {
	// Group serves the sessions that no route takes; nil refuses them. Required where there are no routes.
	Group *Group
	// Routes send sessions elsewhere; the first that matches counts. If one asks for a server name or a protocol, the server waits for
	// the client's first bytes; otherwise it never does.
	Routes []Route
	// Access says who may come in.
	Access Access
	// ProxyProtocol is about headers that say who the client is.
	ProxyProtocol ProxyProtocol
	// TLS makes the server the TLS server of its clients; nil passes bytes as they are. The handshake is part of the preface: it comes after a PROXY
	// header, within Timeouts.Preface and before any backend is touched, and the Routes go by the name and the protocol that it settled. It
	// must not be changed afterwards; what can change belongs into GetConfigForClient.
	//
	// Sessions with TLS on either side are moved by goroutines, not by event loops: see Server.Check.
	TLS *tls.Config
	// MaxConnections bounds the open sessions; 0 is no limit. When it shrinks nobody is cut.
	MaxConnections int
	// RejectWhenFull resets clients beyond MaxConnections. Otherwise accepting stops and the kernel's queue keeps them.
	RejectWhenFull bool

	Timeouts  Timeouts
	Keepalive Keepalive
	// UserTimeout is TCP_USER_TIMEOUT on both sides (RFC 5482): how long sent data may stay unacknowledged; 0 leaves the system's
	// default. In Linux it overrules Keepalive.Count.
	UserTimeout time.Duration
	// CloseOnFIN ends a session at the first FIN of either side. Otherwise each direction ends on its own.
	CloseOnFIN bool
}

// Timeouts bound a session in time; 0 is no limit.
type Timeouts struct {
	// Preface is for the PROXY header and the ClientHello, whole, from accept on.
	Preface time.Duration
	// Idle ends a session in which no byte moved in either direction.
	Idle time.Duration
	// HalfClose ends a session after one side's FIN, when the other direction moved no byte for that long.
	HalfClose time.Duration
	// Session ends a session of that age, spread by ±10 %.
	Session time.Duration
}

// Keepalive is about TCP keep-alive, on both sides.
type Keepalive struct {
	Idle     time.Duration // quiet time before the first probe; 0 turns keep-alive off
	Interval time.Duration // between probes; 0 leaves the system's default
	Count    int           // unanswered probes after which the peer is dead; 0 leaves the system's default
}

// settings are Settings and what follows from them; an immutable whole.
type settings struct {
	Settings
	socket    reactor.SocketOptions
	routes    *routes
	gate      *gate
	trusted   access.Prefixes // to send PROXY headers
	byDefault *route          // of sessions that no other route takes; its group may be nil
	begin     *route          // of sessions at their beginning: byDefault where that is certain
}

func derive(t Settings, before *settings) *settings {
	d := &settings{Settings: t, socket: reactor.SocketOptions{KeepaliveIdle: t.Keepalive.Idle, KeepaliveInterval: t.Keepalive.Interval,
		KeepaliveCount: t.Keepalive.Count, UserTimeout: t.UserTimeout}}
	var old *gate
	if before != nil {
		old = before.gate
	}
	d.gate = newGate(t.Access, old)
	d.trusted = access.NewPrefixes(t.ProxyProtocol.Trusted)
	d.routes = d.compile(t.Routes)
	d.byDefault = d.to(t.Group)
	d.begin = d.byDefault
	if len(t.Routes) > 0 || t.ProxyProtocol.Accept != HeaderOff || t.TLS != nil {
		d.begin = d.to(nil)
	}
	return d
}

// check says what is wrong with settings.
func (t Settings) check(name string) error {
	if t.Group == nil && len(t.Routes) == 0 {
		return fmt.Errorf("proxy: server %q has no group", name)
	}
	for _, r := range t.Routes {
		if r.Group == nil && !r.Reject {
			return fmt.Errorf("proxy: server %q has a route without a group", name)
		}
		for _, pattern := range r.SNI {
			if err := clienthello.CheckPattern(pattern); err != nil {
				return fmt.Errorf("proxy: server %q has a route for the name %q: %w", name, pattern, err)
			}
		}
	}
	for g := range t.groups {
		if g.TLS != nil && g.Spares != nil && g.SendProxy != 0 {
			return fmt.Errorf("proxy: group %q: a spare has its TLS handshake behind it, and the PROXY header comes before that", g.Backends.Name())
		}
	}
	return nil
}

// groups yields those that sessions may be sent to; one may come twice.
func (t Settings) groups(yield func(*Group) bool) {
	if t.Group != nil && !yield(t.Group) {
		return
	}
	for _, r := range t.Routes {
		if r.Group != nil && !yield(r.Group) {
			return
		}
	}
}

// hasTLS reports whether sessions may have TLS on a side.
func (t Settings) hasTLS() bool {
	if t.TLS != nil {
		return true
	}
	for g := range t.groups {
		if g.TLS != nil {
			return true
		}
	}
	return false
}

func (s *Server) init() error {
	s.start.Do(func() {
		if s.startErr = s.check(s.Name); s.startErr != nil {
			return
		}
		if s.Engine == nil {
			if s.Engine, s.startErr = NewEngine("auto"); s.startErr != nil {
				return
			}
			s.own = true
		}
		s.current.Store(derive(s.Settings, nil))
		s.count.max.Store(int64(s.MaxConnections))
		s.ctx, s.cancel = context.WithCancelCause(context.Background())
		s.empty, s.closed = make(chan struct{}), make(chan struct{})
		s.open.seed = SessionID(rand.Uint64() >> 12) // IDs of two processes are unlikely to meet in one log
		s.listeners.Store(new([]*Listener))
		if s.Limit == nil {
			s.Limit = new(Limit)
		}
		s.Limit.join(s)
	})
	return s.startErr
}

// Check says why Update would not take t: it is incomplete, or begins with TLS while a listener is served by event loops, which do not
// move it.
func (s *Server) Check(t Settings) error {
	if err := s.init(); err != nil {
		return err
	}
	if err := t.check(s.Name); err != nil {
		return err
	}
	if t.hasTLS() {
		for _, l := range *s.listeners.Load() {
			if e := l.acceptor.engine; e != s.Engine.layered() {
				return fmt.Errorf("proxy: server %q: no TLS on %s, which runs on the engine %s", s.Name, l.address, e.Name())
			}
		}
	}
	return nil
}

// Update changes the settings for the sessions that are accepted from now on.
func (s *Server) Update(t Settings) error {
	if err := s.Check(t); err != nil {
		return err
	}
	was := s.current.Load()
	now := derive(t, was)
	s.current.Store(now)
	if now.socket != was.socket {
		for _, l := range s.Listeners() {
			l.socket.SetSocketOptions(now.socket)
		}
	}
	s.count.max.Store(int64(t.MaxConnections))
	s.resume()
	return nil
}

// Shutdown stops accepting and waits until the open sessions have ended, or ctx is done: then it returns its
// cause and they go on. Clients that wait in the kernel's queue are refused by the kernel.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.init(); err != nil {
		return err
	}
	s.stopAccepting()
	select {
	case <-s.empty:
		return s.closeEngine()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close stops accepting, resets the open sessions with reason drain_timeout, and returns when they have ended.
func (s *Server) Close() error {
	if err := s.init(); err != nil {
		return err
	}
	s.stopAccepting()
	s.KillAll(DrainTimeout)
	s.cancel(ErrServerClosed)
	<-s.empty
	return s.closeEngine()
}

func (s *Server) stopAccepting() {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		<-s.closed
		return
	}
	s.closing = true
	listeners := *s.listeners.Load()
	s.mu.Unlock()
	for _, l := range listeners {
		l.Close()
	}
	s.Limit.leave(s)
	close(s.closed)
	if s.open.close() {
		s.emptied()
	}
}

func (s *Server) emptied() { s.once.Do(func() { close(s.empty) }) }

func (s *Server) closeEngine() error {
	s.cancel(ErrServerClosed)
	s.background.Wait()
	s.mu.Lock()
	own := s.own
	s.own = false
	s.mu.Unlock()
	if own {
		return s.Engine.Close()
	}
	return nil
}

// resume makes the listeners look again whether they may accept.
func (s *Server) resume() {
	for _, l := range *s.listeners.Load() {
		l.socket.Resume()
	}
}

func (s *Server) observe(e Event) {
	if s.Observer != nil {
		e.Time, e.Listener = time.Now(), s.Name
		s.Observer.Observe(e)
	}
}
