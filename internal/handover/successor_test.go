package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A fake is a process that does what the test says.
type fake struct {
	words  *io.PipeWriter
	ended  chan error
	killed bool
	got    []os.Signal
}

func newFake() (*fake, *Successor) {
	r, w := io.Pipe()
	f := &fake{words: w, ended: make(chan error, 1)}
	return f, follow(f, r)
}

func (f *fake) pid() int { return 42 }

func (f *fake) signal(s os.Signal) error {
	f.got = append(f.got, s)
	return nil
}

func (f *fake) kill() {
	if !f.killed {
		f.killed = true
		f.end(errors.New("signal: killed"))
	}
}

func (f *fake) end(status error) {
	select {
	case f.ended <- status:
	default: // it has ended
	}
}

// wait closes the pipe, as the end of a process does.
func (f *fake) wait() error {
	err := <-f.ended
	f.words.Close()
	return err
}

func (f *fake) say(s string) { fmt.Fprint(f.words, s) }

func TestSuccessorIsHeardOrKilled(t *testing.T) {
	for name, tt := range map[string]struct {
		does func(f *fake)
		err  string // "" when it serves
	}{
		"ready":                     {func(f *fake) { f.say(`{"pid":42,"taken":["a","b"]}` + "\n") }, ""},
		"ready after a while":       {func(f *fake) { time.Sleep(50 * time.Second); f.say(`{"pid":42,"taken":["a","b"]}` + "\n") }, ""},
		"ready in pieces":           {func(f *fake) { f.say(`{"pid":42,`); time.Sleep(time.Second); f.say(`"taken":["a","b"]}` + "\n") }, ""},
		"ends at once":              {func(f *fake) { f.end(errors.New("exit status 1")) }, "ended before it was ready: exit status 1"},
		"ends in order":             {func(f *fake) { f.end(nil) }, "ended before it was ready: exit status 0"},
		"hangs":                     {func(*fake) {}, "was not ready: too slow"},
		"hangs in a word":           {func(f *fake) { f.say(`{"pid":42`) }, "was not ready: too slow"},
		"closes the pipe and hangs": {func(f *fake) { f.words.Close() }, "did not say that it is ready: EOF"},
		"talks nonsense":            {func(f *fake) { f.say("hello\n") }, `said "hello\n" instead`},
		"says nothing of itself":    {func(f *fake) { f.say("{}\n") }, "instead of being ready"},
		"speaks for another":        {func(f *fake) { f.say(`{"pid":43}` + "\n") }, "is ready as process 43"},
		"never ends its word": {func(f *fake) {
			f.say(strings.Repeat("x", maxWord+1))
		}, "did not say that it is ready: EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, s := newFake()
				go tt.does(f)
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("too slow"))
				defer cancel()
				taken, err := s.Ready(ctx)
				if tt.err == "" {
					if err != nil || !slices.Equal(taken, []string{"a", "b"}) {
						t.Fatalf("%q, %v", taken, err)
					}
					if f.killed {
						t.Error("it was killed")
					}
					f.kill() // so that nothing waits for it
					synctest.Wait()
					return
				}
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				if !f.killed {
					t.Error("it was left to itself")
				}
				select {
				case <-s.exited:
				default:
					t.Error("Ready did not wait for its end")
				}
			})
		})
	}
}

func TestReadyAndGoneIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s := newFake()
		go func() {
			f.say(`{"pid":42}` + "\n")
			f.end(errors.New("signal: killed"))
		}()
		synctest.Wait()
		if _, err := s.Ready(t.Context()); err != nil && !strings.Contains(err.Error(), "ended before it was ready") {
			t.Error(err)
		}
		<-s.exited
	})
}
