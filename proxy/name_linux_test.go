package proxy_test

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/tproxy/tproxy/proxy"
)

// After a failed connect to a name it is the turn of its next address, looked up anew or not.
func TestNameWithADeadAddress(t *testing.T) {
	eachEngine(t, func(t *testing.T, e *proxy.Engine) {
		address := newEcho(t)
		_, port, _ := net.SplitHostPort(address)
		resolve(t, "127.0.0.3", "127.0.0.2", "127.0.0.1") // all of 127/8 is here, and nobody listens on the first two
		r := newRig(t, e, net.JoinHostPort("backend.test", port)).start()
		c := r.dial()
		roundTrip(t, c, "hello")
		finish(t, c)
		r.tells(`
			1 accept
			1 connect_failed g/b1 attempts=1: connection refused
			1 connect_failed g/b1 attempts=2: connection refused
			1 open g/b1 attempts=3
			1 close g/b1 attempts=3 up=5 down=5 half=client client_fin
		`)
	})
}

// resolve makes every name have these IPv4 addresses until the end of the test.
func resolve(t *testing.T, addresses ...string) {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 512)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			server.WriteTo(answer(buf[:n], addresses), from)
		}
	}()
	before := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
	t.Cleanup(func() {
		net.DefaultResolver = before
		server.Close()
		<-done
	})
}

// answer is the reply to a DNS query of one question (RFC 1035, 4.1): its addresses to one of type A, nothing to others.
func answer(query []byte, addresses []string) []byte {
	end := 12
	for query[end] != 0 {
		end += int(query[end]) + 1
	}
	kind := binary.BigEndian.Uint16(query[end+1:])
	reply := append([]byte(nil), query[:end+5]...)
	reply[2], reply[3] = 0x84, 0 // an authoritative answer
	if kind != 1 {
		addresses = nil
	}
	for i, n := range []int{1, len(addresses), 0, 0} {
		binary.BigEndian.PutUint16(reply[4+2*i:], uint16(n))
	}
	for _, a := range addresses {
		reply = append(reply, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4) // the name in the question, A, IN, 1 s
		reply = append(reply, netip.MustParseAddr(a).AsSlice()...)
	}
	return reply
}
