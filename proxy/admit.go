package proxy

import (
	"errors"
	"net/netip"
	"time"

	"github.com/tproxy/tproxy/internal/access"
)

// Access says who may come in. A client that may not is reset: it costs no backend anything, and nothing of it is read.
type Access struct {
	// Allow are the prefixes that may; empty: all. Deny beats Allow. An IPv4-mapped address counts as IPv4. A client of a unix
	// socket is in no prefix.
	Allow, Deny []netip.Prefix
	// MaxPerSource bounds the open sessions of one source; 0 is no limit.
	MaxPerSource int
	// RatePerSource bounds the new sessions a second of one source; 0 is no limit. As many may come at once after a pause.
	RatePerSource int
	// Rate bounds the new sessions a second of all; 0 is no limit. Over it accepting pauses and nobody is refused. A tenth of that
	// number may come at once.
	Rate int
	// SourceIPv4 and SourceIPv6 are how many leading bits of an address make one source; 0 means 32 and 64.
	SourceIPv4, SourceIPv6 int
}

// errors of admission.
var (
	errDenied        = errors.New("the address is denied")
	errNotAllowed    = errors.New("the address is not among those allowed")
	errSourceFull    = errors.New("the source has as many sessions as it may")
	errSourceTooFast = errors.New("the source comes more often than it may")
)

// A gate is Access at work. What it counts goes on when settings change that do not concern it.
type gate struct {
	Access
	allow, deny access.Prefixes
	grouping    access.Grouping
	sources     *access.Sources
	rates       *access.Rates // nil: no limit
	rate        *access.Rate  // likewise
}

func newGate(a Access, before *gate) *gate {
	g := &gate{Access: a, allow: access.NewPrefixes(a.Allow), deny: access.NewPrefixes(a.Deny),
		grouping: access.Grouping{IPv4: a.SourceIPv4, IPv6: a.SourceIPv6}}
	if a.SourceIPv4 == 0 {
		g.grouping.IPv4 = 32
	}
	if a.SourceIPv6 == 0 {
		g.grouping.IPv6 = 64
	}
	same := before != nil && before.grouping == g.grouping
	if g.sources = access.NewSources(); same {
		g.sources = before.sources
	}
	if a.RatePerSource > 0 {
		if g.rates = access.NewRates(a.RatePerSource, a.RatePerSource); same && before.RatePerSource == a.RatePerSource {
			g.rates = before.rates
		}
	}
	if a.Rate > 0 {
		if g.rate = access.NewRate(a.Rate, max(1, a.Rate/10)); before != nil && before.Rate == a.Rate {
			g.rate = before.rate
		}
	}
	return g
}

// admit decides about the client that the session is for, and takes its place among the sessions of its source.
func (x *session) admit() (Reason, error) {
	g := x.route.gate
	ip := x.client().IP.Addr()
	switch {
	case g.deny.Contains(ip):
		return Denied, errDenied
	case !g.allow.Empty() && !g.allow.Contains(ip):
		return Denied, errNotAllowed
	case g.rates != nil && !g.rates.Allow(g.grouping.Source(ip), clock()):
		return OverLimit, errSourceTooFast
	case g.MaxPerSource > 0:
		if !g.sources.Take(g.grouping.Source(ip), g.MaxPerSource) {
			return OverLimit, errSourceFull
		}
		x.sourced = true
	}
	return NoReason, nil
}

// leave gives back what admit took.
func (x *session) leave() {
	if x.sourced {
		g := x.route.gate
		g.sources.Give(g.grouping.Source(x.client().IP.Addr()))
	}
}

// pace takes a token for one more session, and if there is none makes the listener look again when there is.
func (a *acceptor) pace(g *gate) bool {
	if g.rate == nil || g.rate.Take(clock()) {
		return true
	}
	if a.pacing.CompareAndSwap(false, true) {
		a.paces.Add(1)
		a.pacer = time.AfterFunc(g.rate.Wait(clock()), func() {
			defer a.paces.Done()
			a.pacing.Store(false)
			a.server.resume()
		})
	}
	return false
}

// endPace is called when Reserve is called no more.
func (a *acceptor) endPace() {
	if a.pacer != nil && a.pacer.Stop() {
		a.paces.Done()
	}
	a.paces.Wait()
}
