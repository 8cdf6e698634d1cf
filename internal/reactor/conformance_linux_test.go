package reactor_test

// What only Linux lets a test see or do.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tproxy/tproxy/internal/reactor"
)

// onFD calls f with the descriptor of a peer's socket.
func onFD(t *testing.T, c net.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
}

// acknowledged waits until the other kernel has everything that c sent.
func acknowledged(t *testing.T, c net.Conn) {
	t.Helper()
	await(t, "acknowledgement", func() (all bool) {
		onFD(t, c, func(fd int) error {
			n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
			all = n == 0
			return err
		})
		return all
	})
}

// TestAllThatAResettingSideHadSentIsDelivered: it is in our kernel when the reset comes, and the reader is slow.
func TestAllThatAResettingSideHadSentIsDelivered(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		for i := range 6 {
			s := r.connect()
			from, to, cause := s.backend, s.client, reactor.BackendRST
			if i%2 == 1 {
				from, to, cause = to, from, reactor.ClientRST
			}
			to.(*net.TCPConn).SetReadBuffer(32 << 10)
			size, before := []int{400_000, 50_000, 1}[i/2], i < 2
			if before {
				s.relay(reactor.RelayOptions{})
			}
			if err := sendNoise(from, 0, size, newPace(1, false, 8<<10)); err != nil {
				t.Fatal(err)
			}
			acknowledged(t, from)
			if !before {
				s.relay(reactor.RelayOptions{}) // with the reset on its heels
			}
			sendRST(from)
			n, err := readNoise(to, 0, newPace(1, true, 16<<10))
			if n != size || endOf(err) != endRST {
				t.Errorf("round %d: %d bytes of %d, then %v", i, n, size, err)
			}
			if res := s.result(cause); res.Up+res.Down != uint64(size) {
				t.Errorf("round %d: result is %+v", i, res)
			}
		}
	})
}

// TestAReplyBeforeACloseWithUnreadDataIsDelivered is what a server does that answers without reading everything.
func TestAReplyBeforeACloseWithUnreadDataIsDelivered(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).open(reactor.RelayOptions{})
		send(t, s.client, "a long request")
		unreadBy(t, s.backend)
		send(t, s.backend, "no")
		acknowledged(t, s.backend)
		s.backend.Close()
		wants(t, "the client", s.client, "no", endRST)
		s.result(reactor.BackendRST)
	})
}

func TestAnUrgentByteDoesNotDisturbTheOthers(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).open(reactor.RelayOptions{})
		send(t, s.client, "abc")
		wantsNext(t, "the backend", s.backend, "abc")
		onFD(t, s.client, func(fd int) error { return unix.Sendto(fd, []byte("!"), unix.MSG_OOB, nil) })
		send(t, s.client, "def")
		sendFIN(t, s.client)
		wants(t, "the backend", s.backend, "def", endFIN) // as from a direct connection
		send(t, s.backend, "reply")
		s.backend.Close()
		wants(t, "the client", s.client, "reply", endFIN)
		s.result(reactor.ClientFIN)
	})
}

func init() { timers["a slow reader is not idle"] = aSlowReaderIsNotIdle }

// Everything is in the kernel's queue, and only that moves: whenever the reader has emptied its own buffer, which takes it a few pulses.
func aSlowReaderIsNotIdle(t *testing.T, r *rig, limit time.Duration) (told bool) {
	start := time.Now()
	s := r.open(reactor.RelayOptions{Idle: limit})
	const size = 600_000
	s.client.(*net.TCPConn).SetReadBuffer(16 << 10)
	if err := sendNoise(s.backend, 0, size, newPace(1, false, 64<<10)); err != nil {
		if stoodStill(t, start, limit/2) {
			return false
		}
		t.Fatal(err)
	}
	for down := uint64(0); down < size; _, down = s.link.Bytes() {
		if !s.isOpenAfter(start, limit) {
			return false
		}
		runtime.Gosched()
	}
	tick := time.NewTicker(pulse(limit))
	defer tick.Stop()
	buf := make([]byte, 16<<10)
	last := [5]time.Time{start, start, start, start, start} // pulses, the latest first
	end := time.Now().Add(2 * limit)
	for got := 0; got < size; {
		n, err := s.client.Read(buf)
		if err != nil || !bytes.Equal(buf[:n], noise[got:got+n]) {
			if stoodStill(t, last[len(last)-1], limit*3/4) {
				return false
			}
			t.Fatalf("after %d bytes: %v", got, err)
		}
		got += n
		copy(last[1:], last[:])
		last[0] = time.Now()
		if last[0].Before(end) {
			<-tick.C
		}
	}
	if !last[0].After(end) {
		t.Fatal("the reader was too fast for this test")
	}
	wants(t, "the client", s.client, "", endRST)
	s.result(reactor.IdleTimeout)
	return true
}

