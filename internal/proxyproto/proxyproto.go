// Package proxyproto reads and writes headers of the PROXY protocol, versions 1 and 2, as HAProxy's specification
// (proxy-protocol.txt) defines them. It opens no socket: [Parse] works on the bytes that have come so far, [Append] makes
// the bytes to send.
//
//	for {
//		h, n, err := proxyproto.Parse(got)
//		switch {
//		case err == nil:
//			return h, got[n:], nil // what follows belongs to the session
//		case err != proxyproto.ErrIncomplete:
//			return h, nil, err
//		}
//		// read until there are at least n bytes
//	}
//
// The parser of github.com/pires/go-proxyproto v0.15.0 is not used. Tried on the vectors of this package's tests it refuses
// every v1 header that does not come in one read (a cut at 33 of the 37 places of a common TCP4 line), takes a header with
// malformed TLVs or a wrong CRC32C, takes a lone CR in an UNKNOWN line, and refuses a LOCAL header with a family it does not
// know, which the specification says to ignore. Its writer is the oracle of our tests.
package proxyproto

import (
	"errors"
	"net/netip"
)

// MaxSize is the size in bytes of the longest header that is read or written. Version 2 could have 65,551; what is known of
// real senders fits in less than 2,100 (a client certificate among the TLVs), and every byte here is one that a stranger
// makes us hold.
const MaxSize = 4096

// What Parse may say of bytes that are no whole valid header.
var (
	// ErrIncomplete: so far these may begin a header.
	ErrIncomplete = errors.New("PROXY header: more bytes are needed")
	// ErrAbsent: these bytes begin no PROXY header of any version; it may be another protocol.
	ErrAbsent = errors.New("no PROXY header")
	// ErrMalformed is wrapped by the error for a header that breaks the specification.
	ErrMalformed = errors.New("malformed PROXY header")
)

// A Header says who the client of a connection is, in the sender's words. Headers are comparable.
type Header struct {
	Version uint8 // 1 or 2

	// Local: the header names no client, and the connection's own addresses hold. It is so for LOCAL, UNKNOWN and UNSPEC,
	// and for a unix connection with no name at either end. Source and Destination are zero then.
	Local bool

	// Source is the client, Destination where it connected to: both TCP, or both unix. A unix client has often no
	// name and so a zero Source.
	Source, Destination Addr

	// What TLVs of version 2 say; "" without one. Parse takes them as they come: they are the sender's bytes, to be
	// escaped where they are shown.
	Authority string // the host name the client asked for (SNI)
	ALPN      string // the protocol in use above TCP or TLS
}

// An Addr is one end of a connection; the zero Addr is unknown. It converts to reactor.Addr, which has the same fields.
type Addr struct {
	IP   netip.AddrPort // never IPv4-mapped, without zone
	Path string         // of a unix socket; a leading @ is an abstract name
}

// TLV types that are read or written here.
const (
	typeALPN      = 0x01
	typeAuthority = 0x02
	typeCRC32C    = 0x03
)

// Version 2: protocol and family byte.
const (
	familyUnspec = 0x00
	familyTCP4   = 0x11
	familyUDP4   = 0x12
	familyTCP6   = 0x21
	familyUDP6   = 0x22
	familyUnix   = 0x31
	familyUnixDG = 0x32
)

// Version 2: version and command byte.
const (
	commandLocal = 0x20
	commandProxy = 0x21
)

const (
	signature1 = "PROXY"
	signature2 = "\r\n\r\n\x00\r\nQUIT\n"

	prefix2  = len(signature2) + 4 // signature, command, family, length
	unixPath = 108                 // bytes for one path in version 2
)
