package proxy

import (
	"net"

	"github.com/pires/go-proxyproto"

	"github.com/tproxy/tproxy/internal/reactor"
)

// sendProxy sends the PROXY header that the group wants, whole and before anything else.
func (x *session) sendProxy(conn reactor.Conn) error {
	version := x.settings.Group.SendProxy
	if version == 0 {
		return nil
	}
	header, err := proxyHeader(byte(version), x.remote.addr(), x.localAddr())
	if err != nil {
		return err
	}
	return conn.Send(header)
}

// proxyHeader says that a client at from connected to an address to. Where the version has no words for that (v1 knows no unix
// sockets, and nothing knows a mixture) it says UNKNOWN in v1 and LOCAL-like UNSPEC in v2.
func proxyHeader(version byte, from, to Addr) ([]byte, error) {
	h := proxyproto.Header{Version: version, Command: proxyproto.PROXY, TransportProtocol: proxyproto.UNSPEC, SourceAddr: from.Net(), DestinationAddr: to.Net()}
	switch {
	case from.IsUnix() && to.IsUnix() && version == 2:
		h.TransportProtocol = proxyproto.UnixStream
		h.SourceAddr, h.DestinationAddr = &net.UnixAddr{Net: "unix"}, to.Net()
	case from.IsUnix() || to.IsUnix() || !from.IsValid() || !to.IsValid():
		h.SourceAddr, h.DestinationAddr = nil, nil
	case from.IP.Addr().Is4() && to.IP.Addr().Is4():
		h.TransportProtocol = proxyproto.TCPv4
	default:
		h.TransportProtocol = proxyproto.TCPv6
	}
	return h.Format()
}
