//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// results are the measurements by case, then by target, one a round.
type results map[string]map[string][]measurement

func (r results) add(scenario, target string, m measurement) {
	if r[scenario] == nil {
		r[scenario] = make(map[string][]measurement)
	}
	r[scenario][target] = append(r[scenario][target], m)
}

// A figure is a number taken from a measurement; 0 is no number.
type figure func(measurement) float64

func cpuEach(unit time.Duration) figure {
	return func(m measurement) float64 {
		if m.units == 0 {
			return 0
		}
		return float64(m.cpu) / m.units / float64(unit)
	}
}

func rate(m measurement) float64 {
	if m.elapsed == 0 {
		return 0
	}
	return m.units / m.elapsed.Seconds()
}

// percentile is the latency in µs that the share q of all is not above.
func percentile(q float64) figure {
	return func(m measurement) float64 {
		if len(m.latencies) == 0 {
			return 0
		}
		return float64(m.latencies[int(q*float64(len(m.latencies)-1))].Nanoseconds()) / 1e3
	}
}

// busy is the CPU time in ms that the proxy used in a second.
func busy(m measurement) float64 {
	if m.elapsed == 0 {
		return 0
	}
	return m.cpu.Seconds() / m.elapsed.Seconds() * 1e3
}

func resident(m measurement) float64    { return m.residentEach }
func descriptors(m measurement) float64 { return m.descriptorsOf }

// A row of a table is one figure of one case.
type row struct {
	scenario string
	label    string
	figure   figure
	more     bool // the more, the better
}

// A comparison is of one case with another through the same target.
type comparison struct {
	over, under string // names of cases
	label       string
	figure      figure
}

