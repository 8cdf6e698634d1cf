package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tproxy/tproxy/internal/admin"
)

func rebalanceCommand() *cobra.Command {
	var at target
	var rate int
	c := &cobra.Command{
		Use:   "rebalance GROUP",
		Short: "Close the sessions that over-used backends have too many",
		Long: `Rebalance moves sessions of a group to where they would be if they came anew: it resets those that a backend has above its share, the
quietest first, --rate a second, with reason rebalanced. Their clients connect again and get another backend. A share follows from weights, tiers and
max_connections; only backends that are up and ready count. It returns when it is done; interrupting it stops it.

Groups that balance by source_hash are refused, for a client would come back to the same backend.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := at.client()
			if err != nil {
				return err
			}
			var r admin.Rebalance
			path := fmt.Sprintf("%s?rate=%d", segments("groups", args[0], "rebalance"), rate)
			if _, err := cl.patient().do(c.Context(), "POST", path, nil, &r); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: closed %d of %d surplus sessions\n", printable(args[0]), r.Closed, r.Surplus)
			return nil
		},
	}
	at.flags(c)
	c.Flags().IntVar(&rate, "rate", admin.DefaultRebalanceRate, "close `N` sessions a second")
	return c
}
