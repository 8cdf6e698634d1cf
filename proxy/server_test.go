//go:build unix

package proxy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/tproxy/tproxy/proxy"
)

func TestServe(t *testing.T) {
	secret := selfSigned(t)
	for name, x := range map[string]struct {
		listen func(t *testing.T) net.Listener
		dial   func(a net.Addr) (net.Conn, error)
	}{
		"TCP": {
			func(t *testing.T) net.Listener { return listen(t, "127.0.0.1:0") },
			func(a net.Addr) (net.Conn, error) { return net.Dial("tcp", a.String()) },
		},
		"unix": {
			func(t *testing.T) net.Listener {
				ln, err := net.Listen("unix", socketPath(t))
				if err != nil {
					t.Fatal(err)
				}
				return ln
			},
			func(a net.Addr) (net.Conn, error) { return net.Dial("unix", a.String()) },
		},
		"TLS": {
			func(t *testing.T) net.Listener {
				return tls.NewListener(listen(t, "127.0.0.1:0"), &tls.Config{Certificates: []tls.Certificate{secret}})
			},
			func(a net.Addr) (net.Conn, error) {
				return tls.Dial("tcp", a.String(), &tls.Config{InsecureSkipVerify: true})
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, e *proxy.Engine) {
				r := newRig(t, e, newEcho(t))
				ln := x.listen(t)
				done := make(chan error, 1)
				go func() { done <- r.srv.Serve(ln) }()
				t.Cleanup(r.close)
				c, err := x.dial(ln.Addr())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				roundTrip(t, c, "hello")
				if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
					t.Error(err)
				}
				wantEOF(t, c)
				r.awaitClosed(1)
				if a := r.srv.Addrs(); len(a) != 1 || a[0].String() != proxyAddr(ln.Addr()) {
					t.Errorf("addresses are %v", a)
				}
				r.tells(`
					1 accept
					1 open g/b1 attempts=1
					1 close g/b1 attempts=1 up=5 down=5 half=client client_fin
				`)
				if err := r.srv.Shutdown(within(t)); err != nil {
					t.Error(err)
				}
				if err := receive(t, done, "Serve"); !errors.Is(err, proxy.ErrServerClosed) {
					t.Errorf("Serve: %v", err)
				}
				if _, err := x.dial(ln.Addr()); err == nil {
					t.Error("somebody still listens")
				}
			})
		})
	}
}

func proxyAddr(a net.Addr) string {
	if a.Network() == "unix" {
		return "unix:" + a.String()
	}
	return a.String()
}

// socketPath is short enough for a socket, which t.TempDir is not.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "proxy")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestListenOnEveryKindOfAddress(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		backendPath := socketPath(t)
		ln, err := net.Listen("unix", backendPath)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				echo(c)
				c.Close()
			}
		}()
		t.Cleanup(func() { ln.Close(); <-done })
		r := newRig(t, e, "unix:"+backendPath).start()
		front := socketPath(t)
		for _, address := range []string{"127.0.0.1:0", "localhost:0", ":0", "[::1]:0", "unix:" + front} {
			l, err := r.srv.Listen(address)
			if err != nil && address == "[::1]:0" {
				continue // no IPv6 here
			}
			if err != nil {
				t.Errorf("%s: %v", address, err)
				continue
			}
			if l.Address() != address {
				t.Errorf("%s: Address is %q", address, l.Address())
			}
			l.Start()
			a := l.Addr()
			host := a.Path
			if !a.IsUnix() {
				host = a.IP.String()
			}
			c, err := net.Dial(a.Network(), host)
			if err != nil {
				t.Errorf("%s: %v", address, err)
				continue
			}
			c.SetDeadline(time.Now().Add(patience))
			if err := exchange(c, "hello"); err != nil {
				t.Errorf("%s: %v", address, err)
			}
			c.Close()
			if err := l.Close(); err != nil {
				t.Errorf("%s: %v", address, err)
			}
		}
		for _, address := range []string{"", "nonsense", "127.0.0.1:65536", "unix:", "no-such-host.invalid:80"} {
			if l, err := r.srv.Listen(address); err == nil {
				t.Errorf("%q: listens on %v", address, l.Addr())
			}
		}
		if n := len(r.srv.Listeners()); n != 1 {
			t.Errorf("%d listeners are left", n)
		}
	})
}

func TestNothingIsAcceptedBeforeStart(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newEcho(t))
		l, err := r.srv.Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.close)
		r.front = l.Addr()
		var clients []*net.TCPConn
		for range 20 {
			c := r.dial()
			io.WriteString(c, "hello")
			clients = append(clients, c)
		}
		if n := r.rec.count(proxy.SessionAccepted); n != 0 {
			t.Errorf("%d accepted", n)
		}
		r.srv.Start()
		for _, c := range clients {
			if got, err := readN(c, 5); got != "hello" || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
			finish(t, c)
		}
	})
}

