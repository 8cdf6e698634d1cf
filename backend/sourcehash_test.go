package backend

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// owners returns the name of the owner of each slot.
func owners(backends []*Backend) []string {
	weights := make([]uint16, len(backends))
	for i, b := range backends {
		weights[i] = uint16(b.Weight())
	}
	table := newHashTable(backends, weights)
	names := make([]string, len(table.slots))
	for i, s := range table.slots {
		names[i] = backends[s].name
	}
	return names
}

// hashed makes n backends with weights from 1 to 5.
func hashed(tb testing.TB, n int) []*Backend {
	tb.Helper()
	var backends []*Backend
	for i := range n {
		backends = append(backends, newTestBackend(tb, Config{Address: address(i), Weight: 1 + i%5}))
	}
	return backends
}

var tableSizes = []int{2, 10, 100, smallTier + 50}

func TestSourceHashMovesOnlyTheKeysOfARemovedBackend(t *testing.T) {
	for _, n := range tableSizes {
		backends := hashed(t, n)
		before := owners(backends)
		removed := rand.IntN(n)
		after := owners(slices.Delete(slices.Clone(backends), removed, removed+1))
		heirs := make(map[string]bool)
		for i := range before {
			if before[i] == backends[removed].name {
				heirs[after[i]] = true
			} else if after[i] != before[i] {
				t.Fatalf("%d backends: slot %d moved from %s to %s when %v was removed", n, i, before[i], after[i], backends[removed])
			}
		}
		if len(heirs) < min(n-1, 5) {
			t.Errorf("%d backends: the keys of a removed one went to %d others only", n, len(heirs))
		}
	}
}

func TestSourceHashMovesFewKeysAndOnlyToAnAddedBackend(t *testing.T) {
	for _, n := range []int{1, 10, 100} {
		backends := benchBackends(t, n+1, false)
		before, after := owners(backends[:n]), owners(backends)
		moved := 0
		for i := range before {
			if after[i] != before[i] {
				moved++
				if after[i] != backends[n].name {
					t.Fatalf("%d backends: slot %d moved from %s to %s when %v was added", n, i, before[i], after[i], backends[n])
				}
			}
		}
		if share := float64(moved) / float64(len(before)); share > 1.3/float64(n+1) {
			t.Errorf("adding one to %d moved %.4f of the keys, want at most %.4f", n, share, 1.3/float64(n+1))
		}
	}
}

func TestSourceHashMovesOnlyTowardsMoreWeight(t *testing.T) {
	backends := hashed(t, 10)
	before := owners(backends)
	grown := backends[3]
	if err := grown.SetWeight(grown.Weight() + 3); err != nil {
		t.Fatal(err)
	}
	after, gained := owners(backends), 0
	for i := range before {
		if after[i] != before[i] {
			gained++
			if after[i] != grown.name {
				t.Fatalf("slot %d moved from %s to %s when %v got more weight", i, before[i], after[i], grown)
			}
		}
	}
	if gained == 0 {
		t.Error("more weight gained nothing")
	}
}

func TestSourceHashIgnoresTheOrderOfTheList(t *testing.T) {
	for _, n := range tableSizes[:3] {
		backends := hashed(t, n)
		want := owners(backends)
		rand.Shuffle(n, func(i, j int) { backends[i], backends[j] = backends[j], backends[i] })
		if !slices.Equal(owners(backends), want) {
			t.Errorf("%d backends in another order have another table", n)
		}
	}
}

func TestSourceHashGroupsAgreeWhateverTheirOrder(t *testing.T) {
	one, two := hashed(t, 20), hashed(t, 20)
	slices.Reverse(two)
	g1 := newTestGroup(t, GroupConfig{Balance: SourceHash}, one...)
	g2 := newTestGroup(t, GroupConfig{Balance: SourceHash}, two...)
	agree := func(when string) {
		t.Helper()
		for i := range 2_000 {
			if a, b := ownerOf(t, g1, i), ownerOf(t, g2, i); a != b {
				t.Fatalf("%s: client %d gets %s and %s", when, i, a, b)
			}
		}
	}
	agree("all up")
	for i := range 18 { // so few are left that keys are often found by search
		one[i].SetUp(false)
		two[19-i].SetUp(false)
	}
	agree("two up")
}

func ownerOf(tb testing.TB, g *Group, client int) string {
	tb.Helper()
	l, err := g.Lease(Key(netip.AddrFrom4([4]byte{10, 9, byte(client >> 8), byte(client)})), nil)
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Release()
	return l.Backend().Name()
}

func TestSourceHashFollowsWeights(t *testing.T) {
	var backends []*Backend
	total := 0
	for i := range 10 {
		backends = append(backends, newTestBackend(t, Config{Address: address(i), Weight: i + 1}))
		total += i + 1
	}
	g := newTestGroup(t, GroupConfig{Balance: SourceHash}, backends...)
	got := make(map[string]int)
	const clients = 60_000
	for i := range clients {
		got[ownerOf(t, g, i)]++
	}
	for _, b := range backends {
		want := float64(clients*b.Weight()) / float64(total)
		if off := math.Abs(float64(got[b.Name()])-want) / want; off > .1 {
			t.Errorf("%v of weight %d serves %d clients, want %.0f within 10 %%", b, b.Weight(), got[b.Name()], want)
		}
	}
}

func TestSourceHashSpreadsAmongTenThousand(t *testing.T) {
	count := make(map[string]int)
	slots := owners(benchBackends(t, 10_000, false))
	for _, name := range slots {
		count[name]++
	}
	mean, variance := float64(len(slots))/10_000, 0.0
	for i := range 10_000 {
		d := float64(count[address(i)]) - mean
		variance += d * d / 10_000
	}
	if deviation := math.Sqrt(variance) / mean; deviation > .22 {
		t.Errorf("the shares of 10,000 equal backends deviate by %.2f from the mean, want 0.20", deviation)
	}
}

