package reactor_test

// The conformance suite: what an engine must do, over real sockets. Every test runs on every engine, one after the
// other, and each leaves as many descriptors and goroutines as it found. The suite is spread over *_test.go by subject.

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tproxy/tproxy/internal/reactor"
)

// engines are the engines that this system has.
var engines = map[string]func() (reactor.Engine, error){
	"portable": func() (reactor.Engine, error) { return reactor.NewPortable(), nil },
}

// patience bounds every wait that must end by itself. On a machine with fifty busy processes for each processor 10 s were not enough.
const patience = time.Minute

func TestMain(m *testing.M) {
	// The runtime's poller and its descriptors come with the first socket and stay.
	if ln, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		ln.Close()
	}
	// Cases that run side by side wait most of the time, so there may be more of them than processors.
	flag.Parse()
	flag.Set("test.parallel", "8")
	goleak.VerifyTestMain(m)
}

// conform runs a test on every engine.
func conform(t *testing.T, test func(t *testing.T, e reactor.Engine)) {
	t.Helper()
	for name, open := range engines {
		t.Run(name, func(t *testing.T) {
			leavesNothing(t)
			e, err := open()
			if err != nil {
				t.Fatal(err)
			}
			if e.Name() != name {
				t.Errorf("Name is %q", e.Name())
			}
			t.Cleanup(func() {
				closed := make(chan error, 1)
				go func() { closed <- e.Close() }()
				if err := receive(t, closed, "Close of the engine"); err != nil {
					t.Errorf("engine: %v", err)
				}
			})
			test(t, e)
		})
	}
}

// leavesNothing checks at the end of the test, after everything that was put into Cleanup later.
func leavesNothing(t *testing.T) {
	goroutines, before := goleak.IgnoreCurrent(), descriptors()
	t.Cleanup(func() {
		if err := goleak.Find(goroutines); err != nil {
			t.Error(err)
		}
		if after := descriptors(); after != before {
			t.Errorf("%d descriptors before the test, %d after", before, after)
		}
	})
}

// descriptors is how many this process has open; 0 where the system does not tell.
func descriptors() int {
	fds, _ := os.ReadDir("/proc/self/fd")
	return len(fds)
}

// A family is a kind of address to listen on.
type family string

const (
	ipv4     family = "IPv4"
	ipv6     family = "IPv6"
	unixPath family = "unix"
)

func (f family) anyAddr(t *testing.T) reactor.Addr {
	t.Helper()
	text := map[family]string{ipv4: "127.0.0.1:0", ipv6: "[::1]:0"}[f]
	if f == unixPath {
		dir, err := os.MkdirTemp("", "reactor") // t.TempDir is too long for a socket
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		text = "unix:" + filepath.Join(dir, "s")
	}
	a, err := reactor.ParseAddr(text)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (f family) listen(t *testing.T) net.Listener {
	t.Helper()
	a := f.anyAddr(t)
	ln, err := net.Listen(a.Network(), a.Net().String())
	if err != nil && f == ipv6 {
		t.Skipf("no IPv6 here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// A door is an Acceptor that lets in as many clients as there is room for.
type door struct {
	conns  chan reactor.Conn
	paused chan error

	mu       sync.Mutex
	room     int
	reserved int // and not given back
	accepted int
	refused  chan struct{} // a token for each Reserve that returned false, as far as they fit
}

const plenty = 1 << 30

func newDoor(room int) *door {
	return &door{
		conns: make(chan reactor.Conn, 4096), paused: make(chan error, 64), refused: make(chan struct{}, 1), room: room,
	}
}

func (d *door) Reserve() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.room == d.reserved {
		select {
		case d.refused <- struct{}{}:
		default:
		}
		return false
	}
	d.reserved++
	return true
}

func (d *door) Unreserve() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reserved--
}

func (d *door) Accepted(c reactor.Conn) {
	d.mu.Lock()
	d.accepted++
	d.mu.Unlock()
	d.conns <- c
}

func (d *door) Paused(err error) { d.paused <- err }

func (d *door) count() (reserved, accepted int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reserved, d.accepted
}

// drop closes what was accepted and not taken.
func (d *door) drop() {
	for {
		select {
		case c := <-d.conns:
			c.Close()
		default:
			return
		}
	}
}

func (d *door) next(t *testing.T) reactor.Conn {
	t.Helper()
	return receive(t, d.conns, "a client")
}

func receive[T any](t *testing.T, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		buf := make([]byte, 1<<20)
		t.Fatalf("waited in vain for %s\n%s", what, buf[:runtime.Stack(buf, true)])
	}
	return v
}

// await waits for what no channel tells.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !cond(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// A rig is an engine with a listener in front of it and a backend behind it.
type rig struct {
	t       *testing.T
	engine  reactor.Engine
	door    *door
	ln      reactor.Listener
	backend net.Listener
}

func newRig(t *testing.T, e reactor.Engine) *rig { return newRigOn(t, e, ipv4, ipv4) }

func newRigOn(t *testing.T, e reactor.Engine, front, back family) *rig {
	t.Helper()
	r := &rig{t: t, engine: e, door: newDoor(plenty), backend: back.listen(t)}
	r.ln = listen(t, e, front.anyAddr(t), r.door)
	return r
}

func listen(t *testing.T, e reactor.Engine, a reactor.Addr, d *door) reactor.Listener {
	t.Helper()
	ln, err := e.Listen(a, reactor.ListenOptions{}, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeListener(t, ln, d) })
	return ln
}

