// Package admin is the HTTP side of a proxy: health for machines, metrics, and an API to look and to act.
//
// It knows nothing of how things are computed: the program gives it a [Control], and closures for what not every program
// can do. Who may use it is decided by where it listens: on loopback everyone, on any other address who knows the
// token, on a unix socket the user who runs the proxy (mode 0600).
package admin

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/tproxy/tproxy/proxy"
)

// ErrNotFound is returned by a [Control] for a group or a backend that does not exist.
var ErrNotFound = errors.New("not found")

// A Control is what the server shows and changes. Its methods may be called concurrently.
type Control interface {
	State() State
	// Status is a fresh snapshot, which the server may change.
	Status() Status
	// Sessions yields every open session, in any order.
	Sessions() iter.Seq[Session]
	// Kill resets a session, and reports whether there was such a session.
	Kill(id proxy.SessionID) bool
	// SetState sets ready, drain or maint. The error is ErrNotFound for an unknown name.
	SetState(group, backend, state string) error
	// SetWeight sets a weight of 0..256. The error is ErrNotFound for an unknown name.
	SetWeight(group, backend string, weight int) error
	// Rebalance closes the sessions that over-used backends of a group have too many, the quietest first, at most rate (1 or more) a
	// second. It returns when that is done, or ctx is. The error is ErrNotFound for an unknown name.
	Rebalance(ctx context.Context, group string, rate int) (Rebalance, error)
}

const (
	maxConns   = 32      // connections at once; more are closed at once, and never hold up the others
	maxStreams = 16      // of them, event streams
	maxHeader  = 8 << 10 // bytes, and net/http's slack of 4 KiB
	maxBody    = 64 << 10
)

// limits are the times that things may take.
type limits struct {
	header time.Duration // until a request's header is there
	read   time.Duration // and its body
	write  time.Duration // until it is answered
	idle   time.Duration // between two requests
	end    time.Duration // for requests that run when Run is to end
}

var defaultLimits = limits{header: 5 * time.Second, read: 10 * time.Second, write: 30 * time.Second, idle: 30 * time.Second, end: 2 * time.Second}

// A Server serves the admin address. Set the fields, then call Listen once and Run once.
type Server struct {
	// Address is host:port or unix:/path. Any TCP address other than loopback needs a Token. A unix socket has mode 0600 from
	// its first moment; a stale one is replaced, any other file is not, and it is removed when Run returns.
	Address string
	// Listener is a socket that was inherited, which is served instead of binding Address; nil: Listen binds, and sets it. Run closes
	// it, and removes the file of a unix socket, which must not be open to others unless there is a Token.
	Listener net.Listener
	// Token must be presented as "Authorization: Bearer TOKEN" for everything but /healthz and /readyz. "" asks for none.
	Token string
	// PProf serves /debug/pprof/.
	PProf bool

	Control Control
	// Metrics serves /metrics; nil: not supported.
	Metrics http.Handler
	// Events feeds /api/v1/events; nil: not supported.
	Events *Events
	// Reload loads the configuration again; dry only says what it would do. An error means that nothing changed. nil: not supported.
	Reload func(ctx context.Context, dry bool) (Report, error)
	// Upgrade starts the new binary, and returns when it is ready or has failed; then nothing changed. nil: not supported.
	Upgrade func(ctx context.Context) error
	// Explain says what a client of a listener would get. The error is ErrNotFound for an unknown listener. nil: not supported.
	Explain func(listener string, from netip.Addr, sni string, alpn []string) (Explanation, error)
	// Log gets what net/http has to say, level debug, and panics of handlers. nil discards it.
	Log *slog.Logger

	sock   *socket     // the file of a unix socket
	keep   atomic.Bool // the file; see SetUnlinkOnClose
	limits limits      // the zero value stands for defaultLimits
}

// Listen binds the address, so that a mistake in it shows before anything is ready. Without a Run the caller must Close.
func (s *Server) Listen() error {
	var err error
	if s.Listener != nil {
		s.sock, err = inherit(s.Listener, s.Token != "")
	} else {
		s.Listener, s.sock, err = listen(s.Address, s.Token != "")
	}
	return err
}

// SetUnlinkOnClose says whether the file of a unix socket is removed when Run returns, or by Close, which it is unless told otherwise. It must not
// be while another process listens on it. It may be called at any time.
func (s *Server) SetUnlinkOnClose(unlink bool) { s.keep.Store(!unlink) }

func (s *Server) removeFile() error {
	if s.keep.Load() {
		return nil
	}
	return s.sock.remove()
}

// Addr is the bound address; nil before Listen.
func (s *Server) Addr() net.Addr {
	if s.Listener == nil {
		return nil
	}
	return s.Listener.Addr()
}

// Close gives up the address of a Server that does not Run.
func (s *Server) Close() error {
	if s.Listener == nil {
		return nil
	}
	return errors.Join(s.Listener.Close(), s.removeFile())
}

// Run serves until ctx is done. It returns when every request has ended or was cut.
func (s *Server) Run(ctx context.Context) error {
	if s.limits == (limits{}) {
		s.limits = defaultLimits
	}
	log := s.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	streams, endStreams := context.WithCancel(context.Background())
	defer endStreams()
	srv := &http.Server{
		Handler:           s.handler(streams),
		ReadHeaderTimeout: s.limits.header,
		ReadTimeout:       s.limits.read,
		WriteTimeout:      s.limits.write,
		IdleTimeout:       s.limits.idle,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	conns := newBounded(s.Listener, maxConns)
	go func() { served <- srv.Serve(conns) }()

	var err error
	select {
	case err = <-served:
		err = fmt.Errorf("admin %s: %w", s.Listener.Addr(), err)
	case <-ctx.Done():
		// Not Shutdown: it drops requests of connections that were accepted just before, and whoever asks whether we are
		// ready would take that for an answer while a successor serves.
		s.Listener.Close()
		<-served
		endStreams()
		srv.SetKeepAlivesEnabled(false) // ends those that are idle now, the others after their request
		end, cancel := context.WithTimeout(context.Background(), s.limits.end)
		defer cancel()
		conns.wait(end)
		srv.Close() // a request that takes too long is cut, which is no error of the server
	}
	return errors.Join(err, s.removeFile())
}

// ReadToken reads a token file: one line, at least 16 characters, none of them blank or a control character.
func ReadToken(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("token file: %w", err)
	}
	t, err := parseToken(b)
	if err != nil {
		return "", fmt.Errorf("token file %s: %w", path, err)
	}
	return t, nil
}
