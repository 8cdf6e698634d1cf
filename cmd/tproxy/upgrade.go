package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tproxy/tproxy/internal/config"
	"github.com/tproxy/tproxy/internal/handover"
	"github.com/tproxy/tproxy/proxy"
)

// defaultUpgradeTimeout is how long a successor may take to become ready.
const defaultUpgradeTimeout = 30 * time.Second

// executable is the path of this program as it was called. A link in it is not followed: it may point to another version by the
// time of an upgrade.
func executable() (string, error) {
	if path, err := exec.LookPath(os.Args[0]); err == nil {
		return filepath.Abs(path)
	}
	return os.Executable()
}

// errReplaced answers requests to change something that came to the old process when its successor served already.
var errReplaced = errors.New("a successor serves now; ask again")

// An upgrade is a successor on its way. It belongs to the goroutine of untilStop.
type upgrade struct {
	abort  context.CancelFunc
	ended  chan succession
	asked  []chan<- error // who wants to know how it ends
	reload bool           // a reload was asked for meanwhile; it is for who serves afterwards
}

// A succession is how an upgrade ended.
type succession struct {
	successor *handover.Successor // nil: there is none, and nothing has changed
	err       error
}

// startUpgrade starts a successor, after a reload that runs; nil: none does.
func (i *instance) startUpgrade(reload <-chan struct{}) *upgrade {
	ctx, abort := context.WithTimeoutCause(context.Background(), i.program.upgradeTimeout,
		fmt.Errorf("it took longer than %v", i.program.upgradeTimeout))
	u := &upgrade{abort: abort, ended: make(chan succession, 1)}
	i.background.Go(func() {
		defer abort()
		if reload != nil {
			select {
			case <-reload:
			case <-ctx.Done():
				u.ended <- succession{err: context.Cause(ctx)}
				return
			}
		}
		s, err := i.succeed(ctx)
		u.ended <- succession{s, err}
	})
	return u
}

// endUpgrade tells everybody how the upgrade ended.
func (i *instance) endUpgrade(u *upgrade, s succession) {
	if i.metrics != nil {
		i.metrics.Upgraded(s.err)
	}
	if s.err != nil {
		i.log.Error("upgrade failed, nothing changed", "error", s.err)
	} else {
		i.log.Info("upgraded", "successor", s.successor.PID())
		if i.events != nil {
			i.events.Publish("upgrade", map[string]int{"pid": os.Getpid(), "successor": s.successor.PID()})
		}
	}
	for _, c := range u.asked {
		c <- s.err
	}
	if u.reload && s.err == nil {
		s.successor.Signal(reloadSignal)
	}
}

// upgrade starts a successor, or joins the upgrade that runs, and returns how it ended.
func (i *instance) upgrade(ctx context.Context) error {
	ended := make(chan error, 1)
	select {
	case i.upgrades <- ended:
	case <-i.leaving:
		if i.replaced.Load() {
			return errReplaced
		}
		return errors.New("the process is draining")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// succeed starts this program again with the listening sockets, and returns when the new process serves, or else is gone.
func (i *instance) succeed(ctx context.Context) (*handover.Successor, error) {
	if err := i.reserve(ctx); err != nil {
		return nil, err
	}
	defer i.unreserve()
	if os.Getpid() == 1 {
		return nil, errors.New("this is process 1, with whose end the successor's container would end")
	}
	sockets, err := i.sockets()
	defer func() {
		for _, s := range sockets {
			s.File.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	command := handover.Command{Path: i.program.executable, Args: os.Args, Env: successorEnviron(), Stdout: os.Stdout, Stderr: os.Stderr, Sockets: sockets}
	s, err := command.Start()
	if err != nil {
		return nil, err
	}
	i.log.Info("upgrade", "successor", s.PID(), "program", command.Path)
	taken, err := s.Ready(ctx)
	if err != nil {
		if f := i.program.config.Process.PIDFile; !namesUs(f) {
			err = errors.Join(err, writePID(f))
		}
		return nil, err
	}
	i.keepFiles(taken)
	i.replaced.Store(true)
	notifyReplaced(i.log, s.PID())
	return s, nil
}

// successorEnviron is the environment without what systemd meant for this process alone.
func successorEnviron() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "WATCHDOG_PID=") })
}

// socketName is how a successor finds the socket of an address of its configuration. Where the kernel chooses the port, the address
// says too little, and it must be of the same listener ("" is the admin address).
func socketName(listener, address string) string {
	if strings.HasSuffix(address, ":0") {
		return listener + " " + address
	}
	return address
}

