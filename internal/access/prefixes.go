package access

import (
	"cmp"
	"net/netip"
	"slices"
)

// Prefixes is a set of prefixes, made for being asked often. The zero Prefixes is empty. It is immutable: any number of goroutines
// may use it at once.
type Prefixes struct {
	spans []span // disjoint, ascending; IPv4 before IPv6
}

// A span is one prefix that lies in no other of the set.
type span struct {
	prefix netip.Prefix // masked
	last   netip.Addr
}

// NewPrefixes makes the set of valid prefixes. An IPv4-mapped one (::ffff:10.0.0.0/104) counts as IPv4 (10.0.0.0/8); of
// other IPv6 prefixes, ::/0 included, no IPv4 address is part.
func NewPrefixes(prefixes []netip.Prefix) Prefixes {
	spans := make([]span, 0, len(prefixes))
	for _, p := range prefixes {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		p = p.Masked()
		spans = append(spans, span{p, last(p)})
	}
	slices.SortFunc(spans, func(a, b span) int {
		return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
	})
	kept := spans[:0]
	for _, s := range spans {
		if n := len(kept); n == 0 || kept[n-1].last.Less(s.prefix.Addr()) {
			kept = append(kept, s)
		}
	}
	return Prefixes{slices.Clip(kept)}
}

// last is the highest address of p.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Empty reports whether there is no prefix in p.
func (p Prefixes) Empty() bool { return len(p.spans) == 0 }

// Find returns the prefix of the set that a is part of; the widest one, if there are several. An IPv4-mapped address counts as
// IPv4, a zone does not count, and the zero Addr (a client without IP address) is part of none. It takes a time that grows with the
// logarithm of the number of prefixes, and allocates nothing.
func (p Prefixes) Find(a netip.Addr) (netip.Prefix, bool) {
	a = a.Unmap().WithZone("")
	after, found := slices.BinarySearchFunc(p.spans, a, func(s span, a netip.Addr) int { return s.prefix.Addr().Compare(a) })
	if found {
		after++
	}
	if after == 0 {
		return netip.Prefix{}, false
	}
	s := p.spans[after-1]
	if s.last.Less(a) {
		return netip.Prefix{}, false
	}
	return s.prefix, true
}

// Contains reports whether a is part of the set, as Find has it.
func (p Prefixes) Contains(a netip.Addr) bool {
	_, ok := p.Find(a)
	return ok
}

// Rules say which clients may come in. The zero Rules let everybody in.
type Rules struct {
	Allow Prefixes // empty: all
	Deny  Prefixes // beats Allow
}

// Allowed reports whether a client from a may come in. The zero Addr, of a client on a unix socket, is part of no prefix: it
// may if Allow is empty.
func (r Rules) Allowed(a netip.Addr) bool {
	return !r.Deny.Contains(a) && (r.Allow.Empty() || r.Allow.Contains(a))
}
