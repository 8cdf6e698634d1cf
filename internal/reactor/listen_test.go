package reactor_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/tproxy/tproxy/internal/reactor"
)

func TestListenerSaysWhichPortItGot(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		d := newDoor(plenty)
		ln := listen(t, e, ipv4.anyAddr(t), d)
		if a := ln.Addr(); a.IP.Port() == 0 || a.IP.Addr() != netip.MustParseAddr("127.0.0.1") {
			t.Errorf("address is %v", a)
		}
		dial(t, ln.Addr())
		d.next(t).Close()
	})
}

func TestAPortWithoutHostTakesBothFamilies(t *testing.T) {
	ipv6.listen(t) // or skip
	conform(t, func(t *testing.T, e reactor.Engine) {
		any, err := reactor.ParseAddr(":0")
		if err != nil {
			t.Fatal(err)
		}
		d := newDoor(plenty)
		ln := listen(t, e, any, d)
		for _, host := range []string{"127.0.0.1", "::1"} {
			ip := netip.MustParseAddr(host)
			c := dial(t, reactor.TCP(netip.AddrPortFrom(ip, ln.Addr().IP.Port())))
			near := d.next(t)
			if want := reactor.AddrOf(c.LocalAddr()); near.Remote() != want {
				t.Errorf("remote is %v, want %v", near.Remote(), want)
			}
			near.Close()
		}
	})
}

func TestAnIPv4WildcardIsIPv4Only(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		a, err := reactor.ParseAddr("0.0.0.0:0")
		if err != nil {
			t.Fatal(err)
		}
		ln := listen(t, e, a, newDoor(plenty))
		c, err := net.Dial("tcp", reactor.TCP(netip.AddrPortFrom(netip.IPv6Loopback(), ln.Addr().IP.Port())).String())
		if err == nil {
			c.Close()
			t.Error("it takes IPv6, too")
		}
	})
}

func TestAPortInUseIsAnError(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		a := reactor.AddrOf(ipv4.listen(t).Addr())
		ln, err := e.Listen(a, reactor.ListenOptions{}, newDoor(plenty))
		if err == nil {
			ln.Close()
			t.Fatal("no error")
		}
	})
}

func TestUnixSocketFiles(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		a := unixPath.anyAddr(t)
		exists := func() bool {
			_, err := os.Lstat(a.Path)
			return err == nil
		}
		d := newDoor(plenty)
		try := func() (reactor.Listener, error) { return e.Listen(a, reactor.ListenOptions{}, d) }
		ln, err := try()
		if err != nil {
			t.Fatal(err)
		}
		if !exists() {
			t.Error("a listener without a file")
		}
		if ln2, err := try(); err == nil {
			ln2.Close()
			t.Error("a second listener took over from a living one")
		} else if !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("beside a living listener: %v", err)
		}
		dial(t, a)
		ln.Close()
		d.drop()
		if exists() {
			t.Error("the file outlives its listener")
		}

		if err := os.WriteFile(a.Path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if ln, err := try(); err == nil {
			ln.Close()
			t.Error("a file that is no socket was replaced")
		}
		if text, _ := os.ReadFile(a.Path); string(text) != "precious" {
			t.Error("a file that is no socket was changed")
		}
		os.Remove(a.Path)

		stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: a.Path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		stale.SetUnlinkOnClose(false)
		stale.Close()
		if ln, err = try(); err != nil {
			t.Fatalf("a stale file is in the way: %v", err)
		}

		// Somebody else has taken the path meanwhile: it is not ours to remove.
		os.Remove(a.Path)
		other, err := net.Listen("unix", a.Path)
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
		if !exists() {
			t.Error("the file of another listener was removed")
		}
		other.Close()
	})
}

