//go:build linux

package scale

import (
	"fmt"
	"net"
	"testing"
)

const (
	listenAddress  = "192.0.2.1:8000"
	backendAddress = "192.0.2.1:7000"
)

func startOne(t *testing.T) *proxy {
	t.Helper()
	serveBackend(t, backendAddress)
	return startProxy(t, `
listeners: {main: {address: "`+listenAddress+`", group: main}}
groups: {main: {backends: ["`+backendAddress+`"], health: {probe: none}}}
`)
}

// Clients and backend are on this machine, too: of a session's four sockets two are the proxy's, and so is half of what the kernel holds for it. The kernel's
// caches are the whole machine's, so a measurement counts only if they grew by four sockets a session.
func TestMemoryOfIdleSessions(t *testing.T) {
	counts := sessionCounts(t)
	p := startOne(t)
	_, end := hold(t, listenAddress, 64, new(net.Dialer)) // what the first ones make a process hold for good
	end()
	eventually(t, patience, "the first sessions are over", func() bool { return p.active() == 0 })
	empty, descriptors := steady(p.resident), p.descriptors()
	t.Log("| sessions | process, bytes each | descriptors each | kernel, bytes each | sockets' buffers, bytes each |")
	for _, n := range counts {
		for attempt := 1; ; attempt++ {
			before := caches(t)
			_, end := hold(t, listenAddress, n, new(net.Dialer))
			all := caches(t)
			each := growth(before, all, n)
			if off := each["TCP"] - 4; (off > .2 || off < -.2) && attempt < 8 {
				end()
				eventually(t, patience, "all sessions are over", func() bool { return p.active() == 0 })
				continue
			}
			resident := steady(p.resident)
			b := buffers(t, listenAddress, backendAddress)
			kernel := 0.0
			for name := range each {
				each[name] /= 2
				kernel += each[name] * float64(all[name].size)
			}
			t.Logf("| %d | %d | %.2f | %.0f | %d |", n, (resident-empty)/n, float64(p.descriptors()-descriptors)/float64(n), kernel, (b.client+b.backend)/n)
			t.Logf("%d sessions, attempt %d: %s", n, attempt, list(each, all))
			end()
			eventually(t, patience, "all sessions are over", func() bool { return p.active() == 0 })
			break
		}
	}
}

// The client's receive buffer is as small as can be, so what the backend sends waits in the proxy.
func TestMemoryOfWaitingData(t *testing.T) {
	counts := sessionCounts(t)
	p := startOne(t)
	t.Log("| sessions | sent to each | process, bytes each | descriptors each | kernel: buffer to the client | from the backend |")
	for _, n := range counts {
		waiting(t, p, n, 64<<10)
	}
}

// A reader that reads nothing of an endless stream: the kernel sizes the socket buffers, up to the third value of these.
func TestMemoryOfSlowReaders(t *testing.T) {
	sessionCounts(t)
	for _, most := range []string{"", "1048576"} {
		if most != "" {
			sysctl(t, "ipv4/tcp_rmem", "4096 131072 "+most)
			sysctl(t, "ipv4/tcp_wmem", "4096 16384 "+most)
		}
		t.Run("most="+most, func(t *testing.T) {
			p := startOne(t)
			for _, n := range []int{16, 64} {
				waiting(t, p, n, 1<<40)
			}
		})
	}
}

func waiting(t *testing.T, p *proxy, n int, size uint64) {
	t.Helper()
	empty, descriptors := steady(p.resident), p.descriptors()
	d := &net.Dialer{Control: smallWindow}
	if size > 1<<30 {
		d.Control = nil
	}
	sessions, end := hold(t, listenAddress, n, d)
	for _, c := range sessions {
		if err := send(c, opFlood, size); err != nil {
			t.Fatal(err)
		}
	}
	var b buffer
	steady(func() int {
		b = buffers(t, listenAddress, backendAddress)
		return b.client + b.backend
	})
	resident := steady(p.resident)
	t.Logf("| %d | %s | %d | %.2f | %d | %d |", n, bytesText(size), (resident-empty)/n, float64(p.descriptors()-descriptors)/float64(n), b.client/n, b.backend/n)
	end()
	eventually(t, patience, "all sessions are over", func() bool { return p.active() == 0 })
}

func bytesText(n uint64) string {
	if n > 1<<30 {
		return "no end"
	}
	return fmt.Sprintf("%d KiB", n>>10)
}
