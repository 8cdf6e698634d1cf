//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == backendCommand { // a test has started this program as its backend
		fmt.Fprintln(os.Stderr, serveBackend())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// small are the cases that need no more descriptors than a test may have.
func small(window time.Duration, streamed int64, idle int) []scenario {
	return slices.DeleteFunc(allCases(window, streamed, idle), func(c scenario) bool { return strings.HasSuffix(c.name, "-9000") })
}

// limitTarget is the relay in C; without a compiler the test is skipped, in CI it fails.
func limitTarget(t *testing.T) target {
	t.Helper()
	program, err := buildRelay(t.TempDir())
	if errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") == "" {
		t.Skip("gcc is missing")
	}
	if err != nil {
		t.Fatal(err)
	}
	return target{name: limit, command: relayCommand(program)}
}

func listenAndServe(t *testing.T) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go serve(ln)
	return ln.Addr().String()
}

// measure runs each small case until it has counted something: on a busy machine a short window may pass without a message.
func measure(t *testing.T, each func(scenario) (measurement, error)) {
	t.Helper()
	const streamed, idle = 10_000_000, 100
	for i, c := range small(time.Second, streamed, idle) {
		var m measurement
		for window := 20 * time.Millisecond; m.units <= 0 && window < patience; window *= 5 {
			var err error
			if m, err = each(small(window, streamed, idle)[i]); err != nil {
				t.Errorf("%s: %v", c.name, err)
				break
			}
		}
		if m.units <= 0 || m.elapsed <= 0 || m.cpu < 0 {
			t.Errorf("%s measures %+v", c.name, m)
		}
		if c.unit == "session" && (m.descriptorsOf < 1.9 || m.descriptorsOf > 2.1) {
			t.Errorf("%s: %v descriptors a session, want 2", c.name, m.descriptorsOf)
		}
	}
}

// Without a proxy both ends of a session are in this process, so that it has two descriptors too.
func TestEveryCaseMeasuresWithoutAProxy(t *testing.T) {
	l := load{address: listenAndServe(t), proxy: &process{pids: []int{os.Getpid()}}}
	measure(t, func(c scenario) (measurement, error) { return c.run(l) })
}

// The limit does in each case what a proxy does, in one process and in two.
func TestEveryCaseMeasuresThroughTheLimit(t *testing.T) {
	relay, backend := limitTarget(t), listenAndServe(t)
	measure(t, func(c scenario) (measurement, error) {
		p, listen, err := relay.start(backend, c.loops, nil, t.TempDir())
		if err != nil {
			return measurement{}, err
		}
		defer p.stop()
		if len(p.pids) != c.loops {
			t.Errorf("%s: %d processes, want %d", c.name, len(p.pids), c.loops)
		}
		return c.run(load{address: listen, proxy: p})
	})
}

