package health

import (
	"fmt"
	"time"
)

// An Observer is told of results and of changes, as values. A [Checker] calls Observe in the order in which things happened,
// from one goroutine at a time and with no lock held; probes go on meanwhile, but their events wait.
type Observer interface {
	Observe(Event)
}

// An ObserverFunc is a function as an [Observer].
type ObserverFunc func(Event)

// Observe calls f.
func (f ObserverFunc) Observe(e Event) { f(e) }

// A Kind says what happened.
type Kind uint8

// Kinds of events. Which fields of [Event] they set is said beside them; Time, Group and Backend are always set.
const (
	// Probed is the end of one probe: Result, Took, Err.
	Probed Kind = iota + 1
	// WentUp: Cause, and Err is nil.
	WentUp
	// WentDown: Cause, Err is the last error, Hold.
	WentDown
)

// String is the name of the kind in logs.
func (k Kind) String() string { return word(k, "kind", "", "probe", "up", "down") }

// An Event is one result of a probe or one change of a backend's state, as a flat value.
type Event struct {
	Kind    Kind
	Time    time.Time
	Group   string
	Backend string // name
	Result  Result
	Took    time.Duration // how long the probe ran
	Err     error
	Cause   Cause
	Hold    time.Duration // how long the backend is held down; 0 if it is not
}

// A Result is what came of a probe. Its text labels metrics.
type Result uint8

// Results.
const (
	NoResult Result = iota
	Passed          // the backend serves
	Failed          // it refused, or answered wrongly
	TimedOut        // it did not answer in time; counts as Failed
	NotRun          // a local failure: it says nothing about the backend and does not count
)

// String is the word of the metrics; "" for NoResult.
func (r Result) String() string { return word(r, "result", "", "passed", "failed", "timeout", "local") }

// Results lists every result of a probe, in a fixed order.
func Results() []Result { return []Result{Passed, Failed, TimedOut, NotRun} }

// A Cause says what changed a backend's state.
type Cause uint8

// Causes.
const (
	ByProbe Cause = iota + 1 // consecutive probes
	ByDial                   // consecutive failed dials of sessions
	OnTrial                  // nothing probes it, and its time to be tried again has come
)

// String is the word of the log.
func (c Cause) String() string { return word(c, "cause", "", "probe", "dial", "trial") }

// word is the one of words that v stands for, or says that what is unknown.
func word[T ~uint8](v T, what string, words ...string) string {
	if int(v) < len(words) {
		return words[v]
	}
	return fmt.Sprintf("%s(%d)", what, uint8(v))
}