// TestSourceHashIsForever notices a change of the table: it would send most clients of a running deployment elsewhere, and replicas of two
// releases would not agree.
func TestSourceHashIsForever(t *testing.T) {
	for n, want := range map[int]uint64{10: 0x24e8db32d133daee, 700: 0x2848013b884ca657} {
		h := fnv.New64a()
		for _, name := range owners(hashed(t, n)) {
			fmt.Fprintln(h, name)
		}
		if got := h.Sum64(); got != want {
			t.Errorf("the table of %d backends has the fingerprint %#x, want %#x", n, got, want)
		}
	}
}

// TestSourceHashIsTheRaceItClaimsToBe computes a table from its description, in floating point, in the plainest way.
func TestSourceHashIsTheRaceItClaimsToBe(t *testing.T) {
	backends := hashed(t, 10)
	type arrival struct {
		time float64
		name string
	}
	first := make([]arrival, 1<<smallTableBits)
	for _, b := range backends {
		time := 0.0
		for counter := KeyString(b.Name()) + golden; ; counter += golden {
			random := mix(counter)
			uniform := float64(random<<smallTableBits|1<<19) / (1 << 64)
			if time -= math.Log(uniform) / float64(b.Weight()); time > 50_000 {
				break
			}
			if slot := &first[random>>(64-smallTableBits)]; slot.name == "" || time < slot.time {
				*slot = arrival{time, b.Name()}
			}
		}
	}
	for i, name := range owners(backends) {
		if name != first[i].name {
			t.Fatalf("slot %d belongs to %s, want %s, who came at %v", i, name, first[i].name, first[i].time)
		}
	}
}

func TestSourceHashKeysOfADownBackendSpreadAndComeBack(t *testing.T) {
	backends := weighted(t, 1, 1, 1, 1)
	g := newTestGroup(t, GroupConfig{Balance: SourceHash}, backends...)
	const clients = 1_000
	var home [clients]string
	for i := range home {
		home[i] = ownerOf(t, g, i)
	}
	backends[1].SetUp(false)
	heirs := make(map[string]int)
	for i := range home {
		got := ownerOf(t, g, i)
		if home[i] == "b2" {
			heirs[got]++
		} else if got != home[i] {
			t.Fatalf("client %d moved from %s to %s when b2 went down", i, home[i], got)
		}
	}
	for _, name := range []string{"b1", "b3", "b4"} {
		if heirs[name] < 40 {
			t.Errorf("the clients of a down backend went to %v, want a third to each", heirs)
		}
	}
	backends[1].SetUp(true)
	for i := range home {
		if got := ownerOf(t, g, i); got != home[i] {
			t.Fatalf("client %d is served by %s after all were up again, before by %s", i, got, home[i])
		}
	}
}

func TestSourceHashSendsKeysOfAFullBackendElsewhere(t *testing.T) {
	backends := weighted(t, 1, 1, 1)
	for _, b := range backends {
		if err := b.SetMaxConnections(1); err != nil {
			t.Fatal(err)
		}
	}
	g := newTestGroup(t, GroupConfig{Balance: SourceHash}, backends...)
	for range 3 {
		if _, err := g.Lease(7, nil); err != nil {
			t.Fatal(err)
		}
	}
	wantError(t, g, ErrFull)
}

func TestHealthFlipKeepsTheTable(t *testing.T) {
	backends := hashed(t, 5)
	g := newTestGroup(t, GroupConfig{Balance: SourceHash}, backends...)
	table := g.view.Load().tiers[0].table
	backends[0].SetUp(false)
	backends[1].SetState(Drain)
	if g.view.Load().tiers[0].table != table {
		t.Error("the table was made anew when only health and state changed")
	}
	if err := backends[0].SetWeight(9); err != nil {
		t.Fatal(err)
	}
	if g.view.Load().tiers[0].table == table {
		t.Error("the table is the old one after a change of weight")
	}
}

func TestExponentialIsMinusLogarithm(t *testing.T) {
	ln := logarithms()
	check := func(u uint64) {
		u |= 1 << 19
		got, want := float64(exponential(u, ln))/(1<<expBits), -math.Log(float64(u)/(1<<64))
		if math.Abs(got-want) > 1.0/(1<<22) {
			t.Fatalf("exponential(%#x) = %v, want %v", u, got, want)
		}
	}
	check(0)
	check(math.MaxUint64)
	for range 100_000 {
		check(rand.Uint64() >> rand.IntN(44))
	}
}

func TestKeyIsForever(t *testing.T) {
	for text, want := range map[string]uint64{"192.0.2.1": 0x1ad9f79f750af5b2, "2001:db8::1": 0xc5753b065faead2c, "::": 0} {
		if got := Key(netip.MustParseAddr(text)); got != want {
			t.Errorf("Key(%s) = %#x, want %#x", text, got, want)
		}
	}
	for text, want := range map[string]uint64{"": 0xf52a15e9a9b5e89b, "/run/app.sock": 0x26ac064cf0ab79af} {
		if got := KeyString(text); got != want {
			t.Errorf("KeyString(%q) = %#x, want %#x", text, got, want)
		}
	}
}

func TestKeyOfMappedIPv4IsThatOfIPv4(t *testing.T) {
	if Key(netip.MustParseAddr("::ffff:192.0.2.1")) != Key(netip.MustParseAddr("192.0.2.1")) {
		t.Error("one client has two keys")
	}
	if Key(netip.MustParseAddr("fe80::1%eth0")) != Key(netip.MustParseAddr("fe80::1%eth1")) {
		t.Error("the name of an interface is part of the key")
	}
}
