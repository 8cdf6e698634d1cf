package proxy

import (
	"sync"
	"sync/atomic"

	"github.com/tproxy/tproxy/backend"
)

// An account adds up the bytes of the ended sessions of one backend, by shard and under its lock: with the open
// sessions of the shard they are counted once each at any moment.
type account struct {
	group   string
	name    string           // of the backend
	backend *backend.Backend // nil: of all backends that left the group
	members *backend.Group
	shards  [shardCount]struct{ up, down uint64 }
	into    atomic.Pointer[account] // where to book instead, once this one was closed
	row     int                     // of Traffic, under accounts.mu
}

// open is the account to book to.
func (a *account) open() *account {
	if into := a.into.Load(); into != nil {
		return into
	}
	return a
}

// book adds what a session moved; the lock of the shard is held.
func (a *account) book(shard int, up, down uint64) {
	a = a.open()
	a.shards[shard].up += up
	a.shards[shard].down += down
}

// accounts are those of one server.
type accounts struct {
	all sync.Map // *backend.Backend to *account, and *backend.Group to the account of those that left it

	mu    sync.Mutex // for writing all, and what follows
	count int
	most  int // accounts are closed when there are more
}

// of is where the sessions of b are booked. r is the registry that books.
func (s *accounts) of(g *backend.Group, b *backend.Backend, r *registry) *account {
	if a, ok := s.all.Load(b); ok {
		return a.(*account)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if a, ok := s.all.Load(b); ok {
		return a.(*account)
	}
	a := &account{group: g.Name(), name: b.Name(), backend: b, members: g}
	s.all.Store(b, a)
	if s.count++; s.count > s.most {
		s.fold(r)
		s.most = 2*s.count + 16
	}
	return a
}

// fold closes the accounts of backends that left their group and have no session, and books what they held to the group's
// account. mu is held.
func (s *accounts) fold(r *registry) {
	s.all.Range(func(k, v any) bool {
		a := v.(*account)
		if a.backend == nil || a.backend.Active() > 0 {
			return true
		}
		if member, ok := a.members.Lookup(a.name); ok && member == a.backend {
			return true
		}
		left, ok := s.all.Load(a.members)
		if !ok {
			left = &account{group: a.group, members: a.members}
			s.all.Store(a.members, left)
		}
		a.into.Store(left.(*account)) // first: a session that is about to end finds its way
		for i := range r.shards {
			sh := &r.shards[i]
			sh.mu.Lock()
			held := a.shards[i]
			a.shards[i] = struct{ up, down uint64 }{}
			left.(*account).book(i, held.up, held.down)
			sh.mu.Unlock()
		}
		s.all.Delete(k)
		s.count--
		return true
	})
}

// list is every account; mu is held.
func (s *accounts) list() []*account {
	all := make([]*account, 0, s.count)
	s.all.Range(func(_, v any) bool {
		all = append(all, v.(*account))
		return true
	})
	return all
}
