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
}

// tables are the Markdown tables of all cases that were measured. The first target is the one that is compared with the others.
func (r results) tables(cases []scenario, targets []target) string {
	var cpu, latency, speed, hold []row
	for _, c := range cases {
		switch c.unit {
		case "GB":
			cpu = append(cpu, row{c.name, "s a GB", cpuEach(time.Second)})
			speed = append(speed, row{c.name, "GB a second", rate})
		case "session":
			hold = append(hold, row{c.name, "resident bytes a session", resident}, row{c.name, "descriptors a session", descriptors},
				row{c.name, "CPU, ms a second for all", busy})
		default:
			cpu = append(cpu, row{c.name, "µs a " + c.unit, cpuEach(time.Microsecond)})
			speed = append(speed, row{c.name, c.unit + "s a second", rate})
			latency = append(latency, row{c.name, "p50, µs", percentile(.5)}, row{c.name, "p99, µs", percentile(.99)}, row{c.name, "p99.9, µs", percentile(.999)})
		}
	}
	proxies := slices.DeleteFunc(slices.Clone(targets), func(t target) bool { return t.name == direct })
	var b strings.Builder
	for _, t := range []struct {
		title   string
		rows    []row
		targets []target
	}{
		{"CPU of the proxy", cpu, proxies},
		{"Idle sessions", hold, proxies},
		{"Latency", latency, targets},
		{"Rate", speed, targets},
	} {
		if len(t.rows) > 0 {
			fmt.Fprintf(&b, "\n### %s\n\n%s", t.title, r.table(t.rows, t.targets))
		}
	}
	if many, few := r[manySessions], r[fewSessions]; many != nil && few != nil {
		b.WriteString("\nCPU a message with 9,000 sessions against 64:")
		for _, t := range proxies {
			fmt.Fprintf(&b, " %s %s;", t.name, spread(ratios(values(many[t.name], cpuEach(1)), values(few[t.name], cpuEach(1)))))
		}
		b.WriteString(" the less, the better it scales.\n")
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

// table has a line a row: the medians over the rounds, and the ratio of the first target to each other one, as the median over the rounds with its least and greatest.
func (r results) table(rows []row, targets []target) string {
	var b strings.Builder
	b.WriteString("| case | unit |")
	for _, t := range targets {
		fmt.Fprintf(&b, " %s |", t.name)
	}
	for _, t := range targets[1:] {
		fmt.Fprintf(&b, " to %s |", t.name)
	}
	fmt.Fprintf(&b, "\n|---|---|%s\n", strings.Repeat("---:|", 2*len(targets)-1))
	for _, row := range rows {
		fmt.Fprintf(&b, "| %s | %s |", row.scenario, row.label)
		columns := make([][]float64, len(targets))
		for i, t := range targets {
			columns[i] = values(r[row.scenario][t.name], row.figure)
			fmt.Fprintf(&b, " %s |", number(median(columns[i])))
		}
		for _, other := range columns[1:] {
			fmt.Fprintf(&b, " %s |", spread(ratios(columns[0], other)))
		}
		b.WriteByte('\n')
	}
	return b.String()
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
