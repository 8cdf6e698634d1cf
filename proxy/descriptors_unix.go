//go:build unix

package proxy

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Descriptors raises the soft limit on open files to the hard one and returns it, with the number of sessions that it carries:
// two descriptors each, after what is open already and what is reserved for the rest (pipes of running streams, probes,
// the admin address, files). Where the limit is small the reserve is a quarter of it at most.
func Descriptors(reserve int) (limit, sessions int, err error) {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 0, 0, fmt.Errorf("descriptor limit: %w", err)
	}
	if soft := r.Cur; soft < r.Max {
		r.Cur = r.Max
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &r) != nil {
			r.Cur = soft // macOS refuses more than kern.maxfilesperproc
		}
	}
	limit = int(min(r.Cur, 1<<30))
	open := 16
	if files, err := os.ReadDir("/dev/fd"); err == nil {
		open = len(files)
	}
	return limit, max((limit-open-min(reserve, limit/4))/2, 1), nil
}
