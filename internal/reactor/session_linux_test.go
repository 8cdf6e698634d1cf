package reactor

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
	"unsafe"
)

// What a session costs.

func TestASessionIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(conn{}); n > 64 {
		t.Errorf("a conn has %d bytes", n)
	}
	if n := unsafe.Sizeof(relay{}); n > 96 {
		t.Errorf("a relay has %d bytes", n)
	}
}

// TestAQuietSessionHoldsTwoDescriptorsAndNothingElse: no goroutine, no buffer, no pipe, whatever it has moved before.
func TestAQuietSessionHoldsTwoDescriptorsAndNothingElse(t *testing.T) {
	r := newRig(t, 2)
	const sessions = 40
	first := r.open() // after the first one the listener has the next one's socket at hand
	first.close(t)
	fds, goroutines := descriptors(t), runtime.NumGoroutine()
	var open []*session
	for i := range sessions {
		s := r.open()
		open = append(open, s)
		passes(t, s.client, s.server, "ping")
		passes(t, s.server, s.client, "pong")
		if i%8 == 0 { // a stream, with a reader that is late
			const size = 8 << 20
			var sender sync.WaitGroup
			sender.Go(func() { s.server.Write(make([]byte, size)) })
			io.CopyN(io.Discard, s.client, size)
			sender.Wait()
		}
	}
	pipes := func() (n int) {
		for _, l := range r.engine.loops {
			done := make(chan struct{})
			l.post(func() { n += len(l.pipes.idle); close(done) })
			<-done
		}
		return n
	}
	if pipes() == 0 {
		t.Error("no stream was spliced")
	}
	for i, s := range open {
		await(t, "a relay that does nothing", func() bool { return s.link.state.Load() == idle })
		for _, c := range []*conn{s.near, s.far} {
			if c.stash != nil || c.setup.Load() != nil {
				t.Errorf("session %d holds %+v %+v", i, c.stash, c.setup.Load())
			}
		}
	}
	// The peers are in this process, too.
	if n := descriptors(t) - fds - 2*pipes(); n != 4*sessions {
		t.Errorf("%d descriptors for %d sessions and their peers", n, sessions)
	}
	await(t, "no more goroutines than before", func() bool { return runtime.NumGoroutine() <= goroutines }) // senders may still be on their way out
	for _, s := range open {
		s.close(t)
	}
}

// roundTrip sends a message up and its echo down.
func (s *session) roundTrip(t testing.TB, p []byte) {
	for _, d := range [...][2]*net.TCPConn{{s.client, s.server}, {s.server, s.client}} {
		if _, err := d[0].Write(p); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(p); {
			m, err := d[1].Read(p[n:])
			if err != nil {
				t.Fatal(err)
			}
			n += m
		}
	}
}

func TestAMessageAllocatesNothing(t *testing.T) {
	s := newRig(t, 1).open()
	p := make([]byte, 64)
	if n := testing.AllocsPerRun(500, func() { s.roundTrip(t, p) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	s.close(t)
}

// BenchmarkMessage is a round trip of 64 bytes in a session that is up.
func BenchmarkMessage(b *testing.B) {
	s := newRig(b, 1).open()
	p := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		s.roundTrip(b, p)
	}
	s.close(b)
}

// BenchmarkConnection is a session of one message: both connects, the message, the end. Its peers are counted with it.
func BenchmarkConnection(b *testing.B) {
	r := newRig(b, 1)
	p := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		s := r.connect()
		s.client.SetLinger(0) // no TIME_WAIT: the ports would run out
		s.server.SetLinger(0)
		s.link.Start()
		s.roundTrip(b, p)
		s.close(b)
	}
}

// BenchmarkStream moves one direction as fast as it goes.
func BenchmarkStream(b *testing.B) {
	s := newRig(b, 1).open()
	const piece = 256 << 10
	b.SetBytes(piece)
	b.ReportAllocs()
	var reader sync.WaitGroup
	reader.Go(func() {
		buf := make([]byte, piece)
		for {
			if _, err := s.client.Read(buf); err != nil {
				return
			}
		}
	})
	p := make([]byte, piece)
	for b.Loop() {
		if _, err := s.server.Write(p); err != nil {
			b.Fatal(err)
		}
	}
	s.server.Close()
	reader.Wait()
	s.close(b)
}

