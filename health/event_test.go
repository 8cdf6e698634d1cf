package health

import (
	"fmt"
	"testing"
)

func TestWordsOfEvents(t *testing.T) {
	for _, tt := range []struct {
		v    fmt.Stringer
		want string
	}{
		{Kind(0), ""}, {Probed, "probe"}, {WentDown, "down"}, {Kind(99), "kind(99)"},
		{NoResult, ""}, {Passed, "passed"}, {NotRun, "local"}, {Result(99), "result(99)"},
		{Cause(0), ""}, {ByProbe, "probe"}, {OnTrial, "trial"}, {Cause(99), "cause(99)"},
	} {
		if got := tt.v.String(); got != tt.want {
			t.Errorf("%T: %q, want %q", tt.v, got, tt.want)
		}
	}
}
