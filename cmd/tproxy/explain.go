package main

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tproxy/tproxy/internal/admin"
	"github.com/tproxy/tproxy/internal/config"
)

func explainCommand() *cobra.Command {
	var at target
	var from, sni string
	var alpn []string
	c := &cobra.Command{
		Use:   "explain LISTENER --from IP [--sni NAME] [--alpn PROTOCOL]",
		Short: "Say which rule, route, group and backend a client would get, and why",
		Long: `Explain asks a running tproxy what it would do with a client: which rule of allow and deny decides, which route matches, and which
group and backend would serve. Limits on the number and rate of sessions are left out. A balancer that takes turns counts the question as one. The
status is 1 if the client would be refused.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := at.client()
			if err != nil {
				return err
			}
			q := url.Values{"listener": {args[0]}, "from": {from}, "alpn": alpn}
			if sni != "" {
				q.Set("sni", sni)
			}
			var e admin.Explanation
			if _, err := cl.do(c.Context(), "GET", "explain?"+q.Encode(), nil, &e); err != nil {
				return err
			}
			w := c.OutOrStdout()
			say := func(what, value string) {
				if value != "" {
					fmt.Fprintf(w, "%-8s %s\n", what, value)
				}
			}
			say("rule", e.Rule)
			say("route", e.Route)
			say("group", e.Group)
			say("backend", e.Backend)
			if e.Reason != "" {
				return fmt.Errorf("refused, %s: %s", e.Reason, e.Error)
			}
			return nil
		},
	}
	at.flags(c)
	c.Flags().StringVar(&from, "from", "", "`IP` address of the client")
	c.Flags().StringVar(&sni, "sni", "", "server `NAME` that the client asks for")
	c.Flags().StringSliceVar(&alpn, "alpn", nil, "`PROTOCOL`s that the client offers")
	c.MarkFlagRequired("from")
	return c
}

// explain implements admin.Server.Explain.
func (i *instance) explain(listener string, from netip.Addr, sni string, alpn []string) (admin.Explanation, error) {
	r := i.current.Load()
	s := r.listeners[listener]
	if s == nil {
		return admin.Explanation{}, admin.ErrNotFound
	}
	x, err := s.Explain(from, sni, alpn)
	if err != nil {
		return admin.Explanation{}, err
	}
	e := admin.Explanation{Listener: listener, From: from.String(), SNI: sni, Rule: x.Rule, Group: x.Group, Backend: x.Backend, Reason: x.Reason.String()}
	if x.Err != nil {
		e.Error = x.Err.Error()
	}
	switch routes := r.config.Listeners[listener].Routes; {
	case x.Route >= 0 && x.Route < len(routes):
		e.Route = fmt.Sprintf("routes[%d]: %s", x.Route, routeText(routes[x.Route]))
	case x.Group != "" && len(routes) > 0:
		e.Route = "none matches: the listener's group"
	}
	return e, nil
}

// routeText is a route in words.
func routeText(r config.Route) string {
	var parts []string
	list := func(what string, values []string) {
		if len(values) > 0 {
			parts = append(parts, what+" "+strings.Join(values, ", "))
		}
	}
	list("sni", r.SNI)
	list("alpn", r.ALPN)
	var source []string
	for _, p := range r.Source {
		source = append(source, p.String())
	}
	list("source", source)
	if r.Reject {
		return strings.Join(parts, "; ") + " → reject"
	}
	return strings.Join(parts, "; ") + " → " + r.Group
}
