package proxyproto

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"strings"
)

// The vectors: what the specification allows and what it forbids, kind by kind.

const full6 = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"

func tcp(s string) Addr { return Addr{IP: netip.MustParseAddrPort(s)} }

func header2(command, family byte, body string) string {
	return signature2 + string([]byte{command, family, byte(len(body) >> 8), byte(len(body))}) + body
}

// proxy4 is a PROXY header over TCP4 with this after the addresses.
func proxy4(tlvs string) string { return header2(commandProxy, familyTCP4, block4+tlvs) }

func tlv(kind byte, value string) string {
	return string([]byte{kind, byte(len(value) >> 8), byte(len(value))}) + value
}

// sealed is header with the value of the CRC32C TLV at its end set right, or wrong by change.
func sealed(header string, change uint32) string {
	b := []byte(header)
	at := len(b) - 4
	binary.BigEndian.PutUint32(b[at:], 0)
	binary.BigEndian.PutUint32(b[at:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))^change)
	return string(b)
}

var (
	block4 = "\x01\x02\x03\x04\x05\x06\x07\x08\x04\x57\x08\xae" // 1.2.3.4:1111 to 5.6.7.8:2222
	block6 = "\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x02\x04\x57\x08\xae"
	mapped = strings.Repeat("\x00", 10) + "\xff\xff\x01\x02\x03\x04" + strings.Repeat("\x00", 10) + "\xff\xff\x05\x06\x07\x08\x04\x57\x08\xae"
	crc    = tlv(typeCRC32C, "\x00\x00\x00\x00")

	header4 = Header{Version: 2, Source: tcp("1.2.3.4:1111"), Destination: tcp("5.6.7.8:2222")}
	header6 = Header{Version: 2, Source: tcp("[2001:db8::1]:1111"), Destination: tcp("[2001:db8::2]:2222")}
)

func padded(path string) string { return path + strings.Repeat("\x00", unixPath-len(path)) }

func with(h Header, authority, alpn string) Header {
	h.Authority, h.ALPN = authority, alpn
	return h
}

