package access

import (
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

func TestSourceOfAnAddress(t *testing.T) {
	standard := Grouping{IPv4: 32, IPv6: 64}
	for _, tt := range []struct {
		grouping Grouping
		a, b     string // "" is no address
		same     bool
	}{
		{standard, "10.0.0.1", "10.0.0.1", true},
		{standard, "10.0.0.1", "10.0.0.2", false},
		{standard, "10.0.0.1", "::ffff:10.0.0.1", true},
		{standard, "2001:db8::1", "2001:db8::ffff:1", true},
		{standard, "2001:db8::1", "2001:db8:0:1::1", false},
		{standard, "fe80::1%eth0", "fe80::1%eth1", true},
		{standard, "0.0.0.0", "::", false},
		{standard, "", "", true},
		{standard, "", "::", false},
		{Grouping{24, 48}, "10.0.0.1", "10.0.0.255", true},
		{Grouping{24, 48}, "10.0.0.1", "10.0.1.1", false},
		{Grouping{24, 48}, "2001:db8:0:1::1", "2001:db8:0:2::1", true},
		{Grouping{24, 48}, "2001:db8:0:1::1", "2001:db8:1:1::1", false},
		{Grouping{32, 128}, "2001:db8::1", "2001:db8::2", false},
		{Grouping{32, 96}, "2001:db8::1", "2001:db8::2", true},
		{Grouping{0, 0}, "1.2.3.4", "250.2.3.4", true},
		{Grouping{0, 0}, "::1", "2001:db8::1", true},
		{Grouping{0, 0}, "::1", "1.2.3.4", false},
	} {
		a, _ := netip.ParseAddr(tt.a)
		b, _ := netip.ParseAddr(tt.b)
		if same := tt.grouping.Source(a) == tt.grouping.Source(b); same != tt.same {
			t.Errorf("%v: %q and %q are one source: %v", tt.grouping, tt.a, tt.b, same)
		}
	}
	host := netip.MustParseAddr("10.0.0.0")
	if (Grouping{IPv4: 24}).Source(host) == standard.Source(host) {
		t.Error("a network and its first address are one source: sessions from before a reload would be given back to others")
	}
}

func source(n uint32) Source { return Grouping{IPv4: 32, IPv6: 64}.Source(ipv4(n)) }

func TestLimitOfASource(t *testing.T) {
	c := NewSources()
	for i := range 3 {
		if !c.Take(source(1), 3) {
			t.Fatalf("session %d of 3 is refused", i+1)
		}
	}
	if c.Take(source(1), 3) {
		t.Error("a fourth is taken")
	}
	if !c.Take(source(2), 3) {
		t.Error("another source is refused")
	}
	c.Give(source(1))
	if !c.Take(source(1), 3) || c.Take(source(1), 3) {
		t.Error("one that ended does not make room for one")
	}
	if c.Take(source(1), 2) || !c.Take(source(1), 0) || !c.Take(source(1), 5) {
		t.Error("a changed limit does not count who is there")
	}
	for range 5 {
		c.Give(source(1))
	}
	c.Give(source(2))
	if n := c.Len(); n != 0 {
		t.Errorf("%d sources are left", n)
	}
}

func TestGiveWithoutTakePanics(t *testing.T) {
	c := NewSources()
	c.Take(source(1), 0)
	defer func() {
		if recover() == nil {
			t.Error("it goes on with a wrong count")
		}
		if !c.Take(source(1), 2) || c.Take(source(1), 2) {
			t.Error("the counts are not what they were")
		}
	}()
	c.Give(source(2))
}

func TestCountsAreExactWithManyAtOnce(t *testing.T) {
	const workers, rounds, limit = 8, 20_000, 3
	c := NewSources()
	var live [5]atomic.Int32
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range rounds {
				k := (w + i) % len(live)
				if !c.Take(source(uint32(k)), limit) {
					continue
				}
				if n := live[k].Add(1); n > limit {
					t.Errorf("%d sessions of one source", n)
				}
				runtime.Gosched()
				live[k].Add(-1)
				c.Give(source(uint32(k)))
			}
		})
	}
	wg.Wait()
	if n := c.Len(); n != 0 {
		t.Errorf("%d sources are left", n)
	}
}

// heap is what is in use after a collection.
func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

func TestMemoryOfAFloodOfSources(t *testing.T) {
	before := heap()
	c := NewSources()
	c.Take(source(flood), 1)
	for i := range uint32(flood) {
		if !c.Take(source(i), 1) {
			t.Fatalf("source %d is refused", i)
		}
	}
	if c.Take(source(flood), 1) || c.Take(source(0), 1) {
		t.Error("a source with a session was forgotten")
	}
	if used := heap() - before; used > flood*100 {
		t.Errorf("%d bytes for each source that has a session", used/flood)
	}
	for i := range uint32(flood) {
		c.Give(source(i))
	}
	if used := heap() - before; used > 1<<20 {
		t.Errorf("%d bytes are kept for one source after the flood", used)
	}
	if c.Take(source(flood), 1) {
		t.Error("the source that stayed was forgotten")
	}
	runtime.KeepAlive(c)
}

func BenchmarkSources(b *testing.B) {
	c := NewSources()
	for i := range uint32(100_000) {
		c.Take(source(i), 0)
	}
	var next atomic.Uint32
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for i := next.Add(1 << 20); pb.Next(); i++ {
			s := source(i % 200_000)
			if c.Take(s, 10) {
				c.Give(s)
			}
		}
	})
}
