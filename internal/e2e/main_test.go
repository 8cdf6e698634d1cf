//go:build linux

// Package e2e holds tests of the built program with real clients and servers around it. A test whose Debian package is missing is skipped, and
// fails where CI is set.
package e2e

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/stage"
)

// binary is the program under test, built once unless -tproxy names one.
var binary string

var built = flag.String("tproxy", "", "a tproxy to test, such as a race build, instead of building it")

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		play(role)
		return
	}
	flag.Parse()
	os.Exit(stage.Run(m, *built, &binary))
}

// need skips the test where program is missing, or fails it in CI, and returns the program's path.
func need(t *testing.T, program, debianPackage string) string {
	t.Helper()
	p, err := exec.LookPath(program)
	if err == nil {
		return p
	}
	if found, _ := filepath.Glob(program); len(found) > 0 {
		return found[len(found)-1]
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is missing: apt-get install %s", program, debianPackage)
	}
	t.Skipf("needs %s: apt-get install %s", program, debianPackage)
	return ""
}

// soon is how long to wait for what must happen. On a busy machine it may take long; how long is judged where that is the point.
const soon = 30 * time.Second

// run runs a program to its end, which must come within two minutes and be a success, and returns its standard output.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() }).Stop()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd, err, out.String(), errs.String())
	}
	return out.String()
}

// launch starts a server and ends it with the test, by sig and after 5 s by SIGKILL. What it says is shown when the test fails.
func launch(t *testing.T, sig syscall.Signal, cmd *exec.Cmd) *log {
	t.Helper()
	out := &log{ready: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(sig)
		defer time.AfterFunc(5*time.Second, func() { cmd.Process.Kill() }).Stop()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", cmd, out)
		}
	})
	return out
}

// eventually waits until ok, and fails the test when that takes longer than limit.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	end := time.After(limit)
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for !ok() {
		select {
		case <-again.C:
		case <-end:
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// freeAddress is a loopback address that nothing listens on. Its host is this process's own, so that no other test takes the port meanwhile.
func freeAddress(t *testing.T) (host, port string) {
	t.Helper()
	pid := os.Getpid()
	host = fmt.Sprintf("127.%d.%d.%d", 64+pid>>16&63, pid>>8&255, pid&255)
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, err = net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return host, port
}

func accepts(host, port string) bool {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(host, port), time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// The test binary plays clients and servers in processes of their own, so that their descriptors and memory are not this one's. A role
// writes a line when it is ready and ends at the end of its standard input.
const roleVariable = "E2E_ROLE"

func play(role string) {
	role, arg, _ := strings.Cut(role, " ")
	switch role {
	case "echo":
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		go echo(ln)
		fmt.Println(ln.Addr())
	case "backend":
		actAsBackend(strings.Fields(arg))
		return
	case "hold":
		var address string
		var n int
		fmt.Sscan(arg, &address, &n)
		held, err := hold(address, n)
		fmt.Println(len(held), err)
	}
	io.Copy(io.Discard, os.Stdin)
}

func echo(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			var buf [512]byte
			for {
				n, err := c.Read(buf[:])
				if err != nil {
					return
				}
				if _, err := c.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
	}
}

// hold opens n sessions, each with one round trip. It returns those that it could open and why it gave up.
func hold(address string, n int) (held []net.Conn, err error) {
	for range n {
		c, err := net.DialTimeout("tcp", address, 10*time.Second)
		if err != nil {
			return held, err
		}
		held = append(held, c)
		if err := roundTrip(c); err != nil {
			return held, err
		}
	}
	return held, nil
}

// roundTrip exchanges 64 bytes with an echo server within 10 s.
func roundTrip(c net.Conn) error {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	defer c.SetDeadline(time.Time{})
	var out, in [64]byte
	copy(out[:], c.LocalAddr().String())
	if _, err := c.Write(out[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, in[:]); err != nil {
		return err
	}
	if in != out {
		return fmt.Errorf("sent %q, got %q", out, in)
	}
	return nil
}

// A part is a running role.
type part struct {
	said string // its first line
	end  func() // idempotent
}

func perform(t *testing.T, role string) part {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := func() {
		if in.Close() == nil {
			cmd.Wait()
		}
	}
	t.Cleanup(end)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v", role, err)
	}
	return part{said: strings.TrimSpace(line), end: end}
}
