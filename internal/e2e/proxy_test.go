//go:build linux

package e2e

import (
	"bufio"
	"cmp"
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
	"sync"
	"syscall"
	"testing"
	"time"
)

// A proxy is a running tproxy.
type proxy struct {
	t      *testing.T
	cmd    *exec.Cmd
	heirs  []int // processes after upgrades, the last of which serves
	log    *log
	config string // path
	admin  string // unix path
	host   string // where the only listener is
	port   string
}

// startProxy runs tproxy with one listener, on a port that the kernel chooses, in front of backends, at a descriptor limit. At the end of the test the proxy must
// stop on SIGTERM with status 0, or 3 because sessions were left.
func startProxy(t *testing.T, descriptors int, backends ...string) *proxy {
	t.Helper()
	p := runProxy(t, descriptors, fmt.Sprintf(`
listeners: {main: {address: "127.0.0.1:0", group: main}}
groups: {main: {backends: [%s]}}
log: {format: json, sessions: {close: false}}
drain: {timeout: 1s}
`, `"`+strings.Join(backends, `", "`)+`"`))
	p.host, p.port = p.listening()
	return p
}

// runProxy runs tproxy with a configuration that has no admin key, at a descriptor limit.
func runProxy(t *testing.T, descriptors int, config string) *proxy {
	t.Helper()
	p := &proxy{t: t, admin: filepath.Join(shortDir(t), "admin"), config: filepath.Join(t.TempDir(), "tproxy.yaml"), log: &log{ready: make(chan struct{})}}
	p.configure(config)
	limit := strconv.Itoa(descriptors)
	p.start(exec.Command("prlimit", "--nofile="+limit+":"+limit, binary, "run", "-c", p.config))
	return p
}

// shortDir is a folder whose name is short enough for unix sockets, which that of t.TempDir is not everywhere.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tproxy-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// configure writes the configuration file.
func (p *proxy) configure(config string) {
	p.t.Helper()
	if err := os.WriteFile(p.config, fmt.Appendf(nil, "%s\nadmin: {address: \"unix:%s\"}\n", config, p.admin), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// start runs cmd, a tproxy, waits until it is ready and ends it with the test.
func (p *proxy) start(cmd *exec.Cmd) {
	p.t.Helper()
	p.cmd = cmd
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-p.log.ready:
	case err := <-ended:
		p.t.Fatalf("tproxy ended before it was ready: %v\n%s", err, p.log)
	case <-time.After(soon):
		cmd.Process.Kill()
		<-ended
		p.t.Fatalf("tproxy was not ready within %v\n%s", soon, p.log)
	}
	p.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(soon):
			p.t.Errorf("tproxy did not stop within %v of SIGTERM", soon)
			cmd.Process.Kill()
			<-ended
		}
		if s := cmd.ProcessState.ExitCode(); s != 0 && s != 3 {
			p.t.Errorf("tproxy ended with %v", cmd.ProcessState)
		}
		if strings.Contains(p.log.String(), "WARNING: DATA RACE") {
			p.t.Error("the race detector found something")
		}
		if p.t.Failed() {
			p.t.Logf("tproxy said:\n%s", p.log)
		}
	})
}

// pid is the process that serves.
func (p *proxy) pid() int {
	if n := len(p.heirs); n > 0 {
		return p.heirs[n-1]
	}
	return p.cmd.Process.Pid
}

// upgrade asks for one and says what the answer is, 200 if there is a new process. That one, no child of this process, is ended with the test.
func (p *proxy) upgrade() (status int, text string) {
	p.t.Helper()
	status, text = p.call(http.MethodPost, "/api/v1/upgrade", "")
	if status != http.StatusOK {
		return status, text
	}
	if len(p.heirs) == 0 {
		p.t.Cleanup(func() {
			syscall.Kill(p.pid(), syscall.SIGTERM)
			gone := func(pid int) bool { return syscall.Kill(pid, 0) == syscall.ESRCH }
			for _, pid := range p.heirs {
				eventually(p.t, soon, fmt.Sprintf("successor %d has ended", pid), func() bool { return gone(pid) })
			}
		})
	}
	before, heir := p.pid(), 0
	eventually(p.t, soon, "the successor answers", func() bool { // the one before may answer for a moment
		heir = p.status().PID
		return heir != before
	})
	p.heirs = append(p.heirs, heir)
	return status, text
}

