package main

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/internal/admin"
	"github.com/tproxy/tproxy/proxy"
)

// A load is what one backend of a group carries, and may carry.
type load struct {
	usable              bool
	tier, weight, limit int // limit 0: none
	active              int
}

// shares says how many of the sessions on usable backends each of them would have if all came anew; rounded up, so that what cannot be
// divided is nobody's surplus. Other backends keep what they have.
func shares(balance backend.Balance, loads []load) []int {
	share := make([]int, len(loads))
	tiers := make(map[int][]int) // indices into loads
	left := 0
	for i, l := range loads {
		if !l.usable {
			share[i] = l.active
			continue
		}
		tiers[l.tier] = append(tiers[l.tier], i)
		left += l.active
	}
	order := make([]int, 0, len(tiers))
	for t := range tiers {
		order = append(order, t)
	}
	slices.Sort(order)
	for _, t := range order {
		if balance == backend.First {
			for _, i := range tiers[t] {
				share[i] = left
				if n := loads[i].limit; n > 0 {
					share[i] = min(n, left)
				}
				left -= share[i]
			}
			continue
		}
		left = divide(loads, tiers[t], left, share)
	}
	return share
}

// divide gives the backends of one tier their part of n by weight, none more than its limit, and returns what is left.
func divide(loads []load, tier []int, n int, share []int) (left int) {
	for {
		weights := 0
		for _, i := range tier {
			weights += loads[i].weight
		}
		open := tier[:0:0] // those below their limit
		rest := n
		for _, i := range tier {
			share[i] = (n*loads[i].weight + weights - 1) / weights
			if l := loads[i].limit; l > 0 && share[i] > l {
				share[i] = l
				rest -= l
				continue
			}
			open = append(open, i)
		}
		switch len(open) {
		case len(tier):
			return 0
		case 0:
			return rest
		}
		tier, n = open, rest
	}
}

// Rebalance implements admin.Control. How many sessions a backend has too many is found out once, at the beginning: if closed clients do
// not come back, no more are closed for that.
func (i *instance) Rebalance(ctx context.Context, name string, rate int) (admin.Rebalance, error) {
	r := admin.Rebalance{Group: name}
	g := i.current.Load().groups[name]
	if g == nil {
		return r, admin.ErrNotFound
	}
	if g.backends.Balance() == backend.SourceHash {
		return r, errors.New("the group balances by source_hash: clients would come back to the same backend")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(i.life, cancel)()

	surplus := make(map[string]*overuse)
	members := g.backends.Backends()
	loads := make([]load, len(members))
	for n, b := range members {
		loads[n] = load{b.Usable(), b.Tier(), b.Weight(), b.MaxConnections(), b.Active()}
	}
	for n, share := range shares(g.backends.Balance(), loads) {
		if over := loads[n].active - share; over > 0 {
			surplus[members[n].Name()] = &overuse{members[n], share, over}
			r.Surplus += over
		}
	}
	ended := make(map[proxy.SessionID]bool, r.Surplus) // they may be listed a moment longer
	pace := time.NewTicker(max(time.Second/time.Duration(rate), 1))
	defer pace.Stop()
	for i.State() == admin.Ready {
		quietest := i.tooMany(name, surplus, ended)
		if len(quietest) == 0 {
			break
		}
		for _, s := range quietest[:min(rate, len(quietest))] {
			o := surplus[s.Backend]
			if !o.remains() || !i.end(s.ID, proxy.Rebalanced) {
				continue
			}
			ended[s.ID] = true
			o.left--
			r.Closed++
			select {
			case <-pace.C:
			case <-ctx.Done():
				return r, nil
			}
		}
	}
	return r, nil
}

// An overuse is what a backend has too many.
type overuse struct {
	backend *backend.Backend
	share   int
	left    int // to be closed
}

func (o *overuse) remains() bool { return o.left > 0 && o.backend.Active() > o.share }

// tooMany are the sessions of over-used backends, the quietest first, without those that were ended.
func (i *instance) tooMany(group string, surplus map[string]*overuse, ended map[proxy.SessionID]bool) []proxy.SessionInfo {
	var all []proxy.SessionInfo
	for s := range i.sessions() {
		if o := surplus[s.Backend]; s.Group == group && o != nil && s.On(o.backend) && o.remains() && !ended[s.ID] {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b proxy.SessionInfo) int { return cmp.Compare(b.Quiet, a.Quiet) })
	return all
}
