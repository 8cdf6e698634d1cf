//go:build linux

package e2e

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The long form is `make deploys`.
var deploys = flag.Bool("deploys", false, "run the tests of deploys in their long form")

// times is n in the long form and short in the other.
func times(short, n int) int {
	if *deploys {
		return n
	}
	return short
}

const (
	shortRate    = 200
	longSessions = 50

	// pooledPipes are the descriptors that event loops may keep for the next stream, at this load: some pipes on two loops.
	pooledPipes = 16
)

// A service is a tproxy that may be replaced by its successors: one TCP and one unix listener, an admin address and a pid file.
type service struct {
	t        *testing.T
	dir      string
	program  string // a copy of the binary that may be replaced
	tcp      string // addresses of the listeners
	unix     string
	pidFile  string
	token    string // in the environment of every generation
	log      *log
	backends []*loadBackend
	parts    string // of the configuration, besides backends and listeners
}

func startService(t *testing.T, parts string, args ...string) *service {
	t.Helper()
	s := newService(t, parts)
	s.start(exec.Command(s.program, append([]string{"run", "-c", s.config()}, args...)...))
	return s
}

// newService is a service that does not run yet. Everybody may look into its folder.
func newService(t *testing.T, parts string) *service {
	t.Helper()
	dir, err := os.MkdirTemp("", "tproxy-service-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &service{t: t, dir: dir, log: &log{ready: make(chan struct{})}, parts: parts}
	s.program, s.pidFile = filepath.Join(s.dir, "tproxy"), filepath.Join(s.dir, "pid")
	s.token = fmt.Sprintf("E2E_SERVICE=%d-%s", os.Getpid(), s.dir)
	host, port := freeAddress(t)
	s.tcp, s.unix = net.JoinHostPort(host, port), filepath.Join(s.dir, "l.sock")
	for range 4 {
		s.backends = append(s.backends, startLoadBackend(t))
	}
	s.install(binary)
	s.configure(s.backends[:2], "")
	return s
}

// start runs cmd, waits until the service is ready, and ends all generations with the test.
func (s *service) start(cmd *exec.Cmd) {
	t := s.t
	t.Helper()
	cmd.Env = append(append(os.Environ(), s.token), cmd.Env...)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	cmd.WaitDelay = time.Second // a successor has the log's pipe, too
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		s.end()
		<-ended
		if t.Failed() {
			t.Logf("tproxy said:\n%s", s.log)
		}
	})
	select {
	case <-s.log.ready:
	case err := <-ended:
		ended <- err
		t.Fatalf("tproxy ended before it was ready: %v", err)
	case <-time.After(soon):
		t.Fatalf("tproxy was not ready within %v", soon)
	}
}

// serves fails the test unless a session over each address goes well.
func (s *service) serves() {
	s.t.Helper()
	for _, a := range []string{s.tcp, "unix:" + s.unix} {
		one := &load{dial: func() (net.Conn, error) {
			if path, ok := strings.CutPrefix(a, "unix:"); ok {
				return net.Dial("unix", path)
			}
			return net.Dial("tcp", a)
		}}
		if err := one.shortSession(1); err != nil {
			s.t.Errorf("%s: %v", a, err)
		}
	}
}

// end stops all generations, gently at first.
func (s *service) end() {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGTERM, syscall.SIGKILL} {
		for _, pid := range s.generations() {
			syscall.Kill(pid, syscall.SIGCONT)
			syscall.Kill(pid, sig)
		}
		for range 1000 {
			if len(s.generations()) == 0 {
				return
			}
			<-time.After(10 * time.Millisecond)
		}
		s.t.Errorf("%d processes are left after %v", len(s.generations()), sig)
	}
}

func (s *service) config() string { return filepath.Join(s.dir, "tproxy.yaml") }

// replace puts a file in the place of another at once, as a deploy should.
func (s *service) replace(name string, data []byte, mode os.FileMode) {
	s.t.Helper()
	if err := os.WriteFile(name+".new", data, mode); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		s.t.Fatal(err)
	}
}

func (s *service) install(program string) {
	s.t.Helper()
	data, err := os.ReadFile(program)
	if err != nil {
		s.t.Fatal(err)
	}
	s.replace(s.program, data, 0o755)
}

