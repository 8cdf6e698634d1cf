package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tproxy/tproxy/internal/config"
)

// lookEvery is how often, at most, files are looked at that may have changed.
const lookEvery = time.Second

// A fromFiles is a value made of files. It is made again when they have changed; when that fails the last good one stays.
type fromFiles[T any] struct {
	names []string
	make  func() (T, error)
	told  func(error) // of each change; nil: the new value is in use

	mu     sync.Mutex
	value  T
	seen   []fs.FileInfo // of names, when value was made or could not be; nil for a file that is not there
	looked time.Time
}

func readFiles[T any](names []string, make func() (T, error), told func(error)) (*fromFiles[T], error) {
	f := &fromFiles[T]{names: slices.DeleteFunc(names, func(n string) bool { return n == "" }), make: make, told: told}
	f.seen, f.looked = f.stat(), time.Now()
	value, err := make()
	f.value = value
	return f, err
}

// get is the value. It is called for a client that waits: that costs less than a goroutine that watches.
func (f *fromFiles[T]) get() T {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.looked) >= lookEvery {
		f.look()
	}
	return f.value
}

// now looks at the files before it returns the value.
func (f *fromFiles[T]) now() T {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look()
	return f.value
}

func (f *fromFiles[T]) look() {
	f.looked = time.Now()
	files := f.stat()
	if slices.EqualFunc(files, f.seen, unchanged) {
		return
	}
	f.seen = files
	value, err := f.make()
	if err == nil {
		f.value = value
	}
	f.told(err)
}

// stat follows links: a link that was set to another file is a change.
func (f *fromFiles[T]) stat() []fs.FileInfo {
	all := make([]fs.FileInfo, len(f.names))
	for i, n := range f.names {
		if info, err := os.Stat(n); err == nil {
			all[i] = info
		}
	}
	return all
}

func unchanged(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// A terminator is the TLS of a listener. Its configuration stays the same when the files change, and with it the keys of the tickets that
// clients resume with.
type terminator struct {
	config *tls.Config
	files  *fromFiles[*tls.Config]
}

func newTerminator(listener string, c *config.Terminate, log *slog.Logger) (*terminator, error) {
	names := []string{c.ClientCA}
	for _, p := range c.Certificates {
		names = append(names, p.Cert, p.Key)
	}
	files, err := readFiles(names, func() (*tls.Config, error) { return serverTLS(c) }, tell(log, "listener", listener))
	if err != nil {
		return nil, fmt.Errorf("listeners.%s.tls: %w", listener, err)
	}
	t := &terminator{files: files}
	t.config = &tls.Config{GetConfigForClient: t.forClient}
	return t, nil
}

// forClient is the TLS that a client meets. Package tls takes a client that offers only http/1.1 where only h2 is served, as if it had offered
// nothing; RFC 7301, section 3.2, wants the alert no_application_protocol, as everywhere else.
func (t *terminator) forClient(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	c := t.files.get()
	offered := func(p string) bool { return slices.Contains(hello.SupportedProtos, p) }
	if len(c.NextProtos) == 0 || len(hello.SupportedProtos) == 0 || slices.ContainsFunc(c.NextProtos, offered) {
		return c, nil
	}
	c = c.Clone()
	c.NextProtos = []string{"none of those that were offered"}
	return c, nil
}

var tlsVersions = map[string]uint16{"1.0": tls.VersionTLS10, "1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

// serverTLS reads what c names.
func serverTLS(c *config.Terminate) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tlsVersions[c.MinVersion], NextProtos: c.ALPN}
	for _, p := range c.Certificates {
		pair, err := tls.LoadX509KeyPair(p.Cert, p.Key)
		if err != nil {
			return nil, fmt.Errorf("certificate %q with key %q: %w", p.Cert, p.Key, err)
		}
		t.Certificates = append(t.Certificates, pair)
	}
	t.GetCertificate = named(t.Certificates)
	if c.ClientCA != "" {
		authorities, err := readAuthorities(c.ClientCA)
		if err != nil {
			return nil, err
		}
		t.ClientCAs, t.ClientAuth = authorities, tls.RequireAndVerifyClientCert
	}
	return t, nil
}

