package proxy_test

import (
	"fmt"
	"testing"

	"github.com/tproxy/tproxy/proxy"
)

func TestWordsOfEvents(t *testing.T) {
	for _, tt := range []struct {
		v    fmt.Stringer
		want string
	}{
		{proxy.Kind(0), ""}, {proxy.SessionAccepted, "accept"}, {proxy.AcceptResumed, "accept_resumed"}, {proxy.Kind(99), "kind(99)"},
		{proxy.PoolOff, "off"}, {proxy.PoolReused, "reused"}, {proxy.PoolResult(99), "pool(99)"},
		{proxy.NoReason, ""}, {proxy.ClientFIN, "client_fin"}, {proxy.Internal, "internal"}, {proxy.Reason(99), "reason(99)"},
	} {
		if got := tt.v.String(); got != tt.want {
			t.Errorf("%T: %q, want %q", tt.v, got, tt.want)
		}
	}
}
