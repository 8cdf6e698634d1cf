package admin

import (
	"context"
	"errors"
	"hash/maphash"
	"io"
	"maps"
	"net/http"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tproxy/tproxy/proxy"
)

// A Metrics counts events and serves them, and what a [Source] knows, to Prometheus. It is a [proxy.Observer]: Observe takes no lock
// that is shared by all loops and allocates nothing, but for the first event of a new listener, group or backend.
//
// Every label is a name of the configuration or a word of this program; nothing a client sends becomes one.
type Metrics struct {
	registry *prometheus.Registry

	sessions series[route, reasonCounts]
	attempts series[target, resultCounts]
	gets     series[target, getCounts]
	connect  series[string, histogram] // by group
	first    series[string, histogram] // by group
	duration series[string, histogram] // by listener
	reloads  outcome
	upgrades outcome
}

// NewMetrics returns a Metrics of a program of that version. The source is asked at every scrape.
func NewMetrics(version string, source Source) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(
		&collector{metrics: m, source: source, version: version},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// CounterFunc adds a counter that f is asked for at every scrape. The name must not be in use.
func (m *Metrics) CounterFunc(name, help string, f func() uint64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help},
		func() float64 { return float64(f()) }))
}

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4,
		ErrorHandling:       promhttp.ContinueOnError, // one bad series must not hide the others
	})
}

// Reloaded counts a reload by its outcome. A dry run is none.
func (m *Metrics) Reloaded(err error) { m.reloads.count(err) }

// Upgraded counts an upgrade by its outcome.
func (m *Metrics) Upgraded(err error) { m.upgrades.count(err) }

// Observe counts e.
func (m *Metrics) Observe(e proxy.Event) {
	switch e.Kind {
	case proxy.ConnectFailed:
		m.attempts.at(target{e.Group, e.Backend})[resultOf(e.Err)].Add(1)
	case proxy.SessionOpened:
		if e.Pool == proxy.PoolOff || e.Pool == proxy.PoolMiss {
			m.attempts.at(target{e.Group, e.Backend})[resultOK].Add(1)
			m.connect.at(e.Group).observe(e.Connect, &shortBounds)
		}
		if e.Pool != proxy.PoolOff {
			m.gets.at(target{e.Group, e.Backend})[e.Pool].Add(1)
		}
	case proxy.SessionClosed:
		m.sessions.at(route{e.Listener, e.Group, e.Backend})[e.Reason].Add(1)
		m.duration.at(e.Listener).observe(e.Duration, &longBounds)
		if e.FirstByte > 0 {
			m.first.at(e.Group).observe(e.FirstByte, &shortBounds)
		}
	}
}

// A route is where sessions come from and go to; group and backend are "" for those that never got that far.
type route struct{ listener, group, backend string }

// A target is a backend of a group.
type target struct{ group, backend string }

type (
	reasonCounts [32]atomic.Uint64 // by proxy.Reason, with room for more
	resultCounts [numResults]atomic.Uint64
	getCounts    [proxy.PoolReused + 1]atomic.Uint64 // by proxy.PoolResult
)

// A result is how an attempt to connect ended.
type result uint8

const (
	resultOK result = iota
	resultRefused
	resultTimeout
	resultReset       // accepted, then closed or reset with nothing exchanged
	resultUnreachable // no route to the host or network, or no such socket file
	resultLocal       // this machine's fault: descriptors, memory, ports, permission
	resultCanceled    // the session ended first
	resultError       // anything else
	numResults
)

var resultText = [numResults]string{"ok", "refused", "timeout", "reset", "unreachable", "local", "canceled", "error"}

