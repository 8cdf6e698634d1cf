package config

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// An Address is where to listen or whom to dial: a host and a port, the path of a unix socket, or an inherited
// descriptor. The zero Address is none. Addresses are comparable.
type Address struct {
	Host string // a name, or an IP address without brackets; empty: every address, both families
	Port int
	Path string // unix; a leading @ is an abstract name (Linux)
	FD   string // the name of an inherited descriptor
}

// ParseAddress parses host:port, [v6]:port, :port, unix:/path and fd:NAME. Names are not resolved.
func ParseAddress(s string) (Address, error) {
	a, w := parseAddress(s)
	if w != nil {
		return Address{}, w
	}
	return a, nil
}

// IsZero reports whether there is no address.
func (a Address) IsZero() bool { return a == Address{} }

// String is what ParseAddress reads; "" for the zero Address.
func (a Address) String() string {
	switch {
	case a.IsZero():
		return ""
	case a.Path != "":
		return "unix:" + a.Path
	case a.FD != "":
		return "fd:" + a.FD
	}
	return net.JoinHostPort(a.Host, strconv.Itoa(a.Port))
}

// Loopback reports whether only this machine reaches the address.
func (a Address) Loopback() bool {
	if a.Path != "" || strings.EqualFold(a.Host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(a.Host)
	return err == nil && ip.Unmap().IsLoopback()
}

// overlaps reports whether one process cannot listen on both: it is the same socket, or one is the wildcard of the other.
func (a Address) overlaps(b Address) bool {
	if a.Path != "" || b.Path != "" || a.FD != "" || b.FD != "" {
		return a == b
	}
	if a.Port == 0 || a.Port != b.Port {
		return false
	}
	x, y := a.ip(), b.ip()
	if !x.IsValid() || !y.IsValid() {
		return strings.EqualFold(a.Host, b.Host)
	}
	covers := func(x, y netip.Addr) bool { return x.IsUnspecified() && (x.Is6() || y.Is4()) }
	return x == y || covers(x, y) || covers(y, x)
}

// ip is the host as an IP address, the zero Addr if it is a name.
func (a Address) ip() netip.Addr {
	if a.Host == "" {
		return netip.IPv6Unspecified()
	}
	ip, err := netip.ParseAddr(a.Host)
	if err != nil {
		return netip.Addr{}
	}
	return ip.Unmap()
}

const (
	addressForms = "host:port, [v6]:port, :port, unix:/path or fd:NAME"
	// maxUnixPath is the length of sun_path in Linux (108), less its final NUL.
	maxUnixPath = 107
)

func parseAddress(s string) (Address, *wrong) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		switch {
		case path == "" || path == "@":
			return Address{}, &wrong{"no path in " + quote(s), "unix:/path"}
		case len(path) > maxUnixPath:
			return Address{}, &wrong{"path too long in " + quote(s), fmt.Sprintf("at most %d bytes", maxUnixPath)}
		case strings.ContainsRune(path, 0):
			return Address{}, &wrong{"NUL in " + quote(s), "unix:/path"}
		}
		return Address{Path: path}, nil
	}
	if name, ok := strings.CutPrefix(s, "fd:"); ok {
		if !validName(name) {
			return Address{}, &wrong{"not the name of a descriptor: " + quote(s), "fd:NAME, " + nameRule}
		}
		return Address{FD: name}, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		switch {
		case s == "":
			return Address{}, &wrong{`no address in ""`, addressForms}
		case strings.Count(s, ":") > 1 && !strings.HasPrefix(s, "["):
			return Address{}, &wrong{"an IPv6 address without brackets in " + quote(s), "[v6]:port"}
		case !strings.Contains(s, ":") || strings.HasSuffix(s, "]"):
			return Address{}, &wrong{"no port in " + quote(s), "host:port"}
		}
		return Address{}, &wrong{"not an address: " + quote(s), addressForms}
	}
	n, w := parsePort(port, s)
	if w != nil {
		return Address{}, w
	}
	if w := checkHost(host, strings.HasPrefix(s, "["), s); w != nil {
		return Address{}, w
	}
	return Address{Host: host, Port: n}, nil
}

func parsePort(port, in string) (int, *wrong) {
	n, err := strconv.ParseUint(port, 10, 64)
	switch {
	case port == "":
		return 0, &wrong{"no port in " + quote(in), "host:port"}
	case strings.Trim(port, "0123456789") != "":
		return 0, &wrong{"the port is not a number in " + quote(in), "0 to 65535"}
	case err != nil || n > 65535:
		return 0, &wrong{"port out of range in " + quote(in), "0 to 65535"}
	}
	return int(n), nil
}

func checkHost(host string, bracketed bool, in string) *wrong {
	if ip, err := netip.ParseAddr(host); err == nil && (ip.Is6() == bracketed) {
		return nil
	}
	if bracketed {
		return &wrong{"not an IPv6 address in " + quote(in), "[v6]:port"}
	}
	if host != "" && !validHost(host) {
		return &wrong{"not a host name or an IP address in " + quote(in), "letters, digits, - and _ between dots, or four numbers up to 255"}
	}
	return nil
}

// validHost follows RFC 1123 section 2.1, with the underscore that many name servers allow. A name whose last label is
// a number is a mistyped IPv4 address.
func validHost(host string) bool {
	host = strings.TrimSuffix(host, ".")
	if host == "" || len(host) > 253 {
		return false
	}
	labels := strings.Split(host, ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return false
		}
		for _, c := range []byte(l) {
			if !alphanumeric(c) && c != '-' && c != '_' {
				return false
			}
		}
	}
	return strings.Trim(labels[len(labels)-1], "0123456789") != ""
}

func alphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

const nameRule = "letters, digits, _, - and ., at most 64"

// validName is the rule for listeners, groups and descriptors: their names go into metrics, commands and variables.
func validName(name string) bool {
	if name == "" || len(name) > 64 || name[0] == '-' || name[0] == '.' {
		return false
	}
	for _, c := range []byte(name) {
		if !alphanumeric(c) && c != '_' && c != '-' && c != '.' {
			return false
		}
	}
	return true
}

// parsePrefix parses an IP prefix; an address alone is a prefix of its whole length. IPv4-mapped prefixes count as IPv4.
func parsePrefix(s string) (netip.Prefix, *wrong) {
	const right = "address/bits, as 10.0.0.0/8 or 2001:db8::/32"
	p, err := netip.ParsePrefix(s)
	if err != nil {
		ip, err := netip.ParseAddr(s)
		if err != nil || ip.Zone() != "" {
			return netip.Prefix{}, &wrong{"not a prefix: " + quote(s), right}
		}
		p = netip.PrefixFrom(ip, ip.BitLen())
	}
	if p != p.Masked() {
		return netip.Prefix{}, &wrong{"bits set after the prefix in " + quote(s), p.Masked().String()}
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p, nil
}
