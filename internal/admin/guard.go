package admin

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

const minToken = 16

func parseToken(file []byte) (string, error) {
	t := bytes.TrimSpace(file)
	switch {
	case len(t) == 0:
		return "", errors.New("it is empty")
	case len(t) < minToken:
		return "", errors.New("the token is shorter than 16 characters")
	case len(t) > maxHeader/2:
		return "", errors.New("the token is longer than a header may be")
	case bytes.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return "", errors.New("the token has a blank or a character that is not ASCII")
	}
	return string(t), nil
}

// guard lets requests through that may be served. Who sends a request is proved by the token or by the address that is
// listened on; but a browser on the same machine may act for a foreign page, so a request that changes something must not come from one.
func (s *Server) guard(next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(s.Token))
	sameOrigin := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		if r.ContentLength > maxBody {
			// What is left unread when the connection is closed becomes a reset, which may overtake the answer.
			_, _ = io.CopyN(io.Discard, r.Body, 4*maxBody)
			fail(w, http.StatusRequestEntityTooLarge, "the body is larger than 64 KiB")
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		if mutating(r.Method) {
			if err := sameOrigin.Check(r); err != nil || !originIsHost(r) {
				fail(w, http.StatusForbidden, "the request comes from a page of another origin")
				return
			}
			// A page cannot know the token, so it proves more than a name does; nor can a page reach a unix socket.
			if s.Token == "" && !ownHost(r) {
				fail(w, http.StatusForbidden, "Host is not this server; use its address, or localhost")
				return
			}
		}
		if s.Token != "" && r.URL.Path != "/healthz" && r.URL.Path != "/readyz" {
			got, _ := bearer(r)
			sum := sha256.Sum256([]byte(got)) // of equal length whatever was sent
			if subtle.ConstantTimeCompare(sum[:], want[:]) != 1 {
				h.Set("WWW-Authenticate", `Bearer realm="tproxy"`)
				fail(w, http.StatusUnauthorized, "a valid token is needed: Authorization: Bearer TOKEN")
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

func mutating(method string) bool {
	return method != http.MethodGet && method != http.MethodHead && method != http.MethodOptions
}

func bearer(r *http.Request) (string, bool) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return "", false
	}
	return strings.TrimSpace(token), true
}

// originIsHost compares what net/http's check leaves alone: an Origin beside a Sec-Fetch-Site that calls it the same.
func originIsHost(r *http.Request) bool {
	o := r.Header.Values("Origin")
	if len(o) == 0 {
		return true
	}
	_, host, ok := strings.Cut(o[0], "://")
	return len(o) == 1 && ok && strings.EqualFold(host, r.Host)
}

// ownHost reports whether the request was sent to this server by a name that no foreign page can have (DNS rebinding):
// localhost, a loopback address, or the very address it came to. The port is free, for tunnels change it.
func ownHost(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if !ok {
		return true
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && (ip.IsLoopback() || ip.Unmap() == local.AddrPort().Addr().Unmap())
}
