package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
)

// An Inheritance is the listening sockets that a process was started with. The nil Inheritance is empty. It is for one goroutine.
type Inheritance struct {
	pipe    io.WriteCloser // nil: no predecessor waits
	sockets []Socket       // not taken yet
	taken   []string
}

// Receive returns what a predecessor left, and whatever else the process was started with: more. It takes ownership of all of it. Call it
// once, before anything else is opened or started. A predecessor's list that makes no sense is an error.
func Receive(more ...Socket) (*Inheritance, error) {
	pipe, sockets, err := inherited()
	if err != nil {
		return nil, fmt.Errorf("inherited sockets: %w", err)
	}
	return &Inheritance{pipe: pipe, sockets: append(sockets, more...)}, nil
}

// Awaited reports whether a predecessor waits for Ready.
func (in *Inheritance) Awaited() bool { return in != nil && in.pipe != nil }

// Names are those of the sockets that nobody has taken.
func (in *Inheritance) Names() (names []string) {
	if in == nil {
		return nil
	}
	for _, s := range in.sockets {
		names = append(names, s.Name)
	}
	return names
}

// Take returns the sockets of that name, which become the caller's; none is no error.
func (in *Inheritance) Take(name string) (all []net.Listener, err error) {
	if in == nil {
		return nil, nil
	}
	var rest []Socket
	for _, s := range in.sockets {
		if s.Name != name {
			rest = append(rest, s)
			continue
		}
		ln, e := net.FileListener(s.File)
		s.File.Close() // ln has a duplicate
		if e != nil {
			err = errors.Join(err, fmt.Errorf("inherited socket %s: %w", name, e))
			continue
		}
		all = append(all, ln)
	}
	in.sockets = rest
	if err != nil {
		for _, ln := range all {
			ln.Close()
		}
		return nil, err
	}
	if len(all) > 0 {
		in.taken = append(in.taken, name)
	}
	return all, nil
}

// Ready closes what was not taken and tells the predecessor that this process serves. When that fails the predecessor is gone,
// or has given up. Without a predecessor there is nobody to tell.
func (in *Inheritance) Ready() error {
	if in == nil {
		return nil
	}
	var told error
	if in.pipe != nil {
		word, err := json.Marshal(ready{os.Getpid(), in.taken})
		if err != nil {
			return err
		}
		if _, err := in.pipe.Write(append(word, '\n')); err != nil {
			told = fmt.Errorf("tell the predecessor: %w", err)
		}
	}
	return errors.Join(told, in.Close())
}

// Close gives up what was not taken, and says nothing to a predecessor.
func (in *Inheritance) Close() error {
	if in == nil {
		return nil
	}
	var errs []error
	for _, s := range in.sockets {
		errs = append(errs, s.File.Close())
	}
	in.sockets = nil
	if in.pipe != nil {
		errs = append(errs, in.pipe.Close())
		in.pipe = nil
	}
	return errors.Join(errs...)
}
