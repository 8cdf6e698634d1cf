package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"

	"github.com/tproxy/tproxy/internal/clienthello"
	"github.com/tproxy/tproxy/internal/proxyproto"
)

// ProxyProtocol says whose PROXY headers are believed. A header is read only from a trusted source, and never guessed: a
// listener either expects headers, or may meet them, or passes them on like any other bytes.
type ProxyProtocol struct {
	// Accept is whether the first bytes of a connection are a header.
	Accept AcceptHeader
	// Trusted are the prefixes of the senders that are believed.
	Trusted []netip.Prefix
}

// An AcceptHeader is what a listener does about PROXY headers.
type AcceptHeader uint8

// What a listener does about PROXY headers.
const (
	HeaderOff      AcceptHeader = iota // nothing: they are bytes like others
	HeaderRequire                      // a connection without one, or from a source that is not trusted, is refused
	HeaderOptional                     // a trusted source may send one; from others they are bytes like others
)

// A preface is what the first bytes of a session said.
type preface struct {
	source, destination endpoint          // as a PROXY header claims; none without one
	hello               clienthello.Hello // after a handshake of ours ALPN is what it settled, if anything
}

// errors of prefaces.
var (
	errPrefaceTimeout = errors.New("the preface did not come in time")
	errUntrusted      = errors.New("PROXY header required, and the source is not trusted")
	errRejected       = errors.New("rejected by a route")
	errNoRoute        = errors.New("no route matches, and there is no group for the rest")
)

// prefaceBuffers hold what is looked at; nothing of it outlives the look.
var prefaceBuffers = sync.Pool{New: func() any { b := make([]byte, clienthello.MaxSize); return &b }}

// readPreface reads what the settings ask for, and finds the group. The header is taken; the ClientHello is answered, or left for the backend.
func (x *session) readPreface(p *patience) (Reason, error) {
	t := x.route.settings
	asks := t.ProxyProtocol.Accept != HeaderOff && !x.remote.isUnix() && (t.ProxyProtocol.Accept == HeaderRequire || x.isTrusted()) ||
		t.ProxyProtocol.Accept == HeaderRequire
	var ctx context.Context
	if asks || t.routes.hello || t.TLS != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(p.context(), t.Timeouts.Preface-(clock()-x.accepted), errPrefaceTimeout)
		if t.Timeouts.Preface == 0 {
			cancel()
			ctx, cancel = context.WithCancel(p.context())
		}
		defer cancel()
		x.preface = new(preface)
	}
	if asks {
		if err := x.readHeader(ctx); err != nil {
			return x.prefaceFailure(err), err
		}
	}
	if t.ProxyProtocol.Accept != HeaderOff {
		if why, err := x.admit(); why != NoReason {
			return why, err
		}
	}
	switch {
	case t.TLS != nil:
		if err := x.terminate(ctx); err != nil {
			return x.prefaceFailure(err), err
		}
	case t.routes.hello:
		if err := x.readHello(ctx); err != nil {
			return x.prefaceFailure(err), err
		}
	}
	return x.findRoute()
}

// prefaceFailure is the reason a session ends with when reading its preface failed.
func (x *session) prefaceFailure(err error) Reason {
	if errors.Is(err, errPrefaceTimeout) {
		return PrefaceTimeout
	}
	if why := x.failure(err); why != ConnectFailure {
		return why
	}
	return PrefaceInvalid
}

func (x *session) isTrusted() bool {
	ip := x.remote.addr().IP.Addr()
	return slices.ContainsFunc(x.route.ProxyProtocol.Trusted, func(p netip.Prefix) bool { return p.Contains(ip.WithZone("")) })
}

// look peeks at the client's first bytes until parse is content with them. parse returns how many it took or, with one of
// the errors more, how many it needs at least.
func (x *session) look(ctx context.Context, more error, parse func(b []byte) (int, error)) (int, error) {
	buf := prefaceBuffers.Get().(*[]byte)
	defer prefaceBuffers.Put(buf)
	need := 1
	for {
		m, err := x.setup.client.Peek(ctx, *buf, need)
		if err != nil && err != io.EOF {
			return 0, err
		}
		n, wrong := parse((*buf)[:m])
		switch {
		case wrong == nil:
			return n, nil
		case !errors.Is(wrong, more):
			return 0, wrong
		case err == io.EOF:
			return 0, fmt.Errorf("the client ended after %d bytes: %w", m, wrong)
		}
		need = max(n, m+1)
	}
}

// readHeader takes the PROXY header.
func (x *session) readHeader(ctx context.Context) error {
	if x.remote.isUnix() || !x.isTrusted() {
		return errUntrusted
	}
	var h proxyproto.Header
	n, err := x.look(ctx, proxyproto.ErrIncomplete, func(b []byte) (n int, err error) {
		h, n, err = proxyproto.Parse(b)
		return n, err
	})
	if errors.Is(err, proxyproto.ErrAbsent) && x.route.ProxyProtocol.Accept == HeaderOptional {
		return nil
	}
	if err != nil {
		return err
	}
	if err := x.setup.client.Discard(n); err != nil {
		return err
	}
	if !h.Local {
		x.preface.source, x.preface.destination = compact(Addr(h.Source)), compact(Addr(h.Destination))
	}
	return nil
}

// readHello looks at the ClientHello. A client that does not speak TLS has none, and is no worse for it.
func (x *session) readHello(ctx context.Context) error {
	_, err := x.look(ctx, clienthello.ErrIncomplete, func(b []byte) (n int, err error) {
		x.preface.hello, n, err = clienthello.Peek(b)
		return n, err
	})
	if errors.Is(err, clienthello.ErrNotTLS) {
		return nil
	}
	return err
}

// findRoute gives the session its group.
func (x *session) findRoute() (Reason, error) {
	t := x.route.settings
	var h clienthello.Hello
	if x.preface != nil {
		h = x.preface.hello
	}
	switch i := t.routes.find(x.client(), h); {
	case i < 0 && t.byDefault.group == nil:
		return Denied, errNoRoute
	case i < 0:
		x.route = t.byDefault
	case t.routes.to[i] == nil:
		return Denied, errRejected
	default:
		x.route = t.routes.to[i]
	}
	return NoReason, nil
}

// client is who the session is for: the address that a trusted PROXY header claims, or the one that connected.
func (x *session) client() Addr {
	if x.preface != nil && x.preface.source.kind != noEndpoint {
		return x.preface.source.addr()
	}
	return x.remote.addr()
}

// server is where the client connected to, in the same way.
func (x *session) serverAddr() Addr {
	if x.preface != nil && x.preface.source.kind != noEndpoint {
		return x.preface.destination.addr()
	}
	return x.localAddr()
}
