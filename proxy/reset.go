package proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"regexp"
	"time"

	"github.com/tproxy/tproxy/internal/reactor"
)

// A Reset is the exchange after which a backend connection that served one client may serve another, such as
// "RESET\r\n" and "+RESET\r\n" with Redis, or DISCARD ALL. Everything that the backend sends before the expected reply is
// what the last client did not wait for, and is thrown away.
type Reset struct {
	Send string
	// Expect must appear in what the backend sends, and be the last of it.
	Expect *regexp.Regexp
	// Timeout is for the whole exchange; 0 means 1 s.
	Timeout time.Duration
}

// resetLimit bounds what is read in search of the reply.
const resetLimit = 1 << 20

func (r *Reset) equal(o *Reset) bool {
	if r == nil || o == nil {
		return r == o
	}
	return r.Send == o.Send && r.Timeout == o.Timeout && r.Expect.String() == o.Expect.String()
}

// run makes the exchange. After an error the connection is not fit for anybody.
func (r *Reset) run(ctx context.Context, c reactor.Conn) error {
	timeout := r.Timeout
	if timeout <= 0 {
		timeout = time.Second
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no reply within %v", timeout))
	defer cancel()
	if err := c.Send([]byte(r.Send)); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	buf := make([]byte, 4<<10)
	var tail []byte // the end of what was read, where the reply may have begun
	for total := 0; total < resetLimit; {
		n, err := c.Peek(ctx, buf, 1)
		if n == 0 {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("reset: %w", err)
		}
		if err := c.Discard(n); err != nil {
			return fmt.Errorf("reset: %w", err)
		}
		total += n
		tail = append(tail, buf[:n]...)
		if at := r.last(tail); at == len(tail) {
			return nil
		}
		if keep := 4 << 10; len(tail) > keep {
			tail = bytes.Clone(tail[len(tail)-keep:])
		}
	}
	return fmt.Errorf("reset: no reply in %d bytes", resetLimit)
}

// last is where the last match of the reply ends; -1 if there is none.
func (r *Reset) last(b []byte) int {
	all := r.Expect.FindAllIndex(b, -1)
	if all == nil {
		return -1
	}
	return all[len(all)-1][1]
}
