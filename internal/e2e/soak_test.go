//go:build linux

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tproxy/tproxy/internal/stage"
)

// The soak: every kind of session under faults of every kind, one or two at a time. A ledger of what clients, backends and the journal
// say shows that nothing was lost, changed or cut but by a fault that may.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 20 s")
	}
	const sessions, backends = 400, 100 // the limits
	// Real servers are witnesses.
	var listeners, groups, spares []string
	witness := func(name, address, more string) {
		listeners = append(listeners, fmt.Sprintf(`%s: {address: "127.0.0.1:0", group: %[1]s}`, name))
		groups = append(groups, fmt.Sprintf(`%s: {backends: [{name: %[1]s, address: %q, max_connections: %d}], hold: 5s, %s}`, name, address, backends, more))
	}
	if installed("redis-server") {
		host, port := startRedis(t)
		witness("redis", net.JoinHostPort(host, port), `pool: {reset: {send: "RESET\r\n", expect: "+RESET\r\n"}}`)
	}
	if installed("/usr/lib/postgresql/*/bin/initdb") {
		pg := startPostgreSQL(t, "authentication_timeout=6s", fmt.Sprintf("max_connections=%d", 3*backends))
		witness("postgres", pg.address, `pool: {warm: 3, max_age: 2s, refill_rate: 0}`)
		spares = append(spares, pg.address)
	}
	var more []place
	if away, err := far(t, 20*time.Millisecond); err == nil {
		more = append(more, away)
	} else {
		t.Logf("no backend is far away: %v", err)
	}
	config := func(b []*server, variant int) string {
		var plain, greets []string
		for _, s := range b {
			plain = append(plain, fmt.Sprintf("{name: %s, address: %q, max_connections: %d}", s.name, s.address, backends))
			greets = append(greets, fmt.Sprintf("{name: %s, address: %q, max_connections: %d}", s.name, s.greets, backends))
		}
		return fmt.Sprintf(`
listeners:
  main: {address: "127.0.0.1:0", group: main, max_connections: %d, timeouts: {idle: %dm}}
  greet: {address: "127.0.0.1:0", group: greet}
  preface: {address: "127.0.0.1:0", group: main, proxy_protocol: {accept: require, trusted: ["0.0.0.0/0"]}, timeouts: {preface: 1s}}
  %s
groups:
  main: {backends: [%s], hold: 5s, %s}
  greet: {backends: [%s], balance: round_robin, hold: 5s, pool: {warm: 4, refill_rate: 0}, health: {interval: 300ms, fast_interval: 100ms, timeout: 500ms, fall: 2, hold_down: {base: 0s}}}
  %s
drain: {timeout: 60s}
`, sessions, 10+variant%2, strings.Join(listeners, "\n  "), strings.Join(plain, ", "), quickHealth, strings.Join(greets, ", "), strings.Join(groups, "\n  "))
	}
	s := newStorm(t, 4, func(b []*server) string { return config(b, 0) }, more...)
	for _, b := range s.servers {
		spares = append(spares, b.greets)
	}

	// Once through everything, and then everything comes back to this.
	r := rand.New(rand.NewPCG(s.seed, 3))
	for range 3 {
		for _, k := range kinds {
			s.begin(t.Context(), r, k.name)
		}
	}
	s.running.Wait()
	eventually(t, soon, "the first sessions are over", func() bool { return s.active() == 0 })
	descriptors, goroutines, memory := s.descriptors(), s.metric("go_goroutines", ""), s.resident()

	ctx, stop := context.WithTimeout(t.Context(), duration(14*time.Second))
	defer stop()
	loaded, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(loaded)
		s.load(ctx, 60, func(*rand.Rand) string { return "" })
	}()
	go func() {
		defer close(watched)
		s.watchLimits(ctx)
	}()
	f := &faults{storm: s, spares: spares, config: func(variant int) string { return s.logged(config(s.servers, variant)) }}
	f.upgrades = f.misupgraded(nil) != nil
	for ctx.Err() == nil {
		f.strike(ctx)
	}
	<-loaded
	<-watched
	last := f.oneOfEach()
	s.settle()
	f.countersAgree(last)

	eventually(t, soon, "descriptors are back", func() bool { return s.descriptors() <= descriptors+8 })
	eventually(t, soon, "goroutines are back", func() bool { return s.metric("go_goroutines", "") <= goroutines+8 })
	t.Logf("descriptors %d then %d, goroutines %v then %v, resident %d KiB then %d KiB", descriptors, s.descriptors(), goroutines,
		s.metric("go_goroutines", ""), memory>>10, s.resident()>>10)
	if n := s.resident(); n > memory+memory/2+16<<20 {
		t.Errorf("%d KiB are resident, %d at the beginning", n>>10, memory>>10)
	}
}

