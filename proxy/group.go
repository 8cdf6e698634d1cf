package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/internal/reactor"
	"github.com/tproxy/tproxy/pool"
)

// A Group is the backends that serve sessions, and how a session gets a connection to one of them. Its fields must not be
// changed once a server uses it. Several servers may share it.
type Group struct {
	// Backends chooses. Required.
	Backends *backend.Group
	Connect  Connect
	// Queue holds sessions while every backend is at its cap, in order; nil refuses them. Its Wake must be called when
	// a slot came free: call it in the function given to Backends.OnFreed.
	Queue *pool.Queue
	// Hold keeps sessions while no backend is usable, or all that are refuse, until one comes up; nil does not. Its Wake must
	// be called like that of Queue.
	Hold *pool.Queue
	// Spares are connections that sessions may take instead of dialing; nil: there are none.
	Spares *Spares
	// SendProxy is the version, 1 or 2, of the PROXY header that begins every backend connection: at the time a session
	// gets it, never earlier. 0: none.
	SendProxy int
	// TLS makes every backend connection a TLS client's; nil passes bytes as they are. The handshake is part of the connect, within
	// Connect.Timeout and after the PROXY header; a spare has it behind it. Where it has no ServerName, that is the host of the backend's
	// address.
	TLS *tls.Config
	// Source is the local address to dial from; the zero Addr lets the kernel choose.
	Source netip.Addr
	// Health is told how each connect of a session ended; nil: nobody is.
	Health Health

	targets sync.Map // *backend.Backend to *target
	known   atomic.Int64
	most    atomic.Int64 // targets of backends that left are forgotten when there are more
}

// Health learns from the connects of sessions, as a health.Watch does. Report must not block; err is nil for a success. An error may be this
// machine's fault, which health.Local tells; one that ended with its session is not reported.
type Health interface {
	Report(b *backend.Backend, err error)
}

// connected tells Health of a connect that succeeded. One to a backend that takes connections and ends them unused says nothing yet: a
// success after each such failure would hide it for ever.
func (g *Group) connected(b *backend.Backend) {
	if g.Health == nil {
		return
	}
	if t, ok := g.targets.Load(b); !ok || !t.(*target).doubtful.Load() {
		g.Health.Report(b, nil)
	}
}

// unused notes that b took a connection and ended it before a byte was exchanged.
func (g *Group) unused(b *backend.Backend) {
	if t, ok := g.targets.Load(b); ok {
		t.(*target).doubtful.Store(true)
	}
}

// answered notes that b has sent something to a client.
func (g *Group) answered(b *backend.Backend) {
	if g.Health == nil {
		return
	}
	if t, ok := g.targets.Load(b); ok && t.(*target).doubtful.Load() && t.(*target).doubtful.Swap(false) {
		g.Health.Report(b, nil)
	}
}

// Connect says how hard a session tries to reach a backend. Retrying happens nowhere else in the program.
type Connect struct {
	// Timeout is for one connect; 0 means 5 s.
	Timeout time.Duration
	// Attempts is the number of connects for one session; 0 means 3.
	Attempts int
	// Total is for all connects of a session and the waits between them; 0 means 15 s.
	Total time.Duration
	// BackoffBase is the first wait before a backend that was tried is tried again; it doubles up to BackoffMax.
	// 0 means 50 ms and 1 s.
	BackoffBase, BackoffMax time.Duration
}

func (c Connect) withDefaults() Connect {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&c.Timeout, 5*time.Second)
	set(&c.Total, 15*time.Second)
	set(&c.BackoffBase, 50*time.Millisecond)
	set(&c.BackoffMax, time.Second)
	if c.Attempts <= 0 {
		c.Attempts = 3
	}
	return c
}

// A target is where a backend is dialed. The addresses of a name are looked up when it is dialed first and again when they
// are old or the last connect failed.
type target struct {
	fixed      Addr // not zero: no name
	host, port string
	tls        *tls.Config // with a server name; nil: none
	found      atomic.Pointer[lookup]
	doubtful   atomic.Bool // it ended its last connections unused
}

