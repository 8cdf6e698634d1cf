//go:build unix

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tproxy/tproxy/examples/line"
)

// patience is how long a script waits for what must happen.
const patience = 15 * time.Second

// TestCommandLine runs the scripts in testdata. Besides the commands of testscript they have these; names of processes, backends and
// clients are the script's own.
//
//	exits STATUS ARG…        run tproxy to its end, which must have that status
//	start NAME ARG…          start tproxy
//	await NAME REGEXP        wait until a process has written a line that matches, after the last that was awaited; (?P<VAR>…) sets $VAR
//	says NAME REGEXP         wait until a process has written a line that matches, at any time
//	said NAME REGEXP         what a process wrote until now matches; with ! it does not
//	signal NAME SIGNAL       send a signal to a process
//	ends NAME STATUS         wait until a process has ended, which must be with that status
//	backend NAME [unix:PATH] start a backend that calls itself NAME; $NAME is its address
//	occupy NAME              listen on an address, which is $NAME
//	session NAME ADDRESS     open a session, which must be served; $NAME is the backend's name; with ! it must not be served
//	knock NAME ADDRESS       open a session without waiting for an answer
//	refuses ADDRESS          wait until a connect is refused
//	answers NAME             the session still works
//	hangup NAME              send FIN, and read what comes until the session has ended
//	ended NAME               wait until the session was ended by the other side
//	fill FILE…               put the values of variables into files
//	awaitfile FILE REGEXP    wait until a file is there and matches
func TestCommandLine(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			s := &stage{processes: map[string]*process{}, clients: map[string]*peer{}}
			env.Values[stageKey{}] = s
			env.Vars = append(env.Vars, "GORACE=atexit_sleep_ms=0") // a second for every process
			env.Defer(s.clear)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "start": start, "await": await, "says": says, "said": said, "signal": sendSignal, "ends": ends, "backend": startBackend,
			"occupy": occupy, "session": openSession, "knock": knock, "refuses": refuses, "answers": answers, "hangup": hangup, "ended": ended, "fill": fill, "awaitfile": awaitFile,
		},
	})
}

// A stage is what runs for one script.
type stage struct {
	processes map[string]*process
	clients   map[string]*peer
	clearing  []func()
	serving   sync.WaitGroup
}

type stageKey struct{}

func on(ts *testscript.TestScript) *stage { return ts.Value(stageKey{}).(*stage) }

// atEnd has something closed when the script has ended.
func (s *stage) atEnd(f func()) { s.clearing = append(s.clearing, f) }

func (s *stage) clear() {
	for _, f := range s.clearing {
		f()
	}
	s.serving.Wait()
}

// need checks the number of arguments, and that there is no ! before a command that cannot be negated.
func need(ts *testscript.TestScript, args []string, least, most int, neg bool) {
	if neg || len(args) < least || len(args) > most {
		ts.Fatalf("wrong use of a script command: see TestCommandLine")
	}
}

func number(ts *testscript.TestScript, s string) int {
	n, err := strconv.Atoi(s)
	ts.Check(err)
	return n
}

func pattern(ts *testscript.TestScript, s string) *regexp.Regexp {
	re, err := regexp.Compile("(?m)" + s)
	ts.Check(err)
	return re
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 2, 100, neg)
	got, err := 0, ts.Exec("tproxy", args[1:]...)
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		got = e.ExitCode()
	} else {
		ts.Check(err)
	}
	if want := number(ts, args[0]); got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// A process is a tproxy that was started.
type process struct {
	cmd  *exec.Cmd
	out  *output
	done chan struct{} // closed when it has ended
}

func processOf(ts *testscript.TestScript, name string) *process {
	p := on(ts).processes[name]
	if p == nil {
		ts.Fatalf("no process %s", name)
	}
	return p
}

func start(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 2, 100, neg)
	path, err := exec.LookPath("tproxy")
	ts.Check(err)
	p := &process{cmd: exec.Command(path, args[1:]...), out: newOutput(), done: make(chan struct{})}
	p.cmd.Dir = ts.MkAbs(".")
	p.cmd.Env = []string{"HOME=" + ts.Getenv("HOME"), "PATH=" + ts.Getenv("PATH"), "TMPDIR=" + ts.Getenv("TMPDIR"), "GORACE=" + ts.Getenv("GORACE")}
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	ts.Check(p.cmd.Start())
	s := on(ts)
	s.processes[args[0]] = p
	s.atEnd(func() { p.cmd.Process.Kill() })
	s.serving.Go(func() {
		p.cmd.Wait()
		p.out.end()
		close(p.done)
	})
}

func await(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 2, 2, neg)
	re := pattern(ts, args[1])
	p := processOf(ts, args[0])
	m := p.out.await(re)
	if m == nil {
		ts.Fatalf("%s did not write a line with %s; it wrote:\n%s", args[0], args[1], p.out)
	}
	for i, name := range re.SubexpNames() {
		if name != "" {
			ts.Setenv(name, m[i])
		}
	}
}

func says(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 2, 2, neg)
	p := processOf(ts, args[0])
	if p.out.find(pattern(ts, args[1]), false) == nil {
		ts.Fatalf("%s did not write %s; it wrote:\n%s", args[0], args[1], p.out)
	}
}

func said(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 2, 2, false)
	p := processOf(ts, args[0])
	if text := p.out.String(); pattern(ts, args[1]).MatchString(text) == neg {
		ts.Fatalf("%s wrote:\n%s", args[0], text)
	}
}

func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 2, 2, neg)
	signals := map[string]os.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "QUIT": syscall.SIGQUIT, "HUP": syscall.SIGHUP, "USR1": syscall.SIGUSR1,
		"USR2": syscall.SIGUSR2}
	ts.Check(processOf(ts, args[0]).cmd.Process.Signal(signals[args[1]]))
}

