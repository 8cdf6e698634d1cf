//go:build unix

package handover_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/tproxy/tproxy/internal/handover"
)

// The test binary plays the successor, as roleVariable says.
const roleVariable = "SUCCESSOR_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		if err := play(role); err != nil {
			fmt.Fprintln(os.Stderr, role, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// play takes the sockets named web and answers one client on each with its number. It ends when these clients have: who waits for Ready must find it alive.
func play(role string) error {
	time.AfterFunc(time.Minute, func() { os.Exit(1) }) // when the test has died
	if role == "leaves a child behind" {
		in, err := os.Open("/dev/null")
		if err != nil {
			return err
		}
		// Without Receive the descriptors are not close-on-exec: the child has the sockets.
		p, err := os.StartProcess("/bin/sleep", []string{"sleep", "60"}, &os.ProcAttr{
			Files: []*os.File{in, nil, os.Stderr, os.NewFile(3, "pipe"), os.NewFile(4, "socket")}})
		if err != nil {
			return err
		}
		return p.Release()
	}
	in, err := handover.Receive()
	if err != nil {
		return err
	}
	if !in.Awaited() {
		return fmt.Errorf("nobody waits")
	}
	if v := os.Getenv("HANDOVER_SOCKETS"); v != "" {
		return fmt.Errorf("whatever I start would inherit, too: %s", v)
	}
	for fd := 3; fd < 3+1+len(in.Names()); fd++ {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			return fmt.Errorf("descriptor %d would be inherited by what I start: %v", fd, err)
		}
	}
	if role == "hangs" {
		select {}
	}
	listeners, err := in.Take("web")
	if err != nil {
		return err
	}
	if again, _ := in.Take("web"); again != nil {
		return fmt.Errorf("a socket can be taken twice")
	}
	if err := in.Ready(); err != nil {
		return err
	}
	var clients []net.Conn
	for _, ln := range listeners {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		fmt.Fprintf(c, "%d", os.Getpid())
		c.(interface{ CloseWrite() error }).CloseWrite()
		clients = append(clients, c)
	}
	for _, c := range clients {
		io.Copy(io.Discard, c)
	}
	return nil
}

func command(role string, sockets ...handover.Socket) handover.Command {
	env := append(os.Environ(), roleVariable+"="+role, "HANDOVER_SOCKETS=of an earlier successor")
	return handover.Command{Path: os.Args[0], Args: os.Args[:1], Env: env, Stdout: os.Stderr, Stderr: os.Stderr, Sockets: sockets}
}

func socket(t *testing.T, name string, ln net.Listener) handover.Socket {
	t.Helper()
	f, err := handover.Duplicate(ln.(syscall.Conn), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return handover.Socket{Name: name, File: f}
}

func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestSuccessorServesWhoWaitsInTheQueue(t *testing.T) {
	tcp := listen(t, "tcp", "127.0.0.1:0")
	dir, err := os.MkdirTemp("", "handover") // short enough for a socket, which t.TempDir is not everywhere
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	local := listen(t, "unix", path)
	local.(*net.UnixListener).SetUnlinkOnClose(false)
	other := listen(t, "tcp", "127.0.0.1:0")

	s, err := command("serves", socket(t, "web", tcp), socket(t, "other", other), socket(t, "web", local)).Start()
	if err != nil {
		t.Fatal(err)
	}
	var clients []net.Conn
	for _, a := range []net.Addr{tcp.Addr(), local.Addr()} {
		c, err := net.Dial(a.Network(), a.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
	}
	taken, err := s.Ready(within(t, 20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"web"}; !slices.Equal(taken, want) {
		t.Errorf("it took %q, want %q", taken, want)
	}
	tcp.Close()
	local.Close()
	for _, c := range clients {
		if got, err := io.ReadAll(c); string(got) != fmt.Sprint(s.PID()) {
			t.Errorf("a client that waited got %q, %v", got, err)
		}
		c.Close()
	}
	s.Wait()
}

func TestSocketsStayNonBlocking(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	s, err := command("hangs", socket(t, "web", ln)).Start()
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		_, err := ln.Accept()
		accepted <- err
	}()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Ready(ctx); err == nil {
		t.Error("a successor that hangs is ready")
	}
	ln.Close() // would not end an Accept that blocks
	select {
	case <-accepted:
	case <-time.After(10 * time.Second):
		t.Fatal("Accept blocks")
	}
}

// Otherwise nobody could bind the address again after the end of this process.
func TestNothingThatAFailedSuccessorStartedKeepsTheSocket(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	passed := socket(t, "web", ln)
	s, err := command("leaves a child behind", passed).Start()
	if err != nil {
		t.Fatal(err)
	}
	passed.File.Close()
	if _, err := s.Ready(within(t, 20*time.Second)); err == nil || !strings.Contains(err.Error(), "exit status 0") {
		t.Errorf("error %v", err)
	}
	address := ln.Addr().String()
	ln.Close()
	for end := time.Now().Add(10 * time.Second); ; {
		again, err := net.Listen("tcp", address)
		if err == nil {
			again.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func TestNoDescriptorIsLeftBehind(t *testing.T) {
	ln := listen(t, "tcp", "127.0.0.1:0")
	count := func() int {
		files, err := os.ReadDir("/dev/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(files)
	}
	round := func(role string) {
		f, err := handover.Duplicate(ln.(syscall.Conn), "web")
		if err != nil {
			t.Fatal(err)
		}
		s, err := command(role, handover.Socket{Name: "web", File: f}).Start()
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Ready(within(t, 20*time.Second)); err == nil {
			s.Signal(syscall.SIGKILL)
		}
		s.Wait()
	}
	round("serves") // the runtime's poller has its own
	before := count()
	for _, role := range []string{"serves", "fails", "serves"} {
		if role == "fails" {
			if _, err := (handover.Command{Path: "/does/not/exist"}).Start(); err == nil {
				t.Error("a program that is not there was started")
			}
			continue
		}
		round(role)
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func TestAListThatMakesNoSenseIsAnError(t *testing.T) {
	t.Setenv("HANDOVER_SOCKETS", "web")
	if in, err := handover.Receive(); err == nil {
		in.Close()
		t.Error("no error")
	}
}

func TestWithoutAPredecessorThereIsNothing(t *testing.T) {
	more := listen(t, "tcp", "127.0.0.1:0")
	f, err := handover.Duplicate(more.(syscall.Conn), "fd:web")
	if err != nil {
		t.Fatal(err)
	}
	in, err := handover.Receive(handover.Socket{Name: "fd:web", File: f})
	if err != nil {
		t.Fatal(err)
	}
	if in.Awaited() || !slices.Equal(in.Names(), []string{"fd:web"}) {
		t.Errorf("%v, %q", in.Awaited(), in.Names())
	}
	if all, err := in.Take("web"); err != nil || all != nil {
		t.Errorf("%v, %v", all, err)
	}
	if err := in.Ready(); err != nil {
		t.Error(err)
	}
	if _, err := f.Stat(); err == nil {
		t.Error("a socket that nobody took is open")
	}
}
