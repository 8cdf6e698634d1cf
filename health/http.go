package health

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// A StatusSet is a set of HTTP status codes. The zero StatusSet is empty.
type StatusSet struct {
	ranges []statusRange
}

type statusRange struct{ first, last int }

// ParseStatus reads codes and ranges separated by commas: "200-399", "200,204,300-399".
func ParseStatus(s string) (StatusSet, error) {
	var set StatusSet
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		r := statusRange{statusCode(first), statusCode(last)}
		if r.first == 0 || r.last < r.first {
			return StatusSet{}, fmt.Errorf("status %q: %q is neither a code from 100 to 599 nor a range of them", s, part)
		}
		set.ranges = append(set.ranges, r)
	}
	return set, nil
}

// statusCode is 0 if s is no status code.
func statusCode(s string) int {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 16)
	if err != nil || n < 100 || n > 599 {
		return 0
	}
	return int(n)
}

// Contains reports whether code is in the set.
func (s StatusSet) Contains(code int) bool {
	for _, r := range s.ranges {
		if r.first <= code && code <= r.last {
			return true
		}
	}
	return false
}

// String is the inverse of [ParseStatus].
func (s StatusSet) String() string {
	var b strings.Builder
	for i, r := range s.ranges {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprint(&b, r.first)
		if r.last != r.first {
			fmt.Fprintf(&b, "-%d", r.last)
		}
	}
	return b.String()
}

// maxHead is how long the head of an HTTP response may be.
const maxHead = 64 << 10

// HTTP is the probe that sends a GET request and passes when the status of the response is in a set. The body is not read.
type HTTP struct {
	Dialer Dialer
	Path   string // and query; empty means /
	Host   string // empty means the address that is dialed, and localhost for a unix socket
	Status StatusSet
}

// Probe implements [Prober].
func (p HTTP) Probe(ctx context.Context, t Target) (err error) {
	network, address, err := p.Dialer.address(t.Address)
	if err != nil {
		return err
	}
	host := p.Host
	if host == "" {
		host = address
		if network == "unix" {
			host = "localhost"
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+cmp.Or(p.Path, "/"), nil)
	if err != nil {
		return err
	}
	req.Close = true
	req.Header.Set("User-Agent", "tproxy")

	c, err := p.Dialer.dial(ctx, t.Address)
	if err != nil {
		return err
	}
	defer c.end(&err)
	if err := req.Write(c); err != nil {
		return err
	}
	head := bufio.NewReader(io.LimitReader(c, maxHead))
	for {
		resp, err := http.ReadResponse(head, req)
		if err != nil {
			return fmt.Errorf("GET %s: %w", req.URL, err)
		}
		// The body is left unread and unclosed: closing it would read it.
		if resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols {
			continue // the final response is still to come
		}
		if !p.Status.Contains(resp.StatusCode) {
			return fmt.Errorf("GET %s: status %d is not in %s", req.URL, resp.StatusCode, p.Status)
		}
		return nil
	}
}
