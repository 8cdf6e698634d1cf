package reactor_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/reactor"
)

// checked waits until Check says that.
func checked(t *testing.T, what string, c reactor.Conn, up, waiting bool) {
	t.Helper()
	await(t, what, func() bool {
		u, w := c.Check()
		return u == up && w == waiting
	})
}

func TestCheckSeesWhatThePeerDid(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		for name, test := range map[string]struct {
			act         func(net.Conn)
			up, waiting bool
		}{
			"nothing": {func(net.Conn) {}, true, false},
			"data":    {func(c net.Conn) { send(t, c, "hello") }, true, true},
			"FIN":     {func(c net.Conn) { sendFIN(t, c) }, false, false},
			"RST":     {sendRST, false, false},
			// The bytes do not hide the end behind them, whether or not an event has told of it.
			"data and FIN": {func(c net.Conn) { send(t, c, "hello"); sendFIN(t, c) }, false, true},
		} {
			for _, watched := range []bool{false, true} {
				s := r.connect()
				if watched {
					s.far.Watch(func() {})
				}
				test.act(s.backend)
				checked(t, name, s.far, test.up, test.waiting)
				s.near.Close()
				s.far.Close()
			}
		}
	})
}

func TestWatchTellsOfDataAndOfTheEnd(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		for _, early := range []bool{false, true} {
			s := r.connect()
			news := make(chan struct{}, 64)
			told := func() { news <- struct{}{} }
			if !early {
				s.far.Watch(told)
			}
			send(t, s.backend, "220 hello\r\n")
			if early {
				s.far.Watch(told)
			}
			receive(t, news, "news of data")
			checked(t, "data", s.far, true, true)
			send(t, s.backend, "more")
			receive(t, news, "news of more data")
			s.backend.Close()
			await(t, "news of the end", func() bool {
				up, waiting := s.far.Check()
				return !up && waiting && len(news) > 0
			})
			s.near.Close()
			s.far.Close()
		}
	})
}

// TestWatchMayBeWithdrawnWhileItCalls: the function waits for a lock that the withdrawing side holds.
func TestWatchMayBeWithdrawnWhileItCalls(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).connect()
		var lock sync.Mutex
		called := make(chan struct{}, 64)
		lock.Lock()
		s.far.Watch(func() {
			called <- struct{}{}
			lock.Lock()
			defer lock.Unlock()
		})
		send(t, s.backend, "greeting")
		receive(t, called, "the call")
		withdrawn := make(chan struct{})
		go func() {
			s.far.Watch(nil)
			close(withdrawn)
		}()
		receive(t, withdrawn, "Watch(nil)")
		lock.Unlock()
		s.relay(reactor.RelayOptions{})
		wantsNext(t, "the client", s.client, "greeting")
	})
}

func TestWatchMayClose(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).connect()
		var once sync.Once
		s.far.Watch(func() {
			if up, _ := s.far.Check(); !up {
				once.Do(s.far.Close)
			}
		})
		sendFIN(t, s.backend)
		wants(t, "the backend", s.backend, "", endFIN)
		s.near.Close()
	})
}

// TestAWatchedConnKeepsItsBytes, however many they are, for the relay.
func TestAWatchedConnKeepsItsBytes(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		for _, size := range []int{1, 4096, 50_000} {
			s := r.connect()
			s.far.Watch(func() {})
			if err := sendNoise(s.backend, 0, size, newPace(1, true, 2000)); err != nil {
				t.Fatal(err)
			}
			s.backend.Close()
			s.relay(reactor.RelayOptions{})
			if n, err := readNoise(s.client, 0, newPace(1, false, 4096)); n != size || err != io.EOF {
				t.Errorf("%d bytes of %d, then %v", n, size, err)
			}
			s.client.Close()
			receive(t, s.ended, "the end")
		}
	})
}

func TestSendComesBeforeTheRelay(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).connect()
		send(t, s.client, "request")
		if err := s.far.Send([]byte("header ")); err != nil {
			t.Fatal(err)
		}
		s.relay(reactor.RelayOptions{})
		sendFIN(t, s.client)
		wants(t, "the backend", s.backend, "header request", endFIN)
		s.backend.Close()
		if r := s.result(reactor.ClientFIN); r.Up != 7 {
			t.Errorf("%d bytes up; a header is not the client's", r.Up)
		}
	})
}

func TestSendToAPeerThatIsGoneFails(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).connect()
		gone := make(chan struct{})
		s.far.OnReset(func() { close(gone) })
		sendRST(s.backend)
		receive(t, gone, "the reset")
		if err := s.far.Send([]byte("header")); err == nil {
			t.Error("no error")
		}
		s.near.Close()
		s.far.Close()
	})
}

func TestPeekTakesNothing(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).connect()
		ctx := context.Background()
		buf := make([]byte, 64)
		pieces := background(func() {
			send(t, s.client, "PRO")
			send(t, s.client, "XY request")
		})
		n, err := s.near.Peek(ctx, buf, 5)
		if n < 5 || err != nil || string(buf[:5]) != "PROXY" {
			t.Fatalf("got %q, %v", buf[:n], err)
		}
		pieces()
		if n, err := s.near.Peek(ctx, buf, 13); string(buf[:n]) != "PROXY request" || err != nil {
			t.Fatalf("got %q, %v", buf[:n], err)
		}
		if n, err := s.near.Peek(ctx, buf[:2], 13); n != 2 || err != nil {
			t.Fatalf("into 2 bytes got %d, %v", n, err)
		}
		if err := s.near.Discard(6); err != nil {
			t.Fatal(err)
		}
		s.relay(reactor.RelayOptions{})
		sendFIN(t, s.client)
		wants(t, "the backend", s.backend, "request", endFIN)
	})
}

