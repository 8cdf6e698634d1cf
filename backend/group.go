package backend

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// GroupConfig is what a group is made of.
type GroupConfig struct {
	// Name is for messages; it must not be empty.
	Name string
	// Balance is how to choose.
	Balance Balance
	// Backends are the members, in the order First goes by. Names must differ; there may be none. The slice is copied.
	Backends []*Backend
	// MinUsable is a percentage. When fewer of the backends that are ready and of weight other than 0 are up, health
	// is taken to be wrong and all of them are used (fail open). 0: never.
	MinUsable int
	// SlowStart is how long the weight and the limit of a backend grow linearly to their full values after it came
	// up. 0: not at all. For First only the limit grows.
	SlowStart time.Duration
}

// A Group is the backends that can serve one listener, and the rule to choose among them. All methods may be called
// concurrently.
type Group struct {
	name             string
	errNone, errFull error

	view    atomic.Pointer[view]
	onFreed atomic.Pointer[func()]

	_      [64]byte
	cursor atomic.Uint64 // counts turns; alone in its cache line because every choice by turns writes it
	_      [64]byte

	stale  atomic.Bool // a backend changed after the view was made
	mu     sync.Mutex  // for making views, and all below
	closed bool
	timer  *time.Timer
	ticks  sync.WaitGroup // one while timer is armed or its function runs
}

// NewGroup returns a group. Call [Group.Close] when it is no longer used.
func NewGroup(c GroupConfig) (*Group, error) {
	if c.Name == "" {
		return nil, errors.New("group: no name")
	}
	g := &Group{
		name:    c.Name,
		errNone: fmt.Errorf("group %s: %w", c.Name, ErrNone),
		errFull: fmt.Errorf("group %s: %w", c.Name, ErrFull),
	}
	g.view.Store(&view{members: &members{}})
	if err := g.Update(c); err != nil {
		return nil, err
	}
	return g, nil
}

// Name is the configured name.
func (g *Group) Name() string { return g.name }

// Balance is the rule in force.
func (g *Group) Balance() Balance { return g.view.Load().members.balance }

// Backends returns a new slice of the members in their configured order.
func (g *Group) Backends() []*Backend { return slices.Clone(g.view.Load().members.list) }

// Lookup returns the member with that name.
func (g *Group) Lookup(name string) (*Backend, bool) {
	b, ok := g.view.Load().members.byName[name]
	return b, ok
}

// Usable is how many backends, of all tiers, sessions may go to now. While the group fails open that includes backends that are down.
func (g *Group) Usable() int { return g.view.Load().usable }

// FailsOpen reports whether fewer than MinUsable percent are up, so that health is disregarded.
func (g *Group) FailsOpen() bool { return g.view.Load().open }

// OnFreed sets the one function that is called after a lease of a member was released, and after a change that
// leaves the group with usable backends: whoever waits because of ErrFull or ErrNone should try again. A waiter must try once
// more after it made itself known to freed, or it misses what happened in between.
//
// freed is called by Release, by setters of a member, by Update and, during a slow start, by a timer; never by Lease. Many may call it
// at once, under no lock of this package; it should be quick. nil removes it; a call that is under way may still finish then.
func (g *Group) OnFreed(freed func()) {
	if freed == nil {
		g.onFreed.Store(nil)
		return
	}
	g.onFreed.Store(&freed)
}

func (g *Group) notify() {
	if freed := g.onFreed.Load(); freed != nil {
		(*freed)()
	}
}

// Update replaces everything but the name, at once: a concurrent [Group.Lease] sees all of the old or all of the new. Members
// given again keep their sessions, health and state. It fails without having changed anything.
func (g *Group) Update(c GroupConfig) error {
	if c.Name != g.name {
		return fmt.Errorf("group %s: cannot be renamed to %q", g.name, c.Name)
	}
	m, err := newMembers(c)
	if err != nil {
		return fmt.Errorf("group %s: %w", g.name, err)
	}
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return fmt.Errorf("group %s: closed", g.name)
	}
	g.replace(m)
	g.mu.Unlock()
	g.notifyUsable()
	return nil
}

// replace makes m the members. Whoever joins does so before the view is made, so that no change of it is missed. g.mu is held.
func (g *Group) replace(m *members) {
	old := g.view.Load().members
	for _, b := range m.list {
		if _, ok := old.index[b]; !ok {
			b.join(g)
		}
	}
	g.publish(m)
	for _, b := range old.list {
		if _, ok := m.index[b]; !ok {
			b.leave(g)
		}
	}
}

// Close takes all members out of the group: from then on Lease returns ErrNone and Update an error. Leases that are out
// stay valid. It waits for a call by the group's own timer of the function given to [Group.OnFreed], so that function must
// not call it.
func (g *Group) Close() {
	g.mu.Lock()
	if !g.closed {
		g.closed = true
		g.replace(&members{})
	}
	g.mu.Unlock()
	g.ticks.Wait()
}

// refresh makes a view of what the members are now. When several ask at once, those that wait for the first are served by
// one more view.
func (g *Group) refresh() {
	g.stale.Store(true)
	g.mu.Lock()
	if g.stale.Swap(false) {
		g.publish(g.view.Load().members)
	}
	g.mu.Unlock()
	g.notifyUsable()
}

func (g *Group) notifyUsable() {
	if g.Usable() > 0 {
		g.notify()
	}
}

// publish makes and publishes a view. g.mu is held.
func (g *Group) publish(m *members) {
	v := newView(m, g.view.Load(), &g.cursor, now())
	g.view.Store(v)
	if g.timer != nil && g.timer.Stop() {
		g.ticks.Done()
	}
	g.timer = nil
	if v.growing {
		g.arm(v)
	}
}

// arm lets the growing limits of a slow start be noticed in a hundred steps, by those who wait for a slot. g.mu is held.
func (g *Group) arm(v *view) {
	g.ticks.Add(1)
	g.timer = time.AfterFunc(max(v.members.slowStart/100, time.Millisecond), g.tick)
}

func (g *Group) tick() {
	defer g.ticks.Done()
	g.mu.Lock()
	v := g.view.Load()
	switch {
	case !v.growing: // replaced while this waited for the lock
	case v.grown <= now():
		g.publish(v.members)
	default:
		g.arm(v)
	}
	g.mu.Unlock()
	g.notifyUsable()
}

// Lease chooses a backend and takes a slot on it; the caller must release the lease.
//
// key stands for the client, see [Key]; only SourceHash uses it. tried are the backends that failed this session: none of
// them is chosen while any other is usable. When all usable ones were tried, they may be chosen again; backing off is up to
// the caller. The error is, for [errors.Is], ErrNone or ErrFull.
func (g *Group) Lease(key uint64, tried []*Backend) (*Lease, error) {
	l := new(Lease)
	if err := g.LeaseInto(l, key, tried); err != nil {
		return nil, err
	}
	return l, nil
}

// LeaseInto is [Group.Lease] for a Lease that the caller has, so that nothing is allocated: one that is new, or released and in nobody
// else's hands. After an error it is as it was.
func (g *Group) LeaseInto(l *Lease, key uint64, tried []*Backend) error {
	for {
		v := g.view.Load()
		b := v.choose(key, tried)
		latest := g.view.Load()
		switch {
		case b != nil && (latest == v || latest.holds(b)):
			l.backend = b
			l.released.Store(false)
			return nil
		case b != nil:
			// A setter that has returned ruled b out. Nobody waits for this slot: b is no candidate.
			b.giveBack()
		case latest != v: // then the group may no longer be full
		case v.usable == 0:
			return g.errNone
		default:
			return g.errFull
		}
	}
}
