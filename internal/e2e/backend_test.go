//go:build linux

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tproxy/tproxy/internal/stage"
)

// A request is the line that begins a session with a backend of these tests: what both ends do from then on. Lengths are without the line.
type request struct {
	session  uint64
	temper   string
	up, down int64
}

func (r request) String() string {
	return fmt.Sprintf("S %d %s %d %d\n", r.session, r.temper, r.up, r.down)
}

// Tempers of a backend.
const (
	reply  = "reply"  // reads everything up to FIN, then answers
	both   = "both"   // sends and reads at once, and ends its direction when it has sent
	slow   = "slow"   // as both, in small pieces with pauses
	echo64 = "echo64" // answers each 64 bytes with 64
	cut    = "cut"    // sends what it has to send, and resets
)

// A pace is how fast an end sends or reads; the zero pace is as fast as it can.
type pace struct {
	piece int
	pause time.Duration
}

// pauses is how long it rests on the way of n bytes.
func (p pace) pauses(n int64) time.Duration {
	if p.piece == 0 {
		return 0
	}
	return time.Duration(n/int64(p.piece)) * p.pause
}

var (
	errShort = errors.New("FIN before the end of the stream")
	errLong  = errors.New("bytes after the end of the stream")
)

// send writes n bytes of s.
func send(w io.Writer, s *stream, n int64, p pace, sent *atomic.Int64) error {
	if p.piece == 0 {
		p.piece = 32 << 10
	}
	buf := make([]byte, p.piece)
	for left := n; left > 0; {
		b := buf[:min(left, int64(len(buf)))]
		s.fill(b)
		k, err := w.Write(b)
		sent.Add(int64(k))
		if err != nil {
			return err
		}
		left -= int64(k)
		if p.pause > 0 {
			time.Sleep(p.pause)
		}
	}
	return nil
}

// receive reads n bytes of s and then the end of the stream.
func receive(r io.Reader, s *stream, n int64, p pace, got *atomic.Int64) error {
	if p.piece == 0 {
		p.piece = 32 << 10
	}
	buf := make([]byte, p.piece)
	for {
		k, err := r.Read(buf)
		got.Add(int64(k))
		if bad := s.check(buf[:k]); bad != nil {
			return bad
		}
		switch {
		case got.Load() > n:
			return errLong
		case err == io.EOF && got.Load() < n:
			return errShort
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		if p.pause > 0 {
			time.Sleep(p.pause)
		}
	}
}

// reread is what an error of receive means. The first system call after a reset is told of it, and if that was a write, a read sees an end
// of the stream.
func reread(c *net.TCPConn, err error) error {
	if !errors.Is(err, errShort) {
		return err
	}
	raw, e := c.SyscallConn()
	if e != nil {
		return err
	}
	const closed = 7 // TCP_CLOSE: there was a reset; after a FIN it would be TCP_CLOSE_WAIT
	e = raw.Control(func(fd uintptr) {
		if info, e := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); e == nil && info.State == closed {
			err = syscall.ECONNRESET
		}
	})
	return errors.Join(err, e)
}

// outcome is a word for how a session ended: the worst that happened to one of its directions.
func outcome(errs ...error) string {
	words := map[string]bool{}
	for _, err := range errs {
		switch {
		case err == nil:
		case errors.Is(err, errShort):
			words["short"] = true
		case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNABORTED):
			words["reset"] = true
		case errors.Is(err, os.ErrDeadlineExceeded):
			words["timeout"] = true
		default:
			return "bad: " + err.Error()
		}
	}
	for _, w := range []string{"short", "reset", "timeout"} {
		if words[w] {
			return w
		}
	}
	return "clean"
}

// A backendRole is a backend process: it listens on two addresses, on the second of which it speaks first. What it does not expect it
// says on standard output; there it also says how each session ended. Standard input takes the commands refuse
// and accept, finish, which is answered when no connection is left, and report, when every session that ended was told of.
type backendRole struct {
	name    string
	serial  atomic.Int64
	saying  sync.Mutex
	addrs   []string
	lns     []net.Listener
	serving sync.WaitGroup // connections
	asked   sync.WaitGroup // those with a request
}

func actAsBackend(args []string) {
	b := &backendRole{name: args[0], addrs: args[1:]}
	if err := b.listen(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	b.say("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch in.Text() {
		case "refuse":
			for _, ln := range b.lns {
				ln.Close()
			}
		case "finish":
			b.serving.Wait()
		case "report":
			b.asked.Wait()
		case "accept":
			if err := b.listen(); err != nil {
				b.say("bad 0 %v", err)
			}
		}
		b.say("done")
	}
}

func (b *backendRole) say(format string, args ...any) {
	b.saying.Lock()
	defer b.saying.Unlock()
	fmt.Printf(format+"\n", args...)
}

func (b *backendRole) listen() error {
	b.lns = nil
	for i, a := range b.addrs {
		ln, err := net.Listen("tcp", a)
		if err != nil {
			return err
		}
		b.lns = append(b.lns, ln)
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				b.serving.Go(func() { b.serve(c.(*net.TCPConn), i > 0) })
			}
		}()
	}
	return nil
}

