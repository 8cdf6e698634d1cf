package admin

import (
	"iter"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tproxy/tproxy/proxy"
)

// A Source is what metrics read at a scrape.
type Source interface {
	// Status is a fresh snapshot.
	Status() Status
	// Traffic yields what went over every listener, group and backend since the start, sessions that run included. The
	// same names may come several times: they are added up.
	Traffic() iter.Seq[Traffic]
}

// Traffic is a share of what went from a listener to a backend.
type Traffic struct {
	Listener, Group, Backend string
	Active                   int    // sessions now
	Up, Down                 uint64 // bytes, of ended sessions and of those that run; never less than before
}

var (
	descSessions   = describe("sessions_total", "Sessions that ended, by reason.", "listener", "group", "backend", "reason")
	descActive     = describe("sessions_active", "Sessions now.", "listener", "group", "backend")
	descHalfClosed = describe("sessions_half_closed", "Sessions of which one side has sent FIN.", "listener")
	descBytes      = describe("bytes_total", "Bytes written: up to the backend, down to the client.", "listener", "group", "backend", "direction")
	descConnect    = describe("connect_seconds", "Time of successful connects to backends.", "group")
	descDuration   = describe("session_seconds", "Time from accept to close.", "listener")
	descFirst      = describe("first_byte_seconds", "Time from the start of the relay to the backend's first byte.", "group")
	descAttempts   = describe("connect_attempts_total", "Attempts of sessions to connect to a backend, by result.", "group", "backend", "result")
	descPaused     = describe("accept_paused", "1 while the listener does not accept.", "listener")
	descQueue      = describe("queue_length", "Sessions that wait for a slot on a backend.", "group")
	descUp         = describe("backend_up", "1 while health sees the backend up.", "group", "backend")
	descState      = describe("backend_state", "1 for the state that the operator set.", "group", "backend", "state")
	descProbes     = describe("probes_total", "Probes of the backend, by result.", "group", "backend", "result")
	descSpares     = describe("pool_spares", "Connections to the backend that no client has used.", "group", "backend")
	descGets       = describe("pool_gets_total", "Connections that sessions took, by where they came from.", "group", "backend", "result")
	descReloads    = describe("reloads_total", "Reloads, by result.", "result")
	descUpgrades   = describe("upgrades_total", "Upgrades, by result.", "result")
	descBuild      = describe("build_info", "1, with what was built as labels.", "version", "goversion", "revision")
)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("tproxy_"+name, help, labels, nil)
}

// A collector turns counters and snapshots into metrics at a scrape.
type collector struct {
	metrics *Metrics
	source  Source
	version string
}

// Describe sends nothing: which series there are depends on the configuration.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	out := output{ch}
	c.metrics.collect(out)
	c.traffic(out)
	status := c.source.Status()
	for _, l := range status.Listeners {
		out.gauge(descHalfClosed, float64(l.HalfClosed), l.Name)
		out.gauge(descPaused, truth(l.Paused), l.Name)
	}
	for _, g := range status.Groups {
		out.gauge(descQueue, float64(g.QueueLength), g.Name)
		for _, b := range g.Backends {
			out.gauge(descUp, truth(b.Up), g.Name, b.Name)
			for _, s := range states {
				out.gauge(descState, truth(b.State == s), g.Name, b.Name, s)
			}
			out.counter(descProbes, b.Probes.OK, g.Name, b.Name, "ok")
			out.counter(descProbes, b.Probes.Failed, g.Name, b.Name, "failed")
			out.gauge(descSpares, float64(b.Spares), g.Name, b.Name)
		}
	}
	out.gauge(descBuild, 1, c.version, runtime.Version(), revision())
}

func (c *collector) traffic(out output) {
	sums := map[route]Traffic{}
	for t := range c.source.Traffic() {
		k := route{t.Listener, t.Group, t.Backend}
		s := sums[k]
		s.Active += t.Active
		s.Up += t.Up
		s.Down += t.Down
		sums[k] = s
	}
	for k, s := range sums {
		out.gauge(descActive, float64(s.Active), k.listener, k.group, k.backend)
		out.counter(descBytes, s.Up, k.listener, k.group, k.backend, "up")
		out.counter(descBytes, s.Down, k.listener, k.group, k.backend, "down")
	}
}

// collect sends what was counted by Observe.
func (m *Metrics) collect(out output) {
	m.sessions.each(func(k route, counts *reasonCounts) {
		for _, r := range proxy.Reasons() {
			if n := counts[r].Load(); n > 0 {
				out.counter(descSessions, n, k.listener, k.group, k.backend, r.String())
			}
		}
	})
	m.attempts.each(func(k target, counts *resultCounts) {
		for r := range counts {
			if n := counts[r].Load(); n > 0 || result(r) == resultOK {
				out.counter(descAttempts, n, k.group, k.backend, resultText[r])
			}
		}
	})
	m.gets.each(func(k target, counts *getCounts) {
		for _, r := range []proxy.PoolResult{proxy.PoolHit, proxy.PoolMiss, proxy.PoolReused} {
			out.counter(descGets, counts[r].Load(), k.group, k.backend, r.String())
		}
	})
	m.connect.each(func(group string, h *histogram) { out.histogram(descConnect, h, &shortBounds, group) })
	m.first.each(func(group string, h *histogram) { out.histogram(descFirst, h, &shortBounds, group) })
	m.duration.each(func(listener string, h *histogram) { out.histogram(descDuration, h, &longBounds, listener) })
	for desc, o := range map[*prometheus.Desc]*outcome{descReloads: &m.reloads, descUpgrades: &m.upgrades} {
		out.counter(desc, o.ok.Load(), "ok")
		out.counter(desc, o.failed.Load(), "error")
	}
}

// An output sends metrics to the registry. Labels that are no UTF-8, which Prometheus refuses, are repaired.
type output struct{ ch chan<- prometheus.Metric }

func (o output) gauge(d *prometheus.Desc, v float64, labels ...string) {
	o.ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, valid(labels)...)
}

func (o output) counter(d *prometheus.Desc, v uint64, labels ...string) {
	o.ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), valid(labels)...)
}

func (o output) histogram(d *prometheus.Desc, h *histogram, b *bounds, labels ...string) {
	o.ch <- h.metric(d, b, valid(labels)...)
}

func valid(labels []string) []string {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "\ufffd")
	}
	return labels
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// revision is the commit that was built, as far as the toolchain knows.
func revision() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return ""
}
