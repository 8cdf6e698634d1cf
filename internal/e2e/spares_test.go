//go:build linux

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/stage"
)

// A spare that a backend's greeting waits in serves one client, and each greeting is of another connection.
func TestSpareServesOneClient(t *testing.T) {
	n := 1000
	if *minutes > 0 {
		n = 10000
	}
	s := newStorm(t, 2, func(b []*server) string {
		return fmt.Sprintf(`
listeners: {greet: {address: "127.0.0.1:0", group: main}}
groups: {main: {backends: [{name: b1, address: %q}, {name: b2, address: %q}], pool: {warm: 16, refill_rate: 0}}}
drain: {timeout: 1s}
`, b[0].greets, b[1].greets)
	})
	r := rand.New(rand.NewPCG(s.seed, 2))
	room := make(chan struct{}, 32)
	for range n {
		room <- struct{}{}
		c := s.begin(t.Context(), r, "greeted")
		go func() { <-c.done; <-room }()
	}
	s.settle()
	seen := make(map[string]uint64)
	for _, c := range s.ledger.clients {
		if other, ok := seen[c.greeting]; ok {
			t.Errorf("clients %d and %d both got %q", other, c.session, c.greeting)
		}
		seen[c.greeting] = c.session
	}
	pools := make(map[string]int)
	for _, records := range readJournal(t, s.journal) {
		pools[records[0].Pool]++
	}
	t.Logf("%d sessions, %d connections, of which %v", n, len(seen), pools)
	if pools["hit"] < n/10 || pools["reused"] > 0 {
		t.Errorf("sessions by pool: %v", pools)
	}
}

// A backend that ends connections on which nothing came for a moment ends spares just when they are taken.
func TestSpareThatDiesAtHandOverIsReplaced(t *testing.T) {
	n := 1000
	if *minutes > 0 {
		n = 5000
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	var cut atomic.Int64
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				c.SetReadDeadline(time.Now().Add(time.Duration(rand.Int64N(int64(30 * time.Millisecond)))))
				line, err := bufio.NewReader(c).ReadString('\n')
				if err != nil {
					cut.Add(1)
					return
				}
				io.WriteString(c, line)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		serving.Wait()
	})
	s := newStorm(t, 0, func([]*server) string {
		return fmt.Sprintf(`
listeners: {main: {address: "127.0.0.1:0", group: main}}
groups: {main: {backends: [{name: b, address: %q}], pool: {warm: 8, refill_rate: 0}, health: {probe: none}}}
drain: {timeout: 1s}
`, ln.Addr())
	})
	var clients sync.WaitGroup
	var failed sync.Map // client to what it saw
	room := make(chan struct{}, 16)
	for range n {
		room <- struct{}{}
		clients.Go(func() {
			defer func() { <-room }()
			c := newClient(s.next.Add(1), rand.New(rand.NewPCG(s.seed, 2)), "silent")
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: c.from.AsSlice()}}
			conn, err := d.Dial("tcp", s.at["main"])
			if err != nil {
				t.Errorf("client %s: %v", c.from, err)
				return
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			want := fmt.Sprintf("hello %d\n", c.session)
			if _, err = io.WriteString(conn, want); err == nil {
				var got string
				if got, err = bufio.NewReader(conn).ReadString('\n'); got != want && got != "" {
					t.Errorf("client %s: %q is answered by %q", c.from, want, got)
				}
			}
			if err != nil {
				failed.Store(c.from, err)
			}
		})
	}
	clients.Wait()
	eventually(t, soon, "all sessions are over", func() bool { return s.active() == 0 })
	eventually(t, soon, "the journal has every session", func() bool { return len(readJournal(t, s.journal)) == n })
	failures, pools := 0, make(map[string]int)
	for from, records := range readJournal(t, s.journal) {
		pools[records[0].Pool]++
		err, bad := failed.Load(from)
		if !bad {
			continue
		}
		failures++
		if records[0].Up == 0 {
			t.Errorf("client %s failed (%v) though none of its bytes was written: %+v", from, err, records)
		}
	}
	t.Logf("%d clients, the backend ended %d connections, %d clients failed after their bytes were written; pool %v", n, cut.Load(), failures, pools)
	if pools["hit"] == 0 {
		t.Error("no session had a spare")
	}
}

// Sockets of spares that the kernel ends cost no client anything, at whatever moment.
func TestDestroyedSparesAreReplaced(t *testing.T) {
	need(t, "ss", "iproute2")
	if !stage.Apart() {
		t.Skip("needs a network namespace of its own")
	}
	s := newStorm(t, 1, func(b []*server) string {
		return fmt.Sprintf(`
listeners: {greet: {address: "127.0.0.1:0", group: main}}
groups: {main: {backends: [{name: b1, address: %q}], pool: {warm: 8, refill_rate: 0}}}
drain: {timeout: 1s}
`, b[0].greets)
	})
	host, port, _ := net.SplitHostPort(s.servers[0].greets)
	r := rand.New(rand.NewPCG(s.seed, 2))
	for range 20 {
		eventually(t, soon, "the spares are there", func() bool { return s.metric("tproxy_pool_spares", "") == 8 })
		run(t, "ss", "-K", "-Htn", "state", "established", "dst", host, "dport", "=", port)
		for range 4 {
			s.begin(t.Context(), r, "greeted")
		}
		s.running.Wait()
	}
	s.settle()
	if down := s.metric("tproxy_backend_up", ""); down != 1 {
		t.Error("the backend was blamed")
	}
}

