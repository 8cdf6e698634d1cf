package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tproxy/tproxy/internal/admin"
	"github.com/tproxy/tproxy/internal/config"
)

const (
	dialTimeout   = 5 * time.Second
	answerTimeout = 30 * time.Second
	maxAnswer     = 256 << 20 // bytes; 100,000 sessions are some 40 MB
)

// A target is the running tproxy that a command is about.
type target struct {
	address   string
	tokenFile string
	file      string // a configuration; it beats the other two
}

func (t *target) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&t.address, "admin", "127.0.0.1:9900", "admin `ADDRESS` of the running tproxy: host:port or unix:/path")
	f.StringVar(&t.tokenFile, "token-file", "", "`FILE` with the token, if the admin address wants one")
	f.StringVarP(&t.file, "config", "c", "", "take address and token from the configuration in `FILE` instead")
	c.MarkFlagsMutuallyExclusive("config", "admin")
	c.MarkFlagsMutuallyExclusive("config", "token-file")
}

// client returns a client of the target. Nothing is connected yet.
func (t *target) client() (*client, error) {
	address, err := config.ParseAddress(t.address)
	if err != nil {
		return nil, misuse{fmt.Errorf("--admin: %w", err)}
	}
	tokenFile := t.tokenFile
	if t.file != "" {
		c, err := config.Load(t.file, config.Options{Environ: os.Environ()})
		if err != nil {
			return nil, err
		}
		address, tokenFile = c.Admin.Address, c.Admin.TokenFile
	}
	switch {
	case address.IsZero():
		return nil, fmt.Errorf("%s: there is no admin address", t.file)
	case address.FD != "" || address.Path == "" && address.Port == 0:
		return nil, fmt.Errorf("admin address %s: nobody can connect to that", address)
	}
	cl := &client{address: address}
	if tokenFile != "" {
		if cl.token, err = admin.ReadToken(tokenFile); err != nil {
			return nil, err
		}
	}
	cl.http = &http.Client{Timeout: answerTimeout, Transport: &http.Transport{DialContext: cl.dial}}
	return cl, nil
}

// A client talks to the admin address of a running tproxy.
type client struct {
	address config.Address
	token   string
	http    *http.Client
}

// patient returns the client without a time limit for answers.
func (c *client) patient() *client {
	p := *c
	p.http = &http.Client{Transport: c.http.Transport}
	return &p
}

func (c *client) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	if c.address.Path != "" {
		return d.DialContext(ctx, "unix", c.address.Path)
	}
	return d.DialContext(ctx, "tcp", c.address.String())
}

// host is what the server knows itself by; it refuses changes that are asked of another one.
func (c *client) host() string {
	a := c.address
	if ip := net.ParseIP(a.Host); a.Path != "" || a.Host == "" || ip != nil && ip.IsUnspecified() {
		return "localhost"
	}
	return a.String()
}

// A refusal is an error that the running tproxy answered with.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

// do makes one request and returns the answer, which is JSON. body is sent as JSON unless it is nil; into, unless it is nil, gets
// the answer.
func (c *client) do(ctx context.Context, method, path string, body, into any) ([]byte, error) {
	var send io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		send = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+c.host()+"/api/v1/"+path, send)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, c.unreached(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, c.unreached(err)
	case len(text) > maxAnswer:
		return nil, fmt.Errorf("admin %s: the answer is longer than %d bytes", c.address, maxAnswer)
	case answer.StatusCode/100 != 2:
		return nil, c.refused(answer, text)
	}
	if into != nil {
		if err := json.Unmarshal(text, into); err != nil {
			return nil, fmt.Errorf("admin %s: the answer is not of tproxy: %w", c.address, err)
		}
	}
	return text, nil
}

func (c *client) unreached(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if o, ok := errors.AsType[*net.OpError](err); ok && o.Op == "dial" {
		return fmt.Errorf("admin %s: %w (does tproxy run there?)", c.address, o.Err)
	}
	return fmt.Errorf("admin %s: %w", c.address, err)
}

func (c *client) refused(answer *http.Response, text []byte) error {
	var e struct{ Error string }
	if json.Unmarshal(text, &e) != nil || e.Error == "" {
		return fmt.Errorf("admin %s: %s", c.address, answer.Status)
	}
	if answer.StatusCode == http.StatusUnauthorized {
		e.Error = fmt.Sprintf("admin %s: a valid token is needed (--token-file)", c.address)
	}
	return &refusal{answer.StatusCode, e.Error}
}

// segments joins names to a path.
func segments(names ...string) string {
	for i, n := range names {
		names[i] = url.PathEscape(n)
	}
	return strings.Join(names, "/")
}
