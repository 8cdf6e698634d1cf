package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// json parses a JSON document. It is not read as YAML, of which JSON is nearly a part: YAML reads surrogate pairs and
// long keys in another way, and takes much for JSON that is none.
func (d *document) json(data []byte) (any, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	c := newCursor(data)
	if i := invalidUTF8(data); i >= 0 {
		return nil, &syntax{c.at(i), "not UTF-8"}
	}
	j := jsonTree{document: d, dec: json.NewDecoder(bytes.NewReader(data)), cursor: c}
	j.dec.UseNumber()
	at, t, err := j.token()
	if err == io.EOF {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	tree, err := j.value(t, "", at, at, false, 0)
	if err != nil {
		return nil, err
	}
	if at, _, err := j.token(); err != io.EOF {
		return nil, &syntax{at, "something after the end of the document"}
	}
	return tree, nil
}

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
	switch e, ok := errors.AsType[*json.SyntaxError](err); {
	case ok:
		return position{}, nil, &syntax{j.cursor.at(int(e.Offset) - 1), e.Error()}
	case err == io.EOF:
		return j.cursor.at(start), nil, err
	case err != nil:
		return position{}, nil, &syntax{j.cursor.at(start), err.Error()}
	}
	return j.cursor.at(start), t, nil
}

// inner is a token where the document cannot end.
func (j *jsonTree) inner() (position, json.Token, error) {
	at, t, err := j.token()
	if err == io.EOF {
		err = &syntax{at, "the document ends too early"}
	}
	return at, t, err
}

func (j *jsonTree) value(t json.Token, p path, key, at position, element bool, depth int) (any, error) {
	if depth > maxDepth {
		return nil, &syntax{at, fmt.Sprintf("nested too deeply (at most %d levels)", maxDepth)}
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
		keyAt, t, err := j.inner()
		if err != nil {
			return nil, err
		}
		key, ok := t.(string)
		if !ok { // the closing brace: the decoder lets nothing else through
			return m, nil
		}
		at, t, err := j.inner()
		if err != nil {
			return nil, err
		}
		if first, ok := keys[key]; ok {
			if _, err := j.value(t, p.to(key), keyAt, at, false, depth+1); err != nil {
				return nil, err
			}
			j.duplicate(p.to(key), keyAt, first)
			continue
		}
		keys[key] = keyAt
		if m[key], err = j.value(t, p.to(key), keyAt, at, false, depth+1); err != nil {
			return nil, err
		}
	}
}

func (j *jsonTree) array(p path, depth int) (any, error) {
	list := []any{}
	for {
		at, t, err := j.inner()
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
