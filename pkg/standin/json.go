package standin

import (
	"bytes"
	"encoding/json"
	"unicode/utf16"
	"unicode/utf8"
)

// field and object are JSON objects that keep their order: events begin with
// "event", as those of Dify do, so that a person can read them.
type field struct {
	name  string
	value any
}

type object []field

// MarshalJSON writes the fields in order, compact, without HTML escapes.
func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := compactJSON(f.name)
		if err != nil {
			return nil, err
		}
		value, err := compactJSON(f.value)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// with returns o and more fields, leaving o alone.
func (o object) with(more ...field) object {
	return append(o[:len(o):len(o)], more...)
}

func compactJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// encodeJSON writes v in the dialect of the instance. Values are built by this
// package from strings, numbers and decoded JSON, so that encoding cannot fail.
func encodeJSON(v any, spaced bool) []byte {
	b, err := compactJSON(v)
	if err != nil {
		panic("standin: encode own value: " + err.Error())
	}
	if spaced {
		return spaceJSON(b)
	}
	return b
}

// spaceJSON turns compact JSON into what Python's json.dumps writes by default:
// a space after ':' and ',', and everything beyond ASCII as \uXXXX.
func spaceJSON(in []byte) []byte {
	out := make([]byte, 0, len(in)+len(in)/4)
	inString, escaped := false, false
	for i := 0; i < len(in); {
		c := in[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRune(in[i:])
			out = appendEscaped(out, r)
			i += n
			continue
		}
		i++
		out = append(out, c)
		switch {
		case escaped:
			escaped = false
		case inString && c == '\\':
			escaped = true
		case c == '"':
			inString = !inString
		case !inString && (c == ':' || c == ','):
			out = append(out, ' ')
		}
	}
	return out
}

func appendEscaped(out []byte, r rune) []byte {
	if hi, lo := utf16.EncodeRune(r); hi != utf8.RuneError {
		return appendUnit(appendUnit(out, hi), lo)
	}
	return appendUnit(out, r)
}

func appendUnit(out []byte, r rune) []byte {
	const hex = "0123456789abcdef"
	return append(out, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}
