package main

import (
	"errors"
	"fmt"
	"net"

	"github.com/tproxy/tproxy/internal/config"
	"github.com/tproxy/tproxy/proxy"
)

// A move is an address that goes from one listener of the configuration to another in one reload. Both have the same socket, so that no
// client in the kernel's queue is lost, and there is no moment in which nobody listens.
type move struct {
	from, to *proxy.Listener
}

// addressChange tells the addresses that l names and s does not have, and those that s has and l does not name. A nil l names none.
func addressChange(s *proxy.Server, l *config.Listener) (missing []config.Address, left []*proxy.Listener) {
	have := make(map[string][]*proxy.Listener)
	for _, ln := range s.Listeners() {
		have[ln.Address()] = append(have[ln.Address()], ln)
	}
	if l != nil {
		for _, a := range l.Address {
			lns := have[a.String()]
			switch {
			case len(lns) == 0:
				missing = append(missing, a)
			case a.FD != "": // one name for several sockets
				delete(have, a.String())
			default:
				have[a.String()] = lns[1:]
			}
		}
	}
	for _, lns := range have {
		left = append(left, lns...)
	}
	return missing, left
}

// leaving are the sockets that listeners give up when c takes the place of old, by address.
func leaving(old *running, c *config.Config) map[string][]*proxy.Listener {
	all := make(map[string][]*proxy.Listener)
	for name, s := range old.listeners {
		_, left := addressChange(s, c.Listeners[name])
		for _, ln := range left {
			if a := ln.Address(); a == socketName(name, a) { // a port that the kernel chooses is another each time
				all[a] = append(all[a], ln)
			}
		}
	}
	return all
}

// move makes s listen on the sockets that other listeners give up.
func (ch *change) move(s *proxy.Server, from []*proxy.Listener) error {
	var errs []error
	for _, ln := range from {
		f, err := ln.File()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		socket, err := net.FileListener(f)
		f.Close() // socket has a duplicate
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", ln.Address(), err))
			continue
		}
		to, err := s.Inherit(ln.Address(), socket)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		to.SetUnlinkOnClose(false) // the file is the other's until commit
		ch.moves, ch.bound = append(ch.moves, move{ln, to}), append(ch.bound, to)
	}
	return errors.Join(errs...)
}

// commit makes the file of a unix socket the new listener's.
func (m move) commit() {
	m.from.SetUnlinkOnClose(false)
	m.to.SetUnlinkOnClose(!isDescriptor(m.to.Address()))
}