// sockets are duplicates of all that is listened on; also on an error the caller closes them.
func (i *instance) sockets() (all []handover.Socket, err error) {
	add := func(name string, f *os.File, err error) error {
		if err == nil {
			all = append(all, handover.Socket{Name: name, File: f})
		}
		return err
	}
	r := i.current.Load()
	for _, name := range r.config.ListenerNames {
		for _, ln := range r.listeners[name].Listeners() {
			f, err := ln.File()
			if err := add(socketName(name, ln.Address()), f, err); err != nil {
				return all, err
			}
		}
	}
	if i.admin != nil {
		name := socketName("", i.admin.Address)
		f, err := handover.Duplicate(i.admin.Listener.(syscall.Conn), name)
		if err := add(name, f, err); err != nil {
			return all, err
		}
	}
	return all, nil
}

// keepFiles leaves the files of unix sockets that a successor has taken to it.
func (i *instance) keepFiles(taken []string) {
	r := i.current.Load()
	for name, s := range r.listeners {
		for _, ln := range s.Listeners() {
			if slices.Contains(taken, socketName(name, ln.Address())) {
				ln.SetUnlinkOnClose(false)
			}
		}
	}
	if i.admin != nil && slices.Contains(taken, socketName("", i.admin.Address)) {
		i.admin.SetUnlinkOnClose(false)
	}
}

// ownSockets makes the files of unix sockets ours that were a predecessor's until it knew that we serve. Those of sockets that somebody else
// made (fd:NAME) never are.
func (i *instance) ownSockets() {
	r := i.current.Load()
	for _, s := range r.listeners {
		for _, ln := range s.Listeners() {
			ln.SetUnlinkOnClose(!isDescriptor(ln.Address()))
		}
	}
	if i.admin != nil {
		i.admin.SetUnlinkOnClose(!isDescriptor(i.admin.Address))
	}
}

func isDescriptor(address string) bool { return strings.HasPrefix(address, "fd:") }

// listen binds an address, or takes over the sockets that were inherited for it. Nothing is accepted before Start.
func (i *instance) listen(s *proxy.Server, a config.Address) (all []*proxy.Listener, err error) {
	inherited, err := i.inherited.Take(socketName(s.Name, a.String()))
	if err != nil {
		return nil, err
	}
	switch {
	case len(inherited) == 0 && a.FD != "":
		return nil, noSuchSocket(a)
	case len(inherited) == 0:
		ln, err := s.Listen(a.String())
		if err != nil {
			return nil, err
		}
		return []*proxy.Listener{ln}, nil
	}
	for _, socket := range inherited {
		ln, e := s.Inherit(a.String(), socket)
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		ln.SetUnlinkOnClose(false) // see ownSockets
		all = append(all, ln)
	}
	return all, err
}

// listenAdmin binds the admin address, or takes over the socket that was inherited for it.
func (i *instance) listenAdmin(a config.Address) error {
	inherited, err := i.inherited.Take(socketName("", a.String()))
	switch {
	case err != nil:
		return err
	case len(inherited) == 0 && a.FD != "":
		return noSuchSocket(a)
	case len(inherited) > 1:
		for _, ln := range inherited {
			ln.Close()
		}
		return fmt.Errorf("%s are %d sockets; the admin address is one", a, len(inherited))
	case len(inherited) == 1:
		i.admin.Listener = inherited[0]
		i.admin.SetUnlinkOnClose(false) // see ownSockets
	}
	return i.admin.Listen()
}

func noSuchSocket(a config.Address) error {
	return fmt.Errorf("%s: no socket of that name was passed when the process was started (LISTEN_FDNAMES)", a)
}

// warmth is how long a successor waits at most for what it does before it takes clients.
const warmth = 3 * time.Second

// warm waits until probes have found which backends are up, and spares are there: the clients of a successor should notice no
// difference. Backends that keep changing do not hold it up for long.
func (i *instance) warm() {
	r := i.current.Load()
	for _, g := range r.groups {
		g.hurry()
	}
	end := time.After(warmth)
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		settled := true
		for name, g := range r.groups {
			settled = settled && g.settled(r.config.Groups[name])
		}
		if settled {
			return
		}
		select {
		case <-end:
			i.log.Warn("serving before all backends are probed and spares made", "waited", warmth)
			return
		case <-again.C:
		}
	}
}
