//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestASecondInstanceIsRefused(t *testing.T) {
	s := startService(t, "")
	pid, inode := s.pid(), s.inode()
	cmd := exec.Command(s.program, "run", "-c", s.config())
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("it ended with %v", err)
	}
	for _, want := range []string{"listeners.tcp.address: listen on " + s.tcp + ": address already in use",
		"listeners.unix.address: listen on unix:" + s.unix + ": another process listens on it: address already in use", "admin.address: "} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	if s.pid() != pid || s.inode() != inode {
		t.Error("it took pid file or socket")
	}
	s.serves()
}

// ids are those of every thread, as /proc tells them: real, effective, saved and file system.
func (s *service) ids(what string) (all []string) {
	s.t.Helper()
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", s.pid()))
	for _, name := range tasks {
		b, _ := os.ReadFile(name)
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, what+":"); ok && !slices.Contains(all, strings.Join(strings.Fields(rest), " ")) {
				all = append(all, strings.Join(strings.Fields(rest), " "))
			}
		}
	}
	return all
}

func (s *service) isNobody() {
	s.t.Helper()
	const bind = "0000000000000400" // CAP_NET_BIND_SERVICE and nothing else
	for what, want := range map[string]string{"Uid": "65534 65534 65534 65534", "Gid": "65534 65534 65534 65534", "Groups": "65534",
		"CapPrm": bind, "CapEff": bind, "CapAmb": bind} {
		if got := s.ids(what); len(got) != 1 || got[0] != want {
			s.t.Errorf("%s of process %d is %q, want %q everywhere", what, s.pid(), got, want)
		}
	}
}

func TestAfterBindingRootBecomesAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	s := newService(t, "")
	host, _, _ := net.SplitHostPort(s.tcp)
	s.tcp = net.JoinHostPort(host, "81")
	s.configure(s.backends[:2], "")
	journal := filepath.Join(s.dir, "journal")
	s.start(exec.Command(s.program, "run", "-c", s.config(), "--set", "process.user=nobody", "--set", `process.group="65534"`,
		"--set", "log.sessions.close=true", "--set", "log.sessions.path="+journal))
	s.isNobody()
	s.serves()
	for _, name := range []string{s.unix, filepath.Join(s.dir, "admin"), s.pidFile, journal} {
		var st syscall.Stat_t
		if err := syscall.Stat(name, &st); err != nil || st.Uid != 65534 || st.Gid != 65534 {
			t.Errorf("%s belongs to %d:%d, %v", name, st.Uid, st.Gid, err)
		}
	}
	// Another privileged port: the right to bind is all that is left of root.
	s.replace(s.config(), bytes.Replace(s.read(s.config()), []byte(strconv.Quote(s.tcp)),
		fmt.Appendf(nil, "[%q, %q]", s.tcp, net.JoinHostPort(host, "82")), 1), 0o644)
	if status, text := s.ask("reload"); status != 200 {
		t.Errorf("reload with one more port: %d %s", status, text)
	}
	old, inode := s.pid(), s.inode()
	if !s.upgradeBySignal() {
		t.Fatal("no successor")
	}
	s.isNobody()
	s.serves()
	if s.inode() != inode {
		t.Error("the unix socket is another one")
	}
	s.tcp = net.JoinHostPort(host, "82")
	s.serves()
	eventually(t, soon, "the old process is gone", func() bool { return state(old) == "" || state(old) == "Z" })
	last := s.pid()
	s.signal(syscall.SIGTERM)
	eventually(t, soon, "the last process is gone", func() bool { return state(last) == "" || state(last) == "Z" })
	if b := s.read(s.pidFile); len(b) != 0 {
		t.Errorf("the pid file, in a folder that is closed to the user, says %q", b)
	}
}

func (s *service) read(name string) []byte {
	s.t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// A manager is systemd as services see it: a socket for what they tell, each time with the sender's process ID.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
	path string
}

func startManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{t: t, path: filepath.Join(shortDir(t), "notify")}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	m.conn = conn
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// next is the next message; those of the watchdog are left out unless wanted.
func (m *manager) next(watchdog bool) (from int, message string) {
	m.t.Helper()
	m.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf, oob := make([]byte, 4096), make([]byte, 4096)
	for {
		n, oobn, _, _, err := m.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			m.t.Fatalf("systemd is told nothing: %v", err)
		}
		parts, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			m.t.Fatal(err)
		}
		who, err := unix.ParseUnixCredentials(&parts[0])
		if err != nil {
			m.t.Fatal(err)
		}
		if message = string(buf[:n]); watchdog || message != "WATCHDOG=1" {
			return int(who.Pid), message
		}
	}
}

