package reactor

import "time"

// A queueSample is what the kernel held for a peer at a tick.
type queueSample struct {
	unsent int
	mark   uint64
}

// deadline is when the session ends if nothing moves until then; 0 is never. With mu held.
func (r *portableRelay) deadline() (time.Duration, Cause) {
	var at time.Duration
	var cause Cause
	sooner := func(limit, since time.Duration, c Cause) {
		if limit > 0 && (at == 0 || since+limit < at) {
			at, cause = since+limit, c
		}
	}
	moved := time.Duration(r.moved.Load())
	sooner(r.maxAge, 0, SessionTimeout)
	sooner(r.options.Idle, moved, IdleTimeout)
	if r.clientFIN != r.backendFIN {
		sooner(r.options.HalfClose, max(moved, r.finAt), HalfCloseTimeout)
	}
	return at, cause
}

// arm sets the timer to the deadline, or before: four times in a limit it looks whether a slow reader has taken
// something from the kernel's queue. With mu held.
func (r *portableRelay) arm() {
	at, _ := r.deadline()
	if at == 0 {
		return
	}
	wait := at - r.age()
	if r.options.Idle > 0 {
		wait = min(wait, r.options.Idle/4)
	}
	if r.options.HalfClose > 0 && r.clientFIN != r.backendFIN {
		wait = min(wait, r.options.HalfClose/4)
	}
	r.engine.tasks.Add(1)
	r.armed = true
	if r.timer == nil {
		r.timer = time.AfterFunc(wait, r.tick)
	} else {
		r.timer.Reset(wait)
	}
}

// disarm returns false if a tick is on its way already. With mu held.
func (r *portableRelay) disarm() bool {
	if r.armed {
		if !r.timer.Stop() {
			return false
		}
		r.armed = false
		r.engine.tasks.Done()
	}
	return true
}

func (r *portableRelay) tick() {
	defer r.engine.tasks.Done()
	r.mu.Lock()
	r.armed = false
	if r.over {
		r.mu.Unlock()
		return
	}
	if r.queueMoved(Client) || r.queueMoved(Backend) {
		r.moved.Store(int64(r.age()))
	}
	at, cause := r.deadline()
	if at > r.age() {
		r.arm()
		r.mu.Unlock()
		return
	}
	r.mu.Unlock()
	r.end(cause, false)
}

// queueMoved reports whether the peer has taken something since the last tick that was waiting for it then.
func (r *portableRelay) queueMoved(s Side) bool {
	last := r.queues[s]
	unsent, mark, known := r.conn(s).queue()
	r.queues[s] = queueSample{unsent, mark}
	return known && last.unsent > 0 && mark != last.mark
}
