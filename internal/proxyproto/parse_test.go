package proxyproto

import (
	"errors"
	"testing"
)

func TestValidHeaders(t *testing.T) {
	for _, tt := range valid {
		for _, payload := range []string{"", "\r\nPROXY TCP4 data"} {
			h, n, err := Parse([]byte(tt.wire + payload))
			if h != tt.want || n != len(tt.wire) || err != nil {
				t.Errorf("%s: %+v, %d, %v; want %+v, %d", tt.name, h, n, err, tt.want, len(tt.wire))
			}
		}
	}
}

func TestInvalidHeadersAreRefused(t *testing.T) {
	if len(invalid) < 40 {
		t.Fatalf("%d kinds", len(invalid))
	}
	for _, tt := range invalid {
		h, n, err := Parse([]byte(tt.wire + "payload"))
		if !errors.Is(err, tt.err) || h != (Header{}) || n != 0 {
			t.Errorf("%s: %+v, %d, %v; want %v", tt.name, h, n, err, tt.err)
		}
	}
}

// Every cut of every valid header is incomplete, and the number of bytes asked for is never more than there will be.
func TestValidHeaderCutAnywhereIsIncomplete(t *testing.T) {
	for _, tt := range valid {
		for cut := range len(tt.wire) {
			h, n, err := Parse([]byte(tt.wire[:cut]))
			if err != ErrIncomplete || n <= cut || n > len(tt.wire) || h != (Header{}) {
				t.Fatalf("%s cut at %d: %+v, %d, %v", tt.name, cut, h, n, err)
			}
		}
	}
}

// Byte by byte, an invalid header is incomplete until it is refused, and stays refused for the same reason.
func TestInvalidHeaderByteByByte(t *testing.T) {
	for _, tt := range invalid {
		wire := []byte(tt.wire + "payload")
		var first error
		for i := range len(wire) + 1 {
			_, _, err := Parse(wire[:i])
			switch {
			case err == nil:
				t.Fatalf("%s: taken at %d bytes", tt.name, i)
			case first != nil && err.Error() != first.Error():
				t.Fatalf("%s: %v at %d bytes, %v before", tt.name, err, i, first)
			case err != ErrIncomplete:
				first = err
			}
		}
		if !errors.Is(first, tt.err) {
			t.Errorf("%s: %v, want %v", tt.name, first, tt.err)
		}
	}
}

// A reader that waits for as many bytes as Parse asks for gets there, with no answer earlier.
func TestNoAnswerBeforeTheBytesAskedFor(t *testing.T) {
	check := func(name, wire string) {
		asked := 0
		for i := range len(wire) + 1 {
			_, n, err := Parse([]byte(wire[:i]))
			if i < asked && err != ErrIncomplete {
				t.Fatalf("%s: asked for %d bytes, answered %v at %d", name, asked, err, i)
			}
			if err != ErrIncomplete {
				return
			}
			asked = n
		}
		t.Errorf("%s: asks for %d bytes of %d", name, asked, len(wire))
	}
	for _, tt := range valid {
		check(tt.name, tt.wire)
	}
	for _, tt := range invalid {
		check(tt.name, tt.wire+"payload")
	}
}

func TestLengthBeyondTheLimitIsRefusedAtOnce(t *testing.T) {
	_, _, err := Parse([]byte(signature2 + "\x21\x11\xff\xff"))
	if !errors.Is(err, ErrMalformed) {
		t.Errorf("%v: waits for 64 KiB", err)
	}
}

func TestParseKeepsNoPartOfTheBuffer(t *testing.T) {
	b := []byte(proxy4(tlv(typeAuthority, "host.example")))
	h, _, err := Parse(b)
	clear(b)
	if err != nil || h.Authority != "host.example" {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestParseOfIPv4AllocatesNothing(t *testing.T) {
	for _, wire := range []string{"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", proxy4(""), sealed(proxy4(crc), 0)} {
		b := []byte(wire)
		if n := testing.AllocsPerRun(100, func() { _, _, _ = Parse(b) }); n != 0 {
			t.Errorf("%q: %v allocations", wire, n)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, tt := range valid {
		f.Add([]byte(tt.wire + "tail"))
	}
	for _, tt := range invalid {
		f.Add([]byte(tt.wire))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := Parse(b)
		switch {
		case err == ErrIncomplete:
			if n <= len(b) || n > MaxSize {
				t.Fatalf("%d bytes of %d: incomplete", n, len(b))
			}
			return
		case err != nil:
			if n != 0 || h != (Header{}) || !errors.Is(err, ErrAbsent) && !errors.Is(err, ErrMalformed) {
				t.Fatalf("%+v, %d, %v", h, n, err)
			}
			return
		case n > len(b) || n > MaxSize:
			t.Fatalf("%d bytes of %d", n, len(b))
		}
		if short, _, err := Parse(b[:n-1]); err != ErrIncomplete {
			t.Fatalf("one byte less: %+v, %v", short, err)
		}
		wire := Append(nil, h)
		if h.Version == 1 && h.Source.Path+h.Destination.Path != "" {
			t.Fatalf("version 1 with unix paths: %+v", h)
		}
		again, m, err := Parse(wire)
		if err != nil || m != len(wire) || again != h {
			t.Fatalf("%+v is sent as %q and read as %+v, %v", h, wire, again, err)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for _, bb := range []struct{ name, wire string }{
		{"v1 TCP4", "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"},
		{"v1 TCP6", "PROXY TCP6 " + full6 + " " + full6 + " 65535 65535\r\n"},
		{"v2 TCP4", proxy4("")},
		{"v2 TCP6", header2(commandProxy, familyTCP6, block6)},
		{"v2 TCP4 authority", proxy4(tlv(typeAuthority, "host.example"))},
		{"v2 TCP4 CRC32C", sealed(proxy4(crc), 0)},
	} {
		wire := []byte(bb.wire)
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := Parse(wire); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
