package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/health"
	"github.com/tproxy/tproxy/pool"
	"github.com/tproxy/tproxy/proxy"
)

// greeter is a server that greets whoever connects.
func greeter(greeting string) (address string, stop func()) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, greeting)
			c.Close()
		}
	})
	return ln.Addr().String(), func() { ln.Close(); running.Wait() }
}

// newGroup is a group of backends at these addresses.
func newGroup(addresses ...string) (*backend.Group, error) {
	var backends []*backend.Backend
	for _, a := range addresses {
		b, err := backend.New(backend.Config{Address: a, Weight: 1})
		if err != nil {
			return nil, err
		}
		backends = append(backends, b)
	}
	return backend.NewGroup(backend.GroupConfig{Name: "greeters", Balance: backend.RoundRobin, Backends: backends})
}

// ask connects and reads what comes.
func ask(address string) (string, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	answer, err := io.ReadAll(c)
	return string(answer), err
}

func ExampleServer() {
	one, stop := greeter("one")
	defer stop()
	two, stop := greeter("two")
	defer stop()
	group, err := newGroup(one, two)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer group.Close()

	srv := &proxy.Server{
		Settings: proxy.Settings{
			Group:          &proxy.Group{Backends: group, Connect: proxy.Connect{Timeout: time.Second}},
			MaxConnections: 1000,
			Timeouts:       proxy.Timeouts{Idle: time.Hour, HalfClose: 5 * time.Minute},
			Keepalive:      proxy.Keepalive{Idle: time.Minute},
		},
	}
	defer srv.Close()
	l, err := srv.Listen("127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	srv.Start() // clients that came since Listen are served now
	for range 4 {
		fmt.Println(ask(l.Addr().String()))
	}
	// Output:
	// one <nil>
	// two <nil>
	// one <nil>
	// two <nil>
}

// Serve takes any listener: one of package tls ends the clients' TLS here.
func ExampleServer_Serve() {
	address, stop := greeter("hello")
	defer stop()
	group, err := newGroup(address)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer group.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}

	srv := &proxy.Server{Settings: proxy.Settings{Group: &proxy.Group{Backends: group}}}
	served := make(chan error)
	go func() { served <- srv.Serve(ln) }()
	fmt.Println(ask(ln.Addr().String()))

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		srv.Close() // the sessions that are left are reset
	}
	fmt.Println(<-served)
	// Output:
	// hello <nil>
	// proxy: server closed
}

// A journal of sessions.
func ExampleObserver() {
	address, stop := greeter("hello")
	defer stop()
	group, err := newGroup(address)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer group.Close()

	// Observe is called on event loops: it hands the event on.
	events := make(chan proxy.Event, 100)
	srv := &proxy.Server{
		Name:     "front",
		Settings: proxy.Settings{Group: &proxy.Group{Backends: group}},
		Observer: proxy.ObserverFunc(func(e proxy.Event) {
			select {
			case events <- e:
			default: // the journal is too slow
			}
		}),
	}
	l, err := srv.Listen("127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	l.Start()
	ask(l.Addr().String())
	srv.Shutdown(context.Background()) // the last event was observed when it returns
	close(events)
	for e := range events {
		fmt.Printf("%v: %d bytes to the client, reason %q\n", e.Kind, e.Down, e.Reason)
	}
	// Output:
	// accept: 0 bytes to the client, reason ""
	// open: 0 bytes to the client, reason ""
	// close: 5 bytes to the client, reason "backend_fin"
}

// A group whose backends are probed, limited, and waited for.
func ExampleGroup() {
	address, stop := greeter("hello")
	defer stop()
	b, err := backend.New(backend.Config{Address: address, Weight: 1, MaxConnections: 100})
	if err != nil {
		fmt.Println(err)
		return
	}
	backends, err := backend.NewGroup(backend.GroupConfig{Name: "greeters", Backends: []*backend.Backend{b}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer backends.Close()

	checker := health.New(health.Config{Group: "greeters", Prober: health.TCP{}, Rule: health.Rule{Rise: 2, Fall: 3, Failures: 3}})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { checker.Run(ctx) })
	defer running.Wait()
	defer cancel()

	queue := pool.NewQueue(1000, 5*time.Second) // for a slot, when all backends are at their limit
	hold := pool.NewQueue(1000, 10*time.Second) // for a backend to come up, when none is
	backends.OnFreed(func() { queue.Wake(); hold.Wake() })
	watch := checker.Add(b)
	srv := &proxy.Server{
		Settings: proxy.Settings{Group: &proxy.Group{Backends: backends, Queue: queue, Hold: hold, Health: report{watch}}},
	}
	defer srv.Close()
	l, err := srv.Listen("127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	l.Start()
	fmt.Println(ask(l.Addr().String()))
	// Output: hello <nil>
}

// report is the Health of a group with one backend.
type report struct{ watch *health.Watch }

func (r report) Report(_ *backend.Backend, err error) { r.watch.Report(err) }

// Sessions are moved away from a backend little by little: their clients come back and get another one.
func ExampleServer_Shed() {
	address, stop := greeter("hello")
	defer stop()
	group, err := newGroup(address)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer group.Close()
	srv := &proxy.Server{Settings: proxy.Settings{Group: &proxy.Group{Backends: group}}}
	defer srv.Close()

	leaving := group.Backends()[0]
	leaving.SetState(backend.Drain) // no new sessions
	srv.Shed(context.Background(), 30*time.Second, func(i proxy.SessionInfo) bool { return i.On(leaving) }, proxy.OnRemoved)
	fmt.Println(srv.Active(), "sessions")
	// Output: 0 sessions
}
