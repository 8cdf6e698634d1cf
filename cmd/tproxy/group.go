package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/health"
	"github.com/tproxy/tproxy/internal/config"
	"github.com/tproxy/tproxy/pool"
	"github.com/tproxy/tproxy/proxy"
)

// A group is the backends of one group at work. Its backends, queues and checker live as long as the group is
// configured; a reload changes them in place.
type group struct {
	name     string
	backends *backend.Group
	queue    *pool.Queue
	hold     *pool.Queue
	spares   *proxy.Spares
	checker  *health.Checker
	watches  sync.Map // *backend.Backend to *watch
	running  sync.WaitGroup
	tls      *originator        // nil: none
	stop     context.CancelFunc // ends the checker
}

// A watch is the health of one backend.
type watch struct {
	*health.Watch
	passed, failed atomic.Uint64
	shedding       context.CancelFunc // of the sessions of a backend that went down; nil: none
}

// Report implements proxy.Health.
func (g *group) Report(b *backend.Backend, err error) {
	if w, ok := g.watches.Load(b); ok {
		w.(*watch).Report(err)
	}
}

// A groupPlan is a group as a configuration wants it: what apply makes of it cannot fail.
type groupPlan struct {
	group  *group
	config *config.Group
	fresh  bool // the group is new

	health health.Config
	reset  *proxy.Reset
	proxy  *proxy.Group // made when it is asked for
	tls    *originator  // nil: none, as
	client *tls.Config  // what backends are greeted with
	// tlsClients: only listeners with TLS send sessions here.
	tlsClients bool
	members    backend.GroupConfig
	weights    map[*backend.Backend]int // of kept backends whose configured weight changed
	limits     map[*backend.Backend]int
	added      []*backend.Backend
	removed    []*backend.Backend
}

// planGroup prepares the change of a running group, or a new one. Nothing is changed yet. A backend is kept, with its health,
// counters and sessions, if its name, address and tier are the same; what an operator set at run time (state, weight) stays unless the
// file changed it.
func (i *instance) planGroup(c, before *config.Group, g *group) (*groupPlan, error) {
	p := &groupPlan{group: g, config: c, weights: make(map[*backend.Backend]int), limits: make(map[*backend.Backend]int)}
	var running *originator
	if g != nil {
		running = g.tls
	}
	var err error
	if p.tls, err = i.originate(c, before, running); err != nil {
		return nil, err
	}
	if p.tls != nil {
		p.client = p.tls.config.get()
	}
	prober, err := newProber(c, p.client)
	if err != nil {
		return nil, fmt.Errorf("groups.%s.health: %w", c.Name, err)
	}
	balance, err := backend.ParseBalance(c.Balance)
	if err != nil {
		return nil, fmt.Errorf("groups.%s.balance: %w", c.Name, err)
	}
	if r := c.Pool.Reset; r != nil {
		expect, err := resetReply(r.Expect)
		if err != nil {
			return nil, fmt.Errorf("groups.%s.pool.reset.expect: %w", c.Name, err)
		}
		p.reset = &proxy.Reset{Send: r.Send, Expect: expect, Timeout: r.Timeout}
	}
	p.members = backend.GroupConfig{Name: c.Name, Balance: balance, MinUsable: c.Health.MinUsable, SlowStart: c.SlowStart}
	kept := make(map[*backend.Backend]bool)
	for _, b := range c.Backends {
		if g != nil {
			if m, ok := g.backends.Lookup(b.Name); ok && m.Address() == b.Address.String() && m.Tier() == b.Tier {
				p.members.Backends = append(p.members.Backends, m)
				kept[m] = true
				if old := configured(before, b.Name); old.Weight != b.Weight {
					p.weights[m] = b.Weight
				}
				p.limits[m] = b.MaxConnections
				continue
			}
		}
		m, err := backend.New(backend.Config{Name: b.Name, Address: b.Address.String(), Weight: b.Weight, Tier: b.Tier, MaxConnections: b.MaxConnections})
		if err != nil {
			return nil, fmt.Errorf("groups.%s.backends: %w", c.Name, err)
		}
		p.members.Backends = append(p.members.Backends, m)
		p.added = append(p.added, m)
	}
	if g != nil {
		for _, m := range g.backends.Backends() {
			if !kept[m] {
				p.removed = append(p.removed, m)
			}
		}
	} else if err := p.create(i); err != nil {
		return nil, err
	}
	g = p.group
	p.health = health.Config{
		Group: c.Name, Prober: prober, Interval: c.Health.Interval, FastInterval: c.Health.FastInterval, Timeout: c.Health.Timeout,
		Rule: health.Rule{Rise: c.Health.Rise, Fall: c.Health.Fall, Failures: c.Health.Passive.Failures, HoldBase: c.Health.HoldDown.Base,
			HoldMax: c.Health.HoldDown.Max},
		InitialDown: c.Health.Initial == "down", FastProbe: c.Health.Passive.FastProbe,
		Observer: health.ObserverFunc(func(e health.Event) { i.observeHealth(g, e) })}
	return p, nil
}

