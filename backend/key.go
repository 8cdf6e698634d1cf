package backend

import (
	"encoding/binary"
	"net/netip"
)

// Key hashes a client's address for [Group.Lease]. It is the same in every process and release: mix(mix(high half) XOR
// low half) of the 16 bytes of the address, IPv4 as IPv4-mapped IPv6, where mix is the finalizer of SplitMix64. The zone
// of a link-local address is left out because it is a name of this machine only.
func Key(client netip.Addr) uint64 {
	a := client.As16()
	return mix(mix(binary.BigEndian.Uint64(a[:8])) ^ binary.BigEndian.Uint64(a[8:]))
}

// KeyString hashes a name, such as the path of a unix socket, for [Group.Lease]. It is the same in every process and
// release: mix of the 64-bit FNV-1a hash.
func KeyString(name string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return mix(h)
}

// golden is 2^64 divided by the golden ratio: the step of SplitMix64.
const golden = 0x9E3779B97F4A7C15

// mix is the finalizer of SplitMix64 (Stafford's variant 13): a bijection in which every bit of x reaches every bit of the result.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return x ^ x>>31
}
