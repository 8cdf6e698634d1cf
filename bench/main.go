//go:build linux

// Command bench measures tproxy beside HAProxy, nginx and the limit, a relay in C without any feature, and prints Markdown tables:
//
//	go run ./bench                                    everything, ten rounds, about 20 minutes
//	go run ./bench -rounds 3 -only messages-64,idle   a part
//	go run ./bench -list                              the names of the cases
//	go run ./bench -peer other=127.0.0.1:7000,1234    and a proxy that runs already, in front of the backend that -backend names
//
// Each measurement starts a new backend and a new proxy, so that nothing of one is seen in the next. All proxies get the same load in turns, round by
// round, and each round begins with another one. A ratio is taken within a round. A measurement that fails is named in the report, and the others go on.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
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
		b       bench
		only    = flag.String("only", "", "comma-separated cases, or beginnings of their names")
		list    = flag.Bool("list", false, "print the names of the cases, and end")
		tproxy  = flag.String("tproxy", "", "a built tproxy (default: build ./cmd/tproxy)")
		haproxy = flag.String("haproxy", "haproxy", "the HAProxy to compare with; empty for none")
		nginx   = flag.String("nginx", "nginx", "the nginx to compare with; empty for none")
		relay   = flag.Bool("limit", true, "compare with the relay in C, which gcc builds")
		none    = flag.Bool("direct", false, "measure the load without a proxy too")
		backend = flag.String("backend", "127.0.0.1:17001", "where the backend of -peer proxies listens")
		peers   []runningPeer
	)
	flag.IntVar(&b.rounds, "rounds", 10, "rounds; the tables show medians")
	flag.DurationVar(&b.window, "window", 800*time.Millisecond, "how long to measure messages and connections")
	flag.Int64Var(&b.streamed, "bytes", 1e9, "how many bytes to stream in one measurement")
	flag.IntVar(&b.idle, "idle", 5000, "how many idle sessions to hold")
	flag.IntVar(&b.proxyCore, "proxy-core", 0, "the core of the proxy")
	flag.IntVar(&b.loadCore, "load-core", 1, "the core of load and backend")
	flag.Func("peer", "`name=address,pid[,pid…]` of a proxy that runs already (repeatable)", func(s string) error {
		p, err := parsePeer(s, *backend)
		peers = append(peers, p)
		return err
	})
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	b.cases = slices.DeleteFunc(allCases(b.window, b.streamed, b.idle), func(c scenario) bool { return !selected(c.name, *only) })
	if len(b.cases) == 0 {
		return fmt.Errorf("no case is called %q", *only)
	}
	if *list {
		for _, c := range b.cases {
			fmt.Println(c.name)
		}
		return nil
	}

	var err error
	if b.dir, err = os.MkdirTemp("", "tproxy-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if *tproxy == "" {
		*tproxy = filepath.Join(b.dir, "tproxy")
		build := exec.Command("go", "build", "-trimpath", "-o", *tproxy, "github.com/tproxy/tproxy/cmd/tproxy")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("build tproxy: %w", err)
		}
		b.versions = append(b.versions, "tproxy at commit "+firstLine("git", "describe", "--always", "--dirty"))
	} else {
		b.versions = append(b.versions, firstLine(*tproxy, "version"))
	}
	b.targets = []target{{name: ours, command: tproxyCommand(*tproxy)}}
	if *relay {
		program, err := buildRelay(b.dir)
		switch {
		case err == nil:
			b.targets = append(b.targets, target{name: limit, command: relayCommand(program)})
			b.versions = append(b.versions, "limit built by "+firstLine("gcc", "--version"))
		case errors.Is(err, exec.ErrNotFound):
			fmt.Fprintln(os.Stderr, "bench: no comparison with the limit: gcc is missing (apt-get install gcc libc6-dev)")
			b.versions = append(b.versions, "no limit: gcc is missing")
		default:
			return err
		}
	}
	if *haproxy != "" {
		b.targets = append(b.targets, target{name: "HAProxy", command: haproxyCommand(*haproxy)})
		b.versions = append(b.versions, firstLine(*haproxy, "-v"))
	}
	if *nginx != "" {
		b.targets = append(b.targets, target{name: "nginx", command: nginxCommand(*nginx)})
		b.versions = append(b.versions, firstLine(*nginx, "-v"))
	}
	for _, t := range b.targets {
		if err := t.installed(); err != nil {
			return err
		}
	}
	for _, p := range peers {
		b.targets = append(b.targets, target{name: p.name, running: &p})
	}
	if *none {
		b.targets = append(b.targets, target{name: direct})
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b.measureAll(ctx)
	fmt.Print(b.report())
	if n := len(b.faults); n > 0 {
		return fmt.Errorf("%d faults, listed below the tables", n)
	}
	return nil
}

// A bench is one run: what is measured, how, and what came of it.
type bench struct {
	rounds              int
	window              time.Duration
	streamed            int64
	idle                int
	proxyCore, loadCore int
	dir                 string
	cases               []scenario
	targets             []target // ours is the first
	versions            []string

	before, after string // load averages
	took          time.Duration
	results       results
	faults        []error
}

// measureAll measures every case through every target in every round, until ctx ends. What fails is a fault and leaves an empty measurement.
func (b *bench) measureAll(ctx context.Context) {
	start := time.Now()
	b.before = loadAverage()
	b.results = make(results)
	for round := range b.rounds {
		for _, c := range b.cases {
			for i := range b.targets {
				if ctx.Err() != nil {
					b.faults = append(b.faults, fmt.Errorf("interrupted in round %d of %d", round+1, b.rounds))
					b.took, b.after = time.Since(start), loadAverage()
					return
				}
				t := b.targets[(round+i)%len(b.targets)]
				progress("round %d of %d: %s through %s", round+1, b.rounds, c.name, t.name)
				m, err := b.measure(t, c)
				if err != nil {
					m = measurement{}
					err = fmt.Errorf("round %d, %s through %s: %w", round+1, c.name, t.name, err)
					b.faults = append(b.faults, err)
					progress("")
					fmt.Fprintln(os.Stderr, "bench:", err)
				}
				b.results.add(c.name, t.name, m)
			}
		}
		progress("")
		took := time.Since(start)
		fmt.Fprintf(os.Stderr, "bench: round %d of %d after %v, about %v left\n", round+1, b.rounds, took.Round(time.Second),
			(took / time.Duration(round+1) * time.Duration(b.rounds-round-1)).Round(time.Second))
	}
	b.took, b.after = time.Since(start), loadAverage()
}

// selected reports whether only is empty or names the case by a beginning of its name that ends where a part of the name does.
func selected(name, only string) bool {
	return only == "" || slices.ContainsFunc(strings.Split(only, ","), func(o string) bool {
		return name == o || strings.HasPrefix(name, o+"-")
	})
}

// measure runs one case once through one target, with a backend and, unless it runs already, a proxy of its own.
func (b *bench) measure(t target, c scenario) (measurement, error) {
	proxyCores, loadCores := []int{b.proxyCore}, []int{b.loadCore}
	if c.bothCores {
		both := []int{b.proxyCore, b.loadCore}
		proxyCores, loadCores = both, both
	}
	if err := occupy(loadCores...); err != nil {
		return measurement{}, err
	}
	runtime.GC() // what the last case left is not collected in this one
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
		proxy, listen, err := t.start(address, c.loops, proxyCores, b.dir)
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

// firstLine is the first line of what a command says, or that it says nothing.
func firstLine(name string, args ...string) string {
	out, err := exec.Command(name, args...).CombinedOutput()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil || line == "" {
		return name + " of an unknown version"
	}
	return line
}
