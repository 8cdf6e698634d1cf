package clienthello

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		pattern, name string
		want          bool
	}{
		{"foo.example", "foo.example", true},
		{"foo.example", "FOO.Example", true},
		{"FOO.example", "foo.example", true},
		{"foo.example.", "foo.example", true},
		{"foo.example", "foo.example.", true},
		{"foo.example", "bar.example", false},
		{"foo.example", "a.foo.example", false},
		{"foo.example", "xfoo.example", false},
		{"foo.example", "", false},

		{"*.example.com", "www.example.com", true},
		{"*.example.com", "a.b.c.example.com", true},
		{"*.EXAMPLE.com.", "A.example.COM.", true},
		{"*.example.com", "example.com", false},
		{"*.example.com", ".example.com", false},
		{"*.example.com", "wwwxexample.com", false},
		{"*.example.com", "www.example.com.evil.example", false},
		{"*.example.com", "", false},
		{"*.example.com", "*.example.com", true},
		{"*.com", "a.com", true},
	} {
		if err := CheckPattern(tt.pattern); err != nil {
			t.Errorf("%s: %v", tt.pattern, err)
		}
		if got := Match([]string{"no.example", tt.pattern}, tt.name); got != tt.want {
			t.Errorf("%s against %q: %v", tt.pattern, tt.name, got)
		}
		table := NewTable([][]string{{"no.example"}, {tt.pattern}})
		if got := table.First(tt.name, func(int) bool { return true }); (got == 1) != tt.want {
			t.Errorf("table of %s against %q: route %d", tt.pattern, tt.name, got)
		}
	}
}

func TestBadPatterns(t *testing.T) {
	for _, p := range []string{"", ".", "*", "*.", "*.*", "a.*", "*a.example", "a*.example", "w*.example.com", "*.*.example", ".example.com", "a..example", "*..example",
		"a.example..", "a b", "a/b", "a:443", "[::1]", "~^.*$", "münchen.example", "a\x00", strings.Repeat("a.", 127) + "b"} {
		if err := CheckPattern(p); err == nil {
			t.Errorf("%q is taken", p)
		}
	}
}

func TestFirstRouteWins(t *testing.T) {
	routes := [][]string{
		{"www.example.com"},
		{"*.example.com", "example.com"},
		{"*.com", "www.example.com"},
		nil,
		{"other.example"},
	}
	table := NewTable(routes)
	for _, tt := range []struct {
		name   string
		refuse []int
		want   int
	}{
		{"www.example.com", nil, 0},
		{"WWW.example.com.", nil, 0},
		{"www.example.com", []int{0}, 1},
		{"www.example.com", []int{0, 1}, 2},
		{"www.example.com", []int{0, 1, 2}, 3},
		{"www.example.com", []int{0, 1, 2, 3}, -1},
		{"a.example.com", nil, 1},
		{"example.com", nil, 1},
		{"a.com", nil, 2},
		{"com", nil, 3},
		{"other.example", nil, 3},
		{"other.example", []int{3}, 4},
		{"", nil, 3},
		{"", []int{3}, -1},
	} {
		got := table.First(tt.name, func(route int) bool { return !slices.Contains(tt.refuse, route) })
		if got != tt.want {
			t.Errorf("%q without %v: route %d, want %d", tt.name, tt.refuse, got, tt.want)
		}
	}
	if got := NewTable(nil).First("a", func(int) bool { return true }); got != -1 {
		t.Errorf("no routes: route %d", got)
	}
}

// A table finds what looking at the routes one by one finds.
func TestTableIsFirstMatch(t *testing.T) {
	name := rapid.StringMatching(`[abA]([.][abA]){0,3}[.]?`)
	pattern := rapid.StringMatching(`([*][.])?[abA]([.][abA]){0,3}[.]?`)
	rapid.Check(t, func(t *rapid.T) {
		routes := rapid.SliceOf(rapid.SliceOfN(pattern, 0, 3)).Draw(t, "routes")
		n := rapid.OneOf(name, rapid.Just("")).Draw(t, "name")
		refused := rapid.SliceOf(rapid.IntRange(0, 5)).Draw(t, "refused")
		accept := func(i int) bool { return !slices.Contains(refused, i) }
		want := slices.IndexFunc(routes, func(p []string) bool { return len(p) == 0 || Match(p, n) })
		for want >= 0 && !accept(want) {
			next := slices.IndexFunc(routes[want+1:], func(p []string) bool { return len(p) == 0 || Match(p, n) })
			if next < 0 {
				want = -1
				break
			}
			want += 1 + next
		}
		if got := NewTable(routes).First(n, accept); got != want {
			t.Fatalf("route %d, want %d", got, want)
		}
	})
}

func BenchmarkTable(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		var routes [][]string
		for i := range n {
			routes = append(routes, []string{fmt.Sprintf("host%d.example.com", i), fmt.Sprintf("*.zone%d.example.com", i)})
		}
		table := NewTable(routes)
		for _, name := range []string{"host9.example.com", "a.b.zone9.example.com", "none.example.org"} {
			b.Run(fmt.Sprintf("%d/%s", n, name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					table.First(name, func(int) bool { return true })
				}
			})
		}
	}
}
