//go:build unix

package admin_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/tproxy/tproxy/internal/admin"
)

// successorOf serves on the same unix socket as s, as the next process does.
func successorOf(t *testing.T, s *admin.Server) *admin.Server {
	t.Helper()
	f, err := s.Listener.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	return &admin.Server{Address: s.Address, Listener: ln}
}

func TestNobodyNoticesThatASuccessorAnswers(t *testing.T) {
	path := filepath.Join(shortDir(t), "admin")
	old := &admin.Server{Control: newFake(), Address: "unix:" + path}
	if err := old.Listen(); err != nil {
		t.Fatal(err)
	}
	before, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	next := successorOf(t, old)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- old.Run(ctx) }()
	old.SetUnlinkOnClose(false)

	const asks = 400
	halfway, asked := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(asked)
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}}}
		for n := range asks {
			if n == asks/2 {
				close(halfway)
			}
			r, err := client.Get("http://localhost/healthz")
			if err != nil {
				t.Errorf("request %d: %v", n, err)
				continue
			}
			r.Body.Close()
		}
	}()
	t.Run("successor", func(t *testing.T) {
		start(t, next)
		<-halfway
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		<-asked
		if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
			t.Errorf("the socket's file is another one, or gone: %v", err)
		}
	})
	if exists(path) {
		t.Error("the last one leaves the file behind")
	}
}

func TestAnInheritedSocketThatLetsEverybodyInNeedsAToken(t *testing.T) {
	path := filepath.Join(shortDir(t), "admin")
	bind := func() net.Listener {
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
		return ln
	}
	s := &admin.Server{Address: "fd:admin", Listener: bind()}
	if err := s.Listen(); err == nil {
		t.Error("no error")
	}
	s.Listener.Close()
	os.Remove(path)
	s = &admin.Server{Address: "fd:admin", Listener: bind(), Token: "0123456789abcdef"}
	if err := s.Listen(); err != nil {
		t.Error(err)
	}
	s.Close()
}
