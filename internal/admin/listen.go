package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/tproxy/tproxy/internal/reactor"
)

func notLoopback(address string) error {
	return fmt.Errorf("admin %s: an address other than loopback needs a token (token_file)", address)
}

// listen binds address. The socket is nil for TCP.
func listen(address string, token bool) (net.Listener, *socket, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return listenUnix(path)
	}
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, nil, fmt.Errorf("admin %s: %w", address, err)
	}
	if !a.IP.IsLoopback() && !token {
		return nil, nil, notLoopback(address)
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), "tcp", a.String())
	if err != nil {
		return nil, nil, fmt.Errorf("admin: %w", err)
	}
	return ln, nil, nil
}

// inherit looks at a socket that was bound elsewhere. The file is nil for TCP.
func inherit(ln net.Listener, token bool) (*socket, error) {
	switch a := ln.Addr().(type) {
	case *net.TCPAddr:
		if !a.IP.IsLoopback() && !token {
			return nil, notLoopback(a.String())
		}
	case *net.UnixAddr:
		if u, ok := ln.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
		made, err := os.Lstat(a.Name)
		switch {
		case err == nil && made.Mode().Perm()&0o002 == 0, token:
			return &socket{a.Name, made}, nil
		case err != nil:
			return nil, fmt.Errorf("admin unix:%s: a file is needed, for its mode protects the socket: %w", a.Name, err)
		}
		return nil, fmt.Errorf("admin unix:%s: its mode %v lets everybody in; it must be 0600, or a token set (token_file)", a.Name, made.Mode().Perm())
	}
	return nil, nil
}

// A socket is the file of a unix socket.
type socket struct {
	path string
	made fs.FileInfo // what is there if it is ours; nil: nothing
}

func listenUnix(path string) (net.Listener, *socket, error) {
	if path == "" || path[0] == '@' {
		return nil, nil, fmt.Errorf("admin unix:%s: a path is needed, for its mode protects the socket", path)
	}
	if err := reactor.RemoveStale(path); err != nil {
		return nil, nil, fmt.Errorf("admin unix:%s: %w", path, err)
	}
	lc := net.ListenConfig{Control: private}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, nil, fmt.Errorf("admin: %w", err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false) // socket.remove does it, if the file is still ours
	made, err := os.Lstat(path)
	if err == nil {
		err = os.Chmod(path, 0o600) // where private has no effect, or the umask takes even more
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("admin: %w", err), ln.Close())
	}
	return ln, &socket{path, made}, nil
}

// remove removes the file unless another process has put its own there. A nil socket has none.
func (s *socket) remove() error {
	if s == nil || s.made == nil {
		return nil
	}
	now, err := os.Lstat(s.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(now, s.made) {
		return nil
	}
	if err == nil {
		err = os.Remove(s.path)
	}
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	return nil
}

// bounded accepts at most so many connections at once, and closes those above at once: waiting would let slow clients
// keep the others out.
type bounded struct {
	net.Listener
	slots chan struct{}
}

func newBounded(ln net.Listener, n int) *bounded {
	return &bounded{ln, make(chan struct{}, n)}
}

func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case b.slots <- struct{}{}:
			return &slotted{Conn: c, release: sync.OnceFunc(func() { <-b.slots })}, nil
		default:
			c.Close()
		}
	}
}

// wait returns when no connection is open, or ctx is done. Nothing may be accepted any more.
func (b *bounded) wait(ctx context.Context) {
	for range cap(b.slots) {
		select {
		case b.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
}

// A slotted connection gives its slot back when it is closed.
type slotted struct {
	net.Conn
	release func()
}

func (c *slotted) Close() error {
	c.release()
	return c.Conn.Close()
}
