//go:build linux

package main

import (
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

func TestEveryCaseMeasuresWithoutAProxy(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go serve(ln)
	self := &process{pids: []int{os.Getpid()}}
	for _, c := range allCases(20*time.Millisecond, 10_000_000, 100) {
		if c.name == manySessions {
			continue // takes more descriptors than a test may have
		}
		m, err := c.run(load{address: ln.Addr().String(), proxy: self})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if m.units <= 0 || m.elapsed <= 0 || m.cpu <= 0 {
			t.Errorf("%s measures %+v", c.name, m)
		}
		if c.unit == "session" && m.descriptorsOf < 1.9 {
			t.Errorf("%s: %v descriptors a session, want 2: both ends are in this process", c.name, m.descriptorsOf)
		}
	}
}

func TestBrokenProxyIsAnError(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() { // answers a byte that nobody sent, and ends
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("x"))
			c.Close()
		}
	}()
	for _, c := range allCases(10*time.Millisecond, 1000, 2) {
		if c.name == manySessions {
			continue
		}
		if _, err := c.run(load{address: ln.Addr().String()}); err == nil {
			t.Errorf("%s has no error", c.name)
		}
	}
}

func TestTablesShowMediansAndRatiosWithinRounds(t *testing.T) {
	r := make(results)
	for i, ours := range []time.Duration{10, 30, 20} { // the machine was three times slower in the second round
		theirs := 2 * ours
		if i == 2 {
			theirs = 4 * ours
		}
		r.add("messages-64", "tproxy", measurement{units: 1, cpu: ours * time.Microsecond})
		r.add("messages-64", "other", measurement{units: 1, cpu: theirs * time.Microsecond})
	}
	got := r.tables([]scenario{{name: "messages-64", unit: "message"}}, []target{{name: "tproxy"}, {name: "other"}})
	if want := "| messages-64 | µs a message | 20.0 | 60.0 | **0.50** (0.25–0.50) |\n"; !strings.Contains(got, want) {
		t.Errorf("got\n%s\nwithout %q", got, want)
	}
	if missing := "| messages-64 | p50, µs | – | – | – |\n"; !strings.Contains(got, missing) {
		t.Errorf("got\n%s\nwithout %q", got, missing)
	}
}

func TestSelectionByBeginningOfNames(t *testing.T) {
	for _, tt := range []struct {
		name, only string
		want       bool
	}{
		{"messages-64", "", true},
		{"messages-64", "messages", true},
		{"messages-64", "up,messages-64", true},
		{"messages-64", "messages-6", false},
		{"up-8", "down", false},
	} {
		if got := selected(tt.name, tt.only); got != tt.want {
			t.Errorf("selected(%q, %q) is %v", tt.name, tt.only, got)
		}
	}
}
