//go:build unix

package proxy_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/internal/clienthello"
	"github.com/tproxy/tproxy/proxy"
)

// clientHello is what a crypto/tls client sends first.
func clientHello(t *testing.T, name string, protocols ...string) []byte {
	t.Helper()
	near, far := net.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tls.Client(near, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: protocols}).Handshake()
	}()
	defer func() { far.Close(); near.Close(); <-ended }()
	buf := make([]byte, clienthello.MaxSize)
	n := 0
	for {
		m, err := far.Read(buf[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
		if _, _, err := clienthello.Peek(buf[:n]); err == nil {
			return buf[:n]
		}
	}
}

// newNamed is a group with one backend, which says the group's name and then sends back what it gets.
func newNamed(t *testing.T, name string) *proxy.Group {
	t.Helper()
	address := serve(t, func(c net.Conn) {
		fmt.Fprintln(c, name)
		echo(c)
	})
	bg, err := backend.NewGroup(backend.GroupConfig{Name: name, Balance: backend.First, Backends: []*backend.Backend{newBackend(t, name+"1", address)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bg.Close)
	return &proxy.Group{Backends: bg}
}

// newRouted is a rig whose own group, the default, is called "rest".
func newRouted(t *testing.T, e *proxy.Engine, routes ...proxy.Route) *rig {
	t.Helper()
	r := newRig(t, e)
	r.srv.Group, r.srv.Routes = newNamed(t, "rest"), routes
	r.srv.Timeouts.Preface = patience
	return r
}

// served is the name of the group that serves the session, which must send back what the client has sent.
func served(c net.Conn, sent []byte) (string, error) {
	in := bufio.NewReader(c)
	name, err := in.ReadString('\n')
	if err != nil {
		return "", err
	}
	reply := make([]byte, len(sent))
	if _, err := io.ReadFull(in, reply); err != nil {
		return name, err
	}
	if !bytes.Equal(reply, sent) {
		return name, fmt.Errorf("%d bytes came back changed", len(sent))
	}
	return strings.TrimSuffix(name, "\n"), nil
}

func TestFirstMatchingRoute(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		exact, wild, h2, near, both := newNamed(t, "exact"), newNamed(t, "wild"), newNamed(t, "h2"), newNamed(t, "near"), newNamed(t, "both")
		r := newRouted(t, e,
			proxy.Route{SNI: []string{"Both.example"}, ALPN: []string{"imap", "h2"}, Group: both},
			proxy.Route{SNI: []string{"A.Example.", "b.example"}, Group: exact},
			proxy.Route{SNI: []string{"no.example"}, Reject: true},
			proxy.Route{SNI: []string{"*.example"}, Group: wild},
			proxy.Route{ALPN: []string{"h2"}, Group: h2},
			proxy.Route{Source: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}, Group: near},
		).start()
		closed := 0
		for _, x := range []struct {
			name, from, want string
			protocols        []string
		}{
			{"a.example", "127.0.0.1", "exact", nil},
			{"A.EXAMPLE", "127.0.0.2", "exact", []string{"h2"}},
			{"b.example", "127.0.0.1", "exact", nil},
			{"both.example", "127.0.0.1", "both", []string{"http/1.1", "h2"}},
			{"both.example", "127.0.0.1", "wild", []string{"http/1.1"}},
			{"deep.c.example", "127.0.0.1", "wild", nil},
			{"no.example", "127.0.0.1", "", nil},
			{"example", "127.0.0.1", "rest", nil},
			{"other.test", "127.0.0.1", "h2", []string{"h2"}},
			{"", "127.0.0.1", "h2", []string{"h2"}},
			{"other.test", "127.0.0.2", "near", nil},
			{"other.test", "127.0.0.1", "rest", nil},
			{"", "127.0.0.1", "rest", nil},
		} {
			hello := clientHello(t, x.name, x.protocols...)
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(x.from)}}
			c, err := d.Dial("tcp", r.front.String())
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(patience))
			c.Write(hello)
			got, err := served(c, hello)
			if got != x.want || (err != nil) != (x.want == "") {
				t.Errorf("%+v: served by %q, %v", x, got, err)
			}
			c.Close()
			closed++
			r.awaitClosed(closed)
			events := r.rec.all()
			last := events[len(events)-1]
			if last.SNI != strings.ToLower(x.name) || last.Group != x.want {
				t.Errorf("%+v: told of %q and group %q", x, last.SNI, last.Group)
			}
			if x.want == "" && last.Reason != proxy.Denied {
				t.Errorf("%+v: %v", x, last.Reason)
			}
		}
	})
}