func (p *proxy) address() string { return net.JoinHostPort(p.host, p.port) }

// dial connects to the proxy; the connection is closed with the test.
func (p *proxy) dial() (net.Conn, error) {
	c, err := net.DialTimeout("tcp", p.address(), 5*time.Second)
	if err == nil {
		p.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// serves reports why a new session does not work.
func (p *proxy) serves() error {
	c, err := net.DialTimeout("tcp", p.address(), 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	return roundTrip(c)
}

// listening finds the TCP socket that the process listens on.
func (p *proxy) listening() (host, port string) {
	p.t.Helper()
	own := make(map[string]bool)
	fds, err := os.ReadDir(p.proc("fd"))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, fd := range fds {
		link, _ := os.Readlink(p.proc("fd", fd.Name()))
		if inode, ok := strings.CutPrefix(link, "socket:["); ok {
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	table, err := os.ReadFile(p.proc("net", "tcp"))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		// sl, local address, remote address, state (0A is LISTEN), …, inode
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != "0A" || !own[f[9]] {
			continue
		}
		_, hex, _ := strings.Cut(f[1], ":")
		n, err := strconv.ParseUint(hex, 16, 16)
		if err != nil {
			p.t.Fatal(err)
		}
		return "127.0.0.1", strconv.FormatUint(n, 10)
	}
	p.t.Fatalf("tproxy is ready but listens on no TCP port\n%s", p.log)
	return "", ""
}

func (p *proxy) proc(elem ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(p.pid())}, elem...)...)
}

func (p *proxy) descriptors() int {
	p.t.Helper()
	fds, err := os.ReadDir(p.proc("fd"))
	if err != nil {
		p.t.Fatal(err)
	}
	return len(fds)
}

// resident is the resident memory in bytes. Not VmRSS: that counter lags by up to 64 pages a thread.
func (p *proxy) resident() int {
	p.t.Helper()
	f, err := os.Open(p.proc("smaps_rollup"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) == 3 && f[0] == "Rss:" {
			kib, err := strconv.Atoi(f[1])
			if err != nil {
				p.t.Fatal(err)
			}
			return kib << 10
		}
	}
	p.t.Fatal("smaps_rollup has no Rss")
	return 0
}

// processor is the CPU time used so far, to 10 ms.
func (p *proxy) processor() time.Duration {
	p.t.Helper()
	stat, err := os.ReadFile(p.proc("stat"))
	if err != nil {
		p.t.Fatal(err)
	}
	// The second field is the name in parentheses, and may hold blanks; utime and stime are the 14th and 15th, in 1/100 s.
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, err1 := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	if err1 != nil || err2 != nil {
		p.t.Fatalf("stat: %s", stat)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

// metric is the sum of a metric over its labels, those that contain label ("" for all).
func (p *proxy) metric(name, label string) float64 {
	p.t.Helper()
	status, text := p.call(http.MethodGet, "/metrics", "")
	if status != http.StatusOK {
		p.t.Fatalf("GET /metrics: %d\n%s", status, text)
	}
	sample := regexp.MustCompile(`(?m)^` + name + `(\{[^}]*\})? (\S+)$`)
	found, sum := false, 0.0
	for _, m := range sample.FindAllStringSubmatch(text, -1) {
		if !strings.Contains(m[1], label) {
			continue
		}
		v, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			p.t.Fatalf("metric %s: %v", name, err)
		}
		found, sum = true, sum+v
	}
	if !found && label == "" {
		p.t.Fatalf("/metrics has no %s", name)
	}
	return sum
}

// call makes one request to the admin address, within 10 s.
func (p *proxy) call(method, path, body string) (status int, answer string) {
	p.t.Helper()
	client := http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", p.admin)
			},
		},
	}
	req, err := http.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, string(text)
}

// A log keeps what a program says, and closes ready when it has said the word.
type log struct {
	word  *regexp.Regexp // nil: ready
	mu    sync.Mutex
	text  strings.Builder
	ready chan struct{}
	said  bool
}

var readyWord = regexp.MustCompile(`(?m)(^|[" =])ready(["\s]|$)`)

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(b)
	if !l.said && cmp.Or(l.word, readyWord).MatchString(l.text.String()) {
		l.said = true
		close(l.ready)
	}
	return len(b), nil
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
