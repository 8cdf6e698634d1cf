// Command embed is a load balancer made of the library: it listens on the first argument and spreads sessions over the others.
//
//	go run ./examples/embed 127.0.0.1:8080 127.0.0.1:9001 127.0.0.1:9002
package main

import (
	"fmt"
	"log"
	"os"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/proxy"
)

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: embed LISTEN BACKEND…")
	}
	srv, err := balancer(os.Args[2:])
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(srv.ListenAndServe(os.Args[1]))
}

// balancer is a server that gives each new session to the backend with the fewest, and prints how each one ended.
func balancer(addresses []string) (*proxy.Server, error) {
	var backends []*backend.Backend
	for _, address := range addresses {
		b, err := backend.New(backend.Config{Address: address, Weight: 1})
		if err != nil {
			return nil, err
		}
		backends = append(backends, b)
	}
	group, err := backend.NewGroup(backend.GroupConfig{Name: "embed", Backends: backends})
	if err != nil {
		return nil, err
	}
	return &proxy.Server{
		Settings: proxy.Settings{Group: &proxy.Group{Backends: group}},
		// This runs on an event loop: a program that serves many would hand the event to a goroutine.
		Observer: proxy.ObserverFunc(func(e proxy.Event) {
			if e.Kind == proxy.SessionClosed {
				fmt.Println(e.Client, "to", e.Backend, "for", e.Duration, "up", e.Up, "down", e.Down, e.Reason)
			}
		}),
	}, nil
}
