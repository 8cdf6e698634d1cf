package reactor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The environment of the process that this test starts: the address of the backend.
const childBackend = "REACTOR_TEST_BACKEND"

// TestOutOfDescriptors runs a proxy with few descriptors in a process of its own, and more clients than it can carry: it does
// not spin, accepts nobody without a descriptor for the backend, serves everybody in the end, and leaves none behind.
func TestOutOfDescriptors(t *testing.T) {
	if backend := os.Getenv(childBackend); backend != "" {
		fewDescriptors(t, backend)
		return
	}
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var echoes sync.WaitGroup
	defer echoes.Wait()
	defer backend.Close()
	echoes.Go(func() {
		for {
			c, err := backend.Accept()
			if err != nil {
				return
			}
			echoes.Go(func() {
				io.Copy(c, struct{ io.Reader }{c}) // without the pipes of splice, which package net keeps until a collection, maybe amid another test
				c.Close()
			})
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestOutOfDescriptors$", "-test.count=1")
	child.Env = append(os.Environ(), childBackend+"="+backend.Addr().String())
	child.Stderr = os.Stderr
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	says := bufio.NewScanner(stdout)
	hear := func(word string) string {
		t.Helper()
		if !says.Scan() || !strings.HasPrefix(says.Text(), word+" ") {
			t.Errorf("the child says %q, want %s", says.Text(), word)
		}
		return strings.TrimPrefix(says.Text(), word+" ")
	}
	address := hear("address")
	const clients = 60
	served := make(chan net.Conn, clients)
	var peers sync.WaitGroup
	for range clients {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		peers.Go(func() {
			if _, err := c.Write([]byte("x")); err == nil {
				_, err = io.ReadFull(c, make([]byte, 1))
				if err != nil {
					t.Errorf("a client got no answer: %v", err)
				}
			}
			served <- c
		})
	}
	hear("paused")
	fmt.Fprintln(stdin, "measure")
	if used := hear("used"); !strings.HasPrefix(used, "0.0") {
		t.Errorf("the pause took %s s of processor time in 0.3 s", used)
	}
	for range clients { // each one that ends makes room
		(<-served).Close()
	}
	peers.Wait()
	fmt.Fprintln(stdin, "finish")
	hear("finished")
	var rest []string
	for says.Scan() {
		rest = append(rest, says.Text())
	}
	if err := child.Wait(); err != nil {
		t.Errorf("the child: %v\n%s", err, strings.Join(rest, "\n"))
	}
}

// fewDescriptors is the child.
func fewDescriptors(t *testing.T, backend string) {
	before := descriptors(t)
	e, err := NewEpoll(0)
	if err != nil {
		t.Fatal(err)
	}
	room := uint64(descriptors(t) + 21) // with the one that counting took
	limit := unix.Rlimit{Cur: room, Max: room}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	d := &fewDoor{t: t, engine: e, backend: TCP(netip.MustParseAddrPort(backend)), paused: make(chan error, 1024)}
	ln, err := e.Listen(TCP(netip.MustParseAddrPort("127.0.0.1:0")), ListenOptions{}, d)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("address", ln.Addr())
	if err := receive(t, d.paused, "a pause"); !errors.Is(err, unix.EMFILE) {
		t.Errorf("paused because of %v", err)
	}
	fmt.Println("paused", d.accepted.Load())
	orders := bufio.NewScanner(os.Stdin)
	orders.Scan()
	was, start := processorTime(), time.Now()
	await(t, "0.3 s", func() bool { return time.Since(start) > 300*time.Millisecond })
	fmt.Printf("used %.3f\n", (processorTime() - was).Seconds())
	orders.Scan()
	ln.Close()
	d.sessions.Wait()
	if pauses := d.pauses.Load(); pauses != 0 {
		t.Errorf("%d pauses were not ended", pauses)
	}
	if d.accepted.Load() != d.reserved.Load() {
		t.Errorf("%d reservations for %d clients", d.reserved.Load(), d.accepted.Load())
	}
	e.Close()
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	fmt.Println("finished", d.accepted.Load())
}

func processorTime() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A fewDoor relays every client to the backend.
type fewDoor struct {
	t        *testing.T
	engine   *Epoll
	backend  Addr
	paused   chan error
	pauses   atomic.Int32
	reserved atomic.Int32
	accepted atomic.Int32
	sessions sync.WaitGroup
}

func (d *fewDoor) Reserve() bool { d.reserved.Add(1); return true }
func (d *fewDoor) Unreserve()    { d.reserved.Add(-1) }

func (d *fewDoor) Paused(err error) {
	if err == nil {
		d.pauses.Add(-1)
		return
	}
	d.pauses.Add(1)
	d.paused <- err
}

func (d *fewDoor) Accepted(c Conn) {
	d.accepted.Add(1)
	d.sessions.Add(1)
	go func() {
		far, err := d.engine.Dial(d.backend, c, Addr{})
		if err == nil {
			err = far.Established(context.Background())
		}
		if err != nil {
			d.t.Errorf("a client was accepted, and its backend has no descriptor: %v", err)
			c.Reset()
			d.sessions.Done()
			return
		}
		d.engine.Relay(c, far, d).Start()
	}()
}

func (d *fewDoor) Options() *RelayOptions  { return &RelayOptions{} }
func (d *fewDoor) Unused(Conn, Cause) bool { return false }
func (d *fewDoor) Ended(Result)            { d.sessions.Done() }

// TestEveryPauseEnds: with the next client, when nobody waits, or with the listener.
func TestEveryPauseEnds(t *testing.T) {
	for name, end := range map[string]func(*rig){
		"nobody waits": func(*rig) {},
		"listener":     func(r *rig) { r.ln.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1)
			ln := r.ln.(*listener)
			ln.loop.post(func() {
				ln.pause(unix.EMFILE)
				if name == "listener" && !ln.timer.Reset(time.Hour) { // it had fired
					ln.resumes.Add(1)
				}
			})
			if err := receive(t, r.gate.paused, "the pause"); err != unix.EMFILE {
				t.Errorf("paused because of %v", err)
			}
			end(r)
			if err := receive(t, r.gate.paused, "the end of the pause"); err != nil {
				t.Errorf("paused again: %v", err)
			}
		})
	}
}
