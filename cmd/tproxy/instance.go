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
	"github.com/tproxy/tproxy/internal/handover"
	"github.com/tproxy/tproxy/internal/journal"
	"github.com/tproxy/tproxy/proxy"
)

// An instance is a proxy process at work.
type instance struct {
	program  program
	log      *slog.Logger
	narrator *narrator
	started  time.Time
	state    atomic.Value // admin.State

	limit    *proxy.Limit
	engines  sync.Map // kind to *proxy.Engine
	observer proxy.Observer
	journal  *journal.Journal // nil: none
	metrics  *admin.Metrics   // nil without an admin address, like events
	events   *admin.Events
	admin    *admin.Server

	inherited *handover.Inheritance
	changed   chan struct{}     // holds one token: the configuration file is another
	upgrades  chan chan<- error // asks untilStop for an upgrade, and how it ended
	leaving   chan struct{}     // closed when untilStop has returned
	replaced  atomic.Bool       // a successor serves

	reloading  chan struct{}   // holds a token while there is a change, or the addresses must stay what they are; it may take long
	changing   context.Context // of changes, until abandon
	abandon    context.CancelFunc
	committing sync.Mutex // held while a change is made, and by drain: it sees what is current before a change or after
	current    atomic.Pointer[running]
	lastReload <-chan struct{} // closed when the last reload that a signal asked for has ended; nil: there was none

	serving    sync.WaitGroup // the admin server, until stopAdmin
	stopAdmin  context.CancelFunc
	life       context.Context // of what runs in the background, until die
	die        context.CancelFunc
	background sync.WaitGroup
}

// running is what runs from one configuration; an immutable whole. What it holds is shared with the one before and after.
type running struct {
	config    *config.Config
	groups    map[string]*group
	listeners map[string]*proxy.Server
	tls       map[string]*terminator // of the listeners that have it
	retired   []*proxy.Server        // of listeners that left the configuration; they may still have sessions
}

// servers are all that may have sessions.
func (r *running) servers() []*proxy.Server {
	all := append([]*proxy.Server(nil), r.retired...)
	for _, s := range r.listeners {
		all = append(all, s)
	}
	return all
}

// open builds what the configuration describes and binds every address. Nothing is accepted before start. On an error everything
// is given back, and every address that could not be bound is named. Sockets that were inherited are taken, not bound.
func open(p program, inherited *handover.Inheritance) (_ *instance, err error) {
	c := p.config
	i := &instance{program: p, log: p.log, narrator: newNarrator(p.log), started: time.Now(), inherited: inherited,
		upgrades: make(chan chan<- error), leaving: make(chan struct{}),
		reloading: make(chan struct{}, 1), changed: make(chan struct{}, 1)}
	i.state.Store(admin.Starting)
	i.current.Store(&running{config: new(config.Config)})
	i.life, i.die = context.WithCancel(context.Background())
	i.changing, i.abandon = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			i.close()
		}
	}()
	if i.limit, err = sessionLimit(c, p.log); err != nil {
		return nil, err
	}
	if err := i.observers(c); err != nil {
		return nil, err
	}
	old, ch := i.current.Load(), newChange(c)
	err = i.prepare(i.changing, ch, old, c)
	if i.admin != nil {
		if e := i.listenAdmin(c.Admin.Address); e != nil {
			err = errors.Join(err, fmt.Errorf("admin.address: %w", e))
		}
	}
	if err == nil {
		err = i.dropPrivileges(c)
	}
	if err != nil {
		ch.undo()
		return nil, err
	}
	return i, i.commit(ch, old, c)
}

// sessionLimit is the limit that the descriptors and the configuration set.
func sessionLimit(c *config.Config, log *slog.Logger) (*proxy.Limit, error) {
	descriptors, carried, err := proxy.Descriptors(c.Limits.ReserveDescriptors)
	if err != nil {
		return nil, err
	}
	warn := func(key string, wanted int) {
		log.Warn(key+" is more than the descriptor limit carries", "wanted", wanted, "carried", carried, "descriptors", descriptors,
			"reserved", c.Limits.ReserveDescriptors)
	}
	most := c.Limits.MaxConnections
	if carried > 0 {
		if most > carried {
			warn("limits.max_connections", most)
		}
		for _, name := range c.ListenerNames {
			if n := c.Listeners[name].MaxConnections; n > carried {
				warn("listeners."+name+".max_connections", n)
			}
		}
		if most == 0 || most > carried {
			most = carried
		}
	}
	log.Info("session limit", "sessions", most, "descriptors", descriptors)
	return proxy.NewLimit(most), nil
}

