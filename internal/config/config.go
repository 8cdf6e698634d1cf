// Package config reads what tproxy is told: a file (YAML; TOML and JSON by extension), environment variables and flags.
//
// [Load] and [Parse] either return a whole, valid configuration or every mistake in it, each with the place where it
// was made and the value that is wrong. Nothing is bound, resolved, written or logged.
//
// The types below are the schema. A field's koanf tag is its key; default is its value where no source sets it; oneof,
// min and max are what is accepted (an integer without them is 0 to 2147483647, a duration 0 to 87600h). Zero means
// "no limit" unless the field says otherwise. The order of the fields is the order of [Dump].
package config

import (
	"net/netip"
	"time"
)

// A Config is a whole, valid configuration. It is not changed after Load returned it.
type Config struct {
	Listeners map[string]*Listener `koanf:"listeners"`
	Groups    map[string]*Group    `koanf:"groups"`
	Drain     Drain                `koanf:"drain"`
	Limits    Limits               `koanf:"limits"`
	Admin     Admin                `koanf:"admin"`
	Log       Log                  `koanf:"log"`
	Process   Process              `koanf:"process"`

	// ListenerNames and GroupNames are the keys of Listeners and Groups in the order in which they are written.
	ListenerNames []string `koanf:"-"`
	GroupNames    []string `koanf:"-"`
}

// A Listener accepts clients and sends them to a group.
type Listener struct {
	Name string `koanf:"-"`

	Address []Address `koanf:"address"` // one or more; port 0: the kernel chooses
	// Group serves the sessions that no route takes. Unset, it is the group with the listener's own name, if there is
	// one; it is empty only where there are routes.
	Group                   string         `koanf:"group"`
	Routes                  []Route        `koanf:"routes"`                                       // the first match wins
	MaxConnections          int            `koanf:"max_connections" default:"0"`                  // 0: as many as the descriptor limit carries
	WhenFull                string         `koanf:"when_full" default:"wait" oneof:"wait reject"` // wait: stop accepting; reject: accept and reset
	MaxConnectionsPerSource int            `koanf:"max_connections_per_source" default:"0"`
	SourcePrefix            SourcePrefix   `koanf:"source_prefix"`
	AcceptRate              int            `koanf:"accept_rate" default:"0"`            // new sessions a second; over it accepting pauses
	AcceptRatePerSource     int            `koanf:"accept_rate_per_source" default:"0"` // over it: reset
	Allow                   []netip.Prefix `koanf:"allow"`                              // empty: all
	Deny                    []netip.Prefix `koanf:"deny"`                               // beats Allow
	ProxyProtocol           ProxyProtocol  `koanf:"proxy_protocol"`
	TLS                     *Terminate     `koanf:"tls"` // nil: bytes are passed as they are
	HalfClose               bool           `koanf:"half_close" default:"true"`
	Backlog                 int            `koanf:"backlog" default:"4096" min:"1"`
	Timeouts                Timeouts       `koanf:"timeouts"`
	Keepalive               Keepalive      `koanf:"keepalive"`                  // both sides
	UserTimeout             time.Duration  `koanf:"user_timeout" default:"60s"` // TCP_USER_TIMEOUT, both sides
	Engine                  string         `koanf:"engine" default:"auto" oneof:"auto epoll portable"`
}

// A Route sends some of a listener's sessions elsewhere. Every list that is given must match.
type Route struct {
	SNI    []string       `koanf:"sni"`
	ALPN   []string       `koanf:"alpn"`
	Source []netip.Prefix `koanf:"source"`
	Group  string         `koanf:"group"`
	Reject bool           `koanf:"reject" default:"false"` // instead of Group
}

// A SourcePrefix says how many leading bits of an address make one source.
type SourcePrefix struct {
	IPv4 int `koanf:"ipv4" default:"32" max:"32"`
	IPv6 int `koanf:"ipv6" default:"64" max:"128"`
}

// ProxyProtocol says whose PROXY headers (v1 and v2) a listener believes.
type ProxyProtocol struct {
	Accept  string         `koanf:"accept" default:"off" oneof:"off require optional"`
	Trusted []netip.Prefix `koanf:"trusted"` // must be given unless Accept is off
}

// Terminate makes a listener the TLS server of its clients.
type Terminate struct {
	Certificates []Certificate `koanf:"certificates"`
	ClientCA     string        `koanf:"client_ca"` // a PEM file; clients must show a certificate that it signed
	MinVersion   string        `koanf:"min_version" default:"1.2" oneof:"1.0 1.1 1.2 1.3"`
	ALPN         []string      `koanf:"alpn"`
}

