package config

import (
	"reflect"
	"slices"
	"strings"
)

// notYet lists the keys of the contract that no code serves yet. Setting one to anything but its default is a mistake,
// so that nothing is accepted and ignored. A key stands for everything below it. Whoever builds a key removes its line.
var notYet = []string{
	"groups.*.discover",
}

// refuse reports what is set and not served yet, besides whatever else is wrong with it.
func (l *ledger) refuse(c *Config) {
	refused := map[path]bool{}
	visit(reflect.ValueOf(*c), "", "", func(p path, schema string, _ key, v, byDefault reflect.Value) {
		for above := p; above != ""; above = above.parent() {
			if refused[above] {
				return
			}
		}
		unserved := slices.ContainsFunc(notYet, func(key string) bool { return schema == key || strings.HasPrefix(schema, key+".") })
		if unserved && given(v, byDefault) {
			refused[p] = true
			l.value(p, &wrong{what: "not supported yet"})
		}
	})
}

// given reports whether v is anything but the default.
func given(v, byDefault reflect.Value) bool {
	if v.Kind() == reflect.Slice {
		return v.Len() > 0
	}
	return !reflect.DeepEqual(v.Interface(), byDefault.Interface())
}
