package reactor_test

// What only the portable engine can do: relay any net.Conn, TLS above all.

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tproxy/tproxy/internal/reactor"
)

// newTLS makes the two sides' configuration for a certificate that nobody else trusts.
func newTLS(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"backend"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(nil, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	server = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}}}
	return server, &tls.Config{RootCAs: roots, ServerName: "backend"}
}

// A tlsRig speaks TLS on both sides.
type tlsRig struct {
	t              *testing.T
	engine         *reactor.Portable
	server, client *tls.Config
	door           *door
	ln             reactor.Listener
	backend        net.Listener
}

func newTLSRig(t *testing.T) *tlsRig {
	t.Helper()
	leavesNothing(t)
	e := reactor.NewPortable()
	t.Cleanup(func() { e.Close() })
	r := &tlsRig{t: t, engine: e, door: newDoor(plenty)}
	r.server, r.client = newTLS(t)
	r.backend = tls.NewListener(ipv4.listen(t), r.server)
	ln, err := e.Serve(tls.NewListener(ipv4.listen(t), r.server), reactor.ListenOptions{}, r.door)
	if err != nil {
		t.Fatal(err)
	}
	r.ln = ln
	t.Cleanup(func() { closeListener(t, ln, r.door) })
	return r
}

// connect makes both connections; the handshakes are the relay's.
func (r *tlsRig) connect() *session {
	r.t.Helper()
	ctx := context.Background()
	client := tls.Client(dial(r.t, r.ln.Addr()), r.client)
	near := r.door.next(r.t)
	shaken := background(func() { near.Established(ctx) })
	if err := client.Handshake(); err != nil {
		r.t.Fatal(err)
	}
	shaken()
	if !near.Connected() {
		r.t.Fatal("the client's handshake is missing")
	}

	plain, err := net.Dial("tcp", r.backend.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	far := r.engine.Conn(tls.Client(plain, r.client))
	shaken = background(func() { far.Established(ctx) })
	backend, err := r.backend.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	peer(r.t, backend)
	if err := backend.(*tls.Conn).Handshake(); err != nil {
		r.t.Fatal(err)
	}
	shaken()
	return &session{
		t: r.t, engine: r.engine, client: client, backend: backend, near: near, far: far,
		asked: make(chan reactor.Cause, 4), ended: make(chan reactor.Result, 4),
	}
}

func (r *tlsRig) open(o reactor.RelayOptions) *session {
	r.t.Helper()
	s := r.connect()
	s.relay(o)
	return s
}

func TestTLSOnBothSides(t *testing.T) {
	r := newTLSRig(t)
	for i, size := range []int{0, 1, 16384, 65537, 1<<20 + 1} {
		exchange(t, r.open(reactor.RelayOptions{}), size, size, uint64(i), true, 64<<10)
	}
}

func TestTLSHalfCloseIsCloseNotify(t *testing.T) {
	s := newTLSRig(t).open(reactor.RelayOptions{})
	send(t, s.client, "request")
	sendFIN(t, s.client)
	wants(t, "the backend", s.backend, "request", endFIN)
	send(t, s.backend, "reply")
	s.backend.Close()
	wants(t, "the client", s.client, "reply", endFIN)
	if r := s.result(reactor.ClientFIN); r.HalfClosed != reactor.Client {
		t.Errorf("result is %+v", r)
	}
}

// TestTLSThatIsCutIsAReset: the end of TCP within a record is no end of TLS.
func TestTLSThatIsCutIsAReset(t *testing.T) {
	r := newTLSRig(t)
	for _, cut := range []func(*net.TCPConn) error{
		func(c *net.TCPConn) error {
			c.Write([]byte{23, 3, 3, 0, 100, 1, 2, 3}) // 3 bytes of application data that has 100
			return c.CloseWrite()
		},
		func(c *net.TCPConn) error { c.SetLinger(0); return c.Close() },
	} {
		s := r.open(reactor.RelayOptions{})
		send(t, s.backend, "half of it")
		wantsNext(t, "the client", s.client, "half of it")
		if err := cut(s.backend.(*tls.Conn).NetConn().(*net.TCPConn)); err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, s.client); n > 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client got %d more bytes, then %v", n, err)
		}
		s.backend.Close()
		s.result(reactor.BackendRST)
	}
}

