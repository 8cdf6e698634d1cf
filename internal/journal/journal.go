// Package journal writes one JSON object a session: when it ends and, if asked, when it starts and at intervals while it runs.
//
// A [Journal] is a [proxy.Observer]. Observe copies the event into a queue and returns; one goroutine, which Close waits
// for, encodes and writes. So a slow disk never holds up an event loop. It costs records instead: the queue holds
// [QueueLimit] events, and what does not fit is dropped, counted by Dropped and said in the log. The same happens to
// what cannot be written by the time of Close. A record that was torn by a full disk is completed once there is room.
package journal

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tproxy/tproxy/proxy"
)

const (
	// QueueLimit is how many events wait for the writer at most; together they take some 6 MB.
	QueueLimit = 16384

	batch    = 512                   // events that wake the writer at once
	settle   = 50 * time.Millisecond // how long fewer events wait for company
	retry    = time.Second           // between attempts to write to a sink that fails
	maxSNI   = 255                   // bytes of a server name that are kept: no valid one is longer (RFC 1035)
	maxError = 512                   // bytes of an error text that are kept
)

// Options say what is written, and where to.
type Options struct {
	// Open writes a record when a backend starts to serve a session, Close one when a session ends, refused ones too.
	Open, Close bool
	// Every writes a record of each open session at that interval; 0 does not.
	Every time.Duration
	// Sessions yields every open session with its current counters; needed if Every is set. It is called by one
	// goroutine, and ranging over it does not wait for the disk.
	Sessions iter.Seq[proxy.Event]
	// Path is the file that records are appended to; it is created with mode 0640. "" writes them to Log, level info.
	Path string
	// Log gets the records if Path is "", and is told of dropped records and of a file that cannot be written.
	// nil discards both, and is an error if Path is "".
	Log *slog.Logger
}

// A Journal writes records of sessions. Its methods may be called concurrently.
type Journal struct {
	o    Options
	sink sink

	mu     sync.Mutex
	queue  []proxy.Event
	closed bool

	first   chan struct{} // the queue is no longer empty
	full    chan struct{} // the queue has a batch
	quit    chan struct{}
	done    chan struct{}
	dropped atomic.Uint64

	said    uint64    // of dropped, by the writer
	saidAt  time.Time // likewise
	failing bool      // the last write failed
	lastErr error     // of the last write, for Close
}

// A sink is where records go. Only the writer calls it; reopen may be called by anyone at any time.
type sink interface {
	add(e *proxy.Event, kind string)
	// flush writes what was added. What could not be written stays and is tried again by the next flush.
	flush() error
	// pending is how many records were added and not written.
	pending() int
	reopen() error
	close() error
}

// Open starts a journal. The caller must Close it, after the last session has ended.
func Open(o Options) (*Journal, error) {
	if o.Every > 0 && o.Sessions == nil {
		return nil, errors.New("journal: Every without Sessions")
	}
	j := &Journal{
		o:     o,
		first: make(chan struct{}, 1),
		full:  make(chan struct{}, 1),
		quit:  make(chan struct{}),
		done:  make(chan struct{}),
	}
	switch {
	case o.Path != "":
		f, err := openFile(o.Path)
		if err != nil {
			return nil, err
		}
		j.sink = f
	case o.Log != nil:
		j.sink = &logSink{h: o.Log.Handler(), dropped: &j.dropped}
	default:
		return nil, errors.New("journal: neither a path nor a log")
	}
	if j.o.Log == nil {
		j.o.Log = slog.New(slog.DiscardHandler)
	}
	go j.write()
	return j, nil
}