func TestNothingIsAcceptedWithoutRoom(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		d := newDoor(0)
		ln := listen(t, e, ipv4.anyAddr(t), d)
		const clients, step = 20, 5
		for range clients + 1 { // so that one is left that asks for room
			send(t, dial(t, ln.Addr()), "x")
		}
		for let := 0; ; let += step {
			receive(t, d.refused, "Reserve without room")
			if reserved, accepted := d.count(); accepted != let || reserved != let {
				t.Fatalf("accepted %d with %d reservations, there is room for %d", accepted, reserved, let)
			}
			if let == clients {
				break
			}
			d.mu.Lock()
			d.room += step
			d.mu.Unlock()
			ln.Resume()
			for range step {
				d.next(t).Close()
			}
		}
	})
}

// TestAListenerWithoutClientsTakesNoRoom: with one place for two listeners the client of either gets it.
func TestAListenerWithoutClientsTakesNoRoom(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a listener cannot be watched")
	}
	for _, f := range []family{ipv4, unixPath} {
		t.Run(string(f), func(t *testing.T) {
			conform(t, func(t *testing.T, e reactor.Engine) {
				d := newDoor(1)
				listeners := []reactor.Listener{listen(t, e, f.anyAddr(t), d), listen(t, e, f.anyAddr(t), d)}
				for range 3 {
					for _, ln := range listeners {
						dial(t, ln.Addr())
						var c reactor.Conn
						await(t, "the client", func() bool { // the other listener may be looking just now
							ln.Resume()
							select {
							case c = <-d.conns:
								return true
							default:
								return false
							}
						})
						c.Close()
						d.mu.Lock()
						d.reserved--
						d.accepted--
						d.mu.Unlock()
					}
				}
			})
		})
	}
}

// TestResumeIsNeverMissed calls it from everywhere while room comes and goes.
func TestResumeIsNeverMissed(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		d := newDoor(1)
		ln := listen(t, e, ipv4.anyAddr(t), d)
		const clients = 300
		accepted := background(func() {
			for range clients {
				(<-d.conns).Close()
				d.mu.Lock()
				d.reserved--
				d.accepted--
				d.mu.Unlock()
				ln.Resume()
			}
		})
		var dialers sync.WaitGroup
		for range 4 {
			dialers.Go(func() {
				for range clients / 4 {
					if c, err := net.Dial("tcp", ln.Addr().String()); err != nil {
						t.Error(err)
					} else {
						io.Copy(io.Discard, c)
						c.Close()
					}
				}
			})
		}
		dialers.Wait()
		accepted()
	})
}

func TestClosingAListenerResetsTheQueue(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		d := newDoor(0)
		ln := listen(t, e, ipv4.anyAddr(t), d)
		var clients []net.Conn
		for range 10 {
			clients = append(clients, dial(t, ln.Addr()))
		}
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		for _, c := range clients {
			wants(t, "a client", c, "", endRST)
		}
		if _, accepted := d.count(); accepted > 0 {
			t.Errorf("%d accepted", accepted)
		}
		if c, err := net.Dial("tcp", ln.Addr().String()); err == nil {
			c.Close()
			t.Error("it still listens")
		}
		ln.Resume() // does nothing, and does no harm
		if err := ln.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

// TestAListenerThatIsClosedWhileClientsCome: each is accepted or cut, none is forgotten.
func TestAListenerThatIsClosedWhileClientsCome(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		for range 10 {
			d := newDoor(plenty)
			ln := listen(t, e, ipv4.anyAddr(t), d)
			var stop atomic.Bool
			var dialers sync.WaitGroup
			for range 4 {
				dialers.Go(func() {
					for !stop.Load() {
						if c, err := net.Dial("tcp", ln.Addr().String()); err == nil {
							sendRST(c)
						}
					}
				})
			}
			for range 20 {
				d.next(t).Reset()
			}
			closeListener(t, ln, d)
			_, before := d.count()
			stop.Store(true)
			dialers.Wait()
			if _, after := d.count(); after != before {
				t.Errorf("%d clients were accepted after Close", after-before)
			}
		}
	})
}

