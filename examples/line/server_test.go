package line_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tproxy/tproxy/examples/line"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves srv on a free port until the end of the test and returns its address.
func start(t *testing.T, srv *line.Server) net.Addr {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, srv, ln)
}

func serve(t *testing.T, srv *line.Server, ln net.Listener) net.Addr {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-served; !errors.Is(err, line.ErrServerClosed) {
			t.Errorf("Serve returned %v, want ErrServerClosed", err)
		}
	})
	return ln.Addr()
}

type closeWriter interface {
	net.Conn
	CloseWrite() error
}

func dial(t *testing.T, a net.Addr) closeWriter {
	t.Helper()
	c, err := net.Dial(a.Network(), a.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c.(closeWriter)
}

func send(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func wantToEnd(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != want {
		t.Fatalf("got %q, %v; want %q and the end", got, err, want)
	}
}

func TestEveryCommandIsAnsweredByOneLine(t *testing.T) {
	c := dial(t, start(t, &line.Server{Name: "one"}))
	r := bufio.NewReader(c)
	before := time.Now()
	for _, tt := range []struct{ send, want string }{
		{"ECHO hello", "hello"},
		{"echo  two  blanks ", " two  blanks "},
		{"ECHO", ""},
		{"WHO", "one"},
		{"COUNT", "1"},
		{"HELP", "ECHO text, TIME, WHO, COUNT, HELP, QUIT"},
		{"ECHO crlf\r", "crlf"},
		{"NONSENSE", `ERR unknown command "NONSENSE" (ECHO text, TIME, WHO, COUNT, HELP, QUIT)`},
		{"\x1b[31m", `ERR unknown command "\x1b[31M" (ECHO text, TIME, WHO, COUNT, HELP, QUIT)`},
		{"QUIT", "BYE"},
	} {
		send(t, c, tt.send+"\n")
		if tt.send == "WHO" {
			send(t, c, "\n\r\n") // empty lines have no answer
		}
		got, err := r.ReadString('\n')
		if err != nil || got != tt.want+"\n" {
			t.Errorf("%q is answered by %q, %v; want %q", tt.send, got, err, tt.want)
		}
	}
	wantToEnd(t, c, "")

	c = dial(t, start(t, &line.Server{}))
	send(t, c, "TIME\n")
	got, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if at, err := time.Parse(time.RFC3339, strings.TrimSpace(got)); err != nil || at.Before(before.Truncate(time.Second)) || at.After(time.Now()) {
		t.Errorf("TIME is answered by %q, %v", got, err)
	}
}

func TestCountIsOfSessionsTaken(t *testing.T) {
	addr := start(t, &line.Server{})
	for i := 1; i <= 3; i++ {
		c := dial(t, addr)
		send(t, c, "COUNT\nQUIT\n")
		wantToEnd(t, c, fmt.Sprintf("%d\nBYE\n", i))
	}
}

func TestQuitDeliversBYEThoughTheClientSendsOn(t *testing.T) {
	c := dial(t, start(t, &line.Server{}))
	send(t, c, "QUIT\n"+strings.Repeat("ECHO late\n", 5000))
	c.CloseWrite()
	wantToEnd(t, c, "BYE\n")
}

func TestHalfCloseByClientKeepsAnswers(t *testing.T) {
	const n = 20000
	c := dial(t, start(t, &line.Server{}))
	go func() {
		io.WriteString(c, strings.Repeat("ECHO x\n", n)+"ECHO no line end")
		c.CloseWrite()
	}()
	wantToEnd(t, c, strings.Repeat("x\n", n)+"no line end\n")
}

func TestLineInPiecesIsOneCommand(t *testing.T) {
	c := dial(t, start(t, &line.Server{}))
	for _, b := range []byte("ECHO a b\r\nQUIT\n") {
		send(t, c, string(b))
	}
	wantToEnd(t, c, "a b\nBYE\n")
}

func TestLongestLineIsTakenAndALongerOneEndsTheSession(t *testing.T) {
	addr := start(t, &line.Server{MaxLine: 64})
	longest := strings.Repeat("x", 64-len("ECHO \n"))

	c := dial(t, addr)
	send(t, c, "ECHO "+longest+"\nQUIT\n")
	wantToEnd(t, c, longest+"\nBYE\n")

	c = dial(t, addr)
	send(t, c, "ECHO "+longest+"y\nWHO\n")
	wantToEnd(t, c, "ERR the line is longer than 64 bytes\n")
}

func TestSilentClientIsEnded(t *testing.T) {
	c := dial(t, start(t, &line.Server{IdleTimeout: 20 * time.Millisecond}))
	send(t, c, "ECHO begun but not")
	wantToEnd(t, c, "")
}

func TestClientThatNeverReadsIsEnded(t *testing.T) {
	c := dial(t, start(t, &line.Server{MaxLine: 64 << 10, WriteTimeout: 50 * time.Millisecond}))
	chunk := "ECHO " + strings.Repeat("x", 60<<10) + "\n"
	for {
		if _, err := io.WriteString(c, chunk); errors.Is(err, context.DeadlineExceeded) {
			t.Fatal("the server still holds the session")
		} else if err != nil {
			return
		}
	}
}

func TestUnixSocket(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, serve(t, &line.Server{Name: "u"}, ln))
	send(t, c, "WHO\nQUIT\n")
	wantToEnd(t, c, "u\nBYE\n")
}

func TestShutdownAnswersWhatArrivedAndEndsIdleSessions(t *testing.T) {
	srv := &line.Server{}
	addr := start(t, srv)
	idle, busy := dial(t, addr), dial(t, addr)
	for _, c := range []net.Conn{idle, busy} {
		send(t, c, "ECHO here\n")
		if got, err := bufio.NewReader(c).ReadString('\n'); err != nil || got != "here\n" {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	send(t, busy, "ECHO unfinished")
	stopped := make(chan error, 1)
	go func() { stopped <- srv.Shutdown(t.Context()) }()
	wantToEnd(t, idle, "")
	wantToEnd(t, busy, "")
	idle.Close()
	busy.Close()
	if err := <-stopped; err != nil {
		t.Errorf("Shutdown returned %v", err)
	}
	if c, err := net.Dial("tcp", addr.String()); err == nil {
		c.Close()
		t.Error("the server still accepts")
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Errorf("a second Shutdown returned %v", err)
	}
}

// A pipeListener accepts one end of net.Pipe, which buffers nothing: a write lasts until it is read.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func TestShutdownCutsAtItsDeadline(t *testing.T) {
	srv := &line.Server{}
	ln := &pipeListener{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
	client, server := net.Pipe()
	defer client.Close()
	ln.conns <- server
	serve(t, srv, ln)
	send(t, client, "WHO\n") // nobody reads the answer, so the session cannot end in order

	why := errors.New("out of patience")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, why)
	defer cancel()
	if err := srv.Shutdown(ctx); !errors.Is(err, why) {
		t.Errorf("Shutdown returned %v, want the cause", err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the session goes on: %v", err)
	}
}

func TestServeAfterStopClosesItsListener(t *testing.T) {
	srv := &line.Server{}
	srv.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Serve(ln); !errors.Is(err, line.ErrServerClosed) {
		t.Errorf("Serve returned %v, want ErrServerClosed", err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept returned %v, want net.ErrClosed", err)
	}
}

func TestListenerClosedByOthersIsAnError(t *testing.T) {
	srv := &line.Server{}
	defer srv.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if err := srv.Serve(ln); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve returned %v, want net.ErrClosed", err)
	}
}

func ExampleServer() {
	srv := &line.Server{Name: "one"}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go srv.Serve(ln)
	defer srv.Shutdown(context.Background())

	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		panic(err)
	}
	defer c.Close()
	io.WriteString(c, "ECHO hello\nWHO\nQUIT\n")
	answers, err := io.ReadAll(c)
	fmt.Print(string(answers), err)
	// Output:
	// hello
	// one
	// BYE
	// <nil>
}
