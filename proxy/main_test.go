//go:build unix

package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/pool"
	"github.com/tproxy/tproxy/proxy"
)

// patience bounds every wait that must end by itself.
const patience = time.Minute

func TestMain(m *testing.M) {
	// The runtime's poller and its descriptors come with the first socket and stay.
	if ln, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		ln.Close()
	}
	goleak.VerifyTestMain(m)
}

// eachEngine runs a test on every engine that this system has; each must leave as many descriptors and goroutines as it found.
func eachEngine(t *testing.T, test func(t *testing.T, e *proxy.Engine)) {
	t.Helper()
	kinds := []string{"portable"}
	if runtime.GOOS == "linux" {
		kinds = append(kinds, "epoll")
	}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) { test(t, newEngine(t, kind)) })
	}
}

// newEngine also checks at the end of the test that nothing is left.
func newEngine(t *testing.T, kind string) *proxy.Engine {
	t.Helper()
	leavesNothing(t)
	e, err := proxy.NewEngine(kind)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("engine: %v", err)
		}
	})
	return e
}

func leavesNothing(t *testing.T) {
	goroutines, before := goleak.IgnoreCurrent(), openDescriptors()
	t.Cleanup(func() {
		if err := goleak.Find(goroutines); err != nil {
			t.Error(err)
		}
		if after := openDescriptors(); after != before {
			t.Errorf("%d descriptors before the test, %d after", before, after)
		}
	})
}

// openDescriptors is how many this process has; 0 where the system does not tell.
func openDescriptors() int {
	fds, _ := os.ReadDir("/proc/self/fd")
	return len(fds)
}

