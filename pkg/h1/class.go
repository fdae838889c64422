package h1

import (
	"encoding/binary"
	"unsafe"
)

// What a byte may be part of.
const (
	isToken      uint8 = 1 << iota // tchar, RFC 9110 section 5.6.2
	isUnderscore                   // '_', which CGI and WSGI take for '-'
	isPath                         // pchar or '/', RFC 3986 section 3.3
	isQuery                        // what a query may hold here: all that is visible in ASCII but '#'
	isHost                         // unreserved, RFC 3986 section 2.3: what names of hosts consist of
	isDotOrPct                     // '.' and '%': the path needs a second look
)

var class = func() (t [256]uint8) {
	set := func(bytes string, bit uint8) {
		for i := range len(bytes) {
			t[bytes[i]] |= bit
		}
	}
	const alnum = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	set(alnum+"!#$%&'*+-.^_`|~", isToken)
	set("_", isUnderscore)
	set(alnum+"-._~"+"!$&'()*+,;="+":@"+"%"+"/", isPath)
	set(alnum+"-._~", isHost)
	set(".%", isDotOrPct)
	for c := '!'; c <= '~'; c++ {
		if c != '#' {
			t[c] |= isQuery
		}
	}
	return t
}()

// notHex marks what is no hexadecimal digit.
const notHex = 0xff

var hexValue = func() (t [256]uint8) {
	for i := range t {
		t[i] = notHex
	}
	for i := range 10 {
		t['0'+i] = uint8(i)
	}
	for i := range 6 {
		t['a'+i], t['A'+i] = uint8(10+i), uint8(10+i)
	}
	return t
}()

func isDigit(c byte) bool { return c-'0' < 10 }

func isSpace(c byte) bool { return c == ' ' || c == '\t' }

// isControl reports whether c may not stand in a field value. HTAB may (RFC
// 9110 section 5.5), and so may 0x80 to 0xFF (obs-text): user ids and file
// names come in UTF-8, and no reader of HTTP takes these bytes for a delimiter.
func isControl(c byte) bool { return c < ' ' && c != '\t' || c == 0x7f }

const (
	lowBits  = 0x0101010101010101
	highBits = 0x8080808080808080
)

// suspect marks the high bit of each of eight bytes that is below 0x20 or is
// 0x7F. The lowest mark is certain but for a byte behind 0xFF, and HTAB is among
// those marked: who gets a mark looks again, byte by byte.
func suspect(w uint64) uint64 {
	return ((w - 0x20*lowBits) | (w + lowBits)) &^ w & highBits
}

// load returns eight bytes, the first of them lowest.
func load(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }

// bytesOf returns the bytes of a string, which must not be written.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// hasControl reports whether b holds a byte that isControl, eight bytes at a time.
func hasControl(b []byte) bool {
	if len(b) < 8 {
		return slowHasControl(b)
	}
	hit := suspect(load(b, len(b)-8)) // the rest, overlapping what was seen
	for i := 0; i+8 <= len(b); i += 8 {
		hit |= suspect(load(b, i))
	}
	return hit != 0 && slowHasControl(b)
}

func slowHasControl(b []byte) bool {
	for _, c := range b {
		if isControl(c) {
			return true
		}
	}
	return false
}

// validToken reports whether b is a token, which is never empty.
func validToken[T ~string | ~[]byte](b T) bool {
	for i := range len(b) {
		if class[b[i]]&isToken == 0 {
			return false
		}
	}
	return len(b) > 0
}

// foldEqual compares ASCII without regard to case. lower must be in lower case.
func foldEqual(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i := range len(lower) {
		c := b[i]
		if c-'A' < 26 {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if c-'A' < 26 {
		return c | 0x20
	}
	return c
}

// sameFold compares two pieces of foreign ASCII without regard to case.
func sameFold(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

// trim drops spaces and tabs from both ends (OWS, RFC 9110 section 5.6.3).
func trim(b []byte) []byte {
	for len(b) > 0 && isSpace(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && isSpace(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

// nextElement takes the first element off a comma-separated list without
// quoted strings (RFC 9110 section 5.6.1). Empty elements come out empty.
func nextElement(list []byte) (element, rest []byte, more bool) {
	for i, c := range list {
		if c == ',' {
			return trim(list[:i]), list[i+1:], true
		}
	}
	return trim(list), nil, false
}
