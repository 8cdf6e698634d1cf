package clienthello

import (
	"encoding/binary"
	"fmt"
)

// The TLS record layer (RFC 8446, section 5.1), and the head of a handshake message (section 4).
const (
	handshakeRecord = 22
	majorVersion    = 3       // of SSL 3.0 to TLS 1.3
	recordHead      = 5       // bytes: type, version, length
	maxRecord       = 1 << 14 // bytes of content
	clientHello     = 1
	messageHead     = 4 // bytes: type, length
)

// message finds the ClientHello, with its head, in the records of b. n is where it ends in b or, with ErrIncomplete, the
// first place where there is something new to see.
func message(b []byte) (m []byte, n int, err error) {
	switch {
	case len(b) == 0:
		return nil, 1, ErrIncomplete
	case b[0] != handshakeRecord:
		return nil, 0, ErrNotTLS
	case len(b) == 1:
		return nil, 2, ErrIncomplete
	case b[1] != majorVersion:
		return nil, 0, ErrNotTLS
	case len(b) < recordHead:
		return nil, recordHead, ErrIncomplete
	}
	var head [messageHead]byte
	size, have := messageHead, 0 // of the message: what is known, what is there
	for at := 0; ; {
		length, err := contentLength(b[at:])
		if err == ErrIncomplete {
			return incomplete(at + onWire(size-have))
		}
		if err != nil {
			return nil, 0, err
		}
		start, end := at+recordHead, at+recordHead+length
		content := b[start:min(end, len(b))]
		if have < messageHead {
			copy(head[have:], content)
		}
		have += len(content)
		if have > 0 && head[0] != clientHello {
			return nil, 0, fmt.Errorf("%w: handshake message of type %d", ErrMalformed, head[0])
		}
		if have >= messageHead {
			size = messageHead + int(binary.BigEndian.Uint32(head[:])&0xffffff)
		}
		missing, rest := size-have, end-len(b)
		switch {
		case missing <= 0:
			n = start + len(content) + missing
			if n > MaxSize {
				return nil, 0, tooLong(n)
			}
			return gather(b, size), n, nil
		case have == 0:
			return nil, start + 1, ErrIncomplete
		case missing <= rest:
			return incomplete(len(b) + missing)
		case rest > 0:
			return incomplete(end + onWire(missing-rest))
		}
		at = end
	}
}

// contentLength reads the head of a record.
func contentLength(b []byte) (int, error) {
	switch {
	case len(b) > 0 && b[0] != handshakeRecord:
		return 0, fmt.Errorf("%w: record of type %d inside", ErrMalformed, b[0])
	case len(b) > 1 && b[1] != majorVersion:
		return 0, fmt.Errorf("%w: record of version %d inside", ErrMalformed, b[1])
	case len(b) < recordHead:
		return 0, ErrIncomplete
	}
	length := int(binary.BigEndian.Uint16(b[3:]))
	if length == 0 || length > maxRecord {
		return 0, fmt.Errorf("%w: record of %d bytes", ErrMalformed, length)
	}
	return length, nil
}

// onWire is the least number of bytes that carry n bytes of a message.
func onWire(n int) int {
	return n + (n+maxRecord-1)/maxRecord*recordHead
}

// incomplete asks for n bytes, if that many may come.
func incomplete(n int) ([]byte, int, error) {
	if n > MaxSize {
		return nil, 0, tooLong(n)
	}
	return nil, n, ErrIncomplete
}

func tooLong(n int) error {
	return fmt.Errorf("%w: at least %d bytes, over the limit of %d", ErrMalformed, n, MaxSize)
}

// gather returns the message of size bytes, all of which is in the records of b: a part of b if one record holds it.
func gather(b []byte, size int) []byte {
	if length := int(binary.BigEndian.Uint16(b[3:])); length >= size {
		return b[recordHead : recordHead+size]
	}
	m := make([]byte, 0, size)
	for len(m) < size {
		end := recordHead + int(binary.BigEndian.Uint16(b[3:]))
		m = append(m, b[recordHead:min(end, recordHead+size-len(m))]...)
		b = b[min(end, len(b)):]
	}
	return m
}
