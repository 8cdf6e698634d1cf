package config

import (
	"reflect"
	"regexp"
	"strings"
)

const variablePrefix = "TPROXY_"

// serviceLink matches what Kubernetes puts into the environment of every pod for services that are called tproxy, or
// tproxy-something: nobody meant those for us.
var serviceLink = regexp.MustCompile(`^TPROXY_([A-Z0-9_]*_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// variables are the settings in the environment: TPROXY_, then the key in any case with __ between levels. A name that
// is in the file is meant by its letters in any case; another one is new, in lower case.
type variables struct {
	*ledger
	tree map[string]any // of the file
	set  map[path]string
}

// setting turns a variable into a key of koanf and a value; the key is empty where there is none.
func (v *variables) setting(name, text string) (string, any) {
	if !strings.Contains(name, "__") && serviceLink.MatchString(name) {
		return "", nil
	}
	words := strings.Split(strings.TrimPrefix(name, variablePrefix), "__")
	p, w := settle(words, v.tree, true)
	d := &document{ledger: v.ledger, name: name, layer: fromVariable}
	value := d.override(p, text)
	if w == nil {
		if other, ok := v.set[p]; ok {
			w = &wrong{"the same key as " + other, "one variable a key"}
		}
	}
	v.set[p] = name
	if w != nil {
		v.key(p, w)
		return "", nil
	}
	return p.koanf(), value
}

// contradictions reports variables for a section and for a key in it: which of them is to win would be chance.
func (v *variables) contradictions() {
	for p, name := range v.set {
		for above := p.parent(); above != ""; above = above.parent() {
			if whole, ok := v.set[above]; ok {
				d := &document{ledger: v.ledger, name: name, layer: fromVariable}
				d.note(p, position{}, position{}, true, false)
				v.key(p, &wrong{"also set as a part of " + whole, "one of the two"})
			}
		}
	}
}

// flag turns key=value into a map for koanf. tree is what was said before it.
func (l *ledger) flag(setting string, tree map[string]any) map[string]any {
	key, text, ok := strings.Cut(setting, "=")
	p, _ := settle(strings.Split(key, "."), tree, false)
	d := &document{ledger: l, name: "--set", layer: fromFlag}
	value := d.override(p, text)
	if !ok || key == "" {
		l.key(p, &wrong{"not a setting: " + quote(setting), "key=value"})
		return nil
	}
	return map[string]any{p.koanf(): value}
}

// override is the value that a variable or a flag gives to p.
func (d *document) override(p path, text string) any {
	for above := p.parent(); above != ""; above = above.parent() {
		if !d.ledger.set(above) {
			d.note(above, position{}, position{}, false, false)
		}
	}
	return d.parseValue(text, p)
}

// settle finds the key that words mean, by the schema and the names in the tree. fold: letters of any case are the same.
// Without it a name may hold dots, and be several words.
func settle(words []string, tree any, fold bool) (path, *wrong) {
	var (
		p path
		t = reflect.TypeFor[Config]()
	)
	for len(words) > 0 {
		word, used := words[0], 1
		if fold {
			word = strings.ToLower(word)
		}
		below, _ := tree.(map[string]any)
		var next reflect.Type
		switch {
		case t != nil && named(t) != nil:
			next = named(t)
			same := sameNames(words, below, fold)
			if len(same) > 1 {
				return p.to(word), &wrong{"two names differ only in their case: " + quote(same[0]) + " and " + quote(same[1]), "use --set"}
			}
			if len(same) == 1 {
				word = same[0]
				if !fold {
					used = strings.Count(word, ".") + 1
				}
			}
		case t != nil && section(t) != nil:
			for _, k := range keys(section(t)) {
				if k.name == word {
					next = k.field.Type
				}
			}
		}
		p, t, tree, words = p.to(word), next, below[word], words[used:]
	}
	return p, nil
}

// sameNames lists the names in the tree that the words can begin with; of several that hold dots, the longest.
func sameNames(words []string, tree map[string]any, fold bool) []string {
	var same []string
	for n := range tree {
		if fold && strings.EqualFold(n, words[0]) {
			same = append(same, n)
		}
	}
	for n := len(words); !fold && n > 0; n-- {
		name := strings.Join(words[:n], ".")
		if _, ok := tree[name]; ok {
			return []string{name}
		}
	}
	return same
}
