package reactor

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FuzzSockaddr: an address that the kernel is told comes back as the same one.
func FuzzSockaddr(f *testing.F) {
	for _, s := range []string{
		"127.0.0.1:80", "[::1]:65535", ":5432", "0.0.0.0:0", "[::ffff:10.0.0.1]:443", "[fe80::1%1]:80", "[fe80::1%lo]:80", "[fe80::1%nowhere]:80", "[::1%4294967295]:1",
		"unix:/tmp/s", "unix:relative", "unix:@abstract", "unix:@", "unix:/" + strings.Repeat("x", 106), "unix:/" + strings.Repeat("x", 107), "unix:a\x00b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddr(s)
		if err != nil {
			return
		}
		var rsa unix.RawSockaddrAny
		n := a.encode(&rsa)
		if a.IsUnix() {
			switch fits := len(a.Path) < len(unix.RawSockaddrUnix{}.Path); {
			case fits != (n > 0):
				t.Fatalf("%q has length %d", a, n)
			case !fits:
				return
			}
		}
		want := a
		if !a.IsUnix() {
			ip := a.IP.Addr().Unmap()
			if zone := scopeID(ip.Zone()); zone != 0 {
				ip = ip.WithZone(strconv.FormatUint(uint64(zone), 10))
			} else {
				ip = ip.WithZone("")
			}
			want = TCP(netip.AddrPortFrom(ip, a.IP.Port()))
		}
		if got := decode(&rsa); got != want {
			t.Fatalf("%q became %q", want, got)
		}
	})
}

// FuzzDecode: nothing that the kernel may write does harm.
func FuzzDecode(f *testing.F) {
	for _, family := range []byte{0, unix.AF_UNIX, unix.AF_INET, unix.AF_INET6} {
		f.Add([]byte{family})
		f.Add(append([]byte{family, 0}, strings.Repeat("\xff", unix.SizeofSockaddrAny-2)...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var rsa unix.RawSockaddrAny
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&rsa)), unix.SizeofSockaddrAny), b)
		a := decode(&rsa)
		if a.IsValid() && a.String() == "" {
			t.Fatalf("%#v has no text", a)
		}
		if a.IsValid() && !a.IsUnix() {
			if b, err := ParseAddr(a.String()); err != nil || b != a {
				t.Fatalf("%q is read as %q (%v)", a, b, err)
			}
		}
	})
}
