//go:build linux

package scale

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A cache is one of the kernel's for objects of one kind: a line of /proc/slabinfo.
type cache struct {
	name    string
	objects int // in use
	size    int // bytes each
}

// caches are those of the kernel; they are the whole machine's, not the namespace's.
func caches(t *testing.T) map[string]cache {
	t.Helper()
	text, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		t.Skip(err)
	}
	all := make(map[string]cache)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		objects, err1 := strconv.Atoi(f[1])
		size, err2 := strconv.Atoi(f[3])
		if err1 == nil && err2 == nil {
			all[f[0]] = cache{f[0], objects, size}
		}
	}
	return all
}

// socketCaches are the caches that sockets, their files and their places in an epoll instance come from.
var socketCaches = regexp.MustCompile(`^(TCP|sock_inode_cache|filp|dentry|eventpoll_|ep_|tcp_bind|request_sock|skbuff|kmalloc-)`)

// growth is how many objects of each cache that belongs to sockets are there more, in units of sessions; less than a fifth of an object is noise.
func growth(before, after map[string]cache, sessions int) map[string]float64 {
	each := make(map[string]float64)
	for name, c := range after {
		n := float64(c.objects-before[name].objects) / float64(sessions)
		if socketCaches.MatchString(name) && n > .2 {
			each[name] = n
		}
	}
	return each
}

// list says how many objects of which size.
func list(each map[string]float64, all map[string]cache) string {
	var parts []string
	for name, n := range each {
		parts = append(parts, fmt.Sprintf("%s %.2f × %d", name, n, all[name].size))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// A buffer is what sockets of the proxy hold in bytes, as the kernel charges them for it: data, and the memory around it.
type buffer struct{ client, backend int }

var memory = regexp.MustCompile(`skmem:\(r(\d+),rb\d+,t\d+,tb\d+,f(\d+),w(\d+),o(\d+)`)

// buffers sums up the sockets whose local address is the listener's, and those whose peer is the backend.
func buffers(t *testing.T, listener, backend string) (b buffer) {
	t.Helper()
	out, err := exec.Command("ss", "-tmnOH", "state", "established").Output()
	if err != nil {
		t.Skipf("ss: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		f, m := strings.Fields(line), memory.FindStringSubmatch(line)
		if len(f) < 4 || m == nil {
			continue
		}
		held := 0
		for _, n := range m[1:] {
			v, err := strconv.ParseUint(n, 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			held += int(int32(v)) // f may be below zero, which ss does not know
		}
		if f[2] == listener {
			b.client += held
		}
		if f[3] == backend {
			b.backend += held
		}
	}
	return b
}