// TestEstablishedEndsWithItsContextWhenNobodyAnswers dials a listener with a full queue: Linux drops the SYN.
func TestEstablishedEndsWithItsContextWhenNobodyAnswers(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr, err := reactor.ParseAddr("127.0.0.1:" + strconv.Itoa(name.(*unix.SockaddrInet4).Port))
	if err != nil {
		t.Fatal(err)
	}
	await(t, "a full queue", func() bool {
		// Of a listener, Linux reports the length of its queue here, and its backlog.
		if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err != nil || info.Unacked > info.Sacked {
			return err == nil
		}
		if c, err := net.DialTimeout("tcp", addr.String(), 50*time.Millisecond); err == nil {
			peer(t, c)
		}
		return false
	})
	conform(t, func(t *testing.T, e reactor.Engine) {
		for name, with := range map[string]func() (context.Context, context.CancelFunc, error){
			"a deadline": func() (context.Context, context.CancelFunc, error) {
				ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
				return ctx, cancel, context.DeadlineExceeded
			},
			"a cause": func() (context.Context, context.CancelFunc, error) {
				why := errors.New("too slow")
				ctx, cancel := context.WithTimeoutCause(context.Background(), 50*time.Millisecond, why)
				return ctx, cancel, why
			},
			"a cancel": func() (context.Context, context.CancelFunc, error) {
				why := errors.New("the client has left")
				ctx, cancel := context.WithCancelCause(context.Background())
				time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
				return ctx, func() { cancel(nil) }, why
			},
		} {
			c, err := e.Dial(addr, nil, reactor.Addr{})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel, why := with()
			if err := c.Established(ctx); !errors.Is(err, why) {
				t.Errorf("with %s: %v", name, err)
			}
			cancel()
			c.Close()
		}
	})
}

// socketOf is a copy of the descriptor of this process whose socket has that local and remote address; a zero
// remote is a listener.
func socketOf(t *testing.T, local, remote reactor.Addr) (fd int, found bool) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		fd, _ := strconv.Atoi(filepath.Base(entry.Name()))
		name, err := unix.Getsockname(fd)
		if err != nil || addrOf(name) != local {
			continue
		}
		other, err := unix.Getpeername(fd)
		if remote.IsValid() && err == nil && addrOf(other) == remote || !remote.IsValid() && err != nil {
			return fd, true
		}
	}
	return 0, false
}

func addrOf(sa unix.Sockaddr) reactor.Addr {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return reactor.AddrOf(&net.TCPAddr{IP: sa.Addr[:], Port: sa.Port})
	case *unix.SockaddrInet6:
		return reactor.AddrOf(&net.TCPAddr{IP: sa.Addr[:], Port: sa.Port})
	}
	return reactor.Addr{}
}

