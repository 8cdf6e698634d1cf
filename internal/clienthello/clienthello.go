// Package clienthello reads what a TLS client asks for, without taking part in the handshake: the server name (SNI) and
// the protocols (ALPN) of its ClientHello; and it finds the route whose names match. It opens no socket and decrypts
// nothing: [Peek] looks at the bytes that have come so far, and the caller delivers them unchanged.
//
// With Encrypted Client Hello the name is that of the outer hello, the one a proxy is meant to see.
package clienthello

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/cryptobyte"
)

// MaxSize bounds the bytes of a ClientHello, its records' headers included. crypto/tls takes messages of as many. Hellos have 200 to
// 600 bytes, 1.8 KB with the post-quantum key shares of today's browsers and up to 40 KB with the largest that are talked
// about (FrodoKEM-1344, beside others); one TLS record ends at 16 KiB. A client makes us hold no more than it has sent.
const MaxSize = 64 << 10

// What Peek may say of bytes that are no whole ClientHello.
var (
	// ErrIncomplete: so far these may begin a ClientHello.
	ErrIncomplete = errors.New("TLS ClientHello: more bytes are needed")
	// ErrNotTLS: the client speaks something else (an SSL 2.0 hello too).
	ErrNotTLS = errors.New("not TLS")
	// ErrMalformed is wrapped by the error for bytes that begin as TLS and break its rules.
	ErrMalformed = errors.New("malformed TLS ClientHello")
)

// A Hello is what a client asks for.
type Hello struct {
	// ServerName is the host name in lower case without a dot at its end, "" if the client named none. It consists of 1 to 255
	// printable ASCII characters without space, which makes it safe to write and to compare; a hello with any other name
	// (NUL, control characters, bytes of other alphabets) is malformed, as it is for OpenSSL.
	ServerName string
	// ALPN are the protocols in the client's order, as it sent them: any bytes, GREASE included.
	ALPN []string
}

// Peek looks for a ClientHello at the start of b, which holds what the client has sent so far. It keeps no part of b.
//
//   - A nil error: h is what the client asks for in b[:n].
//   - [ErrIncomplete]: no hello is whole before there are n bytes, n > len(b). A whole one may need more. A caller that looks
//     again when there are n, not earlier, looks few times however the client cuts its bytes, and still knows a client that
//     speaks something else by its first byte or its second.
//   - [ErrNotTLS]: no byte more will make it TLS.
//   - any other error wraps [ErrMalformed] and says what is wrong.
//
// How the message is cut, into reads or into TLS records, makes no difference.
func Peek(b []byte) (h Hello, n int, err error) {
	message, n, err := message(b)
	if err != nil {
		return h, n, err
	}
	if err := h.read(message[4:]); err != nil {
		return Hello{}, 0, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return h, n, nil
}

// Extensions that are read.
const (
	serverNameExtension = 0
	alpnExtension       = 16
)

// read takes h from the body of a ClientHello.
func (h *Hello) read(body cryptobyte.String) error {
	var session, suites, compression, extensions cryptobyte.String
	if !body.Skip(2+32) || // legacy_version, random
		!body.ReadUint8LengthPrefixed(&session) || !body.ReadUint16LengthPrefixed(&suites) || !body.ReadUint8LengthPrefixed(&compression) {
		return errors.New("wrong lengths before the extensions")
	}
	if body.Empty() {
		return nil // before TLS 1.2 they may be missing
	}
	if !body.ReadUint16LengthPrefixed(&extensions) || !body.Empty() {
		return errors.New("wrong length of the extensions")
	}
	named, offered := false, false
	for !extensions.Empty() {
		var kind uint16
		var data cryptobyte.String
		if !extensions.ReadUint16(&kind) || !extensions.ReadUint16LengthPrefixed(&data) {
			return errors.New("wrong length of an extension")
		}
		switch kind {
		case serverNameExtension:
			if named {
				return errors.New("two server_name extensions")
			}
			named = true
			if err := h.readServerName(data); err != nil {
				return err
			}
		case alpnExtension:
			if offered {
				return errors.New("two ALPN extensions")
			}
			offered = true
			if err := h.readALPN(data); err != nil {
				return err
			}
		}
	}
	return nil
}

// readServerName reads the extension of RFC 6066, section 3: a list with at most one name of each type. host_name is the
// only type there is.
func (h *Hello) readServerName(data cryptobyte.String) error {
	var list cryptobyte.String
	if !data.ReadUint16LengthPrefixed(&list) || list.Empty() || !data.Empty() {
		return errors.New("wrong length of the server names")
	}
	named := false
	for !list.Empty() {
		var kind uint8
		var name cryptobyte.String
		if !list.ReadUint8(&kind) || !list.ReadUint16LengthPrefixed(&name) || name.Empty() {
			return errors.New("wrong length of a server name")
		}
		if kind != 0 {
			continue
		}
		if named {
			return errors.New("two host names")
		}
		named = true
		if h.ServerName = fold(string(name)); !printable(h.ServerName) {
			return fmt.Errorf("server name %.80q", []byte(name))
		}
	}
	return nil
}

// readALPN reads the extension of RFC 7301, section 3.1.
func (h *Hello) readALPN(data cryptobyte.String) error {
	var list cryptobyte.String
	if !data.ReadUint16LengthPrefixed(&list) || list.Empty() || !data.Empty() {
		return errors.New("wrong length of the ALPN protocols")
	}
	for !list.Empty() {
		var protocol cryptobyte.String
		if !list.ReadUint8LengthPrefixed(&protocol) || protocol.Empty() {
			return errors.New("wrong length of an ALPN protocol")
		}
		h.ALPN = append(h.ALPN, string(protocol))
	}
	return nil
}

// Name is a server name that somebody else read from a ClientHello, in the form of Hello.ServerName. It wraps [ErrMalformed] for what is none;
// "" is the name of a client that sent none.
func Name(s string) (string, error) {
	name := fold(s)
	if s != "" && !printable(name) {
		return "", fmt.Errorf("%w: server name %.80q", ErrMalformed, s)
	}
	return name, nil
}

// fold is how names are compared: in lower case (of ASCII, as in DNS), without one dot at the end.
func fold(name string) string {
	name = strings.TrimSuffix(name, ".")
	for i := range len(name) {
		if c := name[i]; 'A' <= c && c <= 'Z' {
			return lower(name)
		}
	}
	return name
}

func lower(name string) string {
	b := []byte(name)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// printable says whether name has 1 to 255 bytes, each a character that one sees.
func printable(name string) bool {
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' {
			return false
		}
	}
	return 1 <= len(name) && len(name) <= 255
}
