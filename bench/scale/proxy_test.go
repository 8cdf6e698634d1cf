//go:build linux

package scale

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A proxy is a running tproxy.
type proxy struct {
	t   *testing.T
	dir string // its unix sockets
	pid int
}

// startProxy runs tproxy until the end of the test. DIR in the configuration, which has no admin key, is a folder of its own.
func startProxy(t *testing.T, configuration string) *proxy {
	t.Helper()
	p := &proxy{t: t, dir: t.TempDir()}
	file := filepath.Join(p.dir, "tproxy.yaml")
	text := strings.ReplaceAll(configuration+`
admin: {address: "unix:DIR/admin"}
log: {format: text, sessions: {close: false}}
drain: {timeout: 1s}
`, "DIR", p.dir)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(p.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "run", "-c", file)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	out.Close()
	if err != nil {
		t.Fatal(err)
	}
	p.pid = cmd.Process.Pid
	said := func() []byte {
		text, _ := os.ReadFile(out.Name())
		return text
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		defer time.AfterFunc(patience, func() { cmd.Process.Kill() }).Stop()
		cmd.Wait()
		if t.Failed() {
			t.Logf("tproxy said:\n%s", said())
		}
	})
	eventually(t, patience, "tproxy is ready", func() bool { return bytes.Contains(said(), []byte("ready")) })
	return p
}

// metric is the sum of a metric over its labels, those that contain label.
func (p *proxy) metric(name, label string) int {
	p.t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(p.dir, "admin"))
		},
	}}
	resp, err := client.Get("http://localhost/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		p.t.Fatalf("GET /metrics: %s %v\n%s", resp.Status, err, text)
	}
	sum := 0.0
	for _, m := range regexp.MustCompile(`(?m)^`+name+`(\{[^}]*\})? (\S+)$`).FindAllSubmatch(text, -1) {
		if strings.Contains(string(m[1]), label) {
			v, err := strconv.ParseFloat(string(m[2]), 64)
			if err != nil {
				p.t.Fatal(err)
			}
			sum += v
		}
	}
	return int(sum)
}

func (p *proxy) active() int { return p.metric("tproxy_sessions_active", "") }

func (p *proxy) descriptors() int {
	p.t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
	if err != nil {
		p.t.Fatal(err)
	}
	return len(fds)
}

// resident is the resident memory in bytes. Not VmRSS: that counter lags by up to 64 pages a thread.
func (p *proxy) resident() int {
	p.t.Helper()
	return 1024 * field(p.t, fmt.Sprintf("/proc/%d/smaps_rollup", p.pid), "Rss:")
}

// field is the number that stands behind a word of a file.
func field(t *testing.T, file, word string) int {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), word)
	f := strings.Fields(rest)
	if len(f) == 0 {
		t.Fatalf("%s has no %s", file, word)
	}
	n, err := strconv.Atoi(f[0])
	if err != nil {
		t.Fatalf("%s: %s: %v", file, word, err)
	}
	return n
}
