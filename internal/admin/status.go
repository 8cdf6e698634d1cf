package admin

import "time"

// A State is where the process is in its life.
type State string

// States.
const (
	Starting State = "starting" // not every listener is bound
	Ready    State = "ready"
	Draining State = "draining" // from the first moment of a drain on
)

// A Status is everything that runs, at one moment.
type Status struct {
	Version   string     `json:"version"`
	PID       int        `json:"pid"`
	Started   time.Time  `json:"started"`
	UptimeMS  int64      `json:"uptime_ms"`
	State     State      `json:"state"`
	Listeners []Listener `json:"listeners"`
	Groups    []Group    `json:"groups"`
}

// A Listener is one listener of the configuration.
type Listener struct {
	Name       string   `json:"name"`
	Addresses  []string `json:"addresses"` // as bound: with the port that the kernel chose
	Group      string   `json:"group"`
	Active     int      `json:"active"`      // sessions, those in set-up too
	HalfClosed int      `json:"half_closed"` // sessions of which one side has sent FIN
	Limit      int      `json:"limit"`       // sessions at once
	Paused     bool     `json:"paused"`      // not accepting at the moment: full, over a rate, or out of descriptors
}

// A Group is one group of the configuration.
type Group struct {
	Name        string    `json:"name"`
	Balance     string    `json:"balance"`
	Usable      int       `json:"usable"`       // backends that a new session may get
	QueueLength int       `json:"queue_length"` // sessions that wait for a slot
	Backends    []Backend `json:"backends"`
}

// A Backend is one backend of a group.
type Backend struct {
	Name           string `json:"name"`
	Address        string `json:"address"`
	Weight         int    `json:"weight"`
	Tier           int    `json:"tier"`
	MaxConnections int    `json:"max_connections"` // 0: no limit
	State          string `json:"state"`           // ready | drain | maint, as the operator asked
	Up             bool   `json:"up"`              // as health sees it
	Active         int    `json:"active"`          // sessions
	Spares         int    `json:"spares"`
	Probes         Probes `json:"probes"`
	LastProbe      *Probe `json:"last_probe"` // null before the first
}

// Probes counts the probes of a backend since the start.
type Probes struct {
	OK     uint64 `json:"ok"`
	Failed uint64 `json:"failed"`
}

// A Probe is the outcome of one probe.
type Probe struct {
	Time       time.Time `json:"time"`
	OK         bool      `json:"ok"`
	Error      string    `json:"error,omitempty"`
	DurationMS float64   `json:"duration_ms"`
}

// A Session is one open session, with the keys that the journal uses.
type Session struct {
	ID         string    `json:"session"`
	Started    time.Time `json:"started"`
	Listener   string    `json:"listener"`
	Client     string    `json:"client"`
	Claimed    string    `json:"client_claimed"`
	Local      string    `json:"local"`
	Group      string    `json:"group"`
	Backend    string    `json:"backend"` // "" while there is none
	SNI        string    `json:"sni"`
	Up         uint64    `json:"up"`
	Down       uint64    `json:"down"`
	DurationMS int64     `json:"duration_ms"`
	QuietMS    int64     `json:"quiet_ms"` // since the last byte
	HalfClosed bool      `json:"half_closed"`
}

// A Report says what a reload did, or would do. Things are named by kind and name, as "listener web" or "backend g/10.0.0.1:80".
type Report struct {
	DryRun  bool     `json:"dry_run"`
	Kept    []string `json:"kept"`
	Added   []string `json:"added"`
	Changed []string `json:"changed"`
	Removed []string `json:"removed"`
	// OnOldSettings is how many sessions stay on settings that are no longer in the configuration.
	OnOldSettings int `json:"sessions_on_old_settings"`
}

// A Rebalance says what came of one.
type Rebalance struct {
	Group   string `json:"group"`
	Surplus int    `json:"surplus"` // sessions above the shares of their backends, at the beginning
	Closed  int    `json:"closed"`
}

// complete replaces nil lists by empty ones: a client must not meet null where a list is promised.
func (s Status) complete() Status {
	s.Listeners = list(s.Listeners)
	for i := range s.Listeners {
		s.Listeners[i].Addresses = list(s.Listeners[i].Addresses)
	}
	s.Groups = list(s.Groups)
	for i := range s.Groups {
		s.Groups[i].Backends = list(s.Groups[i].Backends)
	}
	return s
}

func (r Report) complete() Report {
	r.Kept, r.Added, r.Changed, r.Removed = list(r.Kept), list(r.Added), list(r.Changed), list(r.Removed)
	return r
}

func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
