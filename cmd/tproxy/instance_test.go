//go:build linux

package main

import (
	"context"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// givesBack checks that what f takes, goroutines and descriptors, is given back. A first round opens what the runtime keeps.
func givesBack(t *testing.T, f func()) {
	t.Helper()
	f()
	before := descriptors(t)
	f()
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	goleak.VerifyNone(t)
}

func TestInstanceGivesEverythingBack(t *testing.T) {
	givesBack(t, func() {
		lines, err := startLineServers("one")
		if err != nil {
			t.Fatal(err)
		}
		defer lines.stop()
		i, err := open(programOf(t, `
listeners: {web: {address: ["127.0.0.1:0", "127.0.0.1:0"]}, portable: {address: "127.0.0.1:0", group: web, engine: portable}}
groups: {web: {backends: [%q], health: {interval: 1ms}}}
drain: {timeout: 1ms, spread: false}
admin: {address: "127.0.0.1:0"}
log: {sessions: {every: 1ms}}
`, lines.addresses[0].(map[string]any)["address"]), nil)
		if err != nil {
			t.Fatal(err)
		}
		i.start()
		sessions := 0
		for _, name := range []string{"web", "portable"} {
			for _, a := range i.addresses(name) {
				c, err := net.Dial("tcp", a.String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(5 * time.Second))
				io.WriteString(c, "ECHO x\n")
				if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
					t.Fatal(err)
				}
				sessions++
			}
		}
		if cut := i.drain(context.Background()); cut != sessions {
			t.Errorf("%d sessions cut, of %d", cut, sessions)
		}
	})
}

func TestInstanceThatCannotOpenGivesEverythingBack(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, text := range map[string]string{
		"an address is taken": `
listeners: {free: {address: "127.0.0.1:0", group: web}, web: {address: %q}}
groups: {web: {backends: ["127.0.0.1:1"]}}
admin: {address: "127.0.0.1:0"}`,
		"the admin address is taken": `
listeners: {web: {address: "127.0.0.1:0"}}
groups: {web: {backends: ["127.0.0.1:1"]}}
admin: {address: %q}`,
	} {
		t.Run(name, func(t *testing.T) {
			p := programOf(t, text, taken.Addr().String())
			givesBack(t, func() {
				if _, err := open(p, nil); err == nil || !strings.Contains(err.Error(), taken.Addr().String()) {
					t.Errorf("error %v, want one about %s", err, taken.Addr())
				}
			})
		})
	}
}
