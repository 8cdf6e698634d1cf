package reactor_test

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/reactor"
)

func TestHalfCloseByTheClientKeepsTheReply(t *testing.T) {
	for _, f := range []family{ipv4, unixPath} {
		t.Run(string(f), func(t *testing.T) {
			conform(t, func(t *testing.T, e reactor.Engine) {
				s := newRigOn(t, e, f, f).open(reactor.RelayOptions{})
				send(t, s.client, "request")
				sendFIN(t, s.client)
				wants(t, "the backend", s.backend, "request", endFIN)
				await(t, "half-closed", s.link.HalfClosed)
				send(t, s.backend, "reply")
				wantsNext(t, "the client", s.client, "reply")
				s.isOpen()
				s.backend.Close()
				wants(t, "the client", s.client, "", endFIN)
				if r := s.result(reactor.ClientFIN); r.HalfClosed != reactor.Client || r.Up != 7 || r.Down != 5 {
					t.Errorf("result is %+v", r)
				}
			})
		})
	}
}

func TestHalfCloseByTheBackendKeepsTheClientSending(t *testing.T) {
	for _, f := range []family{ipv4, unixPath} {
		t.Run(string(f), func(t *testing.T) {
			conform(t, func(t *testing.T, e reactor.Engine) {
				s := newRigOn(t, e, f, f).open(reactor.RelayOptions{})
				send(t, s.backend, "hello")
				sendFIN(t, s.backend)
				wants(t, "the client", s.client, "hello", endFIN)
				await(t, "half-closed", s.link.HalfClosed)
				send(t, s.client, "still here")
				wantsNext(t, "the backend", s.backend, "still here")
				s.isOpen()
				s.client.Close()
				wants(t, "the backend", s.backend, "", endFIN)
				if r := s.result(reactor.BackendFIN); r.HalfClosed != reactor.Backend || r.Up != 10 || r.Down != 5 {
					t.Errorf("result is %+v", r)
				}
			})
		})
	}
}

func TestBothSidesFinishAtOnce(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		for range 100 {
			s := r.open(reactor.RelayOptions{})
			var both sync.WaitGroup
			both.Go(func() { send(t, s.client, "up"); sendFIN(t, s.client) })
			both.Go(func() { send(t, s.backend, "down"); sendFIN(t, s.backend) })
			wants(t, "the backend", s.backend, "up", endFIN)
			wants(t, "the client", s.client, "down", endFIN)
			both.Wait()
			res := receive(t, s.ended, "the end")
			want := map[reactor.Cause]reactor.Side{
				reactor.ClientFIN: reactor.Client, reactor.BackendFIN: reactor.Backend,
			}[res.Cause]
			if want == reactor.NoSide || res.HalfClosed != want || res.Up != 2 || res.Down != 4 {
				t.Fatalf("result is %+v", res)
			}
			if s.link.HalfClosed() {
				t.Fatal("half-closed at the end")
			}
		}
	})
}

func TestDataAndFINFromBeforeTheRelayArePassedOn(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).connect()
		send(t, s.client, "request")
		sendFIN(t, s.client)
		send(t, s.backend, "greeting")
		s.relay(reactor.RelayOptions{})
		wants(t, "the backend", s.backend, "request", endFIN)
		send(t, s.backend, ", reply")
		s.backend.Close()
		wants(t, "the client", s.client, "greeting, reply", endFIN)
		s.result(reactor.ClientFIN)
	})
}

func TestSimultaneousClose(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		for range 100 {
			s := r.open(reactor.RelayOptions{})
			send(t, s.client, "a")
			wantsNext(t, "the backend", s.backend, "a")
			var both sync.WaitGroup
			both.Go(func() { s.client.Close() })
			both.Go(func() { s.backend.Close() })
			both.Wait()
			res := receive(t, s.ended, "the end")
			if res.Cause != reactor.ClientFIN && res.Cause != reactor.BackendFIN {
				t.Fatalf("cause is %s", causes[res.Cause])
			}
		}
	})
}

func TestCloseOnFINEndsBothSidesAfterDelivery(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		s := r.open(reactor.RelayOptions{CloseOnFIN: true})
		send(t, s.client, "last words")
		sendFIN(t, s.client)
		wants(t, "the backend", s.backend, "last words", endFIN)
		wants(t, "the client", s.client, "", endFIN)
		if res := s.result(reactor.ClientFIN); res.HalfClosed != reactor.Client || res.Up != 10 {
			t.Errorf("result is %+v", res)
		}

		s = r.open(reactor.RelayOptions{CloseOnFIN: true})
		wait := background(func() {
			if err := sendNoise(s.backend, 0, 1<<20, newPace(1, false, 64<<10)); err != nil {
				t.Error(err)
			}
			s.backend.Close()
		})
		if n, err := readNoise(s.client, 0, newPace(2, true, 64<<10)); err != io.EOF || n != 1<<20 {
			t.Errorf("the client got %d bytes of %d, then %v", n, 1<<20, err)
		}
		wait()
		s.result(reactor.BackendFIN)
	})
}

