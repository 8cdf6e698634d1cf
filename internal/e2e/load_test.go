//go:build linux

package e2e

import (
	"crypto/sha256"
	order "encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// An errand is the first thing a client of a loadBackend says: 20 bytes. A short session sends up bytes of noise, gets their
// SHA-256, and down bytes of noise; then the backend closes. A long one (kind longKind) sends numbered blocks until it ends, and gets each back.
type errand struct {
	kind     byte
	seed     uint64
	up, down uint32
}

const (
	shortKind = 'S'
	longKind  = 'L'

	maxBody   = 64 << 10
	blockSize = 512
)

func (r errand) bytes() []byte {
	b := make([]byte, 0, 20)
	b = append(b, r.kind, 0, 0, 0)
	b = order.BigEndian.AppendUint64(b, r.seed)
	b = order.BigEndian.AppendUint32(b, r.up)
	return order.BigEndian.AppendUint32(b, r.down)
}

// errNothing is the end of a connection on which nothing came. A probe ends with a reset when the kernel has answered for it meanwhile.
var errNothing = errors.New("nothing came")

func readErrand(c net.Conn) (errand, error) {
	var b [20]byte
	if n, err := io.ReadFull(c, b[:]); n == 0 && err != nil {
		return errand{}, errNothing
	} else if err != nil {
		return errand{}, err
	}
	return errand{b[0], order.BigEndian.Uint64(b[4:]), order.BigEndian.Uint32(b[12:]), order.BigEndian.Uint32(b[16:])}, nil
}

// noise is n bytes that seed alone determines.
func noise(seed uint64, n uint32) []byte {
	var key [32]byte
	order.BigEndian.PutUint64(key[:], seed)
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	return b
}

// A block is numbered, and its filling depends on the number.
func block(n uint64) []byte {
	return append(order.BigEndian.AppendUint64(nil, n), noise(n, blockSize-8)...)
}

// A loadBackend serves short and long sessions, and keeps what went wrong.
type loadBackend struct {
	ln      net.Listener
	running sync.WaitGroup
	served  atomic.Int64

	mu    sync.Mutex
	wrong []string
}

func startLoadBackend(t *testing.T) *loadBackend {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &loadBackend{ln: ln}
	b.running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b.running.Go(func() { b.serve(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		b.running.Wait()
	})
	return b
}

func (b *loadBackend) address() string { return b.ln.Addr().String() }

func (b *loadBackend) serve(c net.Conn) {
	defer c.Close()
	r, err := readErrand(c)
	switch {
	case err == errNothing:
		return // a probe
	case err == nil && r.kind == shortKind:
		err = serveShort(c, r)
	case err == nil:
		err = serveLong(c)
	}
	b.served.Add(1)
	if err != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.wrong = append(b.wrong, fmt.Sprintf("backend, %c: %v", r.kind, err))
	}
}

func serveShort(c net.Conn, r errand) error {
	up := make([]byte, r.up)
	if n, err := io.ReadFull(c, up); err != nil {
		return fmt.Errorf("%d of %d bytes: %w", n, r.up, err)
	}
	sum := sha256.Sum256(up)
	if _, err := c.Write(sum[:]); err != nil {
		return err
	}
	_, err := c.Write(noise(r.seed+1, r.down))
	return err
}

func serveLong(c net.Conn) error {
	b := make([]byte, blockSize)
	for n := uint64(0); ; n++ {
		switch _, err := io.ReadFull(c, b); {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("block %d: %w", n, err)
		case string(b) != string(block(n)):
			return fmt.Errorf("block %d is another one", n)
		}
		if _, err := c.Write(b); err != nil {
			return fmt.Errorf("block %d: %w", n, err)
		}
	}
}

// A load is clients at work: short sessions at a rate, and long ones that run until the end.
type load struct {
	dial   func() (net.Conn, error)
	stop   chan struct{}
	begun  time.Time
	all    sync.WaitGroup
	blocks atomic.Int64

	mu    sync.Mutex
	took  []time.Duration // of short sessions that went well
	begin int             // long sessions that were begun
	long  int             // and ended well
	wrong []string
}

// startLoad begins rate short sessions a second and keeps long ones, each over the next of the addresses ("unix:" and a path, or TCP).
func startLoad(t *testing.T, rate, long int, addresses ...string) *load {
	t.Helper()
	var turn atomic.Int64
	l := &load{stop: make(chan struct{}), begun: time.Now(), dial: func() (net.Conn, error) {
		a := addresses[int(turn.Add(1))%len(addresses)]
		if path, ok := strings.CutPrefix(a, "unix:"); ok {
			return net.DialTimeout("unix", path, 10*time.Second)
		}
		return net.DialTimeout("tcp", a, 10*time.Second)
	}}
	l.addLong(long)
	l.all.Go(func() {
		next := time.NewTicker(time.Second / time.Duration(rate))
		defer next.Stop()
		for n := uint64(0); ; n += 2 {
			select {
			case <-next.C:
				l.all.Go(func() { l.note(l.shortSession(n)) })
			case <-l.stop:
				return
			}
		}
	})
	return l
}

// addLong begins n more long sessions.
func (l *load) addLong(n int) {
	l.begin += n
	for range n {
		l.all.Go(func() { l.note(l.longSession()) })
	}
}

func (l *load) note(err error) {
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.wrong = append(l.wrong, fmt.Sprintf("after %v: %v", time.Since(l.begun).Round(time.Millisecond), err))
	}
}