func configured(c *config.Group, name string) config.Backend {
	for _, b := range c.Backends {
		if b.Name == name {
			return b
		}
	}
	return config.Backend{}
}

// create makes a group that has no backends yet.
func (p *groupPlan) create(i *instance) error {
	engine, err := i.engine("auto")
	if err != nil {
		return fmt.Errorf("groups.%s: %w", p.config.Name, err)
	}
	empty := p.members
	empty.Backends = nil
	backends, err := backend.NewGroup(empty)
	if err != nil {
		return fmt.Errorf("groups.%s: %w", p.config.Name, err)
	}
	g := &group{name: p.config.Name, backends: backends, queue: pool.NewQueue(0, 0), hold: pool.NewQueue(0, 0),
		spares: proxy.NewSpares(engine)}
	backends.OnFreed(func() {
		g.queue.Wake()
		g.hold.Wake()
		g.spares.Freed()
	})
	p.group, p.fresh = g, true
	return nil
}

// apply makes the group what the plan says.
func (p *groupPlan) apply() error {
	g, c := p.group, p.config
	g.tls = p.tls
	g.queue.Limit(c.Queue.Max, c.Queue.Timeout)
	g.hold.Limit(c.Queue.Max, c.Hold)
	for b, w := range p.weights {
		if err := b.SetWeight(w); err != nil {
			return err
		}
	}
	for b, n := range p.limits {
		if err := b.SetMaxConnections(n); err != nil {
			return err
		}
	}
	if g.checker == nil {
		g.checker = health.New(p.health)
		ctx, stop := context.WithCancel(context.Background())
		g.stop = stop
		g.running.Go(func() { g.checker.Run(ctx) })
	} else {
		g.checker.Configure(p.health)
	}
	for _, b := range p.added {
		g.watches.Store(b, &watch{Watch: g.checker.Add(b)})
	}
	if err := g.backends.Update(p.members); err != nil {
		return err
	}
	g.spares.Update(proxy.SparesConfig{Warm: c.Pool.Warm, MaxAge: c.Pool.MaxAge, RefillRate: c.Pool.RefillRate,
		ClientSpeaksFirst: c.Pool.SpeaksFirst == "client", TLSClients: p.tlsClients, Reset: p.reset}, p.served(), p.members.Backends)
	for _, b := range p.removed {
		if w, ok := g.watches.LoadAndDelete(b); ok {
			w.(*watch).Remove()
		}
	}
	return nil
}

// served is the group as servers use it.
func (p *groupPlan) served() *proxy.Group {
	if p.proxy != nil {
		return p.proxy
	}
	g, c := p.group, p.config
	s := &proxy.Group{
		Backends: g.backends,
		Connect: proxy.Connect{Timeout: c.Connect.Timeout, Attempts: c.Connect.Attempts, Total: c.Connect.Total,
			BackoffBase: c.Connect.Backoff.Base, BackoffMax: c.Connect.Backoff.Max},
		Queue:  g.queue,
		Source: c.SourceAddress,
		Health: g,
		TLS:    p.client,
	}
	if c.Pool.Warm > 0 || c.Pool.Reset != nil {
		s.Spares = g.spares
	}
	switch c.SendProxy {
	case "v1":
		s.SendProxy = 1
	case "v2":
		s.SendProxy = 2
	}
	p.proxy = s
	if c.Hold > 0 {
		s.Hold = g.hold
	}
	return s
}

// resetReply is the expected reply: a text, or "re:" and a regular expression.
func resetReply(expect string) (*regexp.Regexp, error) {
	if pattern, ok := strings.CutPrefix(expect, "re:"); ok {
		return regexp.Compile(pattern)
	}
	return regexp.Compile(regexp.QuoteMeta(expect))
}

// hurry makes every backend be probed at once.
func (g *group) hurry() {
	g.watches.Range(func(_, w any) bool {
		w.(*watch).Hurry()
		return true
	})
}

// settled reports whether it is known which backends are up, and those have their spares.
func (g *group) settled(c *config.Group) bool {
	for _, s := range g.checker.Status() {
		if s.State.Changing() || s.LastProbe.IsZero() && c.Health.Probe != "none" {
			return false
		}
	}
	for _, b := range g.backends.Backends() {
		if b.Usable() && g.spares.Stats(b).Spares < c.Pool.Warm {
			return false
		}
	}
	return true
}

// quiesce ends probes and spares; backends stay as they are.
func (g *group) quiesce() {
	g.spares.Close()
	if g.stop != nil {
		g.stop()
		g.running.Wait()
	}
}

// newProber is the probe of a group whose backends are greeted with t, nil for none.
func newProber(c *config.Group, t *tls.Config) (health.Prober, error) {
	dialer := health.Dialer{Port: uint16(c.Health.Port), Source: c.SourceAddress, TLS: t}
	switch c.SendProxy {
	case "v1":
		dialer.Header = health.V1
	case "v2":
		dialer.Header = health.V2
	}
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
