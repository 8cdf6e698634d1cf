package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLaterSourcesWin(t *testing.T) {
	text := listenerWith("    max_connections: 11")
	env := []string{"HOME=/", "TPROXY_LISTENERS__WEB__MAX_CONNECTIONS=22"}
	set := []string{"listeners.web.max_connections=32", "listeners.web.max_connections=33"}
	for _, c := range []struct {
		text string
		o    Options
		want int
	}{
		{good, Options{}, 0},
		{text, Options{}, 11},
		{text, Options{Environ: env}, 22},
		{good, Options{Environ: env}, 22},
		{text, Options{Set: set}, 33},
		{text, Options{Environ: env, Set: set}, 33},
	} {
		if got := parse(t, "f.yaml", c.text, c.o).Listeners["web"].MaxConnections; got != c.want {
			t.Errorf("%+v: got %d, want %d", c.o, got, c.want)
		}
	}
}

func TestOverridesOfEveryShape(t *testing.T) {
	text := `
listeners: {Web: {address: ":1", group: a.b}}
groups: {a.b: {backends: ["x:1"]}, a: {backends: ["y:1"]}}
`
	for _, c := range []struct {
		name string
		o    Options
		want string // in the dump
	}{
		{"name in another case", Options{Environ: []string{"TPROXY_LISTENERS__WEB__BACKLOG=7"}}, "backlog: 7"},
		{"variable in lower case", Options{Environ: []string{"TPROXY_listeners__web__backlog=7"}}, "backlog: 7"},
		{"IPv6 address", Options{Environ: []string{"TPROXY_LISTENERS__WEB__ADDRESS=[::1]:80"}}, `address: "[::1]:80"`},
		{"list", Options{Environ: []string{`TPROXY_LISTENERS__WEB__ADDRESS=[":5", ":6"]`}}, `address: [":5", ":6"]`},
		{"section", Options{Environ: []string{"TPROXY_LOG={level: debug}"}}, "level: debug"},
		{"nothing", Options{Environ: []string{"TPROXY_ADMIN__ADDRESS="}}, "address: \"\"\n  token_file"},
		{"text that looks like a comment", Options{Set: []string{"log.sessions.path=#x # y"}}, `path: "#x # y"`},
		{"text with an equals sign", Options{Set: []string{"log.sessions.path=a=b"}}, "path: a=b"},
		{"text in quotes", Options{Set: []string{`log.sessions.path="5"`}}, `path: "5"`},
		{"name with dots", Options{Set: []string{"groups.a.b.balance=random"}}, "balance: random"},
		{"name that is the beginning of another", Options{Set: []string{"groups.a.balance=random"}}, "balance: random"},
		{"zero", Options{Set: []string{"drain.timeout=0"}}, "timeout: 0s\n  spread"},
		{"backends", Options{Set: []string{"groups.a.b.backends=[z:1, {address: z:2, weight: 3}]"}}, `{address: "z:2", name: "z:2", weight: 3`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := dump(t, parse(t, "f.yaml", text, c.o)); !strings.Contains(got, c.want) {
				t.Errorf("no %q in\n%s", c.want, got)
			}
		})
	}
}

func TestMistakesOutsideTheFileNameTheirSource(t *testing.T) {
	for _, c := range []struct {
		name string
		o    Options
		want []string
	}{
		{"value", Options{Environ: []string{"TPROXY_LISTENERS__WEB__BACKLOG=many"}, Set: []string{"drain.timeout=5"}}, []string{
			`TPROXY_LISTENERS__WEB__BACKLOG: listeners.web.backlog: not a whole number: "many" (0 or more)`,
			`--set: drain.timeout: a duration without a unit: "5" (a number and a unit: 250ms, 5s, 1h)`}},
		{"unknown key", Options{Environ: []string{"TPROXY_LISTENER__WEB__BACKLOG=1"}}, []string{
			`TPROXY_LISTENER__WEB__BACKLOG: listener: unknown key "listener" (did you mean listeners?)`}},
		{"key below a value", Options{Set: []string{"log.level.x=1"}}, []string{`--set: log.level: not text: a section`}},
		{"name that is new, and not complete", Options{Environ: []string{"TPROXY_LISTENERS__WBE__BACKLOG=7"}}, []string{
			`TPROXY_LISTENERS__WBE__BACKLOG: listeners.wbe.address: no address (` + addressForms + `)`,
			`TPROXY_LISTENERS__WBE__BACKLOG: listeners.wbe.group: no group (the name of one in groups)`}},
		{"in a list", Options{Set: []string{"groups.web.backends=[a:1, {address: b, weight: -1}]"}}, []string{
			`--set: groups.web.backends[1].address: no port in "b" (host:port)`,
			`--set: groups.web.backends[1].weight: out of range: "-1" (0 to 256)`}},
		{"section and key", Options{Environ: []string{"TPROXY_LOG__LEVEL=info", "TPROXY_LOG={level: debug}"}}, []string{
			`TPROXY_LOG__LEVEL: log.level: also set as a part of TPROXY_LOG (one of the two)`}},
		{"one key in two cases", Options{Environ: []string{"TPROXY_LOG__LEVEL=info", "TPROXY_log__level=debug"}}, []string{
			`TPROXY_log__level: log.level: the same key as TPROXY_LOG__LEVEL (one variable a key)`}},
		{"not a setting", Options{Set: []string{"log.level", "=x"}}, []string{
			`--set: "": not a setting: "=x" (key=value)`, `--set: log.level: not a setting: "log.level" (key=value)`}},
		{"key without a value", Options{Set: []string{"log.level=null"}}, []string{
			`--set: log.level: no value (leave the key out for its default)`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("f.yaml", []byte(good), c.o)
			var got []string
			for _, m := range Mistakes(err) {
				got = append(got, m.Error())
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

func TestTwoNamesThatAVariableCannotTellApart(t *testing.T) {
	text := "listeners: {web: {address: ':1', group: g}, Web: {address: ':2', group: g}}\ngroups: {g: {backends: ['a:1']}}\n"
	_, err := Parse("f.yaml", []byte(text), Options{Environ: []string{"TPROXY_LISTENERS__WEB__BACKLOG=7"}})
	if err == nil || !strings.Contains(err.Error(), "two names differ only in their case") {
		t.Errorf("got %v", err)
	}
	c := parse(t, "f.yaml", text, Options{Set: []string{"listeners.Web.backlog=7"}})
	if c.Listeners["Web"].Backlog != 7 || c.Listeners["web"].Backlog != 4096 {
		t.Errorf("web %d, Web %d", c.Listeners["web"].Backlog, c.Listeners["Web"].Backlog)
	}
}

func TestServiceLinksOfKubernetesAreNotForUs(t *testing.T) {
	parse(t, "f.yaml", good, Options{Environ: []string{
		"TPROXY_SERVICE_HOST=10.0.0.1", "TPROXY_SERVICE_PORT=80", "TPROXY_SERVICE_PORT_HTTP=80", "TPROXY_PORT=tcp://10.0.0.1:80",
		"TPROXY_PORT_80_TCP=tcp://10.0.0.1:80", "TPROXY_PORT_80_TCP_PROTO=tcp", "TPROXY_DB_SERVICE_HOST=10.0.0.1", "TPROXY_DB_PORT_5432_TCP_ADDR=10.0.0.1",
	}})
	c := parse(t, "f.yaml", good, Options{Environ: []string{"TPROXY_GROUPS__WEB__HEALTH__PORT=81"}})
	if got := c.Groups["web"].Health.Port; got != 81 {
		t.Errorf("health.port is %d", got)
	}
}
