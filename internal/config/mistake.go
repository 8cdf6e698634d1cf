package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/hashicorp/go-multierror"
)

// A Mistake is one thing that is wrong with a configuration.
type Mistake struct {
	Source string // the file, the environment variable, or "--set"
	Line   int    // from 1; 0 outside a file
	Column int    // from 1, in characters; 0 outside a file
	Key    string // the path of the key, as listeners.web.address; "syntax" or "file" where it is about the whole source
	Text   string // what is wrong, and what would be right

	layer layer
}

// Error is one line: FILE:LINE:COL: key.path: what is wrong with "value" (what would be right).
func (m *Mistake) Error() string {
	if m.Line == 0 {
		return m.Source + ": " + m.Key + ": " + m.Text
	}
	return fmt.Sprintf("%s:%d:%d: %s: %s", m.Source, m.Line, m.Column, m.Key, m.Text)
}

// Mistakes lists the mistakes in an error of Load or Parse, in the order of the file, then of the variables, then of the flags.
func Mistakes(err error) []*Mistake {
	var all *multierror.Error
	if !errors.As(err, &all) {
		return nil
	}
	var ms []*Mistake
	for _, e := range all.Errors {
		if m, ok := errors.AsType[*Mistake](e); ok {
			ms = append(ms, m)
		}
	}
	return ms
}

// maxMistakes bounds what is reported of a file that is not a configuration at all.
const maxMistakes = 1000

// A wrong is a mistake before its place is known.
type wrong struct{ what, right string }

func (w *wrong) Error() string {
	if w.right == "" {
		return w.what
	}
	return w.what + " (" + w.right + ")"
}

// quote makes a value safe to print and easy to find; a long one is cut.
func quote(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strconv.Quote(s)
}

// A layer is a kind of source; a later one beats an earlier one.
type layer int

const (
	fromFile layer = iota
	fromVariable
	fromFlag
)

// A position is a place in a file, from 1; zero outside files.
type position struct{ line, column int }

// An origin is where a key, or an element of a list, was set.
type origin struct {
	layer   layer
	source  string
	key     position // of the key; of the value for an element of a list
	value   position
	scalar  bool
	element bool
}

// A ledger knows where everything was set and collects what is wrong with it.
type ledger struct {
	origins  map[path]origin
	mistakes []*Mistake
	wrong    map[path]bool
	dropped  int
}

func newLedger(source string) *ledger {
	return &ledger{
		origins: map[path]origin{"": {source: source, key: position{1, 1}, value: position{1, 1}}},
		wrong:   map[path]bool{},
	}
}

// nearest finds the origin of p, or of the closest thing around it. Below a scalar there are no places: an element that
// is written in short form is where the scalar is.
func (l *ledger) nearest(p path) (path, origin) {
	for {
		if o, ok := l.origins[p]; ok {
			return p, o
		}
		p = p.parent()
	}
}

// set reports whether a source sets p itself.
func (l *ledger) set(p path) bool {
	_, ok := l.origins[p]
	return ok
}

// value records that the value at p is wrong.
func (l *ledger) value(p path, w *wrong) {
	at, o := l.nearest(p)
	if at == p || o.scalar {
		l.add(p, at, o, o.value, w)
		return
	}
	l.add(p, p, o, o.key, w)
}

// key records that the key p is wrong, or is missing in the section around it.
func (l *ledger) key(p path, w *wrong) {
	_, o := l.nearest(p)
	l.add(p, p, o, o.key, w)
}

func (l *ledger) add(p, shown path, o origin, at position, w *wrong) {
	l.wrong[p], l.wrong[shown] = true, true
	if l.full() {
		l.dropped++
		return
	}
	l.mistakes = append(l.mistakes, &Mistake{
		Source: o.source, Line: at.line, Column: at.column, Key: l.show(shown), Text: w.Error(), layer: o.layer,
	})
}

// full reports whether further mistakes are only counted.
func (l *ledger) full() bool { return len(l.mistakes) >= maxMistakes }

// take moves what another ledger knows into this one.
func (l *ledger) take(other *ledger) {
	for p, o := range other.origins {
		if p != "" {
			l.origins[p] = o
		}
	}
	maps.Copy(l.wrong, other.wrong)
	l.mistakes = append(l.mistakes, other.mistakes...)
	l.dropped += other.dropped
}

// excuse keeps quiet about what follows from a mistake that was reported elsewhere.
func (l *ledger) excuse(p path) { l.wrong[p] = true }

// failed reports whether p, or something around it, is known to be wrong, so that nothing more need be said about it.
func (l *ledger) failed(p path) bool {
	for ; p != ""; p = p.parent() {
		if l.wrong[p] {
			return true
		}
	}
	return l.wrong[""]
}

// show is p as people write it: listeners.web.routes[0].group.
func (l *ledger) show(p path) string {
	if p == "" {
		return "file"
	}
	var (
		b  strings.Builder
		at path
	)
	for key := range strings.SplitSeq(p.koanf(), delimiter) {
		at = at.to(key)
		if l.origins[at].element {
			b.WriteString("[" + key + "]")
			continue
		}
		if at != in(key) {
			b.WriteByte('.')
		}
		if key == "" || len(key) > 64 || strings.ContainsFunc(key, func(r rune) bool { return !unicode.IsGraphic(r) || strings.ContainsRune(` ":`, r) }) {
			key = quote(key)
		}
		b.WriteString(key)
	}
	return b.String()
}

// errorOrNil is every mistake as one error, a line each.
func (l *ledger) errorOrNil() error {
	slices.SortStableFunc(l.mistakes, func(a, b *Mistake) int {
		byName := 0
		if a.layer == fromVariable {
			byName = cmp.Compare(a.Source, b.Source)
		}
		return cmp.Or(cmp.Compare(a.layer, b.layer), byName, cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Key, b.Key))
	})
	all := &multierror.Error{ErrorFormat: oneLineEach}
	for _, m := range l.mistakes {
		all = multierror.Append(all, m)
	}
	if l.dropped > 0 {
		all = multierror.Append(all, fmt.Errorf("%s: %d more mistakes", l.origins[""].source, l.dropped))
	}
	return all.ErrorOrNil()
}

func oneLineEach(errs []error) string {
	lines := make([]string, len(errs))
	for i, e := range errs {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// A path leads to a value: keys, and the numbers of elements of lists, each after a NUL. The empty path is the whole.
type path string

// in makes a path of keys.
func in(keys ...string) path {
	var p path
	for _, k := range keys {
		p = p.to(k)
	}
	return p
}

func (p path) to(key string) path { return p + "\x00" + path(key) }

func (p path) at(i int) path { return p.to(strconv.Itoa(i)) }

func (p path) parent() path { return p[:max(0, strings.LastIndexByte(string(p), 0))] }

// last is the last key.
func (p path) last() string { return string(p[strings.LastIndexByte(string(p), 0)+1:]) }

// koanf is p with the delimiter as koanf wants it.
func (p path) koanf() string { return strings.TrimPrefix(string(p), delimiter) }
