package backend

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// MaxWeight is the largest weight of a backend.
const MaxWeight = 256

// Config is what a backend starts with.
type Config struct {
	// Name is unique in a group and is who the backend is for SourceHash: a backend that changes its address and
	// keeps its name keeps its keys. Empty means Address.
	Name string
	// Address is where to connect: host:port or unix:/path. It must not be empty; this package does not look inside.
	Address string
	// Weight is the share of sessions relative to the other backends, 0 to 256. 0: no new sessions.
	Weight int
	// Tier orders fallbacks, from 0 up: a tier is used only when no lower one has a usable backend.
	Tier int
	// MaxConnections is how many sessions the backend may have at once; 0 is no limit.
	MaxConnections int
}

// A Backend is one server. All methods may be called concurrently. A new Backend is up and ready.
//
// A setter returns when every group of the backend chooses by the new value: from then on a backend that is no longer
// usable gets no session, and [Backend.Active] of it can be waited on to reach 0.
type Backend struct {
	// What choosing reads and writes comes first: it shares one cache line.
	active atomic.Int64
	limit  atomic.Int64  // MaxConnections
	status atomic.Uint32 // a status
	rose   atomic.Int64  // when it last came up, on the clock of now(); never if it has been up from the start
	groups atomic.Pointer[[]*Group]
	seed   uint64 // KeyString(name)
	tier   int

	name    string
	address string
	mu      sync.Mutex // for writing status, rose and groups

	_ [8]byte // 128 bytes in all: an allocation of that size starts a cache line, and backends share none
}

// A status is weight, state and health in one word, so that a reader sees them change together.
type status uint16

const (
	statusUp     status = 1 << 15
	weightMask   status = 1<<9 - 1 // 0..256
	stateShift          = 9
	stateInPlace status = 3 << stateShift
)

func (s status) weight() int  { return int(s & weightMask) }
func (s status) state() State { return State(s & stateInPlace >> stateShift) }
func (s status) up() bool     { return s&statusUp != 0 }

// eligible is what an operator decides: ready, and not of weight 0.
func (s status) eligible() bool { return s&stateInPlace == 0 && s&weightMask != 0 }
func (s status) usable() bool   { return s.up() && s.eligible() }

// New returns a backend that is up and ready.
func New(c Config) (*Backend, error) {
	if c.Name == "" {
		c.Name = c.Address
	}
	switch {
	case c.Address == "":
		return nil, fmt.Errorf("backend %q: no address", c.Name)
	case c.Tier < 0:
		return nil, fmt.Errorf("backend %s: tier %d is negative", c.Name, c.Tier)
	}
	b := &Backend{name: c.Name, address: c.Address, tier: c.Tier, seed: KeyString(c.Name)}
	b.rose.Store(never)
	b.status.Store(uint32(statusUp))
	if err := b.SetWeight(c.Weight); err != nil {
		return nil, err
	}
	if err := b.SetMaxConnections(c.MaxConnections); err != nil {
		return nil, err
	}
	return b, nil
}

// Name is the configured name, or the address.
func (b *Backend) Name() string { return b.name }

// Address is where to connect.
func (b *Backend) Address() string { return b.address }

// Tier is the configured tier.
func (b *Backend) Tier() int { return b.tier }

// String is the name.
func (b *Backend) String() string { return b.name }

func (b *Backend) load() status { return status(b.status.Load()) }

// Weight is 0 to 256.
func (b *Backend) Weight() int { return b.load().weight() }

// Up reports whether the backend is healthy, as far as [Backend.SetUp] was told.
func (b *Backend) Up() bool { return b.load().up() }

// State is what the operator wants of the backend.
func (b *Backend) State() State { return b.load().state() }

// Usable reports whether the backend is up, ready and of a weight other than 0. A group that fails open also uses
// backends that are not up.
func (b *Backend) Usable() bool { return b.load().usable() }

// Active is how many leases are out.
func (b *Backend) Active() int { return int(b.active.Load() & (reserved - 1)) }

// MaxConnections is how many leases may be out; 0 is no limit.
func (b *Backend) MaxConnections() int { return int(b.limit.Load()) }

// SetWeight sets the weight, 0 to 256. Groups that balance by SourceHash compute their table anew: some five
// milliseconds with up to 650 backends in the tier, some thirty above.
func (b *Backend) SetWeight(weight int) error {
	if weight < 0 || weight > MaxWeight {
		return fmt.Errorf("backend %s: weight %d is not in 0..%d", b.name, weight, MaxWeight)
	}
	b.change(weightMask, status(weight))
	return nil
}

