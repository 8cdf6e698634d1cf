package clienthello

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// A wire is a connection that gives what it was made with and keeps what is written to it.
type wire struct {
	in, out bytes.Buffer
}

func (w *wire) Read(p []byte) (int, error)       { return w.in.Read(p) }
func (w *wire) Write(p []byte) (int, error)      { return w.out.Write(p) }
func (w *wire) Close() error                     { return nil }
func (w *wire) LocalAddr() net.Addr              { return nil }
func (w *wire) RemoteAddr() net.Addr             { return nil }
func (w *wire) SetDeadline(time.Time) error      { return nil }
func (w *wire) SetReadDeadline(time.Time) error  { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// sent is the first flight of a crypto/tls client.
func sent(t testing.TB, c *tls.Config) []byte {
	t.Helper()
	w := new(wire)
	if err := tls.Client(w, c).Handshake(); !errors.Is(err, io.EOF) {
		t.Fatalf("client: %v", err)
	}
	return w.out.Bytes()
}

// served is what a crypto/tls server makes of the bytes; nil if it takes them for no ClientHello.
func served(b []byte) (hello *tls.ClientHelloInfo) {
	w := new(wire)
	w.in.Write(b)
	stop := errors.New("seen")
	_ = tls.Server(w, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		hello = h
		return nil, stop
	}}).Handshake()
	return hello
}

// A crafted hello, for what crypto/tls does not send.
type crafted struct {
	name       string // "" for no extension
	alpn       []string
	padding    int    // bytes in an extension before the others
	extensions string // raw, after the others
}

func extension(kind uint16, data string) string {
	b := binary.BigEndian.AppendUint16(nil, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
	return string(b) + data
}

func serverNames(entries ...string) string {
	var list string
	for _, e := range entries {
		list += e
	}
	return extension(serverNameExtension, string([]byte{byte(len(list) >> 8), byte(len(list))})+list)
}

func hostName(name string) string { return serverName(0, name) }

func serverName(kind byte, name string) string {
	return string([]byte{kind, byte(len(name) >> 8), byte(len(name))}) + name
}

func protocols(list string) string {
	return extension(alpnExtension, string([]byte{byte(len(list) >> 8), byte(len(list))})+list)
}

// message is the handshake message.
func (c crafted) message() []byte {
	var list string
	if c.padding > 0 {
		list += extension(21, string(make([]byte, c.padding)))
	}
	if c.name != "" {
		list += serverNames(hostName(c.name))
	}
	if c.alpn != nil {
		var names string
		for _, p := range c.alpn {
			names += string([]byte{byte(len(p))}) + p
		}
		list += protocols(names)
	}
	list += extension(43, "\x04\x03\x04\x03\x03") + c.extensions // supported_versions
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, 32)
	body = append(body, make([]byte, 32)...)
	body = append(body, 0, 2, 0x13, 0x01, 1, 0)
	body = binary.BigEndian.AppendUint16(body, uint16(len(list)))
	body = append(body, list...)
	return handshake(clientHello, body)
}

func handshake(kind byte, body []byte) []byte {
	m := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	m[0] = kind
	return append(m, body...)
}

// records puts a message into TLS records, cut at these offsets of it and where a record is full.
func records(message []byte, cuts ...int) []byte {
	var b []byte
	slices.Sort(cuts)
	at := 0
	for _, cut := range append(cuts, len(message)) {
		for at < min(cut, len(message)) {
			end := min(cut, len(message), at+maxRecord)
			b = append(b, handshakeRecord, 3, 1, byte((end-at)>>8), byte(end-at))
			b = append(b, message[at:end]...)
			at = end
		}
	}
	return b
}

func (c crafted) bytes() []byte { return records(c.message()) }

// echConfig is an ECHConfigList with a key that nobody has.
func echConfig(t testing.TB, publicName string) []byte {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var b cryptobyte.Builder
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16(0xfe0d)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint8(1)       // config id
			b.AddUint16(0x0020) // DHKEM(X25519, HKDF-SHA256)
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(key.PublicKey().Bytes()) })
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(1); b.AddUint16(1) }) // HKDF-SHA256, AES-128-GCM
			b.AddUint8(0)                                                                             // maximum name length
			b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(publicName)) })
			b.AddUint16(0) // extensions
		})
	})
	return b.BytesOrPanic()
}
