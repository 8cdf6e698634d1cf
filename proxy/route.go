package proxy

import (
	"net/netip"
	"slices"

	"github.com/tproxy/tproxy/internal/access"
	"github.com/tproxy/tproxy/internal/clienthello"
	"github.com/tproxy/tproxy/internal/reactor"
)

// A Route sends some of a server's sessions to another group. Every list that is given must match; one that is empty matches
// every session.
type Route struct {
	// SNI are server names of the TLS ClientHello: exact, or *.example.com for every name below. Case and a dot at the end do not
	// matter.
	SNI []string
	// ALPN are protocols, one of which the client must offer; where the server has TLS of its own, one that was settled.
	ALPN []string
	// Source are prefixes, one of which the client must be in.
	Source []netip.Prefix
	// Group serves the sessions. Required unless Reject is set.
	Group *Group
	// Reject ends them.
	Reject bool
}

// asksHello reports whether the ClientHello is needed to know whether the route matches.
func (r *Route) asksHello() bool { return len(r.SNI) > 0 || len(r.ALPN) > 0 }

// A route is settings as they apply to sessions of one group. Before a session has a group, group is nil.
type route struct {
	*settings
	group   *Group
	connect Connect
	relay   reactor.RelayOptions
}

func (t *settings) to(g *Group) *route {
	r := &route{settings: t, group: g}
	if g == nil {
		return r
	}
	r.connect = g.Connect.withDefaults()
	r.relay = reactor.RelayOptions{Idle: t.Timeouts.Idle, HalfClose: t.Timeouts.HalfClose, Session: t.Timeouts.Session, CloseOnFIN: t.CloseOnFIN,
		KeepBackend: g.Spares.reuses(), Backend: t.socket}
	return r
}

// routes are those of a server, ready to be searched.
type routes struct {
	list  []Route
	from  []access.Prefixes // Route.Source, of the same index
	names *clienthello.Table
	to    []*route // of the same index; nil for Reject
	hello bool     // one asks for the ClientHello
}

func (t *settings) compile(list []Route) *routes {
	r := &routes{list: list}
	names := make([][]string, len(list))
	for i := range list {
		names[i] = list[i].SNI
		r.from = append(r.from, access.NewPrefixes(list[i].Source))
		r.hello = r.hello || list[i].asksHello()
		var to *route
		if !list[i].Reject {
			to = t.to(list[i].Group)
		}
		r.to = append(r.to, to)
	}
	r.names = clienthello.NewTable(names)
	return r
}

// find returns the first route that matches; -1: none does.
func (r *routes) find(client Addr, h clienthello.Hello) int {
	return r.names.First(h.ServerName, func(i int) bool {
		offered := func(p string) bool { return slices.Contains(h.ALPN, p) }
		return (len(r.list[i].ALPN) == 0 || slices.ContainsFunc(r.list[i].ALPN, offered)) &&
			(r.from[i].Empty() || r.from[i].Contains(client.IP.Addr()))
	})
}
