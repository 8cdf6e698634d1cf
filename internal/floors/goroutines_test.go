package floors

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// row is a line of the table of goroutines in ARCHITECTURE.md: | `file` | `function` | owner |
var row = regexp.MustCompile("^\\| `([^`]+\\.go)` \\| `([^`]+)` \\| (.*\\S) \\|$")

// TestEveryGoroutineIsListedWithItsOwner compares what starts goroutines outside of tests, go statements and calls of a method Go (sync.WaitGroup, errgroup.Group),
// with the table in ARCHITECTURE.md: one row for each.
func TestEveryGoroutineIsListedWithItsOwner(t *testing.T) {
	var found []string
	sources(t, func(name string) {
		if strings.HasSuffix(name, "_test.go") {
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Error(err)
			return
		}
		for _, decl := range file.Decls {
			for range starts(decl) {
				found = append(found, fmt.Sprintf("| `%s` | `%s` |", name, nameOf(decl)))
			}
		}
	})
	var listed []string
	f, err := os.Open(filepath.Join(root, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if m := row.FindStringSubmatch(lines.Text()); m != nil {
			listed = append(listed, fmt.Sprintf("| `%s` | `%s` |", m[1], m[2]))
		}
	}
	for _, r := range found {
		i := slices.Index(listed, r)
		if i < 0 {
			t.Errorf("ARCHITECTURE.md does not list this goroutine: %s owner |", r)
			continue
		}
		listed = slices.Delete(listed, i, i+1)
	}
	for _, r := range listed {
		t.Errorf("ARCHITECTURE.md lists a goroutine that nothing starts: %s", r)
	}
}

// starts returns the nodes under n that start a goroutine.
func starts(n ast.Node) (found []ast.Node) {
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			found = append(found, n)
		case *ast.CallExpr:
			if s, ok := n.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Go" {
				found = append(found, n)
			}
		}
		return true
	})
	return found
}

// nameOf is Type.Method, function, or "var" for anything else.
func nameOf(d ast.Decl) string {
	f, ok := d.(*ast.FuncDecl)
	if !ok {
		return "var"
	}
	if f.Recv == nil {
		return f.Name.Name
	}
	t := f.Recv.List[0].Type
	if p, ok := t.(*ast.StarExpr); ok {
		t = p.X
	}
	if g, ok := t.(*ast.IndexExpr); ok {
		t = g.X
	}
	if id, ok := t.(*ast.Ident); ok {
		return id.Name + "." + f.Name.Name
	}
	return f.Name.Name
}

func TestGoroutinesAreFound(t *testing.T) {
	const src = `package p
func f() { go g(); var wg sync.WaitGroup; wg.Go(func() { go g() }) }
func (s *S[T]) m() { defer func() { go g() }() }
func none() { g() }
var v = func() { go g() }`
	file, err := parser.ParseFile(token.NewFileSet(), "p.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range file.Decls {
		got = append(got, fmt.Sprintf("%s %d", nameOf(d), len(starts(d))))
	}
	if want := []string{"f 3", "S.m 1", "none 0", "var 1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
