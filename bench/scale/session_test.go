//go:build linux

package scale

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A request is one byte that says what the backend should do, and a number.
const (
	opEcho  = 'e' // answer
	opFlood = 'f' // send so many bytes
	opQuit  = 'q' // answer, then close: the backend's FIN is the first
)

const requestSize = 9

// patience bounds every wait for a byte.
const patience = 20 * time.Second

// serveBackend answers requests at an address until the end of the test.
func serveBackend(t *testing.T, address string) string {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns = make(map[net.Conn]bool)
	)
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Go(func() {
				answer(c)
				mu.Lock()
				delete(conns, c)
				mu.Unlock()
				c.Close()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String()
}

// answer does what is asked for until the connection ends.
func answer(c net.Conn) {
	var request [requestSize]byte
	for {
		if _, err := io.ReadFull(c, request[:]); err != nil {
			return
		}
		switch request[0] {
		case opFlood:
			var zeros [64 << 10]byte
			for left := binary.BigEndian.Uint64(request[1:]); left > 0; {
				n, err := c.Write(zeros[:min(left, uint64(len(zeros)))])
				if err != nil {
					return
				}
				left -= uint64(n)
			}
		default:
			if _, err := c.Write(request[:1]); err != nil || request[0] == opQuit {
				return
			}
		}
	}
}

func send(c net.Conn, op byte, number uint64) error {
	c.SetDeadline(time.Now().Add(patience))
	_, err := c.Write(binary.BigEndian.AppendUint64([]byte{op}, number))
	return err
}

// ask sends a request and awaits its answer.
func ask(c net.Conn, op byte) error {
	if err := send(c, op, 0); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return err
	}
	if answer[0] != op {
		return fmt.Errorf("the answer is %q", answer)
	}
	return nil
}

// open opens a session and exchanges one message on it.
func open(network, address string, d *net.Dialer) (net.Conn, error) {
	c, err := d.Dial(network, address)
	if err != nil {
		return nil, err
	}
	if err := ask(c, opEcho); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// hold opens n sessions, each with one message. end resets them all.
func hold(t *testing.T, address string, n int, d *net.Dialer) (sessions []net.Conn, end func()) {
	t.Helper()
	sessions = make([]net.Conn, n)
	errs := make([]error, 16)
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			for i := w; i < n && errs[w] == nil; i += len(errs) {
				sessions[i], errs[w] = open("tcp", address, d)
			}
		})
	}
	wg.Wait()
	end = func() {
		for _, c := range sessions {
			if c != nil {
				c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		end()
		t.Fatal(err)
	}
	return sessions, end
}

// smallWindow makes the client's receive buffer as small as it can be, so that what it does not read waits in the proxy.
func smallWindow(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1) })
}

// bindWithPort binds to a source address in the plain way: the kernel chooses a port at once.
func bindWithPort(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = syscall.Bind(int(fd), &syscall.SockaddrInet4{Addr: [4]byte{192, 0, 2, 11}})
	}); e != nil {
		return e
	}
	return err
}
