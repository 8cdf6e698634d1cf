package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tproxy/tproxy/internal/config"
	"github.com/tproxy/tproxy/internal/proxyproto"
	"github.com/tproxy/tproxy/internal/reactor"
)

func doctorCommand() *cobra.Command {
	var d doctor
	var withHeader bool
	c := &cobra.Command{
		Use:   "doctor ADDRESS",
		Short: "Try a backend: what it does that a proxy should know",
		Long: `Doctor connects to a backend several times and says what it finds, one line a finding: how its name resolves, how long a connect takes,
whether it speaks first, whether it closes idle connections, what it does when the client has sent FIN, whether it speaks TLS, and with
--proxy whether it takes a PROXY header. It sends nothing but a TLS greeting and, with --proxy, the header. The status is 1 if the backend cannot be reached
or, with --proxy, takes no header.`,
		Example: `  tproxy doctor db.internal:5432
  tproxy doctor --proxy --idle 10s 10.0.0.7:25`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			a, err := config.ParseAddress(args[0])
			if err == nil && (a.FD != "" || a.Path == "" && (a.Port == 0 || a.Host == "")) {
				err = fmt.Errorf("%q: host:port or unix:/path expected", args[0])
			}
			if err != nil {
				return misuse{err}
			}
			if d.idle <= 0 || d.timeout <= 0 || d.tries <= 0 {
				return misuse{errors.New("--idle, --timeout and --tries: more than 0 expected")}
			}
			d.address, d.w = a, c.OutOrStdout()
			return d.examine(c.Context(), withHeader)
		},
	}
	f := c.Flags()
	f.DurationVar(&d.idle, "idle", 3*time.Second, "watch an idle connection for this `TIME`, and wait as long for an answer")
	f.DurationVar(&d.timeout, "timeout", 5*time.Second, "give up a connect after this `TIME`")
	f.IntVar(&d.tries, "tries", 5, "connect `N` times to measure it")
	f.BoolVar(&withHeader, "proxy", false, "also try a PROXY header, v1 and v2")
	return c
}

// A doctor examines one backend.
type doctor struct {
	address config.Address
	idle    time.Duration
	timeout time.Duration
	tries   int
	w       io.Writer
}

// find prints one finding.
func (d *doctor) find(about, format string, args ...any) {
	fmt.Fprintf(d.w, "%-11s %s\n", about, fmt.Sprintf(format, args...))
}

// errUnfit says that there is a finding with which the backend cannot be used; it was printed.
var errUnfit = status(exitFailed)

func (d *doctor) examine(ctx context.Context, withHeader bool) error {
	if err := d.resolve(ctx); err != nil {
		d.find("name", "%v", err)
		return errUnfit
	}
	if !d.connects(ctx) {
		return errUnfit
	}
	left, err := d.leftAlone(ctx)
	if err != nil {
		d.find("idle", "%v", err)
		return errUnfit
	}
	if err := d.halfClose(ctx); err != nil {
		d.find("half-close", "%v", err)
		return errUnfit
	}
	if len(left.said) > 0 {
		d.find("tls", "not tried: it speaks first")
	} else {
		d.find("tls", "%s", d.tls(ctx))
	}
	if !withHeader {
		return nil
	}
	fit := error(nil)
	for _, version := range []byte{1, 2} {
		taken, text := d.header(ctx, version, left)
		d.find(fmt.Sprintf("proxy v%d", version), "%s", text)
		if !taken {
			fit = errUnfit
		}
	}
	return fit
}

func (d *doctor) resolve(ctx context.Context) error {
	if d.address.Path != "" || net.ParseIP(d.address.Host) != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	begin := time.Now()
	ips, err := net.DefaultResolver.LookupHost(ctx, d.address.Host)
	if err != nil {
		return err
	}
	d.find("name", "%s is %s (%s)", d.address.Host, strings.Join(ips, ", "), short(time.Since(begin)))
	return nil
}

func (d *doctor) dial(ctx context.Context) (net.Conn, error) {
	dialer := net.Dialer{Timeout: d.timeout}
	dialer.SetMultipathTCP(false)
	if d.address.Path != "" {
		return dialer.DialContext(ctx, "unix", d.address.Path)
	}
	return dialer.DialContext(ctx, "tcp", d.address.String())
}

// connects measures the connect, and reports whether one succeeded.
func (d *doctor) connects(ctx context.Context) bool {
	var took []time.Duration
	var failed error
	for range d.tries {
		begin := time.Now()
		c, err := d.dial(ctx)
		if err != nil {
			failed = err
			continue
		}
		took = append(took, time.Since(begin))
		c.Close()
	}
	if len(took) == 0 {
		d.find("connect", "none of %d tries: %v", d.tries, failed)
		return false
	}
	slices.Sort(took)
	d.find("connect", "%d of %d tries; %s at best, %s in the middle, %s at worst", len(took), d.tries, short(took[0]), short(took[len(took)/2]), short(took[len(took)-1]))
	if failed != nil {
		d.find("connect", "%d failed, the last one: %v", d.tries-len(took), failed)
	}
	return true
}