func TestSocketOptionsChangeForNewConnections(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		d := newDoor(plenty)
		ln, err := e.Listen(ipv4.anyAddr(t), reactor.ListenOptions{Socket: reactor.SocketOptions{KeepaliveIdle: time.Minute, UserTimeout: time.Minute}}, d)
		if err != nil {
			t.Fatal(err)
		}
		defer closeListener(t, ln, d)
		for _, change := range []struct {
			set                          reactor.SocketOptions
			keepalive, idle, userTimeout int
		}{
			{reactor.SocketOptions{KeepaliveIdle: 45 * time.Second, UserTimeout: 30 * time.Second}, 1, 45, 30_000},
			{reactor.SocketOptions{}, 0, 0, 0},
		} {
			ln.SetSocketOptions(change.set)
			dial(t, ln.Addr())
			near := d.next(t)
			fd, ok := socketOf(t, near.Local(), near.Remote())
			if !ok {
				t.Fatal("the accepted socket is not found")
			}
			want := map[[2]int]int{{unix.SOL_SOCKET, unix.SO_KEEPALIVE}: change.keepalive, {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT}: change.userTimeout}
			if change.idle > 0 {
				want[[2]int{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}] = change.idle
			}
			for option, value := range want {
				if got, err := unix.GetsockoptInt(fd, option[0], option[1]); err != nil || got != value {
					t.Errorf("%+v: option %v is %d (%v), want %d", change.set, option, got, err, value)
				}
			}
			near.Close()
		}
	})
}

func TestSocketOptionsOfBothSides(t *testing.T) {
	type option struct {
		level, name, want int
	}
	const nodelay = 1
	full := reactor.SocketOptions{
		KeepaliveIdle: 61 * time.Second, KeepaliveInterval: 17 * time.Second, KeepaliveCount: 5, UserTimeout: 43 * time.Second,
	}
	always := []option{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, nodelay},
		{unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP}, // and not MPTCP
	}
	tests := map[string]struct {
		set  reactor.SocketOptions
		want []option
	}{
		"none": {reactor.SocketOptions{}, []option{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0}, {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 0},
		}},
		"all": {full, []option{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 61},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 17}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 5},
			{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 43_000},
		}},
		"defaults": {reactor.SocketOptions{KeepaliveIdle: time.Minute}, []option{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 60},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, sysctl(t, "tcp_keepalive_intvl")},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, sysctl(t, "tcp_keepalive_probes")},
		}},
	}
	conform(t, func(t *testing.T, e reactor.Engine) {
		for name, test := range tests {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				d, backend := newDoor(plenty), ipv4.listen(t)
				ln, err := e.Listen(ipv4.anyAddr(t), reactor.ListenOptions{Socket: test.set}, d)
				if err != nil {
					t.Fatal(err)
				}
				defer closeListener(t, ln, d)
				dial(t, ln.Addr())
				near := d.next(t)
				far, err := e.Dial(reactor.AddrOf(backend.Addr()), near, reactor.Addr{})
				if err != nil {
					t.Fatal(err)
				}
				if err := far.Established(context.Background()); err != nil {
					t.Fatal(err)
				}
				sockets := make(map[string]int)
				for side, c := range map[string]reactor.Conn{"client": near, "backend": far} {
					fd, ok := socketOf(t, c.Local(), c.Remote())
					if !ok {
						t.Fatalf("%s: no socket", side)
					}
					sockets[side] = fd
				}
				// An engine may set the options of the backend's side only once the session has lasted a second.
				ended := make(chan reactor.Result, 1)
				link := e.Relay(near, far, limited{ended, &reactor.RelayOptions{Backend: test.set}})
				link.Start()
				defer func() {
					link.Kill()
					<-ended
				}()
				for side, fd := range sockets {
					for _, o := range append(always, test.want...) {
						await(t, fmt.Sprintf("%s: option %d/%d is %d", side, o.level, o.name, o.want), func() bool {
							got, err := unix.GetsockoptInt(fd, o.level, o.name)
							return err == nil && got == o.want
						})
					}
				}
			})
		}
	})
}

