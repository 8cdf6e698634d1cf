package reactor

import (
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// Behaviours of the relay over the fake kernel: what real sockets do too seldom. Most of them were found by FuzzRelay.

// play gives a test a client and a backend, and at the end lets both finish. The relay is started.
func play(t *testing.T, o RelayOptions, test func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.options = o
		w.connect().start()
		test(w)
		w.finish()
	})
}

func (w *world) ends(want Cause) Result {
	w.t.Helper()
	w.quiesce()
	if w.alive() {
		w.t.Fatalf("the session goes on; want its end because of %d", want)
	}
	r := w.session.ended[0]
	if r.Cause != want {
		w.t.Fatalf("the session ended because of %d, want %d", r.Cause, want)
	}
	return r
}

func (w *world) lives() {
	w.t.Helper()
	w.quiesce()
	if !w.alive() {
		w.t.Fatalf("the session ended: %+v", w.session.ended[0])
	}
}

// faults makes the next calls of these kinds fail.
func (w *world) faults(list ...fault) {
	w.k.fault = func() fault {
		if len(list) == 0 {
			return noFault
		}
		f := list[0]
		list = list[1:]
		return f
	}
}

func TestWhatTheSystemRefusesEndsTheSessionAsFailed(t *testing.T) {
	for name, test := range map[string]func(*world){
		"write": func(w *world) {
			w.client.peerSends(100)
			w.faults(noFault, exhausted)
		},
		"write of a rest": func(w *world) {
			w.client.room = 50
			w.session.backend.peerSends(100)
			w.quiesce()
			w.client.peerReads(50)
			w.faults(exhausted)
		},
		"read": func(w *world) {
			w.client.peerFIN()
			w.faults(exhausted)
		},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, RelayOptions{}, func(w *world) {
				w.again = 1
				w.quiesce()
				test(w)
				w.ends(Failed)
				if len(w.sessions) > 1 {
					t.Error("a backend was blamed")
				}
			})
		})
	}
}

func TestARegistrationThatFailsEndsTheSessionAsFailed(t *testing.T) {
	for name, faults := range map[string][]fault{"the client": {noFault, exhausted}, "the backend": {noFault, noFault, exhausted}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				x := w.connect()
				w.faults(faults...)
				x.start()
				w.ends(Failed)
				w.finish()
			})
		})
	}
}

// stream makes from's side one that is spliced.
func (w *world) stream(from, to *fakeSocket) {
	w.t.Helper()
	for range 4 {
		from.peerSends(chunkSize)
		w.quiesce()
		to.peerReads(1 << 30)
	}
	w.quiesce()
	if len(w.k.pipes) == 0 {
		w.t.Fatal("nothing was spliced")
	}
}

func TestAStreamIsSplicedThroughOnePipeThatIsGivenBack(t *testing.T) {
	play(t, RelayOptions{}, func(w *world) {
		w.stream(w.client, w.session.backend)
		w.stream(w.session.backend, w.client)
		w.lives()
		if pooled := len(w.loops[0].pipes.idle); pooled != 1 || len(w.k.pipes) != 2 {
			t.Errorf("%d ends of pipes for two quiet streams, %d pipes in the pool", len(w.k.pipes), pooled)
		}
	})
}

func TestAPipeIsNotNeeded(t *testing.T) {
	for name, f := range map[string]fault{"no descriptors": exhausted, "EINVAL": unfit} {
		t.Run(name, func(t *testing.T) {
			play(t, RelayOptions{}, func(w *world) {
				w.k.fault = func() fault { return f }
				if f == exhausted {
					w.k.fault = nil
					w.e.kernel = noPipes{w.k}
				}
				for range 10 {
					w.client.peerSends(chunkSize)
					w.quiesce()
					w.session.backend.peerReads(1 << 30)
				}
				w.lives()
				w.e.kernel, w.k.fault = w.k, nil
			})
		})
	}
}

// noPipes is a kernel that is out of descriptors.
type noPipes struct{ *fakeKernel }

func (noPipes) pipe() (r, w int32, size int, e syscall.Errno) { return -1, -1, 0, unix.EMFILE }

// TestDataBehindAnUrgentByteIsNotTakenForTheEnd: splice stops at the urgent byte, and returns 0 when the FIN is behind it.
func TestDataBehindAnUrgentByteIsNotTakenForTheEnd(t *testing.T) {
	play(t, RelayOptions{}, func(w *world) {
		c, b := w.client, w.session.backend
		w.stream(c, b)
		c.peerSends(chunkSize)
		pipe := true
		w.k.meanwhile = func() { // when the stream is read, so that no event has told of it
			if pipe && c.taken == c.sent {
				pipe = false
				c.peerSendsUrgent()
				c.peerSends(71)
				c.peerFIN()
			}
		}
		w.lives()
		if pipe || b.next != c.sent || !b.shut {
			t.Errorf("%d bytes of %d, FIN %v", b.next, c.sent, b.shut)
		}
	})
}