func TestTLSClientSurvivesAnUnusedBackend(t *testing.T) {
	r := newTLSRig(t)
	first := r.connect()
	first.unused = func(reactor.Cause) bool { return true }
	first.relay(reactor.RelayOptions{})
	first.backend.Close()
	receive(t, first.asked, "the question")

	second := r.connect()
	second.near.Close()
	second.near, second.client = first.near, first.client
	second.relay(reactor.RelayOptions{})
	send(t, second.client, "hello")
	wantsNext(t, "the second backend", second.backend, "hello")
	second.link.Kill()
	second.result(reactor.Killed)
}

func TestTLSOnResetBeforeAndDuringTheHandshake(t *testing.T) {
	r := newTLSRig(t)
	for _, shaking := range []bool{false, true} {
		client := dial(t, r.ln.Addr())
		near := r.door.next(t)
		reset := make(chan struct{})
		near.OnReset(func() { close(reset) })
		if shaking {
			wait := background(func() {
				if err := near.Established(context.Background()); err == nil {
					t.Error("a handshake with nobody")
				}
			})
			sendRST(client)
			wait()
		} else {
			sendRST(client)
			receive(t, reset, "the reset")
		}
		near.Reset()
	}
}

// TestTLSHandshakesInTheRelay, when nobody has waited for it.
func TestTLSHandshakesInTheRelay(t *testing.T) {
	r := newTLSRig(t)
	client := tls.Client(dial(t, r.ln.Addr()), r.client)
	near := r.door.next(t)
	plain, err := net.Dial("tcp", r.backend.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan reactor.Result, 1)
	link := r.engine.Relay(near, r.engine.Conn(tls.Client(plain, r.client)), endings(ended))
	defer link.Kill()
	link.Start()
	backend, err := r.backend.Accept()
	if err != nil {
		t.Fatal(err)
	}
	peer(t, backend)
	greeted := background(func() { send(t, backend, "greeting") })
	wantsNext(t, "the client", client, "greeting")
	greeted()
	send(t, client, "request")
	wantsNext(t, "the backend", backend, "request")
	backend.Close()
	wants(t, "the client", client, "", endFIN)
	client.Close()
	if res := receive(t, ended, "the end"); res.Cause != reactor.BackendFIN {
		t.Errorf("cause is %s", causes[res.Cause])
	}
}

// pipes relays two pairs of pipes with a clock that a test can turn.
func pipes(e *reactor.Portable, o reactor.RelayOptions) (client, backend net.Conn, ended endings) {
	client, near := net.Pipe()
	backend, far := net.Pipe()
	ended = make(endings, 1)
	e.Relay(e.Conn(near), e.Conn(far), limited{ended, &o}).Start()
	return client, backend, ended
}

// limited is a Handler that replaces no backend, of a session with limits.
type limited struct {
	endings
	options *reactor.RelayOptions
}

func (l limited) Options() *reactor.RelayOptions { return l.options }

func TestTimersAreExact(t *testing.T) {
	for name, test := range map[string]struct {
		options     reactor.RelayOptions
		cause       reactor.Cause
		least, most time.Duration
	}{
		"idle":          {reactor.RelayOptions{Idle: time.Hour}, reactor.IdleTimeout, time.Hour, time.Hour},
		"session":       {reactor.RelayOptions{Session: time.Hour}, reactor.SessionTimeout, 54 * time.Minute, 66 * time.Minute},
		"the first one": {reactor.RelayOptions{Session: time.Hour, Idle: time.Minute}, reactor.IdleTimeout, time.Minute, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := reactor.NewPortable()
				start := time.Now()
				client, backend, ended := pipes(e, test.options)
				res := <-ended
				if took := time.Since(start); took < test.least || took > test.most || res.Cause != test.cause {
					t.Errorf("%s after %v", causes[res.Cause], took)
				}
				client.Close()
				backend.Close()
				e.Close()
			})
		})
	}
}

func TestSessionTimeoutsAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := reactor.NewPortable()
		start := time.Now()
		took := map[time.Duration]bool{}
		var all []endings
		for range 50 {
			_, _, ended := pipes(e, reactor.RelayOptions{Session: time.Hour})
			all = append(all, ended)
		}
		var mu sync.Mutex
		var waiting sync.WaitGroup
		for _, ended := range all {
			waiting.Go(func() {
				<-ended
				mu.Lock()
				defer mu.Unlock()
				took[time.Since(start)] = true
			})
		}
		waiting.Wait()
		if len(took) < 45 {
			t.Errorf("only %d different ends of 50", len(took))
		}
		e.Close()
	})
}

// TestPipesEndTogether: a pipe has no FIN, so the end of one side is the end of both.
func TestPipesEndTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := reactor.NewPortable()
		client, backend, ended := pipes(e, reactor.RelayOptions{})
		sent := background(func() {
			io.WriteString(client, "bye")
			client.Close()
		})
		if got, err := io.ReadAll(backend); string(got) != "bye" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		sent()
		if res := <-ended; res.Cause != reactor.ClientFIN || res.Up != 3 {
			t.Errorf("result is %+v", res)
		}
		e.Close()
	})
}

// A failingListener gives one error after the other, then waits.
type failingListener struct {
	errs   []error
	when   []time.Duration
	start  time.Time
	closed chan struct{}
}

func (l *failingListener) Accept() (net.Conn, error) {
	l.when = append(l.when, time.Since(l.start))
	if len(l.errs) > 0 {
		err := l.errs[0]
		l.errs = l.errs[1:]
		if err == nil {
			c, other := net.Pipe()
			other.Close()
			return c, nil
		}
		return nil, err
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *failingListener) Close() error   { close(l.closed); return nil }
func (l *failingListener) Addr() net.Addr { return &net.TCPAddr{} }

func TestAcceptingBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &failingListener{start: time.Now(), closed: make(chan struct{})}
		for range 8 {
			l.errs = append(l.errs, &net.OpError{Op: "accept", Err: syscall.EMFILE})
		}
		l.errs = append(l.errs, syscall.ECONNABORTED, nil, syscall.ECONNABORTED, syscall.EMFILE, nil)
		e, d := reactor.NewPortable(), newDoor(plenty)
		ln, err := e.Serve(l, reactor.ListenOptions{}, d)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := <-d.paused; !errors.Is(err, syscall.EMFILE) {
				t.Errorf("paused because of %v", err)
			}
			if err := <-d.paused; err != nil {
				t.Errorf("paused again because of %v", err)
			}
			(<-d.conns).Close()
		}
		synctest.Wait()
		at := time.Duration(0)
		for i, wait := range []time.Duration{0, 10, 20, 40, 80, 160, 320, 500, 500, 0, 0, 0, 10, 0} {
			at += wait * time.Millisecond
			if l.when[i] != at {
				t.Errorf("Accept %d came after %v, want %v", i, l.when[i], at)
			}
		}
		closeListener(t, ln, d)
		e.Close()
	})
}

// TestAListenerThatSomebodyElseClosed does not spin: the next client makes it pause.
func TestAListenerThatSomebodyElseClosed(t *testing.T) {
	leavesNothing(t)
	e, d, inner := reactor.NewPortable(), newDoor(plenty), ipv4.listen(t)
	ln, err := e.Serve(inner, reactor.ListenOptions{}, d)
	if err != nil {
		t.Fatal(err)
	}
	inner.Close()
	if c, err := net.Dial("tcp", ln.Addr().String()); err == nil { // the engine has another descriptor of it
		peer(t, c)
	}
	if err := receive(t, d.paused, "a pause"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("paused because of %v", err)
	}
	ln.Close()
	if reserved, _ := d.count(); reserved != 0 {
		t.Errorf("%d reservations left", reserved)
	}
	e.Close()
}
