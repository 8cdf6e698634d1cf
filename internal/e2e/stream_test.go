//go:build linux

package e2e

import "fmt"

// A stream is the bytes of one direction of one session. Each byte is known from the session's number, the direction and its place, so
// that whoever reads it sees a byte that is lost, repeated, changed or another session's.
type stream struct {
	key uint64
	at  int64
}

func upStream(session uint64) *stream   { return &stream{key: mix(session)} }
func downStream(session uint64) *stream { return &stream{key: mix(^session)} }

// mix is the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// fill makes b the next bytes.
func (s *stream) fill(b []byte) {
	var word uint64
	for i := range b {
		if at := s.at & 7; i == 0 || at == 0 {
			word = mix(s.key+uint64(s.at>>3)*0x9e3779b97f4a7c15) >> (8 * at)
		}
		b[i] = byte(word)
		word >>= 8
		s.at++
	}
}

// check reports the first of b that is not the next byte.
func (s *stream) check(b []byte) error {
	var want [4096]byte
	for len(b) > 0 {
		start := s.at
		w := want[:min(len(b), len(want))]
		s.fill(w)
		if string(w) != string(b[:len(w)]) {
			for i := range w {
				if w[i] != b[i] {
					return fmt.Errorf("foreign byte at %d: %x, want %x", start+int64(i), b[i:min(i+16, len(b))], w[i:min(i+16, len(w))])
				}
			}
		}
		b = b[len(w):]
	}
	return nil
}
