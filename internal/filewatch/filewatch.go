// Package filewatch tells when the content of a file has changed, however that was done: written in place, replaced by a rename as editors and
// configuration tools do, or by setting a link anywhere in its path to something else, as Kubernetes does with a ConfigMap.
//
// The folders of the file and of every link on the way to it are watched, never the file itself, which may be replaced. Events only say when to
// look: what counts is the content, and a poll finds what no event told of.
package filewatch

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// Settle is how long a file must have been left alone before it is looked at, so that it is not read half written.
	Settle = 200 * time.Millisecond
	// Poll is how often it is looked at in any case.
	Poll = 30 * time.Second

	mostSettles = 10 // after so many times Settle it is looked at, though it is not left alone
)

// A File is a file that is watched. Its fields must not be changed after New.
type File struct {
	// Trouble is told of what keeps the file from being watched; it is polled then. nil: nobody is told.
	Trouble func(error)

	path string
	seen [sha256.Size]byte // of the content that is known; zero: none was ever there
}

// New remembers the content that the file has now; it need not be there. Call it before the file is read for the first time, and no change is
// missed.
func New(path string) (*File, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f := &File{path: path}
	f.changed()
	return f, nil
}

// Run calls told after each change of the content until ctx is done. A file that is gone is no change; when it comes back with the same content
// that is none, either. It ends on no error.
func (f *File) Run(ctx context.Context, told func()) {
	var events chan fsnotify.Event
	var faults chan error
	w, err := fsnotify.NewWatcher()
	if err != nil {
		f.trouble(err)
	} else {
		defer w.Close()
		events, faults = w.Events, w.Errors
	}
	r := f.follow(w, nil)
	look := func() {
		if f.changed() {
			told()
		}
	}
	look()
	poll := time.NewTicker(Poll)
	defer poll.Stop()
	settled := time.NewTimer(0)
	settled.Stop()
	var late time.Time // when to look at last; zero: no event came since
	stir := func() {
		now := time.Now()
		if late.IsZero() {
			late = now.Add(mostSettles * Settle)
		}
		settled.Reset(min(Settle, late.Sub(now)))
	}
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-events:
			if r.steps[e.Name] {
				stir()
			}
		case err := <-faults:
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				f.trouble(err)
			}
			stir()
		case <-settled.C:
			late = time.Time{}
			r = f.follow(w, r.folders)
			look()
		case <-poll.C:
			r = f.follow(w, r.folders)
			look()
		}
	}
}

func (f *File) trouble(err error) {
	if f.Trouble != nil {
		f.Trouble(err)
	}
}

// follow watches the folders on the way to the file, and no longer those of before that are not on it any more. A nil w is only polling.
func (f *File) follow(w *fsnotify.Watcher, before map[string]bool) route {
	r := find(f.path)
	if w == nil {
		return r
	}
	for folder := range before {
		if !r.folders[folder] {
			w.Remove(folder) // an error says that it is gone
		}
	}
	for folder := range r.folders {
		if err := w.Add(folder); err != nil {
			f.trouble(err)
		}
	}
	return r
}

// changed reports whether the content is another than the last time that there was one, and remembers it.
func (f *File) changed() bool {
	sum, err := digest(f.path)
	if err != nil || sum == f.seen {
		return false
	}
	f.seen = sum
	return true
}

// errNoFile is about what cannot be read twice, such as a pipe.
var errNoFile = errors.New("not a regular file")

func digest(path string) (sum [sha256.Size]byte, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return sum, err
	}
	if !info.Mode().IsRegular() {
		return sum, errNoFile
	}
	file, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer file.Close()
	h := sha256.New()
	if _, err := io.Copy(h, file); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}