func TestListenerCloseKeepsSessions(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newEcho(t)).start()
		other, err := r.srv.Listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		other.Start()
		c := r.dial()
		roundTrip(t, c, "x")
		first := r.srv.Listeners()[0]
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if err := first.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if left := r.srv.Listeners(); len(left) != 1 || left[0] != other {
			t.Errorf("%d listeners are left", len(left))
		}
		if c, err := net.Dial("tcp", r.front.String()); err == nil {
			c.Close()
			t.Error("the address still accepts")
		}
		roundTrip(t, c, "y")
		finish(t, c)
		c = dial(t, other.Addr())
		roundTrip(t, c, "z")
		finish(t, c)
	})
}

func TestServeReturnsWhenItsListenerIsClosed(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		r := newRig(t, e, newEcho(t)).start()
		done := make(chan error, 1)
		ln := listen(t, "127.0.0.1:0")
		go func() { done <- r.srv.Serve(ln) }()
		await(t, "the second listener", func() bool { return len(r.srv.Listeners()) == 2 })
		r.srv.Listeners()[1].Close()
		if err := receive(t, done, "Serve"); !errors.Is(err, net.ErrClosed) || errors.Is(err, proxy.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
		c := r.dial()
		roundTrip(t, c, "x")
		finish(t, c)
	})
}

func TestAfterClose(t *testing.T) {
	for _, own := range []bool{false, true} {
		eachEngine(t, func(t *testing.T, e *proxy.Engine) {
			r := newRig(t, e, newEcho(t))
			if own {
				r.srv.Engine = nil
			}
			for range 2 {
				if err := r.srv.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
				if err := r.srv.Shutdown(within(t)); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
			}
			ln := listen(t, "127.0.0.1:0")
			if err := r.srv.Serve(ln); !errors.Is(err, proxy.ErrServerClosed) {
				t.Errorf("Serve: %v", err)
			}
			if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the listener that was given is still open: %v", err)
			}
			if _, err := r.srv.Listen("127.0.0.1:0"); !errors.Is(err, proxy.ErrServerClosed) {
				t.Errorf("Listen: %v", err)
			}
			if err := r.srv.ListenAndServe("127.0.0.1:0"); !errors.Is(err, proxy.ErrServerClosed) {
				t.Errorf("ListenAndServe: %v", err)
			}
			if err := r.srv.Update(r.srv.Settings); err != nil {
				t.Errorf("Update: %v", err)
			}
			r.srv.Start()
			if r.srv.Kill(1, proxy.KilledByAdmin) || r.srv.KillAll(proxy.KilledByAdmin) != 0 || r.srv.Active() != 0 || r.srv.Paused() {
				t.Error("something is left")
			}
		})
	}
}

func TestServerWithoutGroup(t *testing.T) {
	leavesNothing(t)
	s := &proxy.Server{Name: "lonely"}
	ln := listen(t, "127.0.0.1:0")
	for what, err := range map[string]error{
		"Serve": s.Serve(ln), "ListenAndServe": s.ListenAndServe("127.0.0.1:0"), "Shutdown": s.Shutdown(context.Background()),
		"Close": s.Close(), "Update": s.Update(proxy.Settings{}),
	} {
		if err == nil {
			t.Errorf("%s is content", what)
		}
	}
	if s.Listeners() != nil || s.Traffic() != nil || s.Active() != 0 || s.HalfClosed() != 0 {
		t.Error("there is something")
	}
	for range s.Sessions() {
		t.Error("there is a session")
	}
}

func TestNewEngineNamesWhatItKnows(t *testing.T) {
	if _, err := proxy.NewEngine("steam"); err == nil {
		t.Error("a steam engine was built")
	}
}

// Everybody ends the server at once, while clients come. All calls return, and every session has its last event by then.
func TestConcurrentShutdownAndClose(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		for range 5 {
			r := newRig(t, e, newEcho(t)).start()
			second, err := r.srv.Listen("127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			second.Start()
			stop := make(chan struct{})
			var clients, closers sync.WaitGroup
			for _, a := range []proxy.Addr{r.front, second.Addr()} {
				for range 4 {
					clients.Go(func() {
						for {
							select {
							case <-stop:
								return
							default:
							}
							if c, err := net.DialTimeout("tcp", a.String(), patience); err == nil {
								c.SetDeadline(time.Now().Add(patience))
								exchange(c, "x")
								c.Close()
							}
						}
					})
				}
			}
			r.awaitEvents(proxy.SessionClosed, 20)
			closers.Go(func() { second.Close() })
			for i := range 4 {
				closers.Go(func() {
					var err error
					if i%2 == 0 {
						err = r.srv.Close()
					} else {
						err = r.srv.Shutdown(within(t))
					}
					if err != nil {
						t.Error(err)
					}
					checkEnds(t, r.rec.all())
				})
			}
			closers.Wait()
			close(stop)
			clients.Wait()
			r.close()
		}
	})
}
