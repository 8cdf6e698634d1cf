package reactor_test

import (
	"io"
	"sync"
	"testing"

	"github.com/tproxy/tproxy/internal/reactor"
)

// endBackend ends a backend that nobody has used.
func endBackend(s *session, cause reactor.Cause) {
	if cause == reactor.BackendRST {
		sendRST(s.backend)
	} else {
		s.backend.Close()
	}
}

var backendEnds = map[string]reactor.Cause{"FIN": reactor.BackendFIN, "RST": reactor.BackendRST}

func TestAnUnusedBackendIsReplaced(t *testing.T) {
	for name, cause := range backendEnds {
		t.Run(name, func(t *testing.T) {
			conform(t, func(t *testing.T, e reactor.Engine) {
				r := newRig(t, e)
				first := r.connect()
				first.unused = func(reactor.Cause) bool { return true }
				first.relay(reactor.RelayOptions{})
				endBackend(first, cause)
				if got := receive(t, first.asked, "the question"); got != cause {
					t.Errorf("asked about %s", causes[got])
				}
				second := first.again(r)
				second.relay(reactor.RelayOptions{})
				send(t, second.client, "hello")
				wantsNext(t, "the second backend", second.backend, "hello")
				send(t, second.backend, "welcome")
				second.backend.Close()
				wants(t, "the client", second.client, "welcome", endFIN)
				second.client.Close()
				second.result(reactor.BackendFIN)
				select {
				case res := <-first.ended:
					t.Errorf("the first relay has ended, too: %+v", res)
				default:
				}
				first.link.Kill() // is no business of it any more
			})
		})
	}
}

// again is a session of the same client with another backend.
func (s *session) again(r *rig) *session {
	s.t.Helper()
	far, backend := r.dialBackend(s.near)
	return &session{
		t: s.t, engine: s.engine, client: s.client, backend: backend, near: s.near, far: far,
		asked: make(chan reactor.Cause, 4), ended: make(chan reactor.Result, 4),
	}
}

func TestAnUnusedBackendThatIsNotReplacedEndsTheSession(t *testing.T) {
	for name, cause := range backendEnds {
		t.Run(name, func(t *testing.T) {
			conform(t, func(t *testing.T, e reactor.Engine) {
				s := newRig(t, e).open(reactor.RelayOptions{})
				endBackend(s, cause)
				if got := receive(t, s.asked, "the question"); got != cause {
					t.Errorf("asked about %s", causes[got])
				}
				how := endRST
				if cause == reactor.BackendFIN {
					how = endFIN
				}
				wants(t, "the client", s.client, "", how)
				s.client.Close()
				s.result(cause)
			})
		})
	}
}

// TestNoByteOfTheClientIsLostWithAnUnusedBackend: it had sent them before the relay started, or sends them just then.
func TestNoByteOfTheClientIsLostWithAnUnusedBackend(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		for i := range 60 {
			first := r.connect()
			first.unused = func(reactor.Cause) bool { return true }
			var sender sync.WaitGroup
			before := i%3 == 0
			if before {
				send(t, first.client, "hello")
				gone := make(chan struct{})
				first.far.OnReset(func() { close(gone) })
				sendRST(first.backend)
				receive(t, gone, "the reset")
				first.far.OnReset(nil)
				first.relay(reactor.RelayOptions{})
			} else {
				first.relay(reactor.RelayOptions{})
				sender.Go(func() { send(t, first.client, "hello") })
				endBackend(first, []reactor.Cause{reactor.BackendFIN, reactor.BackendRST}[i%2])
			}
			select {
			case <-first.asked:
				sender.Wait()
				second := first.again(r)
				second.relay(reactor.RelayOptions{})
				sendFIN(t, second.client)
				wants(t, "the second backend", second.backend, "hello", endFIN)
				second.backend.Close()
				wants(t, "the client", second.client, "", endFIN)
				second.result(reactor.ClientFIN)
			case res := <-first.ended:
				sender.Wait()
				if before || res.Up == 0 {
					t.Errorf("round %d: nobody was asked: %+v", i, res)
				}
			}
		}
	})
}

func TestABackendIsNotUnused(t *testing.T) {
	for name, exchange := range map[string]func(*testing.T, *session){
		"after a byte of the client": func(t *testing.T, s *session) {
			send(t, s.client, "a")
			wantsNext(t, "the backend", s.backend, "a")
		},
		"after a byte of its own": func(t *testing.T, s *session) {
			send(t, s.backend, "a")
			wantsNext(t, "the client", s.client, "a")
		},
		"after the FIN of the client": func(t *testing.T, s *session) {
			sendFIN(t, s.client)
			wants(t, "the backend", s.backend, "", endFIN)
		},
	} {
		for how, cause := range backendEnds {
			t.Run(name+", "+how, func(t *testing.T) {
				conform(t, func(t *testing.T, e reactor.Engine) {
					s := newRig(t, e).open(reactor.RelayOptions{})
					exchange(t, s)
					endBackend(s, cause)
					io.Copy(io.Discard, s.client)
					s.client.Close()
					receive(t, s.ended, "the end")
					select {
					case <-s.asked:
						t.Error("the Handler was asked")
					default:
					}
				})
			})
		}
	}
}

func TestABackendIsNotUnusedWhenTheClientIsGone(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).open(reactor.RelayOptions{})
		sendRST(s.client)
		wants(t, "the backend", s.backend, "", endRST)
		s.result(reactor.ClientRST)
		select {
		case <-s.asked:
			t.Error("the Handler was asked")
		default:
		}
	})
}
