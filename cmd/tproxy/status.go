package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tproxy/tproxy/internal/admin"
)

func statusCommand() *cobra.Command {
	var at target
	var raw bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show what runs: listeners, groups and backends",
		Long: `Status asks a running tproxy, at its admin address, what it does: listeners with their addresses and sessions, and backends with
their state (as an operator set it) and health (as probes and failed connects see it).`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := at.client()
			if err != nil {
				return err
			}
			var s admin.Status
			text, err := cl.do(c.Context(), "GET", "status", nil, &s)
			if err != nil {
				return err
			}
			if raw {
				_, err := c.OutOrStdout().Write(text)
				return err
			}
			return printStatus(c.OutOrStdout(), s)
		},
	}
	at.flags(c)
	c.Flags().BoolVar(&raw, "json", false, "print the answer of the admin API")
	return c
}

func printStatus(w io.Writer, s admin.Status) error {
	fmt.Fprintf(w, "tproxy %s, process %d, %s, up %s\n\n", printable(s.Version), s.PID, s.State, age(s.UptimeMS))
	t := newTable(w, "LISTENER", "ADDRESS", "GROUP", "SESSIONS", "HALF-CLOSED", "LIMIT", "ACCEPTS")
	for _, l := range s.Listeners {
		accepts := "yes"
		if l.Paused {
			accepts = "paused"
		}
		t.row(l.Name, strings.Join(l.Addresses, ","), l.Group, l.Active, l.HalfClosed, limit(l.Limit), accepts)
	}
	if err := t.print(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	t = newTable(w, "GROUP", "BALANCE", "BACKENDS", "USABLE", "QUEUE")
	for _, g := range s.Groups {
		t.row(g.Name, g.Balance, len(g.Backends), g.Usable, g.QueueLength)
	}
	if err := t.print(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	t = newTable(w, "BACKEND", "ADDRESS", "STATE", "HEALTH", "TIER", "WEIGHT", "SESSIONS", "LIMIT", "SPARES", "LAST PROBE")
	for _, g := range s.Groups {
		for _, b := range g.Backends {
			health := "down"
			if b.Up {
				health = "up"
			}
			t.row(g.Name+"/"+b.Name, b.Address, b.State, health, b.Tier, b.Weight, b.Active, limit(b.MaxConnections), b.Spares, lastProbe(b.LastProbe))
		}
	}
	return t.print()
}

func lastProbe(p *admin.Probe) string {
	switch {
	case p == nil:
		return ""
	case p.OK:
		return fmt.Sprintf("ok, %.1fms", p.DurationMS)
	}
	return p.Error
}

// age is a time in milliseconds, short.
func age(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}
