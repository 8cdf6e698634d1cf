package admin_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/admin"
	"github.com/tproxy/tproxy/proxy"
)

// scrape returns the text of /metrics and its samples by series.
func scrape(t *testing.T, m *admin.Metrics) (text string, samples map[string]string) {
	t.Helper()
	addr := start(t, &admin.Server{Metrics: m.Handler()})
	st, text, _ := do(t, addr, call{method: "GET", path: "/metrics"})
	if st != 200 {
		t.Fatalf("%d %s", st, text)
	}
	samples = map[string]string{}
	line := regexp.MustCompile(`^([a-zA-Z_:][\w:]*(?:\{.*\})?) (\S+)$`)
	for l := range strings.Lines(text) {
		if l = strings.TrimSuffix(l, "\n"); strings.HasPrefix(l, "#") {
			continue
		}
		p := line.FindStringSubmatch(l)
		if p == nil {
			t.Fatalf("bad line %q", l)
		}
		if _, twice := samples[p[1]]; twice {
			t.Errorf("%s comes twice", p[1])
		}
		samples[p[1]] = p[2]
	}
	return text, samples
}

func want(t *testing.T, samples map[string]string, series, value string) {
	t.Helper()
	if got, ok := samples[series]; !ok || got != value {
		t.Errorf("%s = %q, want %s", series, got, value)
	}
}

func TestMetricsOfTheContract(t *testing.T) {
	m := admin.NewMetrics("1.2.3", newFake())
	m.CounterFunc("tproxy_journal_dropped_total", "Records.", func() uint64 { return 12 })
	b := proxy.Event{Listener: "in", Group: "g", Backend: "10.0.0.1:80"}
	event := func(k proxy.Kind, set func(*proxy.Event)) {
		e := b
		e.Kind = k
		set(&e)
		m.Observe(e)
	}
	event(proxy.ConnectFailed, func(e *proxy.Event) { e.Err = fmt.Errorf("dial: %w", syscall.ECONNREFUSED) })
	event(proxy.SessionOpened, func(e *proxy.Event) { e.Connect = 300 * time.Microsecond })
	event(proxy.SessionOpened, func(e *proxy.Event) { e.Pool = proxy.PoolHit })
	event(proxy.SessionOpened, func(e *proxy.Event) { e.Pool, e.Connect = proxy.PoolMiss, time.Minute })
	event(proxy.SessionClosed, func(e *proxy.Event) {
		e.Reason, e.Duration, e.FirstByte = proxy.ClientFIN, 20*time.Second, time.Millisecond
	})
	m.Observe(proxy.Event{Kind: proxy.SessionClosed, Listener: "in", Reason: proxy.Denied})
	m.Reloaded(nil)
	m.Reloaded(errTest)
	m.Reloaded(nil)
	m.Upgraded(errTest)

	text, s := scrape(t, m)
	for series, value := range map[string]string{
		`tproxy_sessions_total{backend="10.0.0.1:80",group="g",listener="in",reason="client_fin"}`: "1",
		`tproxy_sessions_total{backend="",group="",listener="in",reason="denied"}`:                 "1",
		`tproxy_sessions_active{backend="10.0.0.1:80",group="g",listener="in"}`:                    "2",
		`tproxy_sessions_half_closed{listener="in"}`:                                               "1",
		`tproxy_bytes_total{backend="10.0.0.1:80",direction="up",group="g",listener="in"}`:         "11",
		`tproxy_bytes_total{backend="10.0.0.1:80",direction="down",group="g",listener="in"}`:       "22",
		`tproxy_connect_attempts_total{backend="10.0.0.1:80",group="g",result="ok"}`:               "2",
		`tproxy_connect_attempts_total{backend="10.0.0.1:80",group="g",result="refused"}`:          "1",
		`tproxy_connect_seconds_bucket{group="g",le="0.00025"}`:                                    "0",
		`tproxy_connect_seconds_bucket{group="g",le="0.0005"}`:                                     "1",
		`tproxy_connect_seconds_bucket{group="g",le="+Inf"}`:                                       "2",
		`tproxy_connect_seconds_count{group="g"}`:                                                  "2",
		`tproxy_connect_seconds_sum{group="g"}`:                                                    "60.0003",
		`tproxy_session_seconds_bucket{listener="in",le="0.001"}`:                                  "1",
		`tproxy_session_seconds_bucket{listener="in",le="60"}`:                                     "2",
		`tproxy_session_seconds_count{listener="in"}`:                                              "2",
		`tproxy_first_byte_seconds_bucket{group="g",le="0.001"}`:                                   "1",
		`tproxy_accept_paused{listener="in"}`:                                                      "1",
		`tproxy_queue_length{group="g"}`:                                                           "3",
		`tproxy_queue_length{group="empty"}`:                                                       "0",
		`tproxy_backend_up{backend="10.0.0.1:80",group="g"}`:                                       "1",
		`tproxy_backend_up{backend="unix:/run/b.sock",group="g"}`:                                  "0",
		`tproxy_backend_state{backend="10.0.0.1:80",group="g",state="ready"}`:                      "1",
		`tproxy_backend_state{backend="10.0.0.1:80",group="g",state="drain"}`:                      "0",
		`tproxy_backend_state{backend="10.0.0.1:80",group="g",state="maint"}`:                      "0",
		`tproxy_probes_total{backend="10.0.0.1:80",group="g",result="ok"}`:                         "5",
		`tproxy_probes_total{backend="10.0.0.1:80",group="g",result="failed"}`:                     "1",
		`tproxy_pool_spares{backend="unix:/run/b.sock",group="g"}`:                                 "4",
		`tproxy_pool_gets_total{backend="10.0.0.1:80",group="g",result="hit"}`:                     "1",
		`tproxy_pool_gets_total{backend="10.0.0.1:80",group="g",result="miss"}`:                    "1",
		`tproxy_pool_gets_total{backend="10.0.0.1:80",group="g",result="reused"}`:                  "0",
		`tproxy_reloads_total{result="ok"}`:                                                        "2",
		`tproxy_reloads_total{result="error"}`:                                                     "1",
		`tproxy_upgrades_total{result="ok"}`:                                                       "0",
		`tproxy_upgrades_total{result="error"}`:                                                    "1",
		`tproxy_journal_dropped_total`:                                                             "12",
	} {
		want(t, s, series, value)
	}
	for _, name := range []string{"go_goroutines", "process_open_fds", `tproxy_build_info{goversion="go`} {
		if !strings.Contains(text, "\n"+name) {
			t.Errorf("no %s", name)
		}
	}
}

