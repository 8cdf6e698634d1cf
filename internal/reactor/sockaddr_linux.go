package reactor

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// family is the address family of a's sockets. ":port" is IPv6, with IPV6_V6ONLY off: both families.
func (a Addr) family() int {
	switch {
	case a.IsUnix():
		return unix.AF_UNIX
	case a.IP.Addr().Is4() || a.IP.Addr().Is4In6():
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// encode writes a as the kernel wants it and returns its length; 0 for a unix path that is too long.
func (a Addr) encode(rsa *unix.RawSockaddrAny) uint32 {
	switch a.family() {
	case unix.AF_UNIX:
		sa := (*unix.RawSockaddrUnix)(unsafe.Pointer(rsa))
		*sa = unix.RawSockaddrUnix{Family: unix.AF_UNIX}
		if len(a.Path) >= len(sa.Path) {
			return 0
		}
		for i := range len(a.Path) {
			sa.Path[i] = int8(a.Path[i])
		}
		if a.Path[0] == '@' {
			sa.Path[0] = 0
			return uint32(2 + len(a.Path))
		}
		return uint32(2 + len(a.Path) + 1)
	case unix.AF_INET:
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(rsa))
		*sa = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.IP.Addr().Unmap().As4()}
		putPort(&sa.Port, a.IP.Port())
		return unix.SizeofSockaddrInet4
	default:
		sa := (*unix.RawSockaddrInet6)(unsafe.Pointer(rsa))
		*sa = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: a.IP.Addr().As16(), Scope_id: scopeID(a.IP.Addr().Zone())}
		putPort(&sa.Port, a.IP.Port())
		return unix.SizeofSockaddrInet6
	}
}

// decode is the inverse of encode. An unnamed unix socket is "@", as in package net.
func decode(rsa *unix.RawSockaddrAny) Addr {
	switch rsa.Addr.Family {
	case unix.AF_UNIX:
		sa := (*unix.RawSockaddrUnix)(unsafe.Pointer(rsa))
		path := make([]byte, 0, len(sa.Path))
		for i, b := range sa.Path {
			switch {
			case i == 0 && b == 0: // an abstract name, or none
				b = '@'
			case b == 0:
				return Unix(string(path))
			}
			path = append(path, byte(b))
		}
		return Unix(string(path))
	case unix.AF_INET:
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(rsa))
		return TCP(netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), getPort(&sa.Port)))
	case unix.AF_INET6:
		sa := (*unix.RawSockaddrInet6)(unsafe.Pointer(rsa))
		ip := netip.AddrFrom16(sa.Addr)
		if ip.Is4In6() {
			ip = ip.Unmap()
		} else if sa.Scope_id != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(sa.Scope_id), 10))
		}
		return TCP(netip.AddrPortFrom(ip, getPort(&sa.Port)))
	}
	return Addr{}
}

// Ports are in network order whatever the processor's.
func putPort(p *uint16, port uint16) {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(p))[:], port)
}

func getPort(p *uint16) uint16 {
	return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(p))[:])
}

func scopeID(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	if ifi, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifi.Index)
	}
	return 0
}

func sockname(fd int32) Addr {
	sa, err := unix.Getsockname(int(fd))
	if err != nil {
		return Addr{}
	}
	switch sa := sa.(type) {
	case *unix.SockaddrUnix:
		return Unix(sa.Name)
	case *unix.SockaddrInet4:
		return TCP(netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)))
	case *unix.SockaddrInet6:
		return TCP(netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port)))
	}
	return Addr{}
}
