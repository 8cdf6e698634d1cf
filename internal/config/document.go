package config

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// maxValues bounds what a text may stand for: with aliases a few lines can stand for billions of values. Ten thousand
// backends with all their keys are 60,000.
const maxValues = 100_000

// maxDepth is far more than the schema needs, and little enough for everything that recurses.
const maxDepth = 64

// A number is a number as it was written. What it means depends on the key: 1.5 is no count, 10 is no duration.
type number string

// A document is one text of a source, and notes in the ledger where everything in it is. It is a koanf.Parser.
// Trees are made of map[string]any, []any, string, number, bool and nil.
type document struct {
	*ledger
	name   string
	layer  layer
	values int // so far
}

// Unmarshal parses the text in the format that the name's extension says.
func (d *document) Unmarshal(data []byte) (map[string]any, error) {
	var (
		tree any
		err  error
	)
	switch strings.ToLower(filepath.Ext(d.name)) {
	case ".toml":
		tree, err = d.toml(data)
	case ".json":
		tree, err = d.json(data)
	default:
		tree, err = d.yaml(data, "")
	}
	if err != nil {
		return nil, err
	}
	switch tree := tree.(type) {
	case nil:
		return map[string]any{}, nil
	case map[string]any:
		return tree, nil
	}
	return nil, &syntax{position{1, 1}, "a configuration is made of sections, not of " + describe(tree) + " (listeners: and groups:)"}
}

// Marshal is not supported.
func (d *document) Marshal(map[string]any) ([]byte, error) { return nil, errors.ErrUnsupported }

// note records where p is. Outside files there are no positions.
func (d *document) note(p path, key, value position, scalar, element bool) {
	if d.layer != fromFile {
		key, value = position{}, position{}
	}
	d.origins[p] = origin{layer: d.layer, source: d.name, key: key, value: value, scalar: scalar, element: element}
}

// bounded counts one more value, and says when there are too many, or too many around this one.
func (d *document) bounded(at position, depth int) *syntax {
	d.values++
	switch {
	case depth > maxDepth:
		return &syntax{at, fmt.Sprintf("nested too deeply (at most %d levels)", maxDepth)}
	case d.values > maxValues:
		return &syntax{at, fmt.Sprintf("more than %d values", maxValues)}
	}
	return nil
}

// A syntax is an error after which there is nothing to read.
type syntax struct {
	at   position
	text string
}

func (s *syntax) Error() string { return s.text }

// describe names a value of a tree in messages.
func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "nothing"
	case string:
		return quote(v)
	case number:
		return quote(string(v))
	case bool:
		if v {
			return `"true"`
		}
		return `"false"`
	case []any:
		return "a list"
	}
	return "a section"
}

// A cursor turns offsets into positions. Offsets that grow are cheap.
type cursor struct {
	data   []byte
	offset int
	position
}

func newCursor(data []byte) *cursor { return &cursor{data: data, position: position{1, 1}} }

func (c *cursor) at(offset int) position {
	offset = min(max(offset, 0), len(c.data))
	if offset < c.offset {
		c.offset, c.position = 0, position{1, 1}
	}
	passed := c.data[c.offset:offset]
	if n := bytes.Count(passed, []byte{'\n'}); n > 0 {
		c.line += n
		c.column = 1
		passed = passed[bytes.LastIndexByte(passed, '\n')+1:]
	}
	c.column += utf8.RuneCount(passed)
	c.offset = offset
	return c.position
}

// duplicate records that the key p is set a second time.
func (d *document) duplicate(p path, at, first position) {
	d.add(p, p, d.origins[p], at, &wrong{"set twice: " + quote(p.last()), fmt.Sprintf("first in line %d", first.line)})
}
