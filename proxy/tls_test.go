//go:build unix

package proxy_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tproxy/tproxy/proxy"
)

// An authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	next int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, pool: x509.NewCertPool(), next: 1}
	template := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, key := a.sign(template)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, a.key = cert, key
	a.pool.AddCert(cert)
	return a
}

func (a *authority) sign(template *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber, a.next = big.NewInt(a.next), a.next+1
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(crand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	return der, key
}

// pair is a certificate for names, which may be IP addresses.
func (a *authority) pair(names ...string) tls.Certificate {
	a.t.Helper()
	template := &x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, key := a.sign(template)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) server(names ...string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{a.pair(names...)}}
}

func (a *authority) client(name string) *tls.Config {
	return &tls.Config{RootCAs: a.pool, ServerName: name}
}

// serveTLS runs f for every TLS connection, after the handshake.
func serveTLS(t *testing.T, config *tls.Config, f func(*tls.Conn)) string {
	t.Helper()
	return serve(t, func(c net.Conn) {
		tc := tls.Server(c, config)
		defer tc.Close()
		if tc.Handshake() == nil {
			f(tc)
		}
	})
}

// greet connects a client that speaks TLS; the handshake must succeed.
func (r *rig) greet(config *tls.Config) *tls.Conn {
	r.t.Helper()
	c := tls.Client(r.dial(), config)
	if err := c.Handshake(); err != nil {
		r.t.Fatal(err)
	}
	return c
}

// endInTLS ends a session in order from the client's side.
func endInTLS(t *testing.T, c *tls.Conn) {
	t.Helper()
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wantEOF(t, c)
	c.Close()
}

func TestTLSIsTerminated(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		ca := newAuthority(t)
		r := newRig(t, e, newEcho(t))
		r.srv.TLS = ca.server("web.example")
		r.start()
		c := r.greet(ca.client("web.example"))
		roundTrip(t, c, "hello")
		endInTLS(t, c)
		r.awaitClosed(1)
		events := r.rec.all()
		if last := events[len(events)-1]; last.SNI != "web.example" || last.Reason != proxy.ClientFIN || last.Up != 5 || last.Down != 5 || last.HalfClosedBy != proxy.ClientSide {
			t.Errorf("the last event is %+v", last)
		}
	})
}

