package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/health"
	"github.com/tproxy/tproxy/internal/admin"
	"github.com/tproxy/tproxy/internal/config"
	"github.com/tproxy/tproxy/internal/journal"
	"github.com/tproxy/tproxy/pool"
	"github.com/tproxy/tproxy/proxy"
)

// An instance is everything that runs from one configuration.
type instance struct {
	program  program
	log      *slog.Logger
	narrator *narrator
	config   *config.Config
	started  time.Time
	state    atomic.Value // admin.State

	limit     *proxy.Limit
	engines   map[string]*proxy.Engine
	groups    map[string]*group
	listeners map[string]*proxy.Server
	journal   *journal.Journal // nil: none
	metrics   *admin.Metrics   // nil without an admin address, like events
	events    *admin.Events
	admin     *admin.Server

	probes     sync.WaitGroup // the health checkers, until stopProbes
	probing    context.Context
	stopProbes context.CancelFunc
	serving    sync.WaitGroup // the admin server, until stopAdmin
	stopAdmin  context.CancelFunc
}

// A group is the backends of one group at work.
type group struct {
	config   *config.Group
	backends *backend.Group
	proxy    *proxy.Group
	checker  *health.Checker
	watches  sync.Map // *backend.Backend to *watch
}

// A watch is the health of one backend.
type watch struct {
	*health.Watch
	passed, failed atomic.Uint64
}

// Report implements proxy.Health.
func (g *group) Report(b *backend.Backend, err error) {
	if w, ok := g.watches.Load(b); ok {
		w.(*watch).Report(err)
	}
}

// open builds what the configuration describes and binds every address. Nothing is accepted before start. On an error everything
// is given back, and every address that could not be bound is named.
func open(p program) (_ *instance, err error) {
	c, log := p.config, p.log
	i := &instance{program: p, log: log, narrator: newNarrator(log), config: c, started: time.Now(),
		engines: make(map[string]*proxy.Engine), groups: make(map[string]*group), listeners: make(map[string]*proxy.Server)}
	i.state.Store(admin.Starting)
	i.probing, i.stopProbes = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			i.close()
		}
	}()
	if i.limit, err = sessionLimit(c, log); err != nil {
		return nil, err
	}
	observer, err := i.observers()
	if err != nil {
		return nil, err
	}
	for _, name := range c.GroupNames {
		if i.groups[name], err = i.newGroup(c.Groups[name]); err != nil {
			return nil, err
		}
	}
	var failed []error
	for _, name := range c.ListenerNames {
		s, err := i.newServer(c.Listeners[name], observer)
		if err != nil {
			return nil, err
		}
		i.listeners[name] = s
		for _, address := range c.Listeners[name].Address {
			if _, err := s.Listen(address.String()); err != nil {
				failed = append(failed, fmt.Errorf("listeners.%s.address: %w", name, err))
			}
		}
	}
	if i.admin != nil {
		if err := i.admin.Listen(); err != nil {
			failed = append(failed, fmt.Errorf("admin.address: %w", err))
		}
	}
	return i, errors.Join(failed...)
}

// sessionLimit is the limit that the descriptors and the configuration set.
func sessionLimit(c *config.Config, log *slog.Logger) (*proxy.Limit, error) {
	descriptors, carried, err := proxy.Descriptors(c.Limits.ReserveDescriptors)
	if err != nil {
		return nil, err
	}
	max := c.Limits.MaxConnections
	warn := func(key string, wanted int) {
		log.Warn(key+" is more than the descriptor limit carries", "wanted", wanted, "carried", carried, "descriptors", descriptors,
			"reserved", c.Limits.ReserveDescriptors)
	}
	if carried > 0 {
		if max > carried {
			warn("limits.max_connections", max)
		}
		for _, name := range c.ListenerNames {
			if n := c.Listeners[name].MaxConnections; n > carried {
				warn("listeners."+name+".max_connections", n)
			}
		}
		if max == 0 || max > carried {
			max = carried
		}
	}
	log.Info("session limit", "sessions", max, "descriptors", descriptors)
	return proxy.NewLimit(max), nil
}

