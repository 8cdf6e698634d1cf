// Command lineserver serves the line protocol of package line, as a backend to try a proxy with.
//
//	go run ./examples/line/lineserver -listen 127.0.0.1:9001 -name one
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/tproxy/tproxy/examples/line"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "lineserver:", err)
		os.Exit(1)
	}
}

func run() error {
	address := flag.String("listen", "127.0.0.1:9000", "address to listen on")
	name := flag.String("name", "", "the answer to WHO (default: the address)")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ln, err := net.Listen("tcp", *address)
	if err != nil {
		return err
	}
	srv := &line.Server{Name: *name}
	if srv.Name == "" {
		srv.Name = ln.Addr().String()
	}
	fmt.Printf("%s listens on %s\n", srv.Name, ln.Addr())

	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	stop() // a second signal ends the program at once
	within, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := srv.Shutdown(within); err != nil {
		return err
	}
	if err := <-served; !errors.Is(err, line.ErrServerClosed) {
		return err
	}
	return nil
}
