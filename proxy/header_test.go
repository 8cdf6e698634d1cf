//go:build unix

package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/internal/proxyproto"
	"github.com/tproxy/tproxy/proxy"
)

// A vector is a PROXY header, with what it says of the client and of where it connected to; "-" if it leaves that to the connection.
type vector struct {
	name, wire          string
	source, destination string // "" for one that is invalid
}

// vectors are those of package proxyproto.
func vectors(t *testing.T, kind string) (all []vector) {
	t.Helper()
	file, err := os.ReadFile("../internal/proxyproto/testdata/vectors.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(file)) {
		f := append(strings.Split(strings.TrimSuffix(line, "\n"), "\t"), "", "")
		if f[0] != kind {
			continue
		}
		wire, err := strconv.Unquote(f[2])
		if err != nil {
			t.Fatalf("%s: %v", f[1], err)
		}
		all = append(all, vector{f[1], wire, f[3], f[4]})
	}
	if len(all) < 40 {
		t.Fatalf("%d %s vectors", len(all), kind)
	}
	return all
}

// cuts are the offsets to cut a header at: all, but for the long monotonous middle of the longest.
func cuts(wire string) (all []int) {
	for at := range len(wire) + 1 {
		if at < 60 || at > len(wire)-5 || at%97 == 0 {
			all = append(all, at)
		}
	}
	return all
}

var anyone = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// newTeller is the address of a backend that gets PROXY headers. It says in a line from where to where, and which TLVs there were, and then sends back what it gets.
func newTeller(t *testing.T) string {
	t.Helper()
	return serve(t, func(c net.Conn) {
		var got []byte
		buf := make([]byte, 4096)
		for {
			h, n, err := proxyproto.Parse(got)
			if err == nil {
				to := func(a proxyproto.Addr) string {
					if !a.IP.IsValid() && a.Path == "" {
						return "unix:"
					}
					return proxy.Addr(a).String()
				}
				says := "v" + strconv.Itoa(int(h.Version)) + " - -"
				if !h.Local {
					says = fmt.Sprintf("v%d %s %s", h.Version, to(h.Source), to(h.Destination))
				}
				fmt.Fprintf(c, "%s %q %q\n", says, h.Authority, h.ALPN)
				c.Write(got[n:])
				echo(c)
				return
			}
			if err != proxyproto.ErrIncomplete {
				fmt.Fprintf(c, "%v\n", err)
				return
			}
			m, err := c.Read(buf)
			if err != nil {
				return
			}
			got = append(got, buf[:m]...)
		}
	})
}

// told is what a teller says of the session, after which payload must come back.
func told(c net.Conn, payload string) (string, error) {
	in := bufio.NewReader(c)
	line, err := in.ReadString('\n')
	if err != nil {
		return line, err
	}
	reply := make([]byte, len(payload))
	if _, err := io.ReadFull(in, reply); err != nil {
		return line, err
	}
	if string(reply) != payload {
		return line, fmt.Errorf("sent %q and got %q", payload, reply)
	}
	return strings.TrimSuffix(line, "\n"), nil
}

// newTrusting is a rig that reads headers of anyone, in front of a teller.
func newTrusting(t *testing.T, e *proxy.Engine, accept proxy.AcceptHeader) *rig {
	t.Helper()
	r := newRig(t, e, newTeller(t))
	r.group.SendProxy = 2
	r.srv.ProxyProtocol = proxy.ProxyProtocol{Accept: accept, Trusted: anyone}
	r.srv.Timeouts.Preface = patience
	return r
}

// take is all, and forgets it.
func (r *recorder) take() []proxy.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	events := r.events
	r.events = nil
	return events
}

func TestHeaderCutAnywhere(t *testing.T) {
	all := vectors(t, "valid")
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newTrusting(t, e, proxy.HeaderRequire).start()
		for _, v := range all {
			claimed := make(map[string]string) // by the client's own address
			clients := make(map[int]*net.TCPConn)
			for _, at := range cuts(v.wire) {
				c := dial(t, r.front)
				io.WriteString(c, v.wire[:at])
				clients[at] = c
			}
			for at, c := range clients {
				payload := fmt.Sprintf("payload of %d\r\n\x00", at)
				io.WriteString(c, v.wire[at:]+payload)
				got, err := told(c, payload)
				if err != nil {
					t.Fatalf("%s, cut at %d: %v", v.name, at, err)
				}
				source, destination := v.source, v.destination
				if source == "-" {
					source, destination = c.LocalAddr().String(), c.RemoteAddr().String()
				} else {
					claimed[c.LocalAddr().String()] = strings.Replace(source+"|", "unix:|", "unix:@|", 1)
				}
				if want := fmt.Sprintf("v2 %s %s \"\" \"\"", source, destination); got != want {
					t.Errorf("%s, cut at %d: the backend was told\n%s, want\n%s", v.name, at, got, want)
				}
				finish(t, c)
				c.Close()
			}
			r.awaitClosed(len(clients))
			for _, ev := range r.rec.take() {
				if ev.Kind != proxy.SessionClosed {
					continue
				}
				if got, want := ev.Claimed.String()+"|", claimed[ev.Client.String()]; got != want && (want != "" || got != "|") {
					t.Errorf("%s: %v of a client that claims to be %q, want %q", v.name, ev.Kind, got, want)
				}
			}
		}
	})
}

