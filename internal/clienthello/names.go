package clienthello

import (
	"errors"
	"slices"
	"strings"
)

// CheckPattern says what is wrong with a pattern of server names. A pattern is a host name, or *. and a host name, which stands
// for every name below it by one label or more: *.example.com is a.example.com and a.b.example.com, and not example.com. Case and
// a dot at the end do not matter.
func CheckPattern(pattern string) error {
	name, _ := strings.CutPrefix(fold(pattern), "*.")
	switch {
	case name == "" || name == "*":
		return errors.New("no name (for every client leave the names out)")
	case strings.Contains(name, "*"):
		return errors.New("* can only be the whole first label, as in *.example.com")
	case name[0] == '.' || strings.HasSuffix(name, ".") || strings.Contains(name, ".."):
		return errors.New("an empty label")
	case strings.IndexFunc(name, func(r rune) bool { return r > '~' }) >= 0:
		return errors.New("not ASCII (write it in its xn-- form)")
	case strings.IndexFunc(name, func(r rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-_.", r) }) >= 0:
		return errors.New("a character that no host name has")
	case len(name) > 253:
		return errors.New("longer than 253 characters")
	}
	return nil
}

// Match reports whether one of the patterns, as of [CheckPattern], stands for name. The name "" matches none.
// For more than a few patterns there is [Table].
func Match(patterns []string, name string) bool {
	name = fold(name)
	return slices.ContainsFunc(patterns, func(p string) bool {
		p = fold(p)
		if suffix, ok := strings.CutPrefix(p, "*"); ok {
			return len(name) > len(suffix) && strings.HasSuffix(name, suffix)
		}
		return name != "" && name == p
	})
}

// A Table finds the first of many routes by server name, in a time that grows with the labels of the name and not with the
// number of patterns. It is immutable: any number of goroutines may use it at once.
type Table struct {
	exact map[string][]int // names, and the routes that list them, ascending
	below map[string][]int // ".example.com" for *.example.com
	any   []int
}

// NewTable makes the Table of routes of which the i-th is for the names that patterns[i] match, or for every client, named or
// not, if there are none. The patterns must be as [CheckPattern] wants them.
func NewTable(patterns [][]string) *Table {
	t := &Table{exact: map[string][]int{}, below: map[string][]int{}}
	for i, names := range patterns {
		if len(names) == 0 {
			t.any = append(t.any, i)
		}
		for _, p := range names {
			p = fold(p)
			if suffix, ok := strings.CutPrefix(p, "*"); ok {
				t.below[suffix] = append(t.below[suffix], i)
			} else {
				t.exact[p] = append(t.exact[p], i)
			}
		}
	}
	return t
}

// First returns the first route that is for name, "" for a client without one, and that accept takes; -1 if there is none. Accept looks at
// what else a route asks for; it may be called for a route that is not the first, and more than once.
func (t *Table) First(name string, accept func(route int) bool) int {
	first := -1
	consider := func(routes []int) {
		for _, i := range routes {
			if first >= 0 && i >= first {
				return
			}
			if accept(i) {
				first = i
				return
			}
		}
	}
	consider(t.any)
	if name = fold(name); name == "" {
		return first
	}
	consider(t.exact[name])
	for i := 1; i < len(name); i++ {
		if name[i] == '.' {
			consider(t.below[name[i:]])
		}
	}
	return first
}
