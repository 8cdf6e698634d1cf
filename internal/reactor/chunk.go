package reactor

import "sync"

// chunkSize is what one read takes at most.
const chunkSize = 64 << 10

// A chunk is a buffer from the pool of its size. It holds what was read from one side while the other side takes nothing.
type chunk struct {
	data []byte
	pool *sync.Pool
}

var chunkPools = [...]*sync.Pool{newChunkPool(4 << 10), newChunkPool(16 << 10), newChunkPool(chunkSize)}

func newChunkPool(size int) *sync.Pool {
	p := new(sync.Pool)
	p.New = func() any { return &chunk{data: make([]byte, size), pool: p} }
	return p
}

// newChunk returns a chunk of at least n bytes, n ≤ chunkSize.
func newChunk(n int) *chunk {
	i := 0
	for i < len(chunkPools)-1 && n > 4<<10<<(2*i) {
		i++
	}
	return chunkPools[i].Get().(*chunk)
}

// free gives c back; a nil chunk is fine.
func (c *chunk) free() {
	if c != nil {
		c.pool.Put(c)
	}
}
