package config

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func FuzzParseYAML(f *testing.F) {
	fuzz(f, "f.yaml")
}

func FuzzParseJSON(f *testing.F) {
	f.Add([]byte(`{"listeners": {"web": {"address": ":1", "group": "g"}}, "groups": {"g": {"backends": ["a:1", {"address": "b:1"}]}}}`))
	fuzz(f, "f.json")
}

func FuzzParseTOML(f *testing.F) {
	f.Add([]byte("[listeners.web]\naddress = ':1'\n[groups.web]\n[[groups.web.backends]]\naddress = 'a:1'\n[[groups.web.backends]]\naddress='b:1'\n"))
	fuzz(f, "f.toml")
}

// Whatever is read: no panic, mistakes are inside the file, and what is accepted can be dumped and read again.
func fuzz(f *testing.F, name string) {
	files, _ := filepath.Glob("testdata/mistakes/*" + filepath.Ext(name))
	more, _ := filepath.Glob("../../configs/*" + filepath.Ext(name))
	for _, file := range append(files, more...) {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(name, data, Options{})
		if err == nil {
			first := dump(t, c)
			if again := dump(t, parse(t, "dump.yaml", first, Options{})); again != first {
				t.Errorf("dumped\n%s\nand again\n%s", first, again)
			}
			return
		}
		lines := 1 + bytes.Count(data, []byte{'\n'}) + bytes.Count(data, []byte{'\r'}) + bytes.Count(data, []byte("\u2028")) +
			bytes.Count(data, []byte("\u2029")) + bytes.Count(data, []byte("\u0085"))
		if bytes.HasPrefix(data, []byte{0xff, 0xfe}) || bytes.HasPrefix(data, []byte{0xfe, 0xff}) {
			lines = len(data) + 1 // UTF-16 breaks its lines elsewhere
		}
		for _, m := range Mistakes(err) {
			if m.Line < 1 || m.Column < 1 || m.Line > lines+1 || m.Column > len(data)+1 {
				t.Errorf("outside the file of %d lines: %v", lines, m)
			}
		}
	})
}
