package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"strconv"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// toml parses a TOML document: the library's parser says where everything is, its decoder what it means.
func (d *document) toml(data []byte) (any, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	places := tomlPlaces{document: d, cursor: newCursor(data), last: map[path]int{}}
	if err := places.read(data); err != nil {
		return nil, err
	}
	var tree map[string]any
	if err := toml.Unmarshal(data, &tree); err != nil {
		if e, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, column := e.Position()
			return nil, &syntax{position{line, column}, e.Error()}
		}
		return nil, &syntax{position{1, 1}, err.Error()}
	}
	return fromTOML(tree), nil
}

// fromTOML turns what the decoder made into a tree.
func fromTOML(v any) any {
	switch v := v.(type) {
	case map[string]any:
		m := maps.Clone(v)
		for k := range m {
			m[k] = fromTOML(m[k])
		}
		return m
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = fromTOML(v[i])
		}
		return list
	case int64:
		return number(strconv.FormatInt(v, 10))
	case float64:
		return number(strconv.FormatFloat(v, 'g', -1, 64))
	case string, bool:
		return v
	}
	return fmt.Sprint(v) // dates and times: no key takes one
}

// tomlPlaces notes where keys and values are. It does not judge: the decoder does.
type tomlPlaces struct {
	*document
	parser unstable.Parser
	cursor *cursor
	table  path
	last   map[path]int // the last element of each array of tables
}

func (t *tomlPlaces) read(data []byte) error {
	t.parser.Reset(data)
	for t.parser.NextExpression() {
		e := t.parser.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			p, at, err := t.key(e, "")
			if err != nil {
				return err
			}
			if e.Kind == unstable.ArrayTable {
				n, more := t.last[p]
				if more {
					n++
				}
				t.last[p] = n
				p = p.at(n)
				t.note(p, at, at, false, true)
			}
			t.table = p
		case unstable.KeyValue:
			if err := t.pair(e, t.table, 0); err != nil {
				return err
			}
		}
	}
	return nil // an error is the decoder's to report
}

// key notes the parts of a key below p and returns what it names, and where its last part is.
func (t *tomlPlaces) key(n *unstable.Node, p path) (path, position, error) {
	var at position
	it := n.Key()
	for depth := 0; it.Next(); depth++ {
		k := it.Node()
		at = t.cursor.at(int(k.Raw.Offset))
		if s := t.bounded(at, depth); s != nil {
			return p, at, s
		}
		p = t.element(p).to(string(k.Data))
		if !t.set(p) {
			t.note(p, at, at, false, false)
		}
	}
	return p, at, nil
}

// element is the last element of p if that is an array of tables, else p.
func (t *tomlPlaces) element(p path) path {
	if n, ok := t.last[p]; ok {
		return p.at(n)
	}
	return p
}

func (t *tomlPlaces) pair(n *unstable.Node, p path, depth int) error {
	p, at, err := t.key(n, p)
	if err != nil {
		return err
	}
	return t.value(n.Value(), p, at, false, depth)
}

func (t *tomlPlaces) value(n *unstable.Node, p path, key position, element bool, depth int) error {
	at := key
	if n.Raw.Length > 0 {
		at = t.cursor.at(int(n.Raw.Offset))
	}
	if s := t.bounded(at, depth); s != nil {
		return s
	}
	if element {
		key = at
	}
	t.note(p, key, at, n.Kind != unstable.Array && n.Kind != unstable.InlineTable, element)
	switch it := n.Children(); n.Kind {
	case unstable.InlineTable:
		for it.Next() {
			if err := t.pair(it.Node(), p, depth+1); err != nil {
				return err
			}
		}
	case unstable.Array:
		for i := 0; it.Next(); i++ {
			if err := t.value(it.Node(), p.at(i), at, true, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}