var valid = []struct {
	name, wire string
	want       Header
}{
	{"v1 TCP4", "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", Header{Version: 1, Source: tcp("192.0.2.1:56324"), Destination: tcp("198.51.100.1:443")}},
	{"v1 TCP4 shortest", "PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", Header{Version: 1, Source: tcp("0.0.0.0:0"), Destination: tcp("0.0.0.0:0")}},
	{"v1 TCP4 longest", "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
		Header{Version: 1, Source: tcp("255.255.255.255:65535"), Destination: tcp("255.255.255.255:65535")}},
	{"v1 TCP6 shortest", "PROXY TCP6 :: :: 0 0\r\n", Header{Version: 1, Source: tcp("[::]:0"), Destination: tcp("[::]:0")}},
	{"v1 TCP6 longest", "PROXY TCP6 " + full6 + " " + full6 + " 65535 65535\r\n",
		Header{Version: 1, Source: tcp("[" + full6 + "]:65535"), Destination: tcp("[" + full6 + "]:65535")}},
	{"v1 TCP6 upper case", "PROXY TCP6 2001:DB8::A 2001:0db8::000b 1 2\r\n", Header{Version: 1, Source: tcp("[2001:db8::a]:1"), Destination: tcp("[2001:db8::b]:2")}},
	{"v1 TCP6 with an IPv4 client", "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 1 2\r\n", Header{Version: 1, Source: tcp("192.0.2.1:1"), Destination: tcp("[2001:db8::1]:2")}},
	{"v1 UNKNOWN", "PROXY UNKNOWN\r\n", Header{Version: 1, Local: true}},
	{"v1 UNKNOWN with addresses", "PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Header{Version: 1, Local: true}},
	{"v1 UNKNOWN with anything", "PROXY UNKNOWN \x00\xff what  ever \r\n", Header{Version: 1, Local: true}},
	{"v1 UNKNOWN, 107 bytes", "PROXY UNKNOWN " + full6 + " " + full6 + " 65535 65535\r\n", Header{Version: 1, Local: true}},
	{"v2 TCP4", proxy4(""), header4},
	{"v2 UDP4", header2(commandProxy, familyUDP4, block4), header4},
	{"v2 TCP6", header2(commandProxy, familyTCP6, block6), header6},
	{"v2 UDP6", header2(commandProxy, familyUDP6, block6), header6},
	{"v2 TCP6, both mapped", header2(commandProxy, familyTCP6, mapped), header4},
	{"v2 unix", header2(commandProxy, familyUnix, padded("/run/a")+padded("/run/b")),
		Header{Version: 2, Source: Addr{Path: "/run/a"}, Destination: Addr{Path: "/run/b"}}},
	{"v2 unix datagram", header2(commandProxy, familyUnixDG, padded("/run/a")+padded("/run/b")),
		Header{Version: 2, Source: Addr{Path: "/run/a"}, Destination: Addr{Path: "/run/b"}}},
	{"v2 unix, client without a name", header2(commandProxy, familyUnix, padded("")+padded("/run/b")), Header{Version: 2, Destination: Addr{Path: "/run/b"}}},
	{"v2 unix, no names", header2(commandProxy, familyUnix, padded("")+padded("")+tlv(typeAuthority, "a")), Header{Version: 2, Local: true}},
	{"v2 unix, abstract", header2(commandProxy, familyUnix, padded("\x00name")+padded("/run/b\x00rubbish")),
		Header{Version: 2, Source: Addr{Path: "@name"}, Destination: Addr{Path: "/run/b"}}},
	{"v2 unix, longest path", header2(commandProxy, familyUnix, strings.Repeat("p", 216)),
		Header{Version: 2, Source: Addr{Path: strings.Repeat("p", 108)}, Destination: Addr{Path: strings.Repeat("p", 108)}}},
	{"v2 LOCAL", header2(commandLocal, familyUnspec, ""), Header{Version: 2, Local: true}},
	{"v2 LOCAL with addresses", header2(commandLocal, familyTCP4, block4), Header{Version: 2, Local: true}},
	{"v2 LOCAL with too few bytes for its family", header2(commandLocal, familyTCP4, "zzzzzzz"), Header{Version: 2, Local: true}},
	{"v2 LOCAL of an unknown family", header2(commandLocal, 0xf7, "z"), Header{Version: 2, Local: true}},
	{"v2 LOCAL with TLVs", header2(commandLocal, familyUnspec, tlv(typeAuthority, "a.example")), Header{Version: 2, Local: true}},
	{"v2 PROXY UNSPEC", header2(commandProxy, familyUnspec, ""), Header{Version: 2, Local: true}},
	{"v2 PROXY UNSPEC with something", header2(commandProxy, familyUnspec, "something"), Header{Version: 2, Local: true}},
	{"v2 authority", proxy4(tlv(typeAuthority, "host.example")), with(header4, "host.example", "")},
	{"v2 authority of strange bytes", proxy4(tlv(typeAuthority, "a\x00\n\xff")), with(header4, "a\x00\n\xff", "")},
	{"v2 authority and ALPN", proxy4(tlv(typeALPN, "h2") + tlv(typeAuthority, "host.example")), with(header4, "host.example", "h2")},
	{"v2 TCP6 with authority", header2(commandProxy, familyTCP6, block6+tlv(typeAuthority, "h")), with(header6, "h", "")},
	{"v2 NOOP", proxy4(tlv(0x04, "123456789")), header4},
	{"v2 empty TLVs", proxy4(tlv(0x04, "") + tlv(0x04, "") + tlv(typeALPN, "")), header4},
	{"v2 unique id", proxy4(tlv(0x05, strings.Repeat("u", 128))), header4},
	{"v2 TLS details", proxy4(tlv(0x20, "\x01\x00\x00\x00\x00"+tlv(0x21, "TLSv1.3"))), header4},
	{"v2 unknown types", proxy4(tlv(0x30, "netns") + tlv(0xe0, "a") + tlv(0xff, "b")), header4},
	{"v2 CRC32C", sealed(proxy4(crc), 0), header4},
	{"v2 CRC32C among others", sealed(proxy4(tlv(typeAuthority, "host.example")+tlv(0x04, "abc")+crc), 0), with(header4, "host.example", "")},
	{"v2 longest", proxy4(tlv(0x04, strings.Repeat("n", MaxSize-prefix2-12-3))), header4},
	{"v2 longest LOCAL", header2(commandLocal, familyUnspec, strings.Repeat("n", MaxSize-prefix2)), Header{Version: 2, Local: true}},
}

// invalid headers; each is followed by more bytes, so that no answer is "more bytes are needed".
var invalid = []struct {
	name, wire string
	err        error
}{
	{"another protocol", "GET / HTTP/1.1\r\n", ErrAbsent},
	{"TLS", "\x16\x03\x01\x02\x00", ErrAbsent},
	{"first byte NUL", "\x00", ErrAbsent},
	{"v1 lower case", "proxy tcp4 1.2.3.4 5.6.7.8 1111 2222\r\n", ErrAbsent},
	{"v1 space before", " PROXY TCP4 1.2.3.4 5.6.7.8 1111 2222\r\n", ErrAbsent},
	{"v1 PROX", "PROX\r\n", ErrAbsent},
	{"v1 PROXy", "PROXy TCP4 1.2.3.4 5.6.7.8 1111 2222\r\n", ErrAbsent},
	{"v2 last byte of the signature", "\r\n\r\n\x00\r\nQUIT\r", ErrAbsent},
	{"v2 middle of the signature", "\r\n\r\n\x00\r\nQUIX\n\x21\x11\x00\x0c" + block4, ErrAbsent},
	{"v2 blank line and text", "\r\n\r\nGET /", ErrAbsent},

	{"v1 no space", "PROXY\r\n", ErrMalformed},
	{"v1 two spaces first", "PROXY  TCP4 1.2.3.4 5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 tab first", "PROXY\tTCP4 1.2.3.4 5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 PROXYjunk", "PROXYjunk TCP4 1.2.3.4 5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 no protocol", "PROXY \r\n", ErrMalformed},
	{"v1 LF at once", "PROXY \n", ErrMalformed},
	{"v1 strange protocol", "PROXY UDP4 1.2.3.4 5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 lower case protocol", "PROXY tcp4 1.2.3.4 5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 TCP4x", "PROXY TCP4x 1.2.3.4 5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 UNKNOWNx", "PROXY UNKNOWNx\r\n", ErrMalformed},
	{"v1 UNKNOWN and a tab", "PROXY UNKNOWN\t\r\n", ErrMalformed},
	{"v1 protocol alone", "PROXY TCP4\r\n", ErrMalformed},
	{"v1 protocol and a space", "PROXY TCP4 \r\n", ErrMalformed},
	{"v1 no destination", "PROXY TCP4 1.2.3.4\r\n", ErrMalformed},
	{"v1 no ports", "PROXY TCP4 1.2.3.4 5.6.7.8\r\n", ErrMalformed},
	{"v1 one port", "PROXY TCP4 1.2.3.4 5.6.7.8 1111\r\n", ErrMalformed},
	{"v1 one more field", "PROXY TCP4 1.2.3.4 5.6.7.8 1111 2222 3333\r\n", ErrMalformed},
	{"v1 space at the end", "PROXY TCP4 1.2.3.4 5.6.7.8 1111 2222 \r\n", ErrMalformed},
	{"v1 two spaces", "PROXY TCP4 1.2.3.4  5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 tab between", "PROXY TCP4 1.2.3.4\t5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 LF alone", "PROXY TCP4 1.2.3.4 5.6.7.8 1111 2222\n", ErrMalformed},
	{"v1 CR alone", "PROXY TCP4 1.2.3.4 5.6.7.8 1111 2222\r ", ErrMalformed},
	{"v1 CR CR LF", "PROXY TCP4 1.2.3.4 5.6.7.8 1111 2222\r\r\n", ErrMalformed},
	{"v1 LF CR", "PROXY TCP4 1.2.3.4 5.6.7.8 1111 2222\n\r", ErrMalformed},
	{"v1 UNKNOWN, LF alone inside", "PROXY UNKNOWN a\nb\r\n", ErrMalformed},
	{"v1 UNKNOWN, CR alone inside", "PROXY UNKNOWN a\rb\r\n", ErrMalformed},
	{"v1 108 bytes", "PROXY UNKNOWN " + strings.Repeat("a", 92) + "\r\n", ErrMalformed},
	{"v1 endless", "PROXY UNKNOWN " + strings.Repeat("a", 200), ErrMalformed},
	{"v1 endless digits", "PROXY TCP4 1.2.3.4 5.6.7.8 " + strings.Repeat("0", 200), ErrMalformed},
	{"v1 port +80", "PROXY TCP4 1.2.3.4 5.6.7.8 +80 2222\r\n", ErrMalformed},
	{"v1 port -1", "PROXY TCP4 1.2.3.4 5.6.7.8 -1 2222\r\n", ErrMalformed},
	{"v1 port 65536", "PROXY TCP4 1.2.3.4 5.6.7.8 65536 2222\r\n", ErrMalformed},
	{"v1 port of many digits", "PROXY TCP4 1.2.3.4 5.6.7.8 99999999999999999999999 2222\r\n", ErrMalformed},
	{"v1 port 0x50", "PROXY TCP4 1.2.3.4 5.6.7.8 0x50 2222\r\n", ErrMalformed},
	{"v1 port 1_0", "PROXY TCP4 1.2.3.4 5.6.7.8 1_0 2222\r\n", ErrMalformed},
	{"v1 port with a leading zero", "PROXY TCP4 1.2.3.4 5.6.7.8 01111 2222\r\n", ErrMalformed},
	{"v1 port 00", "PROXY TCP4 1.2.3.4 5.6.7.8 1111 00\r\n", ErrMalformed},
	{"v1 port empty", "PROXY TCP4 1.2.3.4 5.6.7.8  2222\r\n", ErrMalformed},
	{"v1 last port empty", "PROXY TCP4 1.2.3.4 5.6.7.8 1111 \r\n", ErrMalformed},
	{"v1 port of other digits", "PROXY TCP4 1.2.3.4 5.6.7.8 １ 2222\r\n", ErrMalformed},
	{"v1 octet 256", "PROXY TCP4 1.2.3.256 5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 octet with a leading zero", "PROXY TCP4 1.2.3.04 5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 three octets", "PROXY TCP4 1.2.3 5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 five octets", "PROXY TCP4 1.2.3.4.5 5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 dot at the end", "PROXY TCP4 1.2.3.4. 5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 empty octet", "PROXY TCP4 1..3.4 5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 number for an address", "PROXY TCP4 16909060 5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 name for an address", "PROXY TCP4 localhost 5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 IPv6 in TCP4", "PROXY TCP4 ::1 ::2 1111 2222\r\n", ErrMalformed},
	{"v1 IPv6 destination in TCP4", "PROXY TCP4 1.2.3.4 ::2 1111 2222\r\n", ErrMalformed},
	{"v1 IPv4 in TCP6", "PROXY TCP6 1.2.3.4 5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 IPv4 destination in TCP6", "PROXY TCP6 ::1 5.6.7.8 1111 2222\r\n", ErrMalformed},
	{"v1 zone", "PROXY TCP6 fe80::1%eth0 ::2 1111 2222\r\n", ErrMalformed},
	{"v1 brackets", "PROXY TCP6 [::1] [::2] 1111 2222\r\n", ErrMalformed},
	{"v1 two double colons", "PROXY TCP6 1::2::3 ::2 1111 2222\r\n", ErrMalformed},
	{"v1 nine groups", "PROXY TCP6 1:2:3:4:5:6:7:8:9 ::2 1111 2222\r\n", ErrMalformed},
	{"v1 seven groups", "PROXY TCP6 1:2:3:4:5:6:7 ::2 1111 2222\r\n", ErrMalformed},
	{"v1 five hexadecimal digits", "PROXY TCP6 12345::1 ::2 1111 2222\r\n", ErrMalformed},
	{"v1 no hexadecimal digit", "PROXY TCP6 g::1 ::2 1111 2222\r\n", ErrMalformed},

	{"v2 version 0", header2(0x01, familyTCP4, block4), ErrMalformed},
	{"v2 version 1", header2(0x11, familyTCP4, block4), ErrMalformed},
	{"v2 version 3", header2(0x31, familyTCP4, block4), ErrMalformed},
	{"v2 command 2", header2(0x22, familyTCP4, block4), ErrMalformed},
	{"v2 command 15", header2(0x2f, familyTCP4, block4), ErrMalformed},
	{"v2 family 4", header2(commandProxy, 0x41, block4), ErrMalformed},
	{"v2 family 15", header2(commandProxy, 0xf1, block4), ErrMalformed},
	{"v2 IPv4 of no protocol", header2(commandProxy, 0x10, block4), ErrMalformed},
	{"v2 protocol of no family", header2(commandProxy, 0x01, block4), ErrMalformed},
	{"v2 protocol 3", header2(commandProxy, 0x13, block4), ErrMalformed},
	{"v2 TCP4 of length 0", header2(commandProxy, familyTCP4, ""), ErrMalformed},
	{"v2 TCP4 one byte short", header2(commandProxy, familyTCP4, block4[:11]), ErrMalformed},
	{"v2 TCP6 one byte short", header2(commandProxy, familyTCP6, block6[:35]), ErrMalformed},
	{"v2 unix one byte short", header2(commandProxy, familyUnix, strings.Repeat("p", 215)), ErrMalformed},
	{"v2 UDP4 one byte short", header2(commandProxy, familyUDP4, block4[:11]), ErrMalformed},
	{"v2 too long", header2(commandProxy, familyTCP4, block4+strings.Repeat("n", MaxSize-prefix2-12+1)), ErrMalformed},
	{"v2 LOCAL too long", header2(commandLocal, familyUnspec, strings.Repeat("n", MaxSize-prefix2+1)), ErrMalformed},
	{"v2 length 0xffff", signature2 + "\x21\x11\xff\xff", ErrMalformed},
	{"v2 stray byte", proxy4("\x04"), ErrMalformed},
	{"v2 two stray bytes", proxy4("\x04\x00"), ErrMalformed},
	{"v2 stray byte after a TLV", proxy4(tlv(0x04, "a") + "\x04"), ErrMalformed},
	{"v2 TLV one byte over", proxy4("\x04\x00\x05abcd"), ErrMalformed},
	{"v2 TLV far over", proxy4("\x04\xff\xff"), ErrMalformed},
	{"v2 second TLV over", proxy4(tlv(0x04, "a") + "\x02\x00\x02a"), ErrMalformed},
	{"v2 wrong CRC32C", sealed(proxy4(crc), 1), ErrMalformed},
	{"v2 CRC32C of nothing", proxy4(crc), ErrMalformed},
	{"v2 CRC32C of 3 bytes", proxy4(tlv(typeCRC32C, "\x00\x00\x00")), ErrMalformed},
	{"v2 CRC32C of 5 bytes", proxy4(tlv(typeCRC32C, "\x00\x00\x00\x00\x00")), ErrMalformed},
	{"v2 CRC32C twice", sealed(proxy4(crc+crc), 0), ErrMalformed},
	{"v2 authority twice", proxy4(tlv(typeAuthority, "a") + tlv(typeAuthority, "b")), ErrMalformed},
	{"v2 ALPN twice", proxy4(tlv(typeALPN, "a") + tlv(typeALPN, "a")), ErrMalformed},
}
