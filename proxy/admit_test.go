package proxy

import (
	"testing"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/internal/reactor"
)

// A bell is a reactor.Listener that counts how often it was told to look again.
type bell struct {
	reactor.Listener
	rung int
}

func (b *bell) Resume() { b.rung++ }

// newAdmission is a server of one group without a socket, and two acceptors of it that are open.
func newAdmission(t *testing.T, set Settings) (s *Server, a, b *acceptor, rung *bell) {
	t.Helper()
	e, err := NewEngine("portable")
	if err != nil {
		t.Fatal(err)
	}
	bg, err := backend.NewGroup(backend.GroupConfig{Name: "g"})
	if err != nil {
		t.Fatal(err)
	}
	set.Group = &Group{Backends: bg}
	s = &Server{Settings: set, Engine: e}
	if err := s.init(); err != nil {
		t.Fatal(err)
	}
	rung = new(bell)
	s.listeners.Store(&[]*Listener{{server: s, socket: rung}})
	a, b = &acceptor{server: s}, &acceptor{server: s}
	a.open.Store(true)
	b.open.Store(true)
	return s, a, b, rung
}

// One of two listeners takes the last slot and finds that no client is there; the other must look again.
func TestUnreserveWakesTheOtherListener(t *testing.T) {
	_, a, b, rung := newAdmission(t, Settings{MaxConnections: 1})
	if !a.Reserve() || b.Reserve() {
		t.Fatal("one slot must be had once")
	}
	a.Unreserve()
	if rung.rung == 0 {
		t.Error("nobody was told of the slot")
	}
	if !b.Reserve() {
		t.Error("the slot is lost")
	}
}

func TestNothingIsReservedBeforeStart(t *testing.T) {
	s, a, _, _ := newAdmission(t, Settings{})
	a.open.Store(false)
	if a.Reserve() {
		t.Error("reserved")
	}
	if n := s.Limit.Active(); n != 0 {
		t.Errorf("%d counted", n)
	}
}

func TestRefusedReservationHoldsNothing(t *testing.T) {
	s, a, b, _ := newAdmission(t, Settings{MaxConnections: 1})
	if !a.Reserve() || b.Reserve() {
		t.Fatal("one slot must be had once")
	}
	if n := s.Limit.Active(); n != 1 {
		t.Errorf("the limit counts %d", n)
	}
	s.Limit.SetMax(1)
	a.Unreserve()
	if !b.Reserve() || a.Reserve() {
		t.Error("one slot must be had once")
	}
	if n := s.count.n.Load(); n != 1 {
		t.Errorf("the server counts %d", n)
	}
}

// Whoever is rejected holds a place in the limit until it is gone, and none in the server.
func TestRejectedIsNotCountedByTheServer(t *testing.T) {
	s, a, b, _ := newAdmission(t, Settings{MaxConnections: 1, RejectWhenFull: true})
	if !a.Reserve() || !b.Reserve() {
		t.Fatal("not reserved")
	}
	if !a.counted || b.counted || s.count.n.Load() != 1 || s.Limit.Active() != 2 {
		t.Errorf("counted %v and %v, %d by the server, %d by the limit", a.counted, b.counted, s.count.n.Load(), s.Limit.Active())
	}
	b.Unreserve()
	a.Unreserve()
	if s.count.n.Load() != 0 || s.Limit.Active() != 0 {
		t.Errorf("%d left in the server, %d in the limit", s.count.n.Load(), s.Limit.Active())
	}
}

// A doorman is a reactor.Listener that looks, while it closes, whether its server still knows it.
type doorman struct {
	reactor.Listener
	server *Server
	known  bool
}

func (d *doorman) Close() error {
	d.known = len(d.server.Listeners()) == 1
	return nil
}

// Shutdown, called meanwhile, must wait for a listener that can still accept.
func TestListenerIsKnownUntilItIsClosed(t *testing.T) {
	s, a, _, _ := newAdmission(t, Settings{})
	d := &doorman{server: s}
	l := &Listener{server: s, socket: d, acceptor: a, closed: make(chan struct{})}
	s.listeners.Store(&[]*Listener{l})
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if !d.known || len(s.Listeners()) != 0 {
		t.Errorf("known while it closed: %v; left: %d", d.known, len(s.Listeners()))
	}
}
