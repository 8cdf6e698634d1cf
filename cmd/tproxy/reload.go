package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/tproxy/tproxy/internal/admin"
	"github.com/tproxy/tproxy/internal/config"
	"github.com/tproxy/tproxy/proxy"
)

// errIncomplete is about a reload that went wrong when it could not be undone any more.
var errIncomplete = errors.New("the new configuration is in use, but something of it could not be done")

// sayReload logs why a reload that nobody waits for has failed.
func (i *instance) sayReload(err error) {
	switch {
	case err == nil: // reload says what it did
	case errors.Is(err, errIncomplete):
		i.log.Error("reload incomplete", "error", err)
	default:
		i.log.Error("reload failed, nothing changed", "error", err)
	}
}

// reload reads the configuration again and makes the instance follow it, in place and all or nothing: on an error that is not
// errIncomplete nothing has changed. A dry one only says what it would do.
func (i *instance) reload(ctx context.Context, dry bool) (admin.Report, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(i.changing, cancel)()
	if err := i.reserve(ctx); err != nil {
		return admin.Report{}, err
	}
	defer i.unreserve()
	if dry {
		return i.tryReload(ctx, dry)
	}
	notifyReloading(i.log)
	defer func() {
		if i.State() == admin.Ready {
			notify(i.log, daemon.SdNotifyReady)
		}
	}()
	report, err := i.tryReload(ctx, dry)
	if i.metrics != nil {
		i.metrics.Reloaded(err)
	}
	if err != nil {
		return report, err
	}
	i.log.Info("reloaded", "kept", len(report.Kept), "added", report.Added, "changed", report.Changed, "removed", report.Removed,
		"sessions_on_old_settings", report.OnOldSettings)
	if i.events != nil {
		i.events.Publish("reload", report)
	}
	return report, nil
}

// reloadPatience is how long the end of the process waits for a reload that hangs in the system, in the lookup of a name or on a file.
const reloadPatience = time.Second

// mostReloads is how many reloads may wait for the one that runs.
const mostReloads = 16

// reloads are those that signals ask for: one after the other, while signals are obeyed. They belong to the goroutine of untilStop.
type reloads struct {
	ended   chan struct{} // closed when the one that runs has ended; nil: none runs
	waiting int
}

func (i *instance) startReload(r *reloads) {
	if r.ended != nil {
		r.waiting = min(r.waiting+1, mostReloads)
		return
	}
	ended := make(chan struct{})
	r.ended, i.lastReload = ended, ended
	go func() {
		defer close(ended)
		_, err := i.reload(context.Background(), false)
		i.sayReload(err)
	}()
}

// endReload starts the next one. While there is an upgrade it is left to whoever serves afterwards.
func (i *instance) endReload(r *reloads, u *upgrade) {
	r.ended = nil
	switch {
	case r.waiting == 0:
	case u.ended != nil:
		u.reload, r.waiting = true, 0
	default:
		r.waiting--
		i.startReload(r)
	}
}

// reserve makes sure that nobody else changes what runs, until unreserve.
func (i *instance) reserve(ctx context.Context) error {
	select {
	case i.reloading <- struct{}{}:
		return nil
	case <-ctx.Done():
		return cmp.Or(i.mayChange(), context.Cause(ctx))
	}
}

func (i *instance) unreserve() { <-i.reloading }

// mayChange says why the instance does not change any more, or not yet.
func (i *instance) mayChange() error {
	if i.State() != admin.Ready {
		return fmt.Errorf("the process is %s", i.State())
	}
	if i.replaced.Load() {
		return errReplaced
	}
	return nil
}

func (i *instance) tryReload(ctx context.Context, dry bool) (admin.Report, error) {
	if i.program.load == nil {
		return admin.Report{}, errors.New("there is no configuration file to load again")
	}
	if err := i.mayChange(); err != nil {
		return admin.Report{}, err
	}
	c, err := i.program.load()
	if err != nil {
		return admin.Report{}, err
	}
	if err := fixed(i.current.Load().config, c); err != nil {
		return admin.Report{}, err
	}
	return i.change(ctx, c, dry)
}

// fixed names what differs between two configurations and cannot be changed in a running process.
func fixed(old, new *config.Config) error {
	var errs []error
	differs := func(key string, a, b any) {
		if !reflect.DeepEqual(a, b) {
			errs = append(errs, fmt.Errorf("%s: cannot be changed by a reload (restart or upgrade)", key))
		}
	}
	differs("admin", old.Admin, new.Admin)
	differs("log", old.Log, new.Log)
	differs("process", old.Process, new.Process)
	differs("limits", old.Limits, new.Limits)
	for name, l := range new.Listeners {
		if before := old.Listeners[name]; before != nil {
			differs("listeners."+name+".engine", before.Engine, l.Engine)
			differs("listeners."+name+".backlog", before.Backlog, l.Backlog)
		}
	}
	return errors.Join(errs...)
}

