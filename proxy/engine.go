package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/tproxy/tproxy/internal/reactor"
)

// An Engine is the event loops that many servers share. Its methods may be called concurrently.
type Engine struct {
	main reactor.Engine

	mu       sync.Mutex
	portable reactor.Engine // for connections that main cannot serve; nil until there is one
}

// NewEngine starts an engine: "auto" (event loops over epoll in Linux, package net elsewhere), "epoll", or "portable".
// The caller closes it, after the servers that use it.
func NewEngine(kind string) (*Engine, error) {
	switch kind {
	case "auto", "epoll", "portable":
	default:
		return nil, fmt.Errorf("engine %q: auto, epoll or portable is known", kind)
	}
	e, err := reactor.New(kind)
	if err != nil {
		return nil, fmt.Errorf("engine %s: %w", kind, err)
	}
	return &Engine{main: e}, nil
}

// Alive returns nil when every event loop has come round. One that is stuck keeps it waiting until ctx is done.
func (e *Engine) Alive(ctx context.Context) error { return e.main.Alive(ctx) }

// Close ends the event loops.
func (e *Engine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	err := e.main.Close()
	if e.portable != nil {
		err = errors.Join(err, e.portable.Close())
	}
	return err
}

// of is the engine for connections with TLS, or for plain ones.
func (e *Engine) of(tls bool) reactor.Engine {
	if tls {
		return e.layered()
	}
	return e.main
}

// serving is the engine that can accept from ln.
func (e *Engine) serving(ln net.Listener, tls bool) reactor.Engine {
	switch ln.(type) {
	case *net.TCPListener, *net.UnixListener:
		return e.of(tls)
	}
	return e.layered()
}

// layered is the engine that takes connections of any kind.
func (e *Engine) layered() reactor.Engine {
	if e.main.Name() == "portable" {
		return e.main
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.portable == nil {
		e.portable = reactor.NewPortable()
	}
	return e.portable
}
