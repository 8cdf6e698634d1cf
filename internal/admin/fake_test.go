package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tproxy/tproxy/internal/admin"
	"github.com/tproxy/tproxy/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shortDir is a folder whose name is short enough for unix sockets, which that of t.TempDir is not everywhere.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "admin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// A fake is a proxy with one listener, two groups and three sessions.
type fake struct {
	mu       sync.Mutex
	state    admin.State
	groups   []admin.Group
	sessions []admin.Session
	traffic  []admin.Traffic
}

func newFake() *fake {
	f := &fake{
		state: admin.Ready,
		groups: []admin.Group{
			{Name: "g", Balance: "round_robin", Usable: 2, QueueLength: 3, Backends: []admin.Backend{
				{Name: "10.0.0.1:80", Address: "10.0.0.1:80", Weight: 1, State: "ready", Up: true, Active: 2, Probes: admin.Probes{OK: 5, Failed: 1}},
				{Name: "unix:/run/b.sock", Address: "unix:/run/b.sock", Weight: 1, State: "ready", Spares: 4},
			}},
			{Name: "empty"},
		},
		traffic: []admin.Traffic{
			{Listener: "in", Group: "g", Backend: "10.0.0.1:80", Active: 1, Up: 10, Down: 20},
			{Listener: "in", Group: "g", Backend: "10.0.0.1:80", Active: 1, Up: 1, Down: 2},
		},
	}
	for i := range 3 {
		f.sessions = append(f.sessions, admin.Session{
			ID: fmt.Sprint(i + 1), Started: time.Unix(int64(100-i), 0), Listener: "in", Group: "g", Backend: "10.0.0.1:80", Client: "192.0.2.1:4000",
		})
	}
	return f
}

func (f *fake) State() admin.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

func (f *fake) set(s admin.State) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = s
}

func (f *fake) Status() admin.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := admin.Status{Version: "test", PID: 1, State: f.state, Listeners: []admin.Listener{{Name: "in", Active: 2, HalfClosed: 1, Paused: true}}}
	for _, g := range f.groups {
		g.Backends = slices.Clone(g.Backends)
		st.Groups = append(st.Groups, g)
	}
	return st
}

func (f *fake) Sessions() iter.Seq[admin.Session] { return slices.Values(f.sessions) }
func (f *fake) Traffic() iter.Seq[admin.Traffic]  { return slices.Values(f.traffic) }
func (f *fake) Kill(id proxy.SessionID) bool      { return id >= 1 && id <= 3 }
func (f *fake) SetState(g, b, state string) error {
	return f.change(g, b, func(b *admin.Backend) { b.State = state })
}
func (f *fake) SetWeight(g, b string, w int) error {
	return f.change(g, b, func(b *admin.Backend) { b.Weight = w })
}
func (f *fake) Rebalance(ctx context.Context, g string, rate int) (admin.Rebalance, error) {
	switch g {
	case "g":
		return admin.Rebalance{Group: g, Surplus: 3, Closed: min(rate, 3)}, nil
	case "empty":
		return admin.Rebalance{}, errTest
	}
	return admin.Rebalance{}, admin.ErrNotFound
}

func (f *fake) change(group, backend string, set func(*admin.Backend)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, g := range f.groups {
		for i := range g.Backends {
			if g.Name == group && g.Backends[i].Name == backend {
				set(&g.Backends[i])
				return nil
			}
		}
	}
	return admin.ErrNotFound
}

// start runs s until the test ends, and returns the address it serves. Fields that are not set get the fake's.
func start(t *testing.T, s *admin.Server) string {
	t.Helper()
	if s.Control == nil {
		s.Control = newFake()
	}
	if s.Address == "" {
		s.Address = "127.0.0.1:0"
	}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error)
	go func() { ran <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return s.Addr().String()
}

// A call is a request and what must come of it.
type call struct {
	method, path, body string
	header             http.Header
	host               string
}

// do makes one request on a connection of its own.
func do(t *testing.T, address string, c call) (status int, body string, header http.Header) {
	t.Helper()
	network := "tcp"
	if strings.HasPrefix(address, "/") {
		network = "unix"
	}
	tr := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, address)
		},
	}
	host := address
	if network == "unix" {
		host = "localhost"
	}
	r, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+host+c.path, strings.NewReader(c.body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range c.header {
		r.Header[k] = v
	}
	r.Host = c.host
	resp, err := (&http.Client{Transport: tr, Timeout: time.Minute}).Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", c.method, c.path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

func get(t *testing.T, address, path string, into any) {
	t.Helper()
	st, body, _ := do(t, address, call{method: "GET", path: path})
	if st != http.StatusOK {
		t.Fatalf("GET %s: %d %s", path, st, body)
	}
	if err := json.Unmarshal([]byte(body), into); err != nil {
		t.Fatalf("GET %s: %v in %s", path, err, body)
	}
}

// errorOf is the text of an answer {"error": …}; an answer of another form fails the test.
func errorOf(t *testing.T, body string) string {
	t.Helper()
	var e map[string]string
	if err := json.Unmarshal([]byte(body), &e); err != nil || len(e) != 1 || e["error"] == "" {
		t.Errorf("the error is not of the form {\"error\": …}: %q", body)
	}
	return e["error"]
}

var errTest = errors.New("tproxy.yaml:1:1: groups: unknown key")

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
