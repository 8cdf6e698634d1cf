package reactor

import (
	"bytes"
	"math/rand/v2"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A fakeKernel is sockets, pipes and epoll instances in memory, for tests that drive a relay by hand. It does what Linux does, and
// at its worst: before each call something may have happened (meanwhile), and a call may fail (fault).
type fakeKernel struct {
	t       testing.TB
	next    int32
	sockets map[int32]*fakeSocket
	pipes   map[int32]*fakePipe // by both ends
	calls   int

	meanwhile func()                // runs before every call; may be nil
	fault     func() fault          // what goes wrong in a call; may be nil
	pipeSize  int                   // of the next pipe
	moved     func(*fakeSocket)     // the socket took bytes from the relay; may be nil
	finTaken  func(*fakeSocket)     // the relay has read the FIN; may be nil
	failed    func(e syscall.Errno) // the system refused something; may be nil
}

// A fault is what goes wrong in one call. Each call takes those that can happen to it.
type fault uint8

const (
	noFault   fault = iota
	full            // EAGAIN from a write that had room; the event follows
	short           // fewer bytes than possible, where Linux may do that
	exhausted       // ENOBUFS, ENOMEM, ENOSPC, EMFILE
	unfit           // EINVAL from splice
)

// A fakeSocket is the relay's end of a connection, and what its peer does.
type fakeSocket struct {
	k    *fakeKernel
	fd   int32
	unix bool

	// What the peer sent. Streams are told apart by their bytes.
	stream []byte
	sent   int   // bytes of stream that have arrived
	taken  int   // bytes of stream that the relay has read
	urgent []int // which of them were urgent
	mark   int   // index of the urgent byte that has not been read; -1: none
	fin    bool  // the peer's FIN has arrived
	dead   bool  // reset, or timed out
	gone   bool  // the peer has closed; what comes now is answered by a reset
	err    syscall.Errno

	// What the relay sent.
	source  *fakeSocket // whose stream that must be
	next    int         // index in source.stream of the next byte
	took    int         // bytes accepted, urgent ones too
	got     int         // of them, received by the peer
	room    int         // what the kernel buffers
	shut    bool
	waiting bool // for room
	oob     int  // urgent bytes of source up to the last one that was passed on as such

	ep       int // 0: not registered
	event    unix.EpollEvent
	edge     bool // in the ready list of ep
	closed   bool
	wasReset bool // closed with RST
}

type fakePipe struct {
	r, w int32
	size int
	data []byte
	open int // ends
}

// noise is what peers send.
var fakeNoise = func() []byte {
	p := make([]byte, 8<<20)
	r := rand.NewChaCha8([32]byte{7})
	r.Read(p)
	return p
}()

func newFakeKernel(t testing.TB) *fakeKernel {
	// No real descriptor has such a number: what slips past the seam fails, and does no harm.
	return &fakeKernel{t: t, next: 1 << 24, sockets: map[int32]*fakeSocket{}, pipes: map[int32]*fakePipe{}, pipeSize: 64 << 10}
}

func (k *fakeKernel) fd() int32 {
	k.next++
	return k.next
}

func (k *fakeKernel) socket(stream []byte, room int) *fakeSocket {
	s := &fakeSocket{k: k, fd: k.fd(), stream: stream, mark: -1, room: room}
	k.sockets[s.fd] = s
	return s
}

// opposite makes what one of them sends what the other must get.
func opposite(a, b *fakeSocket) { a.source, b.source = b, a }

// enter begins a call about fd.
func (k *fakeKernel) enter(fd int32) (*fakeSocket, fault) {
	s := k.sockets[fd]
	if s != nil && s.closed {
		k.t.Fatalf("call on a closed socket")
	}
	k.calls++
	if k.meanwhile != nil {
		k.meanwhile()
	}
	if k.fault != nil {
		return s, k.fault()
	}
	return s, noFault
}

func (k *fakeKernel) refuse(e syscall.Errno) syscall.Errno {
	if k.failed != nil {
		k.failed(e)
	}
	return e
}

// events is what epoll would report now.
func (s *fakeSocket) events() (m uint32) {
	if s.sent > s.taken || s.fin || s.dead {
		m |= unix.EPOLLIN
	}
	if s.fin || s.dead {
		m |= unix.EPOLLRDHUP
	}
	if s.dead || s.fin && s.shut || s.unix && s.gone {
		m |= unix.EPOLLHUP
	}
	if s.err != 0 {
		m |= unix.EPOLLERR
	}
	if s.mark >= 0 {
		m |= unix.EPOLLPRI
	}
	if s.shut || s.dead || s.writable() {
		m |= unix.EPOLLOUT
	} else {
		s.waiting = true // tcp_poll asks for the event when it finds no room
	}
	return m
}

// writable is when Linux calls it so, not as soon as there is any room.
func (s *fakeSocket) writable() bool { return 3*(s.took-s.got) <= 2*s.room }

func (s *fakeSocket) happened() {
	if s.ep != 0 && !s.closed {
		s.edge = true
	}
}

// The peer's side.

func (s *fakeSocket) peerSends(n int) {
	if s.closed || s.fin || s.dead || s.gone {
		return
	}
	s.sent = min(s.sent+n, len(s.stream))
	s.happened()
}

func (s *fakeSocket) peerSendsUrgent() {
	if s.closed || s.fin || s.dead || s.gone || s.unix || len(s.urgent) > 0 && s.taken <= s.urgent[len(s.urgent)-1] || s.sent == len(s.stream) {
		return // a second one would make the first an ordinary byte
	}
	s.mark = s.sent
	s.urgent = append(s.urgent, s.sent)
	s.sent++
	s.happened()
}

func (s *fakeSocket) peerFIN() {
	if !s.closed && !s.dead && !s.fin {
		s.fin = true
		s.happened()
	}
}

func (s *fakeSocket) peerReset(e syscall.Errno) {
	if s.closed || s.dead || s.unix {
		return
	}
	if s.fin && s.shut && s.took == s.got {
		return // no longer there to be reset
	}
	s.dead, s.err = true, e
	s.happened()
}

// peerCloses as a program does that exits: a reset if it has not read everything.
func (s *fakeSocket) peerCloses() {
	if s.closed || s.dead || s.gone {
		return
	}
	s.gone = true
	switch {
	case s.unix:
		s.fin = true
		if s.took > s.got {
			s.err = unix.ECONNRESET
		}
		s.happened()
	case s.took > s.got:
		s.peerReset(unix.ECONNRESET)
	default:
		s.peerFIN()
	}
}

func (s *fakeSocket) peerReads(n int) {
	if s.closed && s.wasReset || s.dead || s.gone {
		return
	}
	s.got = min(s.got+n, s.took)
	if s.waiting && s.writable() {
		s.waiting = false
		s.happened()
	}
}

// The relay's side.

// readable is how much one read returns, up to the urgent byte.
func (s *fakeSocket) readable() int {
	n := s.sent - s.taken
	if i := s.nextUrgent(); i >= 0 && i > s.taken {
		n = i - s.taken
	}
	return n
}

// nextUrgent is the index of an urgent byte that reading has not passed; -1: there is none.
func (s *fakeSocket) nextUrgent() int {
	if n := len(s.urgent); n > 0 && s.urgent[n-1] >= s.taken {
		return s.urgent[n-1]
	}
	return -1
}

// nothing is what a read returns when there are no bytes.
func (s *fakeSocket) nothing() (int, syscall.Errno) {
	if s.fin && !s.unix { // SOCK_DONE comes before sk_err
		if s.k.finTaken != nil {
			s.k.finTaken(s)
		}
		return 0, 0
	}
	if e := s.err; e != 0 {
		s.err = 0
		return 0, e
	}
	if s.fin || s.dead {
		if s.fin && s.k.finTaken != nil {
			s.k.finTaken(s)
		}
		return 0, 0
	}
	return 0, unix.EAGAIN
}

func (k *fakeKernel) recv(fd int32, p []byte, flags int) (int, syscall.Errno) {
	s, f := k.enter(fd)
	if f == exhausted && s.sent == s.taken {
		return 0, k.refuse(unix.ENOMEM)
	}
	if flags&unix.MSG_OOB != 0 {
		if s.mark < 0 {
			return 0, unix.EINVAL
		}
		p[0] = s.stream[s.mark]
		if flags&unix.MSG_PEEK == 0 {
			s.mark = -1
		}
		return 1, 0
	}
	if s.taken == s.nextUrgent() { // a read steps over the urgent byte
		s.taken++
		s.mark = -1
	}
	n := min(len(p), s.readable())
	if n == 0 {
		return s.nothing()
	}
	if f == short && s.unix {
		n = 1 + n/3
	}
	copy(p, s.stream[s.taken:s.taken+n])
	s.taken += n
	return n, 0
}

// accept is what a write may write: a number of bytes, or an error.
func (s *fakeSocket) accept(n int, f fault) (int, syscall.Errno) {
	switch {
	case s.shut:
		s.k.t.Fatal("a write after the FIN")
	case s.err != 0:
		e := s.err
		s.err = 0
		return 0, e
	case s.dead || s.unix && s.gone:
		return 0, unix.EPIPE
	case f == exhausted:
		return 0, s.k.refuse(unix.ENOBUFS)
	case f == full:
		s.waiting = true
		if s.writable() {
			s.waiting = false
			s.happened()
		}
		return 0, unix.EAGAIN
	}
	n = min(n, s.room-(s.took-s.got))
	if n <= 0 {
		s.waiting = true
		return 0, unix.EAGAIN
	}
	return n, 0
}

// take checks and books bytes that a write has written.
func (s *fakeSocket) take(p []byte) {
	for q := p; len(q) > 0; {
		for _, u := range s.source.urgent {
			if s.next == u {
				s.next++
			}
		}
		n := len(q)
		for _, u := range s.source.urgent {
			if u > s.next {
				n = min(n, u-s.next)
			}
		}
		if s.next+n > s.source.sent || !bytes.Equal(q[:n], s.source.stream[s.next:s.next+n]) {
			s.k.t.Fatalf("bytes from %d to %d are not what the other side sent", s.next, s.next+n)
		}
		s.next += n
		q = q[n:]
	}
	s.booked(len(p))
}

func (s *fakeSocket) booked(n int) {
	s.took += n
	if s.k.moved != nil {
		s.k.moved(s)
	}
	if s.gone { // nobody is there: a reset is the answer
		s.peerReset(unix.EPIPE)
	}
}

func (k *fakeKernel) send(fd int32, p []byte, flags int) (int, syscall.Errno) {
	s, f := k.enter(fd)
	n, e := s.accept(len(p), f)
	if e != 0 {
		return 0, e
	}
	if flags&unix.MSG_OOB != 0 {
		if len(s.source.urgent) <= s.oob || p[0] != s.source.stream[s.source.urgent[len(s.source.urgent)-1]] {
			k.t.Fatal("an urgent byte that nobody sent, or sent twice")
		}
		s.oob = len(s.source.urgent)
		s.booked(1)
		return 1, 0
	}
	s.take(p[:n])
	if n < len(p) {
		s.waiting = true
	}
	return n, 0
}

func (k *fakeKernel) splice(from, to int32, n int) (int, syscall.Errno) {
	if p := k.pipes[to]; p != nil {
		s, f := k.enter(from)
		if len(p.data) > 0 {
			k.t.Fatal("splice into a pipe that is not empty: its EAGAIN would be ambiguous")
		}
		switch f {
		case unfit:
			return 0, unix.EINVAL
		case exhausted:
			return 0, k.refuse(unix.ENOMEM)
		}
		n = min(n, p.size, s.readable())
		if s.taken == s.nextUrgent() {
			n = 0 // it stops at the urgent byte
		}
		if n == 0 {
			return s.nothing()
		}
		if f == short {
			n = 1 + n/5
		}
		p.data = append(p.data, s.stream[s.taken:s.taken+n]...)
		s.taken += n
		return n, 0
	}
	p := k.pipes[from]
	s, f := k.enter(to)
	if n != len(p.data) || n == 0 {
		k.t.Fatalf("splice of %d bytes from a pipe of %d", n, len(p.data))
	}
	n, e := s.accept(n, f)
	if e != 0 {
		return 0, e
	}
	if f == short {
		n = 1 + n/5
	}
	s.take(p.data[:n])
	p.data = p.data[n:]
	return n, 0
}

func (k *fakeKernel) shutdown(fd int32) syscall.Errno {
	s, _ := k.enter(fd)
	if s.dead {
		return unix.ENOTCONN
	}
	x := s.source
	if !x.fin || s.lacks() > 0 {
		k.t.Fatalf("FIN was passed on: %v, %d bytes were not", x.fin, s.lacks())
	}
	s.shut = true
	s.happened()
	return 0
}

// lacks is how many bytes that the other side sent were not yet accepted, urgent ones aside.
func (s *fakeSocket) lacks() int {
	n := s.source.sent - s.next
	for _, u := range s.source.urgent {
		if u >= s.next {
			n--
		}
	}
	return n
}

func (k *fakeKernel) unsent(fd int32) int { return k.sockets[fd].took - k.sockets[fd].got }

func (k *fakeKernel) atMark(fd int32) bool {
	s, _ := k.enter(fd)
	return s.nextUrgent() == s.taken
}

func (k *fakeKernel) close(fd int32, reset bool) {
	if p := k.pipes[fd]; p != nil {
		delete(k.pipes, fd)
		p.open--
		return
	}
	s := k.sockets[fd]
	if s == nil || s.closed {
		k.t.Fatal("a descriptor was closed twice")
	}
	s.closed, s.wasReset, s.ep = true, reset, 0
}

func (k *fakeKernel) pipe() (r, w int32, size int, e syscall.Errno) {
	if _, f := k.enter(0); f == exhausted {
		return -1, -1, 0, unix.EMFILE
	}
	p := &fakePipe{r: k.fd(), w: k.fd(), size: k.pipeSize, open: 2}
	k.pipes[p.r], k.pipes[p.w] = p, p
	return p.r, p.w, p.size, 0
}

func (k *fakeKernel) epollCtl(ep, op int, fd int32, ev unix.EpollEvent) syscall.Errno {
	s, f := k.enter(fd)
	switch op {
	case unix.EPOLL_CTL_ADD:
		if f == exhausted {
			return k.refuse(unix.ENOSPC)
		}
		if s.ep != 0 {
			k.t.Fatal("registered twice")
		}
		s.ep, s.event, s.edge = ep, ev, true
	case unix.EPOLL_CTL_MOD:
		if f == exhausted {
			return k.refuse(unix.ENOMEM)
		}
		if s.ep != ep {
			k.t.Fatal("changed, and not registered")
		}
		s.event, s.edge = ev, true
	case unix.EPOLL_CTL_DEL:
		s.ep, s.edge = 0, false
	}
	return 0
}

// wait is epoll_wait: the events of ep, at most as many as fit.
func (k *fakeKernel) wait(ep int, out []unix.EpollEvent) (n int) {
	for fd := int32(1 << 24); fd <= k.next && n < len(out); fd++ {
		s := k.sockets[fd]
		if s == nil || s.ep != ep || !s.edge {
			continue
		}
		s.edge = false
		if m := s.events() & (s.event.Events | unix.EPOLLERR | unix.EPOLLHUP); m != 0 {
			out[n] = s.event
			out[n].Events = m
			n++
		}
	}
	return n
}

// A tracedKernel writes down the calls: go test -v -run FuzzRelay/NAME shows them.
type tracedKernel struct{ *fakeKernel }

func (k tracedKernel) recv(fd int32, p []byte, flags int) (int, syscall.Errno) {
	n, e := k.fakeKernel.recv(fd, p, flags)
	k.t.Logf("recv(%d, %d, %#x) = %d %v", fd, len(p), flags, n, e)
	return n, e
}

func (k tracedKernel) send(fd int32, p []byte, flags int) (int, syscall.Errno) {
	n, e := k.fakeKernel.send(fd, p, flags)
	k.t.Logf("send(%d, %d, %#x) = %d %v", fd, len(p), flags, n, e)
	return n, e
}

func (k tracedKernel) splice(from, to int32, n int) (int, syscall.Errno) {
	m, e := k.fakeKernel.splice(from, to, n)
	k.t.Logf("splice(%d, %d, %d) = %d %v", from, to, n, m, e)
	return m, e
}

func (k tracedKernel) shutdown(fd int32) syscall.Errno {
	e := k.fakeKernel.shutdown(fd)
	k.t.Logf("shutdown(%d) = %v", fd, e)
	return e
}

func (k tracedKernel) epollCtl(ep, op int, fd int32, ev unix.EpollEvent) syscall.Errno {
	e := k.fakeKernel.epollCtl(ep, op, fd, ev)
	k.t.Logf("epoll_ctl(%d, %d, %d, %#x) = %v", ep, op, fd, ev.Events, e)
	return e
}

func (k tracedKernel) close(fd int32, reset bool) {
	k.t.Logf("close(%d) reset %v", fd, reset)
	k.fakeKernel.close(fd, reset)
}
