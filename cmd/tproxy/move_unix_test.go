//go:build unix

package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/config"
)

// TestAddressMovesFromOneListenerToAnother in one reload, with the socket: a client that connects at any time is served.
func TestAddressMovesFromOneListenerToAnother(t *testing.T) {
	lines, err := startLineServers("one")
	if err != nil {
		t.Fatal(err)
	}
	defer lines.stop()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp := free.Addr().String()
	free.Close()
	dir, err := os.MkdirTemp("", "tproxy") // a short path, for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, engine := range []string{"auto", "portable"} {
		for network, address := range map[string]string{"tcp": tcp, "unix": filepath.Join(dir, engine)} {
			t.Run(engine+" "+network, func(t *testing.T) {
				text := func(listeners string) *config.Config {
					return programOf(t, `
listeners: {%s}
groups: {web: {backends: [%q], health: {probe: none}}}
admin: {address: ""}
drain: {timeout: 1ms, spread: false}
`, listeners, lines.addresses[0].(map[string]any)["address"]).config
				}
				given := address
				if network == "unix" {
					given = "unix:" + address
				}
				one := func(name string) string {
					return name + `: {address: "` + given + `", group: web, engine: ` + engine + `}`
				}
				other := `: {address: "127.0.0.1:0", group: web, engine: ` + engine + `}`
				steps := []*config.Config{text(one("b")), text(one("a") + ", b" + other), text("a" + other + ", " + one("b"))}
				taken, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer taken.Close()
				n, broken := 0, text(one("b")+`, c: {group: web, address: "`+taken.Addr().String()+`"}`)
				i, err := open(program{config: text(one("a")), log: slog.New(slog.DiscardHandler),
					load: func() (*config.Config, error) {
						if n < 0 {
							return broken, nil
						}
						return steps[n], nil
					}}, nil)
				if err != nil {
					t.Fatal(err)
				}
				i.start()
				defer func() {
					i.drain(context.Background())
					if _, err := os.Lstat(address); !errors.Is(err, os.ErrNotExist) {
						t.Errorf("the file of the socket at the end: %v", err)
					}
				}()
				n = -1
				if _, err := i.reload(context.Background(), false); !errors.Is(err, syscall.EADDRINUSE) {
					t.Fatalf("a reload that cannot be done: %v", err)
				}
				ask(t, network, address)
				for n = range steps {
					if _, err := i.reload(context.Background(), true); err != nil {
						t.Fatalf("dry run %d: %v", n, err)
					}
					ask(t, network, address)
					if _, err := i.reload(context.Background(), false); err != nil {
						t.Fatalf("reload %d: %v", n, err)
					}
					ask(t, network, address)
				}
			})
		}
	}
}

func ask(t *testing.T, network, address string) {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "ECHO x\n")
	if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
}
