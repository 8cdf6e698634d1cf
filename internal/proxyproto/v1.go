package proxyproto

import (
	"bytes"
	"net/netip"
	"strconv"
)

// maxLine is the length of the longest version 1 header with its CRLF: UNKNOWN with two full IPv6 addresses.
const maxLine = 107

func parse1(b []byte) (h Header, n int, err error) {
	if n, err := begins(b, signature1); err != nil {
		return h, n, err
	}
	if len(b) > len(signature1) && b[len(signature1)] != ' ' {
		return h, 0, malformed("version 1: no space after PROXY")
	}
	line := b[:min(len(b), maxLine)]
	i := bytes.IndexAny(line, "\r\n")
	ended := i >= 0 && i+1 < len(line)
	switch {
	case i >= 0 && line[i] == '\n', ended && line[i+1] != '\n':
		return h, 0, malformed("version 1: CR or LF alone")
	case !ended && len(line) == maxLine:
		return h, 0, malformed("version 1: no end of line in %d bytes", maxLine)
	case !ended:
		return h, len(b) + 1, ErrIncomplete
	}
	h, err = line1(b[len(signature1)+1 : i])
	if err != nil {
		return Header{}, 0, err
	}
	return h, i + 2, nil
}

// line1 reads what stands between "PROXY " and the end of the line.
func line1(line []byte) (Header, error) {
	family, rest, more := bytes.Cut(line, []byte(" "))
	var address func([]byte) (netip.Addr, bool)
	switch string(family) {
	case "UNKNOWN":
		return Header{Version: 1, Local: true}, nil // the specification: ignore anything before the CRLF
	case "TCP4":
		address = ipv4
	case "TCP6":
		address = ipv6
	default:
		return Header{}, malformed("version 1: protocol %q", family)
	}
	if !more {
		return Header{}, malformed("version 1: no addresses")
	}
	var field [4][]byte
	for i := range field[:3] {
		if field[i], rest, more = bytes.Cut(rest, []byte(" ")); !more {
			return Header{}, malformed("version 1: %d fields after the protocol, not 4", i+1)
		}
	}
	field[3] = rest
	src, ok := address(field[0])
	if !ok {
		return Header{}, malformed("version 1: %s source %q", family, field[0])
	}
	dst, ok := address(field[1])
	if !ok {
		return Header{}, malformed("version 1: %s destination %q", family, field[1])
	}
	srcPort, ok := decimal(field[2], 65535)
	if !ok {
		return Header{}, malformed("version 1: source port %q", field[2])
	}
	dstPort, ok := decimal(field[3], 65535)
	if !ok {
		return Header{}, malformed("version 1: destination port %q", field[3])
	}
	return Header{Version: 1, Source: endpoint(src, uint16(srcPort)), Destination: endpoint(dst, uint16(dstPort))}, nil
}

// decimal reads digits only, without leading zeros.
func decimal(b []byte, limit int) (v int, ok bool) {
	if len(b) == 0 || len(b) > 1 && b[0] == '0' {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		if v = v*10 + int(c-'0'); v > limit {
			return 0, false
		}
	}
	return v, true
}

// ipv4 reads four decimal numbers. (netip.ParseAddr takes the same ones, but of a string that it keeps.)
func ipv4(b []byte) (netip.Addr, bool) {
	var octets [4]byte
	for i := range octets {
		digits, rest, more := bytes.Cut(b, []byte("."))
		v, ok := decimal(digits, 255)
		if !ok || more == (i == 3) {
			return netip.Addr{}, false
		}
		octets[i], b = byte(v), rest
	}
	return netip.AddrFrom4(octets), true
}

// ipv6 reads what inet_ntop writes for the family, a dotted IPv4 address at the end too: HAProxy and nginx send
// IPv4 addresses in TCP6 lines so.
func ipv6(b []byte) (netip.Addr, bool) {
	a, err := netip.ParseAddr(string(b))
	return a, err == nil && a.Is6() && a.Zone() == ""
}

func append1(dst []byte, h Header) []byte {
	dst = append(dst, signature1...)
	src, dest := h.Source.IP, h.Destination.IP
	switch h.family() {
	case familyTCP4:
		dst = append(dst, " TCP4 "...)
		dst = src.Addr().Unmap().AppendTo(dst)
		dst = append(dst, ' ')
		dst = dest.Addr().Unmap().AppendTo(dst)
	case familyTCP6:
		dst = append(dst, " TCP6 "...)
		dst = netip.AddrFrom16(src.Addr().As16()).AppendTo(dst)
		dst = append(dst, ' ')
		dst = netip.AddrFrom16(dest.Addr().As16()).AppendTo(dst)
	default:
		return append(dst, " UNKNOWN\r\n"...)
	}
	dst = append(dst, ' ')
	dst = strconv.AppendUint(dst, uint64(src.Port()), 10)
	dst = append(dst, ' ')
	dst = strconv.AppendUint(dst, uint64(dest.Port()), 10)
	return append(dst, "\r\n"...)
}