func (s *service) configure(backends []*loadBackend, rest string) {
	s.t.Helper()
	var list []string
	for _, b := range backends {
		list = append(list, strconv.Quote(b.address()))
	}
	s.replace(s.config(), fmt.Appendf(nil, `
listeners:
  tcp: {address: %q, group: main}
  unix: {address: "unix:%s", group: main}
groups: {main: {backends: [%s]}}
admin: {address: "unix:%s"}
process: {pid_file: %q}
log: {format: json, sessions: {close: false}}
%s
%s
`, s.tcp, s.unix, strings.Join(list, ", "), filepath.Join(s.dir, "admin"), s.pidFile, s.parts, rest), 0o644)
}

// pid is what the pid file says.
func (s *service) pid() int {
	s.t.Helper()
	b, err := os.ReadFile(s.pidFile)
	if err != nil {
		s.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		s.t.Fatalf("pid file: %q", b)
	}
	return pid
}

func (s *service) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := syscall.Kill(s.pid(), sig); err != nil {
		s.t.Fatal(err)
	}
}

// generations are all processes of the service that live.
func (s *service) generations() (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, name := range all {
		pid, _ := strconv.Atoi(strings.Split(name, "/")[2])
		if env, err := os.ReadFile(name); err == nil && bytes.Contains(env, []byte(s.token+"\x00")) && state(pid) != "Z" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// state is the letter that /proc has for a process, and parent its parent.
func state(pid int) string {
	if f := stat(pid); f != nil {
		return f[0]
	}
	return ""
}

func stat(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	return strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
}

// zombies are children of pid that nobody has waited for.
func zombies(pid int) (n int) {
	all, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range all {
		child, _ := strconv.Atoi(strings.Split(name, "/")[2])
		if f := stat(child); f != nil && f[0] == "Z" && f[1] == strconv.Itoa(pid) {
			n++
		}
	}
	return n
}

func (s *service) descriptors() int {
	s.t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.pid()))
	if err != nil {
		s.t.Fatal(err)
	}
	return len(fds)
}

func (s *service) inode() uint64 {
	s.t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(s.unix, &st); err != nil {
		s.t.Fatal(err)
	}
	return st.Ino
}

// ask posts to the admin address and returns the status.
func (s *service) ask(path string) (int, string) {
	s.t.Helper()
	client := http.Client{Timeout: 40 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.dir, "admin"))
		}}}
	r, err := client.Post("http://localhost/api/v1/"+path, "application/json", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return r.StatusCode, string(text)
}

func (s *service) metric(name, label string) float64 {
	return (&proxy{t: s.t, admin: filepath.Join(s.dir, "admin")}).metric(name, label)
}

// upgradeBySignal sends USR2 and waits until the log tells the outcome.
func (s *service) upgradeBySignal() (replaced bool) {
	s.t.Helper()
	said := func(what string) int { return strings.Count(s.log.String(), what) }
	before, failed := s.pid(), said(`"msg":"upgrade failed`)

	s.signal(syscall.SIGUSR2)
	eventually(s.t, soon, "the upgrade has ended", func() bool {
		pid := s.pid()
		return said(`"msg":"upgrade failed`) > failed ||
			pid != before && said(fmt.Sprintf(`"msg":"upgraded","successor":%d}`, pid)) > 0 && said(fmt.Sprintf(`"pid":%d}`, pid)) > 0
	})
	return s.pid() != before
}

func (s *service) upgradeByRequest() (replaced bool) {
	s.t.Helper()
	before := s.pid()
	for {
		cmd := exec.Command(binary, "upgrade", "--admin", "unix:"+filepath.Join(s.dir, "admin"))
		out, err := cmd.CombinedOutput()
		if strings.Contains(string(out), "ask again") { // it came to the generation before
			continue
		}
		if replaced = err == nil; replaced != (s.pid() != before) {
			s.t.Errorf("%s: %v, %s; the pid was %d and is %d", cmd, err, out, before, s.pid())
		}
		return replaced
	}
}

// The ways in which a successor does not become ready.
func (s *service) breakSuccessor(n int) (restore func()) {
	s.t.Helper()
	switch n % 4 {
	case 0:
		s.replace(s.program, []byte("#!/bin/sh\nexit 1\n"), 0o755)
	case 1:
		s.replace(s.program, []byte("#!/bin/sh\nsleep 60 &\nsleep 60\n"), 0o755) // hangs, and has a child
	case 2:
		s.configure(s.backends[:2], "nonsense: [")
	case 3:
		s.replace(s.program, []byte("#!/bin/sh\nsleep 0.2\nkill -9 $$\n"), 0o755)
	}
	return func() {
		s.install(binary)
		s.configure(s.backends[:2], "")
	}
}

