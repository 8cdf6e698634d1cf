package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tproxy/tproxy/health"
	"github.com/tproxy/tproxy/internal/config"
	"github.com/tproxy/tproxy/proxy"
)

func forwardCommand() *cobra.Command {
	var hold time.Duration
	c := &cobra.Command{
		Use:   "forward [BIND:]PORT=HOST:PORT[,HOST:PORT…] …",
		Short: "Forward ports without a configuration file",
		Long: `Forward listens on each PORT and forwards its clients to the first HOST:PORT that answers. It listens on loopback (127.0.0.1) unless
BIND names another address, and keeps listening while the backend is away: new clients are held until it is there, for --hold at
most. It prints one line an event.`,
		Example: `  tproxy forward 5432=db.internal:5432
  tproxy forward 8080=localhost:3000 0.0.0.0:8443=10.0.0.7:443`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := forwarding(args, hold)
			if err != nil {
				return err
			}
			t := newTeller(c.OutOrStdout())
			defer t.out.close()
			for n, spec := range args {
				_, t.targets[forwardName(n)], _ = strings.Cut(spec, "=")
			}
			log, lines := openLog(c.ErrOrStderr(), config.Log{Level: "error", Format: "auto"})
			defer lines.close()
			p := program{config: cfg, log: log, observer: t, health: t.health}
			p.ready = func(i *instance) {
				for _, name := range cfg.ListenerNames {
					for _, a := range i.addresses(name) {
						t.line("listen %s → %s", a, t.targets[name])
					}
				}
			}
			return p.serve()
		},
	}
	c.Flags().DurationVar(&hold, "hold", 10*time.Second, "keep new clients for this `TIME` while no backend answers")
	return c
}

func forwardName(n int) string { return fmt.Sprintf("forward-%d", n+1) }

// forwarding is the configuration that the arguments of forward stand for.
func forwarding(specs []string, hold time.Duration) (*config.Config, error) {
	type object = map[string]any
	if hold < 0 {
		return nil, misuse{fmt.Errorf("--hold %s: less than nothing", hold)}
	}
	listeners, groups := object{}, object{}
	for n, spec := range specs {
		bind, targets, ok := strings.Cut(spec, "=")
		if !ok {
			return nil, misuse{fmt.Errorf("%q: PORT=HOST:PORT expected", spec)}
		}
		if !strings.Contains(bind, ":") {
			bind = net.JoinHostPort("127.0.0.1", bind)
		}
		for _, a := range append(strings.Split(targets, ","), bind) {
			if _, err := config.ParseAddress(a); err != nil {
				return nil, misuse{fmt.Errorf("%q: %w", spec, err)}
			}
		}
		name := forwardName(n)
		listeners[name] = object{"address": bind, "group": name}
		groups[name] = object{
			"balance":  "first",
			"backends": strings.Split(targets, ","),
			"hold":     hold.String(),
			"connect":  object{"backoff": object{"base": "50ms", "max": "500ms"}},
			"health": object{"probe": "tcp", "interval": "500ms", "rise": 1, "fall": 1,
				"passive": object{"failures": 1}, "hold_down": object{"base": "0s"}},
		}
	}
	data, err := json.Marshal(object{"listeners": listeners, "groups": groups, "admin": object{"address": ""},
		"drain": object{"timeout": "1s", "spread": false}, "log": object{"sessions": object{"close": false}}})
	if err != nil {
		return nil, err
	}
	return config.Parse("forward.json", data, config.Options{})
}

// A teller prints one line an event, for a person.
type teller struct {
	targets map[string]string // by listener
	out     *printer
}

func newTeller(w io.Writer) *teller {
	t := &teller{targets: make(map[string]string)}
	t.out = newPrinter(w, func(lines int) { t.line("lost   %d lines: nobody read them", lines) })
	return t
}

func (t *teller) line(format string, args ...any) {
	fmt.Fprintf(t.out, "%s %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// Observe implements proxy.Observer.
func (t *teller) Observe(e proxy.Event) {
	switch e.Kind {
	case proxy.SessionOpened:
		t.line("open   %s → %s", e.Client, e.Backend)
	case proxy.SessionClosed:
		if e.Backend == "" {
			t.line("refuse %s → %s: %v", e.Client, t.targets[e.Listener], errorOr(e.Err, e.Reason))
			return
		}
		t.line("close  %s → %s: %s, %s up, %s down, %s", e.Client, e.Backend, e.Reason, size(e.Up), size(e.Down), e.Duration.Round(time.Millisecond))
	}
}

func (t *teller) health(e health.Event) {
	switch e.Kind {
	case health.WentUp:
		t.line("up     %s", e.Backend)
	case health.WentDown:
		t.line("down   %s: %v", e.Backend, e.Err)
	}
}

func errorOr(err error, r proxy.Reason) any {
	if err != nil {
		return err
	}
	return r
}

// size is a number of bytes for a person.
func size(n uint64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1000, 0
	for f >= 999.95 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	return fmt.Sprintf("%.1f %cB", f, units[i])
}