// named finds the certificate that has exactly the name a client asks for. With nil package tls goes on: the first certificate that
// matches with a wildcard, then the first of all.
func named(certificates []tls.Certificate) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	byName := make(map[string][]*tls.Certificate)
	for i := range certificates {
		for _, name := range certificates[i].Leaf.DNSNames {
			byName[strings.ToLower(name)] = append(byName[strings.ToLower(name)], &certificates[i])
		}
	}
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		for _, c := range byName[strings.ToLower(hello.ServerName)] {
			if hello.SupportsCertificate(c) == nil {
				return c, nil
			}
		}
		return nil, nil
	}
}

func readAuthorities(name string) (*x509.CertPool, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: no certificate", name)
	}
	return pool, nil
}

// An originator is the TLS of a group. Its certificate follows the files by itself; the authorities follow at a reload.
type originator struct {
	config *fromFiles[*tls.Config]
}

func newOriginator(group string, c *config.Originate, log *slog.Logger) (*originator, error) {
	certificate, err := readFiles([]string{c.Cert, c.Key}, func() (*tls.Certificate, error) {
		if c.Cert == "" {
			return nil, nil
		}
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		return &pair, err
	}, tell(log, "group", group))
	if err != nil {
		return nil, fmt.Errorf("groups.%s.tls: certificate %q with key %q: %w", group, c.Cert, c.Key, err)
	}
	clientTLS := func() (*tls.Config, error) {
		t := &tls.Config{ServerName: c.ServerName, NextProtos: c.ALPN, ClientSessionCache: tls.NewLRUClientSessionCache(0)}
		if c.CA != "" {
			authorities, err := readAuthorities(c.CA)
			if err != nil {
				return nil, err
			}
			t.RootCAs = authorities
		}
		if c.Cert != "" {
			t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate.get(), nil }
		}
		return t, nil
	}
	files, err := readFiles([]string{c.CA}, clientTLS, tell(log, "group", group))
	if err != nil {
		return nil, fmt.Errorf("groups.%s.tls.ca: %w", group, err)
	}
	return &originator{files}, nil
}

// tell logs what became of changed files.
func tell(log *slog.Logger, key, name string) func(error) {
	return func(err error) {
		if err != nil {
			log.Warn("changed TLS files are no good, the old ones stay in use", key, name, "error", err)
			return
		}
		log.Info("changed TLS files are in use", key, name)
	}
}

// terminate is the TLS of a listener after a change; nil for none. What has the same configuration as before is the same.
func (i *instance) terminate(c, before *config.Listener, t *terminator) (*terminator, error) {
	switch {
	case c.TLS == nil:
		return nil, nil
	case t == nil || !reflect.DeepEqual(c.TLS, before.TLS):
		return newTerminator(c.Name, c.TLS, i.log)
	}
	t.files.now()
	return t, nil
}

// originate is that of a group, in the same way.
func (i *instance) originate(c, before *config.Group, o *originator) (*originator, error) {
	switch {
	case c.TLS == nil:
		return nil, nil
	case o == nil || !reflect.DeepEqual(c.TLS, before.TLS):
		return newOriginator(c.Name, c.TLS, i.log)
	}
	o.config.now()
	return o, nil
}

// onlyTLS reports whether every listener that sends sessions to a group has TLS on a side, and there is one.
func onlyTLS(c *config.Config, group string) bool {
	used := false
	for _, l := range c.Listeners {
		if !slices.Contains(l.Groups(), group) {
			continue
		}
		if c.TLSOf(l) == "" {
			return false
		}
		used = true
	}
	return used
}

// errBeginsTLS is about a reload.
var errBeginsTLS = errors.New("TLS cannot begin on a listener that runs without (restart or upgrade)")
