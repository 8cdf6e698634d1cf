//go:build linux

// Command bench measures tproxy beside HAProxy and nginx, and prints Markdown tables:
//
//	go run ./bench                                    everything, about 12 minutes
//	go run ./bench -rounds 3 -only messages-64,idle   a part
//	go run ./bench -peer other=127.0.0.1:7000,1234    and a proxy that runs already, in front of the backend that -backend names
//
// Each measurement starts a new backend and a new proxy, the proxy on one core, the load and the backend on another, so that nothing of one is seen in
// the next. All proxies get the same load in turns, round by round, and each round begins with another one. A ratio is taken within a round.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == backendCommand {
		fmt.Fprintln(os.Stderr, "bench: backend:", serveBackend())
		os.Exit(1)
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	var (
		rounds    = flag.Int("rounds", 5, "rounds; the tables show medians")
		window    = flag.Duration("window", 2*time.Second, "how long to measure messages and connections")
		streamed  = flag.Int64("bytes", 3e9, "how many bytes to stream in one measurement")
		idle      = flag.Int("idle", 5000, "how many idle sessions to hold")
		only      = flag.String("only", "", "comma-separated cases, or beginnings of their names")
		proxyCore = flag.Int("proxy-core", 0, "the core of the proxy")
		loadCore  = flag.Int("load-core", 1, "the core of load and backend")
		tproxy    = flag.String("tproxy", "", "a built tproxy (default: build ./cmd/tproxy)")
		haproxy   = flag.String("haproxy", "haproxy", "the HAProxy to compare with; empty for none")
		nginx     = flag.String("nginx", "nginx", "the nginx to compare with; empty for none")
		backend   = flag.String("backend", "127.0.0.1:17001", "where the backend of -peer proxies listens")
		peers     []runningPeer
	)
	flag.Func("peer", "`name=address,pid[,pid…]` of a proxy that runs already (repeatable)", func(s string) error {
		p, err := parsePeer(s, *backend)
		peers = append(peers, p)
		return err
	})
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if err := moveToCore(*loadCore); err != nil {
		return err
	}

	dir, err := os.MkdirTemp("", "tproxy-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if *tproxy == "" {
		*tproxy = filepath.Join(dir, "tproxy")
		build := exec.Command("go", "build", "-trimpath", "-o", *tproxy, "github.com/tproxy/tproxy/cmd/tproxy")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("build tproxy: %w", err)
		}
	}
	targets := []target{{name: "tproxy", command: tproxyCommand(*tproxy)}}
	if *haproxy != "" {
		targets = append(targets, target{name: "HAProxy", command: haproxyCommand(*haproxy)})
	}
	if *nginx != "" {
		targets = append(targets, target{name: "nginx", command: nginxCommand(*nginx)})
	}
	for _, t := range targets {
		if err := t.installed(); err != nil {
			return err
		}
	}
	for _, p := range peers {
		targets = append(targets, target{name: p.name, running: &p})
	}
	targets = append(targets, target{name: direct})

	cases := slices.DeleteFunc(allCases(*window, *streamed, *idle), func(c scenario) bool { return !selected(c.name, *only) })
	if len(cases) == 0 {
		return fmt.Errorf("no case is called %q", *only)
	}
	load := loadAverage()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt)
	res := make(results)
	var faults []error
	for round := range *rounds {
		for _, c := range cases {
			for i := range targets {
				t := targets[(round+i)%len(targets)]
				progress("round %d of %d: %s through %s", round+1, *rounds, c.name, t.name)
				m, err := measure(t, c, *proxyCore, dir)
				if err != nil {
					faults = append(faults, fmt.Errorf("round %d, %s through %s: %w", round+1, c.name, t.name, err))
					m = measurement{}
				}
				res.add(c.name, t.name, m)
				select {
				case <-stop:
					return errors.New("interrupted")
				default:
				}
			}
		}
	}
	progress("")
	fmt.Print(conditions(targets, load, *rounds, *window, *streamed, *proxyCore, *loadCore))
	fmt.Print(res.tables(cases, targets))
	return errors.Join(faults...)
}

// selected reports whether only is empty or names the case by a beginning of its name that ends where a part of the name does.
func selected(name, only string) bool {
	return only == "" || slices.ContainsFunc(strings.Split(only, ","), func(o string) bool {
		return name == o || strings.HasPrefix(name, o+"-")
	})
}

// measure runs one case once through one target, with a backend and, unless it runs already, a proxy of its own.
func measure(t target, c scenario, core int, dir string) (measurement, error) {
	backend, address, err := startBackend(t.backendAddress())
	if err != nil {
		return measurement{}, err
	}
	defer backend.stop()
	l := load{address: address}
	switch {
	case t.running != nil:
		l.address, l.proxy = t.running.address, &process{pids: t.running.pids}
	case t.command != nil:
		proxy, listen, err := t.start(address, core, dir)
		if err != nil {
			return measurement{}, err
		}
		defer proxy.stop()
		l.address, l.proxy = listen, proxy
	}
	return c.run(l)
}

// progress keeps one line on a terminal.
func progress(format string, args ...any) {
	if term.IsTerminal(int(os.Stderr.Fd())) {
		fmt.Fprintf(os.Stderr, "\r\033[K"+format, args...)
	}
}

var versionNumber = regexp.MustCompile(`\d+\.\d+\S*`)

func conditions(targets []target, load string, rounds int, window time.Duration, streamed int64, proxyCore, loadCore int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s; load average before %s.\n", time.Now().UTC().Format(time.DateOnly), machine(), load)
	fmt.Fprintf(&b, "Proxy on core %d, load and backend on core %d, loopback; %d rounds in turns, %v or %.3g GB a measurement; 64-byte messages.\n",
		proxyCore, loadCore, rounds, window, float64(streamed)/1e9)
	for _, t := range targets {
		if v := t.version(); v != "" {
			fmt.Fprintf(&b, "%s %s. ", t.name, v)
		}
	}
	b.WriteString("\n")
	return b.String()
}