func TestInvalidHeaderReachesNoBackend(t *testing.T) {
	all := vectors(t, "invalid")
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		s := newStub(t)
		r := newRig(t, e, s.addr())
		r.srv.ProxyProtocol = proxy.ProxyProtocol{Accept: proxy.HeaderRequire, Trusted: anyone}
		r.srv.Timeouts.Preface = patience
		r.start()
		for i, v := range all {
			c := r.dial()
			io.WriteString(c, v.wire+strings.Repeat("x", 200))
			if rest, _ := io.ReadAll(c); len(rest) > 0 {
				t.Errorf("%s: answered by %q", v.name, rest)
			}
			r.awaitClosed(i + 1)
			if got := r.rec.reasons()[i]; got != proxy.PrefaceInvalid {
				t.Errorf("%s: %v", v.name, got)
			}
		}
		if n := r.rec.count(proxy.SessionOpened) + len(s.conns); n > 0 {
			t.Errorf("%d reached a backend", n)
		}
	})
}

// Where headers are optional, bytes that can be none are the session's; a malformed one ends it as it does everywhere.
func TestOptionalHeader(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newTrusting(t, e, proxy.HeaderOptional).start()
		for _, x := range []struct{ send, payload, source string }{
			{"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nabc", "abc", "192.0.2.1:1 192.0.2.2:2"},
			{"PROX", "PROX", ""},
			{"\r\n\r\n\x00\r\nQUIX", "\r\n\r\n\x00\r\nQUIX", ""},
			{"GET /", "GET /", ""},
		} {
			c := r.dial()
			io.WriteString(c, x.send)
			if x.source == "" {
				x.source = c.LocalAddr().String() + " " + c.RemoteAddr().String()
				if x.send == "PROX" {
					io.WriteString(c, "y")
					x.payload += "y"
				}
			}
			got, err := told(c, x.payload)
			if want := "v2 " + x.source + ` "" ""`; got != want || err != nil {
				t.Errorf("%q: the backend was told %q, %v, want %q", x.send, got, err, want)
			}
			finish(t, c)
		}
		r.awaitClosed(4)
		c := r.dial()
		io.WriteString(c, "PROXY TCP4 192.0.2.1\r\n")
		wantReset(t, c)
		r.awaitClosed(5)
		if got := r.rec.reasons(); !slices.Contains(got, proxy.PrefaceInvalid) {
			t.Errorf("malformed: %v", got)
		}
	})
}

// Who is not trusted is refused where a header is required, without a byte being waited for; where it is optional its header is data.
func TestUntrustedSender(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newTrusting(t, e, proxy.HeaderRequire)
		r.srv.ProxyProtocol.Trusted = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		r.start()
		r.wantRefused()
		r.awaitClosed(1)
		if got := r.rec.reasons()[0]; got != proxy.PrefaceInvalid {
			t.Errorf("required: %v", got)
		}
		s := r.srv.Settings
		s.ProxyProtocol.Accept = proxy.HeaderOptional
		if err := r.srv.Update(s); err != nil {
			t.Fatal(err)
		}
		c := r.dial()
		header := "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
		io.WriteString(c, header)
		got, err := told(c, header)
		if want := fmt.Sprintf("v2 %s %s \"\" \"\"", c.LocalAddr(), c.RemoteAddr()); got != want || err != nil {
			t.Errorf("optional: %q, %v, want %q", got, err, want)
		}
		finish(t, c)
		r.awaitClosed(2)
		// A trusted prefix that is IPv4-mapped is one of IPv4.
		s.ProxyProtocol = proxy.ProxyProtocol{Accept: proxy.HeaderRequire, Trusted: []netip.Prefix{netip.MustParsePrefix("::ffff:127.0.0.0/104")}}
		if err := r.srv.Update(s); err != nil {
			t.Fatal(err)
		}
		c = r.dial()
		io.WriteString(c, header+"x")
		if got, err := told(c, "x"); got != `v2 192.0.2.1:1 192.0.2.2:2 "" ""` || err != nil {
			t.Errorf("mapped: %q, %v", got, err)
		}
		finish(t, c)
	})
}

