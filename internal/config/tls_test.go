package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// writePair makes a certificate, stem.pem, and its key, stem.key.
func writePair(t *testing.T, stem string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: filepath.Base(stem)}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = stem+".pem", stem+".key"
	for name, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestTLSFilesAreChecked(t *testing.T) {
	dir := t.TempDir()
	cert, key := writePair(t, filepath.Join(dir, "a"))
	_, other := writePair(t, filepath.Join(dir, "b"))
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("no PEM\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	terminate := func(cert, key, more string) string {
		return listenerWith("    tls: {certificates: [{cert: " + cert + ", key: " + key + "}]" + more + "}")
	}
	for name, c := range map[string]struct {
		text string
		want []string // key, what is wrong and what would be right
	}{
		"a listener's":     {terminate(cert, key, ", client_ca: "+cert+", min_version: '1.3', alpn: [h2]"), nil},
		"a group's":        {groupWith("    tls: {ca: " + cert + ", cert: " + cert + ", key: " + key + ", alpn: [h2]}"), nil},
		"a group's, as is": {groupWith("    tls: {server_name: db}"), nil},
		"no certificate": {terminate(text, key, ""), []string{
			`listeners.web.tls.certificates[0].cert: no certificate in "` + text + `" (PEM, the server's or client's own first)`}},
		"not a certificate": {terminate(broken, key, ""), []string{
			`listeners.web.tls.certificates[0].cert: not a certificate: "` + broken + `": malformed certificate (X.509 in PEM)`}},
		"another's key": {terminate(cert, other, ""), []string{
			`listeners.web.tls.certificates[0].key: not the key of "` + cert + `": "` + other + `": private key does not match public key (its private key, in PEM and without a password)`}},
		"no key": {groupWith("    tls: {cert: " + cert + ", key: " + text + "}"), []string{
			`groups.web.tls.key: not the key of "` + cert + `": "` + text + `": failed to find any PEM data in key input (its private key, in PEM and without a password)`}},
		"no authority": {groupWith("    tls: {ca: " + text + "}"), []string{`groups.web.tls.ca: no certificate in "` + text + `" (one or more, in PEM)`}},
		"no clients' authority": {terminate(cert, key, ", client_ca: "+text), []string{
			`listeners.web.tls.client_ca: no certificate in "` + text + `" (one or more, in PEM)`}},
		"no such version": {terminate(cert, key, ", min_version: '1.4'"), []string{
			`listeners.web.tls.min_version: not known: "1.4" (one of 1.0, 1.1, 1.2, 1.3)`}},
		"no protocol": {terminate(cert, key, `, alpn: [""]`), []string{`listeners.web.tls.alpn[0]: not a protocol: "" (1 to 255 bytes, as h2)`}},
		"every name":  {groupWith(`    tls: {server_name: "*.internal"}`), []string{`groups.web.tls.server_name: not a name: "*.internal" (one host name, or an IP address)`}},
		"no name": {strings.Replace(groupWith("    tls: {alpn: [h2]}"), `"127.0.0.1:9001"`, `"unix:/run/db"`, 1), []string{
			`groups.web.tls.server_name: no name to verify "unix:/run/db" by (a unix socket has no host)`}},
		"epoll, with TLS at the listener": {strings.Replace(terminate(cert, key, ""), "    tls:", "    engine: epoll\n    tls:", 1), []string{
			`listeners.web.engine: "epoll" does not do TLS, and listeners.web.tls is set (auto or portable)`}},
		"epoll, with TLS at the backend": {strings.Replace(groupWith("    tls: {server_name: db}"), "    group: web", "    engine: epoll\n    group: web", 1), []string{
			`listeners.web.engine: "epoll" does not do TLS, and groups.web.tls is set (auto or portable)`}},
		"spares behind a header": {groupWith("    tls: {server_name: db}\n    send_proxy: v2\n    pool: {warm: 2}"), []string{
			`groups.web.send_proxy: set, with tls and spares (a spare has its handshake behind it, and the PROXY header comes before that: no pool, or no send_proxy)`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("f.yaml", []byte(c.text), Options{})
			var got []string
			for _, m := range Mistakes(err) {
				got = append(got, m.Key+": "+m.Text)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("(-want +got)\n%s\n%s", d, c.text)
			}
		})
	}
}
