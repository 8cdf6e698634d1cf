package main

import (
	"slices"
	"testing"

	"github.com/tproxy/tproxy/backend"
)

func TestSharesOfSessions(t *testing.T) {
	for name, tt := range map[string]struct {
		balance backend.Balance
		loads   []load
		want    []int
	}{
		"equal weights":          {backend.LeastConn, []load{{true, 0, 1, 0, 10}, {true, 0, 1, 0, 0}}, []int{5, 5}},
		"rounded up":             {backend.LeastConn, []load{{true, 0, 1, 0, 3}, {true, 0, 1, 0, 2}}, []int{3, 3}},
		"weights":                {backend.RoundRobin, []load{{true, 0, 3, 0, 0}, {true, 0, 1, 0, 8}}, []int{6, 2}},
		"one cannot take all":    {backend.Random, []load{{true, 0, 1, 2, 2}, {true, 0, 1, 0, 8}}, []int{2, 8}},
		"limits on limits":       {backend.Random, []load{{true, 0, 1, 2, 0}, {true, 0, 1, 4, 0}, {true, 0, 1, 0, 12}}, []int{2, 4, 6}},
		"down keeps":             {backend.LeastConn, []load{{false, 0, 1, 0, 7}, {true, 0, 1, 0, 4}, {true, 0, 1, 0, 0}}, []int{7, 2, 2}},
		"nobody is usable":       {backend.LeastConn, []load{{false, 0, 1, 0, 7}, {false, 0, 0, 0, 1}}, []int{7, 1}},
		"no session":             {backend.LeastConn, []load{{true, 0, 1, 0, 0}, {true, 0, 2, 0, 0}}, []int{0, 0}},
		"back to the first tier": {backend.LeastConn, []load{{true, 0, 1, 0, 0}, {true, 1, 1, 0, 9}}, []int{9, 0}},
		"first tier full":        {backend.LeastConn, []load{{true, 0, 1, 4, 4}, {true, 1, 1, 0, 5}}, []int{4, 5}},
		"only a later tier":      {backend.LeastConn, []load{{false, 0, 1, 0, 0}, {true, 2, 1, 0, 3}, {true, 2, 1, 0, 1}}, []int{0, 2, 2}},
		"first takes all":        {backend.First, []load{{true, 0, 1, 0, 1}, {true, 0, 1, 0, 5}}, []int{6, 0}},
		"first up to its limit":  {backend.First, []load{{true, 0, 1, 2, 1}, {true, 0, 1, 3, 5}, {true, 0, 1, 0, 0}}, []int{2, 3, 1}},
		"first that is not down": {backend.First, []load{{false, 0, 1, 0, 1}, {true, 0, 1, 0, 0}, {true, 0, 1, 0, 2}}, []int{1, 2, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := shares(tt.balance, tt.loads); !slices.Equal(got, tt.want) {
				t.Errorf("shares %v, want %v", got, tt.want)
			}
		})
	}
}
