//go:build linux

package health

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

type loadBackend struct{ name, address string }

func (b loadBackend) Name() string    { return b.name }
func (b loadBackend) Address() string { return b.address }
func (b loadBackend) SetUp(bool)      {}

// Benchmark10000Backends probes ten thousand backends at the default interval for b.N seconds (-benchtime 10x). They are addresses of
// one listener in this process, so the kernel's work for both ends is counted in. It reports the part of one core that is
// used, and the memory that a backend takes.
func Benchmark10000Backends(b *testing.B) {
	ln, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		b.Fatal(err)
	}
	var accepts sync.WaitGroup
	accepts.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	})
	defer accepts.Wait()
	defer ln.Close()

	const backends = 10_000
	var passed, failed atomic.Int64
	before := heapBytes()
	c := New(Config{Group: "g", Prober: TCP{}, Observer: ObserverFunc(func(e Event) {
		switch e.Result {
		case Passed:
			passed.Add(1)
		case Failed, TimedOut:
			failed.Add(1)
		}
	})})
	port := ln.Addr().(*net.TCPAddr).Port
	for i := range backends {
		address := fmt.Sprintf("127.1.%d.%d:%d", i/250, i%250+1, port)
		c.Add(loadBackend{address, address})
	}
	after := heapBytes()

	ctx, stop := context.WithCancel(b.Context())
	var run sync.WaitGroup
	run.Go(func() {
		if err := c.Run(ctx); err != nil {
			b.Error(err)
		}
	})
	goroutines := 0
	used, start := cpu(b), time.Now()
	for b.Loop() {
		time.Sleep(time.Second)
		goroutines = max(goroutines, runtime.NumGoroutine())
	}
	took, used := time.Since(start), cpu(b)-used
	stop()
	run.Wait()
	b.ReportMetric(float64(used)/float64(took), "cores")
	b.ReportMetric(float64(used.Microseconds())/float64(passed.Load()), "µs/probe")
	b.ReportMetric(float64(passed.Load())/took.Seconds(), "probes/s")
	b.ReportMetric(float64(failed.Load()), "failed")
	b.ReportMetric(float64(after-before)/backends, "B/backend")
	b.ReportMetric(float64(goroutines), "goroutines")
}

func heapBytes() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