// await waits for what no channel tells.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !cond(); <-tick.C {
		if time.Now().After(end) {
			buf := make([]byte, 1<<20)
			t.Fatalf("waited in vain for %s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
	}
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

// A recorder is an Observer that keeps what it is told.
type recorder struct {
	mu     sync.Mutex
	events []proxy.Event
}

func (r *recorder) Observe(e proxy.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (r *recorder) all() []proxy.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

func (r *recorder) count(k proxy.Kind) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.events {
		if r.events[i].Kind == k {
			n++
		}
	}
	return n
}

// reasons are those of the closed sessions, in the order of their ends.
func (r *recorder) reasons() (all []proxy.Reason) {
	for _, e := range r.all() {
		if e.Kind == proxy.SessionClosed {
			all = append(all, e.Reason)
		}
	}
	return all
}

// story is the events without what differs from run to run: one a line, sessions numbered and told in the order of their accept.
func (r *recorder) story() string {
	numbers := map[proxy.SessionID]int{0: 0}
	events := r.all()
	for _, e := range events {
		if _, ok := numbers[e.ID]; !ok {
			numbers[e.ID] = len(numbers)
		}
	}
	slices.SortStableFunc(events, func(a, b proxy.Event) int { return numbers[a.ID] - numbers[b.ID] })
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintf(&b, "%d %s", numbers[e.ID], e.Kind)
		if e.Backend != "" {
			fmt.Fprintf(&b, " %s/%s", e.Group, e.Backend)
		}
		if e.Attempts > 0 {
			fmt.Fprintf(&b, " attempts=%d", e.Attempts)
		}
		if e.Wait >= time.Millisecond {
			b.WriteString(" waited")
		}
		if e.Up+e.Down > 0 {
			fmt.Fprintf(&b, " up=%d down=%d", e.Up, e.Down)
		}
		switch e.HalfClosedBy {
		case proxy.ClientSide:
			b.WriteString(" half=client")
		case proxy.BackendSide:
			b.WriteString(" half=backend")
		}
		if e.Reason != proxy.NoReason {
			fmt.Fprintf(&b, " %s", e.Reason)
		}
		killed := e.Reason >= proxy.OnDown && e.Reason <= proxy.Rebalanced // at a moment of which the error tells
		if e.Err != nil && !killed {
			fmt.Fprintf(&b, ": %s", cause(e.Err))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// cause names what an error wraps: the engines word their errors differently.
func cause(err error) string {
	for _, known := range []error{
		errRefused, backend.ErrNone, backend.ErrFull, pool.ErrQueueFull, pool.ErrQueueTimeout, os.ErrDeadlineExceeded, io.EOF,
	} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	text := err.Error()
	return strings.TrimSpace(text[strings.LastIndex(text, ":")+1:])
}

// A rig is a server between clients and backends b1, b2, … of a group g that takes the first it can.
type rig struct {
	t        *testing.T
	srv      *proxy.Server
	rec      *recorder
	group    *proxy.Group
	backends []*backend.Backend
	front    proxy.Addr
}

// newRig returns a rig that can be changed until start.
func newRig(t *testing.T, e *proxy.Engine, addresses ...string) *rig {
	t.Helper()
	r := &rig{t: t, rec: new(recorder)}
	for i, a := range addresses {
		r.backends = append(r.backends, newBackend(t, fmt.Sprintf("b%d", i+1), a))
	}
	bg, err := backend.NewGroup(backend.GroupConfig{Name: "g", Balance: backend.First, Backends: r.backends})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bg.Close)
	r.group = &proxy.Group{Backends: bg, Connect: proxy.Connect{BackoffBase: time.Millisecond, BackoffMax: time.Millisecond}}
	r.srv = &proxy.Server{Name: "front", Engine: e, Observer: r.rec, Limit: proxy.NewLimit(0), Settings: proxy.Settings{Group: r.group}}
	return r
}

func newBackend(t *testing.T, name, address string) *backend.Backend {
	t.Helper()
	b, err := backend.New(backend.Config{Name: name, Address: address, Weight: 1})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// queue makes sessions wait for a slot.
func (r *rig) queue(max int, timeout time.Duration) *pool.Queue {
	q := pool.NewQueue(max, timeout)
	r.group.Queue = q
	r.wake()
	return q
}

// hold makes sessions wait for a backend to come up.
func (r *rig) hold(timeout time.Duration) *pool.Queue {
	q := pool.NewQueue(0, timeout)
	r.group.Hold = q
	r.wake()
	return q
}

func (r *rig) wake() {
	queues := []*pool.Queue{r.group.Queue, r.group.Hold}
	r.group.Backends.OnFreed(func() {
		for _, q := range queues {
			if q != nil {
				q.Wake()
			}
		}
	})
}

// start begins to accept. At the end of the test the server is closed, and nothing may be counted any more.
func (r *rig) start() *rig {
	r.t.Helper()
	l, err := r.srv.Listen("127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	r.front = l.Addr()
	r.t.Cleanup(r.close)
	l.Start()
	return r
}

func (r *rig) close() {
	r.t.Helper()
	if err := r.srv.Close(); err != nil {
		r.t.Errorf("close: %v", err)
	}
	checkEnds(r.t, r.rec.all())
	if n := r.srv.Active(); n != 0 {
		r.t.Errorf("%d sessions active after the end", n)
	}
	if n := r.srv.Limit.Active(); n != 0 {
		r.t.Errorf("%d sessions counted by the limit after the end", n)
	}
	for _, b := range r.backends {
		if n := b.Active(); n != 0 {
			r.t.Errorf("%d leases of %s are out after the end", n, b)
		}
	}
	for _, q := range []*pool.Queue{r.group.Queue, r.group.Hold} {
		if q != nil && q.Len() != 0 {
			r.t.Errorf("%d wait after the end", q.Len())
		}
	}
}

// checkEnds checks that every session has one accept, its first event, and one close with a reason, its last.
func checkEnds(t *testing.T, events []proxy.Event) {
	t.Helper()
	last := make(map[proxy.SessionID]proxy.Kind)
	for _, e := range events {
		if e.Kind == proxy.AcceptPaused || e.Kind == proxy.AcceptResumed {
			continue
		}
		before, known := last[e.ID]
		switch {
		case e.Kind == proxy.SessionAccepted && known, e.Kind != proxy.SessionAccepted && !known, before == proxy.SessionClosed:
			t.Errorf("session %d: %v after %v", e.ID, e.Kind, before)
		case e.Kind == proxy.SessionClosed && e.Reason == proxy.NoReason:
			t.Errorf("session %d closed without a reason", e.ID)
		}
		last[e.ID] = e.Kind
	}
	for id, k := range last {
		if k != proxy.SessionClosed {
			t.Errorf("the last event of session %d is %v", id, k)
		}
	}
}

// dial connects a client, which is closed with the test.
func (r *rig) dial() *net.TCPConn {
	r.t.Helper()
	return dial(r.t, r.front)
}

func dial(t *testing.T, a proxy.Addr) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", a.String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// awaitClosed waits until n sessions were closed.
func (r *rig) awaitClosed(n int) {
	r.t.Helper()
	r.awaitEvents(proxy.SessionClosed, n)
}

func (r *rig) awaitEvents(k proxy.Kind, n int) {
	r.t.Helper()
	defer func() {
		if r.t.Failed() && r.rec.count(k) < n {
			r.t.Logf("the story until then:\n%s", r.rec.story())
		}
	}()
	await(r.t, fmt.Sprintf("%d × %v", n, k), func() bool { return r.rec.count(k) >= n })
}

// tells compares the story with what it should be. Nothing may happen after it.
func (r *rig) tells(want string) {
	r.t.Helper()
	r.awaitClosed(strings.Count(want, " close "))
	want = strings.ReplaceAll(strings.TrimLeft(want, "\n"), "\t", "")
	if got := r.rec.story(); got != want {
		r.t.Errorf("the story is\n%swant\n%s", got, want)
	}
}

// A stub is a backend that does what the test makes it do with the connections it gets.
type stub struct {
	t     *testing.T
	ln    net.Listener
	conns chan *net.TCPConn
}

func newStub(t *testing.T) *stub {
	t.Helper()
	s := &stub{t: t, ln: listen(t, "127.0.0.1:0"), conns: make(chan *net.TCPConn, 1024)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := s.ln.Accept()
			if err != nil {
				return
			}
			s.conns <- c.(*net.TCPConn)
		}
	}()
	t.Cleanup(func() {
		s.ln.Close()
		<-done
		for len(s.conns) > 0 {
			(<-s.conns).Close()
		}
	})
	return s
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func (s *stub) addr() string { return s.ln.Addr().String() }

// next is the next connection that the proxy made.
func (s *stub) next() *net.TCPConn {
	s.t.Helper()
	c := receive(s.t, s.conns, "a connection at the backend")
	s.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// newEcho is the address of a backend that sends back what it gets.
func newEcho(t *testing.T) string { return serve(t, echo) }

// echo hides what c can do better than Read and Write: package net would keep the pipes that it splices with.
func echo(c net.Conn) { io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) }

// newDrop is the address of a backend that ends every connection at once.
func newDrop(t *testing.T) string { return serve(t, func(net.Conn) {}) }

// serve runs f for every connection, and closes it after that.
func serve(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	ln := listen(t, "127.0.0.1:0")
	var running sync.WaitGroup
	var mu sync.Mutex
	open := make(map[net.Conn]bool)
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			running.Go(func() {
				f(c)
				c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return ln.Addr().String()
}

// roundTrip sends text and expects it back.
func roundTrip(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if err := exchange(c, text); err != nil {
		t.Fatal(err)
	}
}

func exchange(c net.Conn, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	reply := make([]byte, len(text))
	if _, err := io.ReadFull(c, reply); err != nil {
		return err
	}
	if string(reply) != text {
		return fmt.Errorf("sent %q and got %q", text, reply)
	}
	return nil
}

// finish ends a session in order from the client's side.
func finish(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wantEOF(t, c)
}

func wantEOF(t *testing.T, c net.Conn) {
	t.Helper()
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("got %q, %v at the end of the stream", rest, err)
	}
}

// reset makes the client's end a reset.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	if rest, err := io.ReadAll(c); !errors.Is(err, errReset) {
		t.Errorf("got %q, %v, want a reset", rest, err)
	}
}

// wantUnserved connects a client that is closed without a byte.
func (r *rig) wantUnserved() {
	r.t.Helper()
	c := r.dial()
	wantEOF(r.t, c)
	c.Close()
}

// wantRefused connects a client that is reset, maybe before it knows that it was connected.
func (r *rig) wantRefused() {
	r.t.Helper()
	c, err := net.DialTimeout("tcp", r.front.String(), patience)
	if errors.Is(err, errReset) {
		return
	}
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	wantReset(r.t, c)
}

// within is a context for what must end by itself.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// A healthRecorder keeps what health is told of connects.
type healthRecorder struct {
	mu      sync.Mutex
	reports []string
}

func (h *healthRecorder) want(t *testing.T, want ...string) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.reports, want) {
		t.Errorf("health was told %q, want %q", h.reports, want)
	}
}
