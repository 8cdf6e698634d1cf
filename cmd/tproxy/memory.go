package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// trim gives memory back to the system when the process has become quiet after it was busy. The collector runs when the heap
// has grown: a proxy that held many sessions and holds few, or many quiet ones, may keep what setting them up took for a long time.
func trim(ctx context.Context) {
	const (
		pace  = time.Second
		quiet = 256 << 10 // bytes allocated in that time, at most
		worth = 2 << 20   // bytes allocated since the last time, at least
	)
	t := time.NewTicker(pace)
	defer t.Stop()
	allocated := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	var before, trimmed uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		metrics.Read(allocated)
		now := allocated[0].Value.Uint64()
		if now-before <= quiet && now-trimmed >= worth {
			runtime.GC() // what is in a sync.Pool survives one collection
			debug.FreeOSMemory()
			trimmed = now
		}
		before = now
	}
}
