//go:build linux

package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// writePair makes a certificate for names, which it signs itself: stem.pem and stem.key.
func writePair(t *testing.T, stem string, names ...string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{stem + ".pem": {Type: "CERTIFICATE", Bytes: der}, stem + ".key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o644); err != nil { // a Redis of another user reads them
			t.Fatal(err)
		}
	}
}

// answerLine is a backend that answers the first line and ends.
func answerLine(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				line, _ := bufio.NewReader(c).ReadString('\n')
				io.WriteString(c, "answer to "+line)
			}()
		}
	}()
	return ln.Addr().String()
}

// askOpenSSL sends a line with s_client and returns all it prints until the server ends.
func askOpenSSL(t *testing.T, address string, options ...string) string {
	t.Helper()
	cmd := exec.Command(need(t, "openssl", "openssl"), append([]string{"s_client", "-connect", address}, options...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	io.WriteString(in, "hello\n")
	defer time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() }).Stop()
	out, _ := cmd.CombinedOutput() // its status says only that the server ended first
	return string(out)
}

func TestOpenSSLClients(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	writePair(t, file("web"), "web.example")
	writePair(t, file("client"), "client")
	writePair(t, file("stranger"), "stranger")
	p := runProxy(t, 1024, fmt.Sprintf(`
listeners:
  main:
    address: "127.0.0.1:0"
    tls: {certificates: [{cert: %[1]s/web.pem, key: %[1]s/web.key}], alpn: [h2, line]}
  closed:
    address: "127.0.0.1:0"
    group: main
    tls: {certificates: [{cert: %[1]s/web.pem, key: %[1]s/web.key}], client_ca: %[1]s/client.pem, min_version: "1.3"}
groups: {main: {backends: [%[2]q]}}
log: {format: json, sessions: {close: false}}
drain: {timeout: 1s}
`, dir, answerLine(t)))
	addresses := map[string]string{}
	for _, l := range p.status().Listeners {
		addresses[l.Name] = l.Addresses[0]
	}
	verified := []string{"-CAfile", file("web.pem"), "-servername", "web.example", "-verify_hostname", "web.example", "-verify_return_error"}
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		session := file("session" + version)
		for _, test := range []struct {
			options []string
			want    string
		}{
			{[]string{"-sess_out", session, "-alpn", "line"}, "New, TLSv1."}, {[]string{"-sess_in", session}, "Reused, TLSv1."}, {[]string{"-alpn", "line,x"}, "ALPN protocol: line"},
		} {
			out := askOpenSSL(t, addresses["main"], append(append(test.options, version), verified...)...)
			if !strings.Contains(out, test.want) || !strings.Contains(out, "answer to hello") {
				t.Errorf("%s %s: %q is missing in\n%s", version, test.options, test.want, out)
			}
		}
		if out := askOpenSSL(t, addresses["main"], "-alpn", "x", version); !strings.Contains(out, "alert no application protocol") || strings.Contains(out, "answer") {
			t.Errorf("%s: no protocol in common:\n%s", version, out)
		}
	}
	for who, want := range map[string]string{"client": "answer to hello", "stranger": "alert unknown ca", "": "alert certificate required"} {
		options := verified
		if who != "" {
			options = append([]string{"-cert", file(who + ".pem"), "-key", file(who + ".key")}, verified...)
		}
		if out := askOpenSSL(t, addresses["closed"], options...); !strings.Contains(out, want) || strings.Contains(out, "answer") != (who == "client") {
			t.Errorf("a client with the certificate %q: %q is missing in\n%s", who, want, out)
		}
	}
	if out := askOpenSSL(t, addresses["closed"], "-tls1_2"); !strings.Contains(out, "alert protocol version") {
		t.Errorf("TLS 1.2 where 1.3 is the least:\n%s", out)
	}

	writePair(t, file("web"), "web.example")
	eventually(t, soon, "the new certificate is served", func() bool {
		return strings.Contains(askOpenSSL(t, addresses["main"], verified...), "answer to hello")
	})
}

// TestRedisTLS passes through by server name, and begins at the proxy, with its certificate.
func TestRedisTLS(t *testing.T) {
	server, cli := need(t, "redis-server", "redis-server"), need(t, "redis-cli", "redis-tools")
	dir := t.TempDir()
	writePair(t, filepath.Join(dir, "redis"), "redis.example")
	writePair(t, filepath.Join(dir, "proxy"), "proxy")
	ca := filepath.Join(dir, "ca.pem")
	var both []byte
	for _, name := range []string{"redis", "proxy"} {
		text, err := os.ReadFile(filepath.Join(dir, name+".pem"))
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, text...)
	}
	if err := os.WriteFile(ca, both, 0o644); err != nil {
		t.Fatal(err)
	}
	host, port := freeAddress(t)
	launch(t, syscall.SIGTERM, exec.Command(server, "--bind", host, "--port", "0", "--tls-port", port, "--save", "", "--appendonly", "no", "--dir", dir,
		"--tls-cert-file", filepath.Join(dir, "redis.pem"), "--tls-key-file", filepath.Join(dir, "redis.key"), "--tls-ca-cert-file", ca, "--tls-auth-clients", "yes"))
	eventually(t, soon, "Redis accepts", func() bool { return accepts(host, port) })
	p := runProxy(t, 1024, fmt.Sprintf(`
listeners:
  through: {address: "127.0.0.1:0", routes: [{sni: [redis.example], group: through}, {sni: [other.example], reject: true}]}
  plain: {address: "127.0.0.1:0", group: begun}
groups:
  through: {backends: [%[1]q]}
  begun: {backends: [%[1]q], tls: {server_name: redis.example, ca: %[2]s/redis.pem, cert: %[2]s/proxy.pem, key: %[2]s/proxy.key}, health: {probe: send_expect, send: "PING\r\n", expect: "+PONG"}}
log: {format: json, sessions: {close: false}}
drain: {timeout: 1s}
`, net.JoinHostPort(host, port), dir))
	addresses := map[string]string{}
	for _, l := range p.status().Listeners {
		addresses[l.Name] = l.Addresses[0]
	}
	_, through, _ := net.SplitHostPort(addresses["through"])
	_, plain, _ := net.SplitHostPort(addresses["plain"])
	if got := run(t, cli, "-h", "127.0.0.1", "-p", through, "--tls", "--sni", "redis.example", "--cacert", ca, "--insecure",
		"--cert", filepath.Join(dir, "proxy.pem"), "--key", filepath.Join(dir, "proxy.key"), "ping"); got != "PONG\n" {
		t.Errorf("passing through: %q", got)
	}
	if got := run(t, cli, "-h", "127.0.0.1", "-p", plain, "ping"); got != "PONG\n" {
		t.Errorf("begun at the proxy: %q", got)
	}
	if n := p.metric("tproxy_probes_total", `result="failed"`); n > 0 {
		t.Errorf("%v probes failed", n)
	}
}