// lasting lets sessions live as long as they want, and gives a successor two seconds.
const lasting = "drain: {timeout: 0s}"

func TestUpgradesLoseNobody(t *testing.T) {
	for _, engine := range []string{"epoll", "portable"} {
		t.Run(engine, func(t *testing.T) { upgradesLoseNobody(t, engine) })
	}
}

func upgradesLoseNobody(t *testing.T, engine string) {
	s := startService(t, lasting, "--upgrade-timeout", "2s", "--set", "listeners.tcp.engine="+engine, "--set", "listeners.unix.engine="+engine)
	first, inode := s.pid(), s.inode()
	idle := s.descriptors()
	load := startLoad(t, shortRate, longSessions, s.tcp, "unix:"+s.unix)
	eventually(t, soon, "long sessions run", func() bool { return load.blocks.Load() > longSessions })
	failed, done := 0, 0
	pace := time.NewTicker(500 * time.Millisecond)
	defer pace.Stop()
	for n := range times(6, 20) {
		if *deploys {
			<-pace.C
		}
		before, old := s.descriptors(), s.pid()
		restore := func() {}
		fails := n%4 == 1 || !*deploys && n%4 == 3
		if fails {
			restore = s.breakSuccessor(failed)
			failed++
		} else {
			done++
		}
		upgrade := s.upgradeBySignal
		if n%2 == 1 {
			upgrade = s.upgradeByRequest
		}
		if replaced := upgrade(); replaced == fails {
			t.Fatalf("upgrade %d: replaced is %v", n, replaced)
		}
		restore()
		if !fails {
			load.addLong(2)
		}
		if got := s.inode(); got != inode {
			t.Errorf("upgrade %d: the unix socket's file is another one", n)
		}
		if fails {
			eventually(t, soon, "a failed upgrade leaves no descriptor", func() bool { return s.descriptors() <= before+40 })
			eventually(t, soon, "no zombie is left", func() bool { return zombies(old) == 0 })
		}
	}
	t.Logf("%d upgrades, %d failed ones; %d generations at the end", done, failed, len(s.generations()))
	if n := len(s.generations()); n != done+1 || state(first) == "" {
		t.Errorf("%d generations have sessions, %d are left", done+1, n)
	}
	load.finish(t, s.backends...)
	eventually(t, soon, "each old generation ends when its last session does", func() bool { return len(s.generations()) == 1 })
	eventually(t, soon, "the last generation has no more descriptors than the first", func() bool { return s.descriptors() <= idle+pooledPipes })
	if s.pid() == first || s.inode() != inode {
		t.Error("pid file or unix socket are the first generation's")
	}
}

func TestReloadsLoseNobody(t *testing.T) {
	s := startService(t, lasting)
	pid, inode, idle := s.pid(), s.inode(), s.descriptors()
	load := startLoad(t, shortRate, longSessions, s.tcp, "unix:"+s.unix)
	eventually(t, soon, "long sessions run", func() bool { return load.blocks.Load() > longSessions })
	goroutines, memory := s.metric("go_goroutines", ""), s.metric("process_resident_memory_bytes", "")
	same, swaps, broken := times(20, 100), times(6, 30), times(6, 30)
	result := func(name string) float64 { return s.metric("tproxy_reloads_total", fmt.Sprintf("result=%q", name)) }
	pace := time.NewTicker(time.Duration(times(50, 150)) * time.Millisecond)
	defer pace.Stop()
	reload := func(result func() float64) {
		t.Helper()
		<-pace.C
		before := result()
		s.signal(syscall.SIGHUP)
		eventually(t, soon, "the reload is counted", func() bool { return result() > before })
	}
	ok := func() float64 { return result("ok") }
	for range same {
		reload(ok)
	}
	for n := range swaps {
		s.configure(s.backends[2-n%2*2:][:2], "")
		served := s.backends[2-n%2*2].served.Load()
		reload(ok)
		eventually(t, soon, "the new backends serve", func() bool { return s.backends[2-n%2*2].served.Load() > served })
	}
	for n := range broken {
		s.configure(s.backends[:2], []string{"nonsense: 1", "listeners: [", "limits: {max_connections: -1}"}[n%3])
		reload(func() float64 { return result("error") })
	}
	s.configure(s.backends[:2], "")
	reload(ok)
	grown := s.metric("process_resident_memory_bytes", "") - memory
	t.Logf("%d reloads of the same file, %d that swap backends, %d of a broken file; goroutines %v, then %v; memory %.1f MiB, %+.1f", same, swaps, broken,
		goroutines, s.metric("go_goroutines", ""), memory/(1<<20), grown/(1<<20))
	if grown > 32<<20 {
		t.Errorf("memory has grown by %.1f MiB", grown/(1<<20))
	}
	load.finish(t, s.backends...)
	if s.pid() != pid || s.inode() != inode || len(s.generations()) != 1 {
		t.Error("another process, or another unix socket")
	}
	eventually(t, soon, "descriptors are what they were", func() bool { return s.descriptors() <= idle+pooledPipes })
	eventually(t, soon, "goroutines are fewer than under load", func() bool { return s.metric("go_goroutines", "") <= goroutines })
}

