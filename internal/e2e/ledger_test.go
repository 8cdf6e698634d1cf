//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A ledger is everything that clients, backends and the proxy say of the same sessions, and the faults that were made meanwhile.
type ledger struct {
	t *testing.T

	mu      sync.Mutex
	clients []*client
	reports map[uint64][]report // by session
	foul    []string            // what must not be, as backends say
	faults  []*incident

	byDestruction int // sessions that only a destroyed socket explains
}

// A report is what a backend says of one session at its end.
type report struct {
	backend  string
	up, down int64
	how      string
}

// An incident is one fault, from its begin until its effect has passed.
type incident struct {
	name     string
	backend  string // "": all
	cuts     bool   // it may cut sessions
	from, to time.Time
	end      func() // nil: it is over by itself
	sockets  int    // how many it destroyed, which had sessions
}

func (i *incident) String() string {
	return fmt.Sprintf("%s – %s %s %s", i.from.Format("15:04:05.000"), i.to.Format("15:04:05.000"), i.name, i.backend)
}

// A record is a line of the journal.
type record struct {
	Session                                        uint64 `json:",string"`
	Client, Group, Backend, Reason, Pool, Listener string
	Attempts                                       int
	Up, Down                                       int64
	Error                                          string
	Duration                                       float64 `json:"duration_ms"`
	FirstByte                                      float64 `json:"first_byte_ms"`
}

// during reports whether it and the session were at the same time.
func (i *incident) during(c *client) bool { return !i.from.After(c.ended) && !i.to.Before(c.started) }

// cuttable reports whether it may cut a session of that backend.
func (i *incident) cuttable(backend string) bool {
	return i.cuts && (i.backend == "" || i.backend == backend)
}

func newLedger(t *testing.T) *ledger { return &ledger{t: t, reports: make(map[uint64][]report)} }

// heard takes what a backend says.
func (l *ledger) heard(backend, line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var id uint64
	var temper string
	r := report{backend: backend}
	if n, _ := fmt.Sscanf(line, "end %d %s %d %d %s", &id, &temper, &r.up, &r.down, &r.how); n == 5 {
		l.reports[id] = append(l.reports[id], r)
		return
	}
	l.foul = append(l.foul, backend+": "+line)
}

func (l *ledger) enter(c *client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clients = append(l.clients, c)
}

func (l *ledger) fault(i *incident) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = append(l.faults, i)
}

// readJournal returns the records of closed sessions by the client's address; each session of these tests
// has one of its own.
func readJournal(t *testing.T, path string) map[netip.Addr][]record {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[netip.Addr][]record)
	for line := range strings.Lines(string(text)) {
		if !strings.HasSuffix(line, "\n") {
			break // still being written
		}
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("journal: %v: %s", err, line)
		}
		a, err := netip.ParseAddrPort(r.Client)
		if err != nil {
			t.Fatalf("journal: %v: %s", err, line)
		}
		all[a.Addr()] = append(all[a.Addr()], r)
	}
	return all
}

// verify compares what everybody says, once all have ended, and returns how many sessions ended how.
func (l *ledger) verify(journal map[netip.Addr][]record) map[string]int {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, f := range l.foul {
		if l.t.Errorf("a backend says: %s", f); i > 20 {
			break
		}
	}
	count := make(map[string]int)
	bad := 0
	for _, c := range l.clients {
		why := l.judge(c, journal[c.from])
		word := c.outcome
		switch {
		case why != "":
			word = "wrong"
		case !c.planned():
			word = "cut by a fault"
		case word != "clean":
			word = "ended as planned otherwise"
		}
		count[word]++
		if why != "" {
			if bad++; bad <= 5 {
				l.t.Errorf("session %d (%s): %s\n%s", c.session, c.kind, why, l.history(c, journal[c.from]))
			}
		}
	}
	destroyed := 0
	for _, f := range l.faults {
		destroyed += f.sockets
	}
	if l.byDestruction > destroyed {
		l.t.Errorf("%d sessions were cut that no backend's fault explains, and %d sockets were destroyed", l.byDestruction, destroyed)
	}
	if bad > 5 {
		l.t.Errorf("%d sessions are wrong in all", bad)
	}
	return count
}