// Observe queues a record of e if e is the start or the end of a session and the options ask for it. It never waits for a disk.
func (j *Journal) Observe(e proxy.Event) {
	switch {
	case e.Kind == proxy.SessionClosed && j.o.Close:
	case e.Kind == proxy.SessionOpened && j.o.Open:
	default:
		return
	}
	if len(e.SNI) > maxSNI {
		e.SNI = strings.Clone(e.SNI[:maxSNI]) // the queue must not keep a whole ClientHello
	}
	j.mu.Lock()
	if j.closed || len(j.queue) >= QueueLimit {
		j.mu.Unlock()
		j.dropped.Add(1)
		return
	}
	j.queue = append(j.queue, e)
	n := len(j.queue)
	j.mu.Unlock()
	switch n {
	case 1:
		poke(j.first)
	case batch:
		poke(j.full)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Dropped is how many records were lost because the queue was full or the sink could not be written.
func (j *Journal) Dropped() uint64 { return j.dropped.Load() }

// Reopen opens Path again, for when the file was renamed; records go to the new file from the next write on. On an
// error the old file stays in use. A journal without a Path, or after Close, ignores it.
func (j *Journal) Reopen() error { return j.sink.reopen() }

// Close writes everything observed before, and returns when it is written, or could not be: the error says how many
// records were lost and why. Later events are dropped and counted. A second Close does nothing.
func (j *Journal) Close() error {
	j.mu.Lock()
	again := j.closed
	j.closed = true
	j.mu.Unlock()
	if again {
		<-j.done
		return nil
	}
	close(j.quit)
	<-j.done
	lost := j.sink.pending()
	j.dropped.Add(uint64(lost))
	j.sayDropped(time.Time{})
	err := j.sink.close()
	if lost > 0 {
		err = j.lastErr
	}
	if err != nil {
		return fmt.Errorf("journal: close with %d records unwritten: %w", lost, err)
	}
	return nil
}

// write is the only goroutine of a journal. It moves events from the queue to the sink until Close.
func (j *Journal) write() {
	defer close(j.done)
	wait := time.NewTimer(settle)
	defer wait.Stop()
	var every <-chan time.Time
	if j.o.Every > 0 {
		t := time.NewTicker(j.o.Every)
		defer t.Stop()
		every = t.C
	}
	var spare []proxy.Event // becomes the queue when the queue is taken
	for {
		progress, quit := false, false
		select {
		case <-j.first:
			if !j.failing {
				wait.Reset(settle)
			}
			continue
		case <-j.full:
			if j.failing {
				continue
			}
		case <-wait.C:
		case <-every:
			progress = true
		case <-j.quit:
			quit = true
		}
		if !j.failing || j.flush() || quit {
			spare = j.take(spare)
			if progress {
				for e := range j.o.Sessions {
					j.sink.add(&e, "progress")
				}
			}
			j.flush()
		}
		if quit {
			return
		}
		if j.failing {
			wait.Reset(retry)
		}
		j.sayDropped(time.Now())
	}
}

// take adds the queue to the sink and leaves an empty one. It returns the old queue's memory for the next take.
func (j *Journal) take(spare []proxy.Event) []proxy.Event {
	j.mu.Lock()
	taken := j.queue
	j.queue = spare[:0]
	j.mu.Unlock()
	for i := range taken {
		j.sink.add(&taken[i], taken[i].Kind.String())
	}
	if cap(taken) > 2*batch {
		return nil // a burst is over; do not keep its memory
	}
	clear(taken)
	return taken
}

// flush writes the sink out and says in the log when that starts or stops to fail.
func (j *Journal) flush() bool {
	err := j.sink.flush()
	switch {
	case err != nil && !j.failing:
		j.o.Log.Error("journal cannot be written", "error", err)
	case err == nil && j.failing:
		j.o.Log.Info("journal is written again")
	}
	j.failing, j.lastErr = err != nil, err
	return err == nil
}

// sayDropped logs newly dropped records, at most once a second; the zero time says them in any case.
func (j *Journal) sayDropped(now time.Time) {
	n := j.dropped.Load()
	if n == j.said || !now.IsZero() && now.Sub(j.saidAt) < time.Second {
		return
	}
	j.o.Log.Warn("journal dropped records", "records", n-j.said, "total", n)
	j.said, j.saidAt = n, now
}
