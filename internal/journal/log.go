package journal

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/tproxy/tproxy/proxy"
)

// A logSink writes records as log lines, with the keys of a record as attributes.
type logSink struct {
	h       slog.Handler
	dropped *atomic.Uint64
}

func (s *logSink) add(e *proxy.Event, kind string) {
	ctx := context.Background()
	if !s.h.Enabled(ctx, slog.LevelInfo) {
		return
	}
	r := slog.NewRecord(e.Time, slog.LevelInfo, "session", 0)
	r.AddAttrs(
		slog.String("event", kind),
		slog.String("listener", e.Listener),
		slog.String("session", strconv.FormatUint(uint64(e.ID), 10)),
		slog.String("client", printable(e.Client.String())),
		slog.String("client_claimed", printable(e.Claimed.String())),
		slog.String("local", printable(e.Local.String())),
		slog.String("group", e.Group),
		slog.String("backend", e.Backend),
		slog.Int("attempts", e.Attempts),
		slog.String("pool", e.Pool.String()),
		slog.String("sni", printable(e.SNI)),
		slog.Uint64("up", e.Up),
		slog.Uint64("down", e.Down),
		slog.Float64("wait_ms", millis(e.Wait)),
		slog.Float64("connect_ms", millis(e.Connect)),
		slog.Float64("first_byte_ms", millis(e.FirstByte)),
		slog.Float64("duration_ms", millis(e.Duration)),
		slog.String("half_closed_by", sideName(e.HalfClosedBy)),
		slog.String("reason", e.Reason.String()),
	)
	if e.Err != nil {
		r.AddAttrs(slog.String("error", printable(errorText(e.Err))))
	}
	if err := s.h.Handle(ctx, r); err != nil {
		s.dropped.Add(1)
	}
}

func (*logSink) flush() error  { return nil }
func (*logSink) pending() int  { return 0 }
func (*logSink) reopen() error { return nil }
func (*logSink) close() error  { return nil }

func millis(d time.Duration) float64 { return float64(max(d, 0).Microseconds()) / 1000 }

// printable replaces what must not reach a terminal by U+FFFD: not every handler escapes values.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}