// observers sets up who is told of events: journal, metrics, followers of the admin API, and the log.
func (i *instance) observers(c *config.Config) error {
	all := observers{i.narrator}
	if i.program.observer != nil {
		all = append(all, i.program.observer)
	}
	if s := c.Log.Sessions; s.Open || s.Close || s.Every > 0 {
		j, err := journal.Open(journal.Options{Open: s.Open, Close: s.Close, Every: s.Every, Sessions: i.openSessions, Path: s.Path, Log: i.log})
		if err != nil {
			return fmt.Errorf("log.sessions.path: %w", err)
		}
		i.journal = j
		all = append(all, j)
	}
	if !c.Admin.Address.IsZero() {
		token := ""
		if c.Admin.TokenFile != "" {
			var err error
			if token, err = admin.ReadToken(c.Admin.TokenFile); err != nil {
				return fmt.Errorf("admin.token_file: %w", err)
			}
		}
		i.metrics = admin.NewMetrics(version(), i)
		if i.journal != nil {
			i.metrics.CounterFunc("tproxy_journal_dropped_total", "Journal records that were lost.", i.journal.Dropped)
		}
		i.events = new(admin.Events)
		i.admin = &admin.Server{Address: c.Admin.Address.String(), Token: token, PProf: c.Admin.PProf, Control: i, Metrics: i.metrics.Handler(),
			Events: i.events, Explain: i.explain, Upgrade: i.upgrade, Log: i.log}
		if i.program.load != nil {
			i.admin.Reload = i.reload
		}
		all = append(all, i.metrics, i.events)
	}
	i.observer = all
	return nil
}

type observers []proxy.Observer

func (os observers) Observe(e proxy.Event) {
	for _, o := range os {
		o.Observe(e)
	}
}

// observeHealth takes an event of the group's checker.
func (i *instance) observeHealth(g *group, e health.Event) {
	i.narrator.Health(e)
	if i.program.health != nil {
		i.program.health(e)
	}
	b, ok := g.backends.Lookup(e.Backend)
	if !ok {
		return
	}
	x, ok := g.watches.Load(b)
	if !ok {
		return
	}
	w := x.(*watch)
	if e.Kind != health.Probed {
		g.spares.Sync(b)
	}
	switch e.Kind {
	case health.Probed:
		if e.Err == nil {
			w.passed.Add(1)
		} else {
			w.failed.Add(1)
		}
		return
	case health.WentDown:
		if c := i.current.Load().config.Groups[g.name]; c != nil {
			w.shedding = i.leave(b, c.OnDown, proxy.OnDown)
		}
	case health.WentUp:
		if w.shedding != nil {
			w.shedding()
			w.shedding = nil
		}
	}
	if i.events != nil {
		i.events.Publish("backend_"+e.Kind.String(), map[string]string{"group": e.Group, "backend": e.Backend, "cause": e.Cause.String()})
	}
}

// leave ends the sessions on a backend as the policy says: keep, spread over the drain window, or cut. The function it
// returns, unless nil, stops that.
func (i *instance) leave(b *backend.Backend, policy string, why proxy.Reason) context.CancelFunc {
	if policy == "keep" {
		return nil
	}
	ctx, cancel := context.WithCancel(i.life)
	window := time.Duration(0)
	if policy == "spread" {
		window = i.current.Load().config.Drain.Timeout
	}
	servers := i.current.Load().servers()
	i.background.Go(func() {
		defer cancel()
		var all sync.WaitGroup
		for _, s := range servers {
			all.Go(func() { s.Shed(ctx, window, func(x proxy.SessionInfo) bool { return x.On(b) }, why) })
		}
		all.Wait()
	})
	return cancel
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
	i.background.Go(func() { trim(i.life) })
	i.background.Go(func() { i.feedWatchdog(i.life) })
	if f := i.program.watched; f != nil {
		f.Trouble = func(err error) {
			i.log.Warn("the configuration file cannot be watched, it is looked at from time to time", "error", err)
		}
		i.background.Go(func() { f.Run(i.changing, i.changedFile) })
	}
	for _, s := range i.current.Load().listeners {
		s.Start()
	}
	i.state.Store(admin.Ready)
}

// changedFile asks untilStop for a reload.
func (i *instance) changedFile() {
	select {
	case i.changed <- struct{}{}:
	default: // it is asked for already, and will read what there is then
	}
}

// stopAnswering gives up the admin address, if it is served; requests that run are answered. It does not wait for them.
func (i *instance) stopAnswering() {
	if i.stopAdmin != nil {
		i.stopAdmin()
	}
}

// close gives everything back; sessions that are open are reset.
func (i *instance) close() {
	i.abandon()
	if i.lastReload != nil {
		patiently(i.lastReload, reloadPatience)
	}
	r := i.current.Load()
	i.die()
	for _, s := range r.servers() {
		s.Close()
	}
	for _, g := range r.groups {
		g.quiesce() // a checker may start what runs in the background
	}
	i.background.Wait()
	for _, g := range r.groups {
		g.backends.Close()
	}
	i.stopAnswering()
	i.serving.Wait()
	if i.admin != nil && i.stopAdmin == nil {
		i.admin.Close()
	}
	i.inherited.Close()
	i.engines.Range(func(_, e any) bool {
		e.(*proxy.Engine).Close()
		return true
	})
	if i.journal != nil {
		if err := i.journal.Close(); err != nil {
			i.log.Error("journal", "error", err)
		}
	}
}
