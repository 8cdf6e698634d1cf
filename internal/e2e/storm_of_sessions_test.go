//go:build linux

package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	seedFlag = flag.Uint64("seed", 0, "seed of the faults and of the load; 0: from the clock")
	minutes  = flag.Float64("minutes", 0, "how long the tests under faults last, each; 0: their short form")
)

// A storm is a proxy under load in front of several backends, and the ledger of what happens.
type storm struct {
	*proxy
	seed    uint64
	dice    *rand.Rand // of the faults; the load has its own
	ledger  *ledger
	servers []*server
	journal string

	next    atomic.Uint64
	running sync.WaitGroup
	mu      sync.Mutex
	at      map[string]string // listeners
}

// newStorm starts n backends, those of more, and then a proxy with the configuration that config returns, which names no journal.
func newStorm(t *testing.T, n int, config func(servers []*server) string, more ...place) *storm {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", seed)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("again: go test ./internal/e2e -run '%s$' -v -seed %d -minutes %g", t.Name(), seed, *minutes)
		}
	})
	s := &storm{seed: seed, dice: rand.New(rand.NewPCG(seed, 1)), ledger: newLedger(t), journal: filepath.Join(t.TempDir(), "journal")}
	for i := range n {
		s.servers = append(s.servers, startServer(t, i+1, s.ledger.heard))
	}
	for i, p := range more {
		s.servers = append(s.servers, startServerAt(t, n+i+1, p, s.ledger.heard))
	}
	s.proxy = runProxy(t, 4096, s.logged(config(s.servers)))
	s.locate()
	return s
}

// logged adds the journal to a configuration.
func (s *storm) logged(config string) string {
	return config + fmt.Sprintf("\nlog: {format: json, sessions: {close: true, path: %q}}\n", s.journal)
}

// status is what these tests read of /api/v1/status.
type status struct {
	PID       int
	Listeners []struct {
		Name          string
		Addresses     []string
		Active, Limit int
	}
	Groups []struct {
		Name     string
		Usable   int
		Backends []struct {
			Name           string
			Up             bool
			State          string
			Active, Spares int
			MaxConnections int `json:"max_connections"`
		}
	}
}

func (p *proxy) status() (s status) {
	p.t.Helper()
	code, text := p.call(http.MethodGet, "/api/v1/status", "")
	if err := json.Unmarshal([]byte(text), &s); code != http.StatusOK || err != nil {
		p.t.Fatalf("status: %d, %v\n%s", code, err, text)
	}
	return s
}

// sessions are the open ones, a thousand at most.
func (p *proxy) sessions() []record {
	p.t.Helper()
	code, text := p.call(http.MethodGet, "/api/v1/sessions?limit=1000", "")
	var answer struct{ Sessions []record }
	if err := json.Unmarshal([]byte(text), &answer); code != http.StatusOK || err != nil {
		p.t.Fatalf("sessions: %d, %v\n%s", code, err, text)
	}
	return answer.Sessions
}

// active is the number of sessions, those in set-up too.
func (p *proxy) active() (n int) {
	for _, l := range p.status().Listeners {
		n += l.Active
	}
	return n
}

// locate learns where the listeners are.
func (s *storm) locate() {
	s.t.Helper()
	at := make(map[string]string)
	for _, l := range s.status().Listeners {
		at[l.Name] = l.Addresses[0]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = at
}

func (s *storm) listener(name string) (address string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	address, ok = s.at[name]
	return address, ok
}

// begin starts a session of a kind ("" for any) and returns at once.
func (s *storm) begin(ctx context.Context, r *rand.Rand, kind string) *client {
	n := s.next.Add(1)
	c := newClient(n, r, kind)
	address, ok := s.listener(c.listener)
	if !ok { // there is no such server
		c = newClient(n, r, "short")
		address, _ = s.listener(c.listener)
	}
	s.ledger.enter(c)
	s.running.Go(func() { c.run(ctx, address) })
	return c
}

// load begins so many sessions a second until the context ends.
func (s *storm) load(ctx context.Context, perSecond int, kind func(r *rand.Rand) string) {
	r := rand.New(rand.NewPCG(s.seed, 2))
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.begin(context.WithoutCancel(ctx), r, kind(r))
		case <-ctx.Done():
			return
		}
	}
}

// settle waits until every client and every session has ended, and verifies.
func (s *storm) settle() {
	s.t.Helper()
	s.running.Wait()
	eventually(s.t, soon, "all sessions are over", func() bool { return s.active() == 0 })
	// A backend says how a session ended a moment after the proxy knows.
	for _, b := range s.servers {
		b.tell("report")
	}
	// So does the journal. A session that it lacks even then is told of with everything else that is known of it.
	journal := readJournal(s.t, s.journal)
	for end := time.Now().Add(soon); len(journal) < int(s.next.Load()) && time.Now().Before(end); {
		<-time.After(100 * time.Millisecond)
		journal = readJournal(s.t, s.journal)
	}
	count := s.ledger.verify(journal)
	made := make(map[string]int)
	for _, f := range s.ledger.faults {
		made[f.name]++
	}
	s.t.Logf("sessions: %s; faults: %s", listed(count), cmp.Or(listed(made), "none"))
}

// listed is a count of things in words.
func listed(count map[string]int) string {
	var words []string
	for _, k := range slices.Sorted(maps.Keys(count)) {
		words = append(words, fmt.Sprintf("%d %s", count[k], k))
	}
	return strings.Join(words, ", ")
}

// duration is how long a test under faults lasts.
func duration(short time.Duration) time.Duration {
	if *minutes > 0 {
		return time.Duration(*minutes * float64(time.Minute))
	}
	return short
}

// usable is how many backends of a group may be chosen.
func (p *proxy) usable(group string) int {
	p.t.Helper()
	for _, g := range p.status().Groups {
		if g.Name == group {
			return g.Usable
		}
	}
	return 0
}