// What a backend did on one connection.
type reaction struct {
	said  []byte        // the beginning of it
	total int           // bytes
	first time.Duration // until the first of them
	end   error         // io.EOF: FIN; nil: the connection stayed open
	ended time.Duration // until then
}

// watch reads what comes on c within the idle time.
func (d *doctor) watch(c net.Conn) (r reaction) {
	const remembered = 512
	begin := time.Now()
	c.SetReadDeadline(begin.Add(d.idle))
	buffer := make([]byte, 4096)
	for {
		n, err := c.Read(buffer)
		if n > 0 && r.total == 0 {
			r.first = time.Since(begin)
		}
		r.total += n
		r.said = append(r.said, buffer[:min(n, remembered-len(r.said))]...)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return r
		}
		if err != nil {
			r.end, r.ended = err, time.Since(begin)
			return r
		}
	}
}

// quoted is the beginning of what was said, safe for a terminal.
func (r reaction) quoted() string {
	const shown = 60
	return fmt.Sprintf("%q", r.said[:min(len(r.said), shown)])
}

func (r reaction) ending() string {
	switch {
	case r.end == io.EOF:
		return fmt.Sprintf("closes after %s", short(r.ended))
	case errors.Is(r.end, syscall.ECONNRESET):
		return fmt.Sprintf("resets after %s", short(r.ended))
	}
	return fmt.Sprintf("ends after %s: %v", short(r.ended), r.end)
}

// leftAlone finds out what the backend does with a client that says nothing.
func (d *doctor) leftAlone(ctx context.Context) (reaction, error) {
	c, err := d.dial(ctx)
	if err != nil {
		return reaction{}, err
	}
	defer c.Close()
	r := d.watch(c)
	if r.total > 0 {
		d.find("first", "speaks first, after %s: %d bytes, %s", short(r.first), r.total, r.quoted())
	} else {
		d.find("first", "waits for the client to speak")
	}
	if r.end == nil {
		d.find("idle", "leaves an idle connection open for %s at least", d.idle)
	} else {
		d.find("idle", "%s without a byte of the client; spares (pool.max_age) must be younger", r.ending())
	}
	return r, nil
}

// halfClose finds out what the backend does after a FIN.
func (d *doctor) halfClose(ctx context.Context) error {
	c, err := d.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return err
	}
	r := d.watch(c)
	said := ""
	if r.total > 0 {
		said = fmt.Sprintf("sends %d bytes and ", r.total)
	}
	if r.end == nil {
		d.find("half-close", "after a FIN it %skeeps the connection open for %s at least; timeouts.half_close ends it", said, d.idle)
	} else {
		d.find("half-close", "after a FIN it %s%s", said, r.ending())
	}
	return nil
}

// tls says whether the backend speaks TLS. Whom its certificate is for is shown, not verified.
func (d *doctor) tls(ctx context.Context) string {
	c, err := d.dial(ctx)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, d.idle)
	defer cancel()
	t := tls.Client(c, &tls.Config{ServerName: d.address.Host, InsecureSkipVerify: true}) // only to look at
	if err := t.HandshakeContext(ctx); err != nil {
		return fmt.Sprintf("no (%s)", printable(err.Error()))
	}
	s := t.ConnectionState()
	text := tls.VersionName(s.Version)
	if len(s.PeerCertificates) > 0 {
		leaf := s.PeerCertificates[0]
		names := append(slices.Clone(leaf.DNSNames), leaf.Subject.CommonName)
		text += fmt.Sprintf(", certificate of %s until %s", printable(names[0]), leaf.NotAfter.Format(time.DateOnly))
	}
	return text
}

// header says whether the backend takes a PROXY header: then it does after one what it does when it is left alone. One that does not
// know it takes it for a request, and answers or closes.
func (d *doctor) header(ctx context.Context, version byte, without reaction) (taken bool, text string) {
	c, err := d.dial(ctx)
	if err != nil {
		return false, err.Error()
	}
	defer c.Close()
	h := proxyproto.Header{
		Version:     version,
		Source:      proxyproto.Addr(reactor.AddrOf(c.LocalAddr())),
		Destination: proxyproto.Addr(reactor.AddrOf(c.RemoteAddr())),
	}
	if _, err := c.Write(proxyproto.Append(nil, h)); err != nil {
		return false, err.Error()
	}
	return compare(d.watch(c), without)
}

// compare judges what came after a header by what comes without one.
func compare(with, without reaction) (taken bool, text string) {
	lines := func(r reaction) int { return bytes.Count(r.said, []byte("\n")) }
	switch {
	case with.end != nil && without.end == nil:
		return false, fmt.Sprintf("not taken: %s, having said %s", with.ending(), with.quoted())
	case with.total == 0 && without.total > 0:
		return false, "not taken: it says nothing after the header"
	case without.total > 0 && lines(with) > lines(without):
		return false, fmt.Sprintf("not taken: it says more than without: %s", with.quoted())
	case with.total > 0 && without.total == 0:
		return true, fmt.Sprintf("unclear: it answers %s, which is a greeting (taken) or an error (not taken)", with.quoted())
	}
	return true, "taken, as it seems: it does what it does without"
}

// short is a time with three digits or so.
func short(d time.Duration) string {
	if d < time.Millisecond {
		return d.Round(time.Microsecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}
