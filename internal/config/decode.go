package config

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-viper/mapstructure/v2"
)

// maxDuration leaves room to add durations up and to spread them.
const maxDuration = 10 * 365 * 24 * time.Hour

var durationType = reflect.TypeFor[time.Duration]()

// decode turns a tree into what the types say, and defaults where the tree says nothing. Strict: nothing is converted
// but by convert.
func decode(tree map[string]any, into any) error {
	d, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		TagName:     "koanf",
		MatchName:   func(a, b string) bool { return a == b },
		ErrorUnused: true,
		DecodeHook:  mapstructure.DecodeHookFuncValue(convert),
		Result:      into,
	})
	if err != nil {
		return err
	}
	return d.Decode(tree)
}

// decode reports what is wrong with the values of the tree at their places. What is wrong is then taken out and the rest
// decoded again: the decoder drops a whole section for one value in it, and the rest is to be checked too.
func (l *ledger) decode(tree map[string]any, c *Config) {
	mistakes := flatten(decode(tree, c))
	for _, e := range mistakes {
		p, w := path(""), &wrong{what: e.Error()}
		if d, ok := errors.AsType[*mapstructure.DecodeError](e); ok {
			p, w = decodedPath(d.Name()), &wrong{what: d.Unwrap().Error()}
		}
		if inner, ok := errors.AsType[*wrong](e); ok {
			w = inner
		}
		l.value(p, w)
		takeOut(tree, p)
	}
	if len(mistakes) > 0 {
		*c = Config{}
		_ = decode(tree, c) // what could still be wrong is reported already
	}
}

// takeOut removes what is at p, or the scalar that was read as the section around it. Elements of lists become nil, so
// that the others keep their numbers.
func takeOut(tree any, p path) {
	first, rest, more := strings.Cut(strings.TrimPrefix(string(p), delimiter), delimiter)
	nested := func(v any) bool {
		switch v.(type) {
		case map[string]any, []any:
			return more
		}
		return false
	}
	switch v := tree.(type) {
	case map[string]any:
		if nested(v[first]) {
			takeOut(v[first], path(rest))
		} else {
			delete(v, first)
		}
	case []any:
		if i, err := strconv.Atoi(first); err != nil || i >= len(v) {
			return
		} else if nested(v[i]) {
			takeOut(v[i], path(rest))
		} else {
			v[i] = nil
		}
	}
}

// flatten lists the single errors that were joined into one, also where what joins them is wrapped.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	if _, ok := err.(*mapstructure.DecodeError); ok {
		return []error{err}
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, flatten(e)...)
		}
		return all
	}
	if inner := errors.Unwrap(err); inner != nil {
		return flatten(inner)
	}
	return []error{err}
}

// decodedPath reads the decoder's names: keys after dots, names and numbers in brackets. Names hold no brackets.
func decodedPath(name string) path {
	var p path
	for name != "" {
		var part string
		if rest, ok := strings.CutPrefix(name, "["); ok {
			part, name, _ = strings.Cut(rest, "]")
		} else {
			name = strings.TrimPrefix(name, ".")
			n := strings.IndexAny(name, ".[")
			if n < 0 {
				n = len(name)
			}
			part, name = name[:n], name[n:]
		}
		p = p.to(part)
	}
	return p
}

// convert is the decoder's hook: it makes a value of a tree fit the type of its key, or says what is wrong with it.
func convert(from, to reflect.Value) (any, error) {
	v := from.Interface()
	w := (*wrong)(nil)
	switch t := to.Type(); {
	case t == durationType:
		v, w = toDuration(v)
	case t == addressType:
		v, w = fromText(v, parseAddress, addressForms)
	case t == ipType:
		v, w = fromText(v, parseIP, "an IP address")
	case t == prefixType:
		v, w = fromText(v, parsePrefix, "an IP prefix")
	case t == reflect.TypeFor[Backend]():
		v, w = toBackend(v)
	case t == reflect.TypeFor[[]Address]():
		if _, list := v.([]any); !list {
			v = []any{v}
		}
	case t.Kind() == reflect.Slice:
		if _, ok := v.([]any); !ok {
			w = &wrong{"not a list: " + describe(v), "[…, …]"}
		}
	case t.Kind() == reflect.Bool:
		if _, ok := v.(bool); !ok {
			w = &wrong{"neither true nor false: " + describe(v), ""}
		}
	case t.Kind() == reflect.Int:
		v, w = toInt(v)
	case t.Kind() == reflect.String:
		v, w = toText(v)
	case t.Kind() == reflect.Map || section(t) != nil:
		m, ok := v.(map[string]any)
		if !ok {
			w = &wrong{"not a section: " + describe(v), "keys and values"}
		} else if t.Kind() == reflect.Struct {
			complete(m, t)
		}
	}
	if w != nil {
		return nil, w
	}
	return v, nil
}

