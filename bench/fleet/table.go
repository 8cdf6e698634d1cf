package main

import (
	"fmt"
	"time"

	"github.com/tproxy/tproxy/backend"
)

// A table says who owns each slot of a space that keys, or flows, are hashed into evenly: the share of slots is the share of keys.
// Owners are numbers of members. Two tables of one scheme have the same slots.
type table []int32

// A scheme makes the table of members, whose numbers are unique, and says how long that took without reading it out.
type scheme func(members []int) (table, time.Duration)

// The sizes of a table of source_hash: 2^16 slots, and 2^18 for more members than manyMembers.
const (
	smallBits   = 16
	largeBits   = 18
	manyMembers = 650
)

// sourceHash is the table of tproxy, read through the package's API with one key for each slot.
func sourceHash(members []int) (table, time.Duration) {
	backends := make([]*backend.Backend, len(members))
	number := make(map[*backend.Backend]int32, len(members))
	for i, m := range members {
		backends[i] = newBackend(m)
		number[backends[i]] = int32(m)
	}
	start := time.Now()
	group, err := backend.NewGroup(backend.GroupConfig{Name: "fleet", Balance: backend.SourceHash, Backends: backends})
	took := time.Since(start)
	if err != nil {
		panic(err) // the members are ours
	}
	defer group.Close()
	bits := smallBits
	if len(members) > manyMembers {
		bits = largeBits
	}
	t := make(table, 1<<bits)
	for i := range t {
		lease, err := group.Lease(unmix(uint64(2*i+1)<<(63-bits)), nil)
		if err != nil {
			panic(err) // all are up, and none has a limit
		}
		t[i] = number[lease.Backend()]
		lease.Release()
	}
	return t, took
}

func newBackend(member int) *backend.Backend {
	b, err := backend.New(backend.Config{Address: fmt.Sprintf("10.%d.%d.%d:5432", member>>16, member>>8&255, member&255), Weight: 1})
	if err != nil {
		panic(err)
	}
	return b
}

// unmix is the inverse of the finalizer of SplitMix64, with which package backend hashes a key. Should it hash otherwise one day, then unmix
// makes keys like any others, and what is read from a table is a sample.
func unmix(x uint64) uint64 {
	x = (x ^ x>>31 ^ x>>62) * 0x319642B2D24D8EC3
	x = (x ^ x>>27 ^ x>>54) * 0x96DE1B173F119089
	return x ^ x>>30 ^ x>>60
}

// modulo is the naive rule: hash modulo the number of members. Its table is a sample of hashes.
func modulo(members []int) (table, time.Duration) {
	t := make(table, 1<<largeBits)
	for i := range t {
		t[i] = int32(members[hash(uint64(i), 0)%uint64(len(members))])
	}
	return t, 0
}

// hash is SplitMix64: number x of the stream that begins at seed.
func hash(x, seed uint64) uint64 {
	x = seed + (x+1)*0x9E3779B97F4A7C15
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return x ^ x>>31
}

// moved compares two tables: share is that of slots with another owner, and needless the part of it that had to go neither because its owner
// is gone nor for the sake of a new one.
func moved(before, after table, isGone, isNew func(member int32) bool) (share, needless float64) {
	var all, vain int
	for i, old := range before {
		if after[i] == old {
			continue
		}
		all++
		if !isGone(old) && !isNew(after[i]) {
			vain++
		}
	}
	return float64(all) / float64(len(before)), float64(vain) / float64(len(before))
}

// spread is the share of the member with most slots, in units of the mean.
func (t table) spread(members int) float64 {
	count := make(map[int32]int, members)
	most := 0
	for _, m := range t {
		count[m]++
		most = max(most, count[m])
	}
	return float64(most) * float64(members) / float64(len(t))
}
