package reactor

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"
)

// Tests of the epoll engine's own parts over real sockets. What any engine must do is in the conformance suite.

// patience bounds every wait that must end by itself.
const patience = time.Minute

// A gate is an Acceptor with room for everybody.
type gate struct {
	conns  chan *conn
	paused chan error
}

func newGate() *gate {
	return &gate{conns: make(chan *conn, 4096), paused: make(chan error, 64)}
}

func (g *gate) Reserve() bool    { return true }
func (g *gate) Unreserve()       {}
func (g *gate) Accepted(c Conn)  { g.conns <- c.(*conn) }
func (g *gate) Paused(err error) { g.paused <- err }

// A rig is an epoll engine with a listener in front of it and a backend behind it.
type rig struct {
	t       testing.TB
	engine  *Epoll
	gate    *gate
	ln      Listener
	backend *net.TCPListener
}

func newRig(t testing.TB, loops int) *rig {
	t.Helper()
	e := newEngine(t, loops)
	r := &rig{t: t, engine: e, gate: newGate()}
	var err error
	if r.backend, err = net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.backend.Close() })
	if r.ln, err = e.Listen(TCP(netip.MustParseAddrPort("127.0.0.1:0")), ListenOptions{}, r.gate); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.ln.Close() })
	return r
}

// newEngine also checks, when the test is over, that its loops count nothing any more.
func newEngine(t testing.TB, loops int) *Epoll {
	t.Helper()
	e, err := NewEpoll(loops)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Close()
		for i, l := range e.loops {
			if n := l.sessions.Load(); n != 0 || l.wheel.count != 0 || len(l.free) != len(l.conns) || len(l.posted) != 0 {
				t.Errorf("loop %d: %d connections, %d timers, %d of %d slots free, %d posted", i, n, l.wheel.count, len(l.free), len(l.conns), len(l.posted))
			}
		}
	})
	return e
}

// A session is both ends of a relay.
type session struct {
	client, server *net.TCPConn
	near, far      *conn
	link           *relay
	options        RelayOptions
	ended          chan Result
}

func (s *session) Options() *RelayOptions  { return &s.options }
func (s *session) Unused(Conn, Cause) bool { return false }
func (s *session) Ended(r Result)          { s.ended <- r }

// connect brings client and backend together, and does not start the relay.
func (r *rig) connect() *session {
	r.t.Helper()
	client, err := net.DialTCP("tcp", nil, r.ln.Addr().Net().(*net.TCPAddr))
	if err != nil {
		r.t.Fatal(err)
	}
	near := receive(r.t, r.gate.conns, "a client")
	far, server := r.dial(near)
	s := &session{client: client, server: server, near: near, far: far, ended: make(chan Result, 2)}
	s.link = r.engine.Relay(near, far, s).(*relay)
	return s
}

func (r *rig) dial(near Conn) (*conn, *net.TCPConn) {
	r.t.Helper()
	far, err := r.engine.Dial(AddrOf(r.backend.Addr()), near, Addr{})
	if err == nil {
		err = far.Established(context.Background())
	}
	if err != nil {
		r.t.Fatal(err)
	}
	server, err := r.backend.AcceptTCP()
	if err != nil {
		r.t.Fatal(err)
	}
	return far.(*conn), server
}

func (r *rig) open() *session {
	r.t.Helper()
	s := r.connect()
	s.link.Start()
	return s
}

// close ends the session in order and waits.
func (s *session) close(t testing.TB) Result {
	t.Helper()
	s.client.Close()
	s.server.Close()
	return receive(t, s.ended, "the end of the session")
}

func receive[T any](t testing.TB, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
	}
	return v
}

// await waits for what no channel tells.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !cond(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// passes sends p one way and checks that it comes out.
func passes(t testing.TB, from, to net.Conn, p string) {
	t.Helper()
	if _, err := io.WriteString(from, p); err != nil {
		t.Fatal(err)
	}
	gets(t, to, p)
}

func gets(t testing.TB, c net.Conn, want string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, len(want))
	if n, err := io.ReadFull(c, buf); string(buf[:n]) != want {
		t.Fatalf("got %q (%v), want %q", buf[:n], err, want)
	}
}

func isReset(err error) bool { return errors.Is(err, syscall.ECONNRESET) }

func descriptors(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
