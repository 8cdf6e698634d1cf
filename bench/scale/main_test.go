//go:build linux

// Package scale measures what limits one machine, with the built program: memory of process and kernel, ports, the accept queue. docs/scale.md has the results.
//
//	go test ./bench/scale                              what is exact: ports, TIME_WAIT
//	go test ./bench/scale -v -sessions 1000,3000,9000  and memory with so many sessions, backlog and slow readers
//
// It needs root and a network namespace of its own, so that the ports are its own.
package scale

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/stage"
)

var (
	built        = flag.String("tproxy", "", "a tproxy to measure instead of building it")
	sessionsFlag = flag.String("sessions", "", "measure with so many sessions, such as 1000,3000,6000,9000; empty: do not")
)

// program is what is measured.
var program string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(stage.Run(m, *built, &program))
}

// needNamespace skips the test outside of a network namespace of its own, and gives that namespace addresses that are not loopback ones: the kernel
// reuses ports in TIME_WAIT sooner between loopback addresses.
func needNamespace(t *testing.T) {
	t.Helper()
	if !stage.Apart() {
		t.Skip("needs a network namespace of its own")
	}
	ip(t, "address", "replace", hosts, "dev", "lo")
}

// hosts are addresses for documentation (RFC 5737); all of them are this machine's, in the namespace.
const hosts = "192.0.2.1/24"

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// sysctl sets a value of the namespace for the time of the test.
func sysctl(t *testing.T, name, value string) {
	t.Helper()
	path := filepath.Join("/proc/sys/net", name)
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		t.Fatalf("set %s to %q: %v", name, value, err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(path, old, 0); err != nil {
			t.Error(err)
		}
	})
}

// sessionCounts is what to measure with; the test is skipped when nothing is asked for.
func sessionCounts(t *testing.T) []int {
	t.Helper()
	if *sessionsFlag == "" {
		t.Skip("opt in with -sessions 1000,3000,6000,9000")
	}
	needNamespace(t)
	var counts []int
	for f := range strings.SplitSeq(*sessionsFlag, ",") {
		n, err := strconv.Atoi(f)
		if err != nil || n <= 0 {
			t.Fatalf("-sessions %s: %q is no number of sessions", *sessionsFlag, f)
		}
		counts = append(counts, n)
	}
	return counts
}

// eventually waits until ok, and fails the test when that takes longer than limit.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	end := time.After(limit)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for !ok() {
		select {
		case <-again.C:
		case <-end:
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// steady returns a value that has stood still for a second, to one part in fifty, or the last one after eight seconds.
func steady(value func() int) int {
	const every = 200 * time.Millisecond
	again := time.NewTicker(every)
	defer again.Stop()
	last, still := value(), 0
	for range 8 * time.Second / every {
		<-again.C
		v := value()
		if d := v - last; d*50 > last || -d*50 > last {
			last, still = v, 0
		} else if still++; still == int(time.Second/every) {
			return v
		}
	}
	return last
}
