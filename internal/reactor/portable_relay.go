package reactor

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const relayBuffer = 32 << 10

var relayBuffers = sync.Pool{New: func() any { return new([relayBuffer]byte) }}

// Relay implements [Engine]. The session's time starts here.
func (e *Portable) Relay(client, backend Conn, h Handler) Link {
	r := &portableRelay{
		engine: e, options: h.Options(), handler: h, start: time.Now(),
		client: client.(*portableConn), backend: backend.(*portableConn),
		done: make(chan struct{}), closed: make(chan struct{}),
	}
	r.change.L = &r.mu
	if d := r.options.Session; d > 0 {
		r.maxAge = time.Duration((0.9 + 0.2*rand.Float64()) * float64(d))
	}
	return r
}

// Start starts two goroutines, one for each direction. The last one out calls Handler.Ended.
func (r *portableRelay) Start() {
	r.client.stopWatch()
	r.backend.stopWatch()
	r.backend.setOptions(r.options.Backend)
	r.mu.Lock()
	if !r.over {
		r.arm()
	}
	r.mu.Unlock()
	r.flows.Store(2)
	r.engine.tasks.Go(func() { r.flow(Client) })
	r.engine.tasks.Go(func() { r.flow(Backend) })
}

// A portableRelay is one session. Each direction is a flow, named by the side it comes from. All times are since start.
type portableRelay struct {
	engine          *Portable
	options         *RelayOptions
	handler         Handler
	start           time.Time
	maxAge          time.Duration // 0 is no limit
	client, backend *portableConn

	up, down  atomic.Uint64
	moved     atomic.Int64 // when a byte moved last
	firstByte atomic.Int64
	flows     atomic.Int32  // that still run
	done      chan struct{} // closed when over is set
	closed    chan struct{} // closed when both connections are

	mu         sync.Mutex
	change     sync.Cond // of what a flow waits for: sending, parked, verdict, over
	over       bool      // the end is decided; the connections are being closed
	cause      Cause     // the first
	first      Side      // who sent FIN first
	clientFIN  bool      // seen
	backendFIN bool      // seen
	passed     int       // FINs that were passed on
	keeping    bool      // the client has finished, and the backend's connection goes to the Handler
	finAt      time.Duration
	timer      *time.Timer
	armed      bool                     // a tick is coming
	queues     [Backend + 1]queueSample // of each side, at the last tick

	// A backend that ended unused (Handler.Unused) is found by its flow. While the Handler is asked the flow from the
	// client stands still, and everything it has read is put back.
	sending     bool    // the first bytes of the client are being written
	touched     bool    // bytes have reached the backend; written by the client's flow only
	clientEnded bool    // the client's flow has read its end
	asking      bool    // the client's flow is to park
	parked      bool    // it has
	verdict     verdict // what the parked flow does next
	pending     Cause   // an end that came while asking
}

// An ending is how a flow came to its end.
type ending uint8

const (
	stopped ending = iota // the session is over
	fin
	reset
)

func (s Side) other() Side { return Client + Backend - s }

func finBy(s Side) Cause {
	if s == Client {
		return ClientFIN
	}
	return BackendFIN
}

func resetBy(s Side) Cause {
	if s == Client {
		return ClientRST
	}
	return BackendRST
}

func (r *portableRelay) conn(s Side) *portableConn {
	if s == Client {
		return r.client
	}
	return r.backend
}

func (r *portableRelay) age() time.Duration { return time.Since(r.start) }

// flow moves one direction from its first byte to its end.
func (r *portableRelay) flow(from Side) {
	end := r.move(from)
	if from == Backend && r.unused(end) {
		end = stopped
	}
	if end == fin && !r.passFIN(from) && r.conn(from).awaitReset() {
		r.blame(from, nil) // the peer had not only finished, it is gone
		end = reset
	}
	if end == reset {
		r.cut(from)
	}
	if r.flows.Add(-1) == 0 {
		r.finish()
	}
}

// move copies from one side to the other until that side ends. When the other side is gone it reads on and throws away,
// so that a peer that is stuck in sending comes to read what is left for it.
func (r *portableRelay) move(from Side) ending {
	buf := relayBuffers.Get().(*[relayBuffer]byte)
	defer relayBuffers.Put(buf)
	src := r.conn(from)
	gone := false
	for {
		n, err := src.read(buf[:])
		p := buf[:n]
		if from == Client && !r.touched && !gone && !r.mayPass(p, err) {
			if !r.park(p, err) {
				return stopped
			}
			continue
		}
		if n > 0 && from == Backend {
			r.firstByte.CompareAndSwap(0, int64(max(r.age(), 1)))
		}
		if n > 0 && !gone {
			werr := r.write(from, p)
			gone = werr != nil
			if gone && from == Client && !r.touched && r.isUndecided() {
				if !r.park(p, err) {
					return stopped
				}
				continue
			}
			if gone && r.hasSentFIN(from.other()) {
				r.cut(from.other()) // nobody reads that side any more
				return stopped
			}
		}
		if err != nil {
			return r.endingOf(from, err)
		}
	}
}