// observers sets up who is told of events: journal, metrics, followers of the admin API, and the log.
func (i *instance) observers() (proxy.Observer, error) {
	all := observers{i.narrator}
	if i.program.observer != nil {
		all = append(all, i.program.observer)
	}
	c := i.config
	if s := c.Log.Sessions; s.Open || s.Close || s.Every > 0 {
		j, err := journal.Open(journal.Options{Open: s.Open, Close: s.Close, Every: s.Every, Sessions: i.openSessions, Path: s.Path, Log: i.log})
		if err != nil {
			return nil, fmt.Errorf("log.sessions.path: %w", err)
		}
		i.journal = j
		all = append(all, j)
	}
	if c.Admin.Address.IsZero() {
		return all, nil
	}
	token := ""
	if c.Admin.TokenFile != "" {
		var err error
		if token, err = admin.ReadToken(c.Admin.TokenFile); err != nil {
			return nil, fmt.Errorf("admin.token_file: %w", err)
		}
	}
	i.metrics = admin.NewMetrics(version(), i)
	if i.journal != nil {
		i.metrics.CounterFunc("tproxy_journal_dropped_total", "Journal records that were lost.", i.journal.Dropped)
	}
	i.events = new(admin.Events)
	i.admin = &admin.Server{Address: c.Admin.Address.String(), Token: token, PProf: c.Admin.PProf, Control: i, Metrics: i.metrics.Handler(),
		Events: i.events, Log: i.log}
	return append(all, i.metrics, i.events), nil
}

type observers []proxy.Observer

func (os observers) Observe(e proxy.Event) {
	for _, o := range os {
		o.Observe(e)
	}
}

func (i *instance) newGroup(c *config.Group) (*group, error) {
	balance, err := backend.ParseBalance(c.Balance)
	if err != nil {
		return nil, fmt.Errorf("groups.%s.balance: %w", c.Name, err)
	}
	prober, err := newProber(c)
	if err != nil {
		return nil, fmt.Errorf("groups.%s.health: %w", c.Name, err)
	}
	g := &group{config: c, checker: health.New(health.Config{
		Group: c.Name, Prober: prober, Interval: c.Health.Interval, FastInterval: c.Health.FastInterval, Timeout: c.Health.Timeout,
		Rule: health.Rule{Rise: c.Health.Rise, Fall: c.Health.Fall, Failures: c.Health.Passive.Failures, HoldBase: c.Health.HoldDown.Base,
			HoldMax: c.Health.HoldDown.Max},
		InitialDown: c.Health.Initial == "down", FastProbe: c.Health.Passive.FastProbe, Observer: health.ObserverFunc(i.observeHealth)})}
	var members []*backend.Backend
	for _, b := range c.Backends {
		m, err := backend.New(backend.Config{Name: b.Name, Address: b.Address.String(), Weight: b.Weight, Tier: b.Tier, MaxConnections: b.MaxConnections})
		if err != nil {
			return nil, fmt.Errorf("groups.%s.backends: %w", c.Name, err)
		}
		members = append(members, m)
	}
	g.backends, err = backend.NewGroup(backend.GroupConfig{Name: c.Name, Balance: balance, Backends: members, MinUsable: c.Health.MinUsable,
		SlowStart: c.SlowStart})
	if err != nil {
		return nil, fmt.Errorf("groups.%s: %w", c.Name, err)
	}
	g.proxy = &proxy.Group{
		Backends: g.backends,
		Connect: proxy.Connect{Timeout: c.Connect.Timeout, Attempts: c.Connect.Attempts, Total: c.Connect.Total,
			BackoffBase: c.Connect.Backoff.Base, BackoffMax: c.Connect.Backoff.Max},
		Queue:  pool.NewQueue(c.Queue.Max, c.Queue.Timeout),
		Health: g,
	}
	if c.Hold > 0 {
		g.proxy.Hold = pool.NewQueue(c.Queue.Max, c.Hold)
	}
	g.backends.OnFreed(func() {
		g.proxy.Queue.Wake()
		if g.proxy.Hold != nil {
			g.proxy.Hold.Wake()
		}
	})
	for _, b := range members {
		g.watches.Store(b, &watch{Watch: g.checker.Add(b)})
	}
	return g, nil
}

