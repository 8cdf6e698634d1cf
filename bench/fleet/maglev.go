package main

import "time"

// maglev is the table of Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4: each member
// has a permutation of all slots, and they take turns to take the next free one of theirs. The sizes are the paper's, both prime:
// the small one, and a hundred slots for each of many members.
func maglev(members []int) (table, time.Duration) {
	size := uint64(65537)
	if len(members) > manyMembers {
		size = 655373
	}
	start := time.Now()
	type permutation struct{ next, skip uint64 }
	turns := make([]permutation, len(members))
	for i, m := range members {
		turns[i] = permutation{hash(uint64(m), 1) % size, hash(uint64(m), 2)%(size-1) + 1}
	}
	t := make(table, size)
	for i := range t {
		t[i] = free
	}
	for left := size; ; {
		for i := range turns {
			p := &turns[i]
			for t[p.next] != free {
				p.next = (p.next + p.skip) % size
			}
			t[p.next] = int32(members[i])
			if left--; left == 0 {
				return t, time.Since(start)
			}
		}
	}
}

// free is the owner of a slot that has none.
const free int32 = -1