// judge says what is wrong with a session, or "".
func (l *ledger) judge(c *client, records []record) string {
	if strings.HasPrefix(c.outcome, "dial") {
		return "a failed connect"
	}
	if len(records) != 1 {
		return fmt.Sprintf("%d journal records", len(records))
	}
	j := records[0]
	reports := l.reports[c.session]
	if len(reports) > 1 {
		return "two backends got bytes of it"
	}
	up, down := c.header+c.sent.Load(), int64(len(c.greeting))+c.got.Load()
	if j.Down < down {
		return fmt.Sprintf("the client got %d bytes, the journal has %d", down, j.Down)
	}
	if j.Up > up {
		return fmt.Sprintf("the client sent %d bytes, the journal has %d", up, j.Up)
	}
	if len(reports) == 1 {
		r := reports[0]
		switch {
		case r.how == "short" || strings.HasPrefix(r.how, "bad"):
			return "at the backend the stream ended " + r.how
		case r.up > j.Up:
			return fmt.Sprintf("the backend got %d bytes, the journal has %d", r.up, j.Up)
		case r.backend != j.Backend:
			return fmt.Sprintf("%s served, the journal has %s", r.backend, j.Backend)
		}
	}
	if !c.planned() {
		return l.unexcused(c, j)
	}
	switch {
	case c.kind == "garbage":
		if len(reports) > 0 || j.Up > 0 {
			return "garbage reached a backend"
		}
		if j.Reason != "preface_invalid" && j.Reason != "preface_timeout" {
			return "reason " + j.Reason
		}
		return ""
	case c.kind == "silent":
		if j.Up+j.Down > 0 {
			return "bytes from nowhere"
		}
		return ""
	case c.abort > 0:
		if j.Reason != "client_rst" && !l.cutAt(c, j.Backend) {
			return "the client reset, and the reason is " + j.Reason
		}
		return ""
	case c.temper == cut:
		if j.Reason != "backend_rst" && !l.cutAt(c, j.Backend) {
			return "the backend reset, and the reason is " + j.Reason
		}
		return ""
	}
	if c.witness != nil { // the lengths are what it sent and got
		c.up, c.down = c.sent.Load(), c.got.Load()
		reports = []report{{up: up, how: "clean"}}
	}
	switch {
	case j.Reason != "client_fin" && j.Reason != "backend_fin":
		return "clean, and the reason is " + j.Reason
	case c.sent.Load() != c.up || c.got.Load() != c.down:
		return fmt.Sprintf("sent %d of %d, got %d of %d bytes", c.sent.Load(), c.up, c.got.Load(), c.down)
	case j.Up != up || j.Down != down:
		return fmt.Sprintf("sent %d and got %d bytes, the journal has %d and %d", up, down, j.Up, j.Down)
	case len(reports) == 1 && (reports[0].up != up || reports[0].how != "clean"):
		return fmt.Sprintf("the backend got %d of %d bytes and ended %s", reports[0].up, up, reports[0].how)
	case len(reports) == 0 && !l.cutSince(c, j.Backend):
		return "the backend knows nothing of it"
	}
	return ""
}

// unexcused says why no fault explains that a session was cut.
func (l *ledger) unexcused(c *client, j record) string {
	if c.outcome != "reset" {
		return "ended " + c.outcome
	}
	if !l.cutAt(c, j.Backend) {
		return "cut, and no fault explains it; reason " + j.Reason
	}
	if j.Reason != "backend_rst" && j.Reason != "client_rst" {
		return "cut by a fault, and the reason is " + j.Reason
	}
	if !slices.ContainsFunc(l.faults, func(f *incident) bool { return f.cuts && f.backend == j.Backend && f.during(c) }) {
		l.byDestruction++
	}
	return ""
}

// cutAt reports whether a fault may have cut the session on that backend.
func (l *ledger) cutAt(c *client, backend string) bool {
	return slices.ContainsFunc(l.faults, func(f *incident) bool {
		return f.cuttable(backend) && f.during(c)
	})
}

// cutSince reports whether the backend may have been cut since the session began: one that reads slowly is at it when the client has gone.
func (l *ledger) cutSince(c *client, backend string) bool {
	return slices.ContainsFunc(l.faults, func(f *incident) bool {
		return f.cuttable(backend) && !f.to.Before(c.started)
	})
}

// history is everything known of one session.
func (l *ledger) history(c *client, records []record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "  plan: %s up %d down %d abort %d on %s; outcome %s\n", c.temper, c.up, c.down, c.abort, c.listener, c.outcome)
	for _, n := range c.notes {
		fmt.Fprintf(&b, "  client: %s\n", n)
	}
	fmt.Fprintf(&b, "  client: %s – %s, header %d, sent %d, got %d\n", c.started.Format("15:04:05.000"), c.ended.Format("15:04:05.000"), c.header, c.sent.Load(), c.got.Load())
	for _, r := range l.reports[c.session] {
		fmt.Fprintf(&b, "  backend: %+v\n", r)
	}
	for _, j := range records {
		fmt.Fprintf(&b, "  journal: %+v\n", j)
	}
	for _, f := range l.faults {
		if f.from.Before(c.ended.Add(time.Second)) && f.to.After(c.started.Add(-time.Second)) {
			fmt.Fprintf(&b, "  fault: %s\n", f)
		}
	}
	return b.String()
}
