package proxy

import (
	"fmt"
	"net/netip"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/internal/clienthello"
	"github.com/tproxy/tproxy/internal/reactor"
)

// An Explanation says what a client would get, and why.
type Explanation struct {
	// Rule is the rule of Access that decides, such as "deny 10.0.0.0/8".
	Rule string
	// Route is the number, from 0, of the route that matches; -1: none does, or it does not come to that.
	Route int
	// Group is the group that would serve; empty for none.
	Group string
	// Backend is the backend that would be chosen at this moment; empty for none. Balancers that take turns count the question as one.
	Backend string
	// Reason is why the client would be refused; NoReason if it would be served. Err says more.
	Reason Reason
	Err    error
}

// Explain says what a client at from would get that asks for a server name (empty: none) and offers protocols. Limits on the
// number and rate of sessions are left out: they depend on who else comes.
func (s *Server) Explain(from netip.Addr, serverName string, protocols []string) (Explanation, error) {
	e := Explanation{Route: -1}
	if err := s.init(); err != nil {
		return e, err
	}
	x := &session{acceptor: &acceptor{server: s}, route: s.current.Load().begin, remote: compact(reactor.TCP(netip.AddrPortFrom(from, 0)))}
	t := x.route.settings
	if e.Rule, e.Reason, e.Err = t.gate.rule(from); e.Reason != NoReason {
		return e, nil
	}
	h := clienthello.Hello{ServerName: serverName, ALPN: protocols}
	to := t.byDefault
	if e.Route = t.routes.find(x.client(), h); e.Route >= 0 {
		to = t.routes.to[e.Route]
	}
	switch {
	case to == nil:
		e.Reason, e.Err = Denied, errRejected
		return e, nil
	case to.group == nil:
		e.Reason, e.Err = Denied, errNoRoute
		return e, nil
	}
	e.Group = to.group.Backends.Name()
	lease, err := to.group.Backends.Lease(backend.Key(from), nil)
	if err != nil {
		e.Reason, e.Err = x.failure(err), err
		return e, nil
	}
	e.Backend = lease.Backend().Name()
	lease.Release()
	return e, nil
}

// rule is the one that decides about an address.
func (g *gate) rule(a netip.Addr) (string, Reason, error) {
	if p, ok := g.deny.Find(a); ok {
		return fmt.Sprintf("deny %s", p), Denied, errDenied
	}
	if g.allow.Empty() {
		return "no rule denies it", NoReason, nil
	}
	if p, ok := g.allow.Find(a); ok {
		return fmt.Sprintf("allow %s", p), NoReason, nil
	}
	return "no allow rule matches", Denied, errNotAllowed
}
