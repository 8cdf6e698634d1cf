package config

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

const good = `listeners:
  web:
    address: "127.0.0.1:8080"
    group: web
groups:
  web:
    backends: ["127.0.0.1:9001"]
admin:
  address: ""
`

// listenerWith is the good file with lines added to its listener; the first is line 5.
func listenerWith(lines string) string {
	return strings.Replace(good, "    group: web\n", "    group: web\n"+lines+"\n", 1)
}

// groupWith is the good file with lines added to its group; the first is line 7.
func groupWith(lines string) string {
	return strings.Replace(good, "    backends:", lines+"\n    backends:", 1)
}

// with is the good file with lines at its end; the first is line 10.
func with(lines string) string { return good + lines + "\n" }

func TestMistakesAreNamedAtTheirPlace(t *testing.T) {
	pair := filepath.Join(t.TempDir(), "missing.pem")
	for _, c := range []struct {
		name, text string
		want       []string // without the name of the file
	}{
		{"nothing wrong", good, nil},
		{"nothing there", "", []string{`1:1: listeners: no listener (at least one, with an address and a group)`}},
		{"no listener", "listeners: {}\ngroups: {}\n", []string{`1:1: listeners: no listener (at least one, with an address and a group)`}},
		{"listener without anything", "listeners:\n  web:\n", []string{
			`2:3: listeners.web.address: no address (host:port, [v6]:port, :port, unix:/path or fd:NAME)`,
			`2:3: listeners.web.group: no group (the name of one in groups)`}},
		{"bad name", strings.Replace(good, "  web:\n    backends", "  \"a b\": {}\n  web:\n    backends", 1), []string{
			`6:3: groups."a b": not a name: "a b" (letters, digits, _, - and ., at most 64)`}},

		{"unknown key", listenerWith("    max_conections: 5"), []string{
			`5:5: listeners.web.max_conections: unknown key "max_conections" (did you mean max_connections?)`}},
		{"unknown key, its beginning", listenerWith("    back: 5"), []string{
			`5:5: listeners.web.back: unknown key "back" (did you mean backlog?)`}},
		{"unknown key, letters swapped", with("lgo: {}"), []string{`10:1: lgo: unknown key "lgo" (did you mean log?)`}},
		{"unknown key, like none", with("zebras: {}"), []string{
			`10:1: zebras: unknown key "zebras" (known here: listeners, groups, drain, limits, admin, log, process)`}},
		{"unknown key in a backend", strings.Replace(good, `["127.0.0.1:9001"]`, `[{address: "a:1", wieght: 3}]`, 1), []string{
			`7:33: groups.web.backends[0].wieght: unknown key "wieght" (did you mean weight?)`}},
		{"misspelt key that must be there", strings.Replace(good, "backends:", "backend:", 1), []string{
			`7:5: groups.web.backend: unknown key "backend" (did you mean backends?)`}},
		{"key twice", listenerWith("    group: web"), []string{`5:5: listeners.web.group: set twice: "group" (first in line 4)`}},
		{"key without a value", listenerWith("    backlog:"), []string{
			`5:13: listeners.web.backlog: no value (leave the key out for its default)`}},
		{"section without keys", with("log:\ndrain: {}"), nil},

		{"port too high", strings.Replace(good, "8080", "99999", 1), []string{
			`3:14: listeners.web.address: port out of range in "127.0.0.1:99999" (0 to 65535)`}},
		{"one bad address in a list", strings.Replace(good, `"127.0.0.1:8080"`, `[":1", "x"]`, 1), []string{
			`3:21: listeners.web.address[1]: no port in "x" (host:port)`}},
		{"backend without a port", strings.Replace(good, "127.0.0.1:9001", "127.0.0.1", 1), []string{
			`7:16: groups.web.backends[0]: no port in "127.0.0.1" (host:port)`}},
		{"backend on port 0", strings.Replace(good, "9001", "0", 1), []string{
			`7:16: groups.web.backends[0]: port out of range in "127.0.0.1:0" (1 to 65535)`}},
		{"backend without a host", strings.Replace(good, "127.0.0.1:9001", ":9001", 1), []string{
			`7:16: groups.web.backends[0]: no host in ":9001" (host:port)`}},
		{"backend without an address", strings.Replace(good, `"127.0.0.1:9001"`, "{weight: 2}", 1), []string{
			`7:16: groups.web.backends[0].address: no address (host:port)`}},
		{"descriptor as a backend", strings.Replace(good, "127.0.0.1:9001", "fd:x", 1), []string{
			`7:16: groups.web.backends[0]: a descriptor is no backend: "fd:x" (host:port or unix:/path)`}},
		{"list as a backend", strings.Replace(good, `"127.0.0.1:9001"`, `["a:1"]`, 1), []string{
			`7:16: groups.web.backends[0]: not a backend: a list (an address, or a section with one)`}},
		{"the same backend twice", strings.Replace(good, `["127.0.0.1:9001"]`, `[A:1, {address: "a:1"}]`, 1), []string{
			`7:31: groups.web.backends[1].address: the same backend twice: "a:1" (also groups.web.backends[0])`}},
		{"two backends of one name", strings.Replace(good, `["127.0.0.1:9001"]`, `[{address: "a:1", name: x}, {address: "a:2", name: x}]`, 1), []string{
			`7:66: groups.web.backends[1].name: the same name twice: "x" (also groups.web.backends[0])`}},
		{"no backend", strings.Replace(good, `"127.0.0.1:9001"`, "", 1), []string{
			`7:5: groups.web.backends: no backend (at least one address)`}},
		{"weight too high", strings.Replace(good, `"127.0.0.1:9001"`, "{address: 'a:1', weight: 999}", 1), []string{
			`7:41: groups.web.backends[0].weight: out of range: "999" (0 to 256)`}},
		{"one socket twice", strings.Replace(good, "groups:", "  two:\n    address: [\":9\", \"127.0.0.1:8080\"]\n    group: web\ngroups:", 1), []string{
			`6:21: listeners.two.address[1]: the same address twice: "127.0.0.1:8080" (listeners.web.address is 127.0.0.1:8080)`}},
		{"one socket within another", strings.Replace(good, "groups:", "  two:\n    address: \":8080\"\n    group: web\ngroups:", 1), []string{
			`6:14: listeners.two.address: the same address twice: ":8080" (listeners.web.address is 127.0.0.1:8080)`}},
		{"the admin address twice", strings.Replace(good, `address: ""`, `address: "127.0.0.1:8080"`, 1), []string{
			`9:12: admin.address: the same address twice: "127.0.0.1:8080" (listeners.web.address is 127.0.0.1:8080)`}},

		{"no such group", strings.Replace(good, "group: web", "group: nope", 1), []string{
			`4:12: listeners.web.group: no such group: "nope" (there are: web)`}},
		{"group misspelt", strings.Replace(good, "group: web", "group: wbe", 1), []string{
			`4:12: listeners.web.group: no such group: "wbe" (did you mean web?)`}},
		{"a group of the listener's name needs no saying", strings.Replace(good, "    group: web\n", "", 1), nil},
		{"route to no such group", listenerWith("    routes:\n      - {sni: [a.b], group: none}"), []string{
			`6:29: listeners.web.routes[0].group: no such group: "none" (there are: web)`}},
		{"route with two ends", listenerWith("    routes:\n      - {sni: [a.b], group: web, reject: true}"), []string{
			`6:9: listeners.web.routes[0]: both group and reject (one of them)`}},

		{"duration of another kind", listenerWith("    timeouts: {idle: 5 parsecs}"), []string{
			`5:22: listeners.web.timeouts.idle: not a duration: "5 parsecs" (a number and a unit: 250ms, 5s, 1h)`}},
		{"duration below zero", listenerWith("    timeouts: {idle: -5s}"), []string{
			`5:22: listeners.web.timeouts.idle: a negative duration: "-5s" (0 or more)`}},
		{"duration without a unit", listenerWith("    timeouts: {idle: 10}"), []string{
			`5:22: listeners.web.timeouts.idle: a duration without a unit: "10" (a number and a unit: 250ms, 5s, 1h)`}},
		{"duration without a unit, in quotes", listenerWith("    timeouts: {idle: '10'}"), []string{
			`5:22: listeners.web.timeouts.idle: a duration without a unit: "10" (a number and a unit: 250ms, 5s, 1h)`}},
		{"duration too long for anything", listenerWith("    timeouts: {idle: 9999999999h}"), []string{
			`5:22: listeners.web.timeouts.idle: a duration out of range: "9999999999h" (at most 87600h)`}},
		{"duration that cannot be spread", listenerWith("    timeouts: {session: 2000000h}"), []string{
			`5:25: listeners.web.timeouts.session: a duration out of range: "2000000h" (at most 87600h)`}},
		{"zero needs no unit", listenerWith("    timeouts: {idle: 0, session: '0'}"), nil},
		{"duration that must not be zero", groupWith("    health: {interval: 0}"), []string{
			`7:24: groups.web.health.interval: too short: "0s" (at least 1ms)`}},

		{"limit below zero", listenerWith("    max_connections: -5"), []string{
			`5:22: listeners.web.max_connections: out of range: "-5" (0 to 2147483647)`}},
		{"limit in words", listenerWith("    max_connections: many"), []string{
			`5:22: listeners.web.max_connections: not a whole number: "many" (0 or more)`}},
		{"half a connection", listenerWith("    max_connections: 1.5"), []string{
			`5:22: listeners.web.max_connections: not a whole number: "1.5" (0 or more)`}},
		{"limit with an exponent", listenerWith("    max_connections: 1e99"), []string{
			`5:22: listeners.web.max_connections: not a whole number: "1e99" (0 or more)`}},
		{"limit beyond every machine", listenerWith("    max_connections: 99999999999999999999"), []string{
			`5:22: listeners.web.max_connections: out of range: "99999999999999999999" (at most 2147483647)`}},
		{"limit in quotes", listenerWith("    max_connections: '5'"), []string{
			`5:22: listeners.web.max_connections: not a whole number: "5" (0 or more)`}},
		{"no backlog", listenerWith("    backlog: 0"), []string{`5:14: listeners.web.backlog: out of range: "0" (1 to 2147483647)`}},
		{"neither true nor false", listenerWith("    half_close: maybe"), []string{
			`5:17: listeners.web.half_close: neither true nor false: "maybe"`}},
		{"text where there is a section", listenerWith("    timeouts: 5s"), []string{
			`5:15: listeners.web.timeouts: not a section: "5s" (keys and values)`}},
		{"number where there is text", groupWith("    health: {probe: http, http: {status: 200}}"), []string{
			`7:42: groups.web.health.http.status: a number where text is wanted: "200" (put it in quotes)`}},
		{"text where there is a list", groupWith("    health: {probe: exec, command: ls}"), []string{
			`7:36: groups.web.health.command: not a list: "ls" ([…, …])`}},
		{"unknown word", listenerWith("    when_full: explode"), []string{
			`5:16: listeners.web.when_full: not known: "explode" (one of wait, reject)`}},
		{"unknown balance", groupWith("    balance: fastest"), []string{
			`7:14: groups.web.balance: not known: "fastest" (one of round_robin, least_conn, random, source_hash, first)`}},
		{"prefix", listenerWith("    deny: [10.0.0.0/8, 300.1.1.1/8, 10.0.0.1/8]"), []string{
			`5:24: listeners.web.deny[1]: not a prefix: "300.1.1.1/8" (address/bits, as 10.0.0.0/8 or 2001:db8::/32)`,
			`5:37: listeners.web.deny[2]: bits set after the prefix in "10.0.0.1/8" (10.0.0.0/8)`}},
		{"keepalive in fractions", listenerWith("    keepalive: {idle: 1500ms, interval: 0, count: 128}"), []string{
			`5:23: listeners.web.keepalive.idle: not for the kernel: "1.5s" (whole seconds, 1s to 32767s, or 0 for off)`,
			`5:41: listeners.web.keepalive.interval: not for the kernel: "0s" (whole seconds, 1s to 32767s)`,
			`5:51: listeners.web.keepalive.count: out of range: "128" (1 to 127)`}},
		{"PROXY header of nobody", listenerWith("    proxy_protocol: {accept: require}"), []string{
			`5:5: listeners.web.proxy_protocol.trusted: nobody is trusted with proxy_protocol.accept "require" (prefixes; 0.0.0.0/0 and ::/0 for anyone)`}},
		{"certificate that is not there", listenerWith("    tls: {certificates: [{cert: " + pair + "}]}"), []string{
			`5:26: listeners.web.tls.certificates[0].key: no file (the name of a file)`,
			`5:33: listeners.web.tls.certificates[0].cert: cannot read "` + pair + `": no such file or directory (the name of a file)`}},
		{"empty section that turns something on", listenerWith("    tls: {}"), nil},

		{"attempts without end", groupWith("    connect: {attempts: 0, total: 0}"), []string{
			`7:25: groups.web.connect.attempts: neither attempts "0" nor total "0s" has a limit (a limit for one of them)`}},
		{"back-off that shrinks", groupWith("    connect: {backoff: {base: 2s}}"), []string{
			`7:15: groups.web.connect.backoff.max: less than base "2s": "1s" (at least that)`}},
		{"nothing to expect", groupWith("    health: {probe: send_expect, send: PING}"), []string{
			`7:5: groups.web.health.expect: missing, with probe "send_expect" (what to send, expect or run)`}},
		{"expectation of another probe", groupWith("    health: {expect: PONG}"), []string{
			`7:22: groups.web.health.expect: set, with probe "tcp" (only for probe send_expect)`}},
		{"pattern", groupWith("    health: {probe: send_expect, expect: 're:(a'}"), []string{
			`7:42: groups.web.health.expect: not a regular expression: "(a": missing closing ) (the syntax of RE2)`}},
		{"status codes", groupWith("    health: {probe: http, http: {status: '399-200', path: x}}"), []string{
			`7:42: groups.web.health.http.status: not a list of status codes: "399-200" (as 200-399 or 200,204)`,
			`7:59: groups.web.health.http.path: not a path: "x" (/path, no blanks)`}},
		{"more than all", groupWith("    health: {min_usable: 101}"), []string{
			`7:26: groups.web.health.min_usable: out of range: "101" (0 to 100)`}},
		{"two ways to discover", groupWith("    discover: {file: x, dns: {name: y, port: 1}}"), []string{
			`7:15: groups.web.discover: 2 sources of backends (one of dns, srv, file, etcd, consul, kubernetes)`,
			`7:15: groups.web.discover: not supported yet`}},

		{"admin address for everyone", strings.Replace(good, `address: ""`, `address: ":9900"`, 1), []string{
			`9:12: admin.address: others reach ":9900" (set admin.token_file, or a loopback or unix address)`}},
		{"token that is not there", strings.Replace(good, `address: ""`, "address: ':9900'\n  token_file: "+pair, 1), []string{
			`10:15: admin.token_file: cannot read "` + pair + `": no such file or directory (the name of a file)`}},
		{"admin address for the machine", strings.Replace(good, `address: ""`, `address: "localhost:9900"`, 1), nil},
		{"inherited descriptor", strings.Replace(good, "127.0.0.1:8080", "fd:web", 1), nil},
		{"reset that waits for nothing", groupWith("    pool: {reset: {send: RESET}}"), []string{
			`7:12: groups.web.pool.reset.expect: no answer to wait for (the beginning of the answer)`}},
		{"half a key pair", groupWith("    tls: {cert: " + os.DevNull + "}"), []string{
			`7:5: groups.web.tls.key: no file (the name of a file)`,
			`7:17: groups.web.tls.cert: cannot read "` + os.DevNull + `": EOF (the name of a file)`}},
		{"address with a port to dial from", groupWith("    source_address: 10.0.0.1:5"), []string{
			`7:21: groups.web.source_address: not an IP address: "10.0.0.1:5" (an address without a port)`}},
		{"route for everyone", listenerWith("    routes: [{group: web}]"), []string{
			`5:14: listeners.web.routes[0]: a route that matches everything (sni, alpn or source)`}},
		{"routes for names that are none", listenerWith("    routes: [{sni: [a.example, '*b.example'], alpn: [''], group: web}]"), []string{
			`5:32: listeners.web.routes[0].sni[1]: not a server name: "*b.example": * can only be the whole first label, as in *.example.com (a.example.com or *.example.com)`,
			`5:54: listeners.web.routes[0].alpn[0]: not a protocol: "" (1 to 255 bytes, as h2)`}},
		{"trust that is not asked for", listenerWith("    proxy_protocol: {trusted: [10.0.0.0/8]}"), []string{
			`5:31: listeners.web.proxy_protocol.trusted: set, with proxy_protocol.accept "off" (require or optional)`}},
		{"no bytes", groupWith("    health: {probe: send_expect, send: !!binary x, expect: S}"), []string{
			`7:40: groups.web.health.send: not base64: "x"`}},
		{"unknown tag", listenerWith("    backlog: !hex 10"), []string{
			`5:14: listeners.web.backlog: a tag that is not known: "!hex" (none is needed)`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("f.yaml", []byte(c.text), Options{})
			var got []string
			for _, m := range Mistakes(err) {
				got = append(got, strings.TrimPrefix(m.Error(), "f.yaml:"))
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("(-want +got)\n%s\n%s", d, c.text)
			}
		})
	}
}