// write passes p on and counts it. After an error the side that it went to is gone.
func (r *portableRelay) write(from Side, p []byte) error {
	dst, count := r.conn(from.other()), &r.up
	if from == Backend {
		count = &r.down
	}
	n, err := dst.nc.Write(p)
	if n > 0 {
		count.Add(uint64(n))
		r.moved.Store(int64(r.age()))
	}
	if from == Client && !r.touched {
		r.mu.Lock()
		r.sending, r.touched = false, n > 0
		r.change.Broadcast()
		r.mu.Unlock()
	}
	if err != nil {
		dst.setReset()
		if from == Backend || r.touched {
			r.blame(from.other(), err)
		}
	}
	return err
}

// endingOf says what the error of a read means.
func (r *portableRelay) endingOf(from Side, err error) ending {
	r.mu.Lock()
	over, keeping := r.over, r.keeping
	r.mu.Unlock()
	src := r.conn(from)
	switch {
	case over, keeping && errors.Is(err, os.ErrDeadlineExceeded):
		return stopped
	case err == io.EOF && !src.isReset():
		return fin
	}
	src.setReset()
	if from == Client {
		r.blame(from, err)
	}
	return reset
}

// blame notes why the session will end, unless that is known already.
func (r *portableRelay) blame(s Side, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cause != 0 || r.over {
		return
	}
	r.cause = resetBy(s)
	if err != nil && isShortage(err) {
		r.cause = Failed
	}
}

// passFIN ends the direction from a side that has sent its FIN. It returns true when that ended the session.
func (r *portableRelay) passFIN(from Side) bool {
	src, dst := r.conn(from), r.conn(from.other())
	r.mu.Lock()
	if r.over {
		r.mu.Unlock()
		return true
	}
	if r.first == NoSide {
		r.first = from
	}
	if from == Client {
		r.clientFIN = true
	} else {
		r.backendFIN = true
	}
	inOrder := finBy(r.first)
	r.finAt = r.age()
	if r.disarm() {
		r.arm()
	}
	r.mu.Unlock()

	if from == Client && r.options.KeepBackend && r.keepBackend() {
		return true
	}
	last := r.options.CloseOnFIN
	switch {
	case dst.canCloseWrite():
		if dst.isTLS() {
			dst.drain(r.done) // makes room for close_notify
		}
		if err := dst.closeWrite(); err != nil && dst.isTLS() {
			// Nothing can be sent any more. A TCP socket fails here only if its peer has reset, which its reader sees.
			r.blame(from.other(), err)
			r.end(resetBy(from.other()), false)
			return true
		}
	case !src.canCloseWrite():
		last = true
	}
	if last {
		dst.drain(r.done)
	} else {
		r.mu.Lock()
		r.passed++
		last = r.passed == 2
		r.mu.Unlock()
	}
	if last {
		r.end(inOrder, true)
	}
	return last
}

// cut ends the session after a side was reset: the other one gets what was received, and then a reset too.
func (r *portableRelay) cut(side Side) {
	r.conn(side.other()).drain(r.done)
	r.end(resetBy(side), false)
}

// end closes both connections, in order or with a reset. Only the first call does anything; while the Handler is asked
// about an unused backend it waits for the answer.
func (r *portableRelay) end(cause Cause, inOrder bool) {
	r.mu.Lock()
	if r.asking && r.pending == 0 {
		r.pending = cause
	}
	if r.over || r.asking {
		r.mu.Unlock()
		return
	}
	r.over = true
	if r.cause == 0 {
		r.cause = cause
	}
	r.disarm()
	r.change.Broadcast()
	r.mu.Unlock()
	close(r.done)
	for _, c := range [...]*portableConn{r.client, r.backend} {
		if inOrder {
			c.Close()
		} else {
			c.Reset()
		}
	}
	close(r.closed)
}

// keepBackend makes the backend's flow stop after what it has read, unless the backend has ended already.
func (r *portableRelay) keepBackend() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over || r.backendFIN || r.cause != 0 {
		return false
	}
	r.keeping = true
	r.backend.nc.SetReadDeadline(longAgo)
	return true
}

// finish reports, after both flows.
func (r *portableRelay) finish() {
	r.mu.Lock()
	if r.verdict == released {
		r.mu.Unlock()
		return
	}
	var kept Conn
	if r.keeping && !r.over {
		r.over, r.cause = true, ClientFIN
		r.disarm()
		kept = r.backend
	}
	r.mu.Unlock()
	if kept != nil {
		r.client.Close()
		r.backend.nc.SetReadDeadline(time.Time{})
		if up, _ := kept.Check(); !up {
			kept.Close()
			kept = nil
		}
	} else {
		<-r.closed
	}
	r.handler.Ended(Result{
		Cause: r.cause, HalfClosed: r.first,
		Up: r.up.Load(), Down: r.down.Load(),
		FirstByte: time.Duration(r.firstByte.Load()),
		Backend:   kept,
	})
}

func (r *portableRelay) hasSentFIN(s Side) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return s == Client && r.clientFIN || s == Backend && r.backendFIN
}

// Bytes is what the kernel took.
func (r *portableRelay) Bytes() (up, down uint64) { return r.up.Load(), r.down.Load() }

func (r *portableRelay) Quiet() time.Duration { return r.age() - time.Duration(r.moved.Load()) }

func (r *portableRelay) HalfClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clientFIN != r.backendFIN
}

func (r *portableRelay) Kill() { r.end(Killed, false) }
