package access

import "sync"

// Sources counts the sessions of each source. It is exact: a source is remembered as long as it has a session and no longer, so
// there are never more sources than sessions. Make one with [NewSources].
//
// Its methods may be called by many goroutines at once; sources are spread over many locks, each held for one access to a map.
type Sources struct {
	hash   hasher
	shards [countShards]countShard
}

const countShards = 64

type countShard struct {
	mu   sync.Mutex
	n    map[Source]int32
	peak int // entries since n was made
	_    [40]byte
}

// NewSources returns Sources without a session.
func NewSources() *Sources {
	return &Sources{hash: newHasher()}
}

func (c *Sources) shard(s Source) *countShard { return &c.shards[c.hash.hash(s)%countShards] }

// Take counts one more session of s if it has fewer than limit, and reports whether it did. Limit 0 is none: the session is counted. For every
// Take that returned true there must be one Give of the same Source.
func (c *Sources) Take(s Source, limit int) bool {
	shard := c.shard(s)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	n := shard.n[s]
	if limit > 0 && int(n) >= limit {
		return false
	}
	if shard.n == nil {
		shard.n = make(map[Source]int32)
	}
	shard.n[s] = n + 1
	shard.peak = max(shard.peak, len(shard.n))
	return true
}

// Give ends the count of one session of s. It panics if there is none.
func (c *Sources) Give(s Source) {
	shard := c.shard(s)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	switch n := shard.n[s]; n {
	case 0:
		panic("access: Give without Take")
	case 1:
		delete(shard.n, s)
		shard.shrink()
	default:
		shard.n[s] = n - 1
	}
}

// shrink gives memory back after a flood: a map keeps the room of its largest size for ever.
func (h *countShard) shrink() {
	const worth = 64
	if h.peak <= worth || len(h.n) > h.peak/8 {
		return
	}
	n := make(map[Source]int32, len(h.n))
	for s, k := range h.n {
		n[s] = k
	}
	h.n, h.peak = n, len(n)
}

// Len is how many sources have a session.
func (c *Sources) Len() int {
	total := 0
	for i := range c.shards {
		shard := &c.shards[i]
		shard.mu.Lock()
		total += len(shard.n)
		shard.mu.Unlock()
	}
	return total
}
