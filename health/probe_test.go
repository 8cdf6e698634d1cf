//go:build unix

package health

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

// patience bounds what ends by itself.
const patience = time.Minute

// serve accepts on a fresh port of network (tcp, tcp6, unix) and gives every connection to handle, which need not close it.
// It returns the address in the words of the configuration.
func serve(t *testing.T, network string, handle func(net.Conn)) string {
	t.Helper()
	at := map[string]string{"tcp": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": filepath.Join(t.TempDir(), "s")}[network]
	ln, err := net.Listen(network, at)
	if err != nil {
		t.Skip(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(2 * patience))
				handle(c)
			})
		}
	})
	t.Cleanup(func() { ln.Close(); all.Wait() })
	if network == "unix" {
		return "unix:" + at
	}
	return ln.Addr().String()
}

// probe runs p once against address.
func probe(t *testing.T, p Prober, address string, timeout time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	return p.Probe(ctx, Target{Group: "g", Backend: "b1", Address: address})
}

func want(t *testing.T, err error, r Result, text string) {
	t.Helper()
	if classify(err) != r || err != nil && !strings.Contains(err.Error(), text) {
		t.Errorf("got %v: %v\nwant %v: %s", classify(err), err, r, text)
	}
}

// wantTimeout probes with a longer timeout until what came before the end of it is in the error: a busy machine may have no time for that
// in the shorter ones. Each of them must run out.
func wantTimeout(t *testing.T, p Prober, address, text string) {
	t.Helper()
	for timeout := 100 * time.Millisecond; ; timeout *= 2 {
		err := probe(t, p, address, timeout)
		if classify(err) == TimedOut && !strings.Contains(err.Error(), text) && timeout < patience {
			continue
		}
		want(t, err, TimedOut, text)
		return
	}
}

// closedPort is an address on which nobody listens.
func closedPort(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func TestTCPPassesWhenSomebodyListens(t *testing.T) {
	for _, network := range []string{"tcp", "tcp6", "unix"} {
		t.Run(network, func(t *testing.T) {
			want(t, probe(t, TCP{}, serve(t, network, func(net.Conn) {}), patience), Passed, "")
		})
	}
	want(t, probe(t, TCP{}, closedPort(t), patience), Failed, "refused")
	want(t, probe(t, TCP{}, "unix:"+filepath.Join(t.TempDir(), "none"), patience), Failed, "no such file")
}

func TestTCPIsNotSeenByTheAcceptLoop(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux delays the last packet of the handshake")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for range 50 {
		if err := probe(t, TCP{}, ln.Addr().String(), patience); err != nil {
			t.Fatal(err)
		}
	}
	ordinary, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ordinary.Close()
	seen := 0
	for {
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if c.RemoteAddr().String() == ordinary.LocalAddr().String() {
			break
		}
		seen++
	}
	if seen > 10 { // a busy machine may send the last packet after all
		t.Errorf("%d of 50 probes were accepted", seen)
	}
}

func TestProbeUsesItsOwnPort(t *testing.T) {
	_, port, _ := net.SplitHostPort(serve(t, "tcp", func(net.Conn) {}))
	d := Dialer{Port: netip.MustParseAddrPort("1.1.1.1:" + port).Port()}
	want(t, probe(t, TCP{Dialer: d}, closedPort(t), patience), Passed, "")
	want(t, probe(t, TCP{Dialer: d}, serve(t, "unix", func(net.Conn) {}), patience), Passed, "")
	want(t, probe(t, TCP{Dialer: d}, "no port", patience), Failed, "missing port")
}

func TestProbeComesFromItsSource(t *testing.T) {
	from := make(chan net.Addr, 1)
	address := serve(t, "tcp", func(c net.Conn) { from <- c.RemoteAddr(); io.WriteString(c, "hello") })
	p := SendExpect{Dialer: Dialer{Source: netip.MustParseAddr("127.0.0.9")}, Expect: expect(t, "hello")}
	want(t, probe(t, p, address, patience), Passed, "")
	if got := (<-from).(*net.TCPAddr).IP.String(); got != "127.0.0.9" {
		t.Error("came from", got)
	}
	p.Dialer.Source = netip.MustParseAddr("192.0.2.1") // not ours
	want(t, probe(t, p, address, patience), NotRun, "assign")
}

