package access

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func prefixes(s ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, p := range s {
		ps = append(ps, netip.MustParsePrefix(p))
	}
	return ps
}

func TestRules(t *testing.T) {
	for _, tt := range []struct {
		name        string
		allow, deny []string
		in, out     []string
	}{
		{"none", nil, nil, []string{"10.0.0.1", "::1", ""}, nil},
		{"deny", nil, []string{"10.0.0.0/8"}, []string{"9.255.255.255", "11.0.0.0", "::1", ""}, []string{"10.0.0.0", "10.1.2.3", "10.255.255.255"}},
		{"allow", []string{"10.0.0.0/8"}, nil, []string{"10.1.2.3"}, []string{"11.0.0.0", "::1", "::a01:203", ""}},
		{"deny beats allow", []string{"127.0.0.0/24"}, []string{"127.0.0.8/29"},
			[]string{"127.0.0.7", "127.0.0.16"}, []string{"127.0.0.8", "127.0.0.15", "127.0.1.0"}},
		{"deny beats a longer allow", []string{"10.1.0.0/16"}, []string{"10.0.0.0/8"}, nil, []string{"10.1.0.1", "10.0.0.1"}},
		{"mapped addresses count as IPv4", []string{"10.0.0.0/8"}, []string{"10.9.0.0/16"}, []string{"::ffff:10.1.2.3"}, []string{"::ffff:10.9.0.1", "::ffff:11.0.0.1"}},
		{"mapped prefixes count as IPv4", []string{"::ffff:10.0.0.0/104"}, []string{"::ffff:10.9.9.9/128"},
			[]string{"10.1.2.3", "::ffff:10.1.2.3"}, []string{"10.9.9.9", "11.0.0.1", "::1"}},
		{"all of IPv4", []string{"0.0.0.0/0"}, nil, []string{"0.0.0.0", "255.255.255.255", "::ffff:1.2.3.4"}, []string{"::", "::1"}},
		{"all of IPv6", []string{"::/0"}, nil, []string{"::", "2001:db8::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, []string{"1.2.3.4", "::ffff:1.2.3.4"}},
		{"both", []string{"0.0.0.0/0", "::/0"}, nil, []string{"1.2.3.4", "::1"}, []string{""}},
		{"single addresses", []string{"192.0.2.1/32", "2001:db8::1/128"}, nil, []string{"192.0.2.1", "2001:db8::1"}, []string{"192.0.2.0", "192.0.2.2", "2001:db8::", "2001:db8::2"}},
		{"zones do not count", nil, []string{"fe80::/10"}, nil, []string{"fe80::1%eth0", "fe80::1"}},
		{"host bits do not count", nil, []string{"10.1.2.3/8"}, []string{"11.0.0.0"}, []string{"10.0.0.0"}},
		{"nested, and neighbours", nil, []string{"10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8", "11.0.0.0/8"}, []string{"12.0.0.0"}, []string{"10.1.0.0", "10.2.0.0", "11.0.0.0"}},
	} {
		r := Rules{NewPrefixes(prefixes(tt.allow...)), NewPrefixes(prefixes(tt.deny...))}
		for want, clients := range map[bool][]string{true: tt.in, false: tt.out} {
			for _, c := range clients {
				a, _ := netip.ParseAddr(c)
				if r.Allowed(a) != want {
					t.Errorf("%s: %q allowed is %v", tt.name, c, !want)
				}
			}
		}
	}
}

func TestFindNamesTheWidestPrefix(t *testing.T) {
	p := NewPrefixes(prefixes("10.1.0.0/16", "10.0.0.0/8", "10.1.2.0/24", "2001:db8::/32"))
	for a, want := range map[string]string{"10.1.2.3": "10.0.0.0/8", "2001:db8::1": "2001:db8::/32", "11.0.0.1": "invalid Prefix"} {
		if got, ok := p.Find(netip.MustParseAddr(a)); got.String() != want || ok != (want != "invalid Prefix") {
			t.Errorf("%s: %v, %v; want %s", a, got, ok, want)
		}
	}
}

// A set contains what one of its prefixes contains.
func TestPrefixesContainWhatOneContains(t *testing.T) {
	// Few distinct bits, so that prefixes meet.
	address := rapid.Custom(func(t *rapid.T) netip.Addr {
		octet := rapid.SampledFrom([]byte{0, 1, 127, 128, 255})
		if rapid.Bool().Draw(t, "v4") {
			return netip.AddrFrom4([4]byte{octet.Draw(t, "a"), octet.Draw(t, "b"), 0, octet.Draw(t, "c")})
		}
		return netip.AddrFrom16([16]byte{octet.Draw(t, "a"), octet.Draw(t, "b"), 7: octet.Draw(t, "c"), 15: octet.Draw(t, "d")})
	})
	prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := address.Draw(t, "address")
		return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits"))
	})
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOf(prefix).Draw(t, "prefixes")
		a := address.Draw(t, "client")
		want := slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
		if got := NewPrefixes(list).Contains(a); got != want {
			t.Fatalf("contains %v: %v, want %v", a, got, want)
		}
	})
}

func BenchmarkPrefixes(b *testing.B) {
	for _, n := range []int{1, 100, 10_000} {
		random := rand.New(rand.NewPCG(1, 2))
		var list []netip.Prefix
		for range n {
			list = append(list, netip.PrefixFrom(ipv4(random.Uint32()), 24))
		}
		p := NewPrefixes(list)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.Contains(ipv4(random.Uint32()))
			}
		})
	}
}

func ipv4(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}
