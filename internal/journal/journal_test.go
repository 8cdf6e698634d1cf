package journal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/tproxy/tproxy/internal/journal"
	"github.com/tproxy/tproxy/internal/reactor"
	"github.com/tproxy/tproxy/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// closed is the last event of an ordinary session.
func closed(id int) proxy.Event {
	return proxy.Event{
		Kind:         proxy.SessionClosed,
		Time:         time.Date(2026, 11, 22, 20, 0, 0, 123456789, time.UTC),
		Listener:     "db",
		ID:           proxy.SessionID(id),
		Client:       reactor.TCP(netip.MustParseAddrPort("[::ffff:192.0.2.7]:40001")),
		Claimed:      reactor.TCP(netip.MustParseAddrPort("[2001:db8::1]:5")),
		Local:        reactor.Unix("/run/db.sock"),
		Group:        "pg",
		Backend:      "10.0.0.1:5432",
		Attempts:     2,
		Pool:         proxy.PoolHit,
		SNI:          "db.example",
		Up:           5000,
		Down:         7,
		Wait:         1500 * time.Microsecond,
		Connect:      153 * time.Microsecond,
		FirstByte:    20 * time.Millisecond,
		Duration:     time.Minute + 50*time.Microsecond,
		HalfClosedBy: reactor.Client,
		Reason:       proxy.BackendRST,
		Err:          syscall.ECONNRESET,
	}
}