func claim(t *testing.T, r *rig, source string) *net.TCPConn {
	t.Helper()
	c := r.dial()
	fmt.Fprintf(c, "PROXY TCP4 %s 198.51.100.1 1 2\r\n", source)
	return c
}

func TestClaimedAddressIsAdmittedAndCounted(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newTrusting(t, e, proxy.HeaderRequire)
		r.srv.Access = proxy.Access{Deny: []netip.Prefix{netip.MustParsePrefix("192.0.2.6/32")}, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, MaxPerSource: 1}
		r.start()
		first := claim(t, r, "192.0.2.7")
		io.WriteString(first, "x")
		if _, err := told(first, "x"); err != nil {
			t.Fatal(err)
		}
		for i, x := range []struct {
			source string
			why    proxy.Reason
		}{{"192.0.2.6", proxy.Denied}, {"203.0.113.1", proxy.Denied}, {"192.0.2.7", proxy.OverLimit}} {
			wantReset(t, claim(t, r, x.source))
			r.awaitClosed(i + 1)
			if got := r.rec.reasons()[i]; got != x.why {
				t.Errorf("%s: %v, want %v", x.source, got, x.why)
			}
		}
		// LOCAL is the sender itself, which is not allowed.
		c := r.dial()
		io.WriteString(c, "PROXY UNKNOWN\r\n")
		wantReset(t, c)
		r.awaitClosed(4)
		if got := r.rec.reasons()[3]; got != proxy.Denied {
			t.Errorf("LOCAL: %v", got)
		}
		finish(t, first)
		r.awaitClosed(5)
		again := claim(t, r, "192.0.2.7")
		io.WriteString(again, "x")
		if _, err := told(again, "x"); err != nil {
			t.Errorf("after the first ended: %v", err)
		}
		finish(t, again)
	})
}

func TestClaimedAddressIsHashed(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e)
		r.backends = []*backend.Backend{newBackend(t, "b1", newEcho(t)), newBackend(t, "b2", newEcho(t)), newBackend(t, "b3", newEcho(t))}
		bg, err := backend.NewGroup(backend.GroupConfig{Name: "g", Balance: backend.SourceHash, Backends: r.backends})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(bg.Close)
		r.group.Backends = bg
		r.srv.ProxyProtocol = proxy.ProxyProtocol{Accept: proxy.HeaderRequire, Trusted: anyone}
		r.start()
		const sources, times = 30, 3
		for range times {
			for i := range sources {
				c := claim(t, r, fmt.Sprintf("192.0.2.%d", i))
				roundTrip(t, c, "x")
				finish(t, c)
				c.Close()
			}
		}
		r.awaitClosed(sources * times)
		by := make(map[netip.Addr]string)
		used := make(map[string]bool)
		for _, ev := range r.rec.all() {
			if ev.Kind != proxy.SessionClosed {
				continue
			}
			from := ev.Claimed.IP.Addr()
			if by[from] == "" {
				by[from] = ev.Backend
			}
			if by[from] != ev.Backend {
				t.Errorf("%v was served by %s and %s", from, by[from], ev.Backend)
			}
			used[ev.Backend] = true
		}
		if len(used) != 3 {
			t.Errorf("used: %v", used)
		}
	})
}

// A LOCAL header of a health check, and everything else that ends before a header is whole, gives back its place.
func TestPlacesComeBackFromPrefaces(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newTrusting(t, e, proxy.HeaderRequire)
		r.srv.MaxConnections = 8
		r.start()
		for round := range 5 {
			var all []*net.TCPConn
			for i := range 8 {
				c := r.dial()
				io.WriteString(c, "PROXY TCP4 192"[:i])
				all = append(all, c)
			}
			r.awaitEvents(proxy.SessionAccepted, 9*round+8)
			for i, c := range all {
				switch i % 3 {
				case 0:
					reset(c)
				case 1:
					c.CloseWrite()
				default:
					io.WriteString(c, "rubbish\r\n")
				}
			}
			r.awaitClosed(9*round + 8)
			c := claim(t, r, "192.0.2.1")
			io.WriteString(c, "x")
			if _, err := told(c, "x"); err != nil {
				t.Fatal(err)
			}
			finish(t, c)
			r.awaitClosed(9*round + 9)
		}
	})
}
