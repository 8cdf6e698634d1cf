package main

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/tproxy/tproxy/backend"
	"github.com/tproxy/tproxy/proxy"
)

// A counted context counts the contexts that are made from it and not given back.
type counted struct {
	context.Context
	done       chan struct{} // its own, so that package context registers by AfterFunc
	made, left atomic.Int32
}

func (c *counted) Done() <-chan struct{} { return c.done }

func (c *counted) AfterFunc(func()) (stop func() bool) {
	c.made.Add(1)
	c.left.Add(1)
	return func() bool {
		c.left.Add(-1)
		return true
	}
}

func TestBackendsThatLeaveLeaveNothingBehind(t *testing.T) {
	p := programOf(t, `
listeners: {web: {address: "127.0.0.1:0"}, other: {address: "127.0.0.1:0", group: web}}
groups: {web: {backends: ["127.0.0.1:1"], health: {probe: none}}}
admin: {address: ""}
`)
	i, err := open(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer i.close()
	life := &counted{Context: i.life, done: make(chan struct{})}
	i.life = life
	gone, err := backend.New(backend.Config{Name: "gone", Address: "127.0.0.1:2", Weight: 1})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		i.leave(gone, "spread", proxy.OnRemoved)
		i.leave(gone, "cut", proxy.OnRemoved)
	}
	if life.made.Load() == 0 {
		t.Fatal("nothing was counted")
	}
	i.background.Wait()
	if n := life.left.Load(); n != 0 {
		t.Errorf("%d contexts are left", n)
	}
}
