package health

import (
	"context"
	"crypto/tls"
)

// TLS is the probe that passes when a TLS handshake does.
type TLS struct {
	Dialer Dialer
	// ServerName is sent as SNI; empty: none is sent.
	ServerName string
	// Config is used for the handshake; its ServerName, if set, beats ServerName. nil: any certificate will do, because the
	// question is whether the backend serves; who it is, is for its clients to verify.
	Config *tls.Config
}

// Probe implements [Prober].
func (p TLS) Probe(ctx context.Context, t Target) (err error) {
	c, err := p.Dialer.dial(ctx, t.Address)
	if err != nil {
		return err
	}
	defer c.end(&err)
	config := &tls.Config{InsecureSkipVerify: true}
	if p.Config != nil {
		config = p.Config.Clone()
	}
	if config.ServerName == "" {
		config.ServerName = p.ServerName
	}
	tc := tls.Client(c, config)
	if err := tc.HandshakeContext(ctx); err != nil {
		return err
	}
	_ = tc.CloseWrite() // a server that logs truncated sessions sees none
	return nil
}
