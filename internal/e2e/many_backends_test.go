//go:build linux

package e2e

import (
	"flag"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/stage"
)

var manyFlag = flag.Int("backends", 0, "measure what so many backends with probes cost, such as 10000; 0: do not")

// What probing many backends costs is measured, not judged.
func TestProbesOfManyBackends(t *testing.T) {
	n := *manyFlag
	if n == 0 {
		t.Skip("opt in with -backends 10000")
	}
	if !stage.Apart() {
		t.Skip("needs a network namespace of its own")
	}
	ln, err := net.Listen("tcp", "0.0.0.0:7000")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	backends := make([]string, n)
	for i := range backends {
		backends[i] = fmt.Sprintf(`"127.%d.%d.%d:7000"`, 3+i>>16, i>>8&255, i&255)
	}
	const interval = 2 * time.Second
	for _, probe := range []string{"none", "tcp"} {
		start := time.Now()
		p := runProxy(t, 4096, fmt.Sprintf(`
listeners: {main: {address: "127.0.0.1:0", group: main}}
groups: {main: {backends: [%s], health: {probe: %s, interval: %v}}}
drain: {timeout: 1s}
`, strings.Join(backends, ", "), probe, interval))
		ready := time.Since(start)
		<-time.After(3 * interval)
		cpu, from := p.processor(), time.Now()
		<-time.After(5 * interval)
		used, over := p.processor()-cpu, time.Since(from)
		probes := p.metric("tproxy_probes_total", "")
		t.Logf("%d backends, probe %s: ready after %v, %.1f %% of a core, %d KiB resident, %d B a backend; %.0f probes so far, %v usable, %d descriptors; GOMAXPROCS %d",
			n, probe, ready.Round(time.Millisecond), 100*used.Seconds()/over.Seconds(), p.resident()>>10, p.resident()/n, probes, p.usable("main"), p.descriptors(), runtime.GOMAXPROCS(0))
		if p.usable("main") != n {
			t.Errorf("%d of %d backends are usable", p.usable("main"), n)
		}
	}
}
