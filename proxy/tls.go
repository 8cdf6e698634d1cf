package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/internal/clienthello"
	"github.com/tproxy/tproxy/internal/reactor"
)

// terminate makes the TLS handshake with the client, and returns what it settled. When it fails the client has been told why, and is closed
// in order: a reset could overtake the alert.
func (x *session) terminate(ctx context.Context) (clienthello.Hello, error) {
	client := x.setup.client
	var tc *tls.Conn
	reactor.Wrap(client, func(nc net.Conn) net.Conn {
		tc = tls.Server(nc, x.route.TLS)
		return tc
	})
	if err := client.Established(ctx); err != nil {
		switch {
		case errors.Is(err, syscall.ECONNRESET):
			err = fmt.Errorf("%w: %w", errClientReset, err)
		case ctx.Err() == nil:
			client.Close()
		}
		return clienthello.Hello{}, err
	}
	settled := tc.ConnectionState()
	name, err := clienthello.Name(settled.ServerName)
	h := clienthello.Hello{ServerName: name}
	if settled.NegotiatedProtocol != "" {
		h.ALPN = []string{settled.NegotiatedProtocol}
	}
	return h, err
}

// originate makes the TLS handshake with a backend that was connected; the connection is closed when it fails.
func (g *Group) originate(ctx context.Context, conn reactor.Conn, b *backend.Backend) error {
	t, err := g.target(b)
	if err == nil {
		reactor.Wrap(conn, func(nc net.Conn) net.Conn { return tls.Client(nc, t.tls) })
		err = conn.Established(ctx)
	}
	if err != nil {
		conn.Close()
	}
	return err
}

// clientTLS is what b is greeted with.
func (g *Group) clientTLS(b *backend.Backend) *tls.Config {
	if g.TLS == nil || g.TLS.ServerName != "" {
		return g.TLS
	}
	host, _, err := net.SplitHostPort(b.Address())
	if err != nil {
		return g.TLS // a unix socket has no host
	}
	host, _, _ = strings.Cut(host, "%")
	c := g.TLS.Clone()
	c.ServerName = host
	return c
}