func TestEveryReasonIsCounted(t *testing.T) {
	m := admin.NewMetrics("", newFake())
	for _, r := range proxy.Reasons() {
		m.Observe(proxy.Event{Kind: proxy.SessionClosed, Listener: "in", Reason: r})
	}
	_, s := scrape(t, m)
	for _, r := range proxy.Reasons() {
		want(t, s, `tproxy_sessions_total{backend="",group="",listener="in",reason="`+r.String()+`"}`, "1")
	}
}

func TestConnectErrorsHaveAWord(t *testing.T) {
	for _, c := range []struct {
		err  error
		word string
	}{
		{syscall.ECONNREFUSED, "refused"},
		{syscall.ETIMEDOUT, "timeout"},
		{context.DeadlineExceeded, "timeout"},
		{os.ErrDeadlineExceeded, "timeout"},
		{syscall.ECONNRESET, "reset"},
		{io.EOF, "reset"},
		{syscall.EHOSTUNREACH, "unreachable"},
		{syscall.EMFILE, "local"},
		{syscall.EADDRNOTAVAIL, "local"},
		{context.Canceled, "canceled"},
		{errors.New("odd"), "error"},
		{nil, "error"},
	} {
		m := admin.NewMetrics("", newFake())
		e := proxy.Event{Kind: proxy.ConnectFailed, Group: "g", Backend: "b"}
		if c.err != nil {
			e.Err = fmt.Errorf("connect to b: %w", c.err)
		}
		m.Observe(e)
		_, s := scrape(t, m)
		want(t, s, `tproxy_connect_attempts_total{backend="b",group="g",result="`+c.word+`"}`, "1")
		want(t, s, `tproxy_connect_attempts_total{backend="b",group="g",result="ok"}`, "0")
	}
}

func TestLabelsThatAreNoTextAreRepaired(t *testing.T) {
	m := admin.NewMetrics("", newFake())
	m.Observe(proxy.Event{Kind: proxy.SessionClosed, Listener: "a\xff\"\n", Reason: proxy.Idle})
	_, s := scrape(t, m)
	want(t, s, `tproxy_sessions_total{backend="",group="",listener="a`+"\ufffd"+`\"\n",reason="idle"}`, "1")
}

func TestObserveDoesNotAllocate(t *testing.T) {
	m := admin.NewMetrics("", newFake())
	opened := proxy.Event{Kind: proxy.SessionOpened, Listener: "in", Group: "g", Backend: "b", Pool: proxy.PoolMiss, Connect: 1}
	closed := proxy.Event{Kind: proxy.SessionClosed, Listener: "in", Group: "g", Backend: "b", Reason: proxy.Idle, Duration: 1, FirstByte: 1}
	if n := testing.AllocsPerRun(1000, func() { m.Observe(opened); m.Observe(closed) }); n != 0 {
		t.Errorf("%v allocations a session", n)
	}
}

func BenchmarkObserve(b *testing.B) {
	m := admin.NewMetrics("", newFake())
	for i := range 1000 {
		m.Observe(proxy.Event{Kind: proxy.SessionClosed, Listener: "in", Group: "g", Backend: fmt.Sprint(i), Reason: proxy.Idle})
	}
	e := proxy.Event{Kind: proxy.SessionClosed, Listener: "in", Group: "g", Backend: "7", Reason: proxy.Idle, Duration: time.Second, FirstByte: time.Millisecond}
	b.ReportAllocs()
	for b.Loop() {
		m.Observe(e)
	}
}
