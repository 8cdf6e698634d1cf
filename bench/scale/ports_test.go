//go:build linux

package scale

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// ports is how many local ports the kernel may choose from in these tests.
const ports = 200

// lastRange is the first port of the range that was last set. Ports stay in TIME_WAIT for a minute after a test, so each test has others.
var lastRange = 10000

func setPortRange(t *testing.T) {
	t.Helper()
	if lastRange += ports; lastRange > 65000 {
		lastRange = 10000
	}
	sysctl(t, "ipv4/ip_local_port_range", fmt.Sprintf("%d %d", lastRange, lastRange+ports-1))
}

// Clients come over unix sockets and take no port. A port is used for one connection to each backend address from each source address.
func TestPortsForOneBackendAddressAreTheRange(t *testing.T) {
	const first, second = "192.0.2.1:7000", "192.0.2.2:7000"
	for _, tt := range []struct {
		name   string
		groups []string // each has a listener
		want   int
	}{
		{"one backend address", []string{`backends: ["` + first + `"]`}, ports},
		{"one source address", []string{`backends: ["` + first + `"], source_address: 192.0.2.11`}, ports},
		{"two backend addresses", []string{`backends: ["` + first + `", "` + second + `"]`}, 2 * ports},
		{"two backend addresses, one source address", []string{`backends: ["` + first + `", "` + second + `"], source_address: 192.0.2.11`}, 2 * ports},
		{"two groups with a source address each", []string{
			`backends: ["` + first + `"], source_address: 192.0.2.11`, `backends: ["` + first + `"], source_address: 192.0.2.12`}, 2 * ports},
	} {
		t.Run(tt.name, func(t *testing.T) {
			needNamespace(t)
			setPortRange(t)
			serveBackend(t, first)
			serveBackend(t, second)
			p := startGroups(t, tt.groups)
			var sessions []net.Conn
			defer func() {
				for _, c := range sessions {
					c.Close()
				}
			}()
			backends := strings.Count(strings.Join(tt.groups, ""), ":7000")
			for i := range tt.groups {
				for {
					c, err := open("unix", p.socket(i), new(net.Dialer))
					if err != nil {
						break
					}
					sessions = append(sessions, c)
				}
			}
			if len(sessions) != tt.want {
				t.Errorf("%d sessions with %d ports, want %d", len(sessions), ports, tt.want)
			}
			if n := p.metric("tproxy_connect_attempts_total", `result="local"`); n == 0 {
				t.Error("no connect failed for want of a port")
			}
			if n := p.metric("tproxy_backend_up", ""); n != backends {
				t.Errorf("%d of %d backends are up: one was blamed", n, backends)
			}
			// The backend ends one first, so that its side has the TIME_WAIT, and the port is free.
			if err := ask(sessions[0], opQuit); err != nil {
				t.Fatal(err)
			}
			if n, err := sessions[0].Read(make([]byte, 1)); n > 0 || err != io.EOF {
				t.Fatalf("%d bytes and %v in place of the end", n, err)
			}
			sessions[0].Close()
			eventually(t, patience, "the port of an ended session serves another", func() bool {
				c, err := open("unix", p.socket(0), new(net.Dialer))
				if err != nil {
					return false
				}
				sessions = append(sessions, c)
				return true
			})
		})
	}
}

// startGroups runs a proxy with a listener for each group.
func startGroups(t *testing.T, groups []string) *proxy {
	t.Helper()
	var listeners, all strings.Builder
	for i, g := range groups {
		fmt.Fprintf(&listeners, "  l%d: {address: \"unix:DIR/l%d\", group: g%d}\n", i, i, i)
		fmt.Fprintf(&all, "  g%d: {%s, health: {probe: none}}\n", i, g)
	}
	return startProxy(t, "listeners:\n"+listeners.String()+"groups:\n"+all.String())
}

// socket is where listener i is.
func (p *proxy) socket(i int) string { return filepath.Join(p.dir, fmt.Sprintf("l%d", i)) }

// The side whose FIN is the first keeps the port for a minute; the proxy passes FINs on, so towards the backend it is first whenever the client was.
func TestTimeWaitTakesPortsWhenClientsEndFirst(t *testing.T) {
	needNamespace(t)
	setPortRange(t)
	sysctl(t, "ipv4/tcp_tw_reuse", "0")
	serveBackend(t, "192.0.2.1:7000")
	p := startGroups(t, []string{`backends: ["192.0.2.1:7000"]`})
	visit := func(op byte) bool {
		c, err := net.Dial("unix", p.socket(0))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if ask(c, op) != nil {
			return false
		}
		if op == opEcho { // the client's FIN is the first
			if err := c.(*net.UnixConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Fatal("a byte in place of the end")
		}
		return true
	}
	for i := range 3 * ports {
		if !visit(opQuit) {
			t.Fatalf("session %d, ended by the backend, had no port", i)
		}
	}
	visits := 0
	for visits <= ports && visit(opEcho) {
		visits++
	}
	if visits != ports {
		t.Errorf("%d sessions that the client ended, with %d ports, want as many", visits, ports)
	}
	if n := p.metric("tproxy_backend_up", ""); n != 1 {
		t.Error("the backend was blamed")
	}
	sysctl(t, "ipv4/tcp_tw_reuse", "1")
	eventually(t, patience, "with tcp_tw_reuse a port serves again after a second", func() bool { return visit(opEcho) })
}

// Without IP_BIND_ADDRESS_NO_PORT a source address takes a port for good when it is bound, whatever it then connects to. This is the control of the
// test above, with sockets of package net, which does not set it.
func TestSourceAddressBoundWithAPortSharesItWithNoOtherBackend(t *testing.T) {
	needNamespace(t)
	setPortRange(t)
	backends := []string{serveBackend(t, "192.0.2.1:7000"), serveBackend(t, "192.0.2.2:7000")}
	d := net.Dialer{Control: bindWithPort}
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}()
	for _, address := range slices.Concat(slices.Repeat(backends[:1], ports/2), slices.Repeat(backends[1:], 2*ports)) {
		c, err := d.Dial("tcp", address)
		if err != nil {
			break
		}
		held = append(held, c)
	}
	if len(held) != ports {
		t.Errorf("%d connections to two addresses with %d ports, want as many as ports", len(held), ports)
	}
}
