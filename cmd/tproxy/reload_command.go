package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tproxy/tproxy/internal/admin"
)

func reloadCommand() *cobra.Command {
	var at target
	var dry bool
	c := &cobra.Command{
		Use:   "reload",
		Short: "Make a running tproxy read its configuration again",
		Long: `Reload does what the signal HUP does, in place and all or nothing, and prints what was kept, added, changed and removed. With a mistake in
the configuration nothing changes; the mistakes are printed and the status is 1.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := at.client()
			if err != nil {
				return err
			}
			path := "reload"
			if dry {
				path += "?dry_run=true"
			}
			var r admin.Report
			_, err = cl.patient().do(c.Context(), "POST", path, nil, &r)
			if refused, ok := errors.AsType[*refusal](err); ok {
				fmt.Fprintln(c.ErrOrStderr(), refused.text) // the mistakes, one a line
				return status(exitFailed)
			}
			if err != nil {
				return err
			}
			w := c.OutOrStdout()
			for _, part := range []struct {
				what  string
				names []string
			}{{"kept", r.Kept}, {"added", r.Added}, {"changed", r.Changed}, {"removed", r.Removed}} {
				for _, name := range part.names {
					fmt.Fprintf(w, "%-8s %s\n", part.what, printable(name))
				}
			}
			if r.OnOldSettings > 0 {
				fmt.Fprintf(w, "%d sessions on old settings\n", r.OnOldSettings)
			}
			if r.DryRun {
				fmt.Fprintln(w, "nothing was changed")
			}
			return nil
		},
	}
	at.flags(c)
	c.Flags().BoolVar(&dry, "dry-run", false, "only print what would be done")
	return c
}

func upgradeCommand() *cobra.Command {
	var at target
	c := &cobra.Command{
		Use:   "upgrade",
		Short: "Make a running tproxy start its new binary",
		Long: `Upgrade does what the signal USR2 does: the new binary is started with the listening sockets; when it is ready the old process drains. If it
never is, nothing changed and the status is 1.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := at.client()
			if err != nil {
				return err
			}
			if _, err := cl.patient().do(c.Context(), "POST", "upgrade", nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), "upgraded: the new process serves, the old one drains")
			return nil
		},
	}
	at.flags(c)
	return c
}