func expect(t *testing.T, s string) Expect {
	t.Helper()
	e, err := ParseExpect(s)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestHeaderNamesNoClient(t *testing.T) {
	for _, tt := range []struct {
		header  Header
		version byte
	}{{V1, 1}, {V2, 2}} {
		got := make(chan *proxyproto.Header, 1)
		address := serve(t, "tcp", func(c net.Conn) {
			r := bufio.NewReader(c)
			h, err := proxyproto.Read(r)
			if err != nil {
				t.Error(err)
			}
			got <- h
			io.Copy(io.Discard, r)
		})
		for _, p := range []Prober{TCP{Dialer{Header: tt.header}}, SendExpect{Dialer: Dialer{Header: tt.header}, Send: "PING\n"}} {
			want(t, probe(t, p, address, patience), Passed, "")
			if h := <-got; h == nil || h.Version != tt.version || !h.Command.IsLocal() && tt.version == 2 || h.SourceAddr != nil {
				t.Errorf("header %+v", h)
			}
		}
	}
}

func TestSendExpect(t *testing.T) {
	pieces := func(all ...string) func(net.Conn) {
		return func(c net.Conn) {
			for _, p := range all {
				io.WriteString(c, p)
				runtime.Gosched()
			}
			io.Copy(io.Discard, c)
		}
	}
	one := func(s string) func(net.Conn) { return pieces(strings.Split(s, "")...) }
	tests := []struct {
		name   string
		expect string
		handle func(net.Conn)
		result Result
		text   string
	}{
		{"prefix", "+PONG", pieces("+PONG\r\n"), Passed, ""},
		{"prefix in single bytes", "+PONG", one("+PONG\r\n"), Passed, ""},
		{"prefix and no more", "+PONG", pieces("+PONG"), Passed, ""},
		{"wrong", "+PONG", pieces("-ERR no\r\n"), Failed, `reply "-ERR no" is not "+PONG"`},
		{"wrong late", "+PONG", one("+POLG"), Failed, "is not"},
		{"silent", "+PONG", pieces(), TimedOut, `reply "" so far`},
		{"half", "+PONG", pieces("+PO"), TimedOut, `reply "+PO" so far`},
		{"end", "+PONG", func(c net.Conn) { c.Read(make([]byte, 99)); io.WriteString(c, "+PO") }, Failed, `reply "+PO", then end`},
		{"nothing expected", "", pieces(), Passed, ""},
		{"pattern", "re:^[+]P.NG", one("+PONG\r\n"), Passed, ""},
		{"pattern in the middle", "re:role:master", one(strings.Repeat("x", 3000) + "role:master"), Passed, ""},
		{"pattern not found", "re:role:master", pieces("role:slave\r\n"), TimedOut, "role:slave"},
		{"endless", "re:role:master", func(c net.Conn) {
			for {
				if _, err := c.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}, Failed, "is not"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := SendExpect{Send: "PING\n", Expect: expect(t, tt.expect)}
			for _, network := range []string{"tcp", "unix"} {
				address := serve(t, network, tt.handle)
				if tt.result == TimedOut {
					wantTimeout(t, p, address, tt.text)
					continue
				}
				want(t, probe(t, p, address, patience), tt.result, tt.text)
			}
		})
	}
}

func TestSendExpectWithNothingToSendReadsTheBanner(t *testing.T) {
	address := serve(t, "tcp", func(c net.Conn) { io.WriteString(c, "220 mail ready\r\n") })
	want(t, probe(t, SendExpect{Expect: expect(t, "220 ")}, address, patience), Passed, "")
}

// A reply that trickles in does not extend the time.
func TestTimeoutIsAbsolute(t *testing.T) {
	address := serve(t, "tcp", func(c net.Conn) {
		for tick := time.NewTicker(20 * time.Millisecond); ; <-tick.C {
			if _, err := io.WriteString(c, "x"); err != nil {
				return
			}
		}
	})
	start := time.Now()
	want(t, probe(t, SendExpect{Expect: expect(t, "re:y")}, address, 200*time.Millisecond), TimedOut, "timeout")
	if d := time.Since(start); d < 200*time.Millisecond || d > patience {
		t.Errorf("took %v", d)
	}
}

func TestCancelledProbeEndsAtOnce(t *testing.T) {
	accepted := make(chan struct{})
	address := serve(t, "tcp", func(c net.Conn) { close(accepted); io.Copy(io.Discard, c) })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- SendExpect{Send: "x", Expect: expect(t, "y")}.Probe(ctx, Target{Address: address})
	}()
	<-accepted
	cancel()
	select {
	case err := <-done:
		if err == nil {
			t.Error("passed")
		}
	case <-time.After(patience):
		t.Fatal("goes on")
	}
}

