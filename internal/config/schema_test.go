package config

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"
)

// schemaKeys lists every key of the contract, names and numbers as *.
func schemaKeys() []string {
	c := Config{
		Listeners: map[string]*Listener{"x": {}},
		Groups:    map[string]*Group{"x": {Backends: make([]Backend, 1)}},
	}
	var all []string
	visit(reflect.ValueOf(c), "", "", func(_ path, schema string, _ key, _, _ reflect.Value) { all = append(all, schema) })
	return all
}

// fileKeys lists the keys in a file that hold a value, and those that are on a line without a comment.
func fileKeys(n *yaml.Node, at string, named bool) (all, silent []string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		key := strings.TrimPrefix(at+"."+k.Value, ".")
		if named {
			key = at + ".*"
		}
		isNamed := key == "listeners" || key == "groups"
		section := v.Kind == yaml.MappingNode && len(v.Content) > 0
		if !section {
			all = append(all, key)
			if k.LineComment == "" && v.LineComment == "" && v.Kind != yaml.SequenceNode {
				silent = append(silent, key)
			}
		}
		children := []*yaml.Node{v}
		if v.Kind == yaml.SequenceNode {
			children, key = v.Content, key+".*"
		}
		for _, c := range children {
			if c.Kind == yaml.MappingNode {
				a, s := fileKeys(c, key, isNamed)
				all, silent = append(all, a...), append(silent, s...)
			}
		}
	}
	return all, silent
}

func TestFullFileHasEveryKeyWithItsDefault(t *testing.T) {
	const name = "../../configs/full.yaml"
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		t.Fatal(err)
	}
	got, silent := fileKeys(root.Content[0], "", false)
	want := schemaKeys()
	slices.Sort(want)
	slices.Sort(got)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("keys (-schema +file)\n%s", d)
	}
	if len(silent) > 0 {
		t.Errorf("keys without a comment: %v", silent)
	}
	defaults := parse(t, "f.yaml", `
listeners: {web: {address: ":8080"}}
groups: {web: {backends: ["10.0.0.1:5432"]}}
`, Options{})
	full := parse(t, name, string(data), Options{})
	if d := cmp.Diff(dump(t, defaults), dump(t, full)); d != "" {
		t.Errorf("values (-defaults +file)\n%s", d)
	}
}

func TestConfigsLoad(t *testing.T) {
	files, err := filepath.Glob("../../configs/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	pairs := t.TempDir()
	for _, name := range []string{"www", "api", "db", "tproxy", "clients-ca", "internal-ca"} {
		writePair(t, filepath.Join(pairs, name))
	}
	var names []string
	for _, f := range files {
		names = append(names, filepath.Base(f))
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(f, bytes.ReplaceAll(text, []byte("/etc/tproxy/tls"), []byte(pairs)), Options{}); err != nil {
			t.Error(err)
		}
	}
	for _, want := range []string{"minimal.yaml", "full.yaml", "tls.yaml", "databases.yaml", "dev-forward.yaml"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %s in configs", want)
		}
	}
}

func TestDumpReadsAsItself(t *testing.T) {
	for _, name := range []string{"minimal", "full", "databases", "dev-forward"} {
		c, err := Load("../../configs/"+name+".yaml", Options{})
		if err != nil {
			t.Error(err)
			continue
		}
		first := dump(t, c)
		again := parse(t, "dump.yaml", first, Options{})
		if d := cmp.Diff(first, dump(t, again)); d != "" {
			t.Errorf("%s (-first +again)\n%s", name, d)
		}
		if d := cmp.Diff(c, again, cmp.Comparer(func(a, b Address) bool { return a == b }), cmp.Exporter(func(reflect.Type) bool { return true })); d != "" {
			t.Errorf("%s: what is read differs\n%s", name, d)
		}
	}
}

func TestDumpHasTheOrderOfTheContract(t *testing.T) {
	var root yaml.Node
	if err := yaml.Unmarshal([]byte(dump(t, parse(t, "f.yaml", good, Options{}))), &root); err != nil {
		t.Fatal(err)
	}
	got, _ := fileKeys(root.Content[0], "", false)
	want := schemaKeys() // one walk is over the values, the other over the text
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestWhatIsNotServedIsRefused(t *testing.T) {
	known := schemaKeys()
	for _, key := range notYet {
		if !slices.ContainsFunc(known, func(k string) bool { return k == key || strings.HasPrefix(k, key+".") }) {
			t.Errorf("%s is in the table, but no key", key)
		}
	}
	values := map[string]string{
		"listeners.*.address": "fd:x", "listeners.*.routes": "[{sni: [a], reject: true}]", "listeners.*.source_prefix": "{ipv4: 24}",
		"listeners.*.allow": "[10.0.0.0/8]", "listeners.*.deny": "[10.0.0.0/8]", "listeners.*.proxy_protocol": "{accept: require, trusted: [::/0]}",
		"groups.*.discover": "{file: x}", "groups.*.pool": "{warm: 2}",
		"groups.*.hold": "1s", "groups.*.on_down": "cut", "groups.*.on_removed": "cut", "groups.*.slow_start": "1s", "groups.*.send_proxy": "v2",
		"groups.*.source_address": "127.0.0.2", "admin.address": "fd:x", "process.user": "nobody", "process.group": "nogroup",
	}
	for _, key := range notYet {
		value, ok := values[key]
		if !ok {
			value = "1"
		}
		o := Options{Set: []string{strings.Replace(key, "*", "web", 1) + "=" + value}}
		_, err := Parse("f.yaml", []byte(good), o)
		if err == nil || !strings.Contains(err.Error(), strings.Replace(key, "*", "web", 1)) || !strings.Contains(err.Error(), ": not supported yet") {
			t.Errorf("%s: %v", o.Set, err)
		}
	}
}

func TestDefaultsArePossible(t *testing.T) {
	for _, s := range []reflect.Type{reflect.TypeFor[Terminate](), reflect.TypeFor[Reset](), reflect.TypeFor[DNS](), reflect.TypeFor[SRV](), reflect.TypeFor[Route]()} {
		byDefault(s) // panics on a bad tag
	}
	var b bytes.Buffer
	if err := Dump(&b, parse(t, "f.yaml", good, Options{})); err != nil || !strings.Contains(b.String(), "idle: 1h\n") {
		t.Errorf("%v\n%s", err, &b)
	}
}

func TestNearest(t *testing.T) {
	var names []string
	for _, k := range keys(reflect.TypeFor[Listener]()) {
		names = append(names, k.name)
	}
	for word, want := range map[string]string{
		"adress": "address", "Address": "address", "max_conn": "max_connections", "half_clos": "half_close", "timeout": "timeouts",
		"keep_alive": "keepalive", "proxyprotocol": "proxy_protocol", "gruop": "group", "elephant": "", "": "", strings.Repeat("a", 100): "",
	} {
		if got := nearest(word, names); got != want {
			t.Errorf("%q: got %q, want %q", word, got, want)
		}
	}
}