var resultErrors = []struct {
	result result
	err    error
}{
	{resultRefused, syscall.ECONNREFUSED},
	{resultRefused, syscall.EAGAIN}, // the backlog of a unix socket is full
	{resultReset, syscall.ECONNRESET},
	{resultReset, syscall.EPIPE},
	{resultReset, io.EOF},
	{resultUnreachable, syscall.EHOSTUNREACH},
	{resultUnreachable, syscall.ENETUNREACH},
	{resultUnreachable, syscall.ENOENT},
	{resultLocal, syscall.EMFILE},
	{resultLocal, syscall.ENFILE},
	{resultLocal, syscall.ENOBUFS},
	{resultLocal, syscall.ENOMEM},
	{resultLocal, syscall.EADDRNOTAVAIL},
	{resultLocal, syscall.EADDRINUSE},
	{resultLocal, syscall.EACCES},
	{resultLocal, syscall.EPERM},
	{resultCanceled, context.Canceled},
}

func resultOf(err error) result {
	for _, r := range resultErrors {
		if errors.Is(err, r.err) {
			return r.result
		}
	}
	var t interface{ Timeout() bool }
	if errors.As(err, &t) && t.Timeout() {
		return resultTimeout
	}
	return resultError
}

// An outcome counts what went well and what did not.
type outcome struct{ ok, failed atomic.Uint64 }

func (o *outcome) count(err error) {
	if err != nil {
		o.failed.Add(1)
	} else {
		o.ok.Add(1)
	}
}

// Upper bounds of the buckets. They are few: each is a series for every group or listener.
var (
	shortBounds = bounds{100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond, time.Millisecond,
		2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
		100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 5 * time.Second}
	longBounds = bounds{time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond, time.Second,
		5 * time.Second, 15 * time.Second, time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 4 * time.Hour,
		12 * time.Hour, 24 * time.Hour}
)

type bounds [14]time.Duration

// A histogram counts durations by bucket; the last one has no bound.
type histogram struct {
	buckets [len(bounds{}) + 1]atomic.Uint64
	sum     atomic.Int64 // nanoseconds
}

func (h *histogram) observe(d time.Duration, b *bounds) {
	i := sort.Search(len(b), func(i int) bool { return d <= b[i] })
	h.buckets[i].Add(1)
	h.sum.Add(int64(d))
}

// metric is h for Prometheus, which wants cumulative buckets in seconds.
func (h *histogram) metric(desc *prometheus.Desc, b *bounds, labels ...string) prometheus.Metric {
	cumulative := make(map[float64]uint64, len(b))
	var n uint64
	for i, bound := range b {
		n += h.buckets[i].Load()
		cumulative[bound.Seconds()] = n
	}
	n += h.buckets[len(b)].Load()
	return prometheus.MustNewConstHistogram(desc, n, time.Duration(h.sum.Load()).Seconds(), cumulative, labels...)
}

const (
	shards = 256
	// maxSeries bounds a shard where names come and go, as with discovery; what is above is counted together under
	// the zero key, so that sums stay right.
	maxSeries = 256
)

// A series is a set of counters by key. Finding one takes no lock; adding one copies a shard of the index.
type series[K comparable, V any] struct {
	once   sync.Once
	seed   maphash.Seed
	shards [shards]struct {
		sync.Mutex // for adding
		index      atomic.Pointer[map[K]*V]
	}
}

func (s *series[K, V]) at(k K) *V {
	s.once.Do(func() { s.seed = maphash.MakeSeed() })
	sh := &s.shards[maphash.Comparable(s.seed, k)%shards]
	if m := sh.index.Load(); m != nil {
		if v, ok := (*m)[k]; ok {
			return v
		}
	}
	sh.Lock()
	var old map[K]*V
	if m := sh.index.Load(); m != nil {
		old = *m
	}
	if v, ok := old[k]; ok {
		sh.Unlock()
		return v
	}
	if zero := *new(K); len(old) >= maxSeries && k != zero {
		sh.Unlock()
		return s.at(zero)
	}
	grown := make(map[K]*V, len(old)+1)
	maps.Copy(grown, old)
	v := new(V)
	grown[k] = v
	sh.index.Store(&grown)
	sh.Unlock()
	return v
}

func (s *series[K, V]) each(f func(K, *V)) {
	for i := range s.shards {
		if m := s.shards[i].index.Load(); m != nil {
			for k, v := range *m {
				f(k, v)
			}
		}
	}
}