func TestTLS(t *testing.T) {
	var name string
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.TLS = &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) { name = h.ServerName; return nil, nil }}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	address := s.Listener.Addr().String()
	want(t, probe(t, TLS{ServerName: "db.example"}, address, patience), Passed, "")
	if name != "db.example" {
		t.Errorf("server name %q", name)
	}
	want(t, probe(t, TLS{Config: &tls.Config{RootCAs: x509.NewCertPool()}, ServerName: "db.example"}, address, patience), Failed, "certificate")
	want(t, probe(t, TLS{Config: s.Client().Transport.(*http.Transport).TLSClientConfig, ServerName: "example.com"}, address, patience), Passed, "")
	want(t, probe(t, TLS{}, serve(t, "tcp", func(c net.Conn) { io.WriteString(c, "220 no TLS here\r\n") }), patience), Failed, "tls")
	wantTimeout(t, TLS{}, serve(t, "tcp", func(c net.Conn) { io.Copy(io.Discard, c) }), "")
}

func TestHTTP(t *testing.T) {
	var host, uri, agent string
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, uri, agent = r.Host, r.RequestURI, r.UserAgent()
		switch r.URL.Path {
		case "/ok":
			w.WriteHeader(http.StatusEarlyHints)
			fmt.Fprint(w, strings.Repeat("body", 100_000))
		case "/moved":
			http.Redirect(w, r, "/ok", http.StatusFound)
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	s := httptest.NewServer(h)
	defer s.Close()
	address := s.Listener.Addr().String()
	ok, err := ParseStatus("200-399")
	if err != nil {
		t.Fatal(err)
	}
	want(t, probe(t, HTTP{Path: "/ok?deep=1", Host: "db.example", Status: ok}, address, patience), Passed, "")
	if host != "db.example" || uri != "/ok?deep=1" || agent != "tproxy" {
		t.Errorf("host %q, uri %q, agent %q", host, uri, agent)
	}
	want(t, probe(t, HTTP{Path: "/moved", Status: ok}, address, patience), Passed, "")
	if host != address {
		t.Errorf("host %q", host)
	}
	want(t, probe(t, HTTP{Status: ok}, address, patience), Failed, "status 503 is not in 200-399")
	want(t, probe(t, HTTP{Path: "/ok", Status: StatusSet{}}, address, patience), Failed, "status 200 is not in")
	want(t, probe(t, HTTP{Status: ok}, serve(t, "unix", func(c net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil || r.Host != "localhost" {
			t.Errorf("request %+v: %v", r, err)
		}
		io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
	}), patience), Passed, "")
	want(t, probe(t, HTTP{Status: ok}, serve(t, "tcp", func(c net.Conn) { io.WriteString(c, "220 no HTTP here\r\n") }), patience), Failed, "malformed")
	want(t, probe(t, HTTP{Status: ok}, serve(t, "tcp", func(c net.Conn) { // an endless head
		io.WriteString(c, "HTTP/1.1 200 OK\r\n")
		for {
			if _, err := io.WriteString(c, "X: "+strings.Repeat("y", 1000)+"\r\n"); err != nil {
				return
			}
		}
	}), patience), Failed, "unexpected EOF")
	wantTimeout(t, HTTP{Status: ok}, serve(t, "tcp", func(c net.Conn) { io.Copy(io.Discard, c) }), "")
}

func TestExec(t *testing.T) {
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip(err)
	}
	sh := func(script string) Exec { return Exec{Command: []string{"/bin/sh", "-c", script}} }
	want(t, probe(t, sh(`test "$TPROXY_GROUP $TPROXY_BACKEND $TPROXY_ADDRESS" = "g b1 10.0.0.1:5432" && test -n "$PATH"`), "10.0.0.1:5432", patience), Passed, "")
	want(t, probe(t, sh(`echo replica lags >&2; echo more; exit 3`), "", patience), Failed, `exit status 3: "replica lags"`)
	want(t, probe(t, sh(`exit 1`), "", patience), Failed, "exit status 1")
	want(t, probe(t, sh(`yes | head -c 1000000; exit 1`), "", patience), Failed, `exit status 1: "y"`)
	want(t, probe(t, Exec{Command: []string{"/no/such/program"}}, "", patience), Failed, "no such file")
	want(t, probe(t, Exec{}, "", patience), Failed, "no command")
}

