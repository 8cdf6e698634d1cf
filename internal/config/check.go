package config

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"reflect"
	"regexp"
	resyntax "regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tproxy/tproxy/internal/clienthello"
)

// check reports what is wrong with values that are of the right type: out of range, or in contradiction to others.
func (l *ledger) check(c *Config) {
	visit(reflect.ValueOf(*c), "", "", l.bounds)
	if len(c.Listeners) == 0 && !l.failed(in("listeners")) {
		l.key(in("listeners"), &wrong{"no listener", "at least one, with an address and a group"})
	}
	for _, n := range c.ListenerNames {
		l.listener(c, c.Listeners[n], in("listeners", n))
	}
	for _, n := range c.GroupNames {
		l.group(c.Groups[n], in("groups", n))
	}
	l.sockets(c)
	l.admin(c.Admin, in("admin"))
}

// bounds checks a value against the oneof, min and max of its key.
func (l *ledger) bounds(p path, _ string, k key, v, _ reflect.Value) {
	if l.failed(p) {
		return
	}
	lowest, highest := k.field.Tag.Get("min"), k.field.Tag.Get("max")
	switch x := v.Interface().(type) {
	case string:
		if allowed := strings.Fields(k.field.Tag.Get("oneof")); len(allowed) > 0 && !slices.Contains(allowed, x) {
			l.value(p, &wrong{"not known: " + quote(x), "one of " + strings.Join(allowed, ", ")})
		}
	case int:
		low, high := 0, math.MaxInt32
		if lowest != "" {
			low, _ = strconv.Atoi(lowest)
		}
		if highest != "" {
			high, _ = strconv.Atoi(highest)
		}
		if x < low || x > high {
			l.value(p, &wrong{"out of range: " + quote(strconv.Itoa(x)), fmt.Sprintf("%d to %d", low, high)})
		}
	case time.Duration:
		if low, err := time.ParseDuration(lowest); err == nil && x < low {
			l.value(p, &wrong{"too short: " + quote(duration(x)), "at least " + lowest})
		}
	}
}

func (l *ledger) listener(c *Config, ln *Listener, p path) {
	if len(ln.Address) == 0 && !l.failed(p.to("address")) {
		l.key(p.to("address"), &wrong{"no address", addressForms})
	}
	for i, a := range ln.Address {
		if a.IsZero() && !l.failed(p.to("address").at(i)) {
			l.value(p.to("address").at(i), &wrong{`no address in ""`, addressForms})
		}
	}
	l.usesGroup(c, ln.Group, p.to("group"), len(ln.Routes) > 0)
	for i, r := range ln.Routes {
		at := p.to("routes").at(i)
		switch {
		case r.Reject && r.Group != "":
			l.value(at, &wrong{"both group and reject", "one of them"})
		case !r.Reject:
			l.usesGroup(c, r.Group, at.to("group"), false)
		}
		if len(r.SNI)+len(r.ALPN)+len(r.Source) == 0 && !l.failed(at) {
			l.value(at, &wrong{"a route that matches everything", "sni, alpn or source"})
		}
		for j, name := range r.SNI {
			if err := clienthello.CheckPattern(name); err != nil && !l.failed(at.to("sni").at(j)) {
				l.value(at.to("sni").at(j), &wrong{"not a server name: " + quote(name) + ": " + err.Error(), "a.example.com or *.example.com"})
			}
		}
		l.protocols(r.ALPN, at.to("alpn"))
	}
	pp := ln.ProxyProtocol
	if pp.Accept != "off" && len(pp.Trusted) == 0 && !l.failed(p.to("proxy_protocol")) && !l.failed(p.to("proxy_protocol").to("trusted")) {
		l.key(p.to("proxy_protocol").to("trusted"), &wrong{"nobody is trusted with proxy_protocol.accept " + quote(pp.Accept), "prefixes; 0.0.0.0/0 and ::/0 for anyone"})
	}
	if pp.Accept == "off" && len(pp.Trusted) > 0 {
		l.value(p.to("proxy_protocol").to("trusted"), &wrong{`set, with proxy_protocol.accept "off"`, "require or optional"})
	}
	if ln.TLS != nil {
		l.terminate(ln.TLS, p.to("tls"))
	}
	if key := c.TLSOf(ln); key != "" && ln.Engine == "epoll" && !l.failed(p.to("engine")) {
		l.value(p.to("engine"), &wrong{`"epoll" does not do TLS, and ` + key + " is set", "auto or portable"})
	}
	l.keepalive(ln.Keepalive, p.to("keepalive"))
	if t := ln.UserTimeout; t%time.Millisecond != 0 || t > math.MaxInt32*time.Millisecond {
		l.value(p.to("user_timeout"), &wrong{"not for the kernel: " + quote(duration(t)), "whole milliseconds, at most 596h"})
	}
}