// SetState sets what the operator wants of the backend.
func (b *Backend) SetState(s State) { b.change(stateInPlace, status(s)<<stateShift) }

// SetUp says whether the backend is healthy. Going from down to up begins a slow start in groups that have one.
func (b *Backend) SetUp(up bool) {
	if up {
		b.change(statusUp, statusUp)
	} else {
		b.change(statusUp, 0)
	}
}

// change replaces the bits of mask, and tells the groups if that makes a difference.
func (b *Backend) change(mask, bits status) {
	b.mu.Lock()
	before := b.load()
	after := before&^mask | bits&mask
	if after.up() && !before.up() {
		b.rose.Store(now())
	}
	b.status.Store(uint32(after))
	b.mu.Unlock()
	if after != before {
		b.changed()
	}
}

// SetMaxConnections sets the limit; 0 is none. Lowering it ends no session: none is added until enough have ended.
func (b *Backend) SetMaxConnections(limit int) error {
	if limit < 0 {
		return fmt.Errorf("backend %s: max_connections %d is negative", b.name, limit)
	}
	if b.limit.Swap(int64(limit)) != int64(limit) {
		b.changed()
	}
	return nil
}

func (b *Backend) changed() {
	for _, g := range b.memberOf() {
		g.refresh()
	}
}

// memberOf returns the groups of b; the slice is never written to.
func (b *Backend) memberOf() []*Group {
	if p := b.groups.Load(); p != nil {
		return *p
	}
	return nil
}

func (b *Backend) join(g *Group) {
	b.mu.Lock()
	defer b.mu.Unlock()
	groups := append(slices.Clone(b.memberOf()), g)
	b.groups.Store(&groups)
}

func (b *Backend) leave(g *Group) {
	b.mu.Lock()
	defer b.mu.Unlock()
	groups := slices.DeleteFunc(slices.Clone(b.memberOf()), func(o *Group) bool { return o == g })
	b.groups.Store(&groups)
}

// acquire takes a slot unless limit (0: none) are taken. Check and count are one atomic step.
func (b *Backend) acquire(limit int64) bool {
	if limit == 0 {
		b.active.Add(1)
		return true
	}
	for {
		n := b.active.Load()
		if taken(n) >= limit {
			return false
		}
		if b.active.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// reserved is one connection that is being dialed in advance, in the upper half of Backend.active.
const reserved = 1 << 32

// taken is the number of slots in n, those of sessions and those reserved.
func taken(n int64) int64 { return n>>32 + n&(reserved-1) }

// Reserve takes a slot for a connection that is dialed before a session asks for one, unless that would make more than
// MaxConnections, together with the sessions and with idle connections dialed earlier; those hold no slot, because a session uses
// one of them instead of making a connection. A reservation is not load: balancers and Active do not see it.
func (b *Backend) Reserve(idle int) bool {
	for {
		n, limit := b.active.Load(), b.limit.Load()
		if limit != 0 && taken(n)+int64(idle) >= limit {
			return false
		}
		if b.active.CompareAndSwap(n, n+reserved) {
			return true
		}
	}
}

// Unreserve gives back what Reserve took.
func (b *Backend) Unreserve() {
	n := b.active.Add(-reserved)
	if limit := b.limit.Load(); limit == 0 || taken(n)+1 < limit {
		return
	}
	for _, g := range b.memberOf() {
		g.view.Load().reopen(b)
	}
	for _, g := range b.memberOf() {
		g.notify()
	}
}

// full reports whether no slot is left.
func (b *Backend) full() bool {
	limit := b.limit.Load()
	return limit != 0 && taken(b.active.Load()) >= limit
}

// giveBack undoes acquire.
func (b *Backend) giveBack() {
	n := b.active.Add(-1)
	if limit := b.limit.Load(); limit == 0 || taken(n)+1 < limit {
		return
	}
	for _, g := range b.memberOf() {
		g.view.Load().reopen(b)
	}
}

// release gives a slot back and tells the groups.
func (b *Backend) release() {
	b.giveBack()
	for _, g := range b.memberOf() {
		g.notify()
	}
}

// never is the rose of a backend that has not come up; far enough in the past for every slow start to be over, and
// near enough to subtract from.
const never = math.MinInt64 / 2

var epoch = time.Now()

// now is a monotonic clock in nanoseconds.
func now() int64 { return int64(time.Since(epoch)) }
