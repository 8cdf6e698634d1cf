package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"

	"github.com/tproxy/tproxy/internal/clienthello"
	"github.com/tproxy/tproxy/internal/proxyproto"
	"github.com/tproxy/tproxy/internal/reactor"
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
	source, destination Addr // as a PROXY header claims; the zero Addr without one
	serverName          string
	protocol            string // if the client offered just one, or a handshake of ours settled it
}

// errors of prefaces.
var (
	errPrefaceTimeout = errors.New("the preface did not come in time")
	errUntrusted      = errors.New("PROXY header required, and the source is not trusted")
	errRejected       = errors.New("rejected by a route")
	errNoRoute        = errors.New("no route matches, and there is no group for the rest")
)

// unnamed is an end of a unix socket that has no name.
var unnamed = reactor.Unix("@")

// prefaceBuffers hold what is looked at; nothing of it outlives the look, and nobody who waits has one.
var prefaceBuffers = sync.Pool{New: func() any { b := make([]byte, clienthello.MaxSize); return &b }}

// readPreface reads what the settings ask for, and finds the group. The header is taken; the ClientHello is answered, or left for the backend.
func (x *session) readPreface(p *patience) (Reason, error) {
	t := x.route.settings
	accept := t.ProxyProtocol.Accept
	trusted := accept != HeaderOff && t.trusted.Contains(x.remote.addr().IP.Addr())
	if accept == HeaderRequire && !trusted {
		return PrefaceInvalid, errUntrusted
	}
	var ctx context.Context
	if trusted || t.routes.hello || t.TLS != nil {
		var cancel context.CancelFunc
		ctx, cancel = x.prefaceTime(p.context())
		defer cancel()
		x.preface = new(preface)
	}
	if trusted {
		if err := x.readHeader(ctx); err != nil {
			return x.prefaceFailure(err), err
		}
	}
	if accept != HeaderOff {
		if why, err := x.admit(); why != NoReason {
			return why, err
		}
	}
	var hello clienthello.Hello
	if t.TLS != nil || t.routes.hello {
		read := x.readHello
		if t.TLS != nil {
			read = x.terminate
		}
		var err error
		if hello, err = read(ctx); err != nil {
			return x.prefaceFailure(err), err
		}
		x.preface.serverName = hello.ServerName
		if len(hello.ALPN) == 1 { // a client could make us hold thousands
			x.preface.protocol = hello.ALPN[0]
		}
	}
	return x.findRoute(hello)
}

// prefaceTime is ctx for as long as the whole preface may take, from accept on.
func (x *session) prefaceTime(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := x.route.Timeouts.Preface
	if limit == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, limit-(clock()-x.accepted), errPrefaceTimeout)
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

// look shows the client's first bytes to parse until parse is content with them. parse returns how many it took or, with
// the error more, how many it needs at least.
func (x *session) look(ctx context.Context, more error, parse func(b []byte) (int, error)) (int, error) {
	client := x.setup.client
	for need := 1; ; {
		have, end := client.Await(ctx, need)
		if end != nil && end != io.EOF {
			if why := context.Cause(ctx); why != nil {
				return 0, why
			}
			return 0, fmt.Errorf("%w: %w", errClientReset, end)
		}
		n, wrong := x.glance(ctx, have, parse)
		switch {
		case !errors.Is(wrong, more):
			return n, wrong
		case end == io.EOF:
			return 0, fmt.Errorf("the client ended after %d bytes: %w", have, wrong)
		}
		if need = max(n, have+1); need > clienthello.MaxSize {
			return 0, fmt.Errorf("more than %d bytes: %w", clienthello.MaxSize, wrong)
		}
	}
}

// glance shows parse the bytes that have come.
func (x *session) glance(ctx context.Context, have int, parse func(b []byte) (int, error)) (int, error) {
	buf := prefaceBuffers.Get().(*[]byte)
	defer prefaceBuffers.Put(buf)
	if have > 0 {
		var err error
		if have, err = x.setup.client.Peek(ctx, *buf, have); err != nil && err != io.EOF {
			return 0, fmt.Errorf("%w: %w", errClientReset, err)
		}
	}
	return parse((*buf)[:have])
}

// readHeader takes the PROXY header.
func (x *session) readHeader(ctx context.Context) error {
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
	if h.Local {
		return nil
	}
	x.preface.source, x.preface.destination = Addr(h.Source), Addr(h.Destination)
	for _, a := range []*Addr{&x.preface.source, &x.preface.destination} {
		if !a.IsValid() { // the other end is a unix socket with a name
			*a = unnamed
		}
	}
	return nil
}

// readHello looks at the ClientHello. A client that does not speak TLS has none, and is no worse for it.
func (x *session) readHello(ctx context.Context) (h clienthello.Hello, err error) {
	_, err = x.look(ctx, clienthello.ErrIncomplete, func(b []byte) (n int, err error) {
		h, n, err = clienthello.Peek(b)
		return n, err
	})
	if errors.Is(err, clienthello.ErrNotTLS) {
		return h, nil
	}
	return h, err
}

// findRoute gives the session its group.
func (x *session) findRoute(h clienthello.Hello) (Reason, error) {
	t := x.route.settings
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
	if x.preface != nil && x.preface.source.IsValid() {
		return x.preface.source
	}
	return x.remote.addr()
}

// serverAddr is where the client connected to, in the same way.
func (x *session) serverAddr() Addr {
	if x.preface != nil && x.preface.source.IsValid() {
		return x.preface.destination
	}
	return x.localAddr()
}
