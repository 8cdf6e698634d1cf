//go:build unix

package proxy_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tproxy/tproxy/proxy"
)

// dialFrom connects a client with an address of its own. It returns nil when the client is reset before it knows that it was connected.
func (r *rig) dialFrom(ip string) *net.TCPConn {
	r.t.Helper()
	d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	c, err := d.Dial("tcp", r.front.String())
	if errors.Is(err, errReset) {
		return nil
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// dialBriefly connects a client whose session soon ends by a timer. It returns nil as dialFrom does.
func (r *rig) dialBriefly() *net.TCPConn {
	r.t.Helper()
	return r.dialFrom("127.0.0.1")
}

// crowd connects many clients of each source at once, and returns those that are served.
func (r *rig) crowd(each int, sources ...string) map[string][]*net.TCPConn {
	r.t.Helper()
	served := make(map[string][]*net.TCPConn)
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, ip := range sources {
		for range each {
			c := r.dialFrom(ip)
			if c == nil {
				continue
			}
			all.Go(func() {
				if exchange(c, "hello") == nil {
					mu.Lock()
					defer mu.Unlock()
					served[ip] = append(served[ip], c)
				}
			})
		}
	}
	all.Wait()
	return served
}

func TestDeniedClientCostsNothing(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		s := newStub(t)
		r := newRig(t, e, s.addr())
		r.srv.Access = proxy.Access{
			Allow: []netip.Prefix{netip.MustParsePrefix("::ffff:127.0.0.0/120")},
			Deny:  []netip.Prefix{netip.MustParsePrefix("127.0.0.2/31")},
		}
		r.start()
		for i, ip := range []string{"127.0.0.2", "127.0.0.3", "127.0.1.1"} {
			if c := r.dialFrom(ip); c != nil {
				io.WriteString(c, "x")
				if rest, _ := io.ReadAll(c); len(rest) > 0 {
					t.Errorf("%s: answered by %q", ip, rest)
				}
			}
			r.awaitClosed(i + 1)
			if got := r.rec.reasons()[i]; got != proxy.Denied {
				t.Errorf("%s: %v", ip, got)
			}
		}
		if n := len(s.conns); n > 0 {
			t.Errorf("%d connections were made", n)
		}
		c := r.dialFrom("127.0.0.1")
		b := s.next()
		exchangeOnce(t, c, b)
		endInOrder(t, c, b)
	})
}

// The limit holds exactly while many come at once, and the full number is there again after every way a session can end.
func TestSourceLimitIsExact(t *testing.T) {
	const limit, each = 5, 20
	sources := []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}
	for name, end := range map[string]func(r *rig, c *net.TCPConn){
		"FIN":   func(_ *rig, c *net.TCPConn) { c.CloseWrite() },
		"reset": func(_ *rig, c *net.TCPConn) { reset(c) },
		"kill":  func(r *rig, _ *net.TCPConn) { r.srv.KillAll(proxy.KilledByAdmin) },
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e *proxy.Engine) {
				r := newRig(t, e, newEcho(t))
				r.srv.Access.MaxPerSource = limit
				r.start()
				for round := range 2 {
					served := r.crowd(each, sources...)
					for _, ip := range sources {
						if n := len(served[ip]); n != limit {
							t.Errorf("round %d: %d of %s are served", round, n, ip)
						}
						for _, c := range served[ip] {
							end(r, c)
						}
					}
					r.awaitClosed((round + 1) * each * len(sources))
				}
				refused := 0
				for _, why := range r.rec.reasons() {
					if why == proxy.OverLimit {
						refused++
					}
				}
				if want := 2 * (each - limit) * len(sources); refused != want {
					t.Errorf("%d are over the limit, want %d", refused, want)
				}
			})
		})
	}
}