func (l *ledger) usesGroup(c *Config, name string, p path, optional bool) {
	_, known := c.Groups[name]
	switch {
	case l.failed(p) || known || name == "" && optional:
	case name == "":
		l.key(p, &wrong{"no group", "the name of one in groups"})
	case l.failed(in("groups", name)):
	default:
		right := "there are no groups"
		if near := nearest(name, c.GroupNames); near != "" {
			right = "did you mean " + near + "?"
		} else if len(c.GroupNames) > 0 {
			right = "there are: " + strings.Join(c.GroupNames[:min(len(c.GroupNames), 10)], ", ")
		}
		l.value(p, &wrong{"no such group: " + quote(name), right})
	}
}

// readable reports a file that cannot be read.
func (l *ledger) readable(name string, p path, required bool) {
	if l.failed(p) || name == "" && !required {
		return
	}
	if name == "" {
		l.key(p, &wrong{"no file", "the name of a file"})
		return
	}
	f, err := os.Open(name)
	if err == nil {
		_, err = f.Read(make([]byte, 1))
		f.Close()
	}
	if err != nil {
		if e, ok := errors.AsType[*fs.PathError](err); ok {
			err = e.Err
		}
		l.value(p, &wrong{"cannot read " + quote(name) + ": " + err.Error(), "the name of a file"})
	}
}

// keepalive checks what Linux allows for TCP_KEEPIDLE and TCP_KEEPINTVL.
func (l *ledger) keepalive(k Keepalive, p path) {
	const right = "whole seconds, 1s to 32767s"
	if t := k.Idle; !l.failed(p.to("idle")) && (t%time.Second != 0 || t > 32767*time.Second) {
		l.value(p.to("idle"), &wrong{"not for the kernel: " + quote(duration(t)), right + ", or 0 for off"})
	}
	if t := k.Interval; !l.failed(p.to("interval")) && (t%time.Second != 0 || t < time.Second || t > 32767*time.Second) {
		l.value(p.to("interval"), &wrong{"not for the kernel: " + quote(duration(t)), right})
	}
}

func (l *ledger) group(g *Group, p path) {
	if len(g.Backends) == 0 && g.Discover == nil && !l.failed(p.to("backends")) && !l.failed(p.to("discover")) {
		l.key(p.to("backends"), &wrong{"no backend", "at least one address"})
	}
	l.backends(g, p.to("backends"))
	if g.Discover != nil {
		l.discover(g.Discover, p.to("discover"))
	}
	c, at := g.Connect, p.to("connect")
	if c.Attempts == 0 && c.Total == 0 && !l.failed(at) && !l.failed(at.to("attempts")) && !l.failed(at.to("total")) {
		l.value(at.to("attempts"), &wrong{`neither attempts "0" nor total "0s" has a limit`, "a limit for one of them"})
	}
	l.notBelow(c.Backoff.Max, "max", c.Backoff.Base, "base", at.to("backoff"))
	if r := g.Pool.Reset; r != nil && r.Expect == "" && !l.failed(p.to("pool").to("reset").to("expect")) {
		l.key(p.to("pool").to("reset").to("expect"), &wrong{"no answer to wait for", "the beginning of the answer"})
	}
	l.health(&g.Health, p.to("health"))
	if g.TLS != nil {
		l.originate(g, p)
	}
}

func (l *ledger) backends(g *Group, p path) {
	names, addresses := map[string]int{}, map[string]int{}
	for i, b := range g.Backends {
		at := p.at(i)
		if l.failed(at) || l.failed(at.to("address")) || l.failed(at.to("name")) {
			continue
		}
		a := b.Address
		switch {
		case a.IsZero():
			l.key(at.to("address"), &wrong{"no address", "host:port"})
			continue
		case a.FD != "":
			l.value(at.to("address"), &wrong{"a descriptor is no backend: " + quote(a.String()), "host:port or unix:/path"})
		case a.Path == "" && a.Host == "":
			l.value(at.to("address"), &wrong{"no host in " + quote(a.String()), "host:port"})
		case a.Path == "" && a.Port == 0:
			l.value(at.to("address"), &wrong{"port out of range in " + quote(a.String()), "1 to 65535"})
		case a.Path != "" && g.Health.Port != 0:
			l.value(at.to("address"), &wrong{"health.port is set, and there is no port in " + quote(a.String()), "host:port"})
		}
		if strings.ContainsFunc(b.Name, func(r rune) bool { return r <= ' ' || r == 0x7f }) || len(b.Name) > 255 {
			l.value(at.to("name"), &wrong{"not a name: " + quote(b.Name), "no blanks, at most 255 bytes"})
		}
		address := strings.ToLower(a.String())
		if first, ok := addresses[address]; ok {
			l.value(at.to("address"), &wrong{"the same backend twice: " + quote(a.String()), "also " + l.show(p.at(first))})
			continue
		}
		addresses[address] = i
		if first, ok := names[b.Name]; ok {
			l.value(at.to("name"), &wrong{"the same name twice: " + quote(b.Name), "also " + l.show(p.at(first))})
			continue
		}
		names[b.Name] = i
	}
}

