package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/admin"
	"github.com/tproxy/tproxy/internal/config"
)

// startReloading is an instance that serves text, and loads what next returns when it reloads.
func startReloading(t *testing.T, log *slog.Logger, text string, next func() (*config.Config, error)) *instance {
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
	i := startReloading(t, slog.New(slog.NewTextHandler(&log, nil)), small, func() (*config.Config, error) { return nil, broken })
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

// A slowLoad is a configuration that takes its time: begun gets a value when loading begins, and it ends when go on is closed.
type slowLoad struct {
	begun chan struct{}
	goOn  chan struct{}
	count atomic.Int32
	c     *config.Config
}

func newSlowLoad(t *testing.T, text string) *slowLoad {
	return &slowLoad{begun: make(chan struct{}, mostReloads), goOn: make(chan struct{}), c: programOf(t, "%s", text).config}
}

func (s *slowLoad) load() (*config.Config, error) {
	s.count.Add(1)
	s.begun <- struct{}{}
	<-s.goOn
	return s.c, nil
}

const two = `
listeners: {web: {address: "127.0.0.1:0"}, more: {address: "127.0.0.1:0", group: web}}
groups: {web: {backends: ["127.0.0.1:1"], health: {probe: none}}}
admin: {address: ""}
drain: {timeout: 1ms, spread: false}
`

func TestStopDuringASlowReloadIsObeyedAtOnce(t *testing.T) {
	slow := newSlowLoad(t, two)
	i := startReloading(t, slog.New(slog.DiscardHandler), small, slow.load)
	address := i.addresses("web")[0].String()
	signals := make(chan os.Signal, 2)
	stopped := make(chan int, 1)
	go func() {
		i.untilStop(signals)
		stopped <- i.drain(context.Background())
	}()
	signals <- reloadSignal
	<-slow.begun
	signals <- syscall.SIGTERM
	for late := time.After(10 * time.Second); ; {
		c, err := net.Dial("tcp", address)
		if err != nil {
			break
		}
		c.Close()
		select {
		case <-late:
			t.Fatal("it still listens while a reload is on its way")
		default:
		}
	}
	if s := i.State(); s != admin.Draining {
		t.Errorf("it is %s", s)
	}
	close(slow.goOn)
	<-stopped
	<-i.lastReload
	if n := len(i.current.Load().listeners); n != 1 {
		t.Errorf("%d listeners: the reload took effect after the stop", n)
	}
}

func TestEndDoesNotWaitForAReloadThatHangs(t *testing.T) {
	slow := newSlowLoad(t, two)
	i := startReloading(t, slog.New(slog.DiscardHandler), small, slow.load)
	signals := make(chan os.Signal, 2)
	signals <- reloadSignal
	stopped := make(chan struct{})
	go func() {
		i.untilStop(signals)
		i.drain(context.Background())
		close(stopped)
	}()
	<-slow.begun
	signals <- syscall.SIGTERM
	<-stopped // or the test does not end
	close(slow.goOn)
	<-i.lastReload
}

func TestReloadAskedForDuringAReloadRunsAfterIt(t *testing.T) {
	slow := newSlowLoad(t, two)
	i := startReloading(t, slog.New(slog.DiscardHandler), small, slow.load)
	signals := make(chan os.Signal, 4)
	stopped := make(chan struct{})
	go func() {
		i.untilStop(signals)
		i.drain(context.Background())
		close(stopped)
	}()
	signals <- reloadSignal
	<-slow.begun
	signals <- reloadSignal
	signals <- reloadSignal
	close(slow.goOn)
	<-slow.begun
	<-slow.begun
	signals <- syscall.SIGTERM
	<-stopped
	if n := slow.count.Load(); n != 3 {
		t.Errorf("%d reloads, of 3", n)
	}
}
