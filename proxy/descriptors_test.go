//go:build unix

package proxy_test

import (
	"syscall"
	"testing"

	"github.com/tproxy/tproxy/proxy"
)

func TestDescriptorBudget(t *testing.T) {
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	})
	if before.Max < 1024 {
		t.Skipf("the hard limit is %d", before.Max)
	}
	small := before
	small.Cur = 256
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &small); err != nil {
		t.Fatal(err)
	}
	limit, sessions, err := proxy.Descriptors(64)
	if err != nil {
		t.Fatal(err)
	}
	var now syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &now); err != nil {
		t.Fatal(err)
	}
	if now.Cur <= 256 || uint64(limit) != min(now.Cur, 1<<30) {
		t.Errorf("the limit is said to be %d, and is %d", limit, now.Cur)
	}
	if spare := limit - 64 - 2*sessions; spare < 3 || spare > 1000 {
		t.Errorf("%d sessions with %d descriptors leave %d", sessions, limit, spare)
	}
	_, fewer, err := proxy.Descriptors(164)
	if err != nil || sessions-fewer != 50 {
		t.Errorf("with 100 more in reserve it is %d sessions after %d, %v", fewer, sessions, err)
	}
	_, least, err := proxy.Descriptors(1 << 40)
	if err != nil || least < limit/4 {
		t.Errorf("a reserve of more than there is leaves %d of %d, %v", least, limit, err)
	}
}