func newProber(c *config.Group) (health.Prober, error) {
	dialer := health.Dialer{Port: uint16(c.Health.Port)}
	switch h := c.Health; h.Probe {
	case "tcp":
		return health.TCP{Dialer: dialer}, nil
	case "send_expect":
		expect, err := health.ParseExpect(h.Expect)
		return health.SendExpect{Dialer: dialer, Send: h.Send, Expect: expect}, err
	case "tls":
		return health.TLS{Dialer: dialer}, nil
	case "http":
		status, err := health.ParseStatus(h.HTTP.Status)
		return health.HTTP{Dialer: dialer, Path: h.HTTP.Path, Host: h.HTTP.Host, Status: status}, err
	case "exec":
		return health.Exec{Command: h.Command}, nil
	}
	return nil, nil
}

func (i *instance) newServer(c *config.Listener, observer proxy.Observer) (*proxy.Server, error) {
	engine := i.engines[c.Engine]
	if engine == nil {
		var err error
		if engine, err = proxy.NewEngine(c.Engine); err != nil {
			return nil, fmt.Errorf("listeners.%s.engine: %w", c.Name, err)
		}
		i.engines[c.Engine] = engine
	}
	return &proxy.Server{
		Name: c.Name, Engine: engine, Limit: i.limit, Backlog: c.Backlog, Observer: observer,
		Settings: proxy.Settings{
			Group: i.groups[c.Group].proxy, MaxConnections: c.MaxConnections, RejectWhenFull: c.WhenFull == "reject",
			Timeouts:    proxy.Timeouts{Idle: c.Timeouts.Idle, HalfClose: c.Timeouts.HalfClose, Session: c.Timeouts.Session},
			Keepalive:   proxy.Keepalive{Idle: c.Keepalive.Idle, Interval: c.Keepalive.Interval, Count: c.Keepalive.Count},
			UserTimeout: c.UserTimeout, CloseOnFIN: !c.HalfClose,
		},
	}, nil
}

func (i *instance) observeHealth(e health.Event) {
	i.narrator.Health(e)
	if i.program.health != nil {
		i.program.health(e)
	}
	g := i.groups[e.Group]
	if g == nil {
		return
	}
	if b, ok := g.backends.Lookup(e.Backend); ok && e.Kind == health.Probed {
		if w, ok := g.watches.Load(b); ok && e.Err == nil {
			w.(*watch).passed.Add(1)
		} else if ok {
			w.(*watch).failed.Add(1)
		}
	}
	if i.events != nil && e.Kind != health.Probed {
		i.events.Publish("backend_"+e.Kind.String(), map[string]string{"group": e.Group, "backend": e.Backend, "cause": e.Cause.String()})
	}
}

// start begins to accept, and to answer on the admin address.
func (i *instance) start() {
	if i.admin != nil {
		var ctx context.Context
		ctx, i.stopAdmin = context.WithCancel(context.Background())
		i.serving.Go(func() {
			if err := i.admin.Run(ctx); err != nil {
				i.log.Error("admin", "error", err)
			}
		})
	}
	for _, g := range i.groups {
		i.probes.Go(func() { g.checker.Run(i.probing) })
	}
	for _, s := range i.listeners {
		s.Start()
	}
	i.state.Store(admin.Ready)
}

// close gives everything back; sessions that are open are reset.
func (i *instance) close() {
	i.stopProbes()
	for _, s := range i.listeners {
		s.Close()
	}
	i.probes.Wait()
	for _, g := range i.groups {
		if g != nil {
			g.backends.Close()
		}
	}
	if i.stopAdmin != nil {
		i.stopAdmin()
		i.serving.Wait()
	} else if i.admin != nil {
		i.admin.Close()
	}
	for _, e := range i.engines {
		e.Close()
	}
	if i.journal != nil {
		if err := i.journal.Close(); err != nil {
			i.log.Error("journal", "error", err)
		}
	}
}