func (m *manager) wants(from int, prefix string) {
	m.t.Helper()
	if who, got := m.next(false); who != from || !strings.HasPrefix(got, prefix) {
		m.t.Errorf("process %d tells systemd %q, want process %d and %q", who, got, from, prefix)
	}
}

func TestSystemdIsTold(t *testing.T) {
	m, s := startManager(t), newService(t, "")
	cmd := exec.Command("/bin/sh", "-c", `WATCHDOG_PID=$$ exec "$0" "$@"`, s.program, "run", "-c", s.config())
	cmd.Env = []string{"NOTIFY_SOCKET=" + m.path, "WATCHDOG_USEC=200000"}
	s.start(cmd)
	first := s.pid()
	m.wants(first, "READY=1")
	if from, message := m.next(true); from != first || message != "WATCHDOG=1" {
		t.Errorf("the watchdog gets %q from process %d", message, from)
	}
	s.signal(syscall.SIGHUP)
	m.wants(first, "RELOADING=1\nMONOTONIC_USEC=")
	m.wants(first, "READY=1")

	if !s.upgradeBySignal() {
		t.Fatal("no successor")
	}
	second := s.pid()
	m.wants(first, fmt.Sprintf("MAINPID=%d\nWATCHDOG=1", second))
	for range 2 {
		if from, message := m.next(true); from != second || message != "WATCHDOG=1" {
			t.Errorf("after the upgrade the watchdog gets %q from process %d", message, from)
		}
	}
	s.signal(syscall.SIGTERM)
	m.wants(second, "STOPPING=1")
}

func TestSocketsOfSystemd(t *testing.T) {
	s := newService(t, lasting)
	var files []*os.File
	pass := func(network, address string) net.Listener {
		ln, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		f, err := ln.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		if u, ok := ln.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
		ln.Close()
		files = append(files, f)
		return ln
	}
	s.tcp = pass("tcp", "127.0.0.1:0").Addr().String()
	pass("unix", s.unix)
	admin := filepath.Join(s.dir, "admin")
	pass("unix", admin)
	pass("tcp", "127.0.0.1:0") // nobody asks for it
	command := func(set ...string) *exec.Cmd {
		args := []string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, s.program, "run", "-c", s.config()}
		for _, v := range set {
			args = append(args, "--set", v)
		}
		cmd := exec.Command("/bin/sh", args...)
		cmd.Env = []string{"LISTEN_FDS=4", "LISTEN_FDNAMES=web:web:admin:unused"}
		cmd.ExtraFiles = files
		return cmd
	}
	s.replace(s.config(), fmt.Appendf(nil, `
listeners: {web: {address: "fd:web"}}
groups: {web: {backends: [%q]}}
admin: {address: "fd:admin"}
process: {pid_file: %q}
log: {format: json, sessions: {close: false}}
`, s.backends[0].address(), s.pidFile), 0o644)

	for set, want := range map[string]string{
		"listeners.web.address=fd:wab": "listeners.web.address: fd:wab: no socket of that name was passed",
		"admin.address=fd:nobody":      "admin.address: fd:nobody: no socket of that name was passed",
		"listeners.other.address=x":    "listeners.other.address",
	} {
		cmd := command(set)
		cmd.Env = append(os.Environ(), cmd.Env...)
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, %s", set, err, out)
		}
	}
	// The admin socket lets everybody in, as systemd's default mode does.
	os.Chmod(admin, 0o666)
	cmd := command()
	cmd.Env = append(os.Environ(), cmd.Env...)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "its mode -rw-rw-rw- lets everybody in") {
		t.Errorf("an admin socket for everybody: %v, %s", err, out)
	}
	os.Chmod(admin, 0o600)

	s.start(command())
	for _, f := range files {
		f.Close()
	}
	s.serves()
	if status, text := s.ask("reload"); status != 200 {
		t.Errorf("reload: %d %s", status, text)
	}
	s.serves()
	inode := s.inode()
	for range 2 {
		if !s.upgradeBySignal() {
			t.Fatal("no successor")
		}
	}
	s.serves()
	s.end()
	if s.inode() != inode {
		t.Error("the file of systemd's socket is another one")
	}
	if _, err := os.Lstat(admin); err != nil {
		t.Errorf("systemd's admin socket: %v", err)
	}
	if c, err := net.Dial("tcp", s.tcp); err == nil {
		c.Close()
		t.Error("somebody still listens")
	}
}

func TestUnitFile(t *testing.T) {
	analyze := need(t, "systemd-analyze", "systemd")
	unit, err := os.ReadFile("../../configs/tproxy.service")
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "tproxy.service")
	if err := os.WriteFile(copied, bytes.ReplaceAll(unit, []byte("/usr/bin/tproxy"), []byte(binary)), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", copied).CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
