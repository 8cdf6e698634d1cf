package reactor

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// An Addr is the address of a stream socket: TCP over IPv4 or IPv6, or a unix path. The zero Addr is no address.
// Addrs are comparable.
type Addr struct {
	IP   netip.AddrPort // TCP; zone included for link-local IPv6
	Path string         // unix; a leading @ is an abstract name (Linux)
}

// TCP returns the address of a TCP socket.
func TCP(ap netip.AddrPort) Addr { return Addr{IP: ap} }

// Unix returns the address of a unix socket.
func Unix(path string) Addr { return Addr{Path: path} }

// IsUnix reports whether a is the address of a unix socket.
func (a Addr) IsUnix() bool { return a.Path != "" }

// IsValid reports whether a is an address at all.
func (a Addr) IsValid() bool { return a.Path != "" || a.IP.IsValid() }

// Network is "unix" or "tcp".
func (a Addr) Network() string {
	if a.IsUnix() {
		return "unix"
	}
	return "tcp"
}

// String is host:port, [v6]:port or unix:/path, and "" for the zero Addr. An IPv4-mapped IPv6 address is printed as IPv4.
func (a Addr) String() string {
	switch {
	case a.IsUnix():
		return "unix:" + a.Path
	case a.IP.IsValid():
		return netip.AddrPortFrom(a.IP.Addr().Unmap(), a.IP.Port()).String()
	}
	return ""
}

// ParseAddr parses host:port with a numeric host, [v6]:port, :port (every address, both families) and unix:/path.
func ParseAddr(s string) (Addr, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if path == "" {
			return Addr{}, fmt.Errorf("address %q: empty path", s)
		}
		if strings.Contains(path, "\x00") {
			return Addr{}, fmt.Errorf("address %q: a path cannot contain a zero byte", s)
		}
		return Unix(path), nil
	}
	if port, ok := strings.CutPrefix(s, ":"); ok {
		s = "[::]:" + port
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return Addr{}, fmt.Errorf("address %q: %w", s, err)
	}
	return TCP(ap), nil
}

// AddrOf converts an address of package net; an address of another kind gives the zero Addr.
func AddrOf(a net.Addr) Addr {
	switch a := a.(type) {
	case *net.TCPAddr:
		ap := a.AddrPort()
		return TCP(netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	case *net.UnixAddr:
		return Unix(a.Name)
	}
	return Addr{}
}

// Net converts to an address of package net; nil for the zero Addr.
func (a Addr) Net() net.Addr {
	switch {
	case a.IsUnix():
		return &net.UnixAddr{Name: a.Path, Net: "unix"}
	case a.IP.IsValid():
		return net.TCPAddrFromAddrPort(a.IP)
	}
	return nil
}