// A client that speaks something else has no name: the default group's, or refused where there is none.
func TestNotTLS(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRouted(t, e, proxy.Route{SNI: []string{"a.example"}, Group: newNamed(t, "a")}).start()
		for _, first := range []string{"G", "SSH-2.0-x\r\n", "\x16\x02", "\x80\x2e\x01"} {
			c := r.dial()
			io.WriteString(c, first)
			if got, err := served(c, []byte(first)); got != "rest" || err != nil {
				t.Errorf("%q: served by %q, %v", first, got, err)
			}
			finish(t, c)
		}
		r.awaitClosed(4)
		s := r.srv.Settings
		s.Group = nil
		if err := r.srv.Update(s); err != nil {
			t.Fatal(err)
		}
		c := r.dial()
		io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		wantReset(t, c)
		c = r.dial()
		c.Write(clientHello(t, "other.example"))
		wantReset(t, c)
		r.awaitClosed(6)
		if got := r.rec.reasons()[4:]; got[0] != proxy.Denied || got[1] != proxy.Denied {
			t.Errorf("without a default group: %v", got)
		}
	})
}

// recut is a hello in records of n bytes.
func recut(hello []byte, n int) (b []byte) {
	for message := hello[5:]; len(message) > 0; {
		m := min(n, len(message))
		b = append(b, hello[0], hello[1], hello[2])
		b = binary.BigEndian.AppendUint16(b, uint16(m))
		b = append(b, message[:m]...)
		message = message[m:]
	}
	return b
}

// large is a hello of some 15 KB.
func large(t *testing.T, name string) []byte {
	protocols := make([]string, 60)
	for i := range protocols {
		protocols[i] = strings.Repeat(string(rune('a'+i%26)), 240)
	}
	return clientHello(t, name, protocols...)
}

func TestHelloInPieces(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRouted(t, e, proxy.Route{SNI: []string{"a.example"}, Group: newNamed(t, "a")}).start()
		small, big := clientHello(t, "a.example", "h2"), large(t, "a.example")
		for name, x := range map[string]struct {
			hello []byte
			piece int
		}{
			"byte by byte":                               {small, 1},
			"one record a byte":                          {recut(small, 1), len(small) * 6},
			"one record a byte, byte by byte":            {recut(small, 1), 1},
			"seven bytes a record and five bytes a time": {recut(small, 7), 5},
			"15 KB":                              {big, len(big)},
			"15 KB in pieces":                    {big, 1000},
			"15 KB in records of 100, in pieces": {recut(big, 100), 999},
			"with what follows it":               {append(bytes.Clone(small), "early data\x00"...), 1 << 20},
		} {
			c := r.dial()
			sent := background(func() {
				for rest := x.hello; len(rest) > 0; {
					n := min(x.piece, len(rest))
					c.Write(rest[:n])
					rest = rest[n:]
				}
			})
			if got, err := served(c, x.hello); got != "a" || err != nil {
				t.Errorf("%s: served by %q, %v", name, got, err)
			}
			sent()
			finish(t, c)
		}
	})
}

func background(f func()) (wait func()) {
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	return func() { <-done }
}

// The header and what follows it come in one segment, or cut where it hurts.
func TestHeaderAndHelloTogether(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRouted(t, e, proxy.Route{SNI: []string{"a.example"}, Source: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Group: newNamed(t, "a")})
		r.srv.ProxyProtocol = proxy.ProxyProtocol{Accept: proxy.HeaderRequire, Trusted: anyone}
		r.start()
		hello := append(large(t, "a.example"), "and more"...)
		header := "PROXY TCP4 192.0.2.1 198.51.100.1 1 2\r\n"
		all := append([]byte(header), hello...)
		for _, cut := range []int{0, 1, len(header) - 1, len(header), len(header) + 1, len(header) + 5, len(header) + 6, len(all) - 1, len(all)} {
			c := r.dial()
			c.Write(all[:cut])
			c.Write(all[cut:])
			if got, err := served(c, hello); got != "a" || err != nil {
				t.Errorf("cut at %d: served by %q, %v", cut, got, err)
			}
			finish(t, c)
		}
	})
}

func TestMalformedHelloEndsTheSession(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRouted(t, e, proxy.Route{SNI: []string{"a.example"}, Group: newNamed(t, "a")}).start()
		hello := clientHello(t, "a.example")
		badName := bytes.Replace(hello, []byte("a.example"), []byte("a.ex\x00mple"), 1)
		for i, x := range [][]byte{
			[]byte("\x16\x03\x01\xff\xff"),
			[]byte("\x16\x03\x01\x00\x00"),
			[]byte("\x16\x03\x01\x40\x01\x01"),
			[]byte("\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00"),
			[]byte("\x16\x03\x01\x00\x05\x01\xff\xff\xff\x00"),
			append(recut(hello, 10)[:15], "\x17\x03\x03\x00\x01x"...),
			badName,
		} {
			c := r.dial()
			c.Write(x)
			wantReset(t, c)
			r.awaitClosed(i + 1)
			if got := r.rec.reasons()[i]; got != proxy.PrefaceInvalid {
				t.Errorf("%q: %v", x[:5], got)
			}
		}
		if r.rec.count(proxy.SessionOpened) > 0 {
			t.Error("a backend was reached")
		}
	})
}

