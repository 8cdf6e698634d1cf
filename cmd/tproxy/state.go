package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tproxy/tproxy/internal/admin"
)

// stateCommand is drain, maint or ready.
func stateCommand(state string) *cobra.Command {
	var at target
	var timeout time.Duration
	about := map[string]string{
		"drain": "Give a backend no new sessions; those it has go on",
		"maint": "As drain, and do not probe the backend",
		"ready": "Give a backend sessions again",
	}
	c := &cobra.Command{
		Use:   state + " GROUP/BACKEND",
		Short: about[state],
		Long: about[state] + `.

The backend is named as in the output of tproxy status. The state stays until it is changed again or the process ends; a reload keeps it.`,
		Args: func(c *cobra.Command, args []string) error {
			if err := cobra.ExactArgs(1)(c, args); err != nil {
				return err
			}
			_, _, err := groupAndBackend(args[0])
			return err
		},
		RunE: func(c *cobra.Command, args []string) error {
			group, name, err := groupAndBackend(args[0])
			if err != nil {
				return err
			}
			cl, err := at.client()
			if err != nil {
				return err
			}
			path := segments("groups", group, "backends", name)
			var b admin.Backend
			if _, err := cl.do(c.Context(), "PATCH", path, map[string]string{"state": state}, &b); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: %s, %d sessions\n", printable(args[0]), b.State, b.Active)
			if !c.Flags().Changed("wait") {
				return nil
			}
			if err := cl.untilEmpty(c.Context(), path, b, timeout); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: its last session has ended\n", printable(args[0]))
			return nil
		},
	}
	at.flags(c)
	if state == "drain" {
		c.Long += `
With --wait it returns when the last session has ended, and with status 1 if some are left after TIMEOUT.`
		c.Example = `  tproxy drain web/10.0.0.1:8080 --wait=5m`
		c.Flags().DurationVar(&timeout, "wait", 0, "return when the last session has ended, or after `TIMEOUT` (with status 1)")
		c.Flags().Lookup("wait").NoOptDefVal = "0s"
	}
	return c
}

func groupAndBackend(arg string) (group, backend string, err error) {
	group, backend, ok := strings.Cut(arg, "/")
	if !ok || group == "" || backend == "" {
		return "", "", fmt.Errorf("%q: GROUP/BACKEND expected", arg)
	}
	return group, backend, nil
}

// untilEmpty returns when the backend at path, which was b, has no session, or after timeout; 0 is no limit. It asks again and
// again, for it waits for a process that may itself reload, restart or go away.
func (c *client) untilEmpty(ctx context.Context, path string, b admin.Backend, timeout time.Duration) error {
	const pace = 200 * time.Millisecond
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	again := time.NewTicker(pace)
	defer again.Stop()
	for b.Active > 0 {
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("%d sessions are left after %s", b.Active, timeout)
		}
		var now admin.Backend
		if _, err := c.do(ctx, "GET", path, nil, &now); ctx.Err() != nil {
			continue
		} else if err != nil {
			return err
		}
		if b = now; b.State == "ready" {
			return fmt.Errorf("it was made ready meanwhile, and has %d sessions", b.Active)
		}
	}
	return nil
}
