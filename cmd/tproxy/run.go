package main

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/tproxy/tproxy/health"
	"github.com/tproxy/tproxy/internal/config"
	"github.com/tproxy/tproxy/internal/filewatch"
	"github.com/tproxy/tproxy/internal/handover"
	"github.com/tproxy/tproxy/proxy"
)

func runCommand() *cobra.Command {
	var from source
	var upgradeTimeout time.Duration
	var follow bool
	c := &cobra.Command{
		Use:   "run -c FILE",
		Short: "Run the proxy in the foreground",
		Long: `Run binds every listener and serves until it is told to stop.

TERM, INT and QUIT drain: not ready at once, drain.delay later no more accepting, and at drain.timeout the sessions that are
left are reset (exit status 3). A second one ends at once. HUP reloads the configuration. USR1 reopens the journal. USR2 starts the
executable again, which takes over the listening sockets; when it is ready this process drains, and if it never is, nothing changes.

With --watch a changed content of FILE is a HUP, also when the file, or a link on the way to it, is replaced.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var watched *filewatch.File
			if follow {
				var err error
				if watched, err = filewatch.New(from.file); err != nil {
					return err
				}
			}
			cfg, err := from.load()
			if err != nil {
				return err
			}
			log, lines := openLog(c.ErrOrStderr(), cfg.Log)
			defer lines.close()
			return program{config: cfg, load: from.load, log: log, watched: watched, upgradeTimeout: upgradeTimeout}.serve()
		},
	}
	from.flags(c)
	c.Flags().DurationVar(&upgradeTimeout, "upgrade-timeout", defaultUpgradeTimeout, "the `TIME` in which the new process of an upgrade must be ready")
	c.Flags().BoolVar(&follow, "watch", false, "reload when the content of FILE has changed")
	return c
}

// A program is one run of a proxy in the foreground.
type program struct {
	config *config.Config
	load   func() (*config.Config, error) // for a reload; nil: there is no file
	log    *slog.Logger

	watched *filewatch.File // reloads when it changes; may be nil

	observer proxy.Observer     // besides the journal, the metrics and the log; may be nil
	health   func(health.Event) // likewise
	ready    func(*instance)    // called when every listener is bound; may be nil

	executable     string // of a successor; serve sets it
	upgradeTimeout time.Duration
}

// serve runs until a signal ends it, or a successor serves.
func (p program) serve() error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, handledSignals...)
	// Caught and left alone: when the reader of the log is gone its lines are lost, not the proxy. A signal that is ignored instead would be
	// ignored by the programs that this one starts, too.
	signal.Notify(make(chan os.Signal, 1), brokenPipe)
	var err error
	if p.executable, err = executable(); err != nil {
		return err
	}
	p.upgradeTimeout = cmp.Or(p.upgradeTimeout, defaultUpgradeTimeout)
	inherited, err := handover.Receive(activated()...)
	if err != nil {
		return err
	}
	i, err := open(p, inherited)
	if err != nil {
		return err
	}
	if inherited.Awaited() {
		i.warm()
	}
	if err := i.serve(); err != nil {
		i.close()
		removePID(p.config.Process.PIDFile)
		return err
	}
	if p.ready != nil {
		p.ready(i)
	}
	successor := i.untilStop(signals)

	now, stop := context.WithCancel(context.Background())
	defer stop()
	var obeying sync.WaitGroup
	obeying.Go(func() { i.whileStopping(signals, successor, stop) })
	cut := i.drain(now)
	signal.Stop(signals)
	close(signals)
	obeying.Wait()
	if successor == nil {
		removePID(p.config.Process.PIDFile)
	}
	if cut > 0 {
		return status(exitCut)
	}
	return nil
}

// serve begins to accept and says so to everybody: pid file, predecessor, systemd, log.
func (i *instance) serve() error {
	if err := writePID(i.program.config.Process.PIDFile); err != nil {
		return err
	}
	i.start()
	for _, name := range i.inherited.Names() {
		i.log.Info("an inherited socket is not used, it is closed", "name", name)
	}
	awaited := i.inherited.Awaited()
	if awaited && i.metrics != nil {
		i.metrics.Upgraded(nil) // the predecessor's count is not seen any more
	}
	if err := i.inherited.Ready(); err != nil {
		return err
	}
	i.ownSockets()
	if !awaited {
		notify(i.log, daemon.SdNotifyReady) // to systemd the service of a successor has been ready all the time
	}
	i.sayReady()
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

// untilStop obeys signals, and requests to upgrade, until one of them says stop or a successor serves, which it returns. One upgrade or
// reload runs at a time; who asks for another upgrade meanwhile waits for that one, and a reload waits, too. Nobody who says stop waits.
func (i *instance) untilStop(signals <-chan os.Signal) *handover.Successor {
	defer close(i.leaving)
	u := new(upgrade) // runs if ended is not nil
	var r reloads
	ask := func() {
		if u.ended == nil {
			u = i.startUpgrade(r.ended)
		}
	}
	for {
		select {
		case s := <-signals:
			switch {
			case s == reopenSignal:
				i.reopen()
			case s == reloadSignal && u.ended != nil:
				u.reload = true
			case s == reloadSignal:
				i.startReload(&r)
			case s == upgradeSignal:
				ask()
			default:
				i.log.Info("signal", "signal", s.String())
				if u.ended == nil {
					return nil
				}
				u.abort()
				u.reload = false
				end := <-u.ended
				i.endUpgrade(u, end)
				return end.successor
			}
		case <-i.changed:
			i.log.Info("the configuration file has changed")
			if u.ended != nil {
				u.reload = true
			} else {
				i.startReload(&r)
			}
		case <-r.ended:
			i.endReload(&r, u)
		case c := <-i.upgrades:
			ask()
			u.asked = append(u.asked, c)
		case end := <-u.ended:
			i.endUpgrade(u, end)
			if end.successor != nil {
				return end.successor
			}
			again := u.reload
			u = new(upgrade)
			if again {
				i.startReload(&r)
			}
		}
	}
}

// whileStopping obeys signals until there are no more: one that says stop calls now. But the first one after an upgrade does not: to
// whoever sent it nothing has been stopped yet.
func (i *instance) whileStopping(signals <-chan os.Signal, successor *handover.Successor, now func()) {
	stopped := successor == nil
	for s := range signals {
		switch {
		case s == reopenSignal:
			i.reopen()
		case s == reloadSignal && successor != nil:
			successor.Signal(s)
		case s == reloadSignal, s == upgradeSignal:
			i.log.Warn("signal ignored: the process is draining", "signal", s.String())
		case stopped:
			now()
		default:
			stopped = true
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
