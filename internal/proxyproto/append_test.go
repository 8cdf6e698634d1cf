package proxyproto

import (
	"bufio"
	"bytes"
	"net"
	"strings"
	"testing"

	oracle "github.com/pires/go-proxyproto"
)

func TestWhatIsSentIsReadBack(t *testing.T) {
	for _, tt := range valid {
		wire := Append([]byte("before"), tt.want)[len("before"):]
		h, n, err := Parse(wire)
		if h != tt.want || n != len(wire) || err != nil {
			t.Errorf("%s: sent %q, read %+v, %d, %v; want %+v", tt.name, wire, h, n, err, tt.want)
		}
	}
}

func TestHeadersOnTheWire(t *testing.T) {
	v4, w4 := tcp("192.0.2.1:56324"), tcp("198.51.100.1:443")
	v6 := tcp("[2001:db8::1]:443")
	mapped4, zoned := tcp("[::ffff:192.0.2.1]:56324"), tcp("[fe80::1%eth0]:443")
	a, b := Addr{Path: "/run/a"}, Addr{Path: "/run/b"}
	local := header2(commandLocal, familyUnspec, "")
	for _, tt := range []struct {
		name string
		h    Header
		want string
	}{
		{"v1 TCP4", Header{Version: 1, Source: v4, Destination: w4}, "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n"},
		{"v1 TCP6", Header{Version: 1, Source: v6, Destination: v6}, "PROXY TCP6 2001:db8::1 2001:db8::1 443 443\r\n"},
		{"v1 mixed", Header{Version: 1, Source: v4, Destination: v6}, "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 56324 443\r\n"},
		{"v1 mapped", Header{Version: 1, Source: mapped4, Destination: mapped4}, "PROXY TCP4 192.0.2.1 192.0.2.1 56324 56324\r\n"},
		{"v1 zone", Header{Version: 1, Source: zoned, Destination: zoned}, "PROXY TCP6 fe80::1 fe80::1 443 443\r\n"},
		{"v1 TLVs are not for it", Header{Version: 1, Source: v4, Destination: w4, Authority: "a", ALPN: "b"}, "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n"},
		{"v1 LOCAL", Header{Version: 1, Local: true, Source: v4, Destination: w4}, "PROXY UNKNOWN\r\n"},
		{"v1 unix", Header{Version: 1, Source: a, Destination: b}, "PROXY UNKNOWN\r\n"},
		{"v1 TCP and unix", Header{Version: 1, Source: v4, Destination: b}, "PROXY UNKNOWN\r\n"},
		{"v1 nothing", Header{Version: 1}, "PROXY UNKNOWN\r\n"},

		{"v2 TCP4", Header{Version: 2, Source: tcp("1.2.3.4:1111"), Destination: tcp("5.6.7.8:2222")}, proxy4("")},
		{"v2 by default", Header{Source: tcp("1.2.3.4:1111"), Destination: tcp("5.6.7.8:2222")}, proxy4("")},
		{"v2 TCP6", header6, header2(commandProxy, familyTCP6, block6)},
		{"v2 mapped", Header{Version: 2, Source: tcp("[::ffff:1.2.3.4]:1111"), Destination: tcp("5.6.7.8:2222")}, proxy4("")},
		{"v2 mixed", Header{Version: 2, Source: tcp("1.2.3.4:1111"), Destination: tcp("[2001:db8::2]:2222")},
			header2(commandProxy, familyTCP6, mapped[:16]+block6[16:])},
		{"v2 unix", Header{Version: 2, Source: a, Destination: b}, header2(commandProxy, familyUnix, padded("/run/a")+padded("/run/b"))},
		{"v2 unix, client without a name", Header{Version: 2, Destination: b}, header2(commandProxy, familyUnix, padded("")+padded("/run/b"))},
		{"v2 unix, abstract", Header{Version: 2, Source: Addr{Path: "@a"}, Destination: b}, header2(commandProxy, familyUnix, padded("\x00a")+padded("/run/b"))},
		{"v2 unix, no path of a system", Header{Version: 2, Source: Addr{Path: strings.Repeat("p", 109)}, Destination: b}, local},
		{"v2 LOCAL", Header{Version: 2, Local: true, Source: v4, Destination: w4, Authority: "a"}, local},
		{"v2 TCP and unix", Header{Version: 2, Source: v4, Destination: b}, local},
		{"v2 TCP and nothing", Header{Version: 2, Source: v4}, local},
		{"v2 nothing", Header{}, local},
		{"v2 TLVs", with(header4, "host.example", "h2"), proxy4(tlv(typeALPN, "h2") + tlv(typeAuthority, "host.example"))},
		{"v2 too long a TLV", with(header4, strings.Repeat("a", 70_000), "h2"), proxy4(tlv(typeALPN, "h2"))},
	} {
		if got := string(Append(nil, tt.h)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// netAddr is a as go-proxyproto wants it.
func netAddr(a Addr) net.Addr {
	if a.IP.IsValid() {
		return net.TCPAddrFromAddrPort(a.IP)
	}
	return &net.UnixAddr{Net: "unix", Name: a.Path}
}

func TestAgreesWithGoProxyproto(t *testing.T) {
	v4, w4, v6 := tcp("192.0.2.1:56324"), tcp("198.51.100.1:0"), tcp("[2001:db8::1]:65535")
	ends := [][2]Addr{{v4, w4}, {v6, v6}, {v4, v6}, {v6, v4}, {{Path: "/run/a"}, {Path: "/run/b"}}, {{}, {Path: "/run/b"}}}
	for _, version := range []byte{1, 2} {
		for _, end := range ends {
			for _, name := range []string{"", "host.example"} {
				theirs := oracle.HeaderProxyFromAddrs(version, netAddr(end[0]), netAddr(end[1]))
				if name != "" {
					tlvs := []oracle.TLV{{Type: oracle.PP2_TYPE_ALPN, Value: []byte("h2")}, {Type: oracle.PP2_TYPE_AUTHORITY, Value: []byte(name)}}
					if err := theirs.SetTLVs(tlvs); err != nil {
						t.Fatal(err)
					}
				}
				want, err := theirs.Format()
				if err != nil {
					t.Fatal(err)
				}
				ours := Header{Version: version, Source: end[0], Destination: end[1], Authority: name}
				if name != "" {
					ours.ALPN = "h2"
				}
				got := Append(nil, ours)
				if !bytes.Equal(got, want) {
					t.Errorf("%+v: sent %q, go-proxyproto %q", ours, got, want)
				}
				read, err := oracle.Read(bufio.NewReader(bytes.NewReader(got)))
				unknown := string(got) == "PROXY UNKNOWN\r\n" // keeps nothing to compare
				if err != nil || !unknown && !read.EqualsTo(theirs) {
					t.Errorf("go-proxyproto reads %q as %+v, %v", got, read, err)
				}
			}
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, bb := range []struct {
		name string
		h    Header
	}{
		{"v1 TCP4", Header{Version: 1, Source: header4.Source, Destination: header4.Destination}},
		{"v2 TCP4", header4},
		{"v2 TCP6 TLVs", with(header6, "host.example", "h2")},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			dst := make([]byte, 0, MaxSize)
			for b.Loop() {
				dst = Append(dst[:0], bb.h)
			}
		})
	}
}
