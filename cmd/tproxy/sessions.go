package main

import (
	"fmt"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/tproxy/tproxy/internal/admin"
)

func sessionsCommand() *cobra.Command {
	var at target
	var raw bool
	var most int
	var listener, group, backend string
	c := &cobra.Command{
		Use:   "sessions",
		Short: "List open sessions",
		Long: `Sessions lists the open sessions of a running tproxy, the oldest first: bytes up (client to backend) and down, how old they are and
since when no byte has moved. "half" is said of a session of which one side has sent FIN.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := at.client()
			if err != nil {
				return err
			}
			q := url.Values{"limit": {strconv.Itoa(most)}}
			for key, value := range map[string]string{"listener": listener, "group": group, "backend": backend} {
				if value != "" {
					q.Set(key, value)
				}
			}
			var answer struct {
				Total    int
				Sessions []admin.Session
			}
			text, err := cl.do(c.Context(), "GET", "sessions?"+q.Encode(), nil, &answer)
			if err != nil {
				return err
			}
			w := c.OutOrStdout()
			if raw {
				_, err := w.Write(text)
				return err
			}
			t := newTable(w, "SESSION", "LISTENER", "CLIENT", "BACKEND", "UP", "DOWN", "AGE", "QUIET", "FIN")
			for _, s := range answer.Sessions {
				on, fin := "", ""
				if s.Backend != "" {
					on = s.Group + "/" + s.Backend
				}
				if s.HalfClosed {
					fin = "half"
				}
				t.row(s.ID, s.Listener, s.Client, on, size(s.Up), size(s.Down), age(s.DurationMS), age(s.QuietMS), fin)
			}
			if err := t.print(); err != nil {
				return err
			}
			if n := len(answer.Sessions); n < answer.Total {
				fmt.Fprintf(w, "%d of %d sessions (--limit)\n", n, answer.Total)
			}
			return nil
		},
	}
	at.flags(c)
	f := c.Flags()
	f.BoolVar(&raw, "json", false, "print the answer of the admin API")
	f.IntVar(&most, "limit", 1000, "list `N` sessions at most, up to 100000")
	f.StringVar(&listener, "listener", "", "only those of the listener `NAME`")
	f.StringVar(&group, "group", "", "only those of the group `NAME`")
	f.StringVar(&backend, "backend", "", "only those of backends with this `NAME`")
	return c
}
