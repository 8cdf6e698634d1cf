//go:build linux

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A client is one session as its client sees it: what was planned and what came of it.
type client struct {
	request
	kind     string
	listener string
	from     netip.Addr                        // its own among all clients: the journal tells them apart by it
	begin    pace                              // how it sends
	end      pace                              // how it reads
	abort    int64                             // resets once it has read that much; 0: never
	greeted  bool                              // the backend speaks first
	witness  func(*client, *net.TCPConn) error // the whole session, with a real server

	started, ended time.Time
	sent, got      atomic.Int64 // payload
	header         int64        // bytes up before the payload
	greeting       string
	outcome        string
	done           chan struct{}

	mu    sync.Mutex
	notes []string
}

func (c *client) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.notes = append(c.notes, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// patience is how long a client waits for a session to end, beside its own pauses.
const patience = 60 * time.Second

// Kinds of sessions and how many of a hundred are of each.
var kinds = []struct {
	name  string
	share int
	plan  func(c *client, r *rand.Rand)
}{
	{"short", 42, func(c *client, r *rand.Rand) {
		c.temper, c.up, c.down = reply, r.Int64N(64<<10), r.Int64N(64<<10)
	}},
	{"numbered", 12, func(c *client, r *rand.Rand) {
		c.temper, c.up = echo64, 64*(20+r.Int64N(200))
		c.down, c.begin = c.up, pace{64, 20 * time.Millisecond}
	}},
	{"long", 2, func(c *client, r *rand.Rand) { // through several faults, reloads and upgrades when the test is long
		c.temper, c.up = echo64, 64*(10+r.Int64N(10+int64(min(*minutes, 4)*25)))
		c.down, c.begin = c.up, pace{64, 250 * time.Millisecond}
	}},
	{"bulk", 2, func(c *client, r *rand.Rand) {
		c.temper, c.up, c.down = both, r.Int64N(8<<20), r.Int64N(8<<20)
	}},
	{"slow reader", 4, func(c *client, r *rand.Rand) {
		c.temper, c.down, c.end = both, 256<<10+r.Int64N(1<<20), pace{16 << 10, 10 * time.Millisecond}
	}},
	{"slow backend", 4, func(c *client, r *rand.Rand) {
		c.temper, c.up, c.down = slow, r.Int64N(512<<10), r.Int64N(256<<10)
	}},
	{"client ends first", 6, func(c *client, r *rand.Rand) { c.temper, c.up, c.down = slow, r.Int64N(100), r.Int64N(256<<10) }},
	{"backend ends first", 6, func(c *client, r *rand.Rand) {
		c.temper, c.up, c.down, c.begin = both, r.Int64N(256<<10), r.Int64N(100), pace{4 << 10, 10 * time.Millisecond}
	}},
	{"client resets", 4, func(c *client, r *rand.Rand) {
		c.temper, c.up, c.down = both, 16<<20, 16<<20
		c.abort = 1 + r.Int64N(1<<20)
	}},
	{"backend resets", 4, func(c *client, r *rand.Rand) { c.temper, c.up, c.down = cut, 1<<20, r.Int64N(256<<10) }},
	{"greeted", 5, func(c *client, r *rand.Rand) {
		c.listener, c.greeted = "greet", true
		c.temper, c.up, c.down = reply, r.Int64N(4<<10), r.Int64N(4<<10)
	}},
	{"redis", 3, func(c *client, _ *rand.Rand) { c.listener, c.witness = "redis", (*client).askRedis }},
	{"postgres", 3, func(c *client, _ *rand.Rand) { c.listener, c.witness = "postgres", (*client).askPostgreSQL }},
	{"silent", 2, nil},
	{"garbage", 1, func(c *client, _ *rand.Rand) { c.listener = "preface" }},
}

// newClient plans the nth session; only is a kind, "" for any by their shares.
func newClient(n uint64, r *rand.Rand, only string) *client {
	c := &client{listener: "main", done: make(chan struct{}), from: netip.AddrFrom4([4]byte{127, 16 + byte(n>>16), byte(n >> 8), byte(n)})}
	c.session = n
	at := r.IntN(100)
	for _, k := range kinds {
		if only == k.name || only == "" && at < k.share {
			if c.kind = k.name; k.plan != nil {
				k.plan(c, r)
			}
			break
		}
		at -= k.share
	}
	return c
}

// run is the whole session, with the listener at address.
func (c *client) run(ctx context.Context, address string) {
	c.started = time.Now()
	defer func() {
		c.ended = time.Now()
		close(c.done)
	}()
	d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: c.from.AsSlice()}}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		c.outcome = "dial: " + err.Error()
		return
	}
	tcp := conn.(*net.TCPConn)
	tcp.SetDeadline(time.Now().Add(patience + c.begin.pauses(c.up) + c.end.pauses(c.down)))
	defer tcp.Close()
	c.note("connected from %s", conn.LocalAddr())
	switch c.kind {
	case "silent":
		c.outcome = "clean"
		return
	case "garbage":
		c.outcome = c.babble(tcp)
		return
	}
	if c.witness != nil {
		c.outcome = outcome(c.witness(c, tcp))
		c.note("%s: sent %d, got %d", c.outcome, c.sent.Load(), c.got.Load())
		return
	}
	if c.end.pause > 0 {
		tcp.SetReadBuffer(16 << 10)
	}
	c.outcome = outcome(c.exchange(tcp)...)
	c.note("%s: sent %d of %d, got %d of %d", c.outcome, c.sent.Load(), c.up, c.got.Load(), c.down)
	if c.outcome != "clean" {
		tcp.SetLinger(0)
	}
}