// installed reports whether there is a program; CI has all.
func installed(program string) bool {
	_, err := exec.LookPath(program)
	found, _ := filepath.Glob(program)
	return err == nil || len(found) > 0 || os.Getenv("CI") != ""
}

// watchLimits fails the test when a limit is exceeded.
func (s *storm) watchLimits(ctx context.Context) {
	for ctx.Err() == nil {
		wait(ctx, 100*time.Millisecond)
		st := s.status()
		for _, l := range st.Listeners {
			if l.Active > l.Limit {
				s.t.Errorf("listener %s has %d of %d sessions", l.Name, l.Active, l.Limit)
			}
		}
		for _, g := range st.Groups {
			for _, b := range g.Backends {
				if n := b.Active + b.Spares; n > b.MaxConnections {
					s.t.Errorf("backend %s/%s has %d of %d connections", g.Name, b.Name, n, b.MaxConnections)
				}
			}
		}
	}
}

// faults makes them.
type faults struct {
	*storm
	spares   []string // where spares are connected to
	config   func(variant int) string
	variant  int
	upgrades bool // this program can
}

// A faultKind is a way to make a fault, of one backend or of anything else.
type faultKind struct {
	strike func(*server) *incident
	alone  bool // never together with another
}

func (f *faults) kinds() []faultKind {
	all := []faultKind{{strike: f.killed}, {strike: f.stopped}, {strike: f.refusing}, {strike: f.descriptorsGone}, {strike: f.paused}, {strike: f.reloaded},
		{strike: f.misconfigured}, {strike: f.drained}}
	if stage.Apart() {
		if _, err := exec.LookPath("ss"); err == nil {
			all = append(all, faultKind{strike: f.destroyed}, faultKind{strike: f.sparesDestroyed})
		}
		if _, err := exec.LookPath("nft"); err == nil {
			all = append(all, faultKind{strike: f.dropped}, faultKind{strike: f.rejected}, faultKind{strike: f.lossy})
		}
		if _, err := exec.LookPath("tc"); err == nil {
			all = append(all, faultKind{strike: f.shaped})
		}
	}
	if f.upgrades {
		// A successor has the descriptor limit of who starts it.
		all = append(all, faultKind{f.upgraded, true}, faultKind{f.misupgraded, true})
	}
	return all
}

// strike makes one fault or two, ends them, and sees that the proxy recovers within two seconds.
func (f *faults) strike(ctx context.Context) {
	f.t.Helper()
	kinds := f.kinds()
	f.dice.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	order := f.dice.Perm(len(f.servers))
	var now []*incident
	for i := range 1 + f.dice.IntN(2) {
		if i > 0 && (kinds[0].alone || kinds[1].alone) {
			break
		}
		now = append(now, kinds[i].strike(f.servers[order[i]]))
		wait(ctx, time.Duration(f.dice.IntN(300))*time.Millisecond)
	}
	wait(ctx, time.Duration(100+f.dice.IntN(900))*time.Millisecond)
	for _, i := range now {
		f.over(i)
	}
	f.recover(now)
	wait(ctx, time.Duration(f.dice.IntN(300))*time.Millisecond)
}

// recover fails the test unless all backends are usable and new sessions work two seconds after a fault.
func (f *faults) recover(after []*incident) {
	f.t.Helper()
	var sessions []*client
	f.within(2*time.Second, func() string {
		if sessions == nil {
			if what := f.unusable(len(f.servers)); what != "" {
				return fmt.Sprintf("%s, after %v", what, after)
			}
			sessions = f.oneOfEach()
		}
		for _, c := range sessions {
			select {
			case <-c.done:
			default:
				return fmt.Sprintf("session %d (%s) goes on, after %v", c.session, c.kind, after)
			}
		}
		return ""
	})
}