func (b *backendRole) serve(c *net.TCPConn, greets bool) {
	c.SetLinger(0) // so that a kill of this process resets, where a FIN would look like an end
	defer c.Close()
	number := b.serial.Add(1)
	if greets {
		if _, err := fmt.Fprintf(c, "HELLO %s-%d %d\n", b.name, os.Getpid(), number); err != nil {
			return
		}
	}
	in := bufio.NewReaderSize(c, 32<<10)
	line, err := in.ReadString('\n')
	switch {
	case line == "PING\n":
		io.WriteString(c, "PONG\n")
		c.SetLinger(-1)
		return
	case err == io.EOF && line != "":
		b.say("bad 0 FIN after %q", line)
		return
	case err != nil:
		return
	}
	var q request
	if _, err := fmt.Sscanf(line, "S %d %s %d %d\n", &q.session, &q.temper, &q.up, &q.down); err != nil {
		b.say("bad 0 request %.40q", line)
		return
	}
	b.asked.Add(1)
	defer b.asked.Done()
	var got, sent atomic.Int64
	how := outcome(b.answer(c, in, q, &got, &sent)...)
	if how == "clean" {
		c.SetLinger(-1)
	}
	b.say("end %d %s %d %d %s", q.session, q.temper, got.Load()+int64(len(line)), sent.Load(), strings.ReplaceAll(how, " ", "_"))
}

func (b *backendRole) answer(c *net.TCPConn, in io.Reader, q request, got, sent *atomic.Int64) []error {
	up, down := upStream(q.session), downStream(q.session)
	switch q.temper {
	case reply:
		if err := receive(in, up, q.up, pace{}, got); err != nil {
			return []error{reread(c, err)}
		}
		if err := send(c, down, q.down, pace{}, sent); err != nil {
			return []error{err}
		}
		return []error{c.CloseWrite()}
	case echo64:
		var b [64]byte
		for {
			n, err := io.ReadFull(in, b[:])
			got.Add(int64(n))
			switch {
			case err == io.EOF && got.Load() == q.up:
				return []error{c.CloseWrite()}
			case err == io.EOF, err == io.ErrUnexpectedEOF:
				return []error{reread(c, errShort)}
			case err != nil:
				return []error{err}
			}
			if err := up.check(b[:]); err != nil {
				return []error{err}
			}
			if err := send(c, down, 64, pace{piece: 64}, sent); err != nil {
				return []error{err}
			}
		}
	case cut:
		return []error{send(c, down, q.down, pace{}, sent), syscall.ECONNRESET}
	}
	var p pace
	if q.temper == slow {
		p = pace{4 << 10, 10 * time.Millisecond}
	}
	read := make(chan error, 1)
	go func() { read <- reread(c, receive(in, up, q.up, p, got)) }()
	err := send(c, down, q.down, p, sent)
	if err == nil {
		err = c.CloseWrite()
	}
	return []error{err, <-read}
}

// A place is where a backend is: its host as others see it, and as it does.
type place struct{ there, here string }

// A server is the handle of a backend process.
type server struct {
	t    *testing.T
	name string
	place
	address string
	greets  string // the address where it speaks first
	report  func(name, line string)

	cmd   *exec.Cmd
	in    io.WriteCloser
	done  chan struct{} // a command was carried out
	ended chan struct{}
}

// startServer runs the nth backend, at addresses that its number gives. report is called, by one goroutine a process, with what it says.
func startServer(t *testing.T, n int, report func(name, line string)) *server {
	t.Helper()
	// An address of its own, so that a port that is free while it restarts is not taken by an outgoing connection.
	host, _ := freeAddress(t)
	if stage.Apart() {
		host = fmt.Sprintf("127.2.0.%d", n)
	}
	return startServerAt(t, n, place{host, host}, report)
}

func startServerAt(t *testing.T, n int, p place, report func(name, line string)) *server {
	t.Helper()
	s := &server{t: t, name: fmt.Sprintf("b%d", n), place: p, report: report}
	_, first := freeAddress(t)
	_, second := freeAddress(t)
	if stage.Apart() {
		first, second = "7000", "7001"
	}
	s.address, s.greets = net.JoinHostPort(p.there, first), net.JoinHostPort(p.there, second)
	s.start()
	t.Cleanup(s.kill)
	return s
}

func (s *server) start() {
	s.t.Helper()
	s.cmd = exec.Command(os.Args[0])
	s.cmd.Env = append(os.Environ(), roleVariable+"=backend "+s.name+" "+s.own(s.address)+" "+s.own(s.greets))
	s.cmd.Stderr = os.Stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := s.cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.in, s.done, s.ended = in, make(chan struct{}, 1), make(chan struct{})
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		s.t.Fatalf("%s says %q", s.name, lines.Text())
	}
	go func() {
		for lines.Scan() {
			if lines.Text() == "done" {
				s.done <- struct{}{}
			} else {
				s.report(s.name, lines.Text())
			}
		}
		close(s.ended)
	}()
}

// own is an address of the server as it calls it itself.
func (s *server) own(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return net.JoinHostPort(s.here, port)
}

// kill ends the process as nothing else does, and returns when everything it said was reported.
func (s *server) kill() {
	s.cmd.Process.Kill()
	<-s.ended
	s.cmd.Wait()
}

func (s *server) signal(sig syscall.Signal) { s.cmd.Process.Signal(sig) }

// tell gives the process a command and waits until it is carried out.
func (s *server) tell(command string) {
	s.t.Helper()
	if _, err := io.WriteString(s.in, command+"\n"); err != nil {
		s.t.Fatal(err)
	}
	select {
	case <-s.done:
	case <-time.After(soon):
		s.t.Fatalf("%s does not %s", s.name, command)
	}
}