// TestManySessionsThatEndAtRandom: data, FINs, resets, closes and kills on four loops, all at once. Everything ends once, and
// nothing is left.
func TestManySessionsThatEndAtRandom(t *testing.T) {
	fds, goroutines := descriptors(t), runtime.NumGoroutine()
	t.Run("sessions", func(t *testing.T) {
		r := newRig(t, 4)
		const workers, each = 8, 60
		var connecting sync.Mutex // pairs a client with its backend
		var all sync.WaitGroup
		for worker := range workers {
			all.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(worker), 1))
				for range each {
					connecting.Lock()
					s := r.connect()
					connecting.Unlock()
					s.atRandom(t, rnd)
				}
			})
		}
		all.Wait()
		if n := len(r.gate.conns); n > 0 {
			t.Errorf("%d connections that nobody has taken", n)
		}
	})
	await(t, "the goroutines", func() bool { return runtime.NumGoroutine() <= goroutines })
	if n := descriptors(t) - fds; n != 0 {
		t.Errorf("%d descriptors are left", n)
	}
}

// atRandom lives one session. Both peers send, read and end as they like, somebody may kill it, and each sees only what the other
// has sent.
func (s *session) atRandom(t *testing.T, rnd *rand.Rand) {
	end := time.Now().Add(patience)
	s.client.SetDeadline(end)
	s.server.SetDeadline(end)
	if rnd.IntN(4) == 0 {
		s.options.Idle = time.Millisecond
	}
	if rnd.IntN(4) == 0 {
		s.near.OnReset(func() {}) // registered before the relay starts
	}
	var peers sync.WaitGroup
	sizes := [2]int{1 << rnd.IntN(20), 1 << rnd.IntN(20)}
	var sent, got [2]int // got is -1 without a clean end
	var failed [2]error  // a write that fails takes the reset away from the next read, which then looks clean
	for i, d := range [2][2]*net.TCPConn{{s.client, s.server}, {s.server, s.client}} {
		from, to, how, stop := d[0], d[1], rnd.IntN(5), rnd.IntN(1<<20)
		content := fakeNoise[i<<22:]
		peers.Go(func() {
			sent[i], failed[i] = from.Write(content[:sizes[i]]) // less, when it is closed meanwhile
			switch how {
			case 0:
				from.SetLinger(0)
				from.Close()
			case 1:
				from.Close()
			default:
				from.CloseWrite()
			}
		})
		peers.Go(func() {
			got[i] = -1
			buf := make([]byte, 32<<10)
			for all := 0; all < stop; {
				n, err := to.Read(buf)
				if !bytes.Equal(buf[:n], content[all:all+n]) {
					t.Errorf("bytes from %d on are not what was sent", all)
				}
				all += n
				if err == io.EOF {
					got[i] = all
				}
				if err != nil {
					return
				}
			}
			to.Close() // it has had enough
		})
	}
	if rnd.IntN(3) == 0 {
		peers.Go(s.link.Kill)
	}
	s.link.Start()
	r := receive(t, s.ended, "the end of the session")
	s.client.Close()
	s.server.Close()
	peers.Wait()
	for i := range got {
		if got[i] >= 0 && got[i] != sent[i] && failed[1-i] == nil {
			t.Errorf("a clean end after %d bytes of %d: %+v", got[i], sent[i], r)
		}
	}
	if r.Up > uint64(sizes[0]) || r.Down > uint64(sizes[1]) || r.Cause == Failed || r.Cause == 0 {
		t.Errorf("the result is %+v for %d bytes up and %d down", r, sizes[0], sizes[1])
	}
	if len(s.ended) > 0 {
		t.Error("Ended twice")
	}
}
