package userid

import (
	"bytes"
	"errors"
	"strings"
)

func formatOf(contentType string) format {
	if contentType == "application/json" {
		return formatJSON // as most clients write it
	}
	media, _, _ := strings.Cut(contentType, ";")
	media = strings.Trim(media, " \t")
	switch {
	case equalFold(media, "application/json"):
		return formatJSON
	case equalFold(media, "multipart/form-data"):
		return formatMultipart
	case equalFold(media, "application/x-www-form-urlencoded"):
		return formatURLEncoded
	}
	const suffix = "+json" // RFC 6839 section 3.1
	if n := len(media) - len(suffix); n > 0 && equalFold(media[n:], suffix) && strings.Contains(media[:n], "/") {
		return formatJSON
	}
	return formatNone
}

// maxBoundary is the limit of RFC 2046 section 5.1.1.
const maxBoundary = 70

// boundaryOf returns the boundary parameter of a multipart Content-Type, within contentType, which it may overwrite.
// More bytes are let through than the RFC's grammar has, as clients do send them; control bytes are not, which the
// search for delimiters relies on.
func boundaryOf(contentType []byte) ([]byte, error) {
	_, rest, _ := bytes.Cut(contentType, []byte{';'})
	params := parameters{rest}
	var boundary []byte
	seen := false
	for params.more() {
		name, value := params.next()
		if !equalFold(name, "boundary") {
			continue
		}
		if seen {
			return nil, errors.New("multipart content type has more than one boundary")
		}
		seen, boundary = true, value
	}
	switch {
	case !seen:
		return nil, errors.New("multipart content type has no boundary")
	case len(boundary) == 0:
		return nil, errors.New("multipart content type has an empty boundary")
	case len(boundary) > maxBoundary:
		return nil, errors.New("multipart content type has a boundary of more than 70 bytes")
	case boundary[len(boundary)-1] == ' ':
		return nil, errors.New("multipart content type has a boundary that ends in a space")
	}
	for _, c := range boundary {
		if c < ' ' || c == 0x7f {
			return nil, errors.New("multipart content type has a boundary with a control byte")
		}
	}
	return boundary, nil
}

// parameters is what follows the first ';' of a header value such as Content-Type or Content-Disposition (RFC 2045
// section 5.1). It reads leniently: a name without '=' has an empty value, an unquoted value reaches to the next ';',
// an unterminated quoted-string to the end.
type parameters struct {
	rest []byte
}

// more skips to the next parameter and says whether there is one.
func (p *parameters) more() bool {
	p.rest = bytes.TrimLeft(p.rest, "; \t")
	return len(p.rest) > 0
}

// next returns a parameter's name and value. The value is unescaped in place.
func (p *parameters) next() (name, value []byte) {
	end := bytes.IndexAny(p.rest, "=;")
	if end < 0 || p.rest[end] == ';' {
		if end < 0 {
			end = len(p.rest)
		}
		name, p.rest = p.rest[:end], p.rest[end:]
		return bytes.TrimRight(name, " \t"), nil
	}
	name = bytes.TrimRight(p.rest[:end], " \t")
	p.rest = bytes.TrimLeft(p.rest[end+1:], " \t")
	if len(p.rest) > 0 && p.rest[0] == '"' {
		value = p.quoted()
	}
	end = bytes.IndexByte(p.rest, ';')
	if end < 0 {
		end = len(p.rest)
	}
	if value == nil {
		value = bytes.TrimRight(p.rest[:end], " \t")
	}
	p.rest = p.rest[end:]
	return name, value
}

// quoted consumes the quoted-string that p.rest begins with; the result is not nil.
func (p *parameters) quoted() []byte {
	value := p.rest[:0]
	for i := 1; i < len(p.rest); i++ {
		c := p.rest[i]
		if c == '"' {
			p.rest = p.rest[i+1:]
			return value
		}
		if c == '\\' && i+1 < len(p.rest) {
			i++
			c = p.rest[i]
		}
		value = append(value, c) // at most index i-1: behind the reader
	}
	p.rest = p.rest[len(p.rest):]
	return value
}

// equalFold compares under ASCII case folding only: bytes.EqualFold would take U+017F for an s.
func equalFold[T string | []byte](text T, lower string) bool {
	if len(text) != len(lower) {
		return false
	}
	for i := range len(lower) {
		c := text[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}
