package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// maxReply is how much of a reply is looked at.
const maxReply = 16 << 10

// An Expect is what a reply must be. The zero Expect is content with no reply at all.
type Expect struct {
	prefix  string
	pattern *regexp.Regexp
}

// ParseExpect reads the notation of the configuration: "re:" and a regular expression (RE2) that matches somewhere in the
// reply, or the reply's first bytes as they are.
func ParseExpect(s string) (Expect, error) {
	expr, ok := strings.CutPrefix(s, "re:")
	if !ok {
		return Expect{prefix: s}, nil
	}
	re, err := regexp.Compile(expr)
	if err != nil {
		return Expect{}, fmt.Errorf("expect %q: %w", s, err)
	}
	return Expect{pattern: re}, nil
}

// String is the inverse of [ParseExpect].
func (e Expect) String() string {
	if e.pattern != nil {
		return "re:" + e.pattern.String()
	}
	return e.prefix
}

// match says whether got, the beginning of a reply, is what is expected, and whether it can still become so.
func (e Expect) match(got []byte) (matched, possible bool) {
	if e.pattern != nil {
		return e.pattern.Match(got), len(got) < maxReply
	}
	n := min(len(got), len(e.prefix))
	if string(got[:n]) != e.prefix[:n] {
		return false, false
	}
	return n == len(e.prefix), true
}

// read reads from r, in pieces of any size, until the reply is as expected or cannot become so.
func (e Expect) read(r io.Reader) error {
	var reply []byte
	piece := make([]byte, 512)
	for {
		matched, possible := e.match(reply)
		if matched {
			return nil
		}
		if !possible {
			return fmt.Errorf("reply %s is not %q", quoted(reply), e)
		}
		n, err := r.Read(piece[:min(len(piece), maxReply+1-len(reply))])
		reply = append(reply, piece[:n]...)
		switch {
		case n > 0: // an error comes again
		case errors.Is(err, io.EOF):
			return fmt.Errorf("reply %s, then end, is not %q", quoted(reply), e)
		case err != nil:
			return fmt.Errorf("reply %s so far: %w", quoted(reply), err)
		}
	}
}

// quoted is the beginning of a reply, fit for a log line.
func quoted(b []byte) string {
	const most = 64
	if len(b) > most {
		return fmt.Sprintf("%q…", b[:most])
	}
	return fmt.Sprintf("%q", bytes.TrimRight(b, "\r\n"))
}

// SendExpect is the probe that sends something and compares the reply, of which it reads 16 KiB at most.
type SendExpect struct {
	Dialer Dialer
	Send   string // empty: the backend speaks first
	Expect Expect
}

// Probe implements [Prober].
func (p SendExpect) Probe(ctx context.Context, t Target) (err error) {
	c, err := p.Dialer.dial(ctx, t.Address)
	if err != nil {
		return err
	}
	defer c.end(&err)
	if p.Send != "" {
		if _, err := io.WriteString(c, p.Send); err != nil {
			return err
		}
	}
	return p.Expect.read(c)
}
