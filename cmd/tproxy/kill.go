package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func killCommand() *cobra.Command {
	var at target
	c := &cobra.Command{
		Use:   "kill SESSION…",
		Short: "Reset sessions",
		Long: `Kill resets sessions, on both sides, with reason killed. tproxy sessions shows their names. The status is 1 if one of them is not open;
the others are reset nevertheless.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := at.client()
			if err != nil {
				return err
			}
			var errs []error
			for _, session := range args {
				_, err := cl.do(c.Context(), "DELETE", segments("sessions", session), nil, nil)
				if err == nil {
					fmt.Fprintf(c.OutOrStdout(), "killed %s\n", session)
					continue
				}
				errs = append(errs, err)
				if _, answered := errors.AsType[*refusal](err); !answered {
					break
				}
			}
			return errors.Join(errs...)
		},
	}
	at.flags(c)
	return c
}
