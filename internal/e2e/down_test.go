//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// quickTCP probes without a word.
const quickTCP = `interval: 200ms, fast_interval: 100ms, timeout: 500ms, rise: 2, fall: 2, hold_down: {base: 0s}`

// idle opens n sessions with one exchange each, and returns them by the backend that serves.
func (s *storm) idle(n int) map[string][]net.Conn {
	s.t.Helper()
	all := make(map[netip.Addr]net.Conn)
	for range n {
		c := newClient(s.next.Add(1), rand.New(rand.NewPCG(s.seed, 2)), "silent")
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: c.from.AsSlice()}}
		conn, err := d.Dial("tcp", s.at["main"])
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { conn.Close() })
		var b [64]byte
		upStream(c.session).fill(b[:])
		fmt.Fprint(conn, request{c.session, echo64, 1 << 40, 1 << 40})
		conn.Write(b[:])
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			s.t.Fatal(err)
		}
		all[c.from] = conn
	}
	by := make(map[string][]net.Conn)
	for _, x := range s.sessions() {
		a, err := netip.ParseAddrPort(x.Client)
		if err != nil {
			s.t.Fatal(err)
		}
		by[x.Backend] = append(by[x.Backend], all[a.Addr()])
	}
	return by
}

// ends waits until all of these were reset, and returns after how long each was.
func (s *storm) ends(conns []net.Conn, since time.Time) []time.Duration {
	s.t.Helper()
	took := make([]time.Duration, len(conns))
	var waiting sync.WaitGroup
	for i, c := range conns {
		waiting.Go(func() {
			c.SetReadDeadline(since.Add(20 * time.Second))
			_, err := c.Read(make([]byte, 1))
			if took[i] = time.Since(since); outcome(err) != "reset" {
				s.t.Errorf("session %d of a backend that went down: %v", i, err)
			}
		})
	}
	waiting.Wait()
	slices.Sort(took)
	return took
}

func TestSessionsOfABackendThatWentDown(t *testing.T) {
	const window = 3 * time.Second
	for policy, even := range map[string]bool{"cut": false, "spread": true} {
		t.Run(policy, func(t *testing.T) {
			s := newStorm(t, 2, func(b []*server) string {
				return fmt.Sprintf(`
listeners: {main: {address: "127.0.0.1:0", group: main}}
groups: {main: {backends: [{name: b1, address: %q}, {name: b2, address: %q}], on_down: %s, health: {%s}}}
drain: {timeout: 3s}
`, b[0].address, b[1].address, policy, quickTCP)
			})
			idle := s.idle(60)
			if len(idle["b1"]) != 30 || len(idle["b2"]) != 30 {
				t.Fatalf("%d and %d sessions", len(idle["b1"]), len(idle["b2"]))
			}
			s.servers[0].tell("refuse")
			eventually(t, soon, "the backend is down", func() bool { return s.usable("main") == 1 })
			took := s.ends(idle["b1"], time.Now())
			first, last := took[0], took[len(took)-1]
			t.Logf("the first ended after %v, half after %v, the last after %v", first, took[15], last)
			// How evenly is for the tests of package proxy: here the machine may be busy.
			if !even && last > window {
				t.Errorf("the last session ended after %v", last)
			}
			if even && (took[15] < window/8 || took[15] > window || last > 2*window) {
				t.Errorf("half of the sessions ended after %v, the last after %v: not spread over %v", took[15], last, window)
			}
			for i, c := range idle["b2"] {
				c.SetReadDeadline(time.Now())
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("session %d of the other backend: %v", i, err)
				}
			}
			eventually(t, soon, "the journal has them", func() bool { return len(readJournal(t, s.journal)) == 30 })
			for _, records := range readJournal(t, s.journal) {
				if r := records[0]; r.Reason != "on_down" || r.Backend != "b1" {
					t.Errorf("a session ended: %+v", r)
				}
			}
		})
	}
}

// A backend that came up gets its share little by little.
func TestSlowStart(t *testing.T) {
	s := newStorm(t, 2, func(b []*server) string {
		return fmt.Sprintf(`
listeners: {greet: {address: "127.0.0.1:0", group: main}}
groups: {main: {backends: [{name: b1, address: %q}, {name: b2, address: %q}], balance: round_robin, slow_start: 4s, health: {%s}}}
drain: {timeout: 1s}
`, b[0].greets, b[1].greets, quickTCP)
	})
	b := s.servers[1]
	b.tell("refuse")
	eventually(t, soon, "the backend is down", func() bool { return s.usable("main") == 1 })
	b.tell("accept")
	eventually(t, soon, "the backend is up", func() bool { return s.usable("main") == 2 })
	start := time.Now()
	r := rand.New(rand.NewPCG(s.seed, 2))
	share := func(until time.Duration, least float64) float64 {
		var all, its float64
		for time.Since(start) < until || all < least {
			c := s.begin(t.Context(), r, "greeted")
			<-c.done
			if all++; strings.HasPrefix(c.greeting, "HELLO b2") {
				its++
			}
			<-time.After(2 * time.Millisecond)
		}
		return its / all
	}
	early, middle := share(time.Second, 1), share(3*time.Second, 1)
	share(4500*time.Millisecond, 0)
	full := share(5*time.Second, 100)
	t.Logf("share of the sessions: %.2f in the first second, %.2f in the next two, %.2f at the end", early, middle, full)
	if early > 0.25 || middle < early || middle > 0.45 || full < 0.45 || full > 0.55 {
		t.Errorf("its share is %.2f, %.2f and %.2f", early, middle, full)
	}
	s.settle()
}

// When too few backends are up to carry the load, all are used.
func TestMinUsableFailsOpen(t *testing.T) {
	s := newStorm(t, 4, func(b []*server) string {
		return fmt.Sprintf(`
listeners: {main: {address: "127.0.0.1:0", group: main}}
groups: {main: {backends: [{name: b1, address: %q}, {name: b2, address: %q}, {name: b3, address: %q}, {name: b4, address: %q}], balance: round_robin,
  connect: {attempts: 5}, health: {min_usable: 50, %s}}}
drain: {timeout: 1s}
`, b[0].address, b[1].address, b[2].address, b[3].address, quickTCP)
	})
	r := rand.New(rand.NewPCG(s.seed, 2))
	attempts := func() (most int) {
		first := s.next.Load() + 1
		for range 40 {
			<-s.begin(t.Context(), r, "short").done
		}
		eventually(t, soon, "the journal has every session", func() bool { return len(readJournal(t, s.journal)) == int(s.next.Load()) })
		journal := readJournal(t, s.journal)
		for _, c := range s.ledger.clients[first-1:] {
			most = max(most, journal[c.from][0].Attempts)
		}
		return most
	}
	s.servers[0].tell("refuse")
	eventually(t, soon, "one backend is down", func() bool { return s.usable("main") == 3 })
	if n := attempts(); n != 1 {
		t.Errorf("with three of four backends up a session took %d attempts", n)
	}
	s.servers[1].tell("refuse")
	s.servers[2].tell("refuse")
	eventually(t, soon, "all backends are used", func() bool { return s.usable("main") == 4 })
	if n := attempts(); n < 2 {
		t.Errorf("with one of four backends up a session took %d attempts: the others are not tried", n)
	}
	s.settle()
}
