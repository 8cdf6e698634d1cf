//go:build unix

package reactor_test

import (
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tproxy/tproxy/internal/reactor"
)

// share is what a successor does with a listening socket: it makes a listener of a duplicate.
func share(t *testing.T, ln reactor.Listener) net.Listener {
	t.Helper()
	f, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0) // as os/exec asks for the descriptor
	if err != nil {
		t.Fatal(err)
	}
	if flags&unix.O_NONBLOCK == 0 {
		t.Error("passing the file on makes the socket block")
	}
	other, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	return other
}

// open is listen for a test that closes the listener itself.
func open(t *testing.T, e reactor.Engine, a reactor.Addr, d *door) reactor.Listener {
	t.Helper()
	ln, err := e.Listen(a, reactor.ListenOptions{}, d)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func TestASharedSocketOutlivesItsFirstListener(t *testing.T) {
	for name, f := range map[string]family{"tcp": ipv4, "unix": unixPath} {
		t.Run(name, func(t *testing.T) {
			conform(t, func(t *testing.T, e reactor.Engine) {
				d := newDoor(0)
				ln := open(t, e, f.anyAddr(t), d)
				a := ln.Addr()
				waiting := dial(t, a) // in the kernel's queue
				other := share(t, ln)
				ln.SetUnlinkOnClose(false)
				closeListener(t, ln, d)

				d2 := newDoor(plenty)
				next, err := e.Serve(other, reactor.ListenOptions{}, d2)
				if err != nil {
					t.Fatal(err)
				}
				defer closeListener(t, next, d2)
				for _, c := range []net.Conn{waiting, dial(t, a)} {
					served := d2.next(t)
					served.Close()
					wants(t, "client", c, "", endFIN)
				}
			})
		})
	}
}

func TestTheLastListenerRemovesTheFileOfASharedSocket(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		a := unixPath.anyAddr(t)
		d := newDoor(plenty)
		ln := open(t, e, a, d)
		before, err := os.Lstat(a.Path)
		if err != nil {
			t.Fatal(err)
		}
		d2 := newDoor(plenty)
		next, err := e.Serve(share(t, ln), reactor.ListenOptions{}, d2)
		if err != nil {
			t.Fatal(err)
		}
		ln.SetUnlinkOnClose(false)
		closeListener(t, ln, d)
		if after, err := os.Lstat(a.Path); err != nil || !os.SameFile(before, after) {
			t.Errorf("the file is another one, or gone: %v", err)
		}
		closeListener(t, next, d2)
		if _, err := os.Lstat(a.Path); err == nil {
			t.Error("the file outlives the last listener")
		}
	})
}

// A client is accepted by one of the listeners that share a socket; the one that is closed may have accepted it just before.
func TestAListenerThatIsClosedLosesNobody(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		d := newDoor(plenty)
		ln := open(t, e, ipv4.anyAddr(t), d)
		a := ln.Addr()
		d2 := newDoor(plenty)
		next, err := e.Serve(share(t, ln), reactor.ListenOptions{}, d2)
		if err != nil {
			t.Fatal(err)
		}
		defer closeListener(t, next, d2)
		const clients = 200
		halfway := make(chan struct{})
		wait := background(func() {
			for i := range clients {
				if i == clients/2 {
					close(halfway)
				}
				c, err := net.Dial("tcp", a.String())
				if err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				defer c.Close()
			}
		})
		receive(t, halfway, "half of the clients")
		ln.Close()
		wait()
		await(t, "every client was accepted", func() bool {
			_, first := d.count()
			_, second := d2.count()
			return first+second == clients
		})
		d.drop()
	})
}
