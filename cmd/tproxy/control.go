package main

import (
	"iter"
	"os"
	"strconv"
	"time"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/health"
	"github.com/tproxy/tproxy/internal/admin"
	"github.com/tproxy/tproxy/proxy"
)

// State implements admin.Control.
func (i *instance) State() admin.State { return i.state.Load().(admin.State) }

// Status implements admin.Control.
func (i *instance) Status() admin.Status {
	s := admin.Status{Version: version(), PID: os.Getpid(), Started: i.started, UptimeMS: time.Since(i.started).Milliseconds(), State: i.State()}
	r := i.current.Load()
	for _, name := range r.config.ListenerNames {
		server, c := r.listeners[name], r.config.Listeners[name]
		l := admin.Listener{Name: name, Group: c.Group, Active: server.Active(), HalfClosed: server.HalfClosed(), Limit: c.MaxConnections, Paused: server.Paused()}
		if l.Limit == 0 || i.limit.Max() > 0 && l.Limit > i.limit.Max() {
			l.Limit = i.limit.Max()
		}
		for _, a := range i.addresses(name) {
			l.Addresses = append(l.Addresses, a.String())
		}
		s.Listeners = append(s.Listeners, l)
	}
	for _, name := range r.config.GroupNames {
		s.Groups = append(s.Groups, r.groups[name].status())
	}
	return s
}

// addresses are those that a listener is bound to.
func (i *instance) addresses(listener string) []proxy.Addr {
	return i.current.Load().listeners[listener].Addrs()
}

func (g *group) status() admin.Group {
	s := admin.Group{Name: g.backends.Name(), Balance: g.backends.Balance().String(), Usable: g.backends.Usable(), QueueLength: g.queue.Len() + g.hold.Len()}
	probes := make(map[string]health.Status)
	for _, p := range g.checker.Status() {
		probes[p.Backend] = p
	}
	for _, b := range g.backends.Backends() {
		a := admin.Backend{Name: b.Name(), Address: b.Address(), Weight: b.Weight(), Tier: b.Tier(), MaxConnections: b.MaxConnections(),
			State: b.State().String(), Up: b.Up(), Active: b.Active(), Spares: g.spares.Stats(b).Spares}
		if w, ok := g.watches.Load(b); ok {
			a.Probes = admin.Probes{OK: w.(*watch).passed.Load(), Failed: w.(*watch).failed.Load()}
		}
		if p := probes[b.Name()]; !p.LastProbe.IsZero() {
			a.LastProbe = &admin.Probe{Time: p.LastProbe, OK: p.Result == health.Passed, DurationMS: float64(p.Took.Microseconds()) / 1000}
			if !a.LastProbe.OK {
				a.LastProbe.Error = p.Text
			}
		}
		s.Backends = append(s.Backends, a)
	}
	return s
}

// Traffic implements admin.Source.
func (i *instance) Traffic() iter.Seq[admin.Traffic] {
	return func(yield func(admin.Traffic) bool) {
		for _, s := range i.current.Load().servers() {
			for _, t := range s.Traffic() {
				if !yield(admin.Traffic{Listener: s.Name, Group: t.Group, Backend: t.Backend, Active: t.Active, Up: t.Up, Down: t.Down}) {
					return
				}
			}
		}
	}
}

func (i *instance) sessions() iter.Seq[proxy.SessionInfo] {
	return func(yield func(proxy.SessionInfo) bool) {
		for _, server := range i.current.Load().servers() {
			for s := range server.Sessions() {
				if !yield(s) {
					return
				}
			}
		}
	}
}

// Sessions implements admin.Control.
func (i *instance) Sessions() iter.Seq[admin.Session] {
	return func(yield func(admin.Session) bool) {
		now := time.Now()
		for s := range i.sessions() {
			if !yield(admin.Session{ID: strconv.FormatUint(uint64(s.ID), 10), Started: now.Add(-s.Age), Listener: s.Listener, Client: s.Client.String(),
				Claimed: s.Claimed.String(), SNI: s.SNI, Local: s.Local.String(), Group: s.Group, Backend: s.Backend, Up: s.Up, Down: s.Down, DurationMS: s.Age.Milliseconds(),
				QuietMS: s.Quiet.Milliseconds(), HalfClosed: s.HalfClosed}) {
				return
			}
		}
	}
}

// openSessions is what the journal's progress records are made of.
func (i *instance) openSessions(yield func(proxy.Event) bool) {
	for s := range i.sessions() {
		if !yield(proxy.Event{Time: time.Now(), Listener: s.Listener, ID: s.ID, Client: s.Client, Local: s.Local, Group: s.Group, Backend: s.Backend,
			Attempts: s.Attempts, Pool: s.Pool, Up: s.Up, Down: s.Down, Duration: s.Age}) {
			return
		}
	}
}

// Kill implements admin.Control.
func (i *instance) Kill(id proxy.SessionID) bool { return i.end(id, proxy.KilledByAdmin) }

func (i *instance) end(id proxy.SessionID, why proxy.Reason) bool {
	for _, s := range i.current.Load().servers() {
		if s.Kill(id, why) {
			return true
		}
	}
	return false
}

func (i *instance) backend(groupName, name string) (*group, *backend.Backend, error) {
	if g := i.current.Load().groups[groupName]; g != nil {
		if b, ok := g.backends.Lookup(name); ok {
			return g, b, nil
		}
	}
	return nil, nil, admin.ErrNotFound
}

// SetState implements admin.Control.
func (i *instance) SetState(group, name, state string) error {
	g, b, err := i.backend(group, name)
	if err != nil {
		return err
	}
	s, err := backend.ParseState(state)
	if err != nil {
		return err
	}
	b.SetState(s)
	g.spares.Sync(b)
	return nil
}

// SetWeight implements admin.Control.
func (i *instance) SetWeight(group, name string, weight int) error {
	g, b, err := i.backend(group, name)
	if err != nil {
		return err
	}
	if err := b.SetWeight(weight); err != nil {
		return err
	}
	g.spares.Sync(b)
	return nil
}