func TestAResetOfAQuietClientReachesTheBackend(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).open(reactor.RelayOptions{})
		send(t, s.client, "abc")
		wantsNext(t, "the backend", s.backend, "abc")
		sendRST(s.client)
		wants(t, "the backend", s.backend, "", endRST)
		if r := s.result(reactor.ClientRST); r.HalfClosed != reactor.NoSide || r.Up != 3 {
			t.Errorf("result is %+v", r)
		}
	})
}

// TestAResetAmidDataDeliversAnExactPrefix does it both ways.
func TestAResetAmidDataDeliversAnExactPrefix(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		for i := range 10 {
			s := r.open(reactor.RelayOptions{})
			src, dst, cause := s.client, s.backend, reactor.ClientRST
			if i%2 == 1 {
				src, dst, cause = dst, src, reactor.BackendRST
			}
			wait := background(func() {
				sendNoise(src, 0, (i+1)<<18, newPace(uint64(i), false, 64<<10))
				sendRST(src)
			})
			n, err := readNoise(dst, 0, newPace(uint64(i), true, 64<<10))
			if endOf(err) != endRST {
				t.Errorf("after %d bytes: %v", n, err)
			}
			wait()
			res := s.result(cause)
			if passed := res.Up + res.Down; passed != uint64(n) {
				t.Errorf("%d bytes were passed on and %d arrived", passed, n)
			}
		}
	})
}

func TestAResetByTheBackendComesAfterWhatItSent(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).open(reactor.RelayOptions{})
		const size = 200_000
		if err := sendNoise(s.backend, 0, size, newPace(1, false, 64<<10)); err != nil {
			t.Fatal(err)
		}
		await(t, "all of it in the relay", func() bool {
			_, down := s.link.Bytes()
			return down == size
		})
		sendRST(s.backend)
		n, err := readNoise(s.client, 0, newPace(1, true, 8<<10))
		if n != size || endOf(err) != endRST {
			t.Errorf("the client got %d bytes of %d, then %v", n, size, err)
		}
		s.result(reactor.BackendRST)
	})
}

func TestAResetByTheBackendWithoutDataReachesTheClient(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		s := r.open(reactor.RelayOptions{})
		sendRST(s.backend)
		wants(t, "the client", s.client, "", endRST)
		s.result(reactor.BackendRST)

		s = r.open(reactor.RelayOptions{}) // now after the client's data
		send(t, s.client, "go")
		wantsNext(t, "the backend", s.backend, "go")
		sendRST(s.backend)
		wants(t, "the client", s.client, "", endRST)
		s.result(reactor.BackendRST)
	})
}

// TestCloseWithUnreadDataIsAReset: that is how TCP tells that data was lost.
func TestCloseWithUnreadDataIsAReset(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).open(reactor.RelayOptions{})
		send(t, s.backend, "hello")
		wantsNext(t, "the client", s.client, "hello")
		send(t, s.client, "unread")
		await(t, "6 bytes up", func() bool {
			up, _ := s.link.Bytes()
			return up == 6
		})
		unreadBy(t, s.backend)
		s.backend.Close()
		wants(t, "the client", s.client, "", endRST)
		s.result(reactor.BackendRST)
	})
}

// unreadBy waits until data has arrived at c, and leaves all but one byte.
func unreadBy(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

// TestAResetIsNeverTakenForAFIN resets a side while the relay is stuck in writing to it: the error is there once, for
// the reader or the writer.
func TestAResetIsNeverTakenForAFIN(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		for i := range 30 {
			s := r.open(reactor.RelayOptions{})
			from, to, cause := s.client, s.backend, reactor.ClientRST
			if i%2 == 1 {
				from, to, cause = to, from, reactor.BackendRST
			}
			from.(*net.TCPConn).SetReadBuffer(4 << 10)
			send(t, from, "x")
			wantsNext(t, "the other side", to, "x")
			// More than the kernel takes; and to writes nothing any more when the reset comes, or its own error would
			// go to the writer.
			to.SetWriteDeadline(time.Now().Add(15 * time.Millisecond))
			io.CopyN(to, noiseReader{}, 16<<20)
			sendRST(from)
			if _, err := io.Copy(io.Discard, to); endOf(err) != endRST {
				t.Fatalf("round %d: the reset came as %s", i, endOf(err))
			}
			s.result(cause)
		}
	})
}

type noiseReader struct{}

func (noiseReader) Read(p []byte) (int, error) { return copy(p, noise), nil }