// redisWithReset runs a Redis and a proxy that makes its connections fit for the next client with RESET.
func redisWithReset(t *testing.T) *storm {
	t.Helper()
	host, port := startRedis(t)
	return newStorm(t, 0, func([]*server) string {
		return fmt.Sprintf(`
listeners: {main: {address: "127.0.0.1:0", group: main}}
groups: {main: {backends: ["%s"], pool: {reset: {send: "RESET\r\n", expect: "+RESET\r\n", timeout: 1s}}}}
drain: {timeout: 1s}
`, net.JoinHostPort(host, port))
	})
}

// What one client leaves behind on a connection to Redis, the next one does not see.
func TestReusedRedisConnectionHasNoState(t *testing.T) {
	s := redisWithReset(t)
	clients := 300
	if *minutes > 0 {
		clients = 5000
	}
	dice := rand.New(rand.NewPCG(s.seed, 4))
	connections := make(map[string]int)
	for i := range clients {
		func() {
			conn, err := net.Dial("tcp", s.at["main"])
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			in := bufio.NewReader(conn)
			say := func(command string) string {
				if _, err := io.WriteString(conn, command+"\r\n"); err != nil {
					t.Fatalf("client %d, %s: %v", i, command, err)
				}
				line, err := in.ReadString('\n')
				if err != nil {
					t.Fatalf("client %d, %s: %v", i, command, err)
				}
				if line[0] == '$' && line != "$-1\r\n" { // a bulk string
					if line, err = in.ReadString('\n'); err != nil {
						t.Fatalf("client %d, %s: %v", i, command, err)
					}
				}
				return strings.TrimSpace(line)
			}
			if name := say("CLIENT GETNAME"); name != "" && name != "$-1" {
				t.Errorf("client %d has the name %q of another", i, name)
			}
			if v := say("GET witness"); v != "$-1" { // it is in database 3 only
				t.Errorf("client %d is in the database of another: %q", i, v)
			}
			connections[say("CLIENT ID")]++
			say(fmt.Sprintf("CLIENT SETNAME c%d", i))
			say("SELECT 3")
			say("SET witness 1")
			switch dice.IntN(4) {
			case 0:
				say("MULTI")
				say("SET never 1")
			case 1:
				say("SUBSCRIBE channel")
			case 2: // leaves without its answers
				io.WriteString(conn, strings.Repeat("GET witness\r\n", 1+dice.IntN(100)))
			}
		}()
	}
	eventually(t, soon, "all sessions are over", func() bool { return s.active() == 0 })
	reused := 0
	for _, n := range connections {
		reused += n - 1
	}
	t.Logf("%d clients, %d of them on a connection that served another", clients, reused)
	if reused < clients/10 {
		t.Errorf("%d of %d clients were on a connection that served another: nothing is reused", reused, clients)
	}
}

// A connection is used again only when the reset exchange succeeded to the byte and in time.
func TestConnectionIsReusedOnlyAfterItsReset(t *testing.T) {
	for name, tt := range map[string]struct {
		answer string // to RESET
		late   string // a moment after it
		after  time.Duration
		close  bool
		reused bool
	}{
		"the expected reply":    {answer: "+RESET\n", reused: true},
		"old replies before it": {answer: "+OK\n+OK\n+RESET\n", reused: true},
		"another reply":         {answer: "-ERR\n"},
		"a part of it":          {answer: "+RES"},
		"more after it":         {answer: "+RESET\n+MORE\n"},
		"more a moment later":   {answer: "+RESET\n", late: "+MORE\n"},
		"too late":              {answer: "+RESET\n", after: 400 * time.Millisecond},
		"no reply":              {after: time.Minute},
		"closed":                {close: true},
		"closed after it":       {answer: "+RESET\n", close: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			const clients = 6
			var serving sync.WaitGroup
			stop, late := make(chan struct{}), make(chan struct{}, clients)
			serving.Go(func() {
				for number := 1; ; number++ {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					serving.Go(func() {
						defer c.Close()
						for in := bufio.NewScanner(c); in.Scan(); {
							if in.Text() != "RESET" {
								fmt.Fprintf(c, "%d\n", number)
								continue
							}
							select {
							case <-time.After(tt.after):
							case <-stop:
							}
							io.WriteString(c, tt.answer)
							if tt.close {
								return
							}
							if tt.late != "" {
								time.Sleep(20 * time.Millisecond)
								io.WriteString(c, tt.late)
								late <- struct{}{}
							}
						}
					})
				}
			})
			t.Cleanup(func() { // after the proxy, which may have spares
				ln.Close()
				close(stop)
				serving.Wait()
			})
			p := runProxy(t, 1024, fmt.Sprintf(`
listeners: {main: {address: "127.0.0.1:0", group: main}}
groups: {main: {backends: [%q], health: {probe: none}, pool: {reset: {send: "RESET\n", expect: "+RESET\n", timeout: 200ms}}}}
drain: {timeout: 1s}
`, ln.Addr()))
			address := p.status().Listeners[0].Addresses[0]
			connections := make(map[string]int)
			for range clients {
				c, err := net.Dial("tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				c.SetDeadline(time.Now().Add(5 * time.Second))
				fmt.Fprintln(c, "who")
				line, err := bufio.NewReader(c).ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(line, "+") {
					t.Errorf("a client got %q, which was another's", line)
				}
				connections[line]++
				c.Close()
				// The slot is given back when the exchange is over, well or ill.
				eventually(t, soon, "the backend's slot is free", func() bool {
					return p.active() == 0 && p.status().Groups[0].Backends[0].Active == 0
				})
				if tt.late != "" {
					eventually(t, soon, "the backend has said more", func() bool { return len(late) > 0 })
					<-late
					eventually(t, soon, "it is no spare", func() bool { return p.status().Groups[0].Backends[0].Spares == 0 })
				}
			}
			if reused := len(connections) < clients; reused != tt.reused {
				t.Errorf("%d clients had %d connections", clients, len(connections))
			}
		})
	}
}
