package reactor

import (
	"io"
	"time"
)

// A verdict says what becomes of a backend that ended, and so of the flow from the client.
type verdict uint8

const (
	undecided verdict = iota
	goOn              // the backend is in use, or the Handler said no
	released          // the client's connection is the Handler's again
)

// mayPass is asked by the client's flow before the first bytes go to the backend, with what was read. When it returns
// false the flow is to park.
func (r *portableRelay) mayPass(p []byte, err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asking {
		return false
	}
	r.sending = len(p) > 0
	r.clientEnded = err != nil && len(p) == 0
	return true
}

// park puts back what the client's flow has read and waits for the verdict about the backend. It returns false when the
// flow must end, and not touch the connection again.
func (r *portableRelay) park(p []byte, err error) bool {
	r.client.unread(p, err)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.parked = true
	r.change.Broadcast()
	for r.verdict == undecided && !r.over {
		r.change.Wait()
	}
	r.parked = false
	return r.verdict == goOn && !r.over
}

func (r *portableRelay) isUndecided() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.verdict == undecided
}

// unused is called by the backend's flow at its end. It asks the Handler if nothing was exchanged, and returns true if
// the client's connection was given back to it.
func (r *portableRelay) unused(end ending) bool {
	r.mu.Lock()
	// A write to a connection that was reset returns at once, and tells whether bytes had reached the backend.
	for end == reset && r.sending && !r.over {
		r.change.Wait()
	}
	if end == stopped || r.over || r.sending || r.touched || r.down.Load() > 0 || r.clientEnded ||
		!r.client.ready || r.client.isReset() {
		r.decide(goOn)
		r.mu.Unlock()
		if end == reset {
			r.blame(Backend, nil)
		}
		return false
	}
	r.asking = true
	r.mu.Unlock()

	r.client.nc.SetReadDeadline(longAgo)
	r.mu.Lock()
	for !r.parked {
		r.change.Wait()
	}
	r.mu.Unlock()
	r.client.nc.SetReadDeadline(time.Time{})

	cause := finBy(Backend)
	if end == reset {
		cause = resetBy(Backend)
	}
	n, err := r.client.kept()
	there := err == nil || err == io.EOF && n > 0
	release := there && r.handler.Unused(r.client, cause)

	r.mu.Lock()
	r.asking = false
	pending := r.pending
	if release {
		r.over = true
		r.disarm()
		r.decide(released)
	} else {
		r.decide(goOn)
	}
	r.mu.Unlock()
	switch {
	case release:
		r.backend.Close()
	case pending != 0:
		r.end(pending, false)
	case end == reset:
		r.blame(Backend, nil)
	}
	return release
}

func (r *portableRelay) decide(v verdict) {
	r.verdict = v
	r.change.Broadcast()
}