// TestAFINIsNeverTakenForAReset ends one direction while the other is busy.
func TestAFINIsNeverTakenForAReset(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		for i := range 30 {
			s := r.open(reactor.RelayOptions{})
			from, to := s.client, s.backend
			if i%2 == 1 {
				from, to = to, from
			}
			const size = 300_000
			busy := background(func() {
				if err := sendNoise(to, 0, size, newPace(uint64(i), true, 64<<10)); err != nil {
					t.Errorf("round %d: %v", i, err)
				}
				sendFIN(t, to)
			})
			send(t, from, "x")
			sendFIN(t, from)
			wants(t, "the other side", to, "x", endFIN)
			if n, err := readNoise(from, 0, newPace(1, true, 64<<10)); n != size || err != io.EOF {
				t.Errorf("round %d: %d bytes, then %v", i, n, err)
			}
			busy()
			if res := receive(t, s.ended, "the end"); res.Cause != reactor.ClientFIN && res.Cause != reactor.BackendFIN {
				t.Errorf("round %d: cause is %s", i, causes[res.Cause])
			}
		}
	})
}

// TestAPeerThatDiesAfterItsFINIsNoticed: a half-closed session does not hold the other side for ever.
func TestAPeerThatDiesAfterItsFINIsNoticed(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		for _, first := range []reactor.Side{reactor.Client, reactor.Backend} {
			s := r.open(reactor.RelayOptions{})
			from, to, cause := s.client, s.backend, reactor.ClientRST
			if first == reactor.Backend {
				from, to, cause = to, from, reactor.BackendRST
			}
			send(t, from, "x")
			sendFIN(t, from)
			wants(t, "the other side", to, "x", endFIN)
			await(t, "half-closed", s.link.HalfClosed)
			sendRST(from)
			send(t, to, "into the void")
			if res := s.result(cause); res.HalfClosed != first {
				t.Errorf("result is %+v", res)
			}
			await(t, "an error of sending", func() bool {
				_, err := to.Write([]byte("more"))
				return err != nil
			})
		}
	})
}

func TestKillResetsBothSides(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		s := r.open(reactor.RelayOptions{})
		send(t, s.client, "a")
		wantsNext(t, "the backend", s.backend, "a")
		var several sync.WaitGroup
		for range 4 {
			several.Go(s.link.Kill)
		}
		wants(t, "the client", s.client, "", endRST)
		wants(t, "the backend", s.backend, "", endRST)
		several.Wait()
		s.result(reactor.Killed)

		s = r.open(reactor.RelayOptions{})
		s.client.Close()
		s.backend.Close()
		receive(t, s.ended, "the end")
		s.link.Kill()
		s.link.Quiet()
		s.link.HalfClosed()
		select {
		case res := <-s.ended:
			t.Errorf("ended twice: %+v", res)
		default:
		}
	})
}

func TestNothingHappensBeforeStart(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		s := r.connect()
		send(t, s.client, "early")
		s.link = e.Relay(s.near, s.far, s)
		if up, down := s.link.Bytes(); up != 0 || down != 0 || s.link.HalfClosed() {
			t.Errorf("%d bytes up, %d down", up, down)
		}
		s.link.Start()
		wantsNext(t, "the backend", s.backend, "early")
		s.link.Kill()
		s.result(reactor.Killed)

		s = r.connect()
		s.link = e.Relay(s.near, s.far, s)
		s.link.Kill()
		s.link.Start()
		s.result(reactor.Killed)
		wants(t, "the client", s.client, "", endRST)
		wants(t, "the backend", s.backend, "", endRST)
	})
}

// TestKillEndsASessionWithAStuckWriter: neither side reads.
func TestKillEndsASessionWithAStuckWriter(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).open(reactor.RelayOptions{})
		var senders sync.WaitGroup
		for _, c := range []net.Conn{s.client, s.backend} {
			senders.Go(func() { io.CopyN(c, noiseReader{}, 1<<30) })
		}
		await(t, "data both ways", func() bool {
			up, down := s.link.Bytes()
			return up > 64<<10 && down > 64<<10
		})
		s.link.Kill()
		s.result(reactor.Killed)
		senders.Wait()
	})
}

func TestConnsThatAreNeverRelayedEndAsTheyAreTold(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		s := r.connect()
		s.near.Close()
		s.far.Reset()
		wants(t, "the client", s.client, "", endFIN)
		wants(t, "the backend", s.backend, "", endRST)

		s = r.connect()
		s.near.Reset()
		s.far.Close()
		wants(t, "the client", s.client, "", endRST)
		wants(t, "the backend", s.backend, "", endFIN)
	})
}

func TestAddressesOfAConn(t *testing.T) {
	for _, f := range []family{ipv4, ipv6} {
		t.Run(string(f), func(t *testing.T) {
			conform(t, func(t *testing.T, e reactor.Engine) {
				s := newRigOn(t, e, f, f).connect()
				for _, c := range []struct {
					who  string
					conn reactor.Conn
					peer net.Conn
				}{{"client", s.near, s.client}, {"backend", s.far, s.backend}} {
					if got, want := c.conn.Remote(), reactor.AddrOf(c.peer.LocalAddr()); got != want {
						t.Errorf("%s: remote is %v, want %v", c.who, got, want)
					}
					if got, want := c.conn.Local(), reactor.AddrOf(c.peer.RemoteAddr()); got != want {
						t.Errorf("%s: local is %v, want %v", c.who, got, want)
					}
					c.conn.Close()
				}
			})
		})
	}
}