// The files in testdata/mistakes are wrong in many ways; beside each is what is said of it.
func TestFilesWithManyMistakes(t *testing.T) {
	files, err := filepath.Glob("testdata/mistakes/*.*")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, file := range files {
		if strings.HasSuffix(file, ".want") {
			continue
		}
		n++
		t.Run(filepath.Base(file), func(t *testing.T) {
			_, err := Load(file, Options{})
			if err == nil {
				t.Fatal("accepted")
			}
			got := strings.ReplaceAll(err.Error()+"\n", filepath.Dir(file)+"/", "")
			if *update {
				if err := os.WriteFile(file+".want", []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file + ".want")
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("(-want +got; -update writes it)\n%s", d)
			}
		})
	}
	if n < 3 {
		t.Fatalf("%d files in testdata/mistakes", n)
	}
}

func TestStrangeFiles(t *testing.T) {
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		bomb += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	unknown := strings.Builder{}
	for i := range 20_000 {
		fmt.Fprintf(&unknown, "k%d: 1\n", i)
	}
	const accepted = "accepted"
	for _, c := range []struct{ name, text, want string }{
		{"tab", strings.Replace(good, "  web:", "\tweb:", 1), "f.yaml:2:1: syntax: "},
		{"NUL", good + "\x00", "f.yaml:10:1: syntax: "},
		{"byte order mark", "\ufeff" + good, accepted},
		{"carriage returns", strings.ReplaceAll(good, "\n", "\r\n"), accepted},
		{"Latin-1", "a: \xe9\n", "f.yaml:1:4: syntax: "},
		{"noise", "\x8f\x01\xff\xfe" + strings.Repeat("\xaa\x00%", 2000), "f.yaml:1:1: syntax: "},
		{"word", "hello", "f.yaml:1:1: syntax: a configuration is made of sections"},
		{"list", "- a\n- b\n", "f.yaml:1:1: syntax: a configuration is made of sections"},
		{"long comment", good + "# " + strings.Repeat("x", 3_000_000) + "\n", accepted},
		{"longer than allowed", good + "# " + strings.Repeat("x", MaxSize), "f.yaml: larger than"},
		{"deep lists", strings.Repeat("[", 20_000), "f.yaml:1:65: syntax: "},
		{"deep sections", strings.Repeat("{a: ", 20_000), "f.yaml:1:257: syntax: "},
		{"alias bomb", bomb, "f.yaml:1:20: syntax: more than 100000 values"},
		{"alias of itself", "a: &a [*a]\n", "f.yaml:1:4: syntax: nested too deeply"},
		{"merge of itself", "a: &a {<<: *a}\n", "f.yaml:1:4: syntax: nested too deeply"},
		{"merge of a word", "a: {<<: b}\n", "f.yaml:1:9: syntax: only sections"},
		{"two documents", good + "---\na: 1\n", "f.yaml:10:1: syntax: a second document"},
		{"key that is a list", "[a]: 1\n", "f.yaml:1:1: syntax: a key that is not plain text"},
		{"20,000 unknown keys", unknown.String(), `f.yaml:1:1: k0: unknown key "k0"`},
		{"20,000 wrong backends", "groups: {g: {backends: [" + strings.Repeat("1,", 20_000) + "]}}", "f.yaml:1:25: groups.g.backends[0]: not a backend"},
		{"a long key", strings.Repeat("k", 1<<20) + ": 1", `f.yaml:1:1: "kkk`},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			_, err := Parse("f.yaml", []byte(c.text), Options{})
			took := time.Since(start)
			said := accepted
			if err != nil {
				said = err.Error()
			}
			if !strings.HasPrefix(said, c.want) {
				t.Errorf("said %.200q, want %q…", said, c.want)
			}
			if len(said) > 200*maxMistakes {
				t.Errorf("said %d bytes", len(said))
			}
			if took > 2*time.Minute { // a second without the race detector, on a machine with nothing else to do
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestMissingFileIsAnErrorOfTheFileSystem(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.yaml"), Options{})
	if !errors.Is(err, os.ErrNotExist) || Mistakes(err) != nil {
		t.Errorf("got %v", err)
	}
}

func TestNamesKeepTheOrderOfTheFile(t *testing.T) {
	c := parse(t, "f.yaml", `
listeners: {z: {address: ":1"}, a: {address: ":2", group: z}, m: {address: ":3", group: z}}
groups: {z: {backends: ["a:1"]}}
`, Options{Environ: []string{"TPROXY_LISTENERS__B__ADDRESS=:4", "TPROXY_LISTENERS__B__GROUP=z"}})
	if d := cmp.Diff([]string{"z", "a", "m", "b"}, c.ListenerNames); d != "" {
		t.Error(d)
	}
	for n, l := range c.Listeners {
		if l.Name != n || l.Group != "z" {
			t.Errorf("listener %s has the name %q and the group %q", n, l.Name, l.Group)
		}
	}
}

func TestFormatsSayTheSame(t *testing.T) {
	asYAML := parse(t, "f.yaml", `
listeners:
  web: {address: [":8080", "[::1]:9000"], group: g, timeouts: {idle: 90s, session: 0}, half_close: false}
groups:
  g:
    backends: ["a:1", {address: "b:2", weight: 7, name: "ü"}]
    health: {probe: send_expect, send: "PING\r\n", expect: "+PONG"}
`, Options{})
	asJSON := parse(t, "f.json", `{
"listeners": {"web": {"address": [":8080", "[::1]:9000"], "group": "g", "timeouts": {"idle": "90s", "session": 0}, "half_close": false}},
"groups": {"g": {
	"backends": ["a:1", {"address": "b:2", "weight": 7, "name": "\u00fc"}],
	"health": {"probe": "send_expect", "send": "PING\r\n", "expect": "+PONG"}}}
}`, Options{})
	asTOML := parse(t, "f.toml", `
[listeners.web]
address = [":8080", "[::1]:9000"]
group = "g"
timeouts.idle = "90s"
timeouts.session = 0
half_close = false
[groups.g]
backends = ["a:1", {address = "b:2", weight = 7, name = "ü"}]
[groups.g.health]
probe = "send_expect"
send = "PING\r\n"
expect = "+PONG"
`, Options{})
	want := dump(t, asYAML)
	if d := cmp.Diff(want, dump(t, asJSON)); d != "" {
		t.Errorf("JSON (-YAML +JSON)\n%s", d)
	}
	if d := cmp.Diff(want, dump(t, asTOML)); d != "" {
		t.Errorf("TOML (-YAML +TOML)\n%s", d)
	}
}

func TestBrokenJSONAndTOMLNameTheirPlace(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"f.json", "{\n \"a\": tru }", "f.json:2:10: syntax: invalid character"},
		{"f.json", "{\"a\": 1", "f.json:1:7: syntax: unexpected end"},
		{"f.json", "{} {}", "f.json:1:4: syntax: invalid character"},
		{"f.json", "[1]", "f.json:1:1: syntax: a configuration is made of sections"},
		{"f.json", "{\"a\": \"\xe9\"}", "f.json:1:8: syntax: not UTF-8"},
		{"f.json", "{\"limits\": {}, \"limits\": {}}", "f.json:1:1: listeners: no listener"},
		{"f.json", strings.Repeat("[", 20_000), "f.json:1:10001: syntax: "}, {"f.json", strings.Repeat("[", 100) + strings.Repeat("]", 100), "f.json:1:66: syntax: nested too deeply"},
		{"f.json", "", "f.json:1:1: listeners: no listener"},
		{"f.toml", "a = 1\nb = = 2", "f.toml:2:5: syntax: "},
		{"f.toml", "[log]\n[log]", "f.toml:2:"},
		{"f.toml", "a = " + strings.Repeat("[", 20_000), "f.toml:1:10005: syntax: "},
		{"f.toml", "a = " + strings.Repeat("[", 200) + strings.Repeat("]", 200), "f.toml:1:1: syntax: nested too deeply"},
		{"f.toml", strings.Repeat("a.", 2000) + "a = 1", "f.toml:1:131: syntax: nested too deeply"},
		{"f.toml", "a = 2026-01-01", "f.toml:1:1: a: unknown key"},
	} {
		_, err := Parse(c.name, []byte(c.text), Options{})
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%.40q\n got %.200v\nwant %s…", c.text, err, c.want)
		}
	}
}

