package reactor_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/reactor"
)

// noise is what peers send: byte i of a stream is noise[(seed+i) % len(noise)]. The length is odd, so that no buffer
// fits into it evenly.
var noise = func() []byte {
	b := make([]byte, 1<<20+7)
	src := rand.NewChaCha8([32]byte{1})
	src.Read(b)
	return b
}()

// A pace cuts a stream into random pieces with random pauses. The pauses are input, nothing waits by them.
type pace struct {
	rnd   *rand.Rand
	slow  bool // pauses
	limit int  // of a piece
}

func newPace(seed uint64, slow bool, limit int) *pace {
	return &pace{rnd: rand.New(rand.NewPCG(seed, 7)), slow: slow, limit: limit}
}

func (p *pace) next(left int) int {
	if p.slow && p.rnd.IntN(8) == 0 {
		time.Sleep(time.Duration(p.rnd.IntN(200)) * time.Microsecond)
	}
	n := 1 + p.rnd.IntN(p.limit)
	if p.rnd.IntN(4) == 0 {
		n = 1 + p.rnd.IntN(100)
	}
	return min(n, left)
}

// sendNoise writes n bytes.
func sendNoise(w io.Writer, seed, n int, p *pace) error {
	for off := seed; n > 0; {
		from := noise[off%len(noise):]
		m, err := w.Write(from[:p.next(min(n, len(from)))])
		if err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

// readNoise reads to the end and returns how many bytes came; it fails at the first one that is wrong.
func readNoise(r io.Reader, seed int, p *pace) (n int, err error) {
	buf := make([]byte, p.limit)
	for {
		m, err := r.Read(buf[:p.next(len(buf))])
		for got, off := buf[:m], seed+n; len(got) > 0; {
			want := noise[off%len(noise):]
			k := min(len(got), len(want))
			if !bytes.Equal(got[:k], want[:k]) {
				return n, fmt.Errorf("wrong bytes at about %d", off-seed)
			}
			got, off = got[k:], off+k
		}
		n += m
		if err != nil {
			return n, err
		}
	}
}

// exchange sends noise both ways at once, with a FIN at the end of each, and checks all of it.
func exchange(t *testing.T, s *session, up, down int, seed uint64, slow bool, limit int) {
	t.Helper()
	sending := func(c net.Conn, at, n int, seed uint64) func() {
		return background(func() {
			if err := sendNoise(c, at, n, newPace(seed, slow, limit)); err != nil {
				t.Errorf("send: %v", err)
			}
			if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Errorf("send FIN: %v", err)
			}
		})
	}
	reading := func(who string, c net.Conn, at, want int, seed uint64) func() {
		return background(func() {
			if n, err := readNoise(c, at, newPace(seed, slow, limit)); err != io.EOF || n != want {
				t.Errorf("%s got %d bytes of %d, then %v", who, n, want, err)
			}
		})
	}
	for _, wait := range []func(){
		sending(s.client, 0, up, seed), sending(s.backend, 500, down, seed+1),
		reading("the backend", s.backend, 0, up, seed+2), reading("the client", s.client, 500, down, seed+3),
	} {
		wait()
	}
	r := receive(t, s.ended, "the end")
	if r.Cause != reactor.ClientFIN && r.Cause != reactor.BackendFIN {
		t.Errorf("cause is %s", causes[r.Cause])
	}
	if r.Up != uint64(up) || r.Down != uint64(down) {
		t.Errorf("the result says %d up, %d down; want %d, %d", r.Up, r.Down, up, down)
	}
}

func TestEveryByteArrivesOnceAndInOrder(t *testing.T) {
	const mib = 1 << 20
	sizes := []int{
		0, 1, 4095, 4096, 4097, 16383, 16384, 16385, 65535, 65536, 65537, mib - 1, mib, mib + 1, 2*mib - 1, 2 * mib, 2*mib + 1,
	}
	conform(t, func(t *testing.T, e reactor.Engine) {
		for _, f := range []struct{ front, back family }{
			{ipv4, ipv4}, {ipv6, ipv6}, {unixPath, unixPath}, {ipv4, unixPath}, {unixPath, ipv6},
		} {
			t.Run(string(f.front)+" to "+string(f.back), func(t *testing.T) {
				t.Parallel()
				r := newRigOn(t, e, f.front, f.back)
				for i, up := range sizes {
					if f.front != f.back && i%3 != 0 {
						continue // of the mixed ones some are enough
					}
					down := sizes[(i*7+3)%len(sizes)] // another one
					limit := []int{100 << 10, 8 << 10}[i%2]
					exchange(t, r.open(reactor.RelayOptions{}), up, down, uint64(i), true, limit)
				}
			})
		}
	})
}

func TestALargeTransferInBothDirectionsAtOnce(t *testing.T) {
	size := 256 << 20
	if testing.Short() || raceEnabled {
		size = 32 << 20
	}
	conform(t, func(t *testing.T, e reactor.Engine) {
		exchange(t, newRig(t, e).open(reactor.RelayOptions{}), size, size, 1, false, 256<<10)
	})
}

func TestMessagesPassOneByOne(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).open(reactor.RelayOptions{})
		for i := range 200 {
			ask, answer := fmt.Sprint("ask ", i), fmt.Sprint("answer ", i)
			send(t, s.client, ask)
			wantsNext(t, "the backend", s.backend, ask)
			send(t, s.backend, answer)
			wantsNext(t, "the client", s.client, answer)
		}
	})
}

