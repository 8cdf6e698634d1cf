package journal

import (
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tproxy/tproxy/internal/reactor"
	"github.com/tproxy/tproxy/proxy"
)

func FuzzString(f *testing.F) {
	for _, s := range []string{"", "a.example", "\x00\x1f\x7f\u0080", `"\`, "\xff\xc0", "\u2028", "日本", "\U0001f600", "\U000e0041"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b := appendString(nil, s)
		var back string
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if i := strings.IndexFunc(string(b), func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Fatalf("%q is not printable at %d", b, i)
		}
		if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r >= 0x10000 && !unicode.IsPrint(r) }) && back != s {
			t.Fatalf("%q came back as %q", s, back)
		}
	})
}

func TestMillis(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0", -time.Second: "0", time.Nanosecond: "0", time.Microsecond: "0.001", 1500 * time.Microsecond: "1.5",
		time.Second: "1000", time.Second + 20*time.Microsecond: "1000.02",
	} {
		if got := string(appendMillis(nil, d)); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func ordinary() proxy.Event {
	return proxy.Event{
		Kind: proxy.SessionClosed, Time: time.Now(), Listener: "db", ID: 123456,
		Client: reactor.TCP(netip.MustParseAddrPort("192.0.2.7:40001")), Local: reactor.TCP(netip.MustParseAddrPort("192.0.2.1:5432")),
		Group: "pg", Backend: "10.0.0.1:5432", Attempts: 1, Up: 5000, Down: 70000, Connect: 153 * time.Microsecond,
		FirstByte: time.Millisecond, Duration: time.Second, HalfClosedBy: reactor.Client, Reason: proxy.ClientFIN,
	}
}

func TestRecordDoesNotAllocate(t *testing.T) {
	e := ordinary()
	buf := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(1000, func() { buf = appendRecord(buf[:0], &e, "close") }); n != 0 {
		t.Errorf("%v allocations a record", n)
	}
}

func BenchmarkRecord(b *testing.B) {
	e := ordinary()
	b.ReportAllocs()
	var buf []byte
	for b.Loop() {
		buf = appendRecord(buf[:0], &e, "close")
	}
	b.SetBytes(int64(len(buf)))
}

// BenchmarkObserve is what an event loop pays for a session.
func BenchmarkObserve(b *testing.B) {
	j := &Journal{o: Options{Close: true}, first: make(chan struct{}, 1), full: make(chan struct{}, 1)}
	e := ordinary()
	b.ReportAllocs()
	for b.Loop() {
		j.Observe(e)
		if len(j.queue) == batch {
			clear(j.queue)
			j.queue = j.queue[:0]
		}
	}
}

// BenchmarkWrite is what a record costs in all, on both sides of the queue.
func BenchmarkWrite(b *testing.B) {
	f, err := openFile(os.DevNull)
	if err != nil {
		b.Fatal(err)
	}
	defer f.close()
	j := &Journal{o: Options{Close: true}, sink: f, first: make(chan struct{}, 1), full: make(chan struct{}, 1)}
	e := ordinary()
	var spare []proxy.Event
	b.ReportAllocs()
	for b.Loop() {
		j.Observe(e)
		if len(j.queue) == batch {
			spare = j.take(spare)
			if err := f.flush(); err != nil {
				b.Fatal(err)
			}
		}
	}
}
