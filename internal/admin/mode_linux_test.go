package admin_test

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/tproxy/tproxy/internal/admin"
)

// TestSocketIsNeverLooserThan0600 runs in a process of its own, for the umask belongs to the whole process.
func TestSocketIsNeverLooserThan0600(t *testing.T) {
	if os.Getenv("TPROXY_TEST_UMASK") == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSocketIsNeverLooserThan0600$", "-test.count=1")
		cmd.Env = append(os.Environ(), "TPROXY_TEST_UMASK=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	dir := shortDir(t)
	for _, mask := range []int{0, 0o777, 0o022} {
		syscall.Umask(mask)
		path := filepath.Join(dir, fmt.Sprintf("%03o.sock", mask))
		lookAt(t, path, mask)
	}
}

// lookAt binds and unbinds the socket while another goroutine looks at its mode, and looks itself right after bind.
func lookAt(t *testing.T, path string, mask int) {
	seen := map[fs.FileMode]int{}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if fi, err := os.Lstat(path); err == nil {
					seen[fi.Mode().Perm()]++
				}
			}
		}
	})
	for range 50 {
		s := &admin.Server{Address: "unix:" + path}
		if err := s.Listen(); err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Lstat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Fatalf("umask %03o: mode %v, %v", mask, fi.Mode(), err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	for m := range seen {
		if m&^0o600 != 0 {
			t.Errorf("umask %03o: modes seen %v", mask, seen)
		}
	}
	// bind alone: the chmod after it has nothing left to do but for an umask that takes the owner's bits
	lc := net.ListenConfig{Control: admin.Private}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if fi, err := os.Lstat(path); err != nil || fi.Mode().Perm() != 0o600&^fs.FileMode(mask) {
		t.Errorf("umask %03o: mode right after bind %v, %v", mask, fi.Mode(), err)
	}
}