func ends(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 2, 2, neg)
	p := processOf(ts, args[0])
	select {
	case <-p.done:
	case <-time.After(patience):
		ts.Fatalf("%s still runs; it wrote:\n%s", args[0], p.out)
	}
	if got, want := p.cmd.ProcessState.ExitCode(), number(ts, args[1]); got != want {
		ts.Fatalf("%s: exit status %d, want %d; it wrote:\n%s", args[0], got, want, p.out)
	}
}

// An output is what a process has written.
type output struct {
	mu     sync.Mutex
	text   []byte
	ended  bool
	seen   int           // where the next await begins
	change chan struct{} // closed at the next change
}

func newOutput() *output { return &output{change: make(chan struct{})} }

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, b...)
	close(o.change)
	o.change = make(chan struct{})
	return len(b), nil
}

func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	close(o.change)
	o.change = make(chan struct{})
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}

// await returns the first match in whole lines that no await has passed; nil if there is none in time.
func (o *output) await(re *regexp.Regexp) []string { return o.find(re, true) }

// find waits for a match in whole lines; only in those that no await has passed, which then passes it, if inOrder.
func (o *output) find(re *regexp.Regexp, inOrder bool) []string {
	late := time.After(patience)
	for {
		o.mu.Lock()
		lines := o.text[:bytes.LastIndexByte(o.text, '\n')+1]
		if inOrder {
			lines = lines[o.seen:]
		}
		at := re.FindSubmatchIndex(lines)
		var found []string
		if at != nil {
			found = re.FindStringSubmatch(string(lines))
			if inOrder {
				o.seen += at[1]
			}
		}
		ended, change := o.ended, o.change
		o.mu.Unlock()
		if found != nil || ended {
			return found
		}
		select {
		case <-change:
		case <-late:
			return nil
		}
	}
}

func startBackend(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 1, 2, neg)
	network, address := "tcp", "127.0.0.1:0"
	if len(args) > 1 {
		network, address = "unix", strings.TrimPrefix(args[1], "unix:")
	}
	ln, err := net.Listen(network, address)
	ts.Check(err)
	s, b := on(ts), &line.Server{Name: args[0]}
	s.atEnd(func() { b.Close() })
	s.serving.Go(func() { b.Serve(ln) })
	if len(args) == 1 {
		ts.Setenv(args[0], ln.Addr().String())
	}
}

func occupy(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 1, 1, neg)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	on(ts).atEnd(func() { ln.Close() })
	ts.Setenv(args[0], ln.Addr().String())
}

// A peer is the client's end of a session.
type peer struct {
	net.Conn
	in *bufio.Reader
}

// ask sends a line and returns the answer.
func (p *peer) ask(line string) (string, error) {
	p.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(p, "%s\n", line); err != nil {
		return "", err
	}
	answer, err := p.in.ReadString('\n')
	return strings.TrimSuffix(answer, "\n"), err
}

// rest reads until the other side ends the session.
func (p *peer) rest() error {
	p.SetDeadline(time.Now().Add(patience))
	if _, err := p.in.WriteTo(bytes.NewBuffer(nil)); errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("the session is still open")
	}
	return p.Close()
}

func peerOf(ts *testscript.TestScript, name string) *peer {
	p := on(ts).clients[name]
	if p == nil {
		ts.Fatalf("no session %s", name)
	}
	return p
}

func connect(ts *testscript.TestScript, name, address string) (*peer, error) {
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return nil, err
	}
	p := &peer{c, bufio.NewReader(c)}
	s := on(ts)
	s.clients[name] = p
	s.atEnd(func() { p.Close() })
	return p, nil
}

func knock(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 2, 2, neg)
	_, err := connect(ts, args[0], args[1])
	ts.Check(err)
}

func openSession(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 2, 2, false)
	var who string
	p, err := connect(ts, args[0], args[1])
	if err == nil {
		who, err = p.ask("WHO")
	}
	switch {
	case !neg:
		ts.Check(err)
		ts.Setenv(args[0], who)
	case err == nil:
		ts.Fatalf("served by %s", who)
	case errors.Is(err, os.ErrDeadlineExceeded):
		ts.Fatalf("%v", err)
	}
}

func refuses(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 1, 1, neg)
	again, late := time.NewTicker(5*time.Millisecond), time.After(patience)
	defer again.Stop()
	for {
		c, err := net.DialTimeout("tcp", args[0], patience)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if err == nil {
			c.Close()
		}
		select {
		case <-again.C:
		case <-late:
			ts.Fatalf("a connect to %s is not refused: %v", args[0], err)
		}
	}
}

func answers(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 1, 1, neg)
	got, err := peerOf(ts, args[0]).ask("ECHO still here")
	ts.Check(err)
	if got != "still here" {
		ts.Fatalf("the answer is %q", got)
	}
}

func hangup(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 1, 1, neg)
	p := peerOf(ts, args[0])
	ts.Check(p.Conn.(*net.TCPConn).CloseWrite())
	ts.Check(p.rest())
}

func ended(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 1, 1, neg)
	ts.Check(peerOf(ts, args[0]).rest())
}

func fill(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 1, 100, neg)
	for _, name := range args {
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(os.Expand(ts.ReadFile(name), ts.Getenv)), 0o600))
	}
}

func awaitFile(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 2, 2, neg)
	re, look, late := pattern(ts, args[1]), time.NewTicker(5*time.Millisecond), time.After(patience)
	defer look.Stop()
	for {
		text, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && re.Match(text) {
			return
		}
		select {
		case <-look.C:
		case <-late:
			ts.Fatalf("%s: %v; it holds %q", args[0], err, text)
		}
	}
}