func (c *client) exchange(tcp *net.TCPConn) []error {
	in := bufio.NewReaderSize(tcp, 32<<10)
	if c.greeted {
		line, err := in.ReadString('\n')
		if err == io.EOF {
			err = errShort
		}
		if err != nil {
			return []error{err}
		}
		c.greeting = line
		c.note("greeted %q", line)
	}
	head := []byte(c.request.String())
	n, err := tcp.Write(head)
	if c.header = int64(n); err != nil {
		return []error{err}
	}
	sent := make(chan error, 1)
	go func() {
		err := send(tcp, upStream(c.session), c.up, c.begin, &c.sent)
		c.note("has sent %d: %v", c.sent.Load(), err)
		if err == nil && c.abort == 0 && c.temper != cut {
			err = tcp.CloseWrite()
		}
		sent <- err
	}()
	if c.abort > 0 {
		_, err = io.CopyN(check{downStream(c.session), &c.got}, in, c.abort)
		if err == io.EOF {
			err = reread(tcp, errShort)
		}
		tcp.SetLinger(0)
		c.note("resets")
		tcp.Close()
		<-sent
		if err == nil {
			err = errAborted
		}
		return []error{err}
	}
	err = receive(in, downStream(c.session), c.down, c.end, &c.got)
	if err != nil {
		err = reread(tcp, err)
		tcp.SetWriteDeadline(time.Now()) // nobody waits for the rest
		<-sent
		return []error{err}
	}
	return []error{<-sent}
}

var errAborted = errors.New("aborted")

// check is a writer that compares what it gets with a stream.
type check struct {
	*stream
	got *atomic.Int64
}

func (k check) Write(b []byte) (int, error) {
	k.got.Add(int64(len(b)))
	return len(b), k.check(b)
}

// askPostgreSQL is a session with PostgreSQL.
func (c *client) askPostgreSQL(tcp *net.TCPConn) error {
	return newPostgresClient(tcp, &c.sent, &c.got).visit(strconv.FormatUint(mix(c.session), 16))
}

// askRedis sets a name and a key in Redis. The name must not be there yet: it would be another client's.
func (c *client) askRedis(tcp *net.TCPConn) error {
	value := strconv.FormatUint(mix(c.session), 16)
	in := bufio.NewReader(tcp)
	for _, x := range []struct{ command, reply string }{
		{"CLIENT GETNAME", "$-1\r\n"},
		{"CLIENT SETNAME c" + value, "+OK\r\n"},
		{"SET " + value + " " + value + " EX 60", "+OK\r\n"},
		{"GET " + value, fmt.Sprintf("$%d\r\n%s\r\n", len(value), value)},
	} {
		n, err := io.WriteString(tcp, x.command+"\r\n")
		c.sent.Add(int64(n))
		if err != nil {
			return err
		}
		reply := make([]byte, len(x.reply))
		if n, err = io.ReadFull(in, reply); n == 0 && err == io.EOF || err == io.ErrUnexpectedEOF {
			err = errShort
		}
		c.got.Add(int64(n))
		if err != nil {
			return err
		}
		if string(reply) != x.reply {
			return fmt.Errorf("%s is answered by %q", x.command, reply)
		}
	}
	return nil
}

// babble sends what no preface is. Nothing may come back.
func (c *client) babble(tcp *net.TCPConn) string {
	junk := make([]byte, 300)
	upStream(c.session).fill(junk)
	n, err := tcp.Write(junk)
	if c.header = int64(n); err != nil {
		return outcome(err)
	}
	b, err := io.ReadAll(tcp)
	if len(b) > 0 {
		return fmt.Sprintf("bad: garbage is answered by %q", b)
	}
	if err == nil {
		return "closed"
	}
	return outcome(err)
}

// planned reports whether the session ended as it was planned to.
func (c *client) planned() bool {
	switch {
	case c.kind == "garbage":
		return c.outcome == "reset" || c.outcome == "closed"
	case c.abort > 0:
		return strings.HasSuffix(c.outcome, errAborted.Error())
	case c.temper == cut:
		return c.outcome == "reset"
	}
	return c.outcome == "clean"
}
