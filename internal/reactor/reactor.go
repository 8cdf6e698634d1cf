// Package reactor moves bytes between pairs of sockets.
//
// An [Engine] listens, dials and relays. Two engines share this one API and one conformance suite:
//
//   - epoll (Linux, plain TCP and unix sockets): raw non-blocking sockets in a few event loops.
//     An established session is two small structs; while it is quiet it holds no goroutine, no buffer and no pipe.
//   - portable (everywhere, any net.Conn): package net, two goroutines a session.
//
// A connection goes through three owners. The accepting loop hands it to [Acceptor.Accepted]; whoever took
// it there owns it and must either call Close or Reset, or hand it to [Engine.Relay]; from then on the
// relay owns both connections, closes both exactly once, and says so by [Handler.Ended].
package reactor

import (
	"context"
	"errors"
	"net"
	"os"
	"time"
)

// ErrClosed is returned by an engine, or for a listener, that was closed.
var ErrClosed = errors.New("reactor: closed")

// An Engine owns sockets and moves bytes between them. All methods may be called concurrently.
type Engine interface {
	// Name is "epoll" or "portable".
	Name() string

	// Listen binds addr and starts accepting into a. The caller closes the Listener.
	Listen(addr Addr, o ListenOptions, a Acceptor) (Listener, error)

	// Serve accepts from ln, which was bound elsewhere (inherited, or made by the program that uses the
	// library). It takes ownership of ln, even when it fails.
	Serve(ln net.Listener, o ListenOptions, a Acceptor) (Listener, error)

	// Dial starts a connection to addr and does not wait: Conn.Established does. near is the connection
	// it will be relayed with, nil if there is none yet; source is the local address, and the zero Addr lets the kernel choose. The
	// caller owns the Conn, established or not.
	Dial(addr Addr, near Conn, source Addr) (Conn, error)

	// Relay takes both connections, to move bytes between them until the session ends. Both must be established and
	// come from this engine. Nothing happens before Link.Start.
	Relay(client, backend Conn, h Handler) Link

	// Alive returns nil when every event loop has come round, at once where there are none. The error is context.Cause, or ErrClosed.
	Alive(ctx context.Context) error

	// Close ends the event loops. Listeners, connections and links must be closed before.
	Close() error
}

// An Acceptor is told of new connections. Its methods are called by one goroutine a listener at a time
// (an event loop, in the epoll engine) and must not block.
type Acceptor interface {
	// Reserve takes room for one connection before it is accepted. When it returns false nothing is
	// accepted, and the kernel's queue keeps the clients, until Listener.Resume.
	Reserve() bool
	// Unreserve gives back room for which no connection came.
	Unreserve()
	// Accepted hands over a connection; the Acceptor owns it.
	Accepted(c Conn)
	// Paused says that accepting backs off because of err (EMFILE, ENFILE, ENOBUFS, ENOMEM); nil says that it goes on.
	Paused(err error)
}

// A Listener accepts connections until it is closed.
type Listener interface {
	// Addr is the bound address, with the port that the kernel chose.
	Addr() Addr
	// Resume goes on accepting after Acceptor.Reserve returned false. It is cheap when nothing waits.
	Resume()
	// File is a duplicate of the listening socket, to be passed to another process; the caller closes it. Both share
	// the accept queue, and O_NONBLOCK: a process that cleared it would make the other one block.
	File() (*os.File, error)
	// SetSocketOptions replaces ListenOptions.Socket for connections that are accepted after it has returned. An interval or count of 0
	// leaves the one before.
	SetSocketOptions(o SocketOptions)
	// SetUnlinkOnClose says whether Close removes the file of a unix socket, which it does unless told otherwise. It must
	// not while another process listens on it.
	SetUnlinkOnClose(unlink bool)
	// Close stops accepting and returns when no call to the Acceptor is running or will come. Clients in the
	// kernel's queue are reset by the kernel, unless another process has the socket too. The file of a unix socket is
	// removed if it is still this listener's; see SetUnlinkOnClose.
	Close() error
}

// ListenOptions are the options of a listening socket and of the connections it accepts.
type ListenOptions struct {
	// Backlog is the length of the kernel's accept queue; 0 means 4096.
	Backlog int
	Socket  SocketOptions
}

// SocketOptions apply to TCP sockets. TCP_NODELAY is always on.
type SocketOptions struct {
	// KeepaliveIdle is the quiet time before the first keep-alive probe; 0 turns keep-alive off.
	KeepaliveIdle time.Duration
	// KeepaliveInterval is the time between probes; 0 leaves the system's default.
	KeepaliveInterval time.Duration
	// KeepaliveCount is the number of unanswered probes after which the peer is dead; 0 leaves the system's default.
	KeepaliveCount int
	// UserTimeout is TCP_USER_TIMEOUT (RFC 5482): how long sent data may stay unacknowledged; 0 leaves the
	// system's default. In Linux it also overrules KeepaliveCount. Ignored where there is no such option.
	UserTimeout time.Duration
}

