package journal

import (
	"net/netip"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tproxy/tproxy/internal/reactor"
	"github.com/tproxy/tproxy/proxy"
)

// timeLayout is RFC 3339 with microseconds.
const timeLayout = "2006-01-02T15:04:05.000000Z07:00"

// appendRecord appends one line: a JSON object with every key of the contract in its order, and error where there is one.
// Names that are not known are "", durations are milliseconds with up to three decimals, and a session is named by a
// string, because a number above 2^53 does not survive every JSON reader.
func appendRecord(b []byte, e *proxy.Event, kind string) []byte {
	b = append(b, `{"time":"`...)
	b = e.Time.UTC().AppendFormat(b, timeLayout)
	b = append(b, `","event":"`...)
	b = append(b, kind...)
	b = append(b, `","listener":`...)
	b = appendString(b, e.Listener)
	b = append(b, `,"session":"`...)
	b = strconv.AppendUint(b, uint64(e.ID), 10)
	b = append(b, `","client":`...)
	b = appendAddr(b, e.Client)
	b = append(b, `,"client_claimed":`...)
	b = appendAddr(b, e.Claimed)
	b = append(b, `,"local":`...)
	b = appendAddr(b, e.Local)
	b = append(b, `,"group":`...)
	b = appendString(b, e.Group)
	b = append(b, `,"backend":`...)
	b = appendString(b, e.Backend)
	b = append(b, `,"attempts":`...)
	b = strconv.AppendInt(b, int64(e.Attempts), 10)
	b = append(b, `,"pool":"`...)
	b = append(b, e.Pool.String()...)
	b = append(b, `","sni":`...)
	b = appendString(b, e.SNI)
	b = append(b, `,"up":`...)
	b = strconv.AppendUint(b, e.Up, 10)
	b = append(b, `,"down":`...)
	b = strconv.AppendUint(b, e.Down, 10)
	b = append(b, `,"wait_ms":`...)
	b = appendMillis(b, e.Wait)
	b = append(b, `,"connect_ms":`...)
	b = appendMillis(b, e.Connect)
	b = append(b, `,"first_byte_ms":`...)
	b = appendMillis(b, e.FirstByte)
	b = append(b, `,"duration_ms":`...)
	b = appendMillis(b, e.Duration)
	b = append(b, `,"half_closed_by":"`...)
	b = append(b, sideName(e.HalfClosedBy)...)
	b = append(b, `","reason":"`...)
	b = append(b, e.Reason.String()...)
	b = append(b, '"')
	if e.Err != nil {
		b = append(b, `,"error":`...)
		b = appendString(b, errorText(e.Err))
	}
	return append(b, '}', '\n')
}

// appendString appends s as a JSON string that is safe to show on a terminal too: what is not printable is escaped, and
// bytes that are no UTF-8 become U+FFFD.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			i++
			switch {
			case c == '"' || c == '\\':
				b = append(b, '\\', c)
			case c < ' ' || c == 0x7f:
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			default:
				b = append(b, c)
			}
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(b, `\ufffd`...)
		case unicode.IsPrint(r):
			b = append(b, s[i:i+n]...)
		case r < 0x10000:
			b = append(b, '\\', 'u', hex[r>>12], hex[r>>8&15], hex[r>>4&15], hex[r&15])
		default:
			b = append(b, `\ufffd`...) // unprintable beyond the basic plane: a tag or an unassigned character
		}
		i += n
	}
	return append(b, '"')
}

func appendAddr(b []byte, a reactor.Addr) []byte {
	if a.IsUnix() || !a.IP.IsValid() {
		return appendString(b, a.String())
	}
	b = append(b, '"')
	b = netip.AddrPortFrom(a.IP.Addr().Unmap(), a.IP.Port()).AppendTo(b)
	return append(b, '"')
}

// appendMillis appends d in milliseconds, rounded down to a microsecond.
func appendMillis(b []byte, d time.Duration) []byte {
	us := d.Microseconds()
	if us < 0 {
		us = 0
	}
	b = strconv.AppendInt(b, us/1000, 10)
	if us %= 1000; us != 0 {
		b = append(b, '.', byte('0'+us/100), byte('0'+us/10%10), byte('0'+us%10))
		for b[len(b)-1] == '0' {
			b = b[:len(b)-1]
		}
	}
	return b
}

func sideName(s reactor.Side) string {
	switch s {
	case reactor.Client:
		return "client"
	case reactor.Backend:
		return "backend"
	}
	return ""
}

func errorText(err error) string {
	s := err.Error()
	return s[:min(len(s), maxError)]
}