const durationForms = "a number and a unit: 250ms, 5s, 1h"

func toDuration(v any) (any, *wrong) {
	if n, ok := v.(number); ok {
		if n == "0" {
			return time.Duration(0), nil
		}
		return nil, &wrong{"a duration without a unit: " + quote(string(n)), durationForms}
	}
	s, ok := v.(string)
	if !ok {
		return nil, &wrong{"not a duration: " + describe(v), durationForms}
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil && strings.Trim(s, "+-.0123456789") == "" && s != "":
		return nil, &wrong{"a duration without a unit: " + quote(s), durationForms}
	case err != nil && plainDuration(s) || d > maxDuration:
		return nil, &wrong{"a duration out of range: " + quote(s), "at most 87600h"}
	case err != nil:
		return nil, &wrong{"not a duration: " + quote(s), durationForms}
	case d < 0 || strings.HasPrefix(s, "-"):
		return nil, &wrong{"a negative duration: " + quote(s), "0 or more"}
	}
	return d, nil
}

// plainDuration reports digits and one unit: where ParseDuration refuses that, it is too long.
func plainDuration(s string) bool {
	unit := strings.TrimLeft(s, "0123456789")
	_, err := time.ParseDuration("1" + unit)
	return err == nil && unit != s
}

func toInt(v any) (any, *wrong) {
	n, ok := v.(number)
	if !ok {
		return nil, &wrong{"not a whole number: " + describe(v), "0 or more"}
	}
	i, err := strconv.ParseInt(string(n), 0, 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return nil, &wrong{"out of range: " + quote(string(n)), fmt.Sprintf("at most %d", math.MaxInt32)}
	case err != nil:
		return nil, &wrong{"not a whole number: " + quote(string(n)), "0 or more"}
	}
	return int(i), nil
}

func toText(v any) (any, *wrong) {
	switch v := v.(type) {
	case string:
		return v, nil
	case number:
		return nil, &wrong{"a number where text is wanted: " + quote(string(v)), "put it in quotes"}
	}
	return nil, &wrong{"not text: " + describe(v), ""}
}

func toBackend(v any) (any, *wrong) {
	switch v := v.(type) {
	case string:
		v2 := map[string]any{"address": v}
		complete(v2, reflect.TypeFor[Backend]())
		return v2, nil
	case map[string]any:
		complete(v, reflect.TypeFor[Backend]())
		return v, nil
	}
	return nil, &wrong{"not a backend: " + describe(v), "an address, or a section with one"}
}

func fromText[T any](v any, parse func(string) (T, *wrong), right string) (any, *wrong) {
	s, ok := v.(string)
	if !ok {
		return nil, &wrong{"not " + right + ": " + describe(v), ""}
	}
	if s == "" {
		var none T
		return none, nil
	}
	return parse(s)
}

func parseIP(s string) (netip.Addr, *wrong) {
	ip, err := netip.ParseAddr(s)
	if err != nil {
		return ip, &wrong{"not an IP address: " + quote(s), "an address without a port"}
	}
	return ip.Unmap(), nil
}

var defaults sync.Map // of reflect.Type to reflect.Value

// byDefault is a section in which no source sets anything.
func byDefault(section reflect.Type) reflect.Value {
	if v, ok := defaults.Load(section); ok {
		return v.(reflect.Value)
	}
	v := reflect.New(section)
	if err := decode(map[string]any{}, v.Interface()); err != nil {
		panic("config: the default tags of " + section.String() + ": " + err.Error()) // a mistake in this package
	}
	defaults.Store(section, v.Elem())
	return v.Elem()
}