// oneOfEach begins a session at each listener.
func (f *faults) oneOfEach() (all []*client) {
	for _, kind := range []string{"short", "greeted", "garbage", "redis", "postgres"} {
		all = append(all, f.begin(f.t.Context(), rand.New(rand.NewPCG(f.seed, uint64(f.next.Load()))), kind))
	}
	return all
}

func (f *faults) descriptorsGone(*server) *incident {
	i := f.incident("no descriptors", "", false)
	var before unix.Rlimit
	pid := f.pid()
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &before); err != nil {
		f.t.Fatal(err)
	}
	low := unix.Rlimit{Cur: uint64(f.descriptors() + 8), Max: before.Max}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &low, nil); err != nil {
		f.t.Fatal(err)
	}
	i.end = func() {
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &before, nil); err != nil {
			f.t.Error(err)
		}
	}
	return i
}

func (f *faults) paused(*server) *incident {
	i := f.incident("the proxy is stopped", "", false)
	pid := f.pid()
	syscall.Kill(pid, syscall.SIGSTOP)
	time.Sleep(time.Second)
	syscall.Kill(pid, syscall.SIGCONT)
	return i
}

func (f *faults) reloaded(*server) *incident {
	i := f.incident("reload", "", false)
	f.variant++
	f.configure(f.config(f.variant))
	if code, text := f.call(http.MethodPost, "/api/v1/reload", ""); code != http.StatusOK {
		f.t.Errorf("reload: %d\n%s", code, text)
	}
	return i
}

func (f *faults) misconfigured(*server) *incident {
	i := f.incident("reload of a bad file", "", false)
	f.configure(f.config(f.variant) + "\nnonsense: [\n")
	if code, text := f.call(http.MethodPost, "/api/v1/reload", ""); code == http.StatusOK {
		f.t.Errorf("a bad file is loaded: %s", text)
	}
	f.configure(f.config(f.variant))
	return i
}

func (f *faults) upgraded(*server) *incident {
	i := f.incident("upgrade", "", false)
	if code, text := f.upgrade(); code != http.StatusOK {
		f.t.Errorf("upgrade: %d\n%s", code, text)
	}
	return i
}

// misupgraded returns nil where the program has no upgrade.
func (f *faults) misupgraded(*server) *incident {
	i := f.incident("upgrade with a bad file", "", false)
	f.configure(f.config(f.variant) + "\nnonsense: [\n")
	defer func() { f.configure(f.config(f.variant)) }()
	switch code, text := f.upgrade(); code {
	case http.StatusNotImplemented:
		return nil
	case http.StatusOK:
		f.t.Errorf("an upgrade with a bad file is done: %s", text)
	}
	return i
}

func (f *faults) drained(b *server) *incident {
	i := f.incident("drain", b.name, false)
	state := func(word string) {
		for _, group := range []string{"main", "greet"} {
			path := "/api/v1/groups/" + group + "/backends/" + b.name
			if code, text := f.call(http.MethodPatch, path, `{"state": "`+word+`"}`); code != http.StatusOK {
				f.t.Errorf("%s: %d\n%s", word, code, text)
			}
		}
	}
	state("drain")
	i.end = func() { state("ready") }
	return i
}

// destroyed ends a few TCP connections, at whichever end.
func (f *faults) destroyed(*server) *incident {
	return f.destroy("sockets destroyed", func([]string) bool { return true })
}

// sparesDestroyed ends a few on which the proxy has sent nothing to a backend yet. A client may get one of them at that moment, and what a
// client has read of its backend cannot come from another.
func (f *faults) sparesDestroyed(*server) *incident {
	return f.destroy("spares destroyed", func(socket []string) bool {
		return slices.Contains(f.spares, socket[3]) && !slices.ContainsFunc(socket, func(s string) bool { return strings.HasPrefix(s, "bytes_sent:") })
	})
}

