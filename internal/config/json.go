package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"unicode/utf8"
)

// json parses a JSON document. It is not read as YAML, of which JSON is nearly a part: YAML reads surrogate pairs and
// long keys in another way, and takes much for JSON that is none.
func (d *document) json(data []byte) (any, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, nil
	}
	c := newCursor(data)
	if i := invalidUTF8(data); i >= 0 {
		return nil, &syntax{c.at(i), "not UTF-8"}
	}
	var whole json.RawMessage
	if err := json.Unmarshal(data, &whole); err != nil {
		at := position{1, 1}
		if e, ok := errors.AsType[*json.SyntaxError](err); ok {
			at = c.at(int(e.Offset) - 1)
		}
		return nil, &syntax{at, err.Error()}
	}
	j := jsonTree{document: d, dec: json.NewDecoder(bytes.NewReader(data)), cursor: c}
	j.dec.UseNumber()
	at, t, err := j.token()
	if err != nil {
		return nil, err
	}
	return j.value(t, "", at, at, false, 0)
}

// A jsonTree walks through a document that is known to be JSON.
type jsonTree struct {
	*document
	dec    *json.Decoder
	cursor *cursor
}

// token is the next token and where it begins.
func (j *jsonTree) token() (position, json.Token, error) {
	start := int(j.dec.InputOffset())
	for start < len(j.cursor.data) && bytes.IndexByte([]byte(" \t\r\n,:"), j.cursor.data[start]) >= 0 {
		start++
	}
	t, err := j.dec.Token()
	return j.cursor.at(start), t, err
}

func (j *jsonTree) value(t json.Token, p path, key, at position, element bool, depth int) (any, error) {
	if s := j.bounded(at, depth); s != nil {
		return nil, s
	}
	opening, nested := t.(json.Delim)
	j.note(p, key, at, !nested, element)
	switch {
	case nested && opening == '{':
		return j.object(p, depth)
	case nested:
		return j.array(p, depth)
	}
	if n, ok := t.(json.Number); ok {
		return number(n), nil
	}
	return t, nil
}

func (j *jsonTree) object(p path, depth int) (any, error) {
	m := map[string]any{}
	keys := map[string]position{}
	for {
		keyAt, t, err := j.token()
		if err != nil {
			return nil, err
		}
		key, ok := t.(string)
		if !ok { // the closing brace
			return m, nil
		}
		at, t, err := j.token()
		if err != nil {
			return nil, err
		}
		v, err := j.value(t, p.to(key), keyAt, at, false, depth+1)
		if err != nil {
			return nil, err
		}
		if first, ok := keys[key]; ok {
			j.duplicate(p.to(key), keyAt, first)
		}
		keys[key], m[key] = keyAt, v
	}
}

func (j *jsonTree) array(p path, depth int) (any, error) {
	list := []any{}
	for {
		at, t, err := j.token()
		if err != nil {
			return nil, err
		}
		if t == json.Delim(']') {
			return list, nil
		}
		v, err := j.value(t, p.at(len(list)), at, at, true, depth+1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
}

// invalidUTF8 is the offset of the first byte that is not UTF-8, or -1.
func invalidUTF8(data []byte) int {
	if utf8.Valid(data) {
		return -1
	}
	for i := 0; ; {
		r, n := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && n <= 1 {
			return i
		}
		i += n
	}
}