// So it is for sessions that never reach a backend.
func TestSourceLimitAfterFailures(t *testing.T) {
	const limit = 3
	for name, prepare := range map[string]func(t *testing.T, r *rig){
		"no backend is usable": func(t *testing.T, r *rig) { r.backends[0].SetUp(false) },
		"the queue's timeout":  func(t *testing.T, r *rig) { r.queue(100, 20*time.Millisecond); r.backends[0].SetMaxConnections(1) },
		"the preface's":        func(t *testing.T, r *rig) { r.srv.Timeouts.Preface = 20 * time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e *proxy.Engine) {
				r := newRig(t, e, newEcho(t))
				r.srv.Access.MaxPerSource = limit
				r.srv.Timeouts.Preface = patience
				r.srv.Routes = []proxy.Route{{SNI: []string{"a.example"}, Reject: true}}
				prepare(t, r)
				r.start()
				for round := range 3 {
					for range limit {
						if name == "the preface's" {
							r.dialBriefly()
						} else {
							io.WriteString(r.dial(), "x")
						}
					}
					if name == "the queue's timeout" {
						await(t, "the session that is served, and the others' end", func() bool { return r.rec.count(proxy.SessionClosed) >= round*limit+limit-1 })
						r.srv.KillAll(proxy.KilledByAdmin)
					}
					r.awaitClosed((round + 1) * limit)
				}
				for _, why := range r.rec.reasons() {
					if why == proxy.OverLimit {
						t.Errorf("over the limit: %v", r.rec.reasons())
						break
					}
				}
			})
		})
	}
}

// A rate for all makes clients wait in the kernel's queue. It loses nobody.
func TestAcceptRateLosesNobody(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		const rate, clients = 100, 50
		r := newRig(t, e, newEcho(t))
		r.srv.Access.Rate = rate
		r.start()
		start := time.Now()
		if served := r.crowd(clients, "127.0.0.1")["127.0.0.1"]; len(served) != clients {
			t.Errorf("%d of %d are served", len(served), clients)
		}
		// A tenth of the rate may come at once, the others each in their time.
		least := time.Duration(clients-rate/10-1) * time.Second / rate
		if took := time.Since(start); took < least || took > least+patience {
			t.Errorf("it took %v, at least %v were wanted", took, least)
		}
	})
}

// A lower rate is no obstacle when it is taken away.
func TestAcceptRateTakenAway(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newEcho(t))
		r.srv.Access.Rate = 1
		r.start()
		var served atomic.Int32
		var all sync.WaitGroup
		for range 30 {
			c := r.dial()
			all.Go(func() {
				if exchange(c, "hello") == nil {
					served.Add(1)
				}
			})
		}
		r.awaitEvents(proxy.SessionAccepted, 1)
		s := r.srv.Settings
		s.Access.Rate = 0
		if err := r.srv.Update(s); err != nil {
			t.Fatal(err)
		}
		all.Wait()
		if n := served.Load(); n != 30 {
			t.Errorf("%d of 30 are served", n)
		}
	})
}

func TestRateOfOneSourceResetsIt(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		const rate, clients = 10, 40
		r := newRig(t, e, newEcho(t))
		r.srv.Access.RatePerSource = rate
		r.start()
		start := time.Now()
		served := r.crowd(clients, "127.0.0.1")
		most := rate + int(time.Since(start)*rate/time.Second) + 1
		if n := len(served["127.0.0.1"]); n < rate || n > most {
			t.Errorf("%d are served, at least %d and at most %d were wanted", n, rate, most)
		}
		if n := len(r.crowd(rate, "127.0.0.2")["127.0.0.2"]); n != rate {
			t.Errorf("%d of another source are served, want %d", n, rate)
		}
	})
}

// IPv6 clients are counted by their network.
func TestSourcePrefix(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newTrusting(t, e, proxy.HeaderRequire)
		r.srv.Access = proxy.Access{MaxPerSource: 1, SourceIPv4: 24}
		r.start()
		for i, x := range []struct {
			header string
			served bool
		}{
			{"PROXY TCP6 2001:db8::1 2001:db8::99 1 2\r\n", true},
			{"PROXY TCP6 2001:db8::ffff 2001:db8::99 1 2\r\n", false},
			{"PROXY TCP6 2001:db8:0:1::1 2001:db8::99 1 2\r\n", true},
			{"PROXY TCP4 192.0.2.1 192.0.2.99 1 2\r\n", true},
			{"PROXY TCP6 ::ffff:192.0.2.200 ::ffff:192.0.2.99 1 2\r\n", false},
			{"PROXY TCP4 192.0.3.1 192.0.2.99 1 2\r\n", true},
		} {
			c := r.dial()
			io.WriteString(c, x.header+"x")
			if _, err := told(c, "x"); (err == nil) != x.served {
				t.Errorf("%d, %q: %v", i, x.header, err)
			}
		}
	})
}
