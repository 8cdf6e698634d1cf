package proxyproto

import (
	"fmt"
	"net/netip"
)

// Parse reads a header at the start of b, which holds what the connection has sent so far. It keeps no part of b.
//
//   - A nil error: the header is b[:n]; the rest is the session's.
//   - [ErrIncomplete]: the answer stays the same until there are n bytes, n > len(b). A whole header may need more.
//   - [ErrAbsent]: b begins no header. Only a caller that was told to expect either (optional) may go on with b as data.
//   - any other error wraps [ErrMalformed] and says what is wrong. The connection must be closed.
//
// The answer does not depend on how the bytes were cut on their way: once it is not ErrIncomplete, more bytes do not change it.
func Parse(b []byte) (h Header, n int, err error) {
	switch {
	case len(b) == 0:
		return h, 1, ErrIncomplete
	case b[0] == signature1[0]:
		return parse1(b)
	case b[0] == signature2[0]:
		return parse2(b)
	}
	return h, 0, ErrAbsent
}

// begins compares b with a signature, as far as b goes: nil when all of it is there, else the answer of Parse.
func begins(b []byte, signature string) (n int, err error) {
	k := min(len(b), len(signature))
	switch {
	case string(b[:k]) != signature[:k]:
		return 0, ErrAbsent
	case k < len(signature):
		return k + 1, ErrIncomplete
	}
	return 0, nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// endpoint makes an Addr of a TCP address as it was sent.
func endpoint(ip netip.Addr, port uint16) Addr {
	return Addr{IP: netip.AddrPortFrom(ip.Unmap(), port)}
}
