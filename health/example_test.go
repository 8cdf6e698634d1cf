package health_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/tproxy/tproxy/health"
)

// A server is the smallest thing that a Checker can decide about.
type server struct{ name, address string }

func (s server) Name() string    { return s.name }
func (s server) Address() string { return s.address }
func (s server) SetUp(up bool)   {}

// A database is probed with its own words; it stops answering, and comes back.
func Example() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer ln.Close()
	answers := make(chan string, 6)
	for _, a := range []string{"+PONG\r\n", "-LOADING\r\n", "-LOADING\r\n", "+PONG\r\n", "+PONG\r\n"} {
		answers <- a
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, <-answers)
			c.Close()
		}
	}()

	expect, err := health.ParseExpect("+PONG")
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	checker := health.New(health.Config{
		Group:    "cache",
		Prober:   health.SendExpect{Send: "PING\r\n", Expect: expect},
		Interval: 20 * time.Millisecond,
		Rule:     health.Rule{Rise: 2, Fall: 2},
		Observer: health.ObserverFunc(func(e health.Event) {
			switch e.Kind {
			case health.WentUp:
				fmt.Println(e.Backend, "is up")
				stop()
			case health.WentDown:
				fmt.Println(e.Backend, "is down:", e.Err)
			}
		}),
	})
	checker.Add(server{"cache1", ln.Addr().String()})
	if err := checker.Run(ctx); err != nil {
		fmt.Println(err)
	}
	// Output:
	// cache1 is down: reply "-LOADING" is not "+PONG"
	// cache1 is up
}

// With no probes, the dials of sessions decide alone.
func ExampleWatch_Report() {
	checker := health.New(health.Config{
		Rule: health.Rule{Failures: 2, HoldBase: time.Second, HoldMax: time.Minute},
	})
	w := checker.Add(server{"db1", "10.0.0.1:5432"})

	w.Report(errors.New("connection refused"))
	fmt.Println(checker.Status()[0].State.Up)
	w.Report(errors.New("connection refused"))
	fmt.Println(checker.Status()[0].State.Up, checker.Status()[0].Text)
	// Output:
	// true
	// false connection refused
}

func ExampleRule() {
	rule := health.Rule{Rise: 2, Fall: 3}
	now := time.Now()
	state := health.State{Up: true}
	for _, passed := range []bool{false, false, false, true, true} {
		state = rule.Probe(state, passed, false, now)
		fmt.Println(passed, state.Up)
	}
	// Output:
	// false true
	// false true
	// false false
	// true false
	// true true
}

func ExampleParseStatus() {
	set, err := health.ParseStatus("200,204,300-399")
	fmt.Println(set.Contains(302), set.Contains(404), err)
	// Output: true false <nil>
}
