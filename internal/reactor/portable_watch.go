package reactor

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// readAhead is how much of a connection is read before it is relayed, where its socket cannot be watched otherwise.
const readAhead = 4 << 10

// A watch is a goroutine that waits for news of a peer. Its fields belong to portableConn.mu.
type watch struct {
	f       func()
	waiting chan struct{} // closed when the goroutine lets go of the connection, to call f; nil meanwhile
}

// A sight is what can be seen of a socket without reading it.
type sight struct {
	waiting      int // bytes
	ended, reset bool
}

// Watch watches in a goroutine of its own.
func (c *portableConn) Watch(f func()) {
	c.stopWatch()
	if f == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &watch{f: f}
	c.watching = w
	if c.nc == nil {
		return
	}
	w.waiting = make(chan struct{})
	if c.engine.start(func() { c.watch(w) }) != nil {
		c.watching = nil
	}
}

// OnReset is a Watch for one thing.
func (c *portableConn) OnReset(f func()) {
	if f == nil {
		c.Watch(nil)
		return
	}
	var once sync.Once
	c.Watch(func() {
		_, err := c.kept()
		if c.isReset() || err != nil && err != io.EOF {
			once.Do(f)
		}
	})
}

// stopWatch returns when nobody waits for the connection any more, with the function that is now not called.
func (c *portableConn) stopWatch() func() {
	c.mu.Lock()
	w := c.watching
	c.watching = nil
	if w == nil {
		c.mu.Unlock()
		return nil
	}
	waiting := w.waiting
	c.mu.Unlock()
	if waiting != nil {
		c.nc.SetReadDeadline(longAgo)
		<-waiting
		c.nc.SetReadDeadline(time.Time{})
	}
	return w.f
}

func (c *portableConn) watch(w *watch) {
	n, err := c.kept()
	news, more := n > 0 || err != nil, true
	var seen sight
	for {
		if !news {
			news, more = c.await(&seen)
		}
		c.mu.Lock()
		close(w.waiting)
		w.waiting = nil
		wanted := c.watching == w
		c.mu.Unlock()
		if wanted && news {
			w.f()
		}
		news = false
		c.mu.Lock()
		if c.watching != w || !more {
			c.mu.Unlock()
			return
		}
		w.waiting = make(chan struct{})
		c.mu.Unlock()
	}
}

// await waits for news, or to be interrupted; more says whether there can be any after that.
func (c *portableConn) await(seen *sight) (news, more bool) {
	if canWatch && c.raw != nil && !c.isTLS() {
		c.raw.Read(func(uintptr) bool {
			now := c.look()
			news = now != *seen
			*seen = now
			return news
		})
		return news, news && !seen.reset
	}
	n, err := c.kept()
	if c.ready && n < readAhead && err == nil {
		buf := make([]byte, readAhead-n)
		n, err := c.nc.Read(buf)
		c.keep(buf[:n], err)
		interrupted := errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed)
		return n > 0 || err != nil && !interrupted, !interrupted
	}
	return c.awaitReset(), false
}

// look sees the socket, where the system shows it.
func (c *portableConn) look() sight {
	if !canWatch || c.raw == nil || c.isTLS() {
		return sight{reset: c.isReset()}
	}
	s := look(c.raw)
	s.reset = c.isReset()
	return s
}

// Check knows of TLS, and of sockets that cannot be looked at, what a Watch has read.
func (c *portableConn) Check() (up, waiting bool) {
	if c.nc == nil {
		return false, false
	}
	n, err := c.kept()
	s := c.look()
	return err == nil && !s.ended && !s.reset, n > 0 || s.waiting > 0
}

// awaitReset returns true when the peer has reset the connection; false when the wait was interrupted, a FIN was sent,
// or this system cannot tell. It reads nothing.
func (c *portableConn) awaitReset() bool {
	if canWatch && c.raw != nil {
		c.raw.Read(func(uintptr) bool { return c.isReset() || c.sentFIN() })
	}
	return c.isReset()
}

// isReset reports whether the peer has reset, as far as it is known.
func (c *portableConn) isReset() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	// After both FINs a TCP socket looks like one that was reset.
	if !c.reset && !c.finSent && c.raw != nil && hasReset(c.raw, c.isTCP()) {
		c.reset = true
	}
	return c.reset
}

// setReset remembers that a read or write found the peer gone. The kernel says so once; the other goroutine would then
// read an EOF.
func (c *portableConn) setReset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reset = true
}
