package access

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
)

// A Grouping says how many leading bits of an address make one source: all clients that share them are counted together.
// A provider gives an IPv6 customer 2^64 addresses or more, so one address is no measure of anything there.
type Grouping struct {
	IPv4, IPv6 int
}

// A Source is whom sessions are counted for. Sources are comparable; those of different groupings are different.
type Source struct {
	hi, lo uint64 // IPv4 as IPv4-mapped
	bits   uint8  // of the 128; 0xff: no IP address
}

// Source is the source that a client at a belongs to. An IPv4-mapped address counts as IPv4; all clients without IP
// address (on unix sockets) are one source.
func (g Grouping) Source(a netip.Addr) Source {
	bits := g.IPv6
	switch {
	case !a.IsValid():
		return Source{bits: 0xff}
	case a.Unmap().Is4():
		bits = 96 + g.IPv4
	}
	b := a.As16()
	s := Source{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]), uint8(bits)}
	s.hi &= ^uint64(0) << max(64-bits, 0)
	s.lo &= ^uint64(0) << min(128-bits, 64)
	return s
}

// A hasher spreads sources in a way that they cannot know.
type hasher maphash.Seed

func newHasher() hasher { return hasher(maphash.MakeSeed()) }

func (h hasher) hash(s Source) uint64 { return maphash.Comparable(maphash.Seed(h), s) }
