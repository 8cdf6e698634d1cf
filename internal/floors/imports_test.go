// Package floors holds no code: its tests keep the module's structure, as ARCHITECTURE.md describes it.
package floors

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/tproxy/tproxy"

// A unit is a directory of the module with everything under it. It may import units on lower floors.
type unit struct {
	dir   string
	floor int
}

var units = []unit{
	{"backend", 0}, {"internal/reactor", 0}, {"internal/proxyproto", 0}, {"internal/clienthello", 0}, {"internal/access", 0}, {"internal/stage", 0},
	{"pool", 1}, {"health", 1}, {"bench/scale", 1},
	{"proxy", 2},
	{"internal/config", 3}, {"internal/admin", 3}, {"internal/journal", 3}, {"internal/discovery", 3}, {"internal/handover", 3}, {"internal/filewatch", 3},
	{"cmd/tproxy", 4},
	{"internal/e2e", 4}, {"bench/fleet", 4},
}

// library is what programs outside of this module can import, and so all that examples may.
var library = []string{"backend", "health", "pool", "proxy"}

// alone are the directories that import nothing of the module and that nothing imports, without the units under them.
var alone = []string{"bench", "internal/floors"}

func standsAlone(dir string) bool {
	_, ok := unitOf(dir)
	return !ok && slices.ContainsFunc(alone, func(d string) bool { return under(d, dir) })
}

// notCode are the top-level directories without packages of this module. make builds into bin.
var notCode = []string{".ci", ".git", "bin", "configs", "docs", "tools"}

// only says which unit alone may import a path (and what lies under it).
var only = map[string]string{
	"github.com/knadh/koanf":       "internal/config",
	"github.com/prometheus":        "internal/admin",
	"github.com/lmittmann/tint":    "cmd/tproxy",
	"github.com/spf13/cobra":       "cmd/tproxy",
	"github.com/coreos/go-systemd": "cmd/tproxy",
	"github.com/fsnotify":          "internal/filewatch",
}

func under(dir, p string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

func unitOf(dir string) (unit, bool) {
	i := slices.IndexFunc(units, func(u unit) bool { return under(u.dir, dir) })
	if i < 0 {
		return unit{}, false
	}
	return units[i], true
}

// refuse says why the package in directory from must not import path, or "".
func refuse(from, path string) string {
	for p, owner := range only {
		if under(p, path) && !under(owner, from) {
			return "only " + owner + " may"
		}
	}
	to, ours := strings.CutPrefix(path, module+"/")
	if !ours {
		return ""
	}
	switch {
	case standsAlone(from) || standsAlone(to):
		return "one of the two stands alone"
	case under("examples", from):
		if under("examples", to) || slices.Contains(library, to) {
			return ""
		}
		return "an example uses the library only: " + strings.Join(library, ", ")
	case under("examples", to):
		if under("cmd/tproxy", from) {
			return ""
		}
		return "only cmd/tproxy uses examples, for the demo"
	}
	a, okA := unitOf(from)
	b, okB := unitOf(to)
	switch {
	case !okA:
		return from + " is on no floor"
	case !okB:
		return to + " is on no floor"
	case a == b || a.floor > b.floor:
		return ""
	}
	return fmt.Sprintf("floor %d does not import floor %d", a.floor, b.floor)
}

func TestRuleOfFloors(t *testing.T) {
	for _, tt := range []struct {
		from, path string
		ok         bool
	}{
		{"proxy", module + "/internal/reactor", true},
		{"proxy", module + "/pool", true},
		{"cmd/tproxy", module + "/internal/config", true},
		{"cmd/tproxy", module + "/examples/line", true},
		{"internal/reactor/sub", module + "/internal/reactor", true},
		{"examples/embed", module + "/proxy", true},
		{"examples/line/lineserver", module + "/examples/line", true},
		{"internal/config", "github.com/knadh/koanf/v2", true},
		{"bench/fleet", module + "/backend", true},
		{"proxy", "net/http", true},

		{"pool", module + "/health", false},
		{"backend", module + "/internal/reactor", false},
		{"internal/reactor", module + "/proxy", false},
		{"internal/admin", module + "/internal/config", false},
		{"internal/config", module + "/cmd/tproxy", false},
		{"proxy", module + "/examples/line", false},
		{"examples/embed", module + "/internal/reactor", false},
		{"bench", module + "/proxy", false},
		{"bench/scale", module + "/proxy", false},
		{"proxy", module + "/bench/fleet", false},
		{"internal/e2e", module + "/bench", false},
		{"proxy", module + "/internal/new", false},
		{"proxy", "github.com/prometheus/client_golang/prometheus", false},
		{"cmd/tproxy", "github.com/knadh/koanf/v2", false},
	} {
		if why := refuse(tt.from, tt.path); (why == "") != tt.ok {
			t.Errorf("%s imports %s: refused with %q", tt.from, tt.path, why)
		}
	}
}

// root is the module's directory, seen from this package's.
const root = "../.."

// sources calls f with every Go file of the module, as a slash-separated path from its root, on whatever system it builds.
func sources(t *testing.T, f func(name string)) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			_, err := os.Stat(filepath.Join(p, "go.mod"))
			if name != "." && (err == nil || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".")) {
				return fs.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(name, ".go") {
			files++
			f(filepath.ToSlash(name))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 10 {
		t.Fatalf("found %d Go files under %s: this is not the module", files, root)
	}
}

func TestImportsGoDownTheFloors(t *testing.T) {
	sources(t, func(name string) {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, name), nil, parser.ImportsOnly)
		if err != nil {
			t.Error(err)
			return
		}
		for _, imp := range file.Imports {
			p, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if why := refuse(path.Dir(name), p); why != "" {
				t.Errorf("%s imports %s: %s", name, p, why)
			}
		}
	})
}

func TestEveryPackageIsOnAFloor(t *testing.T) {
	sources(t, func(name string) {
		dir := path.Dir(name)
		_, known := unitOf(dir)
		if !known && !under("examples", dir) && !standsAlone(dir) {
			t.Errorf("%s: %s is on no floor", name, dir)
		}
	})
	top, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range top {
		isParent := func(u unit) bool { return under(e.Name(), u.dir) }
		known := e.Name() == "examples" || slices.Contains(notCode, e.Name()) || slices.Contains(alone, e.Name()) || slices.ContainsFunc(units, isParent)
		if e.IsDir() && !known {
			t.Errorf("unknown directory %s", e.Name())
		}
	}
}
