package main

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"time"
)

const (
	// printLimit is how many bytes may wait for the reader of the standard output or error: some seconds of a busy proxy's log.
	printLimit = 4 << 20
	// printPatience is how long the end of the program waits for a reader that does not read.
	printPatience = time.Second
	// pipeAtom is what a pipe takes in one piece, so that lines of two processes do not mix (PIPE_BUF; 512 at least in POSIX).
	pipeAtom = 4096
)

var errNotPrinted = errors.New("the line is lost: nobody reads")

// A printer writes lines in the background, so that a reader that stalls holds up neither an event loop nor a signal. It costs lines
// instead: what does not fit into the queue is lost and counted, and so is what cannot be written.
type printer struct {
	w    io.Writer
	lost func(lines int) // says so, when there is somebody who reads again; it may Write

	mu     sync.Mutex
	queue  []byte
	lines  int             // that are lost and not said to be
	asked  []chan struct{} // by flush; closed when the queue is written
	closed bool

	more chan struct{} // holds one token: the queue is not empty
	quit chan struct{}
	done chan struct{}
}

// newPrinter starts a printer, which must be closed.
func newPrinter(w io.Writer, lost func(lines int)) *printer {
	p := &printer{w: w, lost: lost, more: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	go p.run()
	return p
}

// Write takes whole lines. It never waits for the reader; an error says that they are lost.
func (p *printer) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.queue)+len(b) > printLimit {
		p.lines += bytes.Count(b, newline)
		return 0, errNotPrinted
	}
	p.queue = append(p.queue, b...)
	p.wake()
	return len(b), nil
}

func (p *printer) wake() {
	select {
	case p.more <- struct{}{}:
	default:
	}
}

var newline = []byte{'\n'}

// flush returns when everything is written, or the reader was waited for long enough.
func (p *printer) flush() {
	written := make(chan struct{})
	p.mu.Lock()
	p.asked = append(p.asked, written)
	p.wake()
	p.mu.Unlock()
	patiently(written, printPatience)
}

// close is flush and the end of the printer. A write to a pipe that nobody reads cannot be ended; the process can.
func (p *printer) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	close(p.quit)
	patiently(p.done, printPatience)
}

// patiently waits for what may never come.
func patiently(done <-chan struct{}, limit time.Duration) {
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
	}
}

func (p *printer) run() {
	defer close(p.done)
	var spare []byte
	for {
		last := false
		select {
		case <-p.more:
		case <-p.quit:
			last = true
		}
		p.mu.Lock()
		taken, asked := p.queue, p.asked
		p.queue, p.asked = spare[:0], nil
		p.mu.Unlock()
		p.print(taken)
		for _, c := range asked {
			close(c)
		}
		if last {
			return
		}
		if spare = taken; cap(spare) > 16*pipeAtom {
			spare = nil // a burst is over; do not keep its memory
		}
	}
}

func (p *printer) print(text []byte) {
	for len(text) > 0 {
		n := piece(text)
		_, err := p.w.Write(text[:n])
		p.mu.Lock()
		if err != nil {
			p.lines += bytes.Count(text[:n], newline)
		}
		lost := p.lines
		if err == nil {
			p.lines = 0
		}
		p.mu.Unlock()
		if err == nil && lost > 0 {
			p.lost(lost)
		}
		text = text[n:]
	}
}

// piece is the length of as many whole lines as fit into one atomic write, one at least.
func piece(text []byte) int {
	if n := bytes.LastIndexByte(text[:min(len(text), pipeAtom)], '\n'); n >= 0 {
		return n + 1
	}
	if n := bytes.IndexByte(text, '\n'); n >= 0 {
		return n + 1
	}
	return len(text)
}
