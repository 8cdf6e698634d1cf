package main

import (
	"math/rand/v2"
	"slices"
	"testing"
)

var changes = []struct {
	name string
	change
}{
	{"one lost", change{lost: 1}},
	{"one added", change{added: 1}},
	{"ten lost", change{lost: 10}},
	{"ten added", change{added: 10}},
	{"five replaced", change{lost: 5, added: 5}},
}

// after compares the table of n members with that after a change.
func after(t *testing.T, s scheme, before table, n int, c change) (share, needless float64) {
	t.Helper()
	members, gone := c.apply(n, rand.New(rand.NewPCG(1, 2)))
	if len(members) != n-c.lost+c.added {
		t.Fatalf("%d members are left of %d", len(members), n)
	}
	young, _ := s(members)
	return moved(before, young, func(m int32) bool { return gone[m] }, func(m int32) bool { return int(m) >= n })
}

func TestSourceHashMovesNothingInVain(t *testing.T) {
	before, _ := sourceHash(upTo(100))
	for _, c := range changes {
		share, needless := after(t, sourceHash, before, 100, c.change)
		if needless != 0 {
			t.Errorf("%s of 100: %.4f of the keys moved in vain", c.name, needless)
		}
		if least := float64(max(c.lost, c.added)) / 110; share < least/2 {
			t.Errorf("%s of 100: only %.4f of the keys moved", c.name, share)
		}
	}
}

func TestMaglevMovesLittleInVain(t *testing.T) {
	before, _ := maglev(upTo(100))
	for _, c := range changes {
		share, needless := after(t, maglev, before, 100, c.change)
		if needless == 0 || needless > .03 {
			t.Errorf("%s of 100: %.4f of the keys moved in vain, want some, but less than 3 %%", c.name, needless)
		}
		if most := float64(c.lost+c.added)/100 + .03; share > most {
			t.Errorf("%s of 100: %.4f of the keys moved, want at most %.4f", c.name, share, most)
		}
	}
}

func TestModuloMovesNearlyAll(t *testing.T) {
	before, _ := modulo(upTo(100))
	for _, c := range changes[:2] {
		if share, _ := after(t, modulo, before, 100, c.change); share < .98 {
			t.Errorf("%s of 100: %.4f of the keys moved, want nearly all", c.name, share)
		}
	}
}

// In each turn every member takes one slot.
func TestMaglevGivesAllMembersAsManySlotsButForOne(t *testing.T) {
	for _, n := range []int{1, 7, 100, 600} {
		slots, _ := maglev(upTo(n))
		count := slots.counts(nil)
		if len(count) != n {
			t.Fatalf("%d of %d members have slots", len(count), n)
		}
		least, most := len(slots), 0
		for _, c := range count {
			least, most = min(least, c), max(most, c)
		}
		if most-least > 1 {
			t.Errorf("%d members have from %d to %d slots", n, least, most)
		}
	}
}

func TestReplicasHaveOneTableWhateverTheirOrder(t *testing.T) {
	members := upTo(100)
	want, _ := sourceHash(members)
	for replica := range 2 {
		rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
		if got, _ := sourceHash(members); !slices.Equal(got, want) {
			t.Errorf("replica %d has another table", replica)
		}
	}
}

func TestSourceHashIsReadWholeAndEvenly(t *testing.T) {
	slots, _ := sourceHash(upTo(100))
	if count := slots.counts(nil); len(count) != 100 {
		t.Errorf("%d of 100 members have slots", len(count))
	}
	// 655 slots each of a table with 2^16: 3.9 % standard deviation.
	if s := slots.spread(100); s > 1.2 {
		t.Errorf("the most is %.2f of the mean, want 1.1", s)
	}
	for i := uint64(0); i < 1000; i++ {
		if got, want := unmix(hash(i, 7)), 7+(i+1)*0x9E3779B97F4A7C15; got != want {
			t.Fatalf("unmix of number %d is %#x, want %#x", i, got, want)
		}
	}
}

func TestResilientMovesOnlyTheFlowsOfTheLostMember(t *testing.T) {
	before := newResilient(upTo(25))
	others := slices.DeleteFunc(upTo(25), func(m int) bool { return m == 3 })
	after := before.without(3, others)
	for i, m := range before {
		if (after[i] != m) != (m == 3) || after[i] == 3 {
			t.Fatalf("bucket %d went from %d to %d when 3 was lost", i, m, after[i])
		}
	}
	if s := after.spread(24); s > 1.05 {
		t.Errorf("the most is %.2f of the mean", s)
	}
}

func TestResilientMovesFlowsOnlyToAnAddedMember(t *testing.T) {
	before := newResilient(upTo(25))
	after := before.with(25, upTo(25))
	for i, m := range after {
		if m != before[i] && m != 25 {
			t.Fatalf("bucket %d went from %d to %d when 25 was added", i, before[i], m)
		}
	}
	if share := differing(before, after); share < .8/26 || share > 1.0/26 {
		t.Errorf("%.4f of the buckets moved, want %.4f", share, 1.0/26)
	}
}