func sysctl(t *testing.T, name string) int {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/net/ipv4/" + name)
	if err != nil {
		t.Skip(err)
	}
	n, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestListenersAreNotMPTCPAndHaveTheirBacklog(t *testing.T) {
	most := 0
	if text, err := os.ReadFile("/proc/sys/net/core/somaxconn"); err == nil {
		most, _ = strconv.Atoi(string(bytes.TrimSpace(text)))
	}
	conform(t, func(t *testing.T, e reactor.Engine) {
		for set, want := range map[int]int{0: min(4096, most), 7: 7} {
			d := newDoor(0)
			ln, err := e.Listen(ipv4.anyAddr(t), reactor.ListenOptions{Backlog: set}, d)
			if err != nil {
				t.Fatal(err)
			}
			fd, ok := socketOf(t, ln.Addr(), reactor.Addr{})
			if !ok {
				t.Fatal("no socket")
			}
			if p, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || p != unix.IPPROTO_TCP {
				t.Errorf("protocol is %d (%v)", p, err)
			}
			// Of a listener, Linux reports its backlog here.
			if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err != nil || int(info.Sacked) != want {
				t.Errorf("backlog %d has become %d (%v), want %d", set, info.Sacked, err, want)
			}
			closeListener(t, ln, d)
		}
	})
}

func TestAbstractUnixSockets(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		a := reactor.Unix("@reactor-conformance-" + strconv.Itoa(os.Getpid()))
		d := newDoor(plenty)
		ln := listen(t, e, a, d)
		if ln.Addr() != a {
			t.Errorf("address is %v", ln.Addr())
		}
		c := dial(t, a)
		far, err := e.Dial(a, nil, reactor.Addr{})
		if err == nil {
			err = far.Established(context.Background())
		}
		if err != nil {
			t.Fatal(err)
		}
		d.next(t).Close()
		d.next(t).Close()
		far.Close()
		wants(t, "the client", c, "", endFIN)
	})
}

func TestAUnixSocketWithAFullQueueIsInUse(t *testing.T) {
	a := unixPath.anyAddr(t)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: a.Path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	dial(t, a) // Linux lets one more wait than the backlog says
	if _, err := net.Dial("unix", a.Path); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("the queue is not full: %v", err)
	}
	if err := reactor.RemoveStale(a.Path); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("RemoveStale: %v", err)
	}
	if _, err := os.Lstat(a.Path); err != nil {
		t.Errorf("the socket of a living process: %v", err)
	}
}

// TestAcceptingPausesWithoutDescriptors takes all descriptors away, and gives them back.
func TestAcceptingPausesWithoutDescriptors(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		d := newDoor(plenty)
		ln := listen(t, e, ipv4.anyAddr(t), d)
		to := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(ln.Addr().IP.Port())}
		const clients = 10
		var fds []int
		defer func() {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}()
		for range clients { // while that is allowed
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			fds = append(fds, fd)
		}
		var was unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
		// The limit is about the number of the next descriptor, and descriptors below it may be free.
		none := unix.Rlimit{Cur: 3, Max: was.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
			t.Fatal(err)
		}
		restore := func() {
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
				t.Fatal(err)
			}
		}
		defer restore()
		for _, fd := range fds {
			if err := unix.Connect(fd, to); err != nil {
				t.Fatal(err)
			}
		}
		if err := receive(t, d.paused, "a pause"); !errors.Is(err, unix.EMFILE) {
			t.Errorf("paused because of %v", err)
		}
		var before, after unix.Rusage
		start := time.Now()
		unix.Getrusage(unix.RUSAGE_SELF, &before)
		await(t, "100 ms", func() bool { return time.Since(start) > 100*time.Millisecond })
		unix.Getrusage(unix.RUSAGE_SELF, &after)
		if used := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()); used > 60*time.Millisecond {
			t.Errorf("used %v of the processor in 100 ms", used)
		}
		restore()
		start = time.Now()
		if err := receive(t, d.paused, "the end of the pause"); err != nil {
			t.Errorf("paused again: %v", err)
		}
		for range clients {
			d.next(t).Close()
		}
		if took := time.Since(start); took > 10*time.Second { // half a second and what a busy machine adds
			t.Errorf("it took %v to go on", took)
		}
	})
}

// TestThePauseEndsWithoutAClient: nobody waits, and still the Acceptor is told.
func TestThePauseEndsWithoutAClient(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		d := newDoor(plenty)
		ln := listen(t, e, ipv4.anyAddr(t), d)
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		var was unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}); err != nil {
			t.Fatal(err)
		}
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(ln.Addr().IP.Port())})
		if err == nil {
			receive(t, d.paused, "a pause")
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		if err := receive(t, d.paused, "the end of the pause"); err != nil {
			t.Errorf("paused again: %v", err)
		}
	})
}
