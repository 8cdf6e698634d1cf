package main

import (
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tproxy/tproxy/examples/line"
	"github.com/tproxy/tproxy/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSessionsAreSpread(t *testing.T) {
	var addresses []string
	for _, name := range []string{"one", "two"} {
		srv := &line.Server{Name: name}
		ln := listen(t)
		addresses = append(addresses, ln.Addr().String())
		served := make(chan error, 1)
		go func() { served <- srv.Serve(ln) }()
		defer func() {
			srv.Close()
			<-served
		}()
	}
	srv, err := balancer(addresses)
	if err != nil {
		t.Fatal(err)
	}
	ln := listen(t)
	address := ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()

	var who []string
	for range 2 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.WriteString(c, "WHO\n"); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, len("one\n"))
		if _, err := io.ReadFull(c, answer); err != nil {
			t.Fatal(err)
		}
		who = append(who, string(answer))
	}
	if slices.Sort(who); !slices.Equal(who, []string{"one\n", "two\n"}) {
		t.Errorf("two open sessions are served by %q", who)
	}
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, proxy.ErrServerClosed) {
		t.Errorf("Serve returned %v, want ErrServerClosed", err)
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}
