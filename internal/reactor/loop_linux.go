package reactor

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A loop is one epoll instance and the goroutine that waits on it.
//
// The goroutine parks in the Go runtime's own poller: the epoll descriptor is itself pollable, so the loop calls
// epoll_wait(0) and parks only when that is empty. A thread that blocked in epoll_wait would cost a hand-over of the
// processor for every message (DESIGN.md section 2).
type loop struct {
	engine *Epoll
	ep     int
	file   *os.File // ep, in the runtime's poller
	raw    syscall.RawConn
	events [256]unix.EpollEvent
	batch  [256]*conn
	buf    []byte // what one turn reads; never holds bytes between turns
	pipes  pipes

	sessions atomic.Int32 // relays and connections on their way to one: what balances loops
	urgent   atomic.Bool  // posted is not empty

	mu       sync.Mutex
	conns    []*conn // by slot
	free     []int32 // slots that are free
	gen      int32   // of the last registration; tells an event of a former owner of the slot
	accepts  []*listener
	posted   []func()
	wheel    wheel
	earliest int64 // the loop wakes by itself at this time (milliseconds), 0 never
	closed   bool

	over    atomic.Bool // closed, for those who do not hold mu
	again   []*relay    // have more to do than one turn may take
	spawned bool        // goroutines were started in this batch: let them run
	expired []*relay    // their time has come, and nobody has looked at them yet
	done    chan struct{}
}

// busyFor is how many milliseconds a loop works without a pause until the runtime is told: a time slice of a goroutine.
const busyFor = 10

// timerBatch is how many timers are looked at before events get their turn.
const timerBatch = 32

// listenerEvent marks the events of listeners, whose Fd is an index into accepts.
const listenerEvent = -1

func newLoop(e *Epoll) (*loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	if err := unix.SetNonblock(ep, true); err != nil {
		unix.Close(ep)
		return nil, fmt.Errorf("epoll descriptor: %w", err)
	}
	l := &loop{engine: e, ep: ep, buf: make([]byte, chunkSize), done: make(chan struct{})}
	l.wheel.now = e.now() / tick
	l.file = os.NewFile(uintptr(ep), "epoll")
	if l.raw, err = l.file.SyscallConn(); err != nil {
		l.file.Close()
		return nil, fmt.Errorf("epoll descriptor: %w", err)
	}
	return l, nil
}

// past is a deadline that wakes the loop at once.
var past = time.Unix(1, 0)

// run is the goroutine of the loop. It ends after close.
func (l *loop) run() {
	defer close(l.done)
	for {
		// The order matters: whoever wants the loop after this line wakes it, who did before is seen by drain.
		l.file.SetReadDeadline(l.deadline())
		if l.drain() {
			continue
		}
		l.mu.Lock()
		over := l.closed && len(l.posted) == 0
		l.mu.Unlock()
		if over {
			l.pipes.close(l.engine.kernel)
			l.file.Close()
			return
		}
		if err := l.raw.Read(l.turn); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			panic(fmt.Sprintf("reactor: epoll descriptor: %v", err)) // the loop cannot go on, and only a fault of ours gets here
		}
		l.runTimers()
	}
}

func (l *loop) deadline() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.wheel.next()
	if !ok {
		l.earliest = 0
		return time.Time{}
	}
	l.earliest = at
	return l.engine.start.Add(time.Duration(at) * time.Millisecond)
}

// turn handles events until there are none (false: park) or until something else wants the loop (true).
func (l *loop) turn(uintptr) bool {
	told := l.engine.now()
	for busy := 0; ; busy++ {
		n, e := epollWait(l.ep, l.events[:])
		if e != 0 && e != unix.EINTR {
			panic(fmt.Sprintf("reactor: epoll_wait: %v", e))
		}
		if e != 0 {
			n = 0
		}
		if n == 0 && len(l.again) == 0 {
			return l.hurried()
		}
		l.dispatch(n)
		if l.spawned || busy&15 == 15 {
			l.spawned = false
			runtime.Gosched()
		}
		if l.hurried() {
			return true
		}
		if busy&7 == 7 {
			now := l.engine.now()
			if now-told >= busyFor {
				told = now
				tellRuntime()
			}
			l.mu.Lock()
			late := l.earliest != 0 && now >= l.earliest
			l.mu.Unlock()
			if late {
				return true
			}
		}
	}
}

