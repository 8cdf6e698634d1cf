package proxyproto

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"net/netip"
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	noSum      [4]byte // what stands in a header's place for the CRC32C while it is computed
)

func parse2(b []byte) (h Header, n int, err error) {
	if n, err := begins(b, signature2); err != nil {
		return h, n, err
	}
	h.Version = 2
	if len(b) > 12 {
		switch b[12] {
		case commandLocal:
			h.Local = true
		case commandProxy:
		default:
			return Header{}, 0, malformed("version 2: version and command 0x%02x", b[12])
		}
	}
	addresses := 0
	if len(b) > 13 && !h.Local {
		switch b[13] {
		case familyUnspec:
			h.Local = true
		case familyTCP4, familyUDP4:
			addresses = 2*4 + 2*2
		case familyTCP6, familyUDP6:
			addresses = 2*16 + 2*2
		case familyUnix, familyUnixDG:
			addresses = 2 * unixPath
		default:
			return Header{}, 0, malformed("version 2: family and protocol 0x%02x", b[13])
		}
	}
	switch {
	case len(b) < 14:
		return Header{}, len(b) + 1, ErrIncomplete
	case len(b) < prefix2:
		return Header{}, prefix2, ErrIncomplete
	}
	size := prefix2 + int(binary.BigEndian.Uint16(b[14:]))
	switch {
	case size > MaxSize:
		return Header{}, 0, malformed("version 2: %d bytes, over the limit of %d", size, MaxSize)
	case size < prefix2+addresses:
		return Header{}, 0, malformed("version 2: %d bytes for the addresses, not %d", size-prefix2, addresses)
	case len(b) < size:
		return Header{}, size, ErrIncomplete
	case h.Local:
		// The specification: discard the protocol block. With UNSPEC nobody can tell where in it addresses end.
		return h, size, nil
	}
	h.addresses(b[13], b[prefix2:])
	if err := h.tlvs(b[:size], prefix2+addresses); err != nil {
		return Header{}, 0, err
	}
	if h.Local { // unix without names
		h = Header{Version: 2, Local: true}
	}
	return h, size, nil
}

// addresses reads the address block. That of a datagram is read too: it says who the client is no less.
func (h *Header) addresses(family byte, b []byte) {
	switch family {
	case familyTCP4, familyUDP4:
		h.Source = endpoint(netip.AddrFrom4([4]byte(b)), binary.BigEndian.Uint16(b[8:]))
		h.Destination = endpoint(netip.AddrFrom4([4]byte(b[4:])), binary.BigEndian.Uint16(b[10:]))
	case familyTCP6, familyUDP6:
		h.Source = endpoint(netip.AddrFrom16([16]byte(b)), binary.BigEndian.Uint16(b[32:]))
		h.Destination = endpoint(netip.AddrFrom16([16]byte(b[16:])), binary.BigEndian.Uint16(b[34:]))
	default:
		h.Source.Path, h.Destination.Path = unixName(b[:unixPath]), unixName(b[unixPath:2*unixPath])
		h.Local = h.Source.Path == "" && h.Destination.Path == ""
	}
}

// unixName reads the sun_path of a unix socket: up to the first NUL or, when it begins with one, an abstract name.
func unixName(b []byte) string {
	if b[0] == 0 {
		if b = bytes.TrimRight(b, "\x00"); len(b) == 0 {
			return ""
		}
		return "@" + string(b[1:])
	}
	path, _, _ := bytes.Cut(b, []byte{0})
	return string(path)
}

// tlvs reads those at header[at:], which fill the header to its end. Types that mean nothing here are skipped by their length.
func (h *Header) tlvs(header []byte, at int) error {
	seen := 0 // bits for the types that are read: a second one would be a second opinion
	for at < len(header) {
		if len(header)-at < 3 {
			return malformed("version 2: %d stray bytes after the TLVs", len(header)-at)
		}
		kind, length := header[at], int(binary.BigEndian.Uint16(header[at+1:]))
		at += 3
		if length > len(header)-at {
			return malformed("version 2: TLV 0x%02x of %d bytes in the last %d", kind, length, len(header)-at)
		}
		value := header[at : at+length]
		switch kind {
		case typeALPN:
			h.ALPN = string(value)
		case typeAuthority:
			h.Authority = string(value)
		case typeCRC32C:
			if length != 4 {
				return malformed("version 2: CRC32C of %d bytes", length)
			}
			sum := crc32.Update(0, castagnoli, header[:at])
			sum = crc32.Update(sum, castagnoli, noSum[:])
			sum = crc32.Update(sum, castagnoli, header[at+4:])
			if sum != binary.BigEndian.Uint32(value) {
				return malformed("version 2: wrong CRC32C")
			}
		}
		if kind <= typeCRC32C {
			if seen&(1<<kind) != 0 {
				return malformed("version 2: TLV 0x%02x twice", kind)
			}
			seen |= 1 << kind
		}
		at += length
	}
	return nil
}

func append2(dst []byte, h Header) []byte {
	start := len(dst)
	dst = append(dst, signature2...)
	family := h.family()
	if family == familyUnspec {
		return append(dst, commandLocal, familyUnspec, 0, 0)
	}
	dst = append(dst, commandProxy, family, 0, 0)
	src, dest := h.Source.IP, h.Destination.IP
	switch family {
	case familyTCP4:
		a, b := src.Addr().Unmap().As4(), dest.Addr().Unmap().As4()
		dst = append(append(dst, a[:]...), b[:]...)
	case familyTCP6:
		a, b := src.Addr().As16(), dest.Addr().As16()
		dst = append(append(dst, a[:]...), b[:]...)
	default:
		dst = appendUnixName(appendUnixName(dst, h.Source.Path), h.Destination.Path)
	}
	if family != familyUnix {
		dst = binary.BigEndian.AppendUint16(dst, src.Port())
		dst = binary.BigEndian.AppendUint16(dst, dest.Port())
	}
	for _, tlv := range []struct {
		kind  byte
		value string
	}{{typeALPN, h.ALPN}, {typeAuthority, h.Authority}} {
		if tlv.value == "" || len(dst)-start+3+len(tlv.value) > MaxSize {
			continue
		}
		dst = append(dst, tlv.kind)
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(tlv.value)))
		dst = append(dst, tlv.value...)
	}
	binary.BigEndian.PutUint16(dst[start+14:], uint16(len(dst)-start-prefix2))
	return dst
}

// appendUnixName is the reverse of unixName, for a path of at most unixPath bytes.
func appendUnixName(dst []byte, path string) []byte {
	var block [unixPath]byte
	copy(block[:], path)
	if len(path) > 1 && path[0] == '@' {
		block[0] = 0
	}
	return append(dst, block[:]...)
}