// The limit is for the whole preface, however busy the client is.
func TestPrefaceTimeIsAbsolute(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		const limit = 200 * time.Millisecond
		r := newRouted(t, e, proxy.Route{SNI: []string{"a.example"}, Group: newNamed(t, "a")})
		r.srv.ProxyProtocol = proxy.ProxyProtocol{Accept: proxy.HeaderRequire, Trusted: anyone}
		r.srv.Timeouts.Preface = limit
		r.start()
		silent, busy := r.dialBriefly(), r.dialBriefly()
		all := append([]byte("PROXY TCP4 192.0.2.1 198.51.100.1 1 2\r\n"), clientHello(t, "a.example")...)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for i := range all { // would take many times as long, and then be served
			if busy == nil {
				break
			}
			if _, err := busy.Write(all[i : i+1]); err != nil {
				break
			}
			<-tick.C
		}
		if silent != nil {
			wantReset(t, silent)
		}
		r.awaitClosed(2)
		for _, ev := range r.rec.all() {
			if ev.Kind == proxy.SessionClosed && (ev.Reason != proxy.PrefaceTimeout || ev.Duration < limit) {
				t.Errorf("%v after %v", ev.Reason, ev.Duration)
			}
		}
	})
}

// Without routes, and with routes that need no byte of the client, the backend may speak first.
func TestBackendSpeaksFirst(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRouted(t, e).start()
		speaks := func(want string) {
			t.Helper()
			c := r.dial()
			if got, err := served(c, nil); got != want || err != nil {
				t.Errorf("greeted by %q, %v, want %q", got, err, want)
			}
			finish(t, c)
		}
		speaks("rest")
		s := r.srv.Settings
		s.Routes = []proxy.Route{{Source: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Group: newNamed(t, "near")}}
		if err := r.srv.Update(s); err != nil {
			t.Fatal(err)
		}
		speaks("near")
		// One that must read a header waits for no more than that.
		s.ProxyProtocol = proxy.ProxyProtocol{Accept: proxy.HeaderRequire, Trusted: anyone}
		if err := r.srv.Update(s); err != nil {
			t.Fatal(err)
		}
		c := claim(t, r, "192.0.2.1")
		if got, err := served(c, nil); got != "rest" || err != nil {
			t.Errorf("greeted by %q, %v", got, err)
		}
		finish(t, c)
	})
}

// A thousand clients that begin a preface and say no more cost little memory, and nobody else is kept waiting.
func TestSilentPrefaces(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRouted(t, e, proxy.Route{SNI: []string{"a.example"}, Group: newNamed(t, "a")})
		r.srv.Timeouts.Preface = 0
		r.start()
		hello := clientHello(t, "a.example")
		const clients = 1000
		before := memory()
		begins := []string{"", "\x16", "\x16\x03\x01\x40\x00", "\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03", "\x16\x03\x01\xff\xff"}
		invalid := 0
		for i := range clients {
			c := r.dial()
			io.WriteString(c, begins[i%len(begins)])
			if i%len(begins) == len(begins)-1 {
				invalid++ // ended at once
			}
		}
		r.awaitEvents(proxy.SessionAccepted, clients)
		r.awaitClosed(invalid)
		var slowest time.Duration
		for range 50 {
			start := time.Now()
			c := r.dial()
			c.Write(hello)
			if got, err := served(c, hello); got != "a" || err != nil {
				t.Fatalf("served by %q, %v", got, err)
			}
			slowest = max(slowest, time.Since(start))
			finish(t, c)
		}
		if slowest > patience/2 {
			t.Errorf("a client waited %v", slowest)
		}
		// A client's own end, in this process, is part of it.
		if grown := memory() - before; grown > clients*40<<10 {
			t.Errorf("%d KB for each", grown/clients>>10)
		} else {
			t.Logf("%d KB for each", grown/clients>>10)
		}
		if n := r.srv.Active(); n < clients-invalid {
			t.Errorf("%d are left", n)
		}
	})
}

// memory is what is in use after a collection, stacks included.
func memory() int {
	runtime.GC()
	runtime.GC() // empties pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapInuse + m.StackInuse)
}

func TestRouteForNoNameIsRefused(t *testing.T) {
	for _, pattern := range []string{"", "*", "*a.example", "a.*.example", "a..example", "bücher.example"} {
		srv := &proxy.Server{Name: "front", Settings: proxy.Settings{Routes: []proxy.Route{{SNI: []string{pattern}, Reject: true}}}}
		if _, err := srv.Listen("127.0.0.1:0"); err == nil {
			t.Errorf("%q: no error", pattern)
			srv.Close()
		}
	}
}