// A Conn is one connection before it is relayed. Methods are called by its owner only; Close and Reset
// end the ownership.
type Conn interface {
	Local() Addr
	Remote() Addr
	// Established waits until a dialed connection is connected, failed, or ctx is done. It returns nil at once for
	// a connection that is connected already. The error is that of connect(2), or context.Cause.
	Established(ctx context.Context) error
	// Connected reports, without waiting, whether Established would return nil.
	Connected() bool
	// OnReset calls f once, from another goroutine, when the peer resets the connection before it is relayed (or has
	// done so). nil withdraws f. A FIN is no reset: the peer may still want its answer.
	OnReset(f func())
	// Watch calls f, from another goroutine, whenever the peer has sent something, ended or reset; and once soon after Watch
	// if it has done so already. f may call Check, and Close. nil withdraws f; a call that runs is not waited for.
	Watch(f func())
	// Check looks, without waiting and without taking anything, whether the connection is up, that is, the peer has neither
	// ended nor reset it, and whether bytes wait to be read.
	Check() (up, waiting bool)
	// Send writes p whole, or fails; meant for a few bytes before the relay starts. It does not wait: a kernel buffer that cannot
	// take p is an error.
	Send(p []byte) error
	// Await waits until n bytes can be read and returns how many can. It takes nothing, and while it waits it holds no more memory than
	// the peer has filled. At the end of the stream before n bytes it returns what there is and io.EOF; when ctx is done
	// context.Cause, wrapped or not; any other error is a connection that broke, by a reset as a rule.
	Await(ctx context.Context, n int) (int, error)
	// Peek awaits n bytes, or as many as p takes, and copies what is there to p without taking it: the relay will read it too.
	// Its errors are those of Await.
	Peek(ctx context.Context, p []byte, n int) (int, error)
	// Discard takes n bytes that Peek has shown.
	Discard(n int) error
	// Close closes in order: what was sent is delivered.
	Close()
	// Reset closes with RST, so that the peer does not take what it got for complete.
	Reset()
}

// RelayOptions belong to a listener; many relays share one.
type RelayOptions struct {
	// Idle ends a session in which no byte moved in either direction for that long; 0 is no limit.
	Idle time.Duration
	// HalfClose ends a session after one side's FIN when the other direction moved no byte for that long; 0 is no limit.
	HalfClose time.Duration
	// Session ends a session that is that old, spread by ±10 %; 0 is no limit.
	Session time.Duration
	// CloseOnFIN ends the whole session at the first FIN, once everything before it was delivered.
	CloseOnFIN bool
	// KeepBackend does not pass the client's FIN on to the backend. When everything before it was delivered the session ends,
	// and the backend's connection, if it is up, goes to the Handler: Result.Backend.
	KeepBackend bool
	// Backend are the options of the backend's socket. The epoll engine sets them when the session has lasted a second: most that
	// will ever need a keep-alive have, and the others are spared the calls.
	Backend SocketOptions
}

// A Handler is told what becomes of a relay. Its methods run on an event loop, or inside Link.Start, and must not block.
type Handler interface {
	// Options are the limits of the session. They must not change.
	Options() *RelayOptions
	// Unused asks what to do with a backend that ended (cause is BackendFIN or BackendRST) before one byte was
	// exchanged in either direction, with the client still there or its bytes still here. True: the relay closes the backend's connection and
	// lets go of the client's, which the Handler owns from now on; Ended is not called. False: the session goes on as usual.
	Unused(client Conn, cause Cause) bool
	// Ended is called exactly once, after both connections were closed (but for Result.Backend).
	Ended(r Result)
}

// A Link is a relay. All methods but Start may be called concurrently, before Start and after the end.
type Link interface {
	// Start begins to move bytes; it must be called once. It may move the first ones before it returns, and may even
	// end the session. Handler.Ended is the last thing that happens.
	Start()
	// Bytes is what was written so far: up to the backend, down to the client.
	Bytes() (up, down uint64)
	// Quiet is how long no byte has moved.
	Quiet() time.Duration
	// HalfClosed reports whether exactly one side has sent its FIN.
	HalfClosed() bool
	// Kill resets both sides; Handler.Ended gets Killed unless the session ended before.
	Kill()
}

// A Result is what a relay did.
type Result struct {
	Cause      Cause
	HalfClosed Side // who sent FIN first; NoSide if neither did
	Up, Down   uint64
	FirstByte  time.Duration // from the start of the relay to the backend's first byte; 0 if none came
	// Backend is the backend's connection, open, which the Handler owns from now on; only with RelayOptions.KeepBackend.
	Backend Conn
}

// A Cause says why a relay ended. The first one wins.
type Cause uint8

// Causes.
const (
	ClientFIN        Cause = iota + 1 // both directions ended in order, the client's first
	BackendFIN                        // both directions ended in order, the backend's first
	ClientRST                         // the client reset, or is gone (ETIMEDOUT)
	BackendRST                        // the backend reset, or is gone
	IdleTimeout                       // RelayOptions.Idle
	HalfCloseTimeout                  // RelayOptions.HalfClose
	SessionTimeout                    // RelayOptions.Session
	Killed                            // Link.Kill
	Failed                            // the system refused something a relay needs (ENOMEM and the like)
)

// A Side is one end of a session.
type Side uint8

// Sides.
const (
	NoSide Side = iota
	Client
	Backend
)