// A Certificate is a pair of PEM files.
type Certificate struct {
	Cert string `koanf:"cert"`
	Key  string `koanf:"key"`
}

// Timeouts bound a session's time; 0 is no limit.
type Timeouts struct {
	Preface   time.Duration `koanf:"preface" default:"5s"`    // PROXY header and ClientHello, whole and absolute
	Idle      time.Duration `koanf:"idle" default:"1h"`       // no byte in either direction
	HalfClose time.Duration `koanf:"half_close" default:"5m"` // after one side's FIN: no byte in the other direction
	Session   time.Duration `koanf:"session" default:"0"`     // the whole session; spread by ±10 %
}

// Keepalive is TCP's.
type Keepalive struct {
	Idle     time.Duration `koanf:"idle" default:"60s"` // whole seconds; 0: off
	Interval time.Duration `koanf:"interval" default:"15s"`
	Count    int           `koanf:"count" default:"4" min:"1" max:"127"`
}

// A Group is the backends that serve a listener.
type Group struct {
	Name string `koanf:"-"`

	Balance       string        `koanf:"balance" default:"least_conn" oneof:"round_robin least_conn random source_hash first"`
	Backends      []Backend     `koanf:"backends"`
	Discover      *Discover     `koanf:"discover"` // nil: Backends are all
	Connect       Connect       `koanf:"connect"`
	Hold          time.Duration `koanf:"hold" default:"0s"` // 0: a client is not held when no backend is usable
	Queue         Queue         `koanf:"queue"`
	Pool          Pool          `koanf:"pool"`
	Health        Health        `koanf:"health"`
	OnDown        string        `koanf:"on_down" default:"keep" oneof:"keep spread cut"`
	OnRemoved     string        `koanf:"on_removed" default:"keep" oneof:"keep spread cut"`
	SlowStart     time.Duration `koanf:"slow_start" default:"0s"` // 0: none
	SendProxy     string        `koanf:"send_proxy" default:"off" oneof:"off v1 v2"`
	TLS           *Originate    `koanf:"tls"`            // nil: bytes are passed as they are
	SourceAddress netip.Addr    `koanf:"source_address"` // the zero Addr: the kernel chooses
}

// A Backend is one server of a group. In a file it may be written as its address alone.
type Backend struct {
	Address        Address `koanf:"address"`
	Name           string  `koanf:"name"`                         // the address where none is given
	Weight         int     `koanf:"weight" default:"1" max:"256"` // 0: only drains
	Tier           int     `koanf:"tier" default:"0"`             // the next one is used when none above is usable
	MaxConnections int     `koanf:"max_connections" default:"0"`
}

// Discover is where a group's backends come from; exactly one field is set.
type Discover struct {
	DNS        *DNS           `koanf:"dns"`
	SRV        *SRV           `koanf:"srv"`
	File       string         `koanf:"file"`
	Etcd       *Etcd          `koanf:"etcd"`
	Consul     map[string]any `koanf:"consul"`
	Kubernetes map[string]any `koanf:"kubernetes"`
}

// DNS takes every address of a name.
type DNS struct {
	Name     string        `koanf:"name"`
	Port     int           `koanf:"port" min:"1" max:"65535"`
	Interval time.Duration `koanf:"interval" default:"30s"`
}

// SRV takes every target of a name.
type SRV struct {
	Name     string        `koanf:"name"`
	Interval time.Duration `koanf:"interval" default:"30s"`
}

// Etcd takes every key below a prefix.
type Etcd struct {
	Endpoints []string `koanf:"endpoints"`
	Prefix    string   `koanf:"prefix"`
}

// Connect bounds the search for a backend that answers.
type Connect struct {
	Timeout  time.Duration `koanf:"timeout" default:"5s"` // one attempt
	Attempts int           `koanf:"attempts" default:"3"`
	Total    time.Duration `koanf:"total" default:"15s"` // all attempts of a session
	Backoff  Backoff       `koanf:"backoff"`
}

// Backoff is the pause between attempts when every backend was tried: Base, doubled each time up to Max.
type Backoff struct {
	Base time.Duration `koanf:"base" default:"50ms" min:"1ms"`
	Max  time.Duration `koanf:"max" default:"1s" min:"1ms"`
}

// Queue bounds the sessions that wait for a slot when all backends are at their max_connections.
type Queue struct {
	Max     int           `koanf:"max" default:"1024"`
	Timeout time.Duration `koanf:"timeout" default:"5s"`
}

