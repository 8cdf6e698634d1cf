package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/tproxy/tproxy/internal/config"
)

func runCommand() *cobra.Command {
	var from source
	c := &cobra.Command{
		Use:   "run -c FILE",
		Short: "Run the proxy in the foreground",
		Long: `Run binds every listener and serves until it is told to stop.

TERM, INT and QUIT drain: not ready at once, drain.delay later no more accepting, and at drain.timeout the sessions that are
left are reset (exit status 3). A second one ends at once. USR1 reopens the journal.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := from.load()
			if err != nil {
				return err
			}
			return serve(cfg, newLogger(os.Stderr, cfg.Log))
		},
	}
	from.flags(c)
	return c
}

// serve runs a configuration until a signal ends it.
func serve(cfg *config.Config, log *slog.Logger) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, handledSignals...)
	defer signal.Stop(signals)
	i, err := open(cfg, log)
	if err != nil {
		return err
	}
	if err := writePID(cfg.Process.PIDFile); err != nil {
		i.close()
		return err
	}
	i.start()
	for _, name := range cfg.ListenerNames {
		for _, a := range i.listeners[name].Addrs() {
			log.Info("listening", "listener", name, "address", a.String(), "group", cfg.Listeners[name].Group)
		}
	}
	if i.admin != nil {
		log.Info("admin", "address", i.admin.Addr().String())
	}
	log.Info("ready", "version", version(), "pid", os.Getpid())

	for s := range signals {
		switch {
		case s == reopenSignal:
			i.reopen()
			continue
		case s == reloadSignal:
			log.Warn("reload: not supported yet")
			continue
		case s == upgradeSignal:
			log.Warn("upgrade: not supported yet")
			continue
		}
		log.Info("signal", "signal", s.String())
		break
	}
	now, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		for s := range signals {
			if s == syscall.SIGTERM || s == os.Interrupt || s == quitSignal {
				stop()
				return
			}
		}
	}()
	cut := i.drain(now)
	signal.Stop(signals)
	close(signals)
	removePID(cfg.Process.PIDFile)
	if cut > 0 {
		return status(exitCut)
	}
	return nil
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
