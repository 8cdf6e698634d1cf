package admin_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/admin"
)

func TestReadyOnlyBetweenStartAndDrain(t *testing.T) {
	f := newFake()
	addr := start(t, &admin.Server{Control: f})
	for _, c := range []struct {
		state  admin.State
		status int
	}{{admin.Starting, 503}, {admin.Ready, 200}, {admin.Draining, 503}} {
		f.set(c.state)
		st, body, _ := do(t, addr, call{method: "GET", path: "/readyz"})
		if st != c.status {
			t.Errorf("%s: %d", c.state, st)
		}
		if st == 503 && errorOf(t, body) != string(c.state) {
			t.Errorf("%s: %s", c.state, body)
		}
		if st, _, _ := do(t, addr, call{method: "GET", path: "/healthz"}); st != 200 {
			t.Errorf("%s: healthz %d", c.state, st)
		}
	}
}

func TestStatusHasListsWhereListsArePromised(t *testing.T) {
	addr := start(t, &admin.Server{})
	for _, path := range []string{"/api/v1/status", "/api/v1/listeners", "/api/v1/groups", "/api/v1/groups/empty", "/api/v1/sessions?group=none"} {
		st, body, h := do(t, addr, call{method: "GET", path: path})
		if st != 200 || h.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %s", path, st, h.Get("Content-Type"))
		}
		if b := strings.ReplaceAll(body, `"last_probe":null`, ""); strings.Contains(b, "null") {
			t.Errorf("%s: %s", path, body)
		}
	}
	var s struct {
		Version, State string
		PID            int
		Groups         []struct {
			Name        string
			QueueLength int `json:"queue_length"`
			Backends    []struct{ Name, State string }
		}
	}
	get(t, addr, "/api/v1/status", &s)
	if s.Version != "test" || s.State != "ready" || s.PID != 1 || len(s.Groups) != 2 || s.Groups[0].QueueLength != 3 || s.Groups[0].Backends[0].Name != "10.0.0.1:80" {
		t.Errorf("status: %+v", s)
	}
}

func TestPatchChangesABackendAndAnswersWithIt(t *testing.T) {
	addr := start(t, &admin.Server{})
	for _, c := range []struct{ path, body, want string }{
		{"/api/v1/groups/g/backends/10.0.0.1:80", `{"state":"drain"}`, `"weight":1,"tier":0,"max_connections":0,"state":"drain"`},
		{"/api/v1/groups/g/backends/10.0.0.1:80", `{"weight":0}`, `"weight":0,"tier":0,"max_connections":0,"state":"drain"`},
		{"/api/v1/groups/g/backends/10.0.0.1:80", `{"weight":256,"state":"ready"}`, `"weight":256,"tier":0,"max_connections":0,"state":"ready"`},
		{"/api/v1/groups/g/backends/unix:/run/b.sock", `{"state":"maint"}`, `"state":"maint"`},
		{"/api/v1/groups/g/backends/unix:%2Frun%2Fb.sock", `{"state":"ready"}`, `"state":"ready"`},
	} {
		st, body, _ := do(t, addr, call{method: "PATCH", path: c.path, body: c.body})
		if st != 200 || !strings.Contains(body, c.want) {
			t.Errorf("%s %s: %d %s, want %s", c.path, c.body, st, body, c.want)
		}
		if _, again, _ := do(t, addr, call{method: "GET", path: c.path}); again != body {
			t.Errorf("GET shows %s, PATCH showed %s", again, body)
		}
	}
}

