//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/smtp"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const warmSpares = 3

// startWarm runs a proxy with spares to a server that speaks first, and waits until the spares are there.
func startWarm(t *testing.T, backend string) *proxy {
	t.Helper()
	p := runProxy(t, 1024, fmt.Sprintf(`
listeners: {main: {address: "127.0.0.1:0", group: main}}
groups: {main: {backends: [%q], pool: {warm: %d, refill_rate: 0}}}
log: {format: json, sessions: {close: false}}
drain: {timeout: 1s}
`, backend, warmSpares))
	p.host, p.port, _ = net.SplitHostPort(p.status().Listeners[0].Addresses[0])
	p.waitForSpares()
	return p
}

func (p *proxy) waitForSpares() {
	p.t.Helper()
	eventually(p.t, soon, "the spares are there", func() bool { return p.metric("tproxy_pool_spares", "") == warmSpares })
}

// greetings opens more sessions at once than there are spares, and returns what each is greeted with and its connection. Nothing may come after it.
func (p *proxy) greetings(want *regexp.Regexp) (conns []net.Conn, greetings []string) {
	p.t.Helper()
	p.waitForSpares()
	hits := p.metric("tproxy_pool_gets_total", `result="hit"`)
	for range 2 * warmSpares {
		c, err := p.dial()
		if err != nil {
			p.t.Fatal(err)
		}
		conns = append(conns, c)
	}
	for _, c := range conns {
		c.SetDeadline(time.Now().Add(20 * time.Second))
		var line []byte
		for b := make([]byte, 1); !bytes.HasSuffix(line, []byte("\n")); line = append(line, b...) {
			if _, err := io.ReadFull(c, b); err != nil {
				p.t.Fatalf("after %q: %v", line, err)
			}
		}
		if !want.Match(line) {
			p.t.Errorf("a client is greeted with %q", line)
		}
		greetings = append(greetings, string(line))
	}
	if n := p.metric("tproxy_pool_gets_total", `result="hit"`) - hits; n < warmSpares {
		p.t.Errorf("%v sessions had a spare, of which there were %d", n, warmSpares)
	}
	return conns, greetings
}

// next is what comes on c within 20 s: n bytes, or fewer and then the end.
func next(t *testing.T, c net.Conn, n int) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, n)
	k, err := io.ReadFull(c, b)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		t.Errorf("after %q: %v", b[:k], err)
	}
	return string(b[:k])
}

func TestSSHServerGreetsEachClientOnce(t *testing.T) {
	ssh := need(t, "ssh", "openssh-client")
	server := startSSH(t)
	p := startWarm(t, server.address)
	conns, _ := p.greetings(regexp.MustCompile(`^SSH-2\.0-OpenSSH_.*\r\n$`))
	for _, c := range conns {
		fmt.Fprint(c, "SSH-2.0-test\r\n")
		// Then comes a packet of the protocol: its length, that of its padding, and SSH_MSG_KEXINIT.
		if b := next(t, c, 6); len(b) != 6 || b[0] != 0 || b[5] != 20 {
			t.Errorf("after the greeting comes %q", b)
		}
		c.Close()
	}
	for _, waited := range []bool{true, false, false} {
		if waited {
			p.waitForSpares()
		}
		args := append([]string{"-p", p.port}, server.options...)
		cmd := exec.Command(ssh, append(args, p.host, "sha256sum; echo done; exit 7")...)
		cmd.Stdin = bytes.NewReader(noise(1, 3<<20))
		var errs strings.Builder
		cmd.Stderr = &errs
		out, _ := cmd.Output()
		const want = "  -\ndone\n"
		if status := cmd.ProcessState.ExitCode(); status != 7 || !strings.HasSuffix(string(out), want) ||
			!strings.HasPrefix(string(out), sha256Of(noise(1, 3<<20))) {
			t.Errorf("a command with 3 MiB of input: status %d, %q\n%s", status, out, errs.String())
		}
	}
}

