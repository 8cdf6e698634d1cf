package main

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/config"
)

// serve runs a backend that does f with each connection, and closes it when f returns.
func serve(t *testing.T, f func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	t.Cleanup(func() {
		ln.Close()
		running.Wait()
	})
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				f(c.(*net.TCPConn))
			})
		}
	})
	return ln.Addr().String()
}

func (d doctor) report(t *testing.T, address string, withHeader bool) (string, error) {
	t.Helper()
	a, err := config.ParseAddress(address)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	d.address, d.w = a, &b
	d.timeout, d.tries = time.Minute, 1
	err = d.examine(t.Context(), withHeader)
	return b.String(), err
}

func TestDoctorTellsWhatABackendDoes(t *testing.T) {
	readAll := func(c *net.TCPConn) { io.Copy(io.Discard, c) }
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	ended := make(chan struct{}) // for backends that ignore a FIN
	backends := map[string]struct {
		address string
		want    []string
	}{
		"speaks first, with what a terminal might obey": {
			serve(t, func(c *net.TCPConn) {
				io.WriteString(c, "220 \x1b[2Jmail\r\n"+strings.Repeat("x", 10_000))
				readAll(c)
			}),
			[]string{`^first +speaks first, after \S+: 10014 bytes, "220 \\x1b\[2Jmail\\r\\nx{46}"$`, `^tls +not tried`, `^half-close +after a FIN it sends 10014 bytes and closes`},
		},
		"closes idle connections": {
			serve(t, func(c *net.TCPConn) {
				c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
				readAll(c)
			}),
			[]string{`^idle +closes after \S+ without a byte of the client; spares`},
		},
		"resets": {
			serve(t, func(c *net.TCPConn) {
				c.SetLinger(0)
				c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
				c.Read(make([]byte, 1))
			}),
			[]string{`^idle +resets after`},
		},
		"ignores a FIN": {
			serve(t, func(*net.TCPConn) { <-ended }),
			[]string{`^half-close +after a FIN it keeps the connection open for 50ms at least`, `^tls +no `},
		},
		"speaks TLS": {
			secure.Listener.Addr().String(),
			[]string{`^tls +TLS 1\.3, certificate of example\.com until \d{4}-\d\d-\d\d$`},
		},
	}
	t.Cleanup(func() { close(ended) }) // before the backends are waited for
	for name, tt := range backends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// What the backend does must be done within the idle time, however busy the machine is.
			d := doctor{idle: 3 * time.Second}
			if name == "ignores a FIN" {
				d.idle = 50 * time.Millisecond
			}
			got, err := d.report(t, tt.address, false)
			if err != nil {
				t.Error(err)
			}
			for _, want := range tt.want {
				if !regexp.MustCompile("(?m)" + want).MatchString(got) {
					t.Errorf("no line with %s in\n%s", want, got)
				}
			}
		})
	}
}

func TestDoctorTriesHeadersOfBothVersions(t *testing.T) {
	address := serve(t, func(c *net.TCPConn) {
		if _, err := c.Read(make([]byte, 4096)); err == nil {
			io.WriteString(c, "400 what?\n")
		}
	})
	got, err := doctor{idle: time.Second}.report(t, address, true)
	if err != errUnfit {
		t.Errorf("error %v", err)
	}
	for _, version := range []string{"v1", "v2"} {
		if want := `(?m)^proxy ` + version + ` +not taken: closes after \S+, having said "400 what\?\\n"$`; !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("no line with %s in\n%s", want, got)
		}
	}
}

func TestDoctorJudgesTheHeader(t *testing.T) {
	greeted, silent := reaction{said: []byte("220 hello\r\n"), total: 11}, reaction{}
	for name, tt := range map[string]struct {
		with, without reaction
		taken         bool
		says          string
	}{
		"silent as without":       {silent, silent, true, "taken"},
		"greets as without":       {greeted, greeted, true, "taken"},
		"closes":                  {reaction{end: io.EOF}, silent, false, "not taken: closes"},
		"answers and closes":      {reaction{said: []byte("400"), total: 3, end: io.EOF}, silent, false, `having said "400"`},
		"greets and complains":    {reaction{said: []byte("220 hello\r\n500 what\r\n"), total: 21}, greeted, false, "says more"},
		"greets no more":          {silent, greeted, false, "says nothing"},
		"says what it did not":    {greeted, silent, true, "unclear"},
		"closes, as without":      {reaction{end: io.EOF}, reaction{end: io.EOF}, true, "taken"},
		"escapes for a terminal":  {reaction{said: []byte("\x1b[2J"), total: 4}, silent, true, `\x1b[2J`},
		"silent, greeted without": {reaction{end: io.EOF}, reaction{said: []byte("hi"), total: 2, end: io.EOF}, false, "says nothing"},
	} {
		taken, text := compare(tt.with, tt.without)
		if taken != tt.taken || !strings.Contains(text, tt.says) {
			t.Errorf("%s: %v, %s; want %v, with %q", name, taken, text, tt.taken, tt.says)
		}
	}
}
