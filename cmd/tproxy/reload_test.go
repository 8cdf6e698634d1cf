package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/tproxy/tproxy/internal/config"
)

// reloading is an instance that serves text, and loads what next returns when it reloads.
func reloading(t *testing.T, log *slog.Logger, text string, next func() (*config.Config, error)) *instance {
	t.Helper()
	p := programOf(t, "%s", text)
	p.log, p.load = log, next
	i, err := open(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	i.start()
	return i
}

const small = `
listeners: {web: {address: "127.0.0.1:0"}}
groups: {web: {backends: ["127.0.0.1:1"], health: {probe: none}}}
admin: {address: ""}
drain: {timeout: 1ms, spread: false}
`

func TestErrorOfAReloadIsReturnedOrLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	broken := errors.New("broken")
	i := reloading(t, slog.New(slog.NewTextHandler(&log, nil)), small, func() (*config.Config, error) { return nil, broken })
	defer i.close()
	if _, err := i.reload(context.Background(), false); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if strings.Contains(log.String(), "broken") {
		t.Errorf("who is told by the error is told by the log again: %s", &log)
	}
	i.sayReload(broken)
	if n := strings.Count(log.String(), `"reload failed, nothing changed" error=broken`); n != 1 {
		t.Errorf("%d times in the log: %s", n, &log)
	}
	i.sayReload(fmt.Errorf("%w: %w", errIncomplete, broken))
	if n := strings.Count(log.String(), "nothing changed"); n != 1 || !strings.Contains(log.String(), `msg="reload incomplete"`) {
		t.Errorf("a reload that could not be undone: %s", &log)
	}
}