// TestAReaderThatNeverReads checks that its sender is held back, memory is bounded, and nothing is lost when it reads after all.
func TestAReaderThatNeverReads(t *testing.T) {
	for _, from := range []reactor.Side{reactor.Client, reactor.Backend} {
		t.Run(map[reactor.Side]string{reactor.Client: "up", reactor.Backend: "down"}[from], func(t *testing.T) {
			conform(t, func(t *testing.T, e reactor.Engine) {
				s := newRig(t, e).open(reactor.RelayOptions{})
				src, dst := s.client, s.backend
				if from == reactor.Backend {
					src, dst = dst, src
				}
				src.(*net.TCPConn).SetWriteBuffer(64 << 10)
				dst.(*net.TCPConn).SetReadBuffer(64 << 10)
				heap := heapInUse()
				sent, most := 0, 128<<20
				for sent < most {
					// What fills the kernel's buffers does it without a pause: 100 ms without a byte is a stop.
					src.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
					at := noise[sent%len(noise):]
					n, err := src.Write(at)
					sent += n
					if errors.Is(err, os.ErrDeadlineExceeded) && n == 0 {
						break
					}
					if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Fatal(err)
					}
				}
				if sent >= most {
					t.Fatalf("the sender was not held back: %d bytes", sent)
				}
				if grown := int64(heapInUse()) - int64(heap); grown > 4<<20 {
					t.Errorf("the heap has grown by %d bytes", grown)
				}
				src.SetWriteDeadline(time.Now().Add(patience))
				rest := 1 << 20
				done := background(func() {
					if err := sendNoise(src, sent, rest, newPace(1, false, 64<<10)); err != nil {
						t.Error(err)
					}
					src.Close()
				})
				if n, err := readNoise(dst, 0, newPace(2, false, 256<<10)); err != io.EOF || n != sent+rest {
					t.Errorf("got %d bytes of %d, then %v", n, sent+rest, err)
				}
				done()
			})
		})
	}
}

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

func TestBytesAreCountedWhileTheSessionIsOpen(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).open(reactor.RelayOptions{})
		send(t, s.client, "abc")
		wantsNext(t, "the backend", s.backend, "abc")
		send(t, s.backend, "defgh")
		wantsNext(t, "the client", s.client, "defgh")
		await(t, "3 up, 5 down", func() bool {
			up, down := s.link.Bytes()
			return up == 3 && down == 5
		})
		s.isOpen()
	})
}

func TestQuietIsTheTimeSinceTheLastByte(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		s := newRig(t, e).open(reactor.RelayOptions{})
		await(t, "100 ms of quiet", func() bool { return s.link.Quiet() >= 100*time.Millisecond })
		send(t, s.client, "a")
		await(t, "the end of it", func() bool { return s.link.Quiet() < 100*time.Millisecond })
	})
}

func TestFirstByteIsTheBackends(t *testing.T) {
	conform(t, func(t *testing.T, e reactor.Engine) {
		r := newRig(t, e)
		s := r.connect()
		start := time.Now()
		s.relay(reactor.RelayOptions{})
		send(t, s.client, "a")
		wantsNext(t, "the backend", s.backend, "a")
		await(t, "50 ms", func() bool { return time.Since(start) > 50*time.Millisecond })
		sent := time.Now()
		send(t, s.backend, "b")
		wantsNext(t, "the client", s.client, "b")
		most := time.Since(start)
		s.client.Close()
		s.backend.Close()
		res := receive(t, s.ended, "the end")
		// Up to 20 ms less: an engine may read a coarse clock.
		if least := sent.Sub(start) - 20*time.Millisecond; res.FirstByte < least || res.FirstByte > most+20*time.Millisecond {
			t.Errorf("first byte after %v, want %v to %v", res.FirstByte, least, most)
		}

		s = r.open(reactor.RelayOptions{})
		send(t, s.client, "a")
		wantsNext(t, "the backend", s.backend, "a")
		s.client.Close()
		s.backend.Close()
		if res := receive(t, s.ended, "the end"); res.FirstByte != 0 {
			t.Errorf("first byte after %v, and none came", res.FirstByte)
		}
	})
}
