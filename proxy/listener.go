package proxy

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/tproxy/tproxy/internal/reactor"
)

// A Listener is one bound address of a server. Its methods may be called concurrently.
type Listener struct {
	server   *Server
	socket   reactor.Listener
	address  string
	acceptor *acceptor
	close    sync.Once
	closed   chan struct{}
}

// Listen binds an address: host:port, :port for every address of both families, or unix:/path. Port 0 lets the kernel choose. Nothing is
// accepted before Start, of the listener or the server: clients wait in the kernel's queue.
func (s *Server) Listen(address string) (*Listener, error) {
	addr, err := resolveListen(address)
	if err != nil {
		return nil, err
	}
	if err := s.init(); err != nil {
		return nil, err
	}
	a := &acceptor{server: s, engine: s.Engine.of(s.current.Load().hasTLS())}
	socket, err := a.engine.Listen(addr, s.listenOptions(), a)
	return s.add(&Listener{server: s, socket: socket, address: address, acceptor: a}, err)
}

// Inherit takes over a listening socket that was bound elsewhere, as one of address, and takes ownership of ln even when it
// fails. As with Listen nothing is accepted before Start.
func (s *Server) Inherit(address string, ln net.Listener) (*Listener, error) {
	if err := s.init(); err != nil {
		ln.Close()
		return nil, err
	}
	a := &acceptor{server: s, engine: s.Engine.serving(ln, s.current.Load().hasTLS())}
	socket, err := a.engine.Serve(ln, s.listenOptions(), a)
	return s.add(&Listener{server: s, socket: socket, address: address, acceptor: a}, err)
}

func (s *Server) listenOptions() reactor.ListenOptions {
	return reactor.ListenOptions{Backlog: s.Backlog, Socket: s.current.Load().socket}
}

// add takes over a listener whose socket was bound, unless there was an error, which is ErrServerClosed for a closed server.
func (s *Server) add(l *Listener, err error) (*Listener, error) {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		if err == nil {
			l.socket.Close()
		}
		return nil, ErrServerClosed
	}
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	l.acceptor.addr, l.closed = l.socket.Addr(), make(chan struct{})
	all := append(slices.Clone(*s.listeners.Load()), l)
	s.listeners.Store(&all)
	s.mu.Unlock()
	return l, nil
}

// Addr is the bound address, with the port that the kernel chose.
func (l *Listener) Addr() Addr { return l.socket.Addr() }

// Address is what was given to Server.Listen or Server.Inherit.
func (l *Listener) Address() string { return l.address }

// Start begins to accept.
func (l *Listener) Start() {
	l.acceptor.open.Store(true)
	l.socket.Resume()
}

// File is a duplicate of the listening socket, to be passed to another process; the caller closes it. It shares the kernel's queue
// of clients, and O_NONBLOCK, which must not be cleared.
func (l *Listener) File() (*os.File, error) { return l.socket.File() }

// SetUnlinkOnClose says whether Close removes the file of a unix socket, which it does unless told otherwise. It must not while
// another process listens on it.
func (l *Listener) SetUnlinkOnClose(unlink bool) { l.socket.SetUnlinkOnClose(unlink) }

// Close stops accepting on this address; the server's sessions go on. Clients in the kernel's queue are reset by the kernel, unless
// another process has the socket too.
func (l *Listener) Close() error {
	var err error
	l.close.Do(func() {
		s := l.server
		err = l.socket.Close()
		l.acceptor.endPace()
		// Only now: Shutdown must know of a listener that can still accept.
		s.mu.Lock()
		all := slices.DeleteFunc(slices.Clone(*s.listeners.Load()), func(other *Listener) bool { return other == l })
		s.listeners.Store(&all)
		s.mu.Unlock()
		close(l.closed)
	})
	return err
}

// Listeners are the bound addresses.
func (s *Server) Listeners() []*Listener {
	if s.init() != nil {
		return nil
	}
	return *s.listeners.Load()
}

// Addrs are the addresses of Listeners.
func (s *Server) Addrs() []Addr {
	var all []Addr
	for _, l := range s.Listeners() {
		all = append(all, l.Addr())
	}
	return all
}

// Start begins to accept on every address that is bound.
func (s *Server) Start() {
	for _, l := range s.Listeners() {
		l.Start()
	}
}

// Serve accepts from ln until Shutdown or Close, then returns ErrServerClosed; when only this listener was closed, net.ErrClosed. It
// takes ownership of ln. TCP and unix listeners of package net are served by event loops, unless there is TLS in the settings; any other by goroutines.
func (s *Server) Serve(ln net.Listener) error {
	l, err := s.Inherit(reactor.AddrOf(ln.Addr()).String(), ln)
	if err != nil {
		return err
	}
	return l.serve()
}

// ListenAndServe binds address and accepts as Serve does.
func (s *Server) ListenAndServe(address string) error {
	l, err := s.Listen(address)
	if err != nil {
		return err
	}
	return l.serve()
}

func (l *Listener) serve() error {
	l.Start()
	<-l.closed
	s := l.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return ErrServerClosed
	}
	return fmt.Errorf("proxy: listener %s: %w", l.address, net.ErrClosed)
}

// resolveListen turns a listening address into numbers; a name must have an address here.
func resolveListen(address string) (Addr, error) {
	if a, err := reactor.ParseAddr(address); err == nil {
		return a, nil
	}
	t, err := newTarget(address)
	if err != nil {
		return Addr{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	a, err := t.addr(ctx)
	if err != nil {
		return Addr{}, fmt.Errorf("listen on %s: %w", address, err)
	}
	return a, nil
}
