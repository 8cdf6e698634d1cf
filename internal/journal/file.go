package journal

import (
	"bytes"
	"fmt"
	"os"
	"sync"

	"github.com/tproxy/tproxy/proxy"
)

// maxKept is how large the buffer of a quiet file may be.
const maxKept = 1 << 20

// A file is a sink that appends lines to a file.
type file struct {
	path string
	f    *os.File
	buf  []byte
	done int // how much of buf is in f

	mu     sync.Mutex
	next   *os.File // replaces f at the next flush
	closed bool
}

func openFile(path string) (*file, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	return &file{path: path, f: f}, nil
}

func open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	return f, nil
}

func (s *file) add(e *proxy.Event, kind string) { s.buf = appendRecord(s.buf, e, kind) }

func (s *file) flush() error {
	if err := s.change(); err != nil {
		return err
	}
	if len(s.buf) == s.done {
		return nil
	}
	n, err := s.f.Write(s.buf[s.done:])
	s.done += n
	if err != nil {
		return err
	}
	s.buf, s.done = s.buf[:0], 0
	if cap(s.buf) > maxKept {
		s.buf = nil
	}
	return nil
}

// change goes over to the file that reopen left. A line that is torn at the end of the old file is written whole to the new one.
func (s *file) change() error {
	s.mu.Lock()
	next := s.next
	s.next = nil
	s.mu.Unlock()
	if next == nil {
		return nil
	}
	old := s.f
	s.f = next
	s.done = bytes.LastIndexByte(s.buf[:s.done], '\n') + 1
	return old.Close()
}

func (s *file) pending() int { return bytes.Count(s.buf[s.done:], []byte{'\n'}) }

func (s *file) reopen() error {
	f, err := open(s.path)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return f.Close()
	}
	unused := s.next
	s.next = f
	s.mu.Unlock()
	if unused != nil {
		return unused.Close()
	}
	return nil
}

func (s *file) close() error {
	s.mu.Lock()
	s.closed = true
	next := s.next
	s.mu.Unlock()
	if next != nil {
		next.Close() // nothing was written to it
	}
	return s.f.Close()
}