func (l *ledger) discover(d *Discover, p path) {
	n := 0
	for _, given := range []bool{d.DNS != nil, d.SRV != nil, d.File != "", d.Etcd != nil, d.Consul != nil, d.Kubernetes != nil} {
		if given {
			n++
		}
	}
	if n != 1 && !l.failed(p) {
		l.value(p, &wrong{fmt.Sprintf("%d sources of backends", n), "one of dns, srv, file, etcd, consul, kubernetes"})
	}
}

func (l *ledger) health(h *Health, p path) {
	if l.failed(p) || l.failed(p.to("probe")) {
		return
	}
	only := func(key, probe string, given bool) {
		if given && h.Probe != probe && !l.failed(p.to(key)) {
			l.value(p.to(key), &wrong{"set, with probe " + quote(h.Probe), "only for probe " + probe})
		}
	}
	needs := func(key, probe string, given bool) {
		if !given && h.Probe == probe && !l.failed(p.to(key)) {
			l.key(p.to(key), &wrong{"missing, with probe " + quote(h.Probe), "what to send, expect or run"})
		}
	}
	only("send", "send_expect", h.Send != "")
	only("expect", "send_expect", h.Expect != "")
	only("command", "exec", len(h.Command) > 0)
	only("http", "http", h.HTTP != byDefault(reflect.TypeFor[HTTP]()).Interface())
	needs("expect", "send_expect", h.Expect != "")
	needs("command", "exec", len(h.Command) > 0)
	if pattern, ok := strings.CutPrefix(h.Expect, "re:"); ok {
		if _, err := resyntax.Parse(pattern, resyntax.Perl); err != nil {
			if e, ok := errors.AsType[*resyntax.Error](err); ok {
				err = errors.New(e.Code.String())
			}
			l.value(p.to("expect"), &wrong{"not a regular expression: " + quote(pattern) + ": " + err.Error(), "the syntax of RE2"})
		}
	}
	if s := h.HTTP.Path; !strings.HasPrefix(s, "/") || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		l.value(p.to("http").to("path"), &wrong{"not a path: " + quote(s), "/path, no blanks"})
	}
	if s := h.HTTP.Status; !validStatus(s) {
		l.value(p.to("http").to("status"), &wrong{"not a list of status codes: " + quote(s), "as 200-399 or 200,204"})
	}
	l.notBelow(h.HoldDown.Max, "max", h.HoldDown.Base, "base", p.to("hold_down"))
}

var statusList = regexp.MustCompile(`^[1-5]\d\d(-[1-5]\d\d)?(,[1-5]\d\d(-[1-5]\d\d)?)*$`)

func validStatus(s string) bool {
	if !statusList.MatchString(s) {
		return false
	}
	for part := range strings.SplitSeq(s, ",") {
		if low, high, ok := strings.Cut(part, "-"); ok && low > high {
			return false
		}
	}
	return true
}

func (l *ledger) notBelow(d time.Duration, key string, least time.Duration, other string, p path) {
	if d < least && !l.failed(p.to(key)) && !l.failed(p.to(other)) {
		l.value(p.to(key), &wrong{"less than " + other + " " + quote(duration(least)) + ": " + quote(duration(d)), "at least that"})
	}
}

// sockets reports addresses that cannot be bound by one process at the same time.
func (l *ledger) sockets(c *Config) {
	type socket struct {
		Address
		at path
	}
	var bound []socket
	bind := func(a Address, p path) {
		if a.IsZero() || l.failed(p) {
			return
		}
		for _, s := range bound {
			if s.overlaps(a) {
				l.value(p, &wrong{"the same address twice: " + quote(a.String()), l.show(s.at) + " is " + s.String()})
				return
			}
		}
		bound = append(bound, socket{a, p})
	}
	for _, n := range c.ListenerNames {
		for i, a := range c.Listeners[n].Address {
			p := in("listeners", n, "address")
			if l.set(p.at(i)) {
				p = p.at(i)
			}
			bind(a, p)
		}
	}
	bind(c.Admin.Address, in("admin", "address"))
}

func (l *ledger) admin(a Admin, p path) {
	if !a.Address.IsZero() && a.Address.FD == "" && !a.Address.Loopback() && a.TokenFile == "" && !l.failed(p.to("address")) && !l.failed(p.to("token_file")) {
		l.value(p.to("address"), &wrong{"others reach " + quote(a.Address.String()), "set admin.token_file, or a loopback or unix address"})
	}
	l.readable(a.TokenFile, p.to("token_file"), false)
}
