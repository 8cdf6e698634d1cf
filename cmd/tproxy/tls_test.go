package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/config"
)

// writePair makes a certificate for names, which it signs itself, and returns the files. It replaces those that are there.
func writePair(t *testing.T, stem string, names ...string) config.Certificate {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial, DNSNames: names, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	pair := config.Certificate{Cert: stem + ".pem", Key: stem + ".key"}
	replace(t, pair.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	replace(t, pair.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
	return pair
}

func replace(t *testing.T, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(name+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

// shake makes a handshake with server and returns what the client knows after it.
func shake(t *testing.T, server, client *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0") // a pipe has no room for what both sides send first
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		defer far.Close()
		far.SetDeadline(time.Now().Add(time.Minute))
		s := tls.Server(far, server)
		err := s.Handshake()
		s.Write([]byte("x")) // with the tickets
		served <- err
	}()
	near.SetDeadline(time.Now().Add(time.Minute))
	client.InsecureSkipVerify = true
	c := tls.Client(near, client)
	err = c.Handshake()
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	near.Close()
	<-served
	return c.ConnectionState(), err
}

func newListenerTLS(t *testing.T, c *config.Terminate) *terminator {
	t.Helper()
	if c.MinVersion == "" {
		c.MinVersion = "1.2"
	}
	made, err := newTerminator("web", c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestCertificateIsChosenByName(t *testing.T) {
	stem := filepath.Join(t.TempDir(), "pair")
	server := newListenerTLS(t, &config.Terminate{Certificates: []config.Certificate{
		writePair(t, stem+"0", "first.example"), writePair(t, stem+"1", "*.example"), writePair(t, stem+"2", "Exact.example", "other.test"),
	}})
	for name, want := range map[string]string{
		"first.example": "first.example", "any.example": "*.example", "exact.example": "Exact.example", "EXACT.example": "Exact.example",
		"other.test": "Exact.example", "two.levels.example": "first.example", "unknown.test": "first.example", "": "first.example",
	} {
		s, err := shake(t, server.config, &tls.Config{ServerName: name})
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if got := s.PeerCertificates[0].DNSNames[0]; got != want {
			t.Errorf("%q gets the certificate of %s, want that of %s", name, got, want)
		}
	}
}

// TestNoProtocolInCommonIsAnAlert, of HTTP/1.1 where only h2 is served too.
func TestNoProtocolInCommonIsAnAlert(t *testing.T) {
	server := newListenerTLS(t, &config.Terminate{ALPN: []string{"h2", "x"}, Certificates: []config.Certificate{writePair(t, filepath.Join(t.TempDir(), "a"), "a")}})
	for _, test := range []struct {
		offer []string
		want  string
		fails bool
	}{
		{[]string{"x", "h2"}, "h2", false}, {[]string{"http/1.1", "x"}, "x", false}, {nil, "", false},
		{[]string{"y"}, "", true}, {[]string{"http/1.1"}, "", true},
	} {
		s, err := shake(t, server.config, &tls.Config{NextProtos: test.offer})
		if (err != nil) != test.fails || err == nil && s.NegotiatedProtocol != test.want {
			t.Errorf("%q: %q, %v", test.offer, s.NegotiatedProtocol, err)
		}
		if err != nil && !strings.Contains(err.Error(), "no application protocol") {
			t.Error(err)
		}
	}
}

// TestChangedCertificateIsServed within a second, and one that is no good is not.
func TestChangedCertificateIsServed(t *testing.T) {
	dir := t.TempDir()
	pair := writePair(t, filepath.Join(dir, "a"), "old")
	server := newListenerTLS(t, &config.Terminate{Certificates: []config.Certificate{pair}})
	var told []error
	server.files.told = func(err error) { told = append(told, err) }
	serves := func(want string, changes int) {
		t.Helper()
		s, err := shake(t, server.config, &tls.Config{})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.PeerCertificates[0].DNSNames[0]; got != want || len(told) != changes {
			t.Errorf("served is %s, want %s; told of %v", got, want, told)
		}
	}
	later := func() { server.files.looked = time.Now().Add(-lookEvery) }

	writePair(t, filepath.Join(dir, "a"), "new")
	server.files.looked = time.Now().Add(time.Minute) // a moment ago, however long the handshake takes
	serves("old", 0)
	later()
	serves("new", 1)

	replace(t, pair.Cert, []byte("half a file"))
	for range 3 {
		later()
		serves("new", 2)
	}
	if told[0] != nil || told[1] == nil {
		t.Errorf("told of %v", told)
	}
	os.Remove(pair.Cert)
	later()
	serves("new", 3)
	if !errors.Is(told[2], os.ErrNotExist) {
		t.Errorf("told of %v", told[2])
	}

	// A link that is set to other files, as Kubernetes does it.
	link := filepath.Join(dir, "linked")
	writePair(t, filepath.Join(dir, "b"), "second")
	writePair(t, filepath.Join(dir, "a"), "first")
	for _, name := range []string{"a", "b"} {
		for _, kind := range []string{".pem", ".key"} {
			os.Remove(link + kind)
			if err := os.Symlink(filepath.Join(dir, name+kind), link+kind); err != nil {
				t.Fatal(err)
			}
		}
		if name == "a" {
			told = nil
			server = newListenerTLS(t, &config.Terminate{Certificates: []config.Certificate{{Cert: link + ".pem", Key: link + ".key"}}})
			server.files.told = func(err error) { told = append(told, err) }
			serves("first", 0)
		}
	}
	later()
	serves("second", 1)
}

// TestResumptionSurvivesAChangeOfFiles: the keys of the tickets stay.
func TestResumptionSurvivesAChangeOfFiles(t *testing.T) {
	stem := filepath.Join(t.TempDir(), "a")
	server := newListenerTLS(t, &config.Terminate{Certificates: []config.Certificate{writePair(t, stem, "a")}})
	client := &tls.Config{ServerName: "a", ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	for i, want := range []bool{false, true, true} {
		if i == 2 {
			writePair(t, stem, "a")
			server.files.now()
		}
		if s, err := shake(t, server.config, client); err != nil || s.DidResume != want {
			t.Errorf("handshake %d: resumed %v, %v", i, s.DidResume, err)
		}
	}
}

// TestClientsNeedACertificate of the authority that the file has now.
func TestClientsNeedACertificate(t *testing.T) {
	dir := t.TempDir()
	pair, own, strange := writePair(t, filepath.Join(dir, "a"), "a"), writePair(t, filepath.Join(dir, "own"), "own"), writePair(t, filepath.Join(dir, "strange"), "strange")
	ca := filepath.Join(dir, "ca.pem")
	use := func(c config.Certificate) {
		text, err := os.ReadFile(c.Cert)
		if err != nil {
			t.Fatal(err)
		}
		replace(t, ca, text)
	}
	use(own)
	server := newListenerTLS(t, &config.Terminate{ClientCA: ca, Certificates: []config.Certificate{pair}})
	shows := func(c config.Certificate) error {
		shown, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			t.Fatal(err)
		}
		_, err = shake(t, server.config, &tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &shown, nil }})
		return err
	}
	if _, err := shake(t, server.config, &tls.Config{}); err == nil {
		t.Error("no certificate is enough")
	}
	if own, strange := shows(own), shows(strange); own != nil || strange == nil {
		t.Errorf("ours: %v, a stranger's: %v", own, strange)
	}
	use(strange)
	server.files.now()
	if own, strange := shows(own), shows(strange); own == nil || strange != nil {
		t.Errorf("after the change, the old: %v, the new: %v", own, strange)
	}
}

// TestReloadKeepsTLSThatDidNotChange, and with it tickets and spares.
func TestReloadKeepsTLSThatDidNotChange(t *testing.T) {
	dir := t.TempDir()
	pair := writePair(t, filepath.Join(dir, "a"), "a")
	text := `
listeners: {web: {address: "127.0.0.1:0", tls: {certificates: [{cert: %[1]s, key: %[2]s}]}}}
groups: {web: {backends: ["127.0.0.1:1"], tls: {ca: %[1]s}, health: {probe: none}}}
admin: {address: ""}
`
	p := programOf(t, text, pair.Cert, pair.Key)
	i, err := open(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer i.close()
	i.start()
	before := i.current.Load()
	again := programOf(t, text, pair.Cert, pair.Key).config
	if _, err := i.change(t.Context(), again, false); err != nil {
		t.Fatal(err)
	}
	after := i.current.Load()
	if before.tls["web"] != after.tls["web"] || before.groups["web"].tls != after.groups["web"].tls {
		t.Error("TLS that did not change is new")
	}
	roots := after.groups["web"].tls.config.get() // of the old file, however long ago it was looked at
	writePair(t, filepath.Join(dir, "a"), "a")
	if _, err := i.change(t.Context(), again, false); err != nil {
		t.Fatal(err)
	}
	if i.current.Load().groups["web"].tls.config.get() == roots {
		t.Error("a reload does not read the authorities again")
	}
}

// TestReloadThatBeginsTLSIsRefused where the listener runs on event loops.
func TestReloadThatBeginsTLSIsRefused(t *testing.T) {
	pair := writePair(t, filepath.Join(t.TempDir(), "a"), "a")
	const text = `
listeners: {web: {address: "127.0.0.1:0"%s}}
groups: {web: {backends: ["127.0.0.1:1"], health: {probe: none}}}
admin: {address: ""}
`
	i, err := open(programOf(t, text, ""), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer i.close()
	i.start()
	before := i.current.Load()
	_, err = i.change(t.Context(), programOf(t, text, ", tls: {certificates: [{cert: "+pair.Cert+", key: "+pair.Key+"}]}").config, false)
	if !errors.Is(err, errBeginsTLS) || !strings.HasPrefix(err.Error(), "listeners.web.tls: ") || i.current.Load() != before {
		t.Errorf("the reload: %v", err)
	}
}