type lookup struct {
	addrs []Addr
	next  atomic.Uint32
	until time.Time
	stale atomic.Bool
}

// lookupAge is how long the addresses of a name are used. Package net does not tell a record's TTL.
const lookupAge = 30 * time.Second

func (g *Group) target(b *backend.Backend) (*target, error) {
	if t, ok := g.targets.Load(b); ok {
		return t.(*target), nil
	}
	t, err := newTarget(b.Address())
	if err != nil {
		return nil, fmt.Errorf("backend %s: %w", b.Name(), err)
	}
	t.tls = g.clientTLS(b)
	actual, loaded := g.targets.LoadOrStore(b, t)
	if !loaded && g.known.Add(1) > g.most.Load() {
		g.forget()
	}
	return actual.(*target), nil
}

// forget drops the targets of backends that left the group.
func (g *Group) forget() {
	members := make(map[any]bool)
	for _, b := range g.Backends.Backends() {
		members[b] = true
	}
	g.targets.Range(func(b, _ any) bool {
		if !members[b] {
			if _, ok := g.targets.LoadAndDelete(b); ok {
				g.known.Add(-1)
			}
		}
		return true
	})
	g.most.Store(2*g.known.Load() + 16)
}

func newTarget(address string) (*target, error) {
	if strings.HasPrefix(address, "unix:") {
		a, err := reactor.ParseAddr(address)
		return &target{fixed: a}, err
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", address, err)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		p, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w", address, err)
		}
		return &target{fixed: reactor.TCP(netip.AddrPortFrom(ip, uint16(p)))}, nil
	}
	return &target{host: host, port: port}, nil
}

// addr is where to dial now; for a name with several addresses, each in turn.
func (t *target) addr(ctx context.Context) (Addr, error) {
	if t.fixed.IsValid() {
		return t.fixed, nil
	}
	l := t.found.Load()
	if l == nil || l.stale.Load() || time.Now().After(l.until) {
		fresh, err := t.lookup(ctx)
		if err == nil {
			if l != nil {
				fresh.next.Store(l.next.Load()) // the address that failed comes last
			}
			l = fresh
			t.found.Store(l)
		} else if l == nil {
			return Addr{}, err
		}
		// Otherwise the addresses that were good before are the best there is.
	}
	return l.addrs[int(l.next.Add(1)-1)%len(l.addrs)], nil
}

func (t *target) lookup(ctx context.Context) (*lookup, error) {
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", t.port)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", net.JoinHostPort(t.host, t.port), causeOr(ctx, err))
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", t.host)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", t.host, causeOr(ctx, err))
	}
	l := &lookup{until: time.Now().Add(lookupAge)}
	for _, ip := range ips {
		if ip = ip.Unmap(); ip.Is4() {
			l.addrs = append(l.addrs, reactor.TCP(netip.AddrPortFrom(ip, uint16(port))))
		}
	}
	for _, ip := range ips {
		if ip = ip.Unmap(); ip.Is6() {
			l.addrs = append(l.addrs, reactor.TCP(netip.AddrPortFrom(ip, uint16(port))))
		}
	}
	return l, nil
}

// causeOr is why ctx was done, if it was, and err otherwise.
func causeOr(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// dial makes one connection to b, near the client's, within the time of ctx.
func (g *Group) dial(ctx context.Context, e reactor.Engine, b *backend.Backend, near reactor.Conn) (reactor.Conn, error) {
	t, err := g.target(b)
	if err != nil {
		return nil, err
	}
	addr, err := t.addr(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := e.Dial(addr, near, g.source(addr))
	if err != nil {
		return nil, err
	}
	if err := conn.Established(ctx); err != nil {
		conn.Close()
		t.failed()
		return nil, err
	}
	return conn, nil
}

// source is where connections to an address come from.
func (g *Group) source(to Addr) Addr {
	if !g.Source.IsValid() || to.IsUnix() {
		return Addr{}
	}
	return reactor.TCP(netip.AddrPortFrom(g.Source, 0))
}

// failed makes the next dial of a name look it up again.
func (t *target) failed() {
	if l := t.found.Load(); l != nil {
		l.stale.Store(true)
	}
}
