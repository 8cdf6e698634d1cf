package proxy_test

import (
	"context"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/proxy"
)

// BenchmarkSession is a session from accept to close over loopback: connect, one message there and back, FIN both ways. The
// client and the backend are in the figures too, on package net.
func BenchmarkSession(b *testing.B) {
	kinds := []string{"portable"}
	if runtime.GOOS == "linux" {
		kinds = append(kinds, "epoll")
	}
	for _, kind := range kinds {
		b.Run(kind, func(b *testing.B) {
			address, stop := benchFront(b, kind)
			defer stop()
			benchSessions(b, address)
		})
	}
	// What the two ends cost without a proxy between them.
	b.Run("direct", func(b *testing.B) {
		address, stop := benchBackend(b)
		defer stop()
		benchSessions(b, address)
	})
}

func benchSessions(b *testing.B, address string) {
	b.ReportAllocs()
	buf := make([]byte, 1)
	for b.Loop() {
		c, err := net.Dial("tcp", address)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
		c.(*net.TCPConn).CloseWrite()
		if _, err := c.Read(buf); err != io.EOF {
			b.Fatal(err)
		}
		c.Close()
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "sessions/s")
}

func benchBackend(b *testing.B) (address string, stop func()) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				buf := make([]byte, 16)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					c.Write(buf[:n])
				}
			})
		}
	})
	return ln.Addr().String(), func() { ln.Close(); running.Wait() }
}

func benchFront(b *testing.B, kind string) (address string, stop func()) {
	behind, stopBackend := benchBackend(b)
	one, err := backend.New(backend.Config{Address: behind, Weight: 1})
	if err != nil {
		b.Fatal(err)
	}
	group, err := backend.NewGroup(backend.GroupConfig{Name: "g", Backends: []*backend.Backend{one}})
	if err != nil {
		b.Fatal(err)
	}
	e, err := proxy.NewEngine(kind)
	if err != nil {
		b.Fatal(err)
	}
	srv := &proxy.Server{Engine: e, Settings: proxy.Settings{Group: &proxy.Group{Backends: group}}, Observer: proxy.ObserverFunc(func(proxy.Event) {})}
	l, err := srv.Listen("127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	l.Start()
	return l.Addr().String(), func() {
		srv.Shutdown(context.Background())
		e.Close()
		group.Close()
		stopBackend()
	}
}