// A change is the way from what runs to what a configuration describes. Everything that can fail is done while it is made.
type change struct {
	report  admin.Report
	next    *running
	plans   map[string]*groupPlan
	bound   []*proxy.Listener            // new addresses, not accepting yet
	unbound []*proxy.Listener            // addresses that are left
	leaving map[string][]*proxy.Listener // by address: what may go to another listener
	moves   []move
	fresh   []*proxy.Server
	retired []*proxy.Server
}

// change makes the instance run c, unless it stops meanwhile: nobody who stops it waits for what may take long.
func (i *instance) change(ctx context.Context, c *config.Config, dry bool) (admin.Report, error) {
	old := i.current.Load()
	ch := newChange(c)
	err := i.prepare(ctx, ch, old, c)
	ch.report.OnOldSettings = onOldSettings(old, ch)
	i.committing.Lock()
	defer i.committing.Unlock()
	if stopping := i.mayChange(); stopping != nil {
		err = stopping
	}
	if err != nil || dry {
		ch.undo()
		return ch.report, err
	}
	if err := i.commit(ch, old, c); err != nil {
		return ch.report, fmt.Errorf("%w: %w", errIncomplete, err)
	}
	return ch.report, nil
}

func newChange(c *config.Config) *change {
	return &change{next: &running{config: c, groups: make(map[string]*group), listeners: make(map[string]*proxy.Server),
		tls: make(map[string]*terminator)}, plans: make(map[string]*groupPlan)}
}

// prepare does what can fail. What it asks the system for cannot be ended, but with ctx done it asks for nothing more.
func (i *instance) prepare(ctx context.Context, ch *change, old *running, c *config.Config) error {
	for _, name := range c.GroupNames {
		if err := ctx.Err(); err != nil {
			return err
		}
		before := old.config.Groups[name]
		p, err := i.planGroup(c.Groups[name], before, old.groups[name])
		if err != nil {
			return err
		}
		p.tlsClients = onlyTLS(c, name)
		ch.plans[name], ch.next.groups[name] = p, p.group
		ch.note("group "+name, before == nil, before != nil && !reflect.DeepEqual(withoutBackends(before), withoutBackends(c.Groups[name])))
		for _, b := range p.members.Backends {
			label := "backend " + name + "/" + b.Name()
			_, reweighted := p.weights[b]
			ch.note(label, slices.Contains(p.added, b), reweighted || p.limits[b] != b.MaxConnections() && !slices.Contains(p.added, b))
		}
		for _, b := range p.removed {
			ch.report.Removed = append(ch.report.Removed, "backend "+name+"/"+b.Name())
		}
	}
	for _, name := range old.config.GroupNames {
		if c.Groups[name] == nil {
			ch.report.Removed = append(ch.report.Removed, "group "+name)
		}
	}
	ch.leaving = leaving(old, c)
	var failed []error
	for _, name := range c.ListenerNames {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(failed, err)...)
		}
		l, before := c.Listeners[name], old.config.Listeners[name]
		ch.note("listener "+name, before == nil, before != nil && !reflect.DeepEqual(before, l))
		t, err := i.terminate(l, before, old.tls[name])
		if err != nil {
			return err
		}
		if t != nil {
			ch.next.tls[name] = t
		}
		s := old.listeners[name]
		if s == nil {
			if s, err = i.newServer(l, ch.settings(l)); err != nil {
				return err
			}
			ch.fresh = append(ch.fresh, s)
		}
		if err := s.Check(ch.settings(l)); err != nil {
			return fmt.Errorf("%s: %w: %w", c.TLSOf(l), errBeginsTLS, err)
		}
		ch.next.listeners[name] = s
		failed = append(failed, i.bind(ch, s, l))
	}
	for _, name := range old.config.ListenerNames {
		if c.Listeners[name] == nil {
			ch.report.Removed = append(ch.report.Removed, "listener "+name)
			ch.retired = append(ch.retired, old.listeners[name])
		}
	}
	return errors.Join(failed...)
}

// bind binds the addresses that s does not have yet, or takes them over from a listener that gives them up, and notes those that l does not
// name any more.
func (i *instance) bind(ch *change, s *proxy.Server, l *config.Listener) error {
	missing, left := addressChange(s, l)
	ch.unbound = append(ch.unbound, left...)
	var failed []error
	for _, a := range missing {
		var err error
		if from := ch.leaving[a.String()]; len(from) > 0 {
			delete(ch.leaving, a.String())
			err = ch.move(s, from)
		} else {
			var lns []*proxy.Listener
			lns, err = i.listen(s, a)
			ch.bound = append(ch.bound, lns...)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("listeners.%s.address: %w", l.Name, err))
		}
	}
	return errors.Join(failed...)
}

func (ch *change) note(label string, added, changed bool) {
	switch {
	case added:
		ch.report.Added = append(ch.report.Added, label)
	case changed:
		ch.report.Changed = append(ch.report.Changed, label)
	default:
		ch.report.Kept = append(ch.report.Kept, label)
	}
}

// undo gives back what prepare took.
func (ch *change) undo() {
	for _, ln := range ch.bound {
		ln.Close()
	}
	for _, s := range ch.fresh {
		s.Close()
	}
	for _, p := range ch.plans {
		if p.fresh {
			p.group.backends.Close()
		}
	}
}

