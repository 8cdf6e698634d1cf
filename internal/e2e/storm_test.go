//go:build linux

package e2e

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// unblamed fails the test when a backend paid for what clients or this machine did.
func (p *proxy) unblamed() {
	p.t.Helper()
	if p.metric("tproxy_backend_up", "") != 1 {
		p.t.Error("the backend was taken down")
	}
}

// quiet fails the test when the proxy uses more than a fifth of a processor for a second.
func (p *proxy) quiet() {
	p.t.Helper()
	before := p.processor()
	<-time.After(time.Second)
	if used := p.processor() - before; used > 200*time.Millisecond {
		p.t.Errorf("with nothing to do the proxy used %v of a second", used)
	}
}

func TestConnectThenResetStormLeavesNothing(t *testing.T) {
	backend := perform(t, "echo")
	p := startProxy(t, 20000, backend.said)
	if err := p.serves(); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "the first session is over", func() bool { return p.metric("tproxy_sessions_active", "") == 0 })
	before := p.descriptors()
	for i := range 2000 {
		c, err := net.Dial("tcp", p.address())
		if err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
		c.(*net.TCPConn).SetLinger(0) // Close resets
		c.Close()
	}
	start := time.Now()
	if err := p.serves(); err != nil {
		t.Fatalf("the next client: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the next client was served after %v", took)
	}
	eventually(t, soon, "all sessions are over", func() bool { return p.metric("tproxy_sessions_active", "") == 0 })
	eventually(t, soon, "descriptors are back", func() bool { return p.descriptors() <= before })
	p.unblamed()
	p.quiet()
}

func TestOutOfDescriptorsRecovers(t *testing.T) {
	backend := perform(t, "echo")
	p := startProxy(t, 1024, backend.said)
	// The limit falls while the proxy runs, below what it counted on at its start: 64 descriptors in all.
	limit := unix.Rlimit{Cur: 64, Max: 1024}
	if err := unix.Prlimit(p.cmd.Process.Pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	first, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	if err := roundTrip(first); err != nil {
		t.Fatal(err)
	}
	var clients []net.Conn
	for i := range 200 {
		c, err := p.dial()
		if err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
		clients = append(clients, c)
	}
	served := 0
	for i, c := range clients {
		wait := 5 * time.Millisecond
		if i == 0 { // there are descriptors for it
			wait = soon
		}
		c.SetReadDeadline(time.Now().Add(wait))
		if n, _ := c.Read(make([]byte, 5)); n > 0 {
			served++
		}
	}
	if served == 0 || served > 32 {
		t.Errorf("%d of 200 clients are served with 64 descriptors", served)
	}
	p.quiet()
	if err := roundTrip(first); err != nil {
		t.Errorf("the session that ran before: %v", err)
	}
	for _, c := range clients {
		c.Close()
	}
	start := time.Now()
	eventually(t, soon, "a new client is served", func() bool { return p.serves() == nil })
	t.Logf("%d clients were served with 64 descriptors; a new one %v after they left", served, time.Since(start))
	p.unblamed()
}