func TestExecIsKilledWithItsChildren(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "alive")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Skip(err)
	}
	wantTimeout(t, Exec{Command: []string{"sleep", "1000"}}, "", "sleep: killed: context deadline")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() {
		done <- Exec{Command: []string{"/bin/sh", "-c", `(echo ready; exec sleep 1000) >"$0" & wait`, fifo}}.Probe(ctx, Target{})
	}()
	alive, err := os.Open(fifo) // until the child opens it
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	if _, err := io.ReadFull(alive, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	cancel()
	want(t, <-done, NotRun, "killed")
	if rest, err := io.ReadAll(alive); err != nil || len(rest) > 0 { // until nobody has it open
		t.Errorf("read %q, %v", rest, err)
	}
}

func TestParseStatus(t *testing.T) {
	for _, tt := range []struct {
		in, out  string
		yes, not []int
	}{
		{"200-399", "200-399", []int{200, 302, 399}, []int{199, 400}},
		{"200,204, 300 - 399", "200,204,300-399", []int{200, 204, 300}, []int{201, 203}},
		{"200", "200", []int{200}, []int{199, 201}},
	} {
		s, err := ParseStatus(tt.in)
		if err != nil || s.String() != tt.out {
			t.Errorf("%q: %q, %v", tt.in, s, err)
		}
		for _, code := range tt.yes {
			if !s.Contains(code) {
				t.Errorf("%q lacks %d", tt.in, code)
			}
		}
		for _, code := range tt.not {
			if s.Contains(code) {
				t.Errorf("%q has %d", tt.in, code)
			}
		}
	}
	for _, in := range []string{"", ",", "200,", "99", "600", "300-200", "200-", "-200", "2xx", "200-299-300", "+200"} {
		if s, err := ParseStatus(in); err == nil {
			t.Errorf("%q is taken for %q", in, s)
		}
	}
}

func TestParseExpectRefusesABadPattern(t *testing.T) {
	if _, err := ParseExpect("re:("); err == nil || !strings.Contains(err.Error(), `"re:("`) {
		t.Error(err)
	}
}

func FuzzParseStatus(f *testing.F) {
	for _, s := range []string{"200-399", "200,204,300-399", "", "2-,", "-", "99999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		s, err := ParseStatus(in)
		if err != nil {
			return
		}
		again, err := ParseStatus(s.String())
		if err != nil || again.String() != s.String() {
			t.Errorf("%q is printed as %q, which is read as %q, %v", in, s, again, err)
		}
	})
}

// However a reply is cut into pieces, the outcome is the same.
func FuzzExpect(f *testing.F) {
	f.Add("+PONG", "+PONG\r\n", 3)
	f.Add("re:^[+]P.NG", "+PANG", 1)
	f.Add("", "", 0)
	f.Add("re:a{1000}", strings.Repeat("a", 999), 7)
	f.Fuzz(func(t *testing.T, expect, reply string, cut int) {
		e, err := ParseExpect(expect)
		if err != nil || e.pattern == nil && len(reply) > maxReply {
			return
		}
		whole := e.read(strings.NewReader(reply))
		cut = min(max(cut, 0), len(reply))
		cutUp := e.read(io.MultiReader(strings.NewReader(reply[:cut]), strings.NewReader(reply[cut:])))
		if e.pattern == nil && (whole == nil) != strings.HasPrefix(reply, expect) {
			t.Errorf("expect %q, reply %q: %v", expect, reply, whole)
		}
		if e.pattern == nil && (whole == nil) != (cutUp == nil) {
			t.Errorf("expect %q, reply %q: whole %v, in pieces %v", expect, reply, whole, cutUp)
		}
	})
}
