package health

import "time"

// A Rule says which results bring a backend up or take it down. It is one rule for probes and for the dials of
// sessions: only consecutive results count. It is a pure function of a [State], a result and the time.
type Rule struct {
	// Rise is how many passed probes in a row bring a backend up; 0 means 1.
	Rise int
	// Fall is how many failed probes in a row take a backend down; 0 means 1.
	Fall int
	// Failures is how many failed dials of sessions in a row take a backend down; 0: dials never do.
	Failures int
	// HoldBase is how long a backend stays down at least when it is flapping: when it went down within HoldMax of having
	// come up. It doubles each time, up to HoldMax, and is forgotten once the backend stayed up for HoldMax.
	// 0: no hold-down.
	HoldBase time.Duration
	// HoldMax is the longest hold-down; less than HoldBase means HoldBase.
	HoldMax time.Duration
	// Trial is for backends that nothing probes. A backend that went down is held down the first time too, and
	// comes back on trial when that is over ([Rule.Retry]): one more failed dial takes it down again.
	// A HoldBase of 0 means a second then.
	Trial bool
}

// A State is what a [Rule] knows about one backend. States are values; the zero State is a backend that was down
// from the beginning.
type State struct {
	Up bool
	// Passed and Failed count the last results of probes in a row; one of them is 0.
	Passed, Failed int
	// Dials counts the last failed dials of sessions in a row.
	Dials int
	// Since is when the backend last came up or went down; zero if it never did.
	Since time.Time
	// Hold is how long the backend is held down, counted from Since; while it is up, how long it was held last.
	Hold time.Duration
}

// HeldUntil is when the hold-down ends; zero when the backend is up or not held down.
func (s State) HeldUntil() time.Time {
	if s.Up || s.Hold == 0 {
		return time.Time{}
	}
	return s.Since.Add(s.Hold)
}

// Changing reports whether the last results of probes were contrary to the state, but too few to change it.
func (s State) Changing() bool {
	return s.Up && s.Failed > 0 || !s.Up && s.Passed > 0
}

// Probe is the state after one more result of a probe. alone says that no other backend of the group is up:
// then hold-down is not waited for, because a flapping backend is better than none.
func (r Rule) Probe(s State, passed, alone bool, now time.Time) State {
	if passed {
		s.Passed, s.Failed = s.Passed+1, 0
	} else {
		s.Passed, s.Failed = 0, s.Failed+1
	}
	switch {
	case s.Up && s.Failed >= max(r.Fall, 1):
		return r.down(s, now)
	case !s.Up && s.Passed >= max(r.Rise, 1) && (alone || !now.Before(s.HeldUntil())):
		return up(s, now)
	}
	return s
}

// Dial is the state after a session dialed the backend. A success never brings a backend up.
func (r Rule) Dial(s State, connected bool, now time.Time) State {
	switch {
	case !s.Up:
		return s
	case connected:
		s.Dials = 0
		return s
	}
	s.Dials++
	if r.Failures > 0 && s.Dials >= r.Failures {
		return r.down(s, now)
	}
	return s
}

// Retry is the state of a backend that nothing probes once its time has come to be tried again: up, on trial.
// alone is as in [Rule.Probe], and HoldBase is waited for all the same.
func (r Rule) Retry(s State, alone bool, now time.Time) State {
	if s.Up || !r.Trial || now.Before(r.RetryAt(s, alone)) {
		return s
	}
	s = up(s, now)
	s.Dials = max(r.Failures-1, 0)
	return s
}

// RetryAt is the earliest time at which [Rule.Retry] brings the backend up.
func (r Rule) RetryAt(s State, alone bool) time.Time {
	hold := s.Hold
	if alone {
		hold = min(hold, r.base())
	}
	return s.Since.Add(hold)
}

func up(s State, now time.Time) State {
	return State{Up: true, Since: now, Hold: s.Hold}
}

func (r Rule) down(s State, now time.Time) State {
	base := r.base()
	limit := max(r.HoldMax, base)
	flapping := !s.Since.IsZero() && now.Sub(s.Since) < limit
	var hold time.Duration
	switch {
	case flapping:
		hold = min(max(2*s.Hold, base), limit)
	case r.Trial:
		hold = base
	}
	return State{Since: now, Hold: hold}
}

func (r Rule) base() time.Duration {
	if r.HoldBase == 0 && r.Trial {
		return time.Second
	}
	return r.HoldBase
}
