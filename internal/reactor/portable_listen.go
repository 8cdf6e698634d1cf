package reactor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	defaultBacklog   = 4096
	acceptBackoffMin = 10 * time.Millisecond
	acceptBackoffMax = 500 * time.Millisecond
)

// Listen binds addr. The address [::] takes IPv4 as well, where the system has it.
func (e *Portable) Listen(addr Addr, o ListenOptions, a Acceptor) (Listener, error) {
	if e.isClosed() {
		return nil, fmt.Errorf("listen %s: %w", addr, ErrClosed)
	}
	var (
		ln   net.Listener
		file os.FileInfo
		err  error
	)
	if addr.IsUnix() {
		ln, file, err = listenUnix(addr.Path)
	} else {
		ln, err = listenTCP(addr)
	}
	if err != nil {
		return nil, err
	}
	if o.Backlog == 0 {
		o.Backlog = defaultBacklog
	}
	if err := setBacklog(ln, o.Backlog); err != nil {
		ln.Close()
		return nil, fmt.Errorf("listen %s: backlog %d: %w", addr, o.Backlog, err)
	}
	return e.serve(ln, file, o, a)
}

// Serve accepts from any listener, one of package tls too. Its backlog stays as it is.
func (e *Portable) Serve(ln net.Listener, o ListenOptions, a Acceptor) (Listener, error) {
	var file os.FileInfo
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // shutdown removes the file, unless somebody else's has taken its place
		if path := AddrOf(u.Addr()).Path; !strings.HasPrefix(path, "@") {
			file, _ = os.Lstat(path) // one that is gone need not be removed
		}
	}
	return e.serve(ln, file, o, a)
}

func (e *Portable) serve(ln net.Listener, file os.FileInfo, o ListenOptions, a Acceptor) (Listener, error) {
	l := &portableListener{
		engine: e, ln: ln, queue: queueOf(ln), file: file, acceptor: a,
		resume: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{}),
	}
	l.socket.Store(&o.Socket)
	l.close = sync.OnceValue(l.shutdown)
	if err := e.start(l.run); err != nil {
		l.closeSocket()
		l.removeFile()
		return nil, fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	return l, nil
}

// listenTCP makes a listener that is not MPTCP and takes both families only for [::].
func listenTCP(addr Addr) (net.Listener, error) {
	lc := net.ListenConfig{KeepAlive: -1}
	lc.SetMultipathTCP(false)
	network, host := "tcp", addr.String()
	switch ip := addr.IP.Addr(); {
	case ip.Unmap().Is4():
		network = "tcp4" // package net would take 0.0.0.0 for both families
	case ip.IsUnspecified():
		host = fmt.Sprintf(":%d", addr.IP.Port()) // works without IPv6, too
	}
	return lc.Listen(context.Background(), network, host)
}

// listenUnix makes a listener, and returns the file it made (nil for an abstract name). A socket that a dead process
// left behind is replaced.
func listenUnix(path string) (net.Listener, os.FileInfo, error) {
	ua := &net.UnixAddr{Name: path, Net: "unix"}
	if strings.HasPrefix(path, "@") {
		ln, err := net.ListenUnix("unix", ua)
		return ln, nil, err
	}
	if err := RemoveStale(path); err != nil {
		return nil, nil, fmt.Errorf("listen unix:%s: %w", path, err)
	}
	ln, err := net.ListenUnix("unix", ua)
	if err != nil {
		return nil, nil, err
	}
	ln.SetUnlinkOnClose(false) // it would remove the socket of whoever has taken the path since
	file, err := os.Lstat(path)
	if err != nil {
		ln.Close()
		return nil, nil, fmt.Errorf("listen unix:%s: %w", path, err)
	}
	return ln, file, nil
}

// A portableListener accepts in one goroutine.
type portableListener struct {
	engine   *Portable
	ln       net.Listener
	queue    *os.File    // to wait for a client without accepting it; nil where that cannot be
	file     os.FileInfo // of the unix socket that Listen made
	acceptor Acceptor
	socket   atomic.Pointer[SocketOptions]

	resume  chan struct{} // holds one token: Resume was called
	keep    atomic.Bool   // the file; see SetUnlinkOnClose
	closing chan struct{}
	done    chan struct{} // closed when run has returned
	close   func() error  // once
}

