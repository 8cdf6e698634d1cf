package proxy

import (
	"net/netip"
	"strconv"

	"github.com/tproxy/tproxy/internal/reactor"
)

// An endpoint is an Addr in a quarter of its size, for as long as a session lasts. Of a unix socket it knows no more than that
// it is one: the client's end has no name, as a rule, and the other end is the listener's.
type endpoint struct {
	ip   [16]byte
	zone uint32 // of a link-local IPv6 address
	port uint16
	kind endpointKind
}

type endpointKind uint8

const (
	noEndpoint endpointKind = iota
	ipv4Endpoint
	ipv6Endpoint
	unixEndpoint
)

func compact(a Addr) endpoint {
	switch ip := a.IP.Addr(); {
	case a.IsUnix():
		return endpoint{kind: unixEndpoint}
	case !a.IsValid():
		return endpoint{}
	case ip.Unmap().Is4():
		return endpoint{kind: ipv4Endpoint, ip: ip.As16(), port: a.IP.Port()}
	default:
		zone, _ := strconv.ParseUint(ip.Zone(), 10, 32) // the engines give indexes; 0 is no zone
		return endpoint{kind: ipv6Endpoint, ip: ip.As16(), port: a.IP.Port(), zone: uint32(zone)}
	}
}

func (e endpoint) addr() Addr {
	switch e.kind {
	case ipv4Endpoint:
		return reactor.TCP(netip.AddrPortFrom(netip.AddrFrom16(e.ip).Unmap(), e.port))
	case ipv6Endpoint:
		ip := netip.AddrFrom16(e.ip)
		if e.zone != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(e.zone), 10))
		}
		return reactor.TCP(netip.AddrPortFrom(ip, e.port))
	case unixEndpoint:
		return unnamed
	}
	return Addr{}
}