// A process that is stopped accepts nobody; who connects waits in the queue, which its successor shares.
func TestClientsOfAStoppedProcessAreServedAfterAnUpgrade(t *testing.T) {
	s := startService(t, lasting)
	old := s.pid()
	if err := syscall.Kill(old, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, soon, "the process is stopped", func() bool { return state(old) == "T" })
	const clients = 50
	waiting := &load{stop: make(chan struct{}), begun: time.Now()}
	sent := make(chan struct{}, clients)
	for n := range clients {
		network, address := "tcp", s.tcp
		if n%2 == 1 {
			network, address = "unix", s.unix
		}
		c, err := net.Dial(network, address)
		if err != nil {
			t.Fatal(err)
		}
		one := &load{dial: func() (net.Conn, error) { return told{c, sent}, nil }}
		waiting.all.Go(func() { waiting.note(one.shortSession(uint64(2 * n))) })
	}
	for range clients {
		<-sent
	}
	syscall.Kill(old, syscall.SIGUSR2)
	syscall.Kill(old, syscall.SIGCONT)
	eventually(t, soon, "a successor serves", func() bool { return s.pid() != old })
	waiting.all.Wait()
	for _, w := range waiting.wrong {
		t.Error(w)
	}
	eventually(t, soon, "the old process is gone", func() bool { return state(old) == "" || state(old) == "Z" })
}

// edit replaces a part of the configuration.
func (s *service) edit(old, new string) {
	s.t.Helper()
	text := s.read(s.config())
	if !bytes.Contains(text, []byte(old)) {
		s.t.Fatalf("the configuration has no %q", old)
	}
	s.replace(s.config(), bytes.Replace(text, []byte(old), []byte(new), 1), 0o644)
}

// bound are the addresses of a listener, as the log of the last generation tells them.
func (s *service) bound(listener string) (last string) {
	for line := range strings.Lines(s.log.String()) {
		if _, address, ok := strings.Cut(line, `"msg":"listening","listener":"`+listener+`","address":"`); ok {
			last, _, _ = strings.Cut(address, `"`)
		}
	}
	return last
}

func TestAnUpgradeFollowsTheNewConfiguration(t *testing.T) {
	s := newService(t, "")
	s.edit("listeners:", `listeners: {any: {address: "127.0.0.1:0", group: main}, other: {address: "127.0.0.1:0", group: main}}`)
	s.edit(`group: main}}`+"\n  tcp:", `group: main}`+"\n  , tcp:")
	s.edit("\n  unix:", "\n  , unix:")
	s.edit("\ngroups:", "}\ngroups:")
	s.start(exec.Command(s.program, "run", "-c", s.config()))
	any, other := s.bound("any"), s.bound("other")

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.edit("any: {address:", fmt.Sprintf("new: {address: %q, group: main}, any: {address:", taken.Addr()))
	if s.upgradeBySignal() {
		t.Fatal("a successor serves that cannot bind its new address")
	}
	s.serves()
	taken.Close()
	s.edit(`, other: {address: "127.0.0.1:0", group: main}`, "")
	s.edit(fmt.Sprintf(`unix: {address: "unix:%s"`, s.unix), fmt.Sprintf(`unix: {address: "unix:%s.new"`, s.unix))
	if !s.upgradeBySignal() {
		t.Fatal("no successor")
	}
	if got := s.bound("any"); got != any {
		t.Errorf("the port that the kernel chose was %s and is %s", any, got)
	}
	if c, err := net.Dial("tcp", s.bound("new")); err != nil || s.bound("new") != taken.Addr().String() {
		t.Errorf("the new listener: %v", err)
	} else {
		c.Close()
	}
	eventually(t, soon, "what is not configured any more is given up", func() bool {
		c, err := net.Dial("tcp", other)
		if err == nil {
			c.Close()
		}
		_, gone := os.Lstat(s.unix)
		return err != nil && gone != nil
	})
	s.unix += ".new"
	s.serves()
}