// Pool is the spares that a group keeps at each backend.
type Pool struct {
	Warm        int           `koanf:"warm" default:"0"` // 0: no spares
	MaxAge      time.Duration `koanf:"max_age" default:"8s"`
	RefillRate  int           `koanf:"refill_rate" default:"50"` // connects a second
	SpeaksFirst string        `koanf:"speaks_first" default:"either" oneof:"either client server"`
	Reset       *Reset        `koanf:"reset"` // nil: a connection that was used is not used again
}

// Reset is the exchange after which a used backend connection may serve another client.
type Reset struct {
	Send    string        `koanf:"send"`
	Expect  string        `koanf:"expect"`
	Timeout time.Duration `koanf:"timeout" default:"1s" min:"1ms"`
}

// Health says how a group finds out which backends are up.
type Health struct {
	Probe        string        `koanf:"probe" default:"tcp" oneof:"tcp send_expect tls http exec none"`
	Interval     time.Duration `koanf:"interval" default:"2s" min:"1ms"`
	FastInterval time.Duration `koanf:"fast_interval" default:"500ms" min:"1ms"` // while changing state
	Timeout      time.Duration `koanf:"timeout" default:"1s" min:"1ms"`
	Rise         int           `koanf:"rise" default:"2" min:"1"`
	Fall         int           `koanf:"fall" default:"3" min:"1"`
	Port         int           `koanf:"port" default:"0" max:"65535"` // 0: the backend's
	Send         string        `koanf:"send"`
	Expect       string        `koanf:"expect"` // a prefix, or "re:" and a regular expression
	HTTP         HTTP          `koanf:"http"`
	Command      []string      `koanf:"command"`
	Initial      string        `koanf:"initial" default:"up" oneof:"up down"`
	Passive      Passive       `koanf:"passive"`
	HoldDown     HoldDown      `koanf:"hold_down"`
	MinUsable    int           `koanf:"min_usable" default:"0" max:"100"` // percent; 0: never fail open
}

// HTTP is the request of the http probe.
type HTTP struct {
	Path   string `koanf:"path" default:"/"`
	Host   string `koanf:"host"`                     // empty: the backend's address
	Status string `koanf:"status" default:"200-399"` // codes and ranges, with commas
}

// Passive counts consecutive failed dials by sessions.
type Passive struct {
	Failures  int  `koanf:"failures" default:"3"` // 0: failed dials do not take a backend down
	FastProbe bool `koanf:"fast_probe" default:"true"`
}

// HoldDown keeps a backend that flaps down: Base, doubled each time up to Max.
type HoldDown struct {
	Base time.Duration `koanf:"base" default:"1s"` // 0: off
	Max  time.Duration `koanf:"max" default:"60s"`
}

// Originate makes a group the TLS client of its backends.
type Originate struct {
	ServerName string   `koanf:"server_name"` // empty: the host of the backend's address
	CA         string   `koanf:"ca"`
	Cert       string   `koanf:"cert"`
	Key        string   `koanf:"key"`
	ALPN       []string `koanf:"alpn"`
}

// Drain is the way out.
type Drain struct {
	Delay   time.Duration `koanf:"delay" default:"0s"`    // not ready, but still accepting
	Timeout time.Duration `koanf:"timeout" default:"30s"` // then sessions are reset
	Spread  bool          `koanf:"spread" default:"true"` // close idle sessions first, evenly over the window
}

// Limits are those of the process.
type Limits struct {
	MaxConnections     int `koanf:"max_connections" default:"0"`
	ReserveDescriptors int `koanf:"reserve_descriptors" default:"64"`
}

// Admin is the admin address.
type Admin struct {
	Address   Address `koanf:"address" default:"127.0.0.1:9900"` // the zero Address: none
	TokenFile string  `koanf:"token_file"`
	PProf     bool    `koanf:"pprof" default:"false"`
}

// Log is the program's own log.
type Log struct {
	Level    string   `koanf:"level" default:"info" oneof:"debug info warn error"`
	Format   string   `koanf:"format" default:"auto" oneof:"auto text json"`
	Sessions Sessions `koanf:"sessions"`
}

// Sessions is the journal.
type Sessions struct {
	Open  bool          `koanf:"open" default:"false"`
	Close bool          `koanf:"close" default:"true"`
	Every time.Duration `koanf:"every" default:"0s"` // 0: no progress records
	Path  string        `koanf:"path"`               // empty: with the log
}

// Process is how the process shows itself to the system.
type Process struct {
	PIDFile string `koanf:"pid_file"`
	User    string `koanf:"user"`
	Group   string `koanf:"group"`
}
