package reactor

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const horizon = (wheelSlots - 1) * tick

func TestWheel(t *testing.T) {
	for name, test := range map[string]struct {
		now  int64   // of the wheel, milliseconds
		at   []int64 // timers
		next int64   // when the loop must wake
		look int64   // when it does
		due  int     // how many are due then
	}{
		"a tick ahead":              {now: 1000, at: []int64{1050}, next: 1050, look: 1050, due: 1},
		"is rounded up":             {now: 1000, at: []int64{1051}, next: 1100, look: 1099, due: 0},
		"the past is the next tick": {now: 1000, at: []int64{3}, next: 1050, look: 1050, due: 1},
		"now is the next tick":      {now: 1000, at: []int64{1000}, next: 1050, look: 1049, due: 0},
		"one slot holds several":    {now: 1000, at: []int64{1060, 1061, 1099, 1100}, next: 1100, look: 1100, due: 4},
		"the first one counts":      {now: 1000, at: []int64{9000, 1300, 5000}, next: 1300, look: 5000, due: 2},
		"around the end":            {now: 511 * tick, at: []int64{512 * tick, 513 * tick}, next: 512 * tick, look: 512 * tick, due: 1},
		"the horizon":               {now: 1000, at: []int64{1000 + horizon}, next: 1000 + horizon, look: 1000 + horizon - 1, due: 0},
		"beyond the horizon":        {now: 1000, at: []int64{1 << 40}, next: 1000 + horizon, look: 1000 + horizon, due: 1},
		"after a long sleep":        {now: 1000, at: []int64{1100, 2000, 20_000}, next: 1100, look: 1 << 40, due: 3},
	} {
		t.Run(name, func(t *testing.T) {
			w := wheel{now: test.now / tick}
			relays := make([]relay, len(test.at))
			for i := range relays {
				relays[i].slot = -1
				w.add(&relays[i], test.at[i])
			}
			if next, ok := w.next(); !ok || next != test.next {
				t.Errorf("next is %d (%v), want %d", next, ok, test.next)
			}
			if due := w.due(test.look, nil); len(due) != test.due {
				t.Errorf("%d are due at %d, want %d", len(due), test.look, test.due)
			}
			for i := range relays {
				w.remove(&relays[i]) // harmless for those that are out
			}
			if _, ok := w.next(); ok || w.count != 0 {
				t.Errorf("%d are left", w.count)
			}
		})
	}
}

// TestWheelAgainstAModel compares the wheel with a list, under any order of adding, moving, removing and sleeping.
func TestWheelAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := rapid.Int64Range(0, 1<<40).Draw(t, "start")
		w := wheel{now: now / tick}
		pool := make([]relay, 40)
		for i := range pool {
			pool[i].slot = -1
		}
		model := map[*relay]int64{} // when each is due: at, or the horizon
		of := rapid.IntRange(0, len(pool)-1)
		t.Repeat(map[string]func(*rapid.T){
			"schedule": func(t *rapid.T) {
				r := &pool[of.Draw(t, "which")]
				at := now + rapid.OneOf(rapid.Int64Range(-100, 500), rapid.Int64Range(0, 2*horizon)).Draw(t, "in")
				w.remove(r)
				w.add(r, at)
				model[r] = min(max(at, now), w.now*tick+horizon)
			},
			"remove": func(t *rapid.T) {
				r := &pool[of.Draw(t, "which")]
				w.remove(r)
				delete(model, r)
			},
			"look": func(t *rapid.T) {
				now += rapid.OneOf(rapid.Int64Range(0, 3*tick), rapid.Int64Range(0, 3*horizon)).Draw(t, "later")
				due := w.due(now, nil)
				for i, r := range due {
					at, ok := model[r]
					switch {
					case !ok || slices.Contains(due[:i], r):
						t.Fatal("a timer that was not set")
					case at > now:
						t.Fatalf("%d ms too early", at-now)
					case r.slot != -1:
						t.Fatal("it is still in the wheel")
					}
					delete(model, r)
				}
				for _, at := range model {
					if at <= now-tick {
						t.Fatalf("%d ms too late", now-at)
					}
				}
			},
			"": func(t *rapid.T) {
				first := int64(1 << 60)
				for _, at := range model {
					first = min(first, at)
				}
				next, ok := w.next()
				if ok != (len(model) > 0) || w.count != len(model) {
					t.Fatalf("%d in the wheel, next %v; want %d", w.count, ok, len(model))
				}
				if want := max((first+tick-1)/tick, w.now+1) * tick; ok && next != want {
					t.Fatalf("the loop wakes at %d, want %d", next, want)
				}
			},
		})
	})
}

// TestSessionsThatAreDueTogetherAllEnd has more of them than are looked at before events get their turn, and no event that would wake the loop.
func TestSessionsThatAreDueTogetherAllEnd(t *testing.T) {
	r := newRig(t, 1)
	sessions := make([]*session, 4*timerBatch+1)
	for i := range sessions {
		sessions[i] = r.connect()
		sessions[i].options.Idle = 100 * time.Millisecond
	}
	for _, s := range sessions {
		s.link.Start()
	}
	for i, s := range sessions {
		if result := receive(t, s.ended, "the end of a session"); result.Cause != IdleTimeout {
			t.Errorf("session %d ended with %v", i, result.Cause)
		}
		s.client.Close()
		s.server.Close()
	}
}
