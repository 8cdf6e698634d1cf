package main

import (
	"context"
	"runtime/debug"
	"time"
)

// trim gives memory back to the system when the number of sessions has changed a lot and stands still. The collector would
// do so too, but only when the heap grows: a proxy that held many sessions and holds few, or many quiet ones, may wait for that a long time.
func (i *instance) trim(ctx context.Context) {
	const (
		pace = time.Second
		much = 1000
	)
	t := time.NewTicker(pace)
	defer t.Stop()
	trimmed, before := 0, 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		n := i.limit.Active()
		if n == before && (n > trimmed+much || n < trimmed-much) {
			debug.FreeOSMemory()
			trimmed = n
		}
		before = n
	}
}
