package admin_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/admin"
)

func TestOnlyLoopbackWithoutToken(t *testing.T) {
	for _, c := range []struct {
		address, token string
		ok             bool
	}{
		{"127.0.0.1:0", "", true},
		{"localhost:0", "", true},
		{"0.0.0.0:0", "", false},
		{":0", "", false},
		{"[::]:0", "", false},
		{"0.0.0.0:0", "s3cret-token-abcdefgh", true},
		{"127.0.0.1", "", false},
		{"127.0.0.1:99999", "", false},
		{"", "", false},
		{"unix:", "", false},
		{"unix:@abstract", "", false},
		{"unix:/no/such/directory/socket", "", false},
	} {
		s := &admin.Server{Address: c.address, Token: c.token}
		err := s.Listen()
		if (err == nil) != c.ok {
			t.Errorf("%q with token %q: %v", c.address, c.token, err)
		}
		if err != nil && (!strings.HasPrefix(err.Error(), "admin") || s.Addr() != nil) {
			t.Errorf("%q: error %q, address %v", c.address, err, s.Addr())
		}
		if (c.address == "0.0.0.0:0" || c.address == ":0") && !c.ok && !strings.Contains(err.Error(), "token_file") {
			t.Errorf("the error does not name token_file: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%q: close: %v", c.address, err)
		}
	}
}

func TestAddressInUseIsNamed(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s := &admin.Server{Address: ln.Addr().String()}
	if err := s.Listen(); err == nil || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("error %v", err)
	}
}

func TestInheritedListenerIsServedAndClosed(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("run", func(t *testing.T) {
		addr := start(t, &admin.Server{Listener: ln})
		if st, _, _ := do(t, addr, call{method: "GET", path: "/healthz"}); st != 200 {
			t.Errorf("healthz: %d", st)
		}
	})
	if _, err := ln.Accept(); err == nil {
		t.Error("the listener is open after Run")
	}
	wide, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &admin.Server{Listener: wide}
	if err := s.Listen(); err == nil {
		t.Error("an inherited listener on every address is served without a token")
	}
	s.Close()
}

func TestStaleSocketIsReplacedAndRemovedAtTheEnd(t *testing.T) {
	path := filepath.Join(shortDir(t), "admin.sock")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	t.Run("run", func(t *testing.T) {
		start(t, &admin.Server{Address: "unix:" + path})
		st, _, _ := do(t, path, call{method: "PATCH", path: "/api/v1/groups/g/backends/10.0.0.1:80", body: `{"weight":2}`, host: "anything"})
		if st != 200 {
			t.Errorf("over the socket: %d", st)
		}
	})
	if exists(path) {
		t.Error("the socket is still there after Run")
	}
}

func TestForeignFileIsNeverReplacedOrRemoved(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "admin.sock")
	mustStay := func(what string, set func()) {
		t.Helper()
		os.RemoveAll(path)
		set()
		before, _ := os.Lstat(path)
		s := &admin.Server{Address: "unix:" + path}
		if err := s.Listen(); err == nil {
			s.Close()
			t.Errorf("%s: no error", what)
		}
		if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
			t.Errorf("%s was replaced", what)
		}
	}
	mustStay("a file", func() { os.WriteFile(path, []byte("precious"), 0o644) })
	mustStay("a directory", func() { os.Mkdir(path, 0o755) })
	mustStay("a link to a file", func() {
		os.WriteFile(path+".target", nil, 0o644)
		os.Symlink(path+".target", path)
	})
	mustStay("a living socket", func() {
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
	})

	os.RemoveAll(path)
	s := &admin.Server{Address: "unix:" + path}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	os.Remove(path)
	os.WriteFile(path, []byte("precious"), 0o644)
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if !exists(path) {
		t.Error("close removed the file of somebody else")
	}
}

func TestRunCutsRequestsThatDoNotEnd(t *testing.T) {
	entered, left := make(chan struct{}), make(chan struct{})
	s := &admin.Server{Control: newFake(), Address: "127.0.0.1:0", Upgrade: func(ctx context.Context) error {
		close(entered)
		<-ctx.Done() // the cut closes the connection, which ends the request
		close(left)
		return ctx.Err()
	}}
	s.HurryEnd(200 * time.Millisecond)
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	c, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("POST /api/v1/upgrade HTTP/1.1\r\nHost: localhost\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	<-entered
	cancel()
	select {
	case err := <-ran:
		if err != nil {
			t.Errorf("run: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("Run waits for a request that does not end")
	}
	<-left
}
