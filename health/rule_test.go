package health

import (
	"strings"
	"testing"
	"time"
)

// A history is written as one letter a step: p and f are probes that passed and failed, d and c are dials of sessions that
// failed and connected, r is a retry, a dot is 100 ms; a result in upper case comes while the backend is alone.
// want has one letter a step: U up, D down.
func TestRule(t *testing.T) {
	probed := Rule{Rise: 2, Fall: 3, Failures: 2, HoldBase: 300 * time.Millisecond, HoldMax: time.Second}
	trial := Rule{Failures: 2, HoldBase: 300 * time.Millisecond, HoldMax: time.Second, Trial: true}
	none := Rule{Rise: 1, Fall: 1}
	tests := []struct {
		name    string
		rule    Rule
		down    bool
		history string
		want    string
	}{
		{"falls at the third failure in a row", probed, false, "fff", "UUD"},
		{"a pass starts the count anew", probed, false, "ffpffpff", "UUUUUUUU"},
		{"rises at the second pass in a row", probed, true, "ppp", "DUU"},
		{"a failure starts the count anew", probed, true, "pfpfpp", "DDDDDU"},
		{"the counts start anew after a change", probed, false, "fffpfpp", "UUDDDDU"},
		{"zero thresholds mean one", Rule{}, false, "fpfp", "DUDU"},
		{"two failed dials in a row take it down", probed, false, "dd", "UD"},
		{"a dial that connects forgives", probed, false, "dcdcd", "UUUUU"},
		{"probes do not forgive failed dials", probed, false, "dpppd", "UUUUD"},
		{"failed dials do not count as probes", probed, false, "ffdf", "UUUD"},
		{"a dial never brings it up", probed, true, "cccc", "DDDD"},
		{"after failed dials probes bring it up", probed, false, "ddpp", "UDDU"},
		{"coming up forgives failed dials", probed, false, "dfffppd", "UUUDDUU"},
		{"dials never count at zero", Rule{Rise: 1, Fall: 1}, false, "dddddddd", "UUUUUUUU"},

		{"the first fall is not flapping", probed, false, "fffpp", "UUDDU"},
		{"the second soon after is held down", probed, false, "fffppfff.pp.pp.p", "UUDDUUUDDDDDDDDU"},
		{"and the third twice as long", probed, false, "fffppfff...ppddpp.....p.p", "UUDDUUUDDDDDUUDDDDDDDDDDU"},
		{"a failure during hold-down counts", probed, false, "fffppfffppf...pp", "UUDDUUUDDDDDDDDU"},
		{"alone it is not held down", probed, false, "fffppfffPP", "UUDDUUUDDU"},
		{"flapping is forgotten after max", probed, false, "fffpp..........fffpp", "UUDDUUUUUUUUUUUUUDDU"},
		{"no hold-down with base zero", none, false, "fpfpfpfp", "DUDUDUDU"},

		{"not probed: no retry before base", trial, false, "ddr.r.r.r", "UDDDDDDDU"},
		{"on trial one failed dial is enough", trial, false, "dd...rd", "UDDDDUD"},
		{"a dial that connects ends the trial", trial, false, "dd...rcdd", "UDDDDUUUD"},
		{"held longer when it fails again", trial, false, "dd...rd.....r.r", "UDDDDUDDDDDDDDU"},
		{"alone it is tried after base", trial, false, "dd...rd..R.R", "UDDDDUDDDDDU"},
		{"retry is for backends that nothing probes", probed, false, "dd....r", "UDDDDDD"},
		{"retry leaves a backend that is up", trial, false, "rrd", "UUU"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Unix(1e9, 0)
			s := State{Up: !tt.down}
			var got strings.Builder
			for _, step := range tt.history {
				alone := step >= 'A' && step <= 'Z'
				switch step {
				case 'p', 'P', 'f', 'F':
					s = tt.rule.Probe(s, step == 'p' || step == 'P', alone, now)
				case 'd', 'c':
					s = tt.rule.Dial(s, step == 'c', now)
				case 'r', 'R':
					s = tt.rule.Retry(s, alone, now)
				case '.':
					now = now.Add(100 * time.Millisecond)
				default:
					t.Fatalf("step %q", step)
				}
				got.WriteByte(map[bool]byte{true: 'U', false: 'D'}[s.Up])
			}
			if got.String() != tt.want {
				t.Errorf("history %s\n   got %s\n  want %s", tt.history, got.String(), tt.want)
			}
		})
	}
}

func TestHoldDownGrowsToMax(t *testing.T) {
	r := Rule{Rise: 1, Fall: 1, HoldBase: time.Second, HoldMax: 5 * time.Second}
	now := time.Unix(1e9, 0)
	s := State{Up: true}
	for i, want := range []time.Duration{0, 1, 2, 4, 5, 5} {
		s = r.Probe(s, false, false, now)
		if s.Hold != want*time.Second {
			t.Errorf("fall %d: held down %v, want %v", i+1, s.Hold, want*time.Second)
		}
		now = now.Add(s.Hold)
		s = r.Probe(s, true, false, now)
		if !s.Up {
			t.Fatalf("fall %d: not up when hold-down was over", i+1)
		}
	}
}

func TestChanging(t *testing.T) {
	r := Rule{Rise: 2, Fall: 2}
	now := time.Unix(1e9, 0)
	s := State{Up: true}
	for i, step := range []struct{ passed, want bool }{
		{true, false}, {false, true}, {false, false}, {false, false}, {true, true}, {true, false},
	} {
		if s = r.Probe(s, step.passed, false, now); s.Changing() != step.want {
			t.Errorf("step %d: Changing = %v in %+v", i, s.Changing(), s)
		}
	}
}
