package reactor

// A wheel holds the timers of one loop: 512 slots of 50 ms. A timer is coarse and lazy: a relay sits in the slot where
// something may be due, is looked at then, and is put where the next thing may be due. What lies beyond the horizon of
// 25.6 s waits in the last slot and is looked at again; moving bytes never touches the wheel.
type wheel struct {
	slots [wheelSlots]*relay
	now   int64 // last tick that was run
	count int
}

const (
	wheelSlots = 512
	tick       = 50 // milliseconds
)

// add puts r where time at (milliseconds) falls due: never before it, at most a tick after. What lies beyond the horizon,
// counted from the last tick that was run, falls due at the horizon.
func (w *wheel) add(r *relay, at int64) {
	t := max((at+tick-1)/tick, w.now+1)
	t = min(t, w.now+wheelSlots-1)
	i := t % wheelSlots
	r.slot = int16(i)
	r.prev, r.next = nil, w.slots[i]
	if r.next != nil {
		r.next.prev = r
	}
	w.slots[i] = r
	w.count++
}

// remove takes r out; it is harmless when r is in no slot.
func (w *wheel) remove(r *relay) {
	if r.slot < 0 {
		return
	}
	if r.next != nil {
		r.next.prev = r.prev
	}
	if r.prev != nil {
		r.prev.next = r.next
	} else {
		w.slots[r.slot] = r.next
	}
	r.prev, r.next, r.slot = nil, nil, -1
	w.count--
}

// due removes and returns, appended to out, what falls due up to time now (milliseconds).
func (w *wheel) due(now int64, out []*relay) []*relay {
	last := now / tick
	for steps := 0; w.now < last && steps < wheelSlots; steps++ {
		w.now++
		for r := w.slots[w.now%wheelSlots]; r != nil; r = w.slots[w.now%wheelSlots] {
			w.remove(r)
			out = append(out, r)
		}
	}
	w.now = max(w.now, last)
	return out
}

// next is the time (milliseconds) of the first slot that is not empty, and whether there is one.
func (w *wheel) next() (at int64, ok bool) {
	if w.count == 0 {
		return 0, false
	}
	for t := w.now + 1; ; t++ {
		if w.slots[t%wheelSlots] != nil {
			return t * tick, true
		}
	}
}
