package pool_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tproxy/tproxy/pool"
)

// A conn makes a net.Conn one that a Pool can keep.
type conn struct {
	net.Conn
	failed atomic.Bool
}

func (c *conn) Alive() bool { return !c.failed.Load() }
func (c *conn) Close()      { c.Conn.Close() }

func Example() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { // echo
				defer c.Close()
				for lines := bufio.NewScanner(c); lines.Scan(); {
					fmt.Fprintln(c, lines.Text())
				}
			}()
		}
	}()

	p := pool.New(pool.Config[*conn]{
		Dial: func(ctx context.Context) (*conn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", ln.Addr().String())
			if err != nil {
				return nil, err
			}
			return &conn{Conn: c}, nil
		},
		Warm:   1,
		MaxAge: 8 * time.Second,
	})
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var running sync.WaitGroup
	running.Go(func() {
		if err := p.Run(ctx); err != nil {
			fmt.Println(err)
		}
	})

	for i := range 2 {
		l, err := p.Get(ctx)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Fprintln(l.Conn, "request", i)
		reply, err := bufio.NewReader(l.Conn).ReadString('\n')
		fmt.Printf("%q %v\n", reply, err)
		if err != nil {
			l.Discard()
		} else {
			l.Put()
		}
	}
	stop()
	running.Wait()
	_, err = p.Get(context.Background())
	fmt.Println(err)
	// Output:
	// "request 0\n" <nil>
	// "request 1\n" <nil>
	// pool closed
}

func ExampleQueue() {
	slots := make(chan struct{}, 1)
	lease := func() bool {
		select {
		case slots <- struct{}{}:
			return true
		default:
			return false
		}
	}
	q := pool.NewQueue(100, 50*time.Millisecond)
	serve := func(ctx context.Context) error {
		if q.Len() > 0 || !lease() { // whoever waits already comes first
			return q.Wait(ctx, lease)
		}
		return nil
	}

	ctx := context.Background()
	fmt.Println(serve(ctx))
	fmt.Println(serve(ctx))

	done := make(chan error)
	go func() { done <- serve(ctx) }()
	<-slots
	q.Wake()
	fmt.Println(<-done)
	// Output:
	// <nil>
	// queue timeout
	// <nil>
}