func TestBadRequestsChangeNothingAndSayWhy(t *testing.T) {
	f := newFake()
	reloads := 0
	addr := start(t, &admin.Server{Control: f, Reload: func(context.Context, bool) (admin.Report, error) {
		reloads++
		return admin.Report{}, nil
	}})
	const b = "/api/v1/groups/g/backends/10.0.0.1:80"
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"PATCH", b, `{"weight":999}`, 400, "0..256"},
		{"PATCH", b, `{"weight":-1}`, 400, "0..256"},
		{"PATCH", b, `{"weight":1.5}`, 400, "body"},
		{"PATCH", b, `{"weight":99999999999999999999}`, 400, "body"},
		{"PATCH", b, `{"weight":5,"state":"flying"}`, 400, "ready, drain or maint"},
		{"PATCH", b, `{"state":"drain","weight":"1"}`, 400, "body"},
		{"PATCH", b, `{"state":null}`, 400, "nothing to change"},
		{"PATCH", b, `{}`, 400, "nothing to change"},
		{"PATCH", b, ``, 400, "body"},
		{"PATCH", b, `null`, 400, "nothing to change"},
		{"PATCH", b, `[]`, 400, "body"},
		{"PATCH", b, `{"colour":"red"}`, 400, "colour"},
		{"PATCH", b, `{"state":"drain"} {"state":"ready"}`, 400, "more than one"},
		{"PATCH", b, `{"state":"` + strings.Repeat("x", 70_000) + `"}`, 413, "64 KiB"},
		{"PATCH", "/api/v1/groups/g/backends/none:1", `{"weight":1}`, 404, "none:1"},
		{"PATCH", "/api/v1/groups/none/backends/x", `{"weight":1}`, 404, `"none"`},
		{"GET", "/api/v1/groups/none", ``, 404, `"none"`},
		{"GET", "/api/v1/groups/g/backends/none:1", ``, 404, "none:1"},
		{"GET", "/api/v1/groups/g/backends/", ``, 404, "backend"},
		{"GET", "/api/v1/groups/%22%1b%0a", ``, 404, "no group"},
		{"DELETE", "/api/v1/sessions/9", ``, 404, "9"},
		{"DELETE", "/api/v1/sessions/-1", ``, 404, "-1"},
		{"DELETE", "/api/v1/sessions/99999999999999999999999", ``, 404, "no session"},
		{"GET", "/api/v1/sessions?limit=x", ``, 400, "limit"},
		{"GET", "/api/v1/sessions?limit=-1", ``, 400, "limit"},
		{"GET", "/api/v1/sessions?client=x", ``, 400, "unknown parameter"},
		{"POST", "/api/v1/reload?dryrun=true", ``, 400, "dry_run"},
		{"POST", "/api/v1/reload?dry_run=maybe", ``, 400, "dry_run"},
		{"POST", "/api/v1/reload", strings.Repeat("x", 70_000), 413, "64 KiB"},
		{"GET", "/api/v1/reload", ``, 405, "POST"},
		{"GET", "/api/v1/upgrade", ``, 405, "POST"},
		{"POST", "/api/v1/groups/none/rebalance", ``, 404, `"none"`},
		{"POST", "/api/v1/groups/empty/rebalance", ``, 409, errTest.Error()},
		{"POST", "/api/v1/groups/g/rebalance?rate=0", ``, 400, "1..100000"},
		{"POST", "/api/v1/groups/g/rebalance?rates=1", ``, 400, "rate"},
		{"GET", "/api/v1/groups/g/rebalance", ``, 405, "POST"},
		{"POST", "/api/v1/status", ``, 405, "GET"},
		{"PUT", b, `{"weight":1}`, 405, "GET or PATCH"},
		{"GET", "/api/v1/sessions/1", ``, 405, "DELETE"},
		{"POST", "/healthz", ``, 405, "GET"},
		{"GET", "/", ``, 404, "/api/v1/status"},
		{"GET", "/nothing", ``, 404, "/api/v1/status"},
		{"GET", "/debug/pprof/", ``, 404, "/api/v1/status"},
		{"GET", "/metrics", ``, 501, "not supported yet"},
		{"GET", "/api/v1/events", ``, 501, "not supported yet"},
		{"POST", "/api/v1/upgrade", ``, 501, "not supported yet"},
	} {
		st, body, h := do(t, addr, call{method: c.method, path: c.path, body: c.body})
		if st != c.status || !strings.Contains(errorOf(t, body), c.says) {
			t.Errorf("%s %s %.60s: %d %q, want %d and %q", c.method, c.path, c.body, st, body, c.status, c.says)
		}
		if st == 405 && h.Get("Allow") == "" {
			t.Errorf("%s %s: 405 without Allow", c.method, c.path)
		}
	}
	if reloads != 0 {
		t.Errorf("%d reloads", reloads)
	}
	if now := f.groups[0].Backends[0]; now.Weight != 1 || now.State != "ready" {
		t.Errorf("the backend changed: %+v", now)
	}
}

func TestSessionsAreFilteredLimitedAndKilled(t *testing.T) {
	addr := start(t, &admin.Server{})
	var s struct {
		Total    int
		Sessions []struct{ Session, Client string }
	}
	get(t, addr, "/api/v1/sessions", &s)
	if s.Total != 3 || len(s.Sessions) != 3 || s.Sessions[0].Session != "3" || s.Sessions[0].Client != "192.0.2.1:4000" {
		t.Errorf("all: %+v", s)
	}
	get(t, addr, "/api/v1/sessions?limit=1&listener=in&group=g&backend=10.0.0.1:80", &s)
	if s.Total != 3 || len(s.Sessions) != 1 {
		t.Errorf("one: %+v", s)
	}
	get(t, addr, "/api/v1/sessions?backend=other", &s)
	if s.Total != 0 || len(s.Sessions) != 0 {
		t.Errorf("none: %+v", s)
	}
	if st, body, _ := do(t, addr, call{method: "DELETE", path: "/api/v1/sessions/2"}); st != 200 {
		t.Errorf("kill: %d %s", st, body)
	}
}

