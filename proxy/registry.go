package proxy

import (
	"iter"
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
	s.accounts.mu.Lock() // no account comes or is closed meanwhile
	defer s.accounts.mu.Unlock()
	all := s.accounts.list()
	rows := make([]Traffic, len(all)+1) // the last is of sessions without a backend
	for i, a := range all {
		a.row = i
		rows[i] = Traffic{Group: a.group, Backend: a.name}
	}
	for i := range s.open.shards {
		sh := &s.open.shards[i]
		sh.mu.Lock()
		for _, a := range all {
			rows[a.row].Up += a.shards[i].up
			rows[a.row].Down += a.shards[i].down
		}
		for _, x := range sh.open {
			if x.account == nil {
				rows[len(all)].Active++
				continue
			}
			t := &rows[x.account.open().row]
			t.Active++
			if x.link != nil {
				up, down := x.link.Bytes()
				t.Up += up
				t.Down += down
			}
		}
		sh.mu.Unlock()
	}
	return byName(rows)
}

// byName adds up backends of one name: one may have come in the place of another that still has sessions.
func byName(rows []Traffic) []Traffic {
	type key struct{ group, backend string }
	at := make(map[key]int, len(rows))
	sums := rows[:0]
	for _, t := range rows {
		if t.Group == "" && t.Active == 0 {
			continue
		}
		k := key{t.Group, t.Backend}
		i, ok := at[k]
		if !ok {
			at[k] = len(sums)
			sums = append(sums, t)
			continue
		}
		sums[i].Active += t.Active
		sums[i].Up += t.Up
		sums[i].Down += t.Down
	}
	return sums
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
