package line

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// ErrServerClosed is returned by [Server.Serve] after [Server.Shutdown] or [Server.Close].
var ErrServerClosed = errors.New("line: server closed")

// A Server answers line-protocol sessions. The zero Server is ready to use; its fields must not change after the first Serve.
// All methods may be called concurrently. A Server that was shut down or closed is not used again.
type Server struct {
	// Name is the answer to WHO.
	Name string
	// MaxLine is the longest line in bytes, line end included; 0 means 4096 and less than 16 means 16. A longer one is answered with ERR and ends the session.
	MaxLine int
	// IdleTimeout ends a session that sends nothing for that long; 0 means 5 minutes.
	IdleTimeout time.Duration
	// WriteTimeout ends a session that does not take an answer for that long; 0 means 30 seconds.
	WriteTimeout time.Duration

	taken    atomic.Uint64
	stopping atomic.Bool

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	sessions  map[net.Conn]struct{}
	stop      chan struct{} // closed when stopping
	empty     chan struct{} // closed when stopping and the last listener and session are gone
}

// Serve accepts sessions from ln until the server stops, and then returns [ErrServerClosed]. It takes ownership of ln and may be called for several listeners.
// Sessions that it accepted outlive it: Shutdown and Close wait for them.
func (s *Server) Serve(ln net.Listener) error {
	defer ln.Close()
	if !s.addListener(ln) {
		return ErrServerClosed
	}
	defer s.removeListener(ln)
	var pause time.Duration
	for {
		c, err := ln.Accept()
		switch {
		case err == nil:
			pause = 0
			if s.addSession(c) {
				go s.session(c)
			} else {
				c.Close()
			}
		case s.stopping.Load():
			return ErrServerClosed
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("line: accept on %s: %w", ln.Addr(), err)
		default:
			// Out of descriptors or memory: it passes, and a loop without a pause would burn the core that could free some.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			select {
			case <-s.stop:
			case <-time.After(pause):
			}
		}
	}
}

// Shutdown stops accepting and ends every session after the answers to the lines that have arrived. It returns nil when all are gone. When ctx is done
// first it resets what is left and returns the cause.
func (s *Server) Shutdown(ctx context.Context) error {
	empty := s.beginStop()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		s.Close()
		return fmt.Errorf("line: shutdown: %w", context.Cause(ctx))
	}
}

// Close resets every session and returns when all are gone.
func (s *Server) Close() error {
	empty := s.beginStop()
	s.mu.Lock()
	for c := range s.sessions {
		if t, ok := c.(*net.TCPConn); ok {
			t.SetLinger(0)
		}
		c.Close()
	}
	s.mu.Unlock()
	<-empty
	return nil
}

// beginStop closes the listeners, wakes sessions that wait for a line, and returns the channel that is closed when all are gone.
func (s *Server) beginStop() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init()
	if s.stopping.Swap(true) {
		return s.empty
	}
	close(s.stop)
	for ln := range s.listeners {
		ln.Close()
	}
	for c := range s.sessions {
		c.SetReadDeadline(aLongTimeAgo)
	}
	s.closeIfEmpty()
	return s.empty
}

func (s *Server) init() {
	if s.sessions == nil {
		s.listeners = make(map[net.Listener]struct{})
		s.sessions = make(map[net.Conn]struct{})
		s.stop = make(chan struct{})
		s.empty = make(chan struct{})
	}
}

func (s *Server) addListener(ln net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init()
	if s.stopping.Load() {
		return false
	}
	s.listeners[ln] = struct{}{}
	return true
}

func (s *Server) removeListener(ln net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, ln)
	s.closeIfEmpty()
}

func (s *Server) addSession(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping.Load() {
		return false
	}
	s.sessions[c] = struct{}{}
	s.taken.Add(1)
	return true
}

func (s *Server) removeSession(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, c)
	s.closeIfEmpty()
}

// closeIfEmpty closes empty with the last member. Nothing is added once the server is stopping, so it does so once.
func (s *Server) closeIfEmpty() {
	if s.stopping.Load() && len(s.listeners) == 0 && len(s.sessions) == 0 {
		close(s.empty)
	}
}

func (s *Server) maxLine() int               { return cmp.Or(s.MaxLine, 4096) }
func (s *Server) idleTimeout() time.Duration { return cmp.Or(s.IdleTimeout, 5*time.Minute) }
func (s *Server) writeTimeout() time.Duration {
	return cmp.Or(s.WriteTimeout, 30*time.Second)
}