// report is the run in Markdown: conditions, tables, and what could not be measured.
func (b *bench) report() string {
	var s strings.Builder
	fmt.Fprintf(&s, "Measured on %s in %v: %s; load average %s before, %s after.\n", time.Now().UTC().Format(time.DateOnly), b.took.Round(time.Second),
		machine(), b.before, b.after)
	fmt.Fprintf(&s, "%s.\n", strings.Join(b.versions, "; "))
	fmt.Fprintf(&s, "%d rounds in turns, each measurement %v or %.3g GB; messages of 64 bytes over loopback; the proxy on core %d, load and backend on core %d, in the cases loopsN all on both.\n",
		b.rounds, b.window, float64(b.streamed)/1e9, b.proxyCore, b.loadCore)
	s.WriteString("Figures are medians. Ratios are taken within a round: **median** (least–greatest).\n")
	s.WriteString(b.results.tables(b.cases, b.targets))
	if len(b.faults) > 0 {
		s.WriteString("\n### Not measured\n\n")
		for _, err := range b.faults {
			fmt.Fprintf(&s, "- %s\n", strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", " "))
		}
	}
	return s.String()
}

// tables are the Markdown tables of the cases that were measured. The first target is the one that is compared with the others.
func (r results) tables(cases []scenario, targets []target) string {
	var cpu, latency, speed, hold []row
	for _, c := range cases {
		switch c.unit {
		case "GB":
			cpu = append(cpu, row{c.name, "s a GB", cpuEach(time.Second), false})
			speed = append(speed, row{c.name, perSecond(c), rate, true})
		case "session":
			hold = append(hold, row{c.name, "resident bytes a session", resident, false}, row{c.name, "descriptors a session", descriptors, false},
				row{c.name, "CPU, ms a second for all", busy, false})
		default:
			cpu = append(cpu, row{c.name, "µs a " + c.unit, cpuEach(time.Microsecond), false})
			if c.paced {
				latency = append(latency, row{c.name, "p50, µs", percentile(.5), false}, row{c.name, "p99, µs", percentile(.99), false}, row{c.name, "p99.9, µs", percentile(.999), false})
			} else {
				speed = append(speed, row{c.name, perSecond(c), rate, true})
			}
		}
	}
	proxies := slices.DeleteFunc(slices.Clone(targets), func(t target) bool { return t.name == direct })
	var b strings.Builder
	for _, t := range []struct {
		title   string
		rows    []row
		targets []target
	}{
		{"CPU of the proxy (below 1 tproxy is better)", cpu, proxies},
		{"Idle sessions (below 1 tproxy is better)", hold, proxies},
		{fmt.Sprintf("Latency at %d messages a second (below 1 tproxy is better)", pacedRate), latency, targets},
		{"Rate (above 1 tproxy is better)", speed, targets},
	} {
		if len(t.rows) > 0 && len(t.targets) > 0 {
			fmt.Fprintf(&b, "\n### %s\n\n%s", t.title, r.table(t.rows, t.targets))
		}
	}
	var growth, loops []comparison
	few := fmt.Sprint("-", scale[0])
	for _, load := range []string{"paced", "messages"} {
		for _, n := range scale[1:] {
			growth = append(growth, comparison{fmt.Sprint(load, "-", n), load + few, "CPU a message", cpuEach(1)})
		}
	}
	for _, c := range cases {
		if load, ok := strings.CutPrefix(c.name, "loops2-"); ok {
			one := "loops1-" + load
			loops = append(loops, comparison{c.name, one, perSecond(c), rate}, comparison{c.name, one, "CPU a " + c.unit, cpuEach(1)})
		}
	}
	for _, t := range []struct {
		title string
		all   []comparison
	}{
		{"Growth: many sessions against few", growth},
		{"Two loops against one", loops},
	} {
		if s := r.comparisons(t.all, proxies); s != "" {
			fmt.Fprintf(&b, "\n### %s\n\n%s", t.title, s)
		}
	}
	return b.String()
}

// perSecond names the rate of a case.
func perSecond(c scenario) string {
	if c.unit == "GB" {
		return "GB a second"
	}
	return c.unit + "s a second"
}

// comparisons is a table with a line for each whose two cases were measured; "" without any.
func (r results) comparisons(all []comparison, targets []target) string {
	all = slices.DeleteFunc(slices.Clone(all), func(c comparison) bool { return r[c.over] == nil || r[c.under] == nil })
	if len(all) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("| case | ratio of |")
	for _, t := range targets {
		fmt.Fprintf(&b, " %s |", t.name)
	}
	fmt.Fprintf(&b, "\n|---|---|%s\n", strings.Repeat("---:|", len(targets)))
	for _, c := range all {
		fmt.Fprintf(&b, "| %s to %s | %s |", c.over, c.under, c.label)
		for _, t := range targets {
			fmt.Fprintf(&b, " %s |", spread(ratios(values(r[c.over][t.name], c.figure), values(r[c.under][t.name], c.figure))))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func values(all []measurement, f figure) []float64 {
	v := make([]float64, len(all))
	for i, m := range all {
		v[i] = f(m)
	}
	return v
}

// table has a line a row: the medians over the rounds, the ratio of the first target to the peer with the best median, and the ratio to each other one, as the
// median over the rounds with its least and greatest.
func (r results) table(rows []row, targets []target) string {
	var b strings.Builder
	b.WriteString("| case | figure |")
	for _, t := range targets {
		fmt.Fprintf(&b, " %s |", t.name)
	}
	b.WriteString(" to the best peer |")
	for _, t := range targets[1:] {
		fmt.Fprintf(&b, " to %s |", t.name)
	}
	fmt.Fprintf(&b, "\n|---|---|%s\n", strings.Repeat("---:|", 2*len(targets)))
	for _, row := range rows {
		fmt.Fprintf(&b, "| %s | %s |", row.scenario, row.label)
		columns := make([][]float64, len(targets))
		for i, t := range targets {
			columns[i] = values(r[row.scenario][t.name], row.figure)
			fmt.Fprintf(&b, " %s |", number(median(columns[i])))
		}
		if best := bestPeer(targets, columns, row.more); best > 0 && median(columns[0]) > 0 {
			fmt.Fprintf(&b, " %s %s |", spread(ratios(columns[0], columns[best])), targets[best].name)
		} else {
			b.WriteString(" – |")
		}
		for _, other := range columns[1:] {
			fmt.Fprintf(&b, " %s |", spread(ratios(columns[0], other)))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// bestPeer is the index of the peer with the best median: chosen once, and not anew in each round, where it would be the luckier one. It is 0 without any.
func bestPeer(targets []target, columns [][]float64, more bool) (best int) {
	for i, t := range targets {
		m := median(columns[i])
		if !t.isPeer() || m == 0 {
			continue
		}
		if best == 0 || (m > median(columns[best])) == more {
			best = i
		}
	}
	return best
}

// ratios are a[i]/b[i] of the rounds in which both are numbers.
func ratios(a, b []float64) (all []float64) {
	for i := range min(len(a), len(b)) {
		if a[i] > 0 && b[i] > 0 {
			all = append(all, a[i]/b[i])
		}
	}
	return all
}

// median ignores what is no number.
func median(all []float64) float64 {
	v := slices.DeleteFunc(slices.Clone(all), func(f float64) bool { return f <= 0 })
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func number(f float64) string {
	switch {
	case f == 0:
		return "–"
	case f >= 100:
		return fmt.Sprintf("%.0f", f)
	case f >= 10:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.3g", f)
}

func spread(all []float64) string {
	if len(all) == 0 {
		return "–"
	}
	return fmt.Sprintf("**%.2f** (%.2f–%.2f)", median(all), slices.Min(all), slices.Max(all))
}
