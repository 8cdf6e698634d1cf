package proxy_test

import (
	"net/netip"
	"testing"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/proxy"
)

func TestExplainIsWhatASessionWouldGet(t *testing.T) {
	group := func(name string, up bool) *proxy.Group {
		b, err := backend.New(backend.Config{Name: name + "-1", Address: "127.0.0.1:1", Weight: 1})
		if err != nil {
			t.Fatal(err)
		}
		g, err := backend.NewGroup(backend.GroupConfig{Name: name, Backends: []*backend.Backend{b}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(g.Close)
		b.SetUp(up)
		return &proxy.Group{Backends: g}
	}
	s := &proxy.Server{Name: "web", Settings: proxy.Settings{
		Group:  group("rest", true),
		Access: proxy.Access{Deny: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}},
		Routes: []proxy.Route{
			{SNI: []string{"*.example.com"}, ALPN: []string{"h2"}, Group: group("h2", true)},
			{SNI: []string{"down.example.com"}, Group: group("down", false)},
			{Source: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")}, Reject: true},
		},
	}}
	t.Cleanup(func() { s.Close() })
	for name, test := range map[string]struct {
		from, sni string
		alpn      []string
		want      proxy.Explanation
	}{
		"denied":        {from: "10.1.2.3", want: proxy.Explanation{Rule: "deny 10.0.0.0/8", Route: -1, Reason: proxy.Denied}},
		"denied mapped": {from: "::ffff:10.1.2.3", want: proxy.Explanation{Rule: "deny 10.0.0.0/8", Route: -1, Reason: proxy.Denied}},
		"no route":      {from: "1.2.3.4", want: proxy.Explanation{Rule: "no rule denies it", Route: -1, Group: "rest", Backend: "rest-1"}},
		"name and protocol": {from: "1.2.3.4", sni: "A.example.com.", alpn: []string{"h2", "http/1.1"},
			want: proxy.Explanation{Rule: "no rule denies it", Route: 0, Group: "h2", Backend: "h2-1"}},
		"name alone":   {from: "1.2.3.4", sni: "a.example.com", want: proxy.Explanation{Rule: "no rule denies it", Route: -1, Group: "rest", Backend: "rest-1"}},
		"backend down": {from: "1.2.3.4", sni: "down.example.com", want: proxy.Explanation{Rule: "no rule denies it", Route: 1, Group: "down", Reason: proxy.NoBackend}},
		"rejected":     {from: "192.168.1.1", want: proxy.Explanation{Rule: "no rule denies it", Route: 2, Reason: proxy.Denied}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := s.Explain(netip.MustParseAddr(test.from), test.sni, test.alpn)
			if err != nil {
				t.Fatal(err)
			}
			if (got.Err != nil) != (got.Reason != proxy.NoReason) {
				t.Errorf("reason %q with error %v", got.Reason, got.Err)
			}
			if got.Err = nil; got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}