func TestTLSIsOriginated(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		ca := newAuthority(t)
		server := ca.server("127.0.0.1")
		server.NextProtos = []string{"line"}
		states := make(chan tls.ConnectionState, 4)
		r := newRig(t, e, serveTLS(t, server, func(c *tls.Conn) {
			states <- c.ConnectionState()
			echo(c)
		}))
		r.group.TLS = &tls.Config{RootCAs: ca.pool, NextProtos: []string{"line"}} // the name is the address's host
		r.start()
		c := r.dial()
		roundTrip(t, c, "hello")
		finish(t, c)
		if s := receive(t, states, "the backend's handshake"); s.NegotiatedProtocol != "line" {
			t.Errorf("the protocol is %q", s.NegotiatedProtocol)
		}
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			1 close g/b1 attempts=1 up=5 down=5 half=client client_fin
		`)
	})
}

// TestTLSOnBothSidesCarriesEverything sends 64 KiB a hundred times, both ways at once.
func TestTLSOnBothSidesCarriesEverything(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		ca := newAuthority(t)
		const size, count = 64 << 10, 100
		type sums struct{ up, down [32]byte }
		told := make(chan sums, 1)
		stream := func(w io.Writer, seed uint64) (sum [32]byte) {
			h := sha256.New()
			random := rand.NewChaCha8([32]byte{byte(seed)})
			for range count {
				var b [size]byte
				random.Read(b[:])
				h.Write(b[:])
				if _, err := w.Write(b[:]); err != nil {
					t.Errorf("stream %d: %v", seed, err)
					break
				}
			}
			h.Sum(sum[:0])
			return sum
		}
		drain := func(c io.Reader) (sum [32]byte) {
			h := sha256.New()
			if n, err := io.Copy(h, c); err != nil || n != size*count {
				t.Errorf("%d bytes, %v", n, err)
			}
			h.Sum(sum[:0])
			return sum
		}
		both := func(c *tls.Conn, seed uint64) (sent, got [32]byte) {
			var sending sync.WaitGroup
			sending.Go(func() {
				sent = stream(c, seed)
				c.CloseWrite()
			})
			got = drain(c)
			sending.Wait()
			return sent, got
		}
		r := newRig(t, e, serveTLS(t, ca.server("db"), func(c *tls.Conn) {
			down, up := both(c, 2)
			told <- sums{up, down}
		}))
		r.srv.TLS, r.group.TLS = ca.server("web"), ca.client("db")
		r.start()
		c := r.greet(ca.client("web"))
		up, down := both(c, 1)
		if s := receive(t, told, "the backend's sums"); s.up != up || s.down != down {
			t.Error("what came is not what was sent")
		}
		c.Close()
	})
}

// TestTLSHalfCloseKeepsReply: close_notify of the client reaches the backend as its end of stream, and the reply still comes.
func TestTLSHalfCloseKeepsReply(t *testing.T) {
	ca := newAuthority(t)
	r := newRig(t, newEngine(t, "auto"), serveTLS(t, ca.server("db"), func(c *tls.Conn) {
		request, err := io.ReadAll(c)
		fmt.Fprintf(c, "%d bytes, %v", len(request), err)
	}))
	r.srv.TLS, r.group.TLS = ca.server("web"), ca.client("db")
	r.start()
	c := r.greet(ca.client("web"))
	io.WriteString(c, "request")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); string(got) != "7 bytes, <nil>" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	c.Close()
	r.awaitClosed(1)
}

// TestTLSBackendResetIsClientReset: a cut stream does not look complete.
func TestTLSBackendResetIsClientReset(t *testing.T) {
	ca := newAuthority(t)
	r := newRig(t, newEngine(t, "auto"), serveTLS(t, ca.server("db"), func(c *tls.Conn) {
		io.ReadFull(c, make([]byte, 1))
		io.WriteString(c, "half")
		io.ReadFull(c, make([]byte, 1))
		reset(c.NetConn().(*net.TCPConn))
	}))
	r.srv.TLS, r.group.TLS = ca.server("web"), ca.client("db")
	r.start()
	c := r.greet(ca.client("web"))
	io.WriteString(c, "x")
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "x")
	wantReset(t, c)
	r.awaitClosed(1)
	if why := r.rec.reasons()[0]; why != proxy.BackendRST {
		t.Errorf("the reason is %s", why)
	}
}

// TestTLSClientResetIsBackendReset is the same the other way.
func TestTLSClientResetIsBackendReset(t *testing.T) {
	ca := newAuthority(t)
	ends := make(chan error, 1)
	r := newRig(t, newEngine(t, "auto"), serveTLS(t, ca.server("db"), func(c *tls.Conn) {
		_, err := io.Copy(c, c)
		ends <- err
	}))
	r.srv.TLS, r.group.TLS = ca.server("web"), ca.client("db")
	r.start()
	c := r.greet(ca.client("web"))
	roundTrip(t, c, "x")
	reset(c.NetConn().(*net.TCPConn))
	if err := receive(t, ends, "the backend's end"); !errors.Is(err, errReset) {
		t.Errorf("the backend got %v", err)
	}
	r.awaitClosed(1)
	if why := r.rec.reasons()[0]; why != proxy.ClientRST {
		t.Errorf("the reason is %s", why)
	}
}

// TestFailedHandshakeTouchesNoBackend, and the client is told why by an alert.
func TestFailedHandshakeTouchesNoBackend(t *testing.T) {
	ca := newAuthority(t)
	for name, test := range map[string]struct {
		client func(t *testing.T, c *net.TCPConn)
		server func(*tls.Config)
		want   proxy.Reason
	}{
		"no TLS":       {want: proxy.PrefaceInvalid, client: func(t *testing.T, c *net.TCPConn) { io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); io.ReadAll(c) }},
		"ends at once": {want: proxy.PrefaceInvalid, client: func(t *testing.T, c *net.TCPConn) { wantEndAfterFIN(t, c) }},
		"ends in the hello": {want: proxy.PrefaceInvalid, client: func(t *testing.T, c *net.TCPConn) {
			c.Write([]byte{22, 3, 1, 2, 0, 1, 0})
			wantEndAfterFIN(t, c)
		}},
		"resets": {want: proxy.ClientRST, client: func(t *testing.T, c *net.TCPConn) { reset(c) }},
		"does not trust": {want: proxy.PrefaceInvalid, client: func(t *testing.T, c *net.TCPConn) {
			if err := tls.Client(c, &tls.Config{ServerName: "web", RootCAs: x509.NewCertPool()}).Handshake(); err == nil {
				t.Error("trusted")
			}
			c.Close()
		}},
		"too old": {want: proxy.PrefaceInvalid, server: func(s *tls.Config) { s.MinVersion = tls.VersionTLS13 }, client: func(t *testing.T, c *net.TCPConn) {
			config := ca.client("web")
			config.MaxVersion = tls.VersionTLS12
			wantAlert(t, tls.Client(c, config), "protocol version not supported")
		}},
		"no protocol in common": {want: proxy.PrefaceInvalid, server: func(s *tls.Config) { s.NextProtos = []string{"a"} }, client: func(t *testing.T, c *net.TCPConn) {
			config := ca.client("web")
			config.NextProtos = []string{"b", "c"}
			wantAlert(t, tls.Client(c, config), "no application protocol")
		}},
		"no certificate": {want: proxy.PrefaceInvalid, server: func(s *tls.Config) { s.ClientCAs, s.ClientAuth = ca.pool, tls.RequireAndVerifyClientCert },
			client: func(t *testing.T, c *net.TCPConn) {
				wantAlert(t, tls.Client(c, ca.client("web")), "certificate required")
			}},
		"a stranger's certificate": {want: proxy.PrefaceInvalid, server: func(s *tls.Config) { s.ClientCAs, s.ClientAuth = ca.pool, tls.RequireAndVerifyClientCert },
			client: func(t *testing.T, c *net.TCPConn) {
				config := ca.client("web")
				stranger := newAuthority(t).pair("who")
				config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &stranger, nil }
				wantAlert(t, tls.Client(c, config), "unknown certificate authority")
			}},
		"silent":   {want: proxy.PrefaceTimeout, client: func(t *testing.T, c *net.TCPConn) { wantReset(t, c) }},
		"one byte": {want: proxy.PrefaceTimeout, client: func(t *testing.T, c *net.TCPConn) { c.Write([]byte{22}); wantReset(t, c) }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStub(t)
			r := newRig(t, newEngine(t, "auto"), s.addr())
			r.srv.TLS = ca.server("web")
			if test.server != nil {
				test.server(r.srv.TLS)
			}
			r.srv.Timeouts.Preface = patience
			if test.want == proxy.PrefaceTimeout {
				r.srv.Timeouts.Preface = 100 * time.Millisecond
			}
			r.start()
			if c := r.dialBriefly(); c != nil {
				test.client(t, c)
				c.Close()
			}
			r.awaitClosed(1)
			if why := r.rec.reasons()[0]; why != test.want {
				t.Errorf("the reason is %s; %s", why, r.rec.story())
			}
			if n := len(s.conns); n > 0 {
				t.Errorf("%d connections at the backend", n)
			}
		})
	}
}

func wantEndAfterFIN(t *testing.T, c *net.TCPConn) {
	t.Helper()
	c.CloseWrite()
	io.ReadAll(c)
}

func wantAlert(t *testing.T, c *tls.Conn, text string) {
	t.Helper()
	err := c.Handshake()
	if err == nil { // in TLS 1.3 the server's verdict comes later
		_, err = c.Read(make([]byte, 1))
	}
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want the alert %q", err, text)
	}
}

// TestKillEndsHandshake, and so Close does not wait for a client that is silent.
func TestKillEndsHandshake(t *testing.T) {
	ca := newAuthority(t)
	r := newRig(t, newEngine(t, "auto"), newEcho(t))
	r.srv.TLS = ca.server("web")
	r.start()
	c := r.dial()
	c.Write([]byte{22})
	r.awaitEvents(proxy.SessionAccepted, 1)
	kill(t, r, proxy.KilledByAdmin)
	wantReset(t, c)
	r.awaitClosed(1)
	if why := r.rec.reasons()[0]; why != proxy.KilledByAdmin {
		t.Errorf("the reason is %s", why)
	}
}

// TestProxyHeaderBeforeTLS, glued to the ClientHello or cut off from it at every byte of the header.
func TestProxyHeaderBeforeTLS(t *testing.T) {
	ca := newAuthority(t)
	const header = "PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\r\n"
	r := newRig(t, newEngine(t, "auto"), newEcho(t))
	r.srv.TLS = ca.server("web")
	r.srv.ProxyProtocol = proxy.ProxyProtocol{Accept: proxy.HeaderRequire, Trusted: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}
	r.start()
	for cut := 0; cut <= len(header); cut += 5 {
		c := r.dial()
		var first bytes.Buffer
		first.WriteString(header[cut:])
		io.WriteString(c, header[:cut])
		tc := tls.Client(&glue{Conn: c, first: &first}, ca.client("web"))
		roundTrip(t, tc, "hello")
		endInTLS(t, tc)
	}
	r.awaitClosed(len(header)/5 + 1)
	for _, x := range r.rec.all() {
		if x.Kind == proxy.SessionClosed && (x.Claimed.String() != "192.0.2.1:1234" || x.SNI != "web") {
			t.Errorf("claimed %s, name %q", x.Claimed, x.SNI)
		}
	}
}

// A glue writes first together with what is written first.
type glue struct {
	net.Conn
	first *bytes.Buffer
}

func (g *glue) Write(p []byte) (int, error) {
	if g.first.Len() == 0 {
		return g.Conn.Write(p)
	}
	n := g.first.Len()
	g.first.Write(p)
	m, err := g.Conn.Write(g.first.Bytes())
	g.first.Reset()
	return max(0, m-n), err
}

// TestProxyHeaderGoesBeforeHandshake to the backend, and names the client and what it asked for.
func TestProxyHeaderGoesBeforeHandshake(t *testing.T) {
	ca := newAuthority(t)
	headers := make(chan string, 1)
	r := newRig(t, newEngine(t, "auto"), serve(t, func(c net.Conn) {
		var line []byte
		for b := make([]byte, 1); !bytes.HasSuffix(line, []byte("\n")); line = append(line, b...) {
			if _, err := c.Read(b); err != nil {
				return
			}
		}
		headers <- string(line)
		tc := tls.Server(c, ca.server("db"))
		echo(tc)
		tc.Close()
	}))
	r.srv.TLS, r.group.TLS, r.group.SendProxy = ca.server("web"), ca.client("db"), 1
	r.start()
	c := r.greet(ca.client("web"))
	roundTrip(t, c, "hello")
	from, to := c.LocalAddr().(*net.TCPAddr), c.RemoteAddr().(*net.TCPAddr)
	if got, want := receive(t, headers, "a header"), fmt.Sprintf("PROXY TCP4 %s %s %d %d\r\n", from.IP, to.IP, from.Port, to.Port); got != want {
		t.Errorf("the header is %q, want %q", got, want)
	}
	endInTLS(t, c)
}

// TestRoutesGoByWhatWasSettled: the name of the handshake, and the protocol that both have.
func TestRoutesGoByWhatWasSettled(t *testing.T) {
	ca := newAuthority(t)
	say := func(text string) string {
		return serve(t, func(c net.Conn) { io.WriteString(c, text); io.Copy(io.Discard, c) })
	}
	e := newEngine(t, "auto")
	r := newRig(t, e, say("rest"))
	byName, byProtocol := newRig(t, e, say("name")), newRig(t, e, say("protocol"))
	r.srv.TLS = ca.server("*.example", "web")
	r.srv.TLS.NextProtos = []string{"a", "b"}
	r.srv.Routes = []proxy.Route{
		{SNI: []string{"api.example"}, Group: byName.group},
		{ALPN: []string{"b"}, Group: byProtocol.group},
		{SNI: []string{"bad.example"}, Reject: true},
	}
	r.start()
	for _, test := range []struct {
		name      string
		protocols []string
		want      string
	}{
		{"api.example", nil, "name"}, {"API.Example", nil, "name"}, {"web", []string{"b"}, "protocol"},
		{"web", []string{"b", "a"}, "rest"}, // a is what the server prefers
		{"web", nil, "rest"}, {"bad.example", nil, ""},
	} {
		config := ca.client(test.name)
		config.NextProtos = test.protocols
		c := r.greet(config)
		got, err := []byte(nil), c.CloseWrite() // which may be the one to meet the reset
		if err == nil {
			got, err = io.ReadAll(c)
		}
		if string(got) != test.want || (err != nil) != (test.want == "") {
			t.Errorf("%s %q: got %q, %v", test.name, test.protocols, got, err)
		}
		c.Close()
	}
	r.awaitClosed(6)
}

// TestFailedBackendHandshakeIsFailedConnect: another backend is tried, and health hears of it.
func TestFailedBackendHandshakeIsFailedConnect(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	for name, first := range map[string]string{
		"not to be trusted": serveTLS(t, other.server("db"), func(c *tls.Conn) { echo(c) }),
		"another name":      serveTLS(t, ca.server("web"), func(c *tls.Conn) { echo(c) }),
		"no TLS":            serve(t, func(c net.Conn) { io.WriteString(c, "220 hello\r\n"); io.Copy(io.Discard, c) }),
		"ends":              newDrop(t),
		"silent":            "",
	} {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t, "auto")
			if name == "silent" {
				first = newStub(t).addr()
			}
			r := newRig(t, e, first, serveTLS(t, ca.server("db"), func(c *tls.Conn) { echo(c) }))
			h := new(healthRecorder)
			r.group.TLS, r.group.Health = ca.client("db"), h
			if name == "silent" { // the handshake of the other must be quicker than that
				r.group.Connect.Timeout = 2 * time.Second
			}
			r.start()
			c := r.dial()
			roundTrip(t, c, "hello")
			finish(t, c)
			r.awaitClosed(1)
			if n := r.rec.count(proxy.ConnectFailed); n != 1 {
				t.Errorf("%d failed connects; %s", n, r.rec.story())
			}
			failed := ""
			for _, e := range r.rec.all() {
				if e.Kind == proxy.ConnectFailed {
					failed = e.Err.Error()
					if (name == "silent") != errors.Is(e.Err, os.ErrDeadlineExceeded) {
						t.Error(e.Err)
					}
				}
			}
			if !strings.Contains(failed, "TLS with") && name != "silent" {
				t.Errorf("the error is %q", failed)
			}
		})
	}
}

// TestClientCertificateOfBackendConnection is shown.
func TestClientCertificateOfBackendConnection(t *testing.T) {
	ca := newAuthority(t)
	server := ca.server("db")
	server.ClientCAs, server.ClientAuth = ca.pool, tls.RequireAndVerifyClientCert
	r := newRig(t, newEngine(t, "auto"), serveTLS(t, server, func(c *tls.Conn) {
		io.WriteString(c, c.ConnectionState().PeerCertificates[0].DNSNames[0])
	}))
	r.group.TLS = ca.client("db")
	r.group.TLS.Certificates = []tls.Certificate{ca.pair("tproxy")}
	r.start()
	c := r.dial()
	if got, err := io.ReadAll(c); string(got) != "tproxy" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestTLSSpares have their handshake behind them.
func TestTLSSpares(t *testing.T) {
	ca := newAuthority(t)
	e := newEngine(t, "auto")
	shaken := make(chan struct{}, 16)
	r := newRig(t, e, serveTLS(t, ca.server("db"), func(c *tls.Conn) {
		shaken <- struct{}{}
		echo(c)
	}))
	r.group.TLS = ca.client("db")
	spares := proxy.NewSpares(e)
	t.Cleanup(spares.Close)
	r.group.Spares = spares
	spares.Update(proxy.SparesConfig{Warm: 1}, r.group, r.backends)
	r.start()
	await(t, "a spare", func() bool { return spares.Stats(r.backends[0]).Spares == 1 })
	receive(t, shaken, "its handshake")
	c := r.dial()
	roundTrip(t, c, "hello")
	finish(t, c)
	r.awaitClosed(1)
	for _, x := range r.rec.all() {
		if x.Kind == proxy.SessionClosed && x.Pool != proxy.PoolHit {
			t.Errorf("the spare was a %s", x.Pool)
		}
	}
	spares.Close()
}

// TestTLSCannotBeginOnEventLoops: Check says so, and nothing changes.
func TestTLSCannotBeginOnEventLoops(t *testing.T) {
	ca := newAuthority(t)
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newEcho(t)).start()
		settings := r.srv.Settings
		settings.TLS = ca.server("web")
		err := r.srv.Update(settings)
		if strings.HasSuffix(t.Name(), "epoll") {
			if err == nil {
				t.Error("updated")
			}
			c := r.dial()
			roundTrip(t, c, "plain")
			finish(t, c)
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		c := r.greet(ca.client("web"))
		roundTrip(t, c, "hello")
		endInTLS(t, c)
	})
}
