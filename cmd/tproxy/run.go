package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"sync"

	"github.com/spf13/cobra"

	"github.com/tproxy/tproxy/health"
	"github.com/tproxy/tproxy/internal/config"
	"github.com/tproxy/tproxy/proxy"
)

func runCommand() *cobra.Command {
	var from source
	c := &cobra.Command{
		Use:   "run -c FILE",
		Short: "Run the proxy in the foreground",
		Long: `Run binds every listener and serves until it is told to stop.

TERM, INT and QUIT drain: not ready at once, drain.delay later no more accepting, and at drain.timeout the sessions that are
left are reset (exit status 3). A second one ends at once. HUP reloads the configuration. USR1 reopens the journal.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := from.load()
			if err != nil {
				return err
			}
			return program{config: cfg, load: from.load, log: newLogger(c.ErrOrStderr(), cfg.Log)}.serve()
		},
	}
	from.flags(c)
	return c
}

// A program is one run of a proxy in the foreground.
type program struct {
	config *config.Config
	load   func() (*config.Config, error) // for a reload; nil: there is no file
	log    *slog.Logger

	observer proxy.Observer     // besides the journal, the metrics and the log; may be nil
	health   func(health.Event) // likewise
	ready    func(*instance)    // called when every listener is bound; may be nil
}

// serve runs until a signal ends it.
func (p program) serve() error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, handledSignals...)
	i, err := open(p)
	if err != nil {
		return err
	}
	pidFile := p.config.Process.PIDFile
	if err := writePID(pidFile); err != nil {
		i.close()
		return err
	}
	i.start()
	i.sayReady()
	if p.ready != nil {
		p.ready(i)
	}
	i.untilStop(signals)

	now, stop := context.WithCancel(context.Background())
	defer stop()
	var obeying sync.WaitGroup
	obeying.Go(func() { i.whileStopping(signals, stop) })
	cut := i.drain(now)
	signal.Stop(signals)
	close(signals)
	obeying.Wait()
	removePID(pidFile)
	if cut > 0 {
		return status(exitCut)
	}
	return nil
}

func (i *instance) sayReady() {
	c := i.current.Load().config
	for _, name := range c.ListenerNames {
		for _, a := range i.addresses(name) {
			i.log.Info("listening", "listener", name, "address", a.String(), "group", c.Listeners[name].Group)
		}
	}
	if i.admin != nil {
		i.log.Info("admin", "address", i.admin.Addr().String())
	}
	i.log.Info("ready", "version", version(), "pid", os.Getpid())
}

// untilStop obeys signals until one of them says stop.
func (i *instance) untilStop(signals <-chan os.Signal) {
	for s := range signals {
		switch s {
		case reopenSignal:
			i.reopen()
		case reloadSignal:
			i.reload(context.Background(), false) // it logs what it did, or why it did nothing
		case upgradeSignal:
			i.log.Warn("upgrade: not supported yet")
		default:
			i.log.Info("signal", "signal", s.String())
			return
		}
	}
}

// whileStopping obeys signals until there are no more: one more that says stop calls now.
func (i *instance) whileStopping(signals <-chan os.Signal, now func()) {
	for s := range signals {
		switch s {
		case reopenSignal:
			i.reopen()
		case reloadSignal, upgradeSignal:
			i.log.Warn("signal ignored: the process is draining", "signal", s.String())
		default:
			now()
		}
	}
}

func (i *instance) reopen() {
	if i.journal == nil {
		return
	}
	if err := i.journal.Reopen(); err != nil {
		i.log.Error("reopen", "error", err)
	}
}

func writePID(path string) error {
	if path == "" {
		return nil
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		return fmt.Errorf("process.pid_file: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("process.pid_file: %w", err)
	}
	return nil
}

// removePID removes the file if it is still ours.
func removePID(path string) {
	if b, err := os.ReadFile(path); err == nil && string(b) == strconv.Itoa(os.Getpid())+"\n" {
		os.Remove(path)
	}
}
