package handover

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// A Socket is a listening socket, and the name by which a successor finds it. Several may have the same name.
type Socket struct {
	Name string
	File *os.File
}

// A Command is a successor to be started.
type Command struct {
	Path           string
	Args           []string // the program's name first
	Env            []string
	Stdout, Stderr *os.File
	// Sockets are passed on. The caller closes them, when Start has returned.
	Sockets []Socket
}

// A Successor is a process that is to take over. Its methods may be called concurrently, but Ready only once.
type Successor struct {
	process process
	words   io.ReadCloser // the pipe
	exited  chan struct{} // closed when the process has ended
	status  error         // how; valid after exited
}

// A process is what the operating system makes of a Command.
type process interface {
	pid() int
	signal(os.Signal) error
	// kill ends the process and all that it started.
	kill()
	// wait returns when the process has ended, and says how unless it was in order.
	wait() error
}

// maxWord bounds what a successor may say.
const maxWord = 1 << 20

// Start starts the successor.
func (c Command) Start() (*Successor, error) {
	p, words, err := c.start()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	return follow(p, words), nil
}

func follow(p process, words io.ReadCloser) *Successor {
	s := &Successor{process: p, words: words, exited: make(chan struct{})}
	go func() {
		s.status = p.wait()
		close(s.exited)
	}()
	return s
}

// PID is the process ID.
func (s *Successor) PID() int { return s.process.pid() }

// Signal sends a signal to the successor.
func (s *Successor) Signal(sig os.Signal) error { return s.process.signal(sig) }

// Wait returns when the successor has ended, and says how unless it was in order. Nobody needs to call it: a successor that ended leaves no
// zombie.
func (s *Successor) Wait() error {
	<-s.exited
	return s.status
}

// Ready waits until the successor serves, and returns the names of the sockets that it has taken. When it ends or closes
// the pipe before, says something else, or ctx is done, it is killed with all that it started, and Ready returns why when it is gone.
func (s *Successor) Ready(ctx context.Context) (taken []string, err error) {
	type word struct {
		ready
		err error
	}
	said := make(chan word, 1)
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		w, err := s.listen()
		said <- word{w, err}
	}()
	defer func() {
		if err != nil {
			s.process.kill()
			<-s.exited
		}
		s.words.Close()
		<-heard
	}()
	select {
	case w := <-said:
		if taken, err = w.Taken, w.err; errors.Is(err, io.EOF) {
			s.linger() // it may be about to end, and say why in its log
		}
	case <-s.exited:
	case <-ctx.Done():
		err = fmt.Errorf("successor %d was not ready: %w", s.PID(), context.Cause(ctx))
	}
	select {
	case <-s.exited: // whatever it said: it is gone
		return nil, fmt.Errorf("successor %d ended before it was ready: %w", s.PID(), orDone(s.status))
	default:
		return taken, err
	}
}

// linger waits a moment for the end of the process.
func (s *Successor) linger() {
	moment := time.NewTimer(time.Second)
	defer moment.Stop()
	select {
	case <-s.exited:
	case <-moment.C:
	}
}

func orDone(status error) error {
	if status == nil {
		return errors.New("exit status 0")
	}
	return status
}

// listen reads what the successor says.
func (s *Successor) listen() (ready, error) {
	line, err := bufio.NewReader(io.LimitReader(s.words, maxWord)).ReadBytes('\n')
	if err != nil {
		return ready{}, fmt.Errorf("successor %d did not say that it is ready: %w", s.PID(), err)
	}
	var r ready
	if err := json.Unmarshal(line, &r); err != nil || r.PID == 0 {
		return ready{}, fmt.Errorf("successor %d said %.40q instead of being ready", s.PID(), line)
	}
	if r.PID != s.PID() {
		return ready{}, fmt.Errorf("successor %d is ready as process %d: it must replace the process that was started (exec)", s.PID(), r.PID)
	}
	return r, nil
}