func (l *load) shortSession(seed uint64) error {
	begun := time.Now()
	c, err := l.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(begun.Add(20 * time.Second))
	r := errand{shortKind, seed, rand.Uint32N(maxBody + 1), rand.Uint32N(maxBody + 1)}
	up := noise(seed, r.up)
	if _, err := c.Write(append(r.bytes(), up...)); err != nil {
		return fmt.Errorf("short: %w", err)
	}
	got, err := io.ReadAll(c)
	sum := sha256.Sum256(up)
	switch {
	case err != nil:
		return fmt.Errorf("short: %d of %d bytes: %w", len(got), 32+r.down, err)
	case string(got) != string(sum[:])+string(noise(seed+1, r.down)):
		return fmt.Errorf("short: got %d bytes that are not the %d expected", len(got), 32+r.down)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.took = append(l.took, time.Since(begun))
	return nil
}

func (l *load) longSession() error {
	c, err := l.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write((errand{kind: longKind}).bytes()); err != nil {
		return fmt.Errorf("long: %w", err)
	}
	next := time.NewTicker(100 * time.Millisecond)
	defer next.Stop()
	got := make([]byte, blockSize)
	for n := uint64(0); ; n++ {
		select {
		case <-next.C:
		case <-l.stop:
			if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				return fmt.Errorf("long: %w", err)
			}
			if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
				return fmt.Errorf("long: after the last of %d blocks %d bytes and %w", n, len(rest), err)
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			l.long++
			return nil
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		want := block(n)
		if _, err := c.Write(want); err != nil {
			return fmt.Errorf("long: block %d: %w", n, err)
		}
		if _, err := io.ReadFull(c, got); err != nil {
			return fmt.Errorf("long: block %d: %w", n, err)
		}
		if string(got) != string(want) {
			return errors.New("long: another block came back")
		}
		l.blocks.Add(1)
	}
}

// finish ends the load and fails the test unless every session went well.
func (l *load) finish(t *testing.T, backends ...*loadBackend) {
	t.Helper()
	close(l.stop)
	l.all.Wait()
	wrong := l.wrong
	for _, b := range backends {
		b.mu.Lock()
		wrong = append(wrong, b.wrong...)
		b.mu.Unlock()
	}
	for i, w := range wrong {
		if i == 10 {
			t.Errorf("and %d more", len(wrong)-i)
			break
		}
		t.Error(w)
	}
	if l.long != l.begin || len(l.took) == 0 {
		t.Errorf("%d of %d long sessions and %d short ones ended well", l.long, l.begin, len(l.took))
		return
	}
	slices.Sort(l.took)
	at := func(q float64) time.Duration {
		return l.took[int(q*float64(len(l.took)-1))].Round(100 * time.Microsecond)
	}
	t.Logf("%d short sessions (median %v, 99 %% %v, longest %v) and %d long ones with %d blocks in %v; refused, reset or lost: %d",
		len(l.took), at(.5), at(.99), at(1), l.long, l.blocks.Load(), time.Since(l.begun).Round(time.Second), len(wrong))
}