// Who stops a service sends TERM to all its processes: to one that drains already because of an upgrade it is the first.
func TestAnOldGenerationEndsAtTheSecondTerm(t *testing.T) {
	s := startService(t, lasting)
	c, err := net.Dial("tcp", s.tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	exchange := func(n uint64) error {
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write(block(n)); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, blockSize))
		return err
	}
	c.Write((errand{kind: longKind}).bytes())
	if err := exchange(0); err != nil {
		t.Fatal(err)
	}
	old := s.pid()
	if !s.upgradeBySignal() {
		t.Fatal("no successor")
	}
	syscall.Kill(old, syscall.SIGTERM)
	syscall.Kill(old, syscall.SIGHUP) // is for the successor
	eventually(t, soon, "the successor reloads", func() bool { return strings.Contains(s.log.String(), `"msg":"reloaded"`) })
	if err := exchange(1); err != nil {
		t.Fatalf("the first TERM ended the session: %v", err)
	}
	syscall.Kill(old, syscall.SIGTERM)
	n := uint64(1)
	eventually(t, soon, "the second TERM ends the session", func() bool { n++; return exchange(n) != nil })
	eventually(t, soon, "it is gone", func() bool { return state(old) == "" || state(old) == "Z" })
	s.serves()
	s.backends[0].wrong, s.backends[1].wrong = nil, nil // the session was cut
}

// Whoever wants the service to end does not wait for a successor that hangs.
func TestTermEndsAnUpgrade(t *testing.T) {
	s := startService(t, "")
	defer s.breakSuccessor(1)()
	old := s.pid()
	s.signal(syscall.SIGUSR2)
	eventually(t, soon, "a successor was started", func() bool { return strings.Contains(s.log.String(), `"msg":"upgrade"`) })
	s.signal(syscall.SIGTERM)
	eventually(t, 10*time.Second, "nothing is left", func() bool { return len(s.generations()) == 0 })
	if _, err := os.Stat(s.pidFile); err == nil || state(old) == "S" {
		t.Error("the process has not ended in order")
	}
}

// A reload that is asked for while a successor is on its way is not forgotten.
func TestReloadDuringAnUpgradeIsObeyedAfterIt(t *testing.T) {
	s := startService(t, "", "--upgrade-timeout", "3s")
	for _, fails := range []bool{true, false} {
		restore := func() {}
		if fails {
			restore = s.breakSuccessor(1)
		}
		reloads, starts := strings.Count(s.log.String(), `"msg":"reloaded"`), strings.Count(s.log.String(), `"msg":"upgrade"`)
		old := s.pid()
		s.signal(syscall.SIGUSR2)
		eventually(t, soon, "a successor was started", func() bool { return strings.Count(s.log.String(), `"msg":"upgrade"`) > starts })
		syscall.Kill(old, syscall.SIGHUP)
		eventually(t, soon, "a reload", func() bool { return strings.Count(s.log.String(), `"msg":"reloaded"`) > reloads })
		if replaced := s.pid() != old; replaced == fails {
			t.Errorf("replaced is %v", replaced)
		}
		restore()
	}
}

// The clients of a successor find spares, and are not sent to a backend that its predecessor knew to be down.
func TestASuccessorIsWarm(t *testing.T) {
	s := newService(t, lasting)
	dead := s.backends[1]
	dead.ln.Close()
	s.start(exec.Command(s.program, "run", "-c", s.config(), "--set", "groups.main.pool.warm=3", "--set", "groups.main.health.fast_interval=50ms"))
	warm := func() bool {
		return s.metric("tproxy_backend_up", strconv.Quote(dead.address())) == 0 && s.metric("tproxy_pool_spares", "") == 3
	}
	eventually(t, soon, "the first process is warm", warm)
	if !s.upgradeBySignal() {
		t.Fatal("no successor")
	}
	if !warm() {
		t.Errorf("it serves with %v spares, and %v usable backends instead of 1", s.metric("tproxy_pool_spares", ""), s.metric("tproxy_backend_up", ""))
	}
}

// A told connection tells of its Writes.
type told struct {
	net.Conn
	sent chan<- struct{}
}

func (c told) Write(b []byte) (int, error) {
	defer func() { c.sent <- struct{}{} }()
	return c.Conn.Write(b)
}