// closeListener also checks that every reservation was used or given back.
func closeListener(t *testing.T, ln reactor.Listener, d *door) {
	t.Helper()
	if err := ln.Close(); err != nil {
		t.Errorf("listener: %v", err)
	}
	d.drop()
	if reserved, accepted := d.count(); reserved != accepted {
		t.Errorf("%d reservations for %d clients", reserved, accepted)
	}
}

// dial connects a peer: a client, or what a test needs one for. Nothing it does lasts longer than patience.
func dial(t *testing.T, a reactor.Addr) net.Conn {
	t.Helper()
	c, err := net.Dial(a.Network(), a.Net().String())
	if err != nil {
		t.Fatal(err)
	}
	return peer(t, c)
}

func peer(t *testing.T, c net.Conn) net.Conn {
	c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { c.Close() })
	return c
}

// A session is both ends of a relay, and what it tells.
type session struct {
	t               *testing.T
	engine          reactor.Engine
	client, backend net.Conn     // the peers
	near, far       reactor.Conn // what the relay gets
	link            reactor.Link
	options         reactor.RelayOptions

	unused func(reactor.Cause) bool // nil: false
	asked  chan reactor.Cause
	ended  chan reactor.Result
}

func (s *session) Options() *reactor.RelayOptions { return &s.options }

func (s *session) Unused(_ reactor.Conn, c reactor.Cause) bool {
	s.asked <- c
	return s.unused != nil && s.unused(c)
}

func (s *session) Ended(r reactor.Result) { s.ended <- r }

// connect brings client and backend together, but does not start the relay.
func (r *rig) connect() *session {
	r.t.Helper()
	client := dial(r.t, r.ln.Addr())
	near := r.door.next(r.t)
	far, backend := r.dialBackend(near)
	return &session{
		t: r.t, engine: r.engine, client: client, backend: backend, near: near, far: far,
		asked: make(chan reactor.Cause, 4), ended: make(chan reactor.Result, 4),
	}
}

func (r *rig) dialBackend(near reactor.Conn) (reactor.Conn, net.Conn) {
	r.t.Helper()
	far, err := r.engine.Dial(reactor.AddrOf(r.backend.Addr()), near, reactor.Addr{})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := far.Established(ctx); err != nil {
		r.t.Fatal(err)
	}
	backend, err := r.backend.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	return far, peer(r.t, backend)
}

// open starts a session.
func (r *rig) open(o reactor.RelayOptions) *session {
	r.t.Helper()
	s := r.connect()
	s.relay(o)
	return s
}

func (s *session) relay(o reactor.RelayOptions) {
	s.options = o
	s.link = s.engine.Relay(s.near, s.far, s)
	s.t.Cleanup(s.link.Kill)
	s.link.Start()
}

// result waits for the end and checks its cause.
func (s *session) result(want reactor.Cause) reactor.Result {
	s.t.Helper()
	r := receive(s.t, s.ended, "the end of the session")
	if r.Cause != want {
		s.t.Errorf("cause is %s, want %s", causes[r.Cause], causes[want])
	}
	up, down := s.link.Bytes()
	if up != r.Up || down != r.Down {
		s.t.Errorf("the link says %d bytes up and %d down, the result %d and %d", up, down, r.Up, r.Down)
	}
	return r
}

// isOpen fails if the session has ended.
func (s *session) isOpen() {
	s.t.Helper()
	select {
	case r := <-s.ended:
		s.t.Fatalf("the session has ended: %s", causes[r.Cause])
	default:
	}
}

var causes = map[reactor.Cause]string{
	0: "none", reactor.ClientFIN: "ClientFIN", reactor.BackendFIN: "BackendFIN", reactor.ClientRST: "ClientRST",
	reactor.BackendRST: "BackendRST", reactor.IdleTimeout: "IdleTimeout", reactor.HalfCloseTimeout: "HalfCloseTimeout",
	reactor.SessionTimeout: "SessionTimeout", reactor.Killed: "Killed", reactor.Failed: "Failed",
}

// An end is what a peer sees after the last byte.
type end string

const (
	endFIN end = "FIN"
	endRST end = "RST"
)

// endOf tells the end from the error of a Read.
func endOf(err error) end {
	switch {
	case err == nil || err == io.EOF:
		return endFIN
	case errors.Is(err, syscall.ECONNRESET):
		return endRST
	}
	return end(fmt.Sprint("error: ", err))
}

// wants reads to the end.
func wants(t *testing.T, who string, c net.Conn, data string, how end) {
	t.Helper()
	got, err := io.ReadAll(c)
	if string(got) != data || endOf(err) != how {
		t.Errorf("%s got %q and %s, want %q and %s", who, got, endOf(err), data, how)
	}
}

// wantsNext reads exactly data.
func wantsNext(t *testing.T, who string, c net.Conn, data string) {
	t.Helper()
	buf := make([]byte, len(data))
	if n, err := io.ReadFull(c, buf); string(buf[:n]) != data {
		t.Fatalf("%s got %q (%v), want %q", who, buf[:n], err, data)
	}
}

func send(t *testing.T, c net.Conn, data string) {
	t.Helper()
	if _, err := io.WriteString(c, data); err != nil {
		t.Fatal(err)
	}
}

func sendFIN(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

// sendRST closes c with a reset.
func sendRST(c net.Conn) {
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
}

// background runs f; the returned function waits for it.
func background(f func()) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	return func() { <-done }
}