func TestServeTakesAListenerThatWasBoundElsewhere(t *testing.T) {
	for _, f := range []family{ipv4, unixPath} {
		t.Run(string(f), func(t *testing.T) {
			conform(t, func(t *testing.T, e reactor.Engine) {
				inner, d := f.listen(t), newDoor(plenty)
				ln, err := e.Serve(inner, reactor.ListenOptions{}, d)
				if err != nil {
					t.Fatal(err)
				}
				if ln.Addr() != reactor.AddrOf(inner.Addr()) {
					t.Errorf("address is %v", ln.Addr())
				}
				c := dial(t, ln.Addr())
				near := d.next(t)
				closeListener(t, ln, d)
				near.Close()
				wants(t, "the client", c, "", endFIN)
				if _, err := inner.Accept(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("the listener is not closed: %v", err)
				}
			})
		})
	}
}

// TestClientsThatConnectAndReset run a session each, as far as they come.
func TestClientsThatConnectAndReset(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		const clients = 2000
		backends := background(func() {
			var echoes sync.WaitGroup
			defer echoes.Wait()
			for {
				c, err := r.backend.Accept()
				if err != nil {
					return
				}
				echoes.Go(func() {
					io.Copy(c, struct{ io.Reader }{c}) // without the pipes of splice, which package net keeps
					c.Close()
				})
			}
		})
		ended := make(chan reactor.Result, clients+1)
		var sessions sync.WaitGroup
		serving := background(func() {
			for range clients + 1 {
				near := <-r.door.conns
				sessions.Go(func() {
					far, err := e.Dial(reactor.AddrOf(r.backend.Addr()), near, reactor.Addr{})
					if err == nil {
						err = far.Established(context.Background())
					}
					if err != nil {
						t.Error(err)
						near.Close()
						return
					}
					e.Relay(near, far, endings(ended)).Start()
				})
			}
		})
		var dialers sync.WaitGroup
		for range 4 {
			dialers.Go(func() {
				for range clients / 4 {
					c, err := net.Dial("tcp", r.ln.Addr().String())
					if err != nil {
						t.Error(err)
						return
					}
					sendRST(c)
				}
			})
		}
		dialers.Wait()
		c := dial(t, r.ln.Addr())
		send(t, c, "still there?")
		sendFIN(t, c)
		wants(t, "the client after them", c, "still there?", endFIN)
		serving()
		sessions.Wait()
		count := map[reactor.Cause]int{}
		for range clients + 1 {
			count[receive(t, ended, "the end of all sessions").Cause]++
		}
		if count[reactor.ClientRST] != clients || count[reactor.ClientFIN] != 1 {
			t.Errorf("causes are %v", count)
		}
		r.backend.Close()
		backends()
	})
}

// endings is a Handler that replaces no backend.
type endings chan reactor.Result

func (endings) Options() *reactor.RelayOptions { return new(reactor.RelayOptions) }

func (endings) Unused(reactor.Conn, reactor.Cause) bool { return false }

func (c endings) Ended(r reactor.Result) { c <- r }

func TestAClosedEngineTakesNothing(t *testing.T) {
	for name, open := range engines {
		t.Run(name, func(t *testing.T) {
			leavesNothing(t)
			e, err := open()
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			d := newDoor(plenty)
			if _, err := e.Listen(ipv4.anyAddr(t), reactor.ListenOptions{}, d); !errors.Is(err, reactor.ErrClosed) {
				t.Errorf("Listen: %v", err)
			}
			ln := ipv4.listen(t)
			if _, err := e.Serve(ln, reactor.ListenOptions{}, d); !errors.Is(err, reactor.ErrClosed) {
				t.Errorf("Serve: %v", err)
			}
			if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Serve did not take the listener: %v", err)
			}
			if _, err := e.Dial(reactor.AddrOf(ln.Addr()), nil, reactor.Addr{}); !errors.Is(err, reactor.ErrClosed) {
				t.Errorf("Dial: %v", err)
			}
		})
	}
}

func TestEnginesComeAndGo(t *testing.T) {
	conform(t, func(t *testing.T, _ reactor.Engine) {
		before := runtime.NumGoroutine()
		for range 20 {
			for _, open := range engines {
				e, err := open()
				if err != nil {
					t.Fatal(err)
				}
				if err := e.Close(); err != nil {
					t.Error(err)
				}
			}
		}
		await(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
	})
}