func TestAnUrgentByteWaitsForRoom(t *testing.T) {
	play(t, RelayOptions{}, func(w *world) {
		c, b := w.client, w.session.backend
		b.room = 100
		c.peerSends(100)
		w.lives()
		c.peerSendsUrgent()
		c.peerSends(10)
		w.lives()
		b.peerReads(100)
		w.lives()
		if b.oob != 1 || b.took != 111 {
			t.Errorf("%d urgent bytes of 1, %d bytes of 111", b.oob, b.took)
		}
	})
}

func TestCloseOnFINDeliversWhatCameBeforeTheFirstFIN(t *testing.T) {
	play(t, RelayOptions{CloseOnFIN: true}, func(w *world) {
		c, b := w.client, w.session.backend
		b.room = 100
		c.peerSends(300)
		c.peerFIN()
		w.lives()
		b.peerFIN()
		w.lives() // the backend does not end what the client has ended before
		for range 3 {
			b.peerReads(100)
			w.quiesce()
		}
		w.ends(ClientFIN)
		if b.next != 300 {
			t.Errorf("%d bytes of 300", b.next)
		}
	})
}

// TestASideWithBothFINsThroughGetsEverythingBeforeAReset: HUP says that both FINs are through, not that it is dead.
func TestASideWithBothFINsThroughGetsEverythingBeforeAReset(t *testing.T) {
	play(t, RelayOptions{}, func(w *world) {
		c, b := w.client, w.session.backend
		c.peerSends(10)
		c.peerFIN()
		c.room = 100
		b.peerSends(300)
		w.lives() // the backend has its FIN
		b.peerFIN()
		w.lives()
		c.peerReset(unix.ECONNRESET)
		w.lives() // the backend has not received the 10 bytes
		b.peerReads(10)
		w.sleep(2 * tick * time.Millisecond)
		w.ends(ClientRST)
	})
}

func TestAResetAfterBothFINsOfASlowSessionIsSeen(t *testing.T) {
	play(t, RelayOptions{}, func(w *world) {
		c, b := w.client, w.session.backend
		b.room = 100
		c.peerSends(300)
		c.peerFIN()
		b.peerSends(1)
		b.peerFIN()
		w.lives() // the backend is slow, and the client has not received its byte
		c.peerReset(unix.ECONNRESET)
		for range 3 {
			b.peerReads(100)
			w.quiesce()
		}
		w.sleep(2 * tick * time.Millisecond)
		w.ends(ClientRST)
		if b.next != 300 {
			t.Errorf("%d bytes of 300", b.next)
		}
	})
}

// TestTheEndAfterAResetIsPunctual: it comes as soon as the other side has everything, also for a relay that has just started.
func TestTheEndAfterAResetIsPunctual(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.far = farRegistered
		w.near.OnReset(func() {})
		x := w.connect()
		x.backend.peerSends(50)
		x.backend.peerReset(unix.ECONNRESET)
		w.concurrently() // no event will come after the start
		x.start()
		w.lives()
		w.client.peerReads(50)
		w.sleep(2 * tick * time.Millisecond)
		w.ends(BackendRST)
		w.finish()
	})
}

func TestAFINDoesNotPutOffOtherLimits(t *testing.T) {
	for name, test := range map[string]struct {
		options RelayOptions
		cause   Cause
	}{
		"session": {RelayOptions{Session: 2 * time.Second, HalfClose: time.Hour}, SessionTimeout},
		"idle":    {RelayOptions{Idle: 2 * time.Second, HalfClose: time.Hour}, IdleTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, test.options, func(w *world) {
				w.quiesce()
				w.client.peerFIN()
				w.lives()
				w.sleep(1700 * time.Millisecond)
				w.lives()
				w.sleep(600 * time.Millisecond)
				w.ends(test.cause)
			})
		})
	}
}

func TestIdleBeyondTheHorizonOfTheWheel(t *testing.T) {
	play(t, RelayOptions{Idle: time.Minute, HalfClose: 2 * time.Minute}, func(w *world) {
		w.sleep(59 * time.Second)
		w.lives()
		w.client.peerSends(1)
		w.quiesce()
		w.session.backend.peerReads(1)
		w.sleep(59*time.Second + 900*time.Millisecond)
		w.lives()
		w.sleep(200 * time.Millisecond)
		w.ends(IdleTimeout)
	})
}

// TestUnusedTellsTheNextOwnerOfAReset: the relay that lets go of the client has taken the event.
func TestUnusedTellsTheNextOwnerOfAReset(t *testing.T) {
	play(t, RelayOptions{}, func(w *world) {
		w.lives()
		w.again = 1
		w.session.backend.peerReset(unix.ECONNRESET)
		w.client.peerSends(10)
		w.client.peerReset(unix.ECONNRESET)
		w.dispatch(w.loops[0], 1)
		if len(w.sessions) != 2 {
			t.Fatal("nobody was asked about the unused backend")
		}
		told := false
		w.near.OnReset(func() { told = true })
		if !told {
			t.Error("nobody was told of the reset")
		}
	})
}

