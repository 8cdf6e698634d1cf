//go:build unix

package journal_test

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/journal"
)

// fifo makes a named pipe with an open reading end.
func fifo(t *testing.T) (path string, r *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Skipf("mkfifo: %v", err)
	}
	r, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return path, r
}

func TestQuietJournalIsWrittenAtOnce(t *testing.T) {
	path, r := fifo(t)
	j := open(t, journal.Options{Close: true, Path: path})
	defer mustClose(t, j)
	br := bufio.NewReader(r)
	fastest := time.Hour
	for i := range 3 {
		start := time.Now()
		j.Observe(closed(i))
		l, err := br.ReadString('\n')
		if err != nil || !strings.Contains(l, fmt.Sprintf(`"session":"%d"`, i)) {
			t.Fatalf("%q, %v", l, err)
		}
		fastest = min(fastest, time.Since(start))
	}
	if fastest > time.Second { // the others may have met a busy machine
		t.Errorf("the fastest record took %v", fastest)
	}
}

func TestSlowReaderCostsRecordsAndNeverBlocksObserve(t *testing.T) {
	path, r := fifo(t)
	var log syncBuffer
	j := open(t, journal.Options{Close: true, Path: path, Log: slog.New(slog.NewTextHandler(&log, nil))})
	const n = 3 * journal.QueueLimit
	for i := range n {
		j.Observe(closed(i)) // nobody reads: the pipe takes 64 KiB, then the writer is stuck
	}
	dropped := j.Dropped()
	if dropped == 0 || dropped > n-journal.QueueLimit {
		t.Fatalf("%d of %d dropped with a queue of %d", dropped, n, journal.QueueLimit)
	}
	written := make(chan int)
	go func() {
		got := 0
		for s := bufio.NewScanner(r); got < int(n-dropped) && s.Scan(); got++ {
		}
		written <- got
	}()
	mustClose(t, j)
	if got := <-written; got != int(n-dropped) || j.Dropped() != dropped {
		t.Errorf("%d written, %d dropped of %d", got, j.Dropped(), n)
	}
	if !strings.Contains(log.String(), fmt.Sprintf("total=%d", dropped)) {
		t.Errorf("the log does not say that %d were dropped: %s", dropped, log.String())
	}
}