func (l *portableListener) Addr() Addr { return AddrOf(l.ln.Addr()) }

func (l *portableListener) Resume() {
	select {
	case l.resume <- struct{}{}:
	default:
	}
}

func (l *portableListener) File() (*os.File, error) {
	sc, ok := l.ln.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("duplicate the socket of %s: %T has none", l.Addr(), l.ln)
	}
	f, err := duplicateFile(sc, l.Addr().String())
	if err != nil {
		return nil, fmt.Errorf("duplicate the socket of %s: %w", l.Addr(), err)
	}
	return f, nil
}

func (l *portableListener) SetSocketOptions(o SocketOptions) { l.socket.Store(&o) }

func (l *portableListener) SetUnlinkOnClose(unlink bool) { l.keep.Store(!unlink) }

func (l *portableListener) Close() error { return l.close() }

func (l *portableListener) shutdown() error {
	close(l.closing)
	err := l.closeSocket()
	<-l.done
	return errors.Join(err, l.removeFile())
}

func (l *portableListener) closeSocket() error {
	if l.queue == nil {
		return l.ln.Close()
	}
	return errors.Join(l.ln.Close(), l.queue.Close())
}

// removeFile removes the socket file if it is still the one that this listener made.
func (l *portableListener) removeFile() error {
	if l.file == nil || l.keep.Load() {
		return nil
	}
	path := l.Addr().Path
	if now, err := os.Lstat(path); err != nil || !os.SameFile(now, l.file) {
		return nil
	}
	return os.Remove(path)
}

// run accepts until the listener is closed. No error of accept(2) ends it.
func (l *portableListener) run() {
	defer close(l.done)
	var backoff time.Duration // what was waited last; 0 while accepting works
	defer func() {
		if backoff > 0 {
			l.acceptor.Paused(nil) // every pause ends, if only with the listener
		}
	}()
	for {
		if l.queue != nil && backoff == 0 { // or the end of the pause would wait for a client
			awaitClient(l.queue)
		}
		if !l.reserve() {
			return
		}
		nc, err := l.accept(l.queue != nil || backoff > 0)
		if err != nil {
			l.acceptor.Unreserve()
		}
		switch {
		case err != nil && l.isClosing():
			return
		case isAborted(err):
			continue
		case err != nil && !errors.Is(err, errNobodyWaits):
			if backoff == 0 {
				l.acceptor.Paused(err)
			}
			backoff = min(max(2*backoff, acceptBackoffMin), acceptBackoffMax)
			if !l.sleep(backoff) {
				return
			}
			continue
		}
		if backoff > 0 {
			backoff = 0
			l.acceptor.Paused(nil)
		}
		if err == nil {
			c := l.engine.newConn(nc)
			c.setOptions(*l.socket.Load())
			l.acceptor.Accepted(c)
		}
	}
}

// reserve waits for room. It returns false when the listener is closing.
func (l *portableListener) reserve() bool {
	for !l.isClosing() {
		if l.acceptor.Reserve() {
			return true
		}
		select {
		case <-l.resume:
		case <-l.closing:
		}
	}
	return false
}

// errNobodyWaits says that the kernel's queue is empty, and so that accepting works.
var errNobodyWaits = errors.New("no client waits")

// accept waits for a client; when trying, for a moment only: whoever was in the queue may have gone, and accepting may not work again.
func (l *portableListener) accept(trying bool) (net.Conn, error) {
	d, ok := l.ln.(interface{ SetDeadline(time.Time) error })
	if !trying || !ok {
		return l.ln.Accept()
	}
	d.SetDeadline(time.Now().Add(acceptBackoffMin))
	defer d.SetDeadline(time.Time{})
	nc, err := l.ln.Accept()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, errNobodyWaits
	}
	return nc, err
}

// sleep returns false when the listener is closing.
func (l *portableListener) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.closing:
		return false
	}
}

func (l *portableListener) isClosing() bool {
	select {
	case <-l.closing:
		return true
	default:
		return false
	}
}
