package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/tproxy/tproxy/internal/handover"
	"github.com/tproxy/tproxy/proxy"
)

// activated are the sockets that systemd has passed (LISTEN_FDS), under the names that addresses of the form fd:NAME ask for.
func activated() (sockets []handover.Socket) {
	for _, f := range activation.Files(true) {
		sockets = append(sockets, handover.Socket{Name: "fd:" + f.Name(), File: f})
	}
	return sockets
}

// notify tells systemd about this service; where there is none it does nothing.
func notify(log *slog.Logger, state ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(state, "\n")); err != nil {
		log.Warn("systemd is not told", "state", state[0], "error", err)
	}
}

// notifyReloading begins a reload in the eyes of systemd, daemon.SdNotifyReady ends it.
func notifyReloading(log *slog.Logger) {
	notify(log, daemon.SdNotifyReloading, strings.TrimSuffix(daemon.SdNotifyMonotonicUsec(), "\n"))
}

// notifyReplaced makes the successor the main process of the service.
func notifyReplaced(log *slog.Logger, pid int) {
	notify(log, fmt.Sprintf("MAINPID=%d", pid), daemon.SdNotifyWatchdog)
}

// feedWatchdog tells systemd twice in each of its intervals that this process lives, as long as its event loops come round in that
// time. It does nothing where no watchdog is set.
func (i *instance) feedWatchdog(ctx context.Context) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		i.log.Warn("systemd's watchdog", "error", err)
	}
	if interval <= 0 {
		return
	}
	t := time.NewTicker(interval / 2)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if i.replaced.Load() {
			return // it is the successor that is watched
		}
		if err := i.alive(ctx, interval/2); err == nil {
			notify(i.log, daemon.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			i.log.Error("an event loop is stuck, systemd's watchdog is not fed", "error", err)
		}
	}
}

// alive asks all event loops.
func (i *instance) alive(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var err error
	i.engines.Range(func(_, e any) bool {
		err = e.(*proxy.Engine).Alive(ctx)
		return err == nil
	})
	return err
}
