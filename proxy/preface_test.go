//go:build unix

package proxy_test

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/tproxy/tproxy/proxy"
)

const signature = "\r\n\r\n\x00\r\nQUIT\n" // of a PROXY header of version 2

// newBehindProxy is a rig that wants PROXY headers from everybody.
func newBehindProxy(t *testing.T, e *proxy.Engine) *rig {
	t.Helper()
	r := newRig(t, e, newEcho(t))
	r.srv.ProxyProtocol = proxy.ProxyProtocol{Accept: proxy.HeaderRequire, Trusted: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}
	r.srv.Timeouts.Preface = patience
	return r
}

func TestHeaderSaysWhoTheClientIs(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newBehindProxy(t, e).start()
		c := r.dial()
		for _, piece := range []string{"PROXY TCP4 192.0.2.", "7 192.0.2.8 1234 80\r", "\nhel", "lo"} {
			c.Write([]byte(piece))
		}
		if got, err := readN(c, 5); got != "hello" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		finish(t, c)
		r.awaitClosed(1)
		for _, ev := range r.rec.all()[1:] {
			if ev.Claimed.String() != "192.0.2.7:1234" || ev.Client.String() != c.LocalAddr().String() {
				t.Errorf("%v: client %v claims to be %v", ev.Kind, ev.Client, ev.Claimed)
			}
		}
	})
}

func TestPrefacesThatEndTheSession(t *testing.T) {
	for name, x := range map[string]struct {
		want  proxy.Reason
		send  []byte
		then  func(t *testing.T, r *rig, c *net.TCPConn)
		limit time.Duration // of the preface
	}{
		"no header":          {want: proxy.PrefaceInvalid, send: []byte("GET / HTTP/1.1\r\n\r\n")},
		"longer than any":    {want: proxy.PrefaceInvalid, send: append([]byte(signature+"\x21\x11\xff\xff"), bytes.Repeat([]byte("x"), 1<<16)...)},
		"a FIN in it":        {want: proxy.PrefaceInvalid, send: []byte("PROXY TCP4 192"), then: func(t *testing.T, r *rig, c *net.TCPConn) { c.CloseWrite() }},
		"nothing but a FIN":  {want: proxy.PrefaceInvalid, then: func(t *testing.T, r *rig, c *net.TCPConn) { c.CloseWrite() }},
		"a reset in it":      {want: proxy.ClientRST, send: []byte("PROXY TCP4 192"), then: func(t *testing.T, r *rig, c *net.TCPConn) { reset(c) }},
		"it does not come":   {want: proxy.PrefaceTimeout, limit: 20 * time.Millisecond},
		"half of it comes":   {want: proxy.PrefaceTimeout, limit: 20 * time.Millisecond, send: []byte(signature)},
		"a kill before it":   {want: proxy.KilledByAdmin, then: func(t *testing.T, r *rig, c *net.TCPConn) { r.srv.KillAll(proxy.KilledByAdmin) }},
		"the server's close": {want: proxy.DrainTimeout, send: []byte("PROXY"), then: func(t *testing.T, r *rig, c *net.TCPConn) { r.srv.Close() }},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e *proxy.Engine) {
				r := newBehindProxy(t, e)
				if x.limit > 0 {
					r.srv.Timeouts.Preface = x.limit
				}
				r.start()
				c := r.dialBriefly()
				r.awaitEvents(proxy.SessionAccepted, 1)
				if c != nil {
					c.Write(x.send)
				}
				if x.then != nil {
					x.then(t, r, c)
				}
				r.awaitClosed(1)
				if got := r.rec.reasons()[0]; got != x.want {
					t.Errorf("reason %q (%v), want %q", got, r.rec.all()[1].Err, x.want)
				}
				if n := r.rec.count(proxy.SessionOpened); n != 0 {
					t.Error("a backend was reached")
				}
			})
		})
	}
}

// A client of a unix socket has no address: it is one source with all others.
func TestSourcesOfUnixClients(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newEcho(t))
		r.srv.Access.MaxPerSource, r.srv.Access.RatePerSource = 1, 1000
		r.start()
		l, err := r.srv.Listen("unix:" + socketPath(t))
		if err != nil {
			t.Fatal(err)
		}
		l.Start()
		c, err := net.Dial("unix", l.Addr().Path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		roundTrip(t, c, "x")
		other, err := net.Dial("unix", l.Addr().Path)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		r.awaitClosed(1)
		if got := r.rec.reasons()[0]; got != proxy.OverLimit {
			t.Errorf("reason %q", got)
		}
		c.Close()
		r.awaitClosed(2)
		again, err := net.Dial("unix", l.Addr().Path)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		again.SetDeadline(time.Now().Add(patience))
		roundTrip(t, again, "x")
	})
}