func TestABackendThatHasEndedIsNotKept(t *testing.T) {
	play(t, RelayOptions{KeepBackend: true}, func(w *world) {
		c, b := w.client, w.session.backend
		w.stream(b, c)
		c.room = 4 << 20
		b.peerSends(3 << 20)
		b.peerFIN()
		w.dispatch(w.loops[0], 1) // it moves a part of that
		c.peerFIN()
		w.dispatch(w.loops[0], 1)
		if !b.shut {
			t.Error("the FIN of the client was kept from the backend")
		}
	})
}

func TestKilledBeforeTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		x := w.connect()
		w.killed = true
		x.link.Kill()
		w.client.peerSends(1)
		x.start()
		w.ends(Killed)
		if x.backend.took != 0 || !w.client.wasReset {
			t.Errorf("client %s, backend %s", w.client, x.backend)
		}
		w.finish()
	})
}

// TestOneTurnDoesNotStarveOthers: a stream that never ends gives way after each turn.
func TestOneTurnDoesNotStarveOthers(t *testing.T) {
	play(t, RelayOptions{}, func(w *world) {
		c, b := w.client, w.session.backend
		w.stream(c, b)
		c.peerSends(3 << 20)
		b.room = 4 << 20
		was := b.took
		w.dispatch(w.loops[0], 1)
		if n := b.took - was; n < turnBytes || n > turnBytes+pipeSize {
			t.Errorf("the first turn moved %d bytes", n)
		}
		if len(w.loops[0].again) != 1 {
			t.Error("the relay does not want another turn")
		}
	})
}

// TestWhatTheClientSendsWhileUnusedIsAskedIsNotMissed: the connection is in no relay then.
func TestWhatTheClientSendsWhileUnusedIsAskedIsNotMissed(t *testing.T) {
	play(t, RelayOptions{}, func(w *world) {
		w.lives()
		c, b := w.client, w.session.backend
		w.k.meanwhile = func() {
			if w.near.relay.Load() == nil {
				c.peerSends(10)
				w.concurrently()
			}
		}
		b.peerFIN()
		w.lives()
		w.k.meanwhile = nil
		if b.next != 10 {
			t.Errorf("%d bytes of 10", b.next)
		}
	})
}

// TestAResetIsNotAheadOfALongStream: the backend has sent more than a turn moves, and a write has told of its reset.
func TestAResetIsNotAheadOfALongStream(t *testing.T) {
	play(t, RelayOptions{}, func(w *world) {
		c, b := w.client, w.session.backend
		w.lives()
		c.room = 4 << 20
		w.k.moved = func(s *fakeSocket) { s.got = s.took } // and nothing waits in the kernel
		const size = 3 << 20
		c.peerSends(10)
		b.peerSends(size)
		b.peerReset(unix.ECONNRESET)
		w.ends(BackendRST)
		if c.got != size {
			t.Errorf("%d bytes of %d", c.got, size)
		}
	})
}

func TestTheFirstCauseWins(t *testing.T) {
	play(t, RelayOptions{}, func(w *world) {
		c, b := w.client, w.session.backend
		c.peerSends(10)
		c.peerReset(unix.ETIMEDOUT)
		w.lives() // the backend has not received the 10 bytes
		b.peerReset(unix.ECONNRESET)
		w.ends(ClientRST)
	})
}

// TestAKeptBackendIsReadByItsNextRelay: the event that told of the bytes went to the one before.
func TestAKeptBackendIsReadByItsNextRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.options.KeepBackend = true
		x := w.connect()
		b := x.link.backend
		first := &keeper{options: w.options}
		x.link.handler = first
		x.start()
		w.quiesce()
		x.backend.peerSends(70)
		b.pending.Or(unix.EPOLLIN)
		w.k.wait(1, make([]unix.EpollEvent, 8))
		w.near.flags |= blocked // so that it is not read
		w.client.peerFIN()
		w.dispatch(w.loops[0], 8)
		if first.result.Backend != Conn(b) || x.backend.taken != 0 {
			t.Fatalf("the backend was not kept, or was read: %+v", first.result)
		}
		client := w.k.socket(fakeNoise, 1000)
		opposite(client, x.backend)
		second := &keeper{}
		w.e.Relay(w.conn(client, w.loops[0]), b, second).Start()
		if client.took != 70 {
			t.Errorf("%d bytes of 70", client.took)
		}
		client.peerFIN()
		x.backend.peerFIN()
		for w.dispatch(w.loops[0], 8) {
		}
		if second.result.Cause == 0 || !client.closed || !x.backend.closed {
			t.Errorf("the second session ended with %+v", second.result)
		}
		w.empty()
	})
}

// A keeper is a Handler that keeps what it is told.
type keeper struct {
	options RelayOptions
	result  Result
}

func (k *keeper) Options() *RelayOptions  { return &k.options }
func (k *keeper) Unused(Conn, Cause) bool { return false }
func (k *keeper) Ended(r Result)          { k.result = r }
