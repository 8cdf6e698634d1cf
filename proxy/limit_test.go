//go:build unix

package proxy_test

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tproxy/tproxy/proxy"
)

// Every way a session can end gives its slot back: with room for one session, on a backend with room for one, the next is served.
func TestEveryEndGivesItsSlotBack(t *testing.T) {
	// serving is a session that has exchanged a byte, from the backend's side.
	serving := func(t *testing.T, c *net.TCPConn, s *stub) *net.TCPConn {
		b := s.next()
		exchangeOnce(t, c, b)
		return b
	}
	down := func(r *rig) { r.backends[0].SetUp(false) }
	for name, test := range map[string]struct {
		want proxy.Reason
		set  func(r *rig) // before the start
		end  func(t *testing.T, r *rig, c *net.TCPConn, s *stub)
	}{
		"client's FIN": {want: proxy.ClientFIN, end: func(t *testing.T, r *rig, c *net.TCPConn, s *stub) { endInOrder(t, c, serving(t, c, s)) }},
		"backend's FIN": {want: proxy.BackendFIN, end: func(t *testing.T, r *rig, c *net.TCPConn, s *stub) {
			serving(t, c, s).CloseWrite()
			wantEOF(t, c)
			c.Close()
		}},
		"client's reset":  {want: proxy.ClientRST, end: func(t *testing.T, r *rig, c *net.TCPConn, s *stub) { serving(t, c, s); reset(c) }},
		"backend's reset": {want: proxy.BackendRST, end: func(t *testing.T, r *rig, c *net.TCPConn, s *stub) { reset(serving(t, c, s)) }},
		"idle": {want: proxy.Idle, set: func(r *rig) { r.srv.Timeouts.Idle = 20 * time.Millisecond },
			end: func(t *testing.T, r *rig, c *net.TCPConn, s *stub) { s.next(); wantReset(t, c) }},
		"half-closed": {want: proxy.HalfCloseTimeout, set: func(r *rig) { r.srv.Timeouts.HalfClose = 20 * time.Millisecond },
			end: func(t *testing.T, r *rig, c *net.TCPConn, s *stub) { serving(t, c, s); c.CloseWrite(); wantReset(t, c) }},
		"old": {want: proxy.SessionTimeout, set: func(r *rig) { r.srv.Timeouts.Session = 20 * time.Millisecond },
			end: func(t *testing.T, r *rig, c *net.TCPConn, s *stub) { s.next(); wantReset(t, c) }},
		"closed on FIN": {want: proxy.ClientFIN, set: func(r *rig) { r.srv.CloseOnFIN = true },
			end: func(t *testing.T, r *rig, c *net.TCPConn, s *stub) { serving(t, c, s); c.CloseWrite(); wantEOF(t, c) }},
		"killed": {want: proxy.KilledByAdmin,
			end: func(t *testing.T, r *rig, c *net.TCPConn, s *stub) {
				serving(t, c, s)
				r.srv.KillAll(proxy.KilledByAdmin)
			}},
		"unused": {want: proxy.BackendFIN, end: func(t *testing.T, r *rig, c *net.TCPConn, s *stub) { s.next().Close(); wantEOF(t, c); c.Close() }},
		"no backend": {want: proxy.NoBackend, set: down,
			end: func(t *testing.T, r *rig, c *net.TCPConn, s *stub) { wantEOF(t, c) }},
		"held in vain": {want: proxy.NoBackend, set: func(r *rig) { down(r); r.hold(time.Millisecond) },
			end: func(t *testing.T, r *rig, c *net.TCPConn, s *stub) { wantEOF(t, c) }},
		"reset while held": {want: proxy.ClientRST, set: func(r *rig) { down(r); r.hold(patience) },
			end: func(t *testing.T, r *rig, c *net.TCPConn, s *stub) { awaitInLine(t, r.group.Hold); reset(c) }},
		"killed while held": {want: proxy.OnRemoved, set: func(r *rig) { down(r); r.hold(patience) },
			end: func(t *testing.T, r *rig, c *net.TCPConn, s *stub) {
				awaitInLine(t, r.group.Hold)
				r.srv.KillAll(proxy.OnRemoved)
			}},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e *proxy.Engine) {
				s := newStub(t)
				r := newRig(t, e, s.addr())
				r.srv.MaxConnections = 1
				if err := r.backends[0].SetMaxConnections(1); err != nil {
					t.Fatal(err)
				}
				if test.set != nil {
					test.set(r)
				}
				r.start()
				if c := r.dialBriefly(); c != nil {
					test.end(t, r, c, s)
					defer c.Close()
				} else {
					s.next()
				}
				r.awaitClosed(1)
				if got := r.rec.reasons()[0]; got != test.want {
					t.Errorf("reason %q, want %q", got, test.want)
				}

				patient := r.srv.Settings
				patient.Timeouts = proxy.Timeouts{}
				if err := r.srv.Update(patient); err != nil {
					t.Fatal(err)
				}
				r.backends[0].SetUp(true)
				c := r.dial()
				b := s.next()
				exchangeOnce(t, c, b)
				reset(c)
				r.awaitClosed(2)
			})
		})
	}
}

