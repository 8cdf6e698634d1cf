package admin_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tproxy/tproxy/internal/admin"
)

func reloadable() *admin.Server {
	return &admin.Server{Reload: func(context.Context, bool) (admin.Report, error) { return admin.Report{}, nil }}
}

func TestForeignPagesMayNotChangeAnything(t *testing.T) {
	addr := start(t, reloadable())
	_, port, _ := net.SplitHostPort(addr)
	for _, c := range []struct {
		name   string
		host   string
		header http.Header
		status int
	}{
		{"own address", "", nil, 200},
		{"localhost", "localhost:" + port, nil, 200},
		{"localhost through a tunnel", "localhost:1", nil, 200},
		{"other loopback", "127.8.8.8", nil, 200},
		{"IPv6 loopback", "[::1]:" + port, nil, 200},
		{"own origin", "", http.Header{"Origin": {"http://" + addr}}, 200},
		{"own page", "", http.Header{"Origin": {"http://" + addr}, "Sec-Fetch-Site": {"same-origin"}}, 200},
		{"typed by the user", "", http.Header{"Sec-Fetch-Site": {"none"}}, 200},
		{"foreign host", "evil.example", nil, 403},
		{"foreign host, own port", "evil.example:" + port, nil, 403},
		{"name that begins as ours", "localhost.evil.example", nil, 403},
		{"other address", "192.0.2.1:" + port, nil, 403},
		{"rebound page", "evil.example:" + port, http.Header{"Origin": {"http://evil.example:" + port}, "Sec-Fetch-Site": {"same-origin"}}, 403},
		{"foreign origin", "", http.Header{"Origin": {"http://evil.example"}}, 403},
		{"no origin of its own", "", http.Header{"Origin": {"null"}}, 403},
		{"empty origin", "", http.Header{"Origin": {""}}, 403},
		{"other port", "", http.Header{"Origin": {"http://127.0.0.1:1"}}, 403},
		{"two origins", "", http.Header{"Origin": {"http://" + addr, "http://evil.example"}}, 403},
		{"other site", "", http.Header{"Sec-Fetch-Site": {"cross-site"}}, 403},
		{"same site, other origin", "", http.Header{"Sec-Fetch-Site": {"same-site"}}, 403},
		{"origin that contradicts", "", http.Header{"Origin": {"http://evil.example"}, "Sec-Fetch-Site": {"same-origin"}}, 403},
	} {
		st, body, _ := do(t, addr, call{method: "POST", path: "/api/v1/reload", host: c.host, header: c.header})
		if st != c.status {
			t.Errorf("%s: %d %s, want %d", c.name, st, body, c.status)
		}
		if st == 403 {
			errorOf(t, body)
		}
		if st, _, _ := do(t, addr, call{method: "GET", path: "/api/v1/status", host: c.host, header: c.header}); st != 200 {
			t.Errorf("%s: GET gives %d", c.name, st)
		}
	}
}

func TestTokenIsNeededForEverythingButHealth(t *testing.T) {
	s := reloadable()
	s.Token = "s3cret-token-abcdefgh"
	addr := start(t, s)
	for _, c := range []struct {
		auth   []string
		status int
	}{
		{nil, 401},
		{[]string{""}, 401},
		{[]string{"Bearer "}, 401},
		{[]string{"Bearer wrong"}, 401},
		{[]string{"Bearer s3cret-token-abcdefg"}, 401},
		{[]string{"Bearer s3cret-token-abcdefghi"}, 401},
		{[]string{"Basic s3cret-token-abcdefgh"}, 401},
		{[]string{"s3cret-token-abcdefgh"}, 401},
		{[]string{"Bearer s3cret-token-abcdefgh"}, 200},
		{[]string{"bearer s3cret-token-abcdefgh"}, 200},
	} {
		for _, k := range []call{{method: "POST", path: "/api/v1/reload"}, {method: "GET", path: "/api/v1/sessions"}} {
			k.header = http.Header{"Authorization": c.auth}
			st, body, h := do(t, addr, k)
			if st != c.status {
				t.Errorf("%s with %q: %d %s", k.path, c.auth, st, body)
			}
			if st == 401 && (errorOf(t, body) == "" || !strings.HasPrefix(h.Get("WWW-Authenticate"), "Bearer")) {
				t.Errorf("%s with %q: no challenge", k.path, c.auth)
			}
		}
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if st, _, _ := do(t, addr, call{method: "GET", path: path}); st != 200 {
			t.Errorf("%s: %d", path, st)
		}
	}
	own := http.Header{"Authorization": {"Bearer s3cret-token-abcdefgh"}}
	if st, _, _ := do(t, addr, call{method: "POST", path: "/api/v1/reload", host: "proxy1.example:9900", header: own}); st != 200 {
		t.Errorf("with the token, by a name: %d", st)
	}
}

func TestReadToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	for content, want := range map[string]string{
		"s3cret-token-abcdefgh\n":       "s3cret-token-abcdefgh",
		"  s3cret-token-abcdefgh\r\n":   "s3cret-token-abcdefgh",
		"":                              "",
		"\n":                            "",
		"short":                         "",
		"s3cret-token abcdefgh":         "",
		"s3cret-token\nabcdefgh":        "",
		"s3cret-tökén-abcdefgh":         "",
		strings.Repeat("x", 1_000_000):  "",
		"s3cret-token-abcdefgh\x00\x01": "",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := admin.ReadToken(path)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%.40q: %q, %v", content, got, err)
		}
		if err != nil && !strings.Contains(err.Error(), path) {
			t.Errorf("the error does not name the file: %v", err)
		}
	}
	if _, err := admin.ReadToken(path + ".no"); err == nil {
		t.Error("a missing file gives no error")
	}
}
