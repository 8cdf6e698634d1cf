package config

import (
	"reflect"
	"slices"
	"strings"
)

// notYet lists the keys of the contract that no code serves yet. Setting one to anything but its default is a mistake,
// so that nothing is accepted and ignored. A key stands for everything below it. Where only some values are not served,
// the function says which. Whoever builds a key removes its line.
var notYet = map[string]func(value any) bool{
	"listeners.*.address": inherited,
	"groups.*.discover":   nil,
	"admin.address":       inherited,
	"process.user":        nil,
	"process.group":       nil,
}

// inherited reports an address that names an inherited descriptor (fd:NAME).
func inherited(value any) bool {
	a, ok := value.(Address)
	return ok && a.FD != ""
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
		for key, only := range notYet {
			if (schema == key || strings.HasPrefix(schema, key+".")) && given(v, byDefault, only) {
				refused[p] = true
				l.value(p, &wrong{what: "not supported yet"})
			}
		}
	})
}

// given reports whether v is of the values that are not served: those that only selects, or all but the default.
func given(v, byDefault reflect.Value, only func(any) bool) bool {
	switch {
	case only != nil && v.Type() == reflect.TypeFor[[]Address]():
		return slices.ContainsFunc(v.Interface().([]Address), func(a Address) bool { return only(a) })
	case only != nil:
		return only(v.Interface())
	case v.Kind() == reflect.Slice:
		return v.Len() > 0
	}
	return !reflect.DeepEqual(v.Interface(), byDefault.Interface())
}
