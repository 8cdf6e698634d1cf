package config

import (
	"encoding/base64"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// Dump writes the configuration, defaults and all, as YAML that reads as the same configuration.
func Dump(w io.Writer, c *Config) error {
	root, err := node(reflect.ValueOf(*c), map[reflect.Type][]string{
		reflect.TypeOf(c.Listeners): c.ListenerNames,
		reflect.TypeOf(c.Groups):    c.GroupNames,
	})
	if err != nil {
		return err
	}
	out, err := yaml.NewDumper(w, yaml.WithIndent(2), yaml.WithLineWidth(-1), yaml.WithQuotePreference(yaml.QuoteDouble))
	if err != nil {
		return err
	}
	if err := out.Dump(root); err != nil {
		return err
	}
	return out.Close()
}

// node is v as YAML; names has the order of the named ones.
func node(v reflect.Value, names map[reflect.Type][]string) (*yaml.Node, error) {
	switch x := v.Interface().(type) {
	case time.Duration:
		return text(duration(x)), nil
	case []Address:
		if len(x) == 1 {
			return text(x[0].String()), nil
		}
	case fmt.Stringer: // addresses and prefixes; the zero ones are empty
		if v.IsZero() {
			return text(""), nil
		}
		return text(x.String()), nil
	}
	switch v.Kind() {
	case reflect.String:
		return text(v.String()), nil
	case reflect.Int:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.FormatInt(v.Int(), 10)}, nil
	case reflect.Bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(v.Bool())}, nil
	case reflect.Pointer:
		if v.IsNil() {
			return &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}, nil
		}
		return node(v.Elem(), names)
	case reflect.Slice:
		return sequence(v, names)
	case reflect.Map:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for _, name := range names[v.Type()] {
			value, err := node(v.MapIndex(reflect.ValueOf(name)), names)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, text(name), value)
		}
		return n, nil
	case reflect.Struct:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for _, k := range keys(v.Type()) {
			value, err := node(v.Field(k.index), names)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, text(k.name), value)
		}
		return n, nil
	}
	return nil, fmt.Errorf("config: no YAML for %s", v.Type())
}

// sequence has an element that is a section on a line of its own.
func sequence(v reflect.Value, names map[reflect.Type][]string) (*yaml.Node, error) {
	n := &yaml.Node{Kind: yaml.SequenceNode}
	if section(v.Type().Elem()) == nil || v.Len() == 0 {
		n.Style = yaml.FlowStyle
	}
	for i := range v.Len() {
		e, err := node(v.Index(i), names)
		if err != nil {
			return nil, err
		}
		if e.Kind == yaml.MappingNode {
			e.Style = yaml.FlowStyle
		}
		n.Content = append(n.Content, e)
	}
	return n, nil
}

func text(s string) *yaml.Node {
	if !utf8.ValidString(s) {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!binary", Value: base64.StdEncoding.EncodeToString([]byte(s)), Style: yaml.TaggedStyle}
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
}

// duration is d as people write it: 1h, not 1h0m0s.
func duration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
