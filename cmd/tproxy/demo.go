package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/tproxy/tproxy/examples/line"
	"github.com/tproxy/tproxy/internal/config"
)

func demoCommand() *cobra.Command {
	var listen, admin string
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run a proxy with three small backends inside, to try it",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			for _, address := range []string{listen, admin} {
				if a, err := config.ParseAddress(address); err != nil {
					return misuse{err}
				} else if a.Path != "" || a.FD != "" {
					return misuse{fmt.Errorf("%q: the demo wants host:port", address)}
				}
			}
			servers, err := startLineServers("one", "two", "three")
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, servers.stop()) }()
			cfg, err := demonstration(listen, admin, servers.addresses)
			if err != nil {
				return err
			}
			log, lines := openLog(c.ErrOrStderr(), cfg.Log)
			defer lines.close()
			p := program{config: cfg, log: log}
			p.ready = func(i *instance) {
				lines.flush() // what to type next comes last
				a := i.addresses("demo")[0].IP
				fmt.Fprintf(c.OutOrStdout(), `Three backends (one, two, three) are behind %[1]s. In another terminal:

  printf 'ECHO hello\nQUIT\n' | nc %[2]s %[3]d      a line comes back
  printf 'WHO\n' | nc -N %[2]s %[3]d                which backend served
  nc %[2]s %[3]d                                    then type HELP
  curl -s %[4]s/api/v1/status                 what runs
  curl -s %[4]s/metrics | grep ^tproxy

Ctrl-C drains and ends.
`, a, a.Addr(), a.Port(), i.admin.Addr())
			}
			return p.serve()
		},
	}
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:8080", "`ADDRESS` of the listener")
	c.Flags().StringVar(&admin, "admin", "127.0.0.1:9900", "admin `ADDRESS`")
	return c
}

func demonstration(listen, admin string, backends []any) (*config.Config, error) {
	type object = map[string]any
	data, err := json.Marshal(object{
		"listeners": object{"demo": object{"address": listen, "group": "demo"}},
		"groups":    object{"demo": object{"balance": "round_robin", "backends": backends}},
		"admin":     object{"address": admin},
		"drain":     object{"timeout": "2s", "spread": false},
	})
	if err != nil {
		return nil, err
	}
	return config.Parse("demo.json", data, config.Options{})
}

// lineServers are the backends of the demo.
type lineServers struct {
	servers   []*line.Server
	addresses []any // entries of a group's backends
	running   sync.WaitGroup
}

func startLineServers(names ...string) (*lineServers, error) {
	l := new(lineServers)
	for _, name := range names {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, errors.Join(fmt.Errorf("backend %s: %w", name, err), l.stop())
		}
		s := &line.Server{Name: name}
		l.servers = append(l.servers, s)
		l.addresses = append(l.addresses, map[string]any{"name": name, "address": ln.Addr().String()})
		l.running.Go(func() { s.Serve(ln) })
	}
	return l, nil
}

func (l *lineServers) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var errs []error
	for _, s := range l.servers {
		if err := s.Shutdown(ctx); err != nil {
			errs = append(errs, errors.Join(err, s.Close()))
		}
	}
	l.running.Wait()
	return errors.Join(errs...)
}