// dispatch handles one batch of events, and first what the last one left over.
func (l *loop) dispatch(n int) {
	again := l.again
	l.again = nil
	l.mu.Lock()
	for i := range n {
		l.batch[i] = nil
		if ev := &l.events[i]; ev.Pad != listenerEvent && int(ev.Fd) < len(l.conns) {
			if c := l.conns[ev.Fd]; c != nil && c.gen == ev.Pad {
				l.batch[i] = c
			}
		}
	}
	l.mu.Unlock()
	for i := range n {
		ev := &l.events[i]
		if c := l.batch[i]; c != nil {
			c.ready(l, ev.Events)
		} else if ev.Pad == listenerEvent {
			l.accept(int(ev.Fd))
		}
	}
	for _, r := range again {
		r.kick(l)
	}
}

func (l *loop) accept(i int) {
	l.mu.Lock()
	var ln *listener
	if i < len(l.accepts) {
		ln = l.accepts[i]
	}
	l.mu.Unlock()
	if ln != nil {
		ln.accept()
	}
}

// runTimers looks at relays whose time has come, at a batch of them: sessions that began together are due together, and others have
// bytes to move meanwhile.
func (l *loop) runTimers() {
	l.mu.Lock()
	l.expired = l.wheel.due(l.engine.now(), l.expired)
	l.mu.Unlock()
	batch := l.expired[:min(len(l.expired), timerBatch)]
	for i, r := range batch {
		r.timer.Store(true)
		r.kick(l)
		batch[i] = nil
	}
	if l.expired = l.expired[len(batch):]; len(l.expired) == 0 {
		l.expired = nil
	}
}

// hurried reports whether something other than events wants the loop.
func (l *loop) hurried() bool { return l.urgent.Load() || len(l.expired) > 0 }

// post runs f on the loop, soon. After the loop was closed f still runs if the loop has not ended; it reports whether it will.
func (l *loop) post(f func()) bool {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return false
	}
	l.posted = append(l.posted, f)
	l.mu.Unlock()
	l.wake()
	return true
}

func (l *loop) wake() {
	l.urgent.Store(true)
	l.file.SetReadDeadline(past)
}

// drain runs what was posted. It reports whether somebody wanted the loop: then the deadline it sleeps to may be out of date.
func (l *loop) drain() bool {
	if !l.urgent.Swap(false) {
		return false
	}
	l.mu.Lock()
	fs := l.posted
	l.posted = nil
	l.mu.Unlock()
	for _, f := range fs {
		f()
	}
	return true
}

func (l *loop) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.over.Store(true)
	l.wake()
	<-l.done
}

func (l *loop) isClosed() bool { return l.over.Load() }

// register makes the loop report events of c. On an error c is as before.
func (l *loop) register(c *conn) syscall.Errno {
	l.mu.Lock()
	if len(l.free) == 0 {
		l.free = append(l.free, int32(len(l.conns)))
		l.conns = append(l.conns, nil)
	}
	last := len(l.free) - 1
	c.slot = l.free[last]
	l.free = l.free[:last]
	l.gen++
	if l.gen < 0 {
		l.gen = 1
	}
	c.gen = l.gen
	c.flags |= registered
	l.conns[c.slot] = c
	ev := c.interest()
	l.mu.Unlock()
	if e := l.engine.kernel.epollCtl(l.ep, unix.EPOLL_CTL_ADD, c.fd, ev); e != 0 {
		l.unregister(c, false)
		return e
	}
	return 0
}

// interest is what epoll is told of c. Room to write is asked for only by a connection that lacked it once.
func (c *conn) interest() unix.EpollEvent {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET, Fd: c.slot, Pad: c.gen}
	if c.flags.has(outgoing) {
		ev.Events |= unix.EPOLLOUT
	}
	return ev
}

// unregister frees the slot of c. stays says that the descriptor will not be closed, so epoll must be told.
func (l *loop) unregister(c *conn, stays bool) {
	if stays {
		l.engine.kernel.epollCtl(l.ep, unix.EPOLL_CTL_DEL, c.fd, unix.EpollEvent{})
	}
	l.mu.Lock()
	l.conns[c.slot] = nil
	l.free = append(l.free, c.slot)
	if len(l.free) == len(l.conns) && len(l.conns) > 1024 {
		l.conns, l.free = nil, nil // nothing is registered: give back what a peak took
	}
	l.mu.Unlock()
	c.flags &^= registered
}

// schedule puts r into the wheel at time at, in milliseconds.
func (l *loop) schedule(r *relay, at int64) {
	l.mu.Lock()
	l.wheel.remove(r)
	l.wheel.add(r, at)
	sooner := l.earliest == 0 || at < l.earliest
	l.mu.Unlock()
	if sooner {
		l.wake()
	}
}

func (l *loop) unschedule(r *relay) {
	l.mu.Lock()
	l.wheel.remove(r)
	l.mu.Unlock()
}