// What is sent in pieces of all sizes, so that a direction is copied and spliced in turns, comes back as it was, also when it is read slowly at first.
func TestLimitIsByteExact(t *testing.T) {
	relay := limitTarget(t)
	p, listen, err := relay.start(listenAndServe(t), 1, nil, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	c, err := load{address: listen}.dial(roleEcho)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadBuffer(256 << 10) // several segments of loopback: with less the sender waits for its persist timer
	random := rand.New(rand.NewPCG(1, 2))
	sent := sha256.New()
	var total int64
	var writer sync.WaitGroup
	writer.Go(func() {
		defer c.CloseWrite()
		buf := make([]byte, 1<<20)
		for range 80 {
			piece := buf[:1+random.IntN(1<<(4+random.IntN(17)))]
			for i := range piece {
				piece[i] = byte(random.Uint32())
			}
			sent.Write(piece)
			total += int64(len(piece))
			if _, err := c.Write(piece); err != nil {
				t.Error(err)
				return
			}
		}
	})
	got := sha256.New()
	var arrived int64
	buf := make([]byte, 64<<10)
	for {
		c.SetDeadline(time.Now().Add(patience))
		n, err := c.Read(buf[:1+arrived%int64(len(buf))])
		got.Write(buf[:n])
		arrived += int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	writer.Wait()
	if arrived != total || !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
		t.Errorf("%d bytes came back of %d, or others", arrived, total)
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
	for _, c := range small(10*time.Millisecond, 1000, 2) {
		if _, err := c.run(load{address: ln.Addr().String()}); err == nil {
			t.Errorf("%s has no error", c.name)
		}
	}
}

// One target that fails, and one case that fails in one round, are named in the report; the others are in its tables.
func TestReportNamesWhatFailed(t *testing.T) {
	calls := 0
	b := &bench{
		rounds: 2, dir: t.TempDir(), loadCore: firstCore(t),
		targets: []target{{name: direct}, {name: "absent", command: func(place) command { return command{program: "/no/such/program"} }}},
		cases: []scenario{
			{name: "steady-1", unit: "message", run: func(load) (measurement, error) {
				return measurement{units: 1, elapsed: time.Second, cpu: time.Microsecond}, nil
			}},
			{name: "shaky-1", unit: "message", run: func(load) (measurement, error) {
				if calls++; calls == 1 {
					return measurement{}, errors.New("the first time it fails")
				}
				return measurement{units: 1, elapsed: time.Second, cpu: time.Microsecond}, nil
			}},
		},
	}
	b.measureAll(t.Context())
	got := b.report()
	for _, want := range []string{
		"| steady-1 | messages a second | 1 | – |",
		"| shaky-1 | messages a second | 1 | – |",
		"- round 1, shaky-1 through direct: the first time it fails\n",
		"- round 1, steady-1 through absent: ", "- round 2, shaky-1 through absent: ",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if len(b.faults) != 5 {
		t.Errorf("%d faults, want 5: %v", len(b.faults), b.faults)
	}
}

func TestInterruptedRunReportsWhatItHas(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b := &bench{rounds: 5, dir: t.TempDir(), loadCore: firstCore(t), targets: []target{{name: direct}}, cases: []scenario{
		{name: "steady-1", unit: "message", run: func(load) (measurement, error) {
			cancel()
			return measurement{units: 3, elapsed: time.Second}, nil
		}},
	}}
	b.measureAll(ctx)
	if got := b.report(); !strings.Contains(got, "| steady-1 | messages a second | 3 |") || !strings.Contains(got, "- interrupted in round 2 of 5\n") {
		t.Errorf("got\n%s", got)
	}
}

// firstCore is one that this process may run on. The test that asks for it gets its cores back.
func firstCore(t *testing.T) int {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	var all []int
	for core := range 1024 {
		if set.IsSet(core) {
			all = append(all, core)
		}
	}
	t.Cleanup(func() {
		if err := occupy(all...); err != nil {
			t.Error(err)
		}
	})
	return all[0]
}

func TestAllThreadsMoveToTheCores(t *testing.T) {
	core := firstCore(t)
	if err := occupy(core); err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		if err != nil {
			t.Fatal(err)
		}
		var set unix.CPUSet
		err = unix.SchedGetaffinity(id, &set)
		if err == unix.ESRCH {
			continue // it has ended
		}
		if err != nil || set.Count() != 1 || !set.IsSet(core) {
			t.Errorf("thread %d may run on %d cores, want core %d only (%v)", id, set.Count(), core, err)
		}
	}
	if n := runtime.GOMAXPROCS(0); n != 1 {
		t.Errorf("GOMAXPROCS %d on one core", n)
	}
}

// measured is three rounds of each target with these times of CPU a message; the machine was three times slower in the second.
func measured(name string, each map[string]time.Duration) results {
	r := make(results)
	for target, cpu := range each {
		for _, slowness := range []time.Duration{1, 3, 1} {
			r.add(name, target, measurement{units: 1, elapsed: slowness * cpu * time.Microsecond, cpu: slowness * cpu * time.Microsecond})
		}
	}
	return r
}

func TestTablesCompareWithTheBestPeerAndTheLimitWithinRounds(t *testing.T) {
	r := measured("messages-64", map[string]time.Duration{ours: 10, limit: 8, "slow": 40, "fast": 20})
	r["messages-64"]["fast"][2].cpu = 15 * time.Microsecond
	targets := []target{{name: ours}, {name: limit}, {name: "slow"}, {name: "fast"}}
	got := r.tables([]scenario{{name: "messages-64", unit: "message"}}, targets)
	for _, want := range []string{
		"| case | figure | tproxy | limit | slow | fast | to the best peer | to limit | to slow | to fast |\n",
		"| messages-64 | µs a message | 10.0 | 8 | 40.0 | 20.0 | **0.50** (0.50–0.67) fast | **1.25** (1.25–1.25) | **0.25** (0.25–0.25) | **0.50** (0.50–0.67) |\n",
		"| messages-64 | messages a second | 100000 | 125000 | 25000 | 50000 | **2.00** (2.00–2.00) fast |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("got\n%s\nwithout %q", got, want)
		}
	}
}

func TestTablesShowADashForWhatWasNotMeasured(t *testing.T) {
	r := measured("paced-64", map[string]time.Duration{ours: 10})
	got := r.tables([]scenario{{name: "paced-64", unit: "message", paced: true}}, []target{{name: ours}, {name: limit}})
	if want := "| paced-64 | µs a message | 10.0 | – | – | – |\n"; !strings.Contains(got, want) {
		t.Errorf("got\n%s\nwithout %q", got, want)
	}
	if missing := "| paced-64 | p99, µs | – | – | – | – |\n"; !strings.Contains(got, missing) {
		t.Errorf("got\n%s\nwithout %q", got, missing)
	}
}

func TestGrowthAndLoopsAreRatiosOfCasesThroughOneTarget(t *testing.T) {
	r := make(results)
	for name, cpu := range map[string]time.Duration{"paced-64": 10, "paced-9000": 13, "loops1-messages-64": 10, "loops2-messages-64": 5} {
		maps.Copy(r, measured(name, map[string]time.Duration{ours: cpu, "other": 2 * cpu}))
	}
	got := r.tables(allCases(time.Second, 1, 1), []target{{name: ours}, {name: "other"}})
	for _, want := range []string{
		"| paced-9000 to paced-64 | CPU a message | **1.30** (1.30–1.30) | **1.30** (1.30–1.30) |\n",
		"| loops2-messages-64 to loops1-messages-64 | messages a second | **2.00** (2.00–2.00) | **2.00** (2.00–2.00) |\n",
		"| loops2-messages-64 to loops1-messages-64 | CPU a message | **0.50** (0.50–0.50) |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("got\n%s\nwithout %q", got, want)
		}
	}
	if strings.Contains(got, "paced-1000 to") {
		t.Errorf("a case that was not measured is compared:\n%s", got)
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
