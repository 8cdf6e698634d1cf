package proxy

import (
	"github.com/tproxy/tproxy/internal/proxyproto"
	"github.com/tproxy/tproxy/internal/reactor"
)

// sendProxy sends the PROXY header that the group wants, whole and before anything else: it names the client that the session is for,
// and in version 2 the server name it asked for and, if it offered just one, the protocol.
func (x *session) sendProxy(conn reactor.Conn) error {
	version := x.route.group.SendProxy
	if version == 0 {
		return nil
	}
	h := proxyproto.Header{Version: uint8(version), Source: headerAddr(x.client()), Destination: headerAddr(x.serverAddr())}
	if p := x.preface; p != nil {
		h.Authority, h.ALPN = p.serverName, p.protocol
	}
	return conn.Send(proxyproto.Append(nil, h))
}

func headerAddr(a Addr) proxyproto.Addr {
	if a == unnamed {
		return proxyproto.Addr{}
	}
	return proxyproto.Addr(a)
}
