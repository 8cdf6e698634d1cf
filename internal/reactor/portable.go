package reactor

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// Portable is the engine over package net. It runs everywhere and relays any [net.Conn]: TCP, unix, TLS, pipes.
// A session costs two goroutines and, in each direction that has not ended, one buffer of 32 KiB.
//
// What differs from the promises of [Engine], and where:
//
//   - Dial connects in Conn.Established, not before.
//   - Where the kernel's queue cannot be watched (Windows, and a listener of Serve that is not package net's own) a listener holds
//     one reservation of its Acceptor while it waits for a client.
//   - OnReset sees every reset where the socket can be watched without reading it (unix systems). Elsewhere the
//     engine reads ahead 4 KiB, and misses a reset that follows so much data, or a FIN.
//   - Before the other side of a cut session is reset, the kernel must have delivered what it holds. Linux and macOS
//     tell how much that is; elsewhere the engine waits 200 ms.
//   - A unix socket has no RST: its peer sees a FIN. TLS is cut without close_notify, and with an RST of TCP. A FIN of
//     TCP between two TLS records counts as close_notify, because package crypto/tls says so.
//   - Where a connection has no CloseWrite, the FIN of the other side waits until its own direction has ended; between
//     two such connections the first end ends the session.
type Portable struct {
	mu     sync.Mutex
	closed bool
	tasks  sync.WaitGroup // every goroutine and every armed timer of the engine
}

var _ Engine = (*Portable)(nil)

// NewPortable returns an engine that is ready. It owns nothing until it is used.
func NewPortable() *Portable { return &Portable{} }

// Name is "portable".
func (*Portable) Name() string { return "portable" }

// Conn makes a Conn of an open connection, which it takes over. That is how a connection that was not accepted or dialed
// here (TLS to a backend, a pipe) is relayed. Established makes the handshake of TLS; if nobody calls it the relay does,
// but then it does not ask Handler.Unused for that client.
func (e *Portable) Conn(nc net.Conn) Conn { return e.newConn(nc) }

// Wrap puts a layer over a connection of the portable engine, before it is relayed: [crypto/tls.Server] or [crypto/tls.Client], say. The
// layer reads first what was peeked and not discarded. If it is TLS, Established makes the handshake.
func Wrap(c Conn, layer func(net.Conn) net.Conn) { c.(*portableConn).wrap(layer) }

func (e *Portable) newConn(nc net.Conn) *portableConn {
	c := &portableConn{engine: e}
	c.adopt(nc)
	return c
}

// Dial returns a connection that Established will connect. near is not used.
func (e *Portable) Dial(addr Addr, _ Conn, source Addr) (Conn, error) {
	if !addr.IsValid() {
		return nil, fmt.Errorf("dial: no address")
	}
	if e.isClosed() {
		return nil, fmt.Errorf("dial %s: %w", addr, ErrClosed)
	}
	return &portableConn{engine: e, target: addr, source: source}, nil
}

// Alive implements [Engine]: there is no loop that could be stuck.
func (*Portable) Alive(context.Context) error { return nil }

// Close waits until everything that the engine started has ended.
func (e *Portable) Close() error {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.tasks.Wait()
	return nil
}

func (e *Portable) isClosed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closed
}

// start runs f in a goroutine that Close waits for, unless the engine is closed.
func (e *Portable) start(f func()) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return ErrClosed
	}
	e.tasks.Go(f)
	return nil
}
