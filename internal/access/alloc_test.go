package access

import (
	"net/netip"
	"testing"
	"time"
)

// What every session passes before it is let in allocates nothing, whether it is let in or not.
func TestChecksDoNotAllocate(t *testing.T) {
	var (
		client  = netip.MustParseAddr("192.0.2.7")
		list    = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
		rules   = Rules{Allow: NewPrefixes(list), Deny: NewPrefixes(list[1:])}
		known   = source(1)
		sources = NewSources()
		rate    = NewRate(1, 1)
		rates   = NewRates(1, 1)
		now     = time.Hour
	)
	sources.Take(known, 0)
	for name, check := range map[string]func(){
		"rules":                    func() { rules.Allowed(client) },
		"source of an address":     func() { (Grouping{IPv4: 32, IPv6: 64}).Source(client) },
		"limit of a source":        func() { sources.Take(known, 2); sources.Give(known) },
		"limit that is reached":    func() { sources.Take(known, 1) },
		"limit of another source":  func() { sources.Take(source(2), 2); sources.Give(source(2)) },
		"rate":                     func() { now += time.Second; rate.Take(now) },
		"rate that is passed":      func() { rate.Take(now); rate.Wait(now) },
		"rate of a source":         func() { now += time.Second; rates.Allow(known, now) },
		"rate of another, refused": func() { rates.Allow(source(2), now) },
	} {
		if n := testing.AllocsPerRun(1000, check); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
