package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"

	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/rawbytes"
	"github.com/knadh/koanf/v2"
)

// MaxSize is the largest file that is read, in bytes.
const MaxSize = 3 << 20

// delimiter separates keys in koanf: host names hold dots.
const delimiter = "\x00"

// Options are the sources besides the file. A later one beats an earlier one: defaults, file, environment, flags.
type Options struct {
	// Environ is the environment, as os.Environ gives it; only TPROXY_… is looked at. nil: none.
	Environ []string
	// Set are flags, key=value, as listeners.web.max_connections=100; the last of two with the same key counts.
	Set []string
}

// Load reads the configuration in the file. Its error is that of the file system, or every mistake there is: see [Mistakes].
func Load(name string, o Options) (*Config, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, err
	}
	return Parse(name, data, o)
}

// Parse reads a configuration from data; the extension of name says whether it is TOML, JSON or (else) YAML.
func Parse(name string, data []byte, o Options) (*Config, error) {
	l := newLedger(name)
	tree, err := l.merge(name, data, o)
	if err != nil {
		return nil, err
	}
	var c Config
	l.known(tree, reflect.TypeFor[Config](), "")
	l.decode(tree, &c)
	l.name(&c)
	l.check(&c)
	l.refuse(&c)
	if err := l.errorOrNil(); err != nil {
		return nil, err
	}
	return &c, nil
}

// merge lays the sources over each other. Defaults are not among them: how many sections there are to complete is known
// only afterwards.
func (l *ledger) merge(name string, data []byte, o Options) (map[string]any, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, MaxSize)
	}
	k := koanf.New(delimiter)
	if err := k.Load(rawbytes.Provider(data), &document{ledger: l, name: name}); err != nil {
		s, ok := errors.AsType[*syntax](err)
		if !ok {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		l.mistakes = append(l.mistakes, &Mistake{Source: name, Line: s.at.line, Column: s.at.column, Key: "syntax", Text: s.text})
		return nil, l.errorOrNil()
	}
	variables := variables{ledger: l, tree: k.Raw(), set: map[path]string{}}
	if err := k.Load(env.Provider(delimiter, env.Opt{
		Prefix:        variablePrefix,
		EnvironFunc:   func() []string { return o.Environ },
		TransformFunc: variables.setting,
	}), nil); err != nil {
		return nil, fmt.Errorf("environment: %w", err)
	}
	variables.contradictions()
	for _, s := range o.Set {
		if err := k.Load(confmap.Provider(l.flag(s, k.Raw()), delimiter), nil); err != nil {
			return nil, fmt.Errorf("--set %s: %w", s, err)
		}
	}
	return k.Raw(), nil
}

// name gives the named ones their names, in order, and whatever else is named after something.
func (l *ledger) name(c *Config) {
	c.ListenerNames = order(l, "listeners", c.Listeners)
	c.GroupNames = order(l, "groups", c.Groups)
	for _, n := range c.GroupNames {
		g := c.Groups[n]
		g.Name = n
		for i := range g.Backends {
			if b := &g.Backends[i]; b.Name == "" {
				b.Name = b.Address.String()
			}
		}
	}
	for _, n := range c.ListenerNames {
		ln := c.Listeners[n]
		ln.Name = n
		if _, ok := c.Groups[n]; ok && ln.Group == "" && len(ln.Routes) == 0 {
			ln.Group = n
		}
	}
}

// order is the names in m as they were written: those of the file first.
func order[T any](l *ledger, section string, m map[string]*T) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b string) int {
		x, y := l.origins[in(section, a)], l.origins[in(section, b)]
		return cmp.Or(cmp.Compare(x.layer, y.layer), cmp.Compare(x.key.line, y.key.line),
			cmp.Compare(x.key.column, y.key.column), cmp.Compare(a, b))
	})
	return names
}
