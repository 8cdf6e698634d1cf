//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tproxy/tproxy/internal/stage"
)

// far makes a place that is a round trip away. Packets to it go into a tunnel, wait for half of the time and come back with source and
// destination changed over, as if from another machine. The error says why there can be none.
func far(t *testing.T, roundTrip time.Duration) (place, error) {
	t.Helper()
	if !stage.Apart() {
		return place{}, errors.New("needs a network namespace of its own: root, and the program ip")
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return place{}, fmt.Errorf("needs /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq("far")
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		return place{}, fmt.Errorf("may not make a tunnel: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	tunnel := os.NewFile(uintptr(fd), "tunnel")
	// Large packets, because each costs this process two system calls. The queue holds all that may come while it does not run: what was
	// dropped would not come again if it was a reset.
	for _, args := range [][]string{{"addr", "add", "10.77.0.1/24", "dev", "far"}, {"link", "set", "far", "mtu", "65000", "txqueuelen", "10000", "up"}} {
		run(t, "ip", args...)
	}
	type packet struct {
		bytes []byte
		due   time.Time
	}
	way, ended := make(chan packet, 1024), make(chan struct{})
	go func() {
		defer close(way)
		read := make([]byte, 1<<16)
		for {
			n, err := tunnel.Read(read)
			if err != nil {
				return
			}
			if n < 20 || read[0]>>4 != 4 {
				continue
			}
			b := slices.Clone(read[:n])
			var source [4]byte
			copy(source[:], b[12:16])
			copy(b[12:16], b[16:20]) // what was the destination; the checksums stay right
			copy(b[16:20], source[:])
			way <- packet{b, time.Now().Add(roundTrip / 2)}
		}
	}()
	go func() {
		defer close(ended)
		for p := range way {
			time.Sleep(time.Until(p.due))
			tunnel.Write(p.bytes)
		}
	}()
	t.Cleanup(func() {
		tunnel.Close()
		<-ended
	})
	return place{there: "10.77.0.2", here: "10.77.0.1"}, nil
}

// With spares the client of a far backend waits for one round trip, its request and the reply; without, for the connect as well. What
// HAProxy and nginx take on the same path is reported.
func TestWarmSparesSaveARoundTrip(t *testing.T) {
	const roundTrip = 20 * time.Millisecond
	away, err := far(t, roundTrip)
	if err != nil {
		t.Skip(err)
	}
	ln, err := net.Listen("tcp", net.JoinHostPort(away.here, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go echo(ln)
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	backend := net.JoinHostPort(away.there, port)

	tproxy := func(pool string) string {
		p := runProxy(t, 1024, fmt.Sprintf(`
listeners: {main: {address: "127.0.0.1:0", group: main}}
groups: {main: {backends: [%q], pool: %s}}
log: {sessions: {close: false}}
drain: {timeout: 1s}
`, backend, pool))
		p.host, p.port = p.listening()
		eventually(t, soon, "the spares are there", func() bool {
			return pool == "{}" || p.metric("tproxy_pool_spares", "") == 8
		})
		return p.address()
	}
	targets := []struct{ name, address string }{{"tproxy, warm", tproxy("{warm: 8}")}, {"tproxy, cold", tproxy("{}")}}
	for name, start := range map[string]func(*testing.T, string) string{"HAProxy": startHAProxy, "nginx": startNginxStream} {
		if address := start(t, backend); address != "" {
			targets = append(targets, struct{ name, address string }{name, address})
		}
	}
	took := make(map[string][]time.Duration)
	for range 30 {
		for _, g := range targets {
			d, err := firstByte(g.address)
			if err != nil {
				t.Fatalf("%s: %v", g.name, err)
			}
			took[g.name] = append(took[g.name], d)
		}
		<-time.After(20 * time.Millisecond) // so that a spare is refilled
	}
	median := func(name string) time.Duration {
		d := took[name]
		slices.Sort(d)
		return d[len(d)/2]
	}
	warm := median("tproxy, warm")
	for _, g := range targets {
		m := median(g.name)
		t.Logf("%-12s first byte after %5.1f ms (%.1f – %.1f); tproxy with spares takes %.2f of it", g.name, ms(m), ms(took[g.name][0]), ms(took[g.name][len(took[g.name])-1]),
			float64(warm)/float64(m))
	}
	// The least is what a busy machine disturbs least.
	if saved := took["tproxy, cold"][0] - took["tproxy, warm"][0]; saved < roundTrip*3/4 || saved > roundTrip*5/4 {
		t.Errorf("spares save %v, want a round trip of %v", saved, roundTrip)
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// firstByte is the time from the connect to the reply to one message.
func firstByte(address string) (time.Duration, error) {
	start := time.Now()
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	err = roundTrip(c)
	return time.Since(start), err
}

// startHAProxy returns where a HAProxy listens in front of backend; "" where there is none.
func startHAProxy(t *testing.T, backend string) string {
	t.Helper()
	program, err := exec.LookPath("haproxy")
	if err != nil {
		return ""
	}
	host, port := freeAddress(t)
	return startPeer(t, net.JoinHostPort(host, port), "haproxy.cfg", fmt.Sprintf(`
global
	nbthread 1
defaults
	mode tcp
	timeout connect 5s
	timeout client 1m
	timeout server 1m
listen main
	bind %s:%s
	server one %s
`, host, port, backend), func(file string) *exec.Cmd { return exec.Command(program, "-f", file) })
}

// startNginxStream likewise.
func startNginxStream(t *testing.T, backend string) string {
	t.Helper()
	program, err := exec.LookPath("nginx")
	modules, _ := filepath.Glob("/usr/lib/nginx/modules/ngx_stream_module.so")
	if err != nil || len(modules) == 0 {
		return ""
	}
	host, port := freeAddress(t)
	dir := t.TempDir()
	return startPeer(t, net.JoinHostPort(host, port), "nginx.conf", fmt.Sprintf(`
load_module %s;
daemon off;
master_process off;
pid %s/pid;
events {}
stream { server { listen %s:%s; proxy_pass %s; } }
`, modules[0], dir, host, port, backend), func(file string) *exec.Cmd {
		return exec.Command(program, "-c", file, "-p", dir, "-e", filepath.Join(dir, "error.log"))
	})
}

func startPeer(t *testing.T, address, name, config string, command func(file string) *exec.Cmd) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(strings.TrimLeft(config, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	launch(t, syscall.SIGTERM, command(file))
	eventually(t, soon, name+" serves", func() bool {
		_, err := firstByte(address)
		return err == nil
	})
	return address
}