func TestReloadAnswersWithTheReport(t *testing.T) {
	var fails error
	addr := start(t, &admin.Server{Reload: func(_ context.Context, dry bool) (admin.Report, error) {
		return admin.Report{Added: []string{"backend g/10.0.0.2:80"}}, fails
	}})
	for path, want := range map[string]string{
		"/api/v1/reload":              `{"dry_run":false,"kept":[],"added":["backend g/10.0.0.2:80"],"changed":[],"removed":[],"sessions_on_old_settings":0}`,
		"/api/v1/reload?dry_run=true": `{"dry_run":true,"kept":[],"added":["backend g/10.0.0.2:80"],"changed":[],"removed":[],"sessions_on_old_settings":0}`,
	} {
		if st, body, _ := do(t, addr, call{method: "POST", path: path}); st != 200 || strings.TrimSpace(body) != want {
			t.Errorf("%s: %d %s", path, st, body)
		}
	}
	fails = errTest
	if st, body, _ := do(t, addr, call{method: "POST", path: "/api/v1/reload"}); st != 422 || errorOf(t, body) != errTest.Error() {
		t.Errorf("broken file: %d %s", st, body)
	}
}

func TestRebalanceAnswersWhatItClosed(t *testing.T) {
	addr := start(t, &admin.Server{})
	for path, want := range map[string]string{
		"/api/v1/groups/g/rebalance":        `{"group":"g","surplus":3,"closed":3}`,
		"/api/v1/groups/g/rebalance?rate=2": `{"group":"g","surplus":3,"closed":2}`,
	} {
		if st, body, _ := do(t, addr, call{method: "POST", path: path}); st != 200 || strings.TrimSpace(body) != want {
			t.Errorf("%s: %d %s, want %s", path, st, body, want)
		}
	}
}

func TestUpgrade(t *testing.T) {
	var fails error
	addr := start(t, &admin.Server{Upgrade: func(context.Context) error { return fails }})
	if st, _, _ := do(t, addr, call{method: "POST", path: "/api/v1/upgrade"}); st != 200 {
		t.Errorf("upgrade: %d", st)
	}
	fails = errTest
	if st, body, _ := do(t, addr, call{method: "POST", path: "/api/v1/upgrade"}); st != 409 || errorOf(t, body) != errTest.Error() {
		t.Errorf("failed upgrade: %d %s", st, body)
	}
}

func TestProfilesOnlyWhenAsked(t *testing.T) {
	addr := start(t, &admin.Server{PProf: true})
	if st, body, _ := do(t, addr, call{method: "GET", path: "/debug/pprof/goroutine?debug=1"}); st != 200 || !strings.Contains(body, "goroutine profile") {
		t.Errorf("%d %.100s", st, body)
	}
}

func TestHeadIsGetWithoutBody(t *testing.T) {
	addr := start(t, &admin.Server{})
	if st, body, _ := do(t, addr, call{method: "HEAD", path: "/readyz"}); st != 200 || body != "" {
		t.Errorf("%d %q", st, body)
	}
}

func TestSlowRequestsAreCutAndDisturbNobody(t *testing.T) {
	for name, sent := range map[string]string{
		"silent":      "",
		"half a line": "GET /heal",
		"no end":      "GET /healthz HTTP/1.1\r\nHost: localhost\r\n",
		"no body":     "PATCH /api/v1/groups/g/backends/10.0.0.1:80 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
		"unread body": "POST /api/v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
		"needless":    "GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
		"kept alive":  "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := reloadable()
			s.Hurry(2 * time.Second)
			addr := start(t, s)
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write([]byte(sent)); err != nil {
				t.Fatal(err)
			}
			if st, _, _ := do(t, addr, call{method: "GET", path: "/healthz"}); st != 200 {
				t.Errorf("healthz meanwhile: %d", st)
			}
			c.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection is still open long after its time")
			}
		})
	}
}

func TestConnectionsAboveTheLimitAreClosedAtOnce(t *testing.T) {
	addr := start(t, &admin.Server{})
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	closed := 0
	for range 40 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	for _, c := range held[32:] {
		c.SetReadDeadline(time.Now().Add(3 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			closed++
		}
	}
	if closed != 8 {
		t.Errorf("%d of 8 above the limit were closed", closed)
	}
	for _, c := range held {
		c.Close()
	}
	deadline := time.Now().Add(3 * time.Second)
	for { // the server notices the closes in its own time
		resp, err := http.Get("http://" + addr + "/healthz")
		if err == nil {
			resp.Body.Close()
			http.DefaultClient.CloseIdleConnections()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no slot came back: %v", err)
		}
	}
}

func TestLargeHeadersAreRefused(t *testing.T) {
	addr := start(t, &admin.Server{})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	// Exactly what the server reads before it gives up, so that nothing unread turns its answer into a reset.
	c.Write([]byte("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 12<<10)))
	answer, _ := io.ReadAll(c)
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 431")) {
		t.Errorf("answer %.100q", answer)
	}
}