func TestPeekSeesTheEnd(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		buf := make([]byte, 64)

		s := r.connect()
		send(t, s.client, "abc")
		sendFIN(t, s.client)
		if n, err := s.near.Peek(context.Background(), buf, 10); string(buf[:n]) != "abc" || err != io.EOF {
			t.Errorf("after a FIN: %q, %v", buf[:n], err)
		}
		s.relay(reactor.RelayOptions{})
		wants(t, "the backend", s.backend, "abc", endFIN)

		s = r.connect()
		reset := background(func() { sendRST(s.client) })
		if n, err := s.near.Peek(context.Background(), buf, 10); n != 0 || err == nil || err == io.EOF {
			t.Errorf("after a reset: %d bytes, %v", n, err)
		}
		reset()
		s.near.Close()
		s.far.Close()
	})
}

// TestPeekEndsWithItsContext, and harms nothing.
func TestPeekEndsWithItsContext(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		buf := make([]byte, 64)
		for i := range 20 {
			s := r.connect()
			reset := make(chan struct{})
			s.near.OnReset(func() { close(reset) })
			send(t, s.client, "ab")
			why := errors.New("too slow")
			ctx, cancel := context.WithTimeoutCause(context.Background(), time.Duration(i)*200*time.Microsecond, why)
			if n, err := s.near.Peek(ctx, buf, 10); !errors.Is(err, why) {
				t.Errorf("%q, %v", buf[:n], err)
			}
			cancel()
			send(t, s.client, "cd")
			if n, err := s.near.Peek(context.Background(), buf, 4); string(buf[:n]) != "abcd" || err != nil {
				t.Errorf("then %q, %v", buf[:n], err)
			}
			if i%2 == 0 { // OnReset goes on
				sendRST(s.client)
				receive(t, reset, "the reset")
				s.near.Close()
				s.far.Close()
				continue
			}
			s.relay(reactor.RelayOptions{})
			wantsNext(t, "the backend", s.backend, "abcd")
			s.link.Kill()
			s.result(reactor.Killed)
		}
	})
}

func TestKeepBackendHandsItsConnOver(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		s := r.open(reactor.RelayOptions{KeepBackend: true})
		send(t, s.client, "request")
		wantsNext(t, "the backend", s.backend, "request")
		send(t, s.backend, "reply")
		wantsNext(t, "the client", s.client, "reply")
		s.client.Close()
		res := s.result(reactor.ClientFIN)
		if res.Backend == nil || res.HalfClosed != reactor.Client || res.Up != 7 || res.Down != 5 {
			t.Fatalf("result is %+v", res)
		}

		// A byte that comes now is not lost, and the next client is served.
		send(t, s.backend, "OK")
		buf := make([]byte, 16)
		if n, err := res.Backend.Peek(context.Background(), buf, 2); string(buf[:n]) != "OK" || err != nil {
			t.Fatalf("got %q, %v", buf[:n], err)
		}
		if err := res.Backend.Discard(2); err != nil {
			t.Fatal(err)
		}
		next := r.connect()
		next.far.Close()
		next.far, next.backend = res.Backend, s.backend
		next.relay(reactor.RelayOptions{})
		send(t, next.client, "second")
		sendFIN(t, next.client)
		wants(t, "the backend", s.backend, "second", endFIN)
		s.backend.Close()
		wants(t, "the client", next.client, "", endFIN)
		if res := next.result(reactor.ClientFIN); res.Up != 6 || res.Down != 0 {
			t.Errorf("second result is %+v", res)
		}
	})
}

func TestKeepBackendGivesNoneThatHasEnded(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).open(reactor.RelayOptions{KeepBackend: true})
		send(t, s.backend, "bye")
		sendFIN(t, s.backend)
		wants(t, "the client", s.client, "bye", endFIN)
		sendFIN(t, s.client)
		wants(t, "the backend", s.backend, "", endFIN)
		if r := s.result(reactor.BackendFIN); r.Backend != nil {
			t.Error("a connection that has ended was handed over")
		}
	})
}

// TestKeepBackendDeliversTheReply that is on its way when the client finishes.
func TestKeepBackendUnderLoad(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		for range 20 {
			s := r.open(reactor.RelayOptions{KeepBackend: true})
			const size = 200_000
			sent := background(func() {
				if err := sendNoise(s.backend, 0, size, newPace(3, true, 10_000)); err != nil {
					t.Error(err)
				}
			})
			wantsNext(t, "the client", s.client, string(noise[:1000]))
			sendFIN(t, s.client)
			got, err := readNoise(s.client, 1000, newPace(1, true, 10_000))
			if err != io.EOF {
				t.Errorf("the client got %d bytes, then %v", got, err)
			}
			res := s.result(reactor.ClientFIN)
			if res.Backend == nil || res.Down != uint64(1000+got) {
				t.Fatalf("result is %+v, the client got %d", res, 1000+got)
			}
			// What the client did not get is still there, to the byte.
			left, buf := size-1000-got, make([]byte, 4096)
			for at := 1000 + got; left > 0; {
				n, err := res.Backend.Peek(context.Background(), buf, 1)
				if err != nil || n > left || string(buf[:n]) != string(noise[at:at+n]) {
					t.Fatalf("%d bytes left, %d came: %v", left, n, err)
				}
				if err := res.Backend.Discard(n); err != nil {
					t.Fatal(err)
				}
				at, left = at+n, left-n
			}
			sent()
			res.Backend.Close()
		}
	})
}