func TestAliasesAndMergeKeys(t *testing.T) {
	c := parse(t, "f.yaml", `
listeners:
  a: {address: ":1", group: a, timeouts: &t {idle: 7s, preface: 1s}}
  b: {address: ":2", group: a, timeouts: {<<: *t, preface: 2s}}
  c: {address: ":3", group: a, timeouts: *t}
  d: {address: ":4", group: a, timeouts: {<<: [*t, {session: 3s, idle: 9s}], preface: 2s}}
groups: {a: {backends: ["x:1"]}}
`, Options{})
	for name, want := range map[string]Timeouts{
		"a": {Preface: time.Second, Idle: 7 * time.Second, HalfClose: 5 * time.Minute},
		"b": {Preface: 2 * time.Second, Idle: 7 * time.Second, HalfClose: 5 * time.Minute},
		"c": {Preface: time.Second, Idle: 7 * time.Second, HalfClose: 5 * time.Minute},
		"d": {Preface: 2 * time.Second, Idle: 7 * time.Second, HalfClose: 5 * time.Minute, Session: 3 * time.Second},
	} {
		if got := c.Listeners[name].Timeouts; got != want {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
}

func TestBytesThatAreNoText(t *testing.T) {
	c := parse(t, "f.yaml", groupWith(`    health: {probe: send_expect, send: !!binary AAAACATSFi8=, expect: S}`), Options{})
	if got, want := c.Groups["web"].Health.Send, "\x00\x00\x00\x08\x04\xd2\x16\x2f"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	again := parse(t, "f.yaml", dump(t, c), Options{})
	if again.Groups["web"].Health.Send != c.Groups["web"].Health.Send {
		t.Errorf("after a dump: %q", again.Groups["web"].Health.Send)
	}
}

func BenchmarkParse(b *testing.B) {
	backends := strings.Builder{}
	for i := range 10_000 {
		fmt.Fprintf(&backends, "      - {address: '10.0.%d.%d:5432', weight: 2}\n", i/250, i%250)
	}
	for name, text := range map[string]string{
		"normal": good, "10000 backends": strings.Replace(good, `["127.0.0.1:9001"]`, "\n"+backends.String(), 1),
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := Parse("f.yaml", []byte(text), Options{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func parse(t *testing.T, name, text string, o Options) *Config {
	t.Helper()
	c, err := Parse(name, []byte(text), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return c
}

func dump(t *testing.T, c *Config) string {
	t.Helper()
	var b bytes.Buffer
	if err := Dump(&b, c); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
