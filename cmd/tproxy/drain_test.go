package main

import (
	"testing"
	"time"

	"github.com/tproxy/tproxy/proxy"
)

func TestOnlyIdleSessionsAreClosedBeforeTheDeadline(t *testing.T) {
	for _, tt := range []struct {
		what string
		s    proxy.SessionInfo
		want bool
	}{
		{"no byte for long", proxy.SessionInfo{Quiet: time.Minute}, true},
		{"no byte for a moment", proxy.SessionInfo{Quiet: idleAfter - 1}, false},
		{"connecting", proxy.SessionInfo{}, false},
		{"half-closed", proxy.SessionInfo{Quiet: time.Minute, HalfClosed: true}, false},
	} {
		if got := idle(tt.s); got != tt.want {
			t.Errorf("%s: %v", tt.what, got)
		}
	}
}
