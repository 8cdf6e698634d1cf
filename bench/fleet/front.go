package main

// A resilient table is what a router keeps for equal-cost paths with resilient hashing: a fixed number of buckets, of which only
// those that must are given to another member. (Linux: ip nexthop … type resilient buckets 512.)
const resilientBuckets = 512

// newResilient deals the buckets out in turns.
func newResilient(members []int) table {
	t := make(table, resilientBuckets)
	for i := range t {
		t[i] = int32(members[i%len(members)])
	}
	return t
}

// without gives the buckets of a lost member to those with the fewest.
func (t table) without(lost int32, others []int) table {
	count := t.counts(others)
	after := make(table, len(t))
	for i, m := range t {
		if m == lost {
			m = least(count, others)
			count[m]++
		}
		after[i] = m
	}
	return after
}

// with gives a new member its share at once, from those with the most buckets.
func (t table) with(added int32, others []int) table {
	count := t.counts(others)
	after := append(table(nil), t...)
	for range len(t) / (len(others) + 1) {
		from := most(count, others)
		for i, m := range after {
			if m == from {
				after[i] = added
				count[from]--
				break
			}
		}
	}
	return after
}

func (t table) counts(members []int) map[int32]int {
	count := make(map[int32]int, len(members))
	for _, m := range t {
		count[m]++
	}
	return count
}

func least(count map[int32]int, members []int) int32 {
	best := int32(members[0])
	for _, m := range members {
		if count[int32(m)] < count[best] {
			best = int32(m)
		}
	}
	return best
}

func most(count map[int32]int, members []int) int32 {
	best := int32(members[0])
	for _, m := range members {
		if count[int32(m)] > count[best] {
			best = int32(m)
		}
	}
	return best
}