// destroy ends up to five of the TCP connections that match, each of which may have a session.
func (f *faults) destroy(name string, match func(socket []string) bool) *incident {
	i := f.incident(name, "", true)
	out, err := exec.Command("ss", "-HtniO", "state", "established").Output()
	if err != nil {
		f.t.Fatal(err)
	}
	var found [][]string
	for line := range strings.Lines(string(out)) {
		if a := strings.Fields(line); len(a) >= 4 && match(a) { // queue lengths, the two addresses, details
			found = append(found, a)
		}
	}
	f.dice.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	for _, a := range found[:min(5, len(found))] {
		if out, err := exec.Command("ss", "-K", "-Htn", "state", "established", "src", a[2], "dst", a[3]).CombinedOutput(); err != nil {
			f.t.Fatalf("ss -K: %v\n%s", err, out)
		}
		i.sockets++
	}
	return i
}

// dropped loses every packet to a backend, and rejected answers every connect with a reset. Neither cuts a session.

func (f *faults) dropped(b *server) *incident {
	return f.filtered("packets dropped", b, "drop")
}

func (f *faults) rejected(b *server) *incident {
	return f.filtered("connects rejected", b, "tcp flags & (syn|ack) == syn reject with tcp reset")
}

func (f *faults) filtered(name string, b *server, rule string) *incident {
	_, first, _ := net.SplitHostPort(b.address)
	_, second, _ := net.SplitHostPort(b.greets)
	return f.filter(f.incident(name, b.name, false), b.name, fmt.Sprintf("ip daddr %s tcp dport { %s, %s } %s", b.here, first, second, rule))
}

// lossy loses packets of everybody, but no reset: a reset comes once, and who missed it has nothing but timers.
func (f *faults) lossy(*server) *incident {
	return f.filter(f.incident("packets lost", "", false), "loss", fmt.Sprintf("meta l4proto tcp tcp flags & rst == 0 numgen random mod 100 < %d drop", 1+f.dice.IntN(10)))
}

// filter applies a rule to packets that arrive, until the incident ends.
func (f *faults) filter(i *incident, table, rule string) *incident {
	nft := func(script string) {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			f.t.Errorf("nft: %v\n%s%s", err, script, out)
		}
	}
	nft(fmt.Sprintf("table ip %s {\n chain in {\n type filter hook input priority 0;\n %s\n }\n}\n", table, rule))
	i.end = func() { nft("delete table ip " + table + "\n") }
	return i
}

// shaped makes the network slow. What is too much waits and is not lost: the queue stays afterwards, with a rate that nobody reaches.
func (f *faults) shaped(*server) *incident {
	i := f.incident("network shaped", "", false)
	rate := func(r string) {
		if out, err := exec.Command("tc", "qdisc", "replace", "dev", "lo", "root", "handle", "1:", "tbf", "rate", r, "burst", "1mb", "limit", "256mb").CombinedOutput(); err != nil {
			f.t.Errorf("tc: %v\n%s", err, out)
		}
	}
	rate(fmt.Sprintf("%dmbit", 20+f.dice.IntN(100)))
	i.end = func() { rate("40gbit") }
	return i
}

// countersAgree compares the counters of the process that serves with its part of the journal. A server numbers its sessions from a random
// number on, so its are those near to one that it is known to have had, of which own has one for each server.
func (f *faults) countersAgree(own []*client) {
	f.t.Helper()
	journal := readJournal(f.t, f.journal)
	var up, down, sessions int64
	for _, records := range journal {
		for _, r := range records {
			if !slices.ContainsFunc(own, func(c *client) bool {
				k := journal[c.from]
				return len(k) == 1 && max(r.Session, k[0].Session)-min(r.Session, k[0].Session) < 1<<24
			}) {
				continue
			}
			sessions++
			up += r.Up
			down += r.Down
		}
	}
	f.t.Logf("%d of %d sessions were of the last process", sessions, len(journal))
	for _, m := range []struct {
		name, label string
		want        int64
	}{
		{"tproxy_sessions_total", "", sessions},
		{"tproxy_bytes_total", `direction="up"`, up},
		{"tproxy_bytes_total", `direction="down"`, down},
	} {
		if got := int64(f.metric(m.name, m.label)); got != m.want {
			f.t.Errorf("%s{%s} is %d, the journal has %d", m.name, m.label, got, m.want)
		}
	}
}