// commit does what was prepared.
func (i *instance) commit(ch *change, old *running, c *config.Config) error {
	for _, s := range old.retired {
		if s.Active() > 0 {
			ch.next.retired = append(ch.next.retired, s)
		}
	}
	ch.next.retired = append(ch.next.retired, ch.retired...)
	var errs []error
	for _, p := range ch.plans {
		errs = append(errs, p.apply())
	}
	i.current.Store(ch.next)
	for _, name := range c.ListenerNames {
		l := c.Listeners[name]
		errs = append(errs, ch.next.listeners[name].Update(ch.settings(l)))
	}
	for _, m := range ch.moves {
		m.commit()
	}
	if i.State() == admin.Ready {
		for _, ln := range ch.bound {
			ln.Start()
		}
	}
	for _, ln := range ch.unbound {
		errs = append(errs, ln.Close())
	}
	for _, s := range ch.retired {
		i.background.Go(func() { s.Shutdown(i.life) })
	}
	for name, p := range ch.plans {
		for _, b := range p.removed {
			i.leave(b, c.Groups[name].OnRemoved, proxy.OnRemoved)
		}
	}
	for name, g := range old.groups {
		if ch.next.groups[name] != nil {
			continue
		}
		g.quiesce()
		for _, b := range g.backends.Backends() {
			i.leave(b, old.config.Groups[name].OnRemoved, proxy.OnRemoved)
		}
		g.backends.Close()
	}
	return errors.Join(errs...)
}

// onOldSettings counts the sessions of listeners and backends that change or leave.
func onOldSettings(old *running, ch *change) (n int) {
	for name, s := range old.listeners {
		if ch.next.listeners[name] == nil || slices.Contains(ch.report.Changed, "listener "+name) {
			n += s.Active()
			continue
		}
		for x := range s.Sessions() {
			gone := ch.plans[x.Group] == nil && x.Group != ""
			if p := ch.plans[x.Group]; p != nil {
				gone = slices.Contains(ch.report.Changed, "group "+x.Group)
				for _, b := range p.removed {
					gone = gone || x.On(b)
				}
			}
			if gone {
				n++
			}
		}
	}
	return n
}

func withoutBackends(c *config.Group) config.Group {
	g := *c
	g.Backends = nil
	return g
}

func (i *instance) newServer(c *config.Listener, t proxy.Settings) (*proxy.Server, error) {
	engine, err := i.engine(c.Engine)
	if err != nil {
		return nil, fmt.Errorf("listeners.%s.engine: %w", c.Name, err)
	}
	return &proxy.Server{Name: c.Name, Engine: engine, Limit: i.limit, Backlog: c.Backlog, Observer: i.observer, Settings: t}, nil
}

// settings are those of a listener.
func (ch *change) settings(c *config.Listener) proxy.Settings {
	t := proxy.Settings{
		Group: ch.group(c.Group), MaxConnections: c.MaxConnections, RejectWhenFull: c.WhenFull == "reject",
		Access: proxy.Access{Allow: c.Allow, Deny: c.Deny, MaxPerSource: c.MaxConnectionsPerSource, RatePerSource: c.AcceptRatePerSource,
			Rate: c.AcceptRate, SourceIPv4: c.SourcePrefix.IPv4, SourceIPv6: c.SourcePrefix.IPv6},
		ProxyProtocol: proxy.ProxyProtocol{Accept: acceptHeader[c.ProxyProtocol.Accept], Trusted: c.ProxyProtocol.Trusted},
		Timeouts: proxy.Timeouts{Preface: c.Timeouts.Preface, Idle: c.Timeouts.Idle, HalfClose: c.Timeouts.HalfClose,
			Session: c.Timeouts.Session},
		Keepalive:   proxy.Keepalive{Idle: c.Keepalive.Idle, Interval: c.Keepalive.Interval, Count: c.Keepalive.Count},
		UserTimeout: c.UserTimeout, CloseOnFIN: !c.HalfClose,
	}
	if own := ch.next.tls[c.Name]; own != nil {
		t.TLS = own.config
	}
	for _, r := range c.Routes {
		t.Routes = append(t.Routes, proxy.Route{SNI: r.SNI, ALPN: r.ALPN, Source: r.Source, Group: ch.group(r.Group), Reject: r.Reject})
	}
	return t
}

var acceptHeader = map[string]proxy.AcceptHeader{"off": proxy.HeaderOff, "require": proxy.HeaderRequire, "optional": proxy.HeaderOptional}

// group is a group as servers use it; nil for none.
func (ch *change) group(name string) *proxy.Group {
	if p := ch.plans[name]; p != nil {
		return p.served()
	}
	return nil
}

// engine is the one of that kind, which all listeners share.
func (i *instance) engine(kind string) (*proxy.Engine, error) {
	if e, ok := i.engines.Load(kind); ok {
		return e.(*proxy.Engine), nil
	}
	e, err := proxy.NewEngine(kind)
	if err == nil {
		i.engines.Store(kind, e)
	}
	return e, err
}