func open(t *testing.T, o journal.Options) *journal.Journal {
	t.Helper()
	j, err := journal.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func mustClose(t *testing.T, j *journal.Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

func lines(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 0 && b[len(b)-1] != '\n' {
		t.Fatalf("%s ends in the middle of a line: %q", path, b[max(0, len(b)-80):])
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

func TestRecordHasEveryKeyInTheOrderOfTheContract(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, journal.Options{Close: true, Path: path})
	j.Observe(closed(42))
	mustClose(t, j)
	want := `{"time":"2026-11-22T20:00:00.123456Z","event":"close","listener":"db","session":"42","client":"192.0.2.7:40001",` +
		`"client_claimed":"[2001:db8::1]:5","local":"unix:/run/db.sock","group":"pg","backend":"10.0.0.1:5432","attempts":2,` +
		`"pool":"hit","sni":"db.example","up":5000,"down":7,"wait_ms":1.5,"connect_ms":0.153,"first_byte_ms":20,` +
		`"duration_ms":60000.05,"half_closed_by":"client","reason":"backend_rst","error":"connection reset by peer"}`
	if got := lines(t, path); len(got) != 1 || got[0] != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
}

func TestRefusedSessionHasEveryKeyToo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, journal.Options{Close: true, Path: path})
	j.Observe(proxy.Event{Kind: proxy.SessionClosed, Listener: "db", ID: 1, Reason: proxy.Denied})
	mustClose(t, j)
	var r map[string]any
	if err := json.Unmarshal([]byte(lines(t, path)[0]), &r); err != nil {
		t.Fatal(err)
	}
	for _, k := range strings.Fields("time event listener session client client_claimed local group backend attempts pool sni" +
		" up down wait_ms connect_ms first_byte_ms duration_ms half_closed_by reason") {
		if _, ok := r[k]; !ok {
			t.Errorf("no %s in %v", k, r)
		}
	}
	if r["reason"] != "denied" || r["client"] != "" {
		t.Errorf("reason %q, client %q", r["reason"], r["client"])
	}
}

func TestOptionsChooseTheEvents(t *testing.T) {
	for _, c := range []struct {
		open, close bool
		want        string
	}{{false, true, "close"}, {true, false, "open"}, {true, true, "open close"}, {false, false, ""}} {
		path := filepath.Join(t.TempDir(), "journal")
		j := open(t, journal.Options{Open: c.open, Close: c.close, Path: path})
		for k := proxy.SessionAccepted; k <= proxy.AcceptResumed; k++ {
			e := closed(1)
			e.Kind = k
			j.Observe(e)
		}
		mustClose(t, j)
		var got []string
		for _, l := range lines(t, path) {
			if l == "" {
				continue
			}
			var r struct{ Event string }
			if err := json.Unmarshal([]byte(l), &r); err != nil {
				t.Fatal(err)
			}
			got = append(got, r.Event)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("open %v, close %v: got %q, want %q", c.open, c.close, got, c.want)
		}
	}
}

var hostile = []string{
	"a\nb.example", "\x1b[31mred", `say "hi"\`, "\xff\xfe\xc0", `{"reason":"fake"}`, "\r\n{\"event\":\"close\"}",
	strings.Repeat("x", 4000), strings.Repeat("ä", 200), "\u2028\u202e\u0085\x7f\x00", "\U000e0041", "日本\ufffd",
}

func TestHostileTextStaysOneLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, journal.Options{Close: true, Path: path})
	for i, s := range hostile {
		e := closed(i)
		e.SNI, e.Err, e.Client = s, errors.New(s), reactor.Unix(s[:min(len(s), 108)])
		j.Observe(e)
	}
	mustClose(t, j)
	got := lines(t, path)
	if len(got) != len(hostile) {
		t.Fatalf("%d lines, want %d", len(got), len(hostile))
	}
	for i, l := range got {
		var r struct{ SNI, Event, Reason string }
		if err := json.Unmarshal([]byte(l), &r); err != nil {
			t.Errorf("%q: %v", l, err)
		}
		want := strings.ToValidUTF8(hostile[i], "\ufffd")
		if len(hostile[i]) < 100 && i != 3 && i != 9 && r.SNI != want {
			t.Errorf("sni %q came back as %q", want, r.SNI)
		}
		if r.Event != "close" || r.Reason != "backend_rst" {
			t.Errorf("forged event %q, reason %q", r.Event, r.Reason)
		}
		if len(l) > 3000 {
			t.Errorf("a name of %d bytes made a line of %d", len(hostile[i]), len(l))
		}
		if i := strings.IndexFunc(l, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0x85 || r == 0x2028 || r == 0x202e }); i >= 0 {
			t.Errorf("%q has a control character at %d", l, i)
		}
	}
}

func TestFullDiskIsSaidAndCounted(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip(err)
	}
	var log syncBuffer
	j := open(t, journal.Options{Close: true, Path: "/dev/full", Log: slog.New(slog.NewTextHandler(&log, nil))})
	for i := range 10 {
		j.Observe(closed(i))
	}
	if err := j.Close(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("close: %v", err)
	}
	if j.Dropped() != 10 {
		t.Errorf("%d dropped, want 10", j.Dropped())
	}
	if !strings.Contains(log.String(), "journal cannot be written") {
		t.Errorf("log: %s", log.String())
	}
	j.Observe(closed(11))
	if j.Dropped() != 11 {
		t.Errorf("an event after Close was not counted as dropped")
	}
	if err := j.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestRecordsSurviveAFullDiskUntilReopen(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip(err)
	}
	path := filepath.Join(t.TempDir(), "journal")
	if err := os.Symlink("/dev/full", path); err != nil {
		t.Fatal(err)
	}
	j := open(t, journal.Options{Close: true, Path: path})
	for i := range 700 { // more than a batch: the writer tries at once and fails
		j.Observe(closed(i))
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := j.Reopen(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, j)
	if n := len(lines(t, path)); n != 700 || j.Dropped() != 0 {
		t.Errorf("%d lines, %d dropped", n, j.Dropped())
	}
}

func TestReopenFollowsARename(t *testing.T) {
	dir := t.TempDir()
	path, old := filepath.Join(dir, "journal"), filepath.Join(dir, "journal.1")
	j := open(t, journal.Options{Close: true, Path: path})
	const n = 2000
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range n {
			j.Observe(closed(i))
		}
	})
	if err := os.Rename(path, old); err != nil {
		t.Fatal(err)
	}
	for range 3 { // signals come in bursts
		if err := j.Reopen(); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	j.Observe(closed(n))
	mustClose(t, j)
	seen := map[string]bool{}
	for _, l := range append(lines(t, path), lines(t, old)...) {
		var r struct{ Session string }
		if l != "" {
			if err := json.Unmarshal([]byte(l), &r); err != nil {
				t.Fatalf("%q: %v", l, err)
			}
			seen[r.Session] = true
		}
	}
	if len(seen) != n+1 {
		t.Errorf("%d sessions in both files, want %d", len(seen), n+1)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm()&^0o640 != 0 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	if err := j.Reopen(); err != nil {
		t.Errorf("reopen after close: %v", err)
	}
}

func TestReopenThatFailsKeepsTheOldFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "journal")
	j := open(t, journal.Options{Close: true, Path: path})
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := j.Reopen(); err == nil {
		t.Error("reopen in a missing directory succeeded")
	}
	j.Observe(closed(1))
	mustClose(t, j)
	if n := len(lines(t, filepath.Join(dir+".old", "journal"))); n != 1 {
		t.Errorf("%d lines", n)
	}
}

func TestProgressOfOpenSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log syncBuffer
		var up uint64
		sessions := iter.Seq[proxy.Event](func(yield func(proxy.Event) bool) {
			for id := range 2 {
				up += 10
				if !yield(proxy.Event{Time: time.Now(), ID: proxy.SessionID(id), Up: up}) {
					return
				}
			}
		})
		j := open(t, journal.Options{Every: time.Minute, Sessions: sessions, Log: slog.New(slog.NewJSONHandler(&log, nil))})
		time.Sleep(2*time.Minute + time.Second)
		mustClose(t, j)
		var got []string
		for l := range strings.Lines(log.String()) {
			var r struct {
				Event, Session string
				Up             int
			}
			if err := json.Unmarshal([]byte(l), &r); err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprintf("%s %s %d", r.Event, r.Session, r.Up))
		}
		if want := "progress 0 10, progress 1 20, progress 0 30, progress 1 40"; strings.Join(got, ", ") != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestRecordsInTheLog(t *testing.T) {
	var log syncBuffer
	j := open(t, journal.Options{Close: true, Log: slog.New(slog.NewTextHandler(&log, nil))})
	e := closed(7)
	e.SNI = "\x1b[31m\n"
	j.Observe(e)
	mustClose(t, j)
	want := `msg=session event=close listener=db session=7 client=192.0.2.7:40001`
	if got := log.String(); !strings.Contains(got, want) || strings.Contains(got, "\x1b") || strings.Count(got, "\n") != 1 {
		t.Errorf("log %q, want %s", got, want)
	}
	if !strings.Contains(log.String(), "time=2026-11-22T20:00:00.123Z") {
		t.Errorf("the line does not carry the time of the event: %s", log.String())
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, o := range map[string]journal.Options{
		"no sink":                {Close: true},
		"missing directory":      {Close: true, Path: filepath.Join(t.TempDir(), "no", "journal")},
		"every without sessions": {Every: time.Second, Path: filepath.Join(t.TempDir(), "journal")},
	} {
		if j, err := journal.Open(o); err == nil {
			j.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

func TestObserveDoesNotAllocate(t *testing.T) {
	j := open(t, journal.Options{Close: true, Path: os.DevNull})
	defer mustClose(t, j)
	e := closed(1)
	for range 4096 {
		j.Observe(e) // both halves of the queue have grown
	}
	least := math.Inf(1)
	for range 20 { // the writer's allocations count too, when it is at work meanwhile
		least = min(least, testing.AllocsPerRun(100, func() { j.Observe(e) }))
	}
	if least > 0.5 {
		t.Errorf("%v allocations a record", least)
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
