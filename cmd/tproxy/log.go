package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/lmittmann/tint"
	"golang.org/x/term"

	"github.com/tproxy/tproxy/health"
	"github.com/tproxy/tproxy/internal/config"
	"github.com/tproxy/tproxy/proxy"
)

// openLog is a log that is printed to w in the background; the caller closes the printer. A line that is lost because nobody reads is an
// error of the handler.
func openLog(w io.Writer, c config.Log) (*slog.Logger, *printer) {
	var h slog.Handler
	p := newPrinter(w, func(lines int) { slog.New(h).Warn("lines of the log were lost: nobody read them", "lines", lines) })
	h = logHandler(p, isTerminal(w), c)
	return slog.New(h), p
}

// logHandler is in colour on a terminal unless NO_COLOR is set, else text; or JSON.
func logHandler(w io.Writer, terminal bool, c config.Log) slog.Handler {
	var level slog.Level
	level.UnmarshalText([]byte(c.Level)) // config knows only valid ones
	options := &slog.HandlerOptions{Level: level}
	switch {
	case c.Format == "json":
		return slog.NewJSONHandler(w, options)
	case c.Format == "auto" && terminal:
		return tint.NewTextHandler(w, &tint.Options{Level: level, TimeFormat: time.TimeOnly, NoColor: os.Getenv("NO_COLOR") != ""})
	}
	return slog.NewTextHandler(w, options)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// A narrator logs the events that an operator should know of. What may come in a flood is said once a second at most, with how
// much was left out.
type narrator struct {
	log *slog.Logger

	mu      sync.Mutex
	said    map[string]time.Time
	skipped map[string]int
}

func newNarrator(log *slog.Logger) *narrator {
	return &narrator{log: log, said: make(map[string]time.Time), skipped: make(map[string]int)}
}

// Observe implements proxy.Observer.
func (n *narrator) Observe(e proxy.Event) {
	switch e.Kind {
	case proxy.AcceptPaused:
		n.seldom(slog.LevelWarn, "accepting pauses", "listener", e.Listener, "error", e.Err)
	case proxy.AcceptResumed:
		n.seldom(slog.LevelInfo, "accepting again", "listener", e.Listener)
	case proxy.ConnectFailed:
		n.seldom(slog.LevelDebug, "connect failed", "group", e.Group, "backend", e.Backend, "attempts", e.Attempts, "error", e.Err)
	case proxy.SessionClosed:
		switch e.Reason {
		case proxy.NoBackend, proxy.ConnectFailure, proxy.QueueFull, proxy.QueueTimeout, proxy.Internal:
			n.seldom(slog.LevelWarn, "client not served", "listener", e.Listener, "reason", e.Reason, "error", e.Err)
		}
	}
}

// Health logs that a backend went up or down.
func (n *narrator) Health(e health.Event) {
	switch e.Kind {
	case health.WentUp:
		n.log.Info("backend up", "group", e.Group, "backend", e.Backend, "cause", e.Cause.String())
	case health.WentDown:
		n.log.Warn("backend down", "group", e.Group, "backend", e.Backend, "cause", e.Cause.String(), "hold", e.Hold, "error", e.Err)
	case health.Probed:
		n.log.Debug("probe", "group", e.Group, "backend", e.Backend, "result", e.Result.String(), "took", e.Took, "error", e.Err)
	}
}

func (n *narrator) seldom(level slog.Level, message string, args ...any) {
	if !n.log.Enabled(context.Background(), level) {
		return
	}
	now := time.Now()
	n.mu.Lock()
	if now.Sub(n.said[message]) < time.Second {
		n.skipped[message]++
		n.mu.Unlock()
		return
	}
	skipped := n.skipped[message]
	n.said[message], n.skipped[message] = now, 0
	n.mu.Unlock()
	if skipped > 0 {
		args = append(args, "not_said", skipped)
	}
	n.log.Log(context.Background(), level, message, args...)
}