func sha256Of(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// An sshServer is a running OpenSSH server, and what a client needs to come in.
type sshServer struct {
	address string
	options []string
}

func startSSH(t *testing.T) sshServer {
	t.Helper()
	sshd := need(t, "/usr/sbin/sshd", "openssh-server")
	keygen := need(t, "ssh-keygen", "openssh-client")
	if os.Getuid() == 0 { // sshd insists, and the service that would make it need not run
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	who, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	for _, key := range []string{"host", "client"} {
		run(t, keygen, "-q", "-t", "ed25519", "-N", "", "-f", file(key))
	}
	public, err := os.ReadFile(file("host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	host, port := freeAddress(t)
	for name, text := range map[string]string{
		"known": "* " + string(public),
		"config": fmt.Sprintf(`
ListenAddress %s:%s
HostKey %s
AuthorizedKeysFile %s
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
MaxStartups 100
`, host, port, file("host"), file("client.pub")),
	} {
		if err := os.WriteFile(file(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	launch(t, syscall.SIGTERM, exec.Command(sshd, "-D", "-e", "-f", file("config")))
	eventually(t, soon, "sshd accepts", func() bool { return accepts(host, port) })
	return sshServer{net.JoinHostPort(host, port), []string{"-F", "/dev/null", "-i", file("client"), "-l", who.Username, "-o", "BatchMode=yes",
		"-o", "UserKnownHostsFile=" + file("known"), "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=20"}}
}

func TestSMTPServerGreetsEachClientOnce(t *testing.T) {
	server := startSMTP(t)
	p := startWarm(t, server.address)
	// The greeting has the number of the process that serves the connection.
	conns, greetings := p.greetings(regexp.MustCompile(`^220 mail\.test \d+\r\n$`))
	for _, c := range conns {
		fmt.Fprint(c, "QUIT\r\n")
		const bye = "221 mail.test closing connection\r\n"
		if b := next(t, c, len(bye)+1); b != bye {
			t.Errorf("QUIT is answered by %q", b)
		}
	}
	slices.Sort(greetings)
	if n := len(slices.Compact(greetings)); n != len(conns) {
		t.Errorf("%d clients are greeted with %d greetings: %q", len(conns), n, greetings)
	}
	mails := make(map[string]string) // subject to body
	for n, waited := range []bool{true, true, false, false, false, false} {
		if waited {
			p.waitForSpares()
		}
		subject, body := fmt.Sprint("mail ", n), mailBody(uint64(n))
		mails[subject] = body
		text := "From: a@mail.test\r\nTo: b@mail.test\r\nSubject: " + subject + "\r\n\r\n" + strings.ReplaceAll(body, "\n", "\r\n")
		if err := smtp.SendMail(p.address(), nil, "a@mail.test", []string{"b@mail.test"}, []byte(text)); err != nil {
			t.Errorf("%s: %v", subject, err)
		}
	}
	eventually(t, soon, "every mail is delivered", func() bool { return len(server.delivered(t)) == len(mails) })
	for subject, body := range server.delivered(t) {
		if body != mails[subject] {
			t.Errorf("%q has a body of %d bytes, or others, instead of %d", subject, len(body), len(mails[subject]))
		}
	}
}

// mailBody is about 1 MB of lines, some of which begin with dots.
func mailBody(seed uint64) string {
	r := rand.New(rand.NewPCG(seed, 0))
	var b strings.Builder
	for b.Len() < 1<<20 {
		b.WriteString(strings.Repeat(".", r.IntN(3)))
		for range r.IntN(9) {
			fmt.Fprintf(&b, "%x ", r.Uint32())
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// A mailServer is a running Exim that keeps every mail for mail.test in a folder.
type mailServer struct {
	address string
	folder  string
}

func startSMTP(t *testing.T) mailServer {
	t.Helper()
	exim := need(t, "/usr/sbin/exim4", "exim4-daemon-light")
	if os.Getuid() != 0 {
		t.Skip("needs root: Exim delivers as its own user")
	}
	who, err := user.Lookup("Debian-exim")
	if err != nil {
		t.Fatal(err)
	}
	uid, err1 := strconv.Atoi(who.Uid)
	gid, err2 := strconv.Atoi(who.Gid)
	if err1 != nil || err2 != nil {
		t.Fatalf("ids of %s: %s, %s", who.Username, who.Uid, who.Gid)
	}
	dir, err := os.MkdirTemp("", "tproxy-mail-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	host, port := freeAddress(t)
	config := filepath.Join(dir, "config")
	if err := os.WriteFile(config, fmt.Appendf(nil, `
primary_hostname = mail.test
spool_directory = %[1]s/spool
log_file_path = %[1]s/log-%%s
pid_file_path = %[1]s/pid
local_interfaces = %[2]s
daemon_smtp_ports = %[3]s
smtp_banner = mail.test $pid
host_lookup =
rfc1413_hosts =
tls_advertise_hosts =
acl_smtp_rcpt = rcpt
begin acl
rcpt:
  accept domains = mail.test
begin routers
all:
  driver = accept
  transport = folder
begin transports
folder:
  driver = appendfile
  directory = %[1]s/mail
  maildir_format
  user = Debian-exim
`, dir, host, port), 0o644); err != nil {
		t.Fatal(err)
	}
	launch(t, syscall.SIGTERM, exec.Command(exim, "-C", config, "-bdf"))
	eventually(t, soon, "Exim accepts", func() bool { return accepts(host, port) })
	return mailServer{net.JoinHostPort(host, port), filepath.Join(dir, "mail", "new")}
}

// delivered are the mails that arrived, subject to body.
func (s mailServer) delivered(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.folder, "*"))
	if err != nil {
		t.Fatal(err)
	}
	mails := make(map[string]string)
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		head, body, _ := strings.Cut(string(text), "\n\n")
		for lines := bufio.NewScanner(strings.NewReader(head)); lines.Scan(); {
			if subject, ok := strings.CutPrefix(lines.Text(), "Subject: "); ok {
				mails[subject] = body
			}
		}
	}
	return mails
}
