//go:build unix

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/tproxy/tproxy/internal/handover"
)

// TestUpgradeMayBeginTLSTowardsBackends of a listener that ran on event loops, which no reload can: the successor serves its socket by
// goroutines.
func TestUpgradeMayBeginTLSTowardsBackends(t *testing.T) {
	lines, err := startLineServers("plain")
	if err != nil {
		t.Fatal(err)
	}
	defer lines.stop()
	pair := writePair(t, filepath.Join(t.TempDir(), "backend"), "backend.test")
	certificate, err := tls.LoadX509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	secure, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	defer serving.Wait()
	defer secure.Close()
	serving.Go(func() {
		for {
			c, err := secure.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				b := make([]byte, len("ECHO x\n"))
				if _, err := io.ReadFull(c, b); err == nil {
					c.Write([]byte("secure\n"))
				}
			})
		}
	})
	configure := func(backend, more string) program {
		return programOf(t, `
listeners: {web: {address: "127.0.0.1:0"}}
groups: {web: {backends: [%q], health: {probe: none}%s}}
admin: {address: ""}
drain: {timeout: 1ms, spread: false}
`, backend, more)
	}
	old, err := open(configure(lines.addresses[0].(map[string]any)["address"].(string), ""), nil)
	if err != nil {
		t.Fatal(err)
	}
	old.start()
	address := old.addresses("web")[0].String()
	if got := answer(t, address); got != "x" {
		t.Errorf("before: %q", got)
	}
	begins := configure(secure.Addr().String(), fmt.Sprintf(", tls: {ca: %q, server_name: backend.test}", pair.Cert))
	if _, err := old.change(t.Context(), begins.config, false); err == nil {
		t.Fatal("a reload did it: what is an upgrade for?")
	}
	sockets, err := old.sockets()
	if err != nil {
		t.Fatal(err)
	}
	inherited, err := handover.Receive(sockets...)
	if err != nil {
		t.Fatal(err)
	}
	successor, err := open(begins, inherited)
	if err != nil {
		t.Fatal(err)
	}
	successor.start()
	defer successor.close()
	if got := successor.addresses("web")[0].String(); got != address {
		t.Errorf("the successor listens on %s, not on %s", got, address)
	}
	old.replaced.Store(true)
	old.drain(context.Background())
	if got := answer(t, address); got != "secure" {
		t.Errorf("after: %q", got)
	}
}

// answer is what comes back for a line.
func answer(t *testing.T, address string) string {
	t.Helper()
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	got, err := (&peer{Conn: nc, in: bufio.NewReader(nc)}).ask("ECHO x")
	if err != nil {
		t.Fatal(err)
	}
	return got
}
