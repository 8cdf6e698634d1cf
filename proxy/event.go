package proxy

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/tproxy/tproxy/internal/reactor"
)

// An Observer is told of every transition, as values. Observe is called on event loops and session goroutines, by
// many at once; it must return quickly and must not block.
type Observer interface {
	Observe(Event)
}

// An ObserverFunc is a function as an [Observer].
type ObserverFunc func(Event)

// Observe calls f.
func (f ObserverFunc) Observe(e Event) { f(e) }

// A Kind says what happened.
type Kind uint8

// Kinds of events. Which fields of [Event] they set is said beside them; Listener and Time are always set.
const (
	// SessionAccepted: ID, Client, Local.
	SessionAccepted Kind = iota + 1
	// ConnectFailed is one failed attempt to reach a backend: ID, Group, Backend, Attempts, Err.
	ConnectFailed
	// SessionOpened: a backend serves from now on; as SessionAccepted, and Group, Backend, Attempts, Pool, Wait, Connect.
	SessionOpened
	// SessionClosed is the last event of every session that was accepted, refused ones too: everything.
	SessionClosed
	// AcceptPaused: accepting backs off because of Err.
	AcceptPaused
	// AcceptResumed follows AcceptPaused.
	AcceptResumed
)

// String is the name of the kind in logs.
func (k Kind) String() string {
	return word(k, "kind", "", "accept", "connect_failed", "open", "close", "accept_paused", "accept_resumed")
}

// An Event is one transition of a session or a listener, as a flat value.
type Event struct {
	Kind     Kind
	Time     time.Time
	Listener string
	ID       SessionID
	Client   Addr // who connected
	Claimed  Addr // who a PROXY header says it was; zero without one
	Local    Addr // where it connected to
	Group    string
	Backend  string // name; empty when none was reached
	Attempts int    // connects tried so far
	Pool     PoolResult
	SNI      string

	Up, Down     uint64        // bytes written to the backend, to the client
	Wait         time.Duration // in the queue, or held for a backend to come up
	Connect      time.Duration // the successful connect alone
	FirstByte    time.Duration // from open to the backend's first byte; 0 if none came
	Duration     time.Duration // from accept to close
	HalfClosedBy Side
	Reason       Reason
	Err          error
}

// A SessionID names a session for the life of the process; IDs are never used twice.
type SessionID uint64

// A PoolResult says where a session's backend connection came from.
type PoolResult uint8

// Pool results.
const (
	PoolOff    PoolResult = iota // the group keeps no spares
	PoolHit                      // a spare
	PoolMiss                     // there was no spare
	PoolReused                   // a connection that served before and was reset
)

// String is the word of the journal.
func (p PoolResult) String() string { return word(p, "pool", "off", "hit", "miss", "reused") }

// An Addr is the address of a TCP or unix socket.
type Addr = reactor.Addr

// A Side is one end of a session.
type Side = reactor.Side

// Sides.
const (
	NoSide      = reactor.NoSide
	ClientSide  = reactor.Client
	BackendSide = reactor.Backend
)

// A Reason says why a session ended; the first cause wins. Its text is the one of the journal and of the metrics.
type Reason uint8

// Reasons.
const (
	NoReason Reason = iota
	ClientFIN
	BackendFIN
	ClientRST
	BackendRST
	Idle
	HalfCloseTimeout
	SessionTimeout
	PrefaceTimeout
	PrefaceInvalid
	Denied
	OverLimit
	QueueFull
	QueueTimeout
	NoBackend
	ConnectFailure
	OnDown
	OnRemoved
	DrainTimeout
	KilledByAdmin
	Rebalanced
	Internal
	numReasons
)

var reasonText = [numReasons]string{"", "client_fin", "backend_fin", "client_rst", "backend_rst", "idle", "half_close_timeout",
	"session_timeout", "preface_timeout", "preface_invalid", "denied", "over_limit", "queue_full", "queue_timeout", "no_backend",
	"connect_failed", "on_down", "on_removed", "drain_timeout", "killed", "rebalanced", "internal"}

// String is the word of the journal; "" for NoReason.
func (r Reason) String() string { return word(r, "reason", reasonText[:]...) }

// Reasons lists every reason a session can end with, in a fixed order.
func Reasons() []Reason {
	all := make([]Reason, 0, numReasons-1)
	for r := ClientFIN; r < numReasons; r++ {
		all = append(all, r)
	}
	return all
}

// LogValue keeps log lines short.
func (r Reason) LogValue() slog.Value { return slog.StringValue(r.String()) }

// word is the one of words that v stands for, or says that what is unknown.
func word[T ~uint8](v T, what string, words ...string) string {
	if int(v) < len(words) {
		return words[v]
	}
	return fmt.Sprintf("%s(%d)", what, uint8(v))
}
