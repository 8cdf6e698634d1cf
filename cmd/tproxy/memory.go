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
		// After so many quiet times in a row as much is worth it as may be allocated in one: the last time may have come too early, in a
		// short pause, and what was left behind since would stay.
		settled = 5
	)
	t := time.NewTicker(pace)
	defer t.Stop()
	allocated := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	var before, trimmed uint64
	var calm int // quiet times in a row
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		metrics.Read(allocated)
		now := allocated[0].Value.Uint64()
		if calm++; now-before > quiet {
			calm = 0
		}
		if fresh := now - trimmed; calm > 0 && fresh >= worth || calm >= settled && fresh >= quiet {
			runtime.GC() // what is in a sync.Pool survives one collection
			debug.FreeOSMemory()
			trimmed, calm = now, 0
		}
		before = now
	}
}
