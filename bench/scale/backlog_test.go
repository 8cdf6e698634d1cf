//go:build linux

package scale

import (
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// While the proxy does not accept, the kernel's queue keeps clients: its backlog, bounded by somaxconn, and one more. All of them are served when it goes on.
func TestBacklogHoldsClientsWhileTheProxyStandsStill(t *testing.T) {
	sessionCounts(t)
	p := startOne(t)
	if err := syscall.Kill(p.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goOn := func() { syscall.Kill(p.pid, syscall.SIGCONT) }
	defer goOn()
	d := net.Dialer{Timeout: 500 * time.Millisecond}
	var clients []net.Conn
	defer func() {
		for _, c := range clients {
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}()
	for {
		c, err := d.Dial("tcp", listenAddress)
		if err != nil {
			break
		}
		clients = append(clients, c)
	}
	text, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if err != nil {
		t.Fatal(err)
	}
	somaxconn, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if want := min(somaxconn, 4096) + 1; len(clients) < want { // more if some were accepted before it stood still
		t.Errorf("%d clients connected, want %d", len(clients), want)
	}
	start := time.Now()
	goOn()
	for i, c := range clients {
		if err := ask(c, opEcho); err != nil {
			t.Fatalf("client %d of %d: %v", i, len(clients), err)
		}
	}
	t.Logf("%d clients waited, and were served within %v", len(clients), time.Since(start).Round(time.Millisecond))
}
