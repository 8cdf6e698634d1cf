package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"os"
	"strings"
)

// TLSOf names the key that makes sessions of a listener have TLS on a side; "": they have none.
func (c *Config) TLSOf(ln *Listener) string {
	if ln.TLS != nil {
		return "listeners." + ln.Name + ".tls"
	}
	for _, name := range ln.Groups() {
		if g := c.Groups[name]; g != nil && g.TLS != nil {
			return "groups." + name + ".tls"
		}
	}
	return ""
}

// Groups are the names of those that sessions may be sent to.
func (ln *Listener) Groups() []string {
	all := []string{ln.Group}
	for _, r := range ln.Routes {
		all = append(all, r.Group)
	}
	return all
}

func (l *ledger) terminate(t *Terminate, p path) {
	if len(t.Certificates) == 0 && !l.failed(p.to("certificates")) {
		l.key(p.to("certificates"), &wrong{"no certificate", "{cert: FILE, key: FILE}"})
	}
	for i, c := range t.Certificates {
		l.keyPair(c, p.to("certificates").at(i), true)
	}
	l.authorities(t.ClientCA, p.to("client_ca"))
	l.protocols(t.ALPN, p.to("alpn"))
}

func (l *ledger) originate(g *Group, p path) {
	t, at := g.TLS, p.to("tls")
	l.keyPair(Certificate{t.Cert, t.Key}, at, t.Cert != "" || t.Key != "")
	l.authorities(t.CA, at.to("ca"))
	l.protocols(t.ALPN, at.to("alpn"))
	if strings.HasPrefix(t.ServerName, "*.") && !l.failed(at.to("server_name")) {
		l.value(at.to("server_name"), &wrong{"not a name: " + quote(t.ServerName), "one host name, or an IP address"})
	}
	for i, b := range g.Backends {
		if b.Address.Path != "" && t.ServerName == "" && !l.failed(p.to("backends").at(i)) {
			l.key(at.to("server_name"), &wrong{"no name to verify " + quote(b.Address.String()) + " by", "a unix socket has no host"})
			break
		}
	}
	if g.SendProxy != "off" && (g.Pool.Warm > 0 || g.Pool.Reset != nil) && !l.failed(p.to("send_proxy")) {
		l.value(p.to("send_proxy"), &wrong{"set, with tls and spares", "a spare has its handshake behind it, and the PROXY header comes before that: no pool, or no send_proxy"})
	}
}

// keyPair reports files that are not a certificate and its key.
func (l *ledger) keyPair(c Certificate, p path, required bool) {
	certificate, key := l.contents(c.Cert, p.to("cert"), required), l.contents(c.Key, p.to("key"), required)
	if certificate == nil || key == nil {
		return
	}
	if block := firstCertificate(certificate); block == nil {
		l.value(p.to("cert"), &wrong{"no certificate in " + quote(c.Cert), "PEM, the server's or client's own first"})
	} else if _, err := x509.ParseCertificate(block); err != nil {
		l.value(p.to("cert"), &wrong{"not a certificate: " + quote(c.Cert) + ": " + strings.TrimPrefix(err.Error(), "x509: "), "X.509 in PEM"})
	} else if _, err := tls.X509KeyPair(certificate, key); err != nil {
		l.value(p.to("key"), &wrong{"not the key of " + quote(c.Cert) + ": " + quote(c.Key) + ": " + strings.TrimPrefix(err.Error(), "tls: "),
			"its private key, in PEM and without a password"})
	}
}

// firstCertificate is the one that belongs to the key; nil if there is none.
func firstCertificate(text []byte) []byte {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil
		}
		if block.Type == "CERTIFICATE" {
			return block.Bytes
		}
		text = rest
	}
}

// authorities reports a file without certificates.
func (l *ledger) authorities(name string, p path) {
	if text := l.contents(name, p, false); text != nil && !x509.NewCertPool().AppendCertsFromPEM(text) {
		l.value(p, &wrong{"no certificate in " + quote(name), "one or more, in PEM"})
	}
}

// contents is what is in a file; nil if it cannot be read, which is reported, or none is named.
func (l *ledger) contents(name string, p path, required bool) []byte {
	l.readable(name, p, required)
	if name == "" || l.failed(p) {
		return nil
	}
	text, err := readUpTo(name, 1<<20)
	if err != nil {
		l.value(p, &wrong{"cannot read " + quote(name) + ": " + err.Error(), "the name of a file"})
		return nil
	}
	return text
}

func readUpTo(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// protocols reports names that ALPN cannot carry.
func (l *ledger) protocols(names []string, p path) {
	for i, n := range names {
		if (n == "" || len(n) > 255) && !l.failed(p.at(i)) {
			l.value(p.at(i), &wrong{"not a protocol: " + quote(n), "1 to 255 bytes, as h2"})
		}
	}
}
