package config

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
)

// A key is one key of a section of the schema.
type key struct {
	name  string
	index int // of the struct's field
	field reflect.StructField
}

var keysOf sync.Map // of reflect.Type to []key

// keys lists the keys of a section in their order.
func keys(section reflect.Type) []key {
	if all, ok := keysOf.Load(section); ok {
		return all.([]key)
	}
	var all []key
	for i := range section.NumField() {
		f := section.Field(i)
		if name := f.Tag.Get("koanf"); name != "" && name != "-" {
			all = append(all, key{name, i, f})
		}
	}
	keysOf.Store(section, all)
	return all
}

var (
	addressType = reflect.TypeFor[Address]()
	ipType      = reflect.TypeFor[netip.Addr]()
	prefixType  = reflect.TypeFor[netip.Prefix]()
)

// section is the struct of a section, nil if t is the type of something else. A section behind a pointer is off until
// it is given.
func section(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == addressType || t == ipType || t == prefixType {
		return nil
	}
	return t
}

// named is the section of the named ones in t (listeners, groups), nil if t is something else.
func named(t reflect.Type) reflect.Type {
	if t.Kind() != reflect.Map || t.Elem().Kind() != reflect.Pointer {
		return nil
	}
	return section(t.Elem())
}

// complete adds to a section what no source sets: defaults, empty lists, and the sections in it.
func complete(tree map[string]any, t reflect.Type) {
	for _, k := range keys(t) {
		if _, ok := tree[k.name]; ok {
			continue
		}
		if text, ok := k.field.Tag.Lookup("default"); ok {
			tree[k.name] = constant(k.field.Type, text)
		} else if k.field.Type.Kind() == reflect.Slice {
			tree[k.name] = []any{}
		} else if k.field.Type.Kind() == reflect.Struct && section(k.field.Type) != nil {
			tree[k.name] = map[string]any{}
		}
	}
}

func constant(t reflect.Type, text string) any {
	switch t.Kind() {
	case reflect.Bool:
		return text == "true"
	case reflect.Int:
		return number(text)
	}
	return text
}

// known reports what the schema does not have, and takes it out of the tree: keys, names, and keys without a value.
func (l *ledger) known(tree map[string]any, t reflect.Type, p path) {
	all := keys(t)
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		at, v := p.to(name), tree[name]
		i := slices.IndexFunc(all, func(k key) bool { return k.name == name })
		if i < 0 {
			delete(tree, name)
			l.unknown(at, all)
			continue
		}
		if v == nil && !nestable(all[i].field.Type) && !l.failed(at) {
			l.value(at, &wrong{"no value", "leave the key out for its default"})
		}
		if v == nil || offSection(v, all[i].field.Type) {
			delete(tree, name)
			continue
		}
		l.knownIn(v, all[i].field.Type, at)
	}
}

func (l *ledger) knownIn(v any, t reflect.Type, p path) {
	switch v := v.(type) {
	case map[string]any:
		if s := section(t); s != nil {
			l.known(v, s, p)
		} else if s := named(t); s != nil {
			l.knownNames(v, s, p)
		}
	case []any:
		if t.Kind() != reflect.Slice {
			return
		}
		for i, e := range v {
			if e == nil {
				l.value(p.at(i), &wrong{"no value", "an element of a list has one"})
			}
			l.knownIn(e, t.Elem(), p.at(i))
		}
	}
}

func (l *ledger) knownNames(tree map[string]any, t reflect.Type, p path) {
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		v := tree[name]
		if !validName(name) {
			delete(tree, name)
			l.key(p.to(name), &wrong{"not a name: " + quote(name), nameRule})
			continue
		}
		if v == nil { // a name with nothing below it: all defaults
			tree[name] = map[string]any{}
			continue
		}
		l.knownIn(v, t, p.to(name))
	}
}

// offSection reports an empty section of a kind that is off until something is in it.
func offSection(v any, t reflect.Type) bool {
	m, ok := v.(map[string]any)
	return ok && len(m) == 0 && t.Kind() == reflect.Pointer
}

// nestable reports whether values of t have keys, so that one without a value is only empty.
func nestable(t reflect.Type) bool { return section(t) != nil || t.Kind() == reflect.Map }

func (l *ledger) unknown(p path, all []key) {
	if l.full() { // a suggestion costs more than it is worth
		l.key(p, &wrong{})
		return
	}
	names := make([]string, len(all))
	for i, k := range all {
		names[i] = k.name
	}
	if near := nearest(p.last(), names); near != "" {
		l.excuse(p.parent().to(near))
		l.key(p, &wrong{"unknown key " + quote(p.last()), "did you mean " + near + "?"})
		return
	}
	l.key(p, &wrong{"unknown key " + quote(p.last()), "known here: " + strings.Join(names, ", ")})
}

// nearest is the name that word most likely stands for; "" if none is like it.
func nearest(word string, names []string) string {
	word = strings.ToLower(word)
	if len(word) > 64 {
		return ""
	}
	best, least := "", max(2, len(word)/2)+1
	for _, n := range names {
		d := distance(word, n)
		if len(word) > 2 && (strings.HasPrefix(n, word) || strings.HasPrefix(word, n)) {
			d = min(d, 1)
		}
		if d < least {
			best, least = n, d
		}
	}
	return best
}

// distance counts the letters to insert, delete, replace or swap with a neighbour to make b of a.
func distance(a, b string) int {
	before, row, next := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next[j] = min(row[j]+1, next[j-1]+1, row[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, row, next = row, next, before
	}
	return row[len(b)]
}

// visit calls f for every key of a section and of the sections in it, but not for sections themselves: with its path,
// its path in the schema (names and numbers as *), its value, and the value that it has by default.
func visit(v reflect.Value, p path, schema string, f func(p path, schema string, k key, v, byDefault reflect.Value)) {
	defaults := byDefault(v.Type())
	for _, k := range keys(v.Type()) {
		at, name, field := p.to(k.name), k.name, v.Field(k.index)
		if schema != "" {
			name = schema + "." + k.name
		}
		switch t := field.Type(); {
		case named(t) != nil:
			for _, n := range field.MapKeys() {
				visit(field.MapIndex(n).Elem(), at.to(n.String()), name+".*", f)
			}
		case t.Kind() == reflect.Struct && section(t) != nil:
			visit(field, at, name, f)
		default:
			f(at, name, k, field, defaults.Field(k.index))
			if t.Kind() == reflect.Pointer && !field.IsNil() {
				visit(field.Elem(), at, name, f)
			}
			if t.Kind() == reflect.Slice && section(t.Elem()) != nil {
				for i := range field.Len() {
					visit(field.Index(i), at.at(i), name+".*", f)
				}
			}
		}
	}
}