func TestClientsWaitAtTheLimit(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newEcho(t))
		r.srv.MaxConnections = 1
		r.start()
		first := r.dial()
		roundTrip(t, first, "one")
		second := r.dial()
		io.WriteString(second, "two")
		finish(t, first)
		if got, err := readN(second, 3); got != "two" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		finish(t, second)
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			1 close g/b1 attempts=1 up=3 down=3 half=client client_fin
			2 accept
			2 open g/b1 attempts=1
			2 close g/b1 attempts=1 up=3 down=3 half=client client_fin
		`)
	})
}

func readN(c net.Conn, n int) (string, error) {
	buf := make([]byte, n)
	n, err := io.ReadFull(c, buf)
	return string(buf[:n]), err
}

func TestBurstNeverExceedsTheLimit(t *testing.T) {
	const limit, clients, rounds = 5, 100, 3
	for _, reject := range []bool{false, true} {
		t.Run(fmt.Sprintf("reject %v", reject), func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e *proxy.Engine) {
				r := newRig(t, e, newEcho(t))
				r.srv.MaxConnections, r.srv.RejectWhenFull = limit, reject
				r.start()
				var all sync.WaitGroup
				var served atomic.Int64
				for range clients {
					all.Go(func() {
						for range rounds {
							c, err := net.DialTimeout("tcp", r.front.String(), patience)
							if err == nil {
								c.SetDeadline(time.Now().Add(patience))
								err = exchange(c, "x")
								if n := r.backends[0].Active(); n > limit {
									t.Errorf("%d sessions on the backend", n)
								}
								c.Close()
							}
							if err == nil {
								served.Add(1)
							} else if !reject {
								t.Error(err)
							}
						}
					})
				}
				all.Wait()
				if n := served.Load(); n < limit || !reject && n != clients*rounds {
					t.Errorf("%d were served", n)
				}
				await(t, "the last end", func() bool { return r.srv.Active() == 0 })
				c := r.dial()
				roundTrip(t, c, "x")
				finish(t, c)
			})
		})
	}
}

// The listener heard of the limit last when it was full; nobody tells it that there is room again but the next client.
func TestRejectedClientsLeaveRoom(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newEcho(t))
		r.srv.MaxConnections, r.srv.RejectWhenFull = 1, true
		r.start()
		first := r.dial()
		roundTrip(t, first, "hello")
		for range 3 {
			r.wantRefused()
		}
		r.awaitClosed(3)
		finish(t, first)
		r.awaitClosed(4)
		last := r.dial()
		roundTrip(t, last, "hello")
		finish(t, last)
	})
}

// newExactEngine is an engine whose listeners hold no slot while they wait. Those of the portable engine do.
func newExactEngine(t *testing.T) *proxy.Engine {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("only the epoll engine")
	}
	return newEngine(t, "epoll")
}

func TestSharedLimit(t *testing.T) {
	e := newExactEngine(t)
	echo := newEcho(t)
	a, b := newRig(t, e, echo), newRig(t, e, echo)
	limit := proxy.NewLimit(2)
	a.srv.Limit, b.srv.Limit = limit, limit
	a.start()
	b.start()

	one, two := a.dial(), a.dial()
	roundTrip(t, one, "x")
	roundTrip(t, two, "x")
	three := b.dial()
	io.WriteString(three, "y")
	if n := limit.Active(); n != 2 || b.srv.Active() != 0 {
		t.Errorf("%d active, %d of them at the other server", n, b.srv.Active())
	}
	finish(t, one) // of one server makes room in the other
	if got, err := readN(three, 1); got != "y" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}

	limit.SetMax(1) // cuts nobody
	roundTrip(t, two, "x")
	roundTrip(t, three, "x")
	four := a.dial()
	io.WriteString(four, "z")
	finish(t, two)
	a.awaitClosed(2)
	if n := a.rec.count(proxy.SessionAccepted); n != 2 || limit.Max() != 1 {
		t.Errorf("%d accepted at the limit of %d", n, limit.Max())
	}
	limit.SetMax(0)
	if got, err := readN(four, 1); got != "z" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	finish(t, three)
	finish(t, four)
	a.awaitClosed(3) // their places are counted by the limit of both
	b.awaitClosed(1)
}

// Two listeners of one server compete for the only slot; neither is forgotten when the other gives it back unused.
func TestListenersShareTheLastSlot(t *testing.T) {
	r := newRig(t, newExactEngine(t), newEcho(t))
	r.srv.MaxConnections = 1
	r.start()
	other, err := r.srv.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other.Start()
	var all sync.WaitGroup
	for _, a := range []proxy.Addr{r.front, other.Addr()} {
		all.Go(func() {
			for range 200 {
				c, err := net.DialTimeout("tcp", a.String(), patience)
				if err != nil {
					t.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(patience))
				err = exchange(c, "x")
				c.Close()
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}

func TestShrunkLimitCutsNobody(t *testing.T) {
	r := newRig(t, newExactEngine(t), newEcho(t)).start()
	one, two := r.dial(), r.dial()
	roundTrip(t, one, "x")
	roundTrip(t, two, "x")
	small := r.srv.Settings
	small.MaxConnections, small.RejectWhenFull = 1, true
	if err := r.srv.Update(small); err != nil {
		t.Fatal(err)
	}
	r.wantRefused()
	finish(t, one)
	await(t, "the first's end", func() bool { return r.backends[0].Active() == 1 })
	r.wantRefused()
	roundTrip(t, two, "x")
	finish(t, two)
	r.awaitClosed(4) // with those that were refused: each has given its place back by then
	c := r.dial()
	roundTrip(t, c, "x")
	finish(t, c)
}

func TestUpdateIsForSessionsAcceptedAfterIt(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newEcho(t)).start()
		before := r.dial()
		roundTrip(t, before, "x")
		next := r.srv.Settings
		next.Timeouts.Idle = 20 * time.Millisecond
		if err := r.srv.Update(next); err != nil {
			t.Fatal(err)
		}
		r.wantRefused() // sooner or later: it says nothing
		roundTrip(t, before, "x")
		finish(t, before)
		r.tells(`
			1 accept
			1 open g/b1 attempts=1
			1 close g/b1 attempts=1 up=2 down=2 half=client client_fin
			2 accept
			2 open g/b1 attempts=1
			2 close g/b1 attempts=1 idle
		`)
		if err := r.srv.Update(proxy.Settings{}); err == nil {
			t.Error("settings without a group were taken")
		}
	})
}
