package main

import (
	"bytes"
	"errors"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// routed is one request as the OpenResty balancer's app_routing.log tells of it.
// A field that stands there as null, empty or "-" (what nginx writes for a
// variable without a value) is empty.
type routed struct {
	app      string // app_type
	user     string // user_id, byte for byte
	instance string // backend_instance: a name, or an address
}

var (
	errNoObject  = errors.New("there is no JSON object in it")
	errBroken    = errors.New("its JSON object breaks off or is malformed")
	errNoAppType = errors.New("its JSON object has no field app_type")
	errNoUserID  = errors.New("its JSON object has no field user_id")
	errNoBackend = errors.New("its JSON object has no field backend_instance")
	errHashed    = errors.New("its user_id is a keyed hash, which tells nothing of the place; lb-proxy logs users in clear with --access-log-users")
)

// objectTries bounds how often a line is looked at again for an object that
// begins later, so that a line costs time in proportion to its length.
const objectTries = 16

// parseRouted finds the JSON object in a line of the log, wherever it begins:
// nginx may have put a time, a level and a connection before it, and a
// collector of logs the whole line into a string of an object of its own.
func parseRouted(line []byte) (routed, error) {
	tries := objectTries
	return findRouted(line, &tries)
}

func findRouted(line []byte, tries *int) (routed, error) {
	found := errNoObject
	for at := 0; *tries > 0; at++ {
		next := bytes.IndexByte(line[at:], '{')
		if next < 0 {
			break
		}
		at += next
		*tries--
		r, inner, err := readRouted(line[at:])
		if err == nil {
			return r, nil
		}
		if inner != "" {
			if r, err := findRouted([]byte(inner), tries); err == nil {
				return r, nil
			}
		}
		// What came nearest says most of what is wrong.
		if found == errNoObject || (found == errBroken && err != errBroken) {
			found = err
		}
	}
	return routed{}, found
}

// readRouted reads the object at the beginning of b. inner is a text in it that
// may hold the object that is looked for.
func readRouted(b []byte) (r routed, inner string, err error) {
	s := lineScanner{b: b, i: 1}
	var app, user, backend, hashed bool
	for first := true; ; first = false {
		s.space()
		if s.next('}') {
			break
		}
		if !first {
			if !s.next(',') {
				return r, inner, errBroken
			}
			s.space()
		}
		key, ok := s.text()
		s.space()
		if !ok || !s.next(':') {
			return r, inner, errBroken
		}
		s.space()
		value, ok := s.value()
		if !ok {
			return r, inner, errBroken
		}
		switch key {
		case "app_type":
			app, r.app = true, value
		case "user_id":
			user, r.user = true, value
		case "backend_instance":
			backend, r.instance = true, value
		case "user_id_hashed": // as lb-proxy writes it
			hashed = value == "true"
		default:
			if strings.Contains(value, "app_type") {
				inner = value
			}
		}
	}
	switch {
	case !app:
		return r, inner, errNoAppType
	case !user:
		return r, inner, errNoUserID
	case !backend:
		return r, inner, errNoBackend
	case hashed:
		return r, inner, errHashed
	}
	return r, "", nil
}

// lineScanner reads JSON, and beside it what nginx writes in its place: with
// the default escaping of log_format a quote in a value is \x22, which is no
// JSON, and bytes above 0x7f are \xE4. encoding/json would also put U+FFFD for
// bytes that are no UTF-8, and such a user id would be placed elsewhere.
type lineScanner struct {
	b []byte
	i int
}

func (s *lineScanner) space() {
	for s.i < len(s.b) && (s.b[s.i] == ' ' || s.b[s.i] == '\t' || s.b[s.i] == '\r' || s.b[s.i] == '\n') {
		s.i++
	}
}

// next skips c if it comes next.
func (s *lineScanner) next(c byte) bool {
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

// value reads any value and returns the text of one that has some: strings,
// numbers and booleans.
func (s *lineScanner) value() (string, bool) {
	if s.i == len(s.b) {
		return "", false
	}
	switch s.b[s.i] {
	case '"':
		text, ok := s.text()
		if text == "-" {
			text = ""
		}
		return text, ok
	case '{', '[':
		return "", s.skip()
	}
	start := s.i
	for s.i < len(s.b) && strings.IndexByte(",}] \t\r\n", s.b[s.i]) < 0 {
		s.i++
	}
	switch text := string(s.b[start:s.i]); text {
	case "":
		return "", false
	case "null", "-":
		return "", true
	default:
		return text, strings.IndexByte("-0123456789tf", text[0]) >= 0
	}
}

// skip passes over an object or a list.
func (s *lineScanner) skip() bool {
	depth := 0
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				s.i++
				return true
			}
		case '"':
			if _, ok := s.text(); !ok {
				return false
			}
			continue
		}
		s.i++
	}
	return false
}

// text reads a string.
func (s *lineScanner) text() (string, bool) {
	if !s.next('"') {
		return "", false
	}
	start := s.i
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case '"':
			s.i++
			return string(s.b[start : s.i-1]), true
		case '\\':
			return s.escaped(append([]byte(nil), s.b[start:s.i]...))
		}
		s.i++
	}
	return "", false
}

// escaped reads the rest of a string from its first backslash on.
func (s *lineScanner) escaped(out []byte) (string, bool) {
	for s.i < len(s.b) {
		c := s.b[s.i]
		s.i++
		if c == '"' {
			return string(out), true
		}
		if c != '\\' {
			out = append(out, c)
			continue
		}
		if s.i == len(s.b) {
			return "", false
		}
		c = s.b[s.i]
		s.i++
		switch c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b', 'f', 'n', 'r', 't':
			out = append(out, "\b\f\n\r\t"[strings.IndexByte("bfnrt", c)])
		case 'x':
			v, ok := s.hex(2)
			if !ok {
				return "", false
			}
			out = append(out, byte(v))
		case 'u':
			v, ok := s.hex(4)
			if !ok {
				return "", false
			}
			if utf16.IsSurrogate(v) {
				v = s.lowSurrogate(v)
			}
			out = utf8.AppendRune(out, v)
		default:
			return "", false
		}
	}
	return "", false
}

// lowSurrogate reads the second half of a pair, if it follows.
func (s *lineScanner) lowSurrogate(high rune) rune {
	if bytes.HasPrefix(s.b[s.i:], []byte(`\u`)) {
		after := lineScanner{b: s.b, i: s.i + 2}
		if low, ok := after.hex(4); ok {
			if r := utf16.DecodeRune(high, low); r != utf8.RuneError {
				s.i = after.i
				return r
			}
		}
	}
	return utf8.RuneError
}

func (s *lineScanner) hex(digits int) (rune, bool) {
	if len(s.b)-s.i < digits {
		return 0, false
	}
	var v rune
	for _, c := range s.b[s.i : s.i+digits] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		v = v<<4 | rune(c)
	}
	s.i += digits
	return v, true
}
