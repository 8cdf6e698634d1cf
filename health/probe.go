package health

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/tproxy/tproxy/internal/proxyproto"
)

// A Prober asks a backend once whether it serves. nil means that it does. Probe may be called for many targets at once; it
// must return soon after ctx is done, with everything that it opened closed.
type Prober interface {
	Probe(ctx context.Context, t Target) error
}

// A Target is the backend that a probe is sent to.
type Target struct {
	Group   string
	Backend string // name
	Address string // host:port, [v6]:port or unix:/path; names are resolved at each probe
}

// A Dialer makes the connections of probes, with package net and without Multipath TCP.
type Dialer struct {
	// Port is dialed instead of the target's own; 0 is the target's own. A unix socket has none.
	Port uint16
	// Source is the local address to dial from; the zero Addr lets the kernel choose. It is not used for unix sockets.
	Source netip.Addr
	// Header is sent first.
	Header Header
	// TLS is the client of the handshake that follows, for the probes that exchange something: all but TCP. Where it has no ServerName, that is
	// the host of the target's address. nil: no TLS.
	TLS *tls.Config

	// quiet is for a connection on which nobody speaks: the handshake's last packet is delayed, see lazyACK.
	quiet bool
}

// A Header is the PROXY protocol header with which a probe begins. It names no client, because there is none.
type Header uint8

// Headers.
const (
	NoHeader Header = iota
	V1              // PROXY UNKNOWN
	V2              // LOCAL
)

var headers = [...][]byte{
	V1: proxyproto.Append(nil, proxyproto.Header{Version: 1, Local: true}),
	V2: proxyproto.Append(nil, proxyproto.Header{Version: 2, Local: true}),
}

// address splits a target's address into what package net dials.
func (d Dialer) address(a string) (network, address string, err error) {
	if path, ok := strings.CutPrefix(a, "unix:"); ok {
		return "unix", path, nil
	}
	if d.Port == 0 {
		return "tcp", a, nil
	}
	host, _, err := net.SplitHostPort(a)
	if err != nil {
		return "", "", err
	}
	return "tcp", net.JoinHostPort(host, strconv.Itoa(int(d.Port))), nil
}

// dial connects to a, sends the header and makes the handshake. Everything done with the connection ends when ctx does.
func (d Dialer) dial(ctx context.Context, a string) (*conn, error) {
	network, address, err := d.address(a)
	if err != nil {
		return nil, err
	}
	nd := net.Dialer{KeepAlive: -1}
	nd.SetMultipathTCP(false)
	if network == "tcp" {
		if d.Source.IsValid() {
			nd.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(d.Source, 0))
		}
		if d.quiet {
			nd.Control = lazyACK
		}
	}
	nc, err := nd.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc}
	c.stop = context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	if d.Header != NoHeader {
		if _, err := c.Write(headers[d.Header]); err != nil {
			c.reset()
			return nil, err
		}
	}
	if d.TLS == nil {
		return c, nil
	}
	tc := tls.Client(nc, d.client(a))
	if err := tc.HandshakeContext(ctx); err != nil {
		c.reset()
		return nil, err
	}
	c.Conn = tc
	return c, nil
}

// client is d.TLS with a name to verify.
func (d Dialer) client(a string) *tls.Config {
	host, _, err := net.SplitHostPort(a)
	if d.TLS.ServerName != "" || d.TLS.InsecureSkipVerify || err != nil {
		return d.TLS
	}
	host, _, _ = strings.Cut(host, "%")
	t := d.TLS.Clone()
	t.ServerName = host
	return t
}

// A conn is the connection of one probe. It is closed by Close or reset, once.
type conn struct {
	net.Conn
	stop func() bool
}

func (c *conn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// reset closes with RST: nothing is left of the connection, here or there.
func (c *conn) reset() {
	socket := c.Conn
	if tc, ok := socket.(*tls.Conn); ok {
		socket = tc.NetConn() // which is closed without a good-bye
	}
	if tc, ok := socket.(*net.TCPConn); ok {
		tc.SetLinger(0)
	}
	c.stop()
	socket.Close()
}

// end closes in order after a probe that passed, and with RST otherwise: a backend that does not answer
// gets rid of it at once.
func (c *conn) end(err *error) {
	if *err != nil {
		c.reset()
		return
	}
	c.Close()
}

func classify(err error) Result {
	var late net.Error
	switch {
	case err == nil:
		return Passed
	case Local(err):
		return NotRun
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &late) && late.Timeout():
		return TimedOut
	}
	return Failed
}

// TCP is the probe that passes when a connection is made. Without a header it is quiet: in Linux the backend's program is
// not even told of it, because the reset comes before the last packet of the handshake; elsewhere it accepts a
// connection that is reset at once. It makes no TLS handshake. The zero value is ready to use.
type TCP struct {
	Dialer Dialer
}

// Probe implements [Prober].
func (p TCP) Probe(ctx context.Context, t Target) error {
	p.Dialer.TLS = nil
	p.Dialer.quiet = p.Dialer.Header == NoHeader
	c, err := p.Dialer.dial(ctx, t.Address)
	if err != nil {
		return err
	}
	if !p.Dialer.quiet {
		return c.Close() // a reset could overtake the header
	}
	c.reset()
	return nil
}
