package health

import (
	"cmp"
	"context"
	"crypto/tls"
)

// TLS is the probe that passes when a TLS handshake does.
type TLS struct {
	Dialer Dialer
	// ServerName is sent as SNI; empty: none is sent.
	ServerName string
	// Config is used for the handshake; its ServerName, if set, beats ServerName. nil: Dialer.TLS, and without that any certificate
	// will do, because the question is whether the backend serves; who it is, is for its clients to verify.
	Config *tls.Config
}

// Probe implements [Prober].
func (p TLS) Probe(ctx context.Context, t Target) (err error) {
	config := cmp.Or(p.Config, p.Dialer.TLS, &tls.Config{InsecureSkipVerify: true})
	if config.ServerName == "" && p.ServerName != "" {
		config = config.Clone()
		config.ServerName = p.ServerName
	}
	p.Dialer.TLS = config
	c, err := p.Dialer.dial(ctx, t.Address)
	if err != nil {
		return err
	}
	defer c.end(&err)
	return nil // closing says good-bye: a server that logs truncated sessions sees none
}
