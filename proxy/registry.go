package proxy

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tproxy/tproxy/backend"
)

// A registry is the open sessions of a server, in shards so that no lock is shared by all event loops.
type registry struct {
	seed    SessionID
	next    atomic.Uint64
	count   atomic.Int64
	untold  atomic.Int64 // sessions whose last event is still to come
	closing atomic.Bool
	shards  [shardCount]shard
}

const shardCount = 16

type shard struct {
	mu   sync.Mutex
	open []*session
	_    [64]byte // shards share no cache line
}

func (r *registry) shard(id SessionID) (*shard, int) {
	i := int(id % shardCount)
	return &r.shards[i], i
}

func (r *registry) add(x *session) {
	x.id = r.seed + SessionID(r.next.Add(1))
	r.count.Add(1)
	r.untold.Add(1)
	sh, _ := r.shard(x.id)
	sh.mu.Lock()
	x.index = int32(len(sh.open))
	sh.open = append(sh.open, x)
	sh.mu.Unlock()
}

// remove takes x out and books its bytes.
func (r *registry) remove(x *session, up, down uint64) {
	sh, i := r.shard(x.id)
	sh.mu.Lock()
	end := len(sh.open) - 1
	moved := sh.open[end]
	sh.open[x.index], moved.index = moved, x.index
	sh.open[end] = nil
	sh.open = sh.open[:end]
	if end == 0 && cap(sh.open) > 64 {
		sh.open = nil // give back what a peak took
	}
	if x.account != nil {
		x.account.book(i, up, down)
	}
	sh.mu.Unlock()
	r.count.Add(-1)
}

// told notes that a session's last event was observed, and reports whether it was the last session of a server that is closing.
func (r *registry) told() (last bool) {
	return r.untold.Add(-1) == 0 && r.closing.Load()
}

// close notes that no session will be added, and reports whether there is none.
func (r *registry) close() bool {
	r.closing.Store(true)
	return r.untold.Load() == 0
}

// all is a copy of the open sessions, shard by shard.
func (r *registry) all() iter.Seq[*session] {
	return func(yield func(*session) bool) {
		for i := range r.shards {
			sh := &r.shards[i]
			sh.mu.Lock()
			open := append([]*session(nil), sh.open...)
			sh.mu.Unlock()
			for _, x := range open {
				if !yield(x) {
					return
				}
			}
		}
	}
}

func (r *registry) find(id SessionID) *session {
	sh, _ := r.shard(id)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, x := range sh.open {
		if x.id == id {
			return x
		}
	}
	return nil
}

// Traffic is what one backend's sessions of one server are and were.
type Traffic struct {
	Group, Backend string // both empty for sessions that have no backend yet
	Active         int
	Up, Down       uint64 // bytes of open and ended sessions; never decreases
}

// Traffic returns the totals of every backend that ever served, open sessions included to the byte. Those of backends that
// left their group and have no session any more are, after a while, added up as one, with the group and no Backend.
func (s *Server) Traffic() []Traffic {
	if s.init() != nil {
		return nil
	}
	type key struct{ group, backend string }
	sums := make(map[key]*Traffic)
	sum := func(group, name string) *Traffic {
		t := sums[key{group, name}]
		if t == nil {
			t = &Traffic{Group: group, Backend: name}
			sums[key{group, name}] = t
		}
		return t
	}
	for i := range s.open.shards {
		sh := &s.open.shards[i]
		sh.mu.Lock()
		s.accounts.each(func(a *account) {
			t := sum(a.group, a.name)
			t.Up += a.shards[i].up
			t.Down += a.shards[i].down
		})
		for _, x := range sh.open {
			if x.account == nil {
				sum("", "").Active++
				continue
			}
			t := sum(x.account.group, x.account.name)
			t.Active++
			if x.link != nil {
				up, down := x.link.Bytes()
				t.Up += up
				t.Down += down
			}
		}
		sh.mu.Unlock()
	}
	all := make([]Traffic, 0, len(sums))
	for _, t := range sums {
		all = append(all, *t)
	}
	return all
}

// A SessionInfo is what is known of an open session.
type SessionInfo struct {
	ID             SessionID
	Listener       string
	Client, Local  Addr
	Claimed        Addr   // who a PROXY header says the client is; zero without one
	SNI            string // the server name the client asked for, if that was looked at
	Group, Backend string // empty while there is no backend
	Up, Down       uint64
	Age, Quiet     time.Duration // since accept; since the last byte, 0 while connecting
	HalfClosed     bool
	Attempts       int
	Pool           PoolResult

	backend *backend.Backend
}

// On reports whether b serves the session.
func (i SessionInfo) On(b *backend.Backend) bool { return i.backend == b }

// Sessions yields the open sessions, in no order.
func (s *Server) Sessions() iter.Seq[SessionInfo] {
	return func(yield func(SessionInfo) bool) {
		if s.init() != nil {
			return
		}
		for x := range s.open.all() {
			if !yield(x.info()) {
				return
			}
		}
	}
}

// Active is the number of open sessions.
func (s *Server) Active() int { return int(s.open.count.Load()) }

// HalfClosed is the number of open sessions of which exactly one side has sent its FIN.
func (s *Server) HalfClosed() (n int) {
	for i := range s.open.shards {
		sh := &s.open.shards[i]
		sh.mu.Lock()
		for _, x := range sh.open {
			if x.link != nil && x.link.HalfClosed() {
				n++
			}
		}
		sh.mu.Unlock()
	}
	return n
}

// Paused reports whether accepting backs off because the system is out of descriptors or memory.
func (s *Server) Paused() bool { return s.paused.Load() > 0 }

// Kill resets a session, which ends with that reason unless it ended before; false: there is none of that ID.
func (s *Server) Kill(id SessionID, why Reason) bool {
	if s.init() != nil {
		return false
	}
	x := s.open.find(id)
	if x == nil {
		return false
	}
	x.kill(why)
	return true
}

// Shed ends the sessions that match, evenly over the window and the quietest first; those in which bytes move are left
// for last. It returns when none is left that matches, or ctx is done.
func (s *Server) Shed(ctx context.Context, window time.Duration, match func(SessionInfo) bool, why Reason) {
	end := clock() + window
	for {
		var left []SessionInfo
		for i := range s.Sessions() {
			if match(i) {
				left = append(left, i)
			}
		}
		if len(left) == 0 {
			return
		}
		remaining := max(end-clock(), 0)
		step := max(remaining/time.Duration(len(left)+1), shedStep)
		t := time.NewTimer(step)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		share := len(left)
		if remaining > step {
			share = int(time.Duration(len(left))*step/remaining) + 1
		}
		slices.SortFunc(left, func(a, b SessionInfo) int { return cmp.Compare(b.Quiet, a.Quiet) })
		for _, i := range left[:min(share, len(left))] {
			if i.Quiet >= shedQuiet || remaining <= step {
				s.Kill(i.ID, why)
			}
		}
	}
}

// shedStep keeps the look at all sessions rare when there are many.
const shedStep = 50 * time.Millisecond

// shedQuiet is how long a session must have been quiet to be ended before the window is over.
const shedQuiet = time.Second

// KillAll resets all open sessions and returns how many there were.
func (s *Server) KillAll(why Reason) (n int) {
	if s.init() != nil {
		return 0
	}
	for x := range s.open.all() {
		x.kill(why)
		n++
	}
	return n
}
