package config

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
	"go.yaml.in/yaml/v4/plugin/loaderlimits"
)

// yaml parses one YAML document below p.
func (d *document) yaml(data []byte, p path) (any, error) {
	loader, err := yaml.NewLoader(bytes.NewReader(data), yaml.WithPlugin(loaderlimits.New(loaderlimits.DepthValue(maxDepth))))
	if err != nil {
		return nil, err
	}
	var root, second yaml.Node
	if err := loader.Load(&root); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, yamlSyntax(err, data)
	}
	switch err := loader.Load(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return nil, yamlSyntax(err, data)
	default:
		return nil, &syntax{position{second.Line, second.Column}, "a second document (a configuration is one document)"}
	}
	y := yamlTree{document: d}
	tree := y.value(root.Content[0], p, position{1, 1}, false, 0)
	if y.failed != nil {
		return nil, y.failed
	}
	return tree, nil
}

func yamlSyntax(err error, data []byte) error {
	e, ok := errors.AsType[*yaml.LoadError](err)
	if !ok {
		return &syntax{position{1, 1}, err.Error()}
	}
	at := position{e.Mark.Line, e.Mark.Column}
	if at.line == 0 { // the reader knows no lines, only how far it came
		at = newCursor(data).at(e.Mark.Index)
	}
	text := e.Message
	if e.ContextMsg != "" {
		text = e.ContextMsg + ": " + text
	}
	return &syntax{position{max(1, at.line), max(1, at.column)}, text}
}

// A yamlTree turns nodes into a tree, with aliases and merge keys unfolded.
type yamlTree struct {
	*document
	failed *syntax
}

// value is the value of n, which stands at p; key is where its key is.
func (y *yamlTree) value(n *yaml.Node, p path, key position, element bool, depth int) any {
	at := position{n.Line, n.Column}
	if y.failed == nil {
		y.failed = y.bounded(at, depth)
	}
	if y.failed != nil {
		return nil
	}
	if n.Kind == yaml.AliasNode {
		return y.value(n.Alias, p, key, element, depth+1)
	}
	if element {
		key = at
	}
	y.note(p, key, at, n.Kind == yaml.ScalarNode, element)
	if tag := n.ShortTag(); !slices.Contains(knownTags, tag) {
		y.ledger.value(p, &wrong{"a tag that is not known: " + quote(tag), "none is needed"})
		return nil
	}
	switch n.Kind {
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		y.merge(m, n, p, depth)
		return m
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, c := range n.Content {
			list[i] = y.value(c, p.at(i), position{}, true, depth+1)
		}
		return list
	}
	v, w := yamlScalar(n)
	if w != nil {
		y.ledger.value(p, w)
	}
	return v
}

// merge adds the keys of a mapping that m does not have: first its own, then those of its merge keys (<<).
func (y *yamlTree) merge(m map[string]any, n *yaml.Node, p path, depth int) {
	if y.failed == nil {
		y.failed = y.bounded(position{n.Line, n.Column}, depth)
	}
	if y.failed != nil {
		return
	}
	own := map[string]position{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		at := position{k.Line, k.Column}
		if k.Kind != yaml.ScalarNode {
			y.failed = cmp.Or(y.failed, &syntax{at, "a key that is not plain text"})
			return
		}
		if k.ShortTag() == "!!merge" {
			continue
		}
		if first, ok := own[k.Value]; ok {
			y.duplicate(p.to(k.Value), at, first)
			continue
		}
		own[k.Value] = at
		if _, ok := m[k.Value]; !ok {
			m[k.Value] = y.value(v, p.to(k.Value), at, false, depth+1)
		}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].ShortTag() == "!!merge" {
			y.mergeFrom(m, n.Content[i+1], p, depth+1)
		}
	}
}

func (y *yamlTree) mergeFrom(m map[string]any, n *yaml.Node, p path, depth int) {
	at := position{n.Line, n.Column}
	switch {
	case y.failed != nil:
	case n.Kind == yaml.AliasNode:
		y.mergeFrom(m, n.Alias, p, depth+1)
	case n.Kind == yaml.MappingNode:
		y.merge(m, n, p, depth+1)
	case n.Kind == yaml.SequenceNode:
		if y.failed = y.bounded(at, depth); y.failed != nil {
			return
		}
		for _, c := range n.Content {
			y.mergeFrom(m, c, p, depth+1)
		}
	default:
		y.failed = &syntax{at, "only sections can be merged with <<"}
	}
}

var knownTags = []string{"!!null", "!!bool", "!!int", "!!float", "!!str", "!!timestamp", "!!merge", "!!binary", "!!map", "!!seq"}

// yamlScalar resolves a scalar by the rules of YAML 1.2, which know one spelling of true and false.
func yamlScalar(n *yaml.Node) (any, *wrong) {
	switch n.ShortTag() {
	case "!!null":
		return nil, nil
	case "!!bool":
		b, err := strconv.ParseBool(n.Value)
		if err != nil {
			return nil, &wrong{"neither true nor false: " + quote(n.Value), ""}
		}
		return b, nil
	case "!!int", "!!float":
		return number(n.Value), nil
	case "!!binary": // bytes that are not text, for a probe
		b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(n.Value), ""))
		if err != nil {
			return nil, &wrong{"not base64: " + quote(n.Value), ""}
		}
		return string(b), nil
	}
	return n.Value, nil
}

// parseValue parses the value of a variable or a flag as YAML. Text that is not YAML, as the address [::1]:8080, and
// text of which YAML would take a part for a comment, is the text itself.
func (d *document) parseValue(text string, p path) any {
	text = strings.TrimSpace(text)
	scratch := &document{ledger: newLedger(d.name), name: d.name, layer: d.layer}
	v, err := scratch.yaml([]byte(text), p)
	plain, isText := v.(string)
	quoted := strings.HasPrefix(text, `"`) || strings.HasPrefix(text, "'") || strings.HasPrefix(text, "!")
	if err != nil || (v == nil && text != "null" && text != "~") || (isText && !quoted && plain != text) {
		d.note(p, position{}, position{}, true, false)
		return text
	}
	d.ledger.take(scratch.ledger)
	return v
}
