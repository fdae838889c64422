package userid

import "strings"

// FromQuery returns the first value of the parameter name that is not empty, and whether there is one. Pairs are
// separated by '&' alone (';' is an ordinary byte, as in the URL standard, section 5.1). Names and values are
// percent-decoded and '+' is a space; a '%' that two hexadecimal digits do not follow stands for itself, because the
// instance reads the same query and must not be kept from it over a stray byte. Where nothing needs decoding the value
// is a substring of rawQuery and nothing is allocated.
func FromQuery(rawQuery, name string) (id string, ok bool) {
	for len(rawQuery) > 0 {
		var pair string
		pair, rawQuery, _ = strings.Cut(rawQuery, "&")
		key, value, _ := strings.Cut(pair, "=")
		if value != "" && decodesTo(key, name) {
			return decode(value), true
		}
	}
	return "", false
}

// decodesTo says whether the encoded key means name, without allocating.
func decodesTo(key, name string) bool {
	for i := 0; i < len(key); {
		b, n := decodeByte(key[i:])
		if name == "" || name[0] != b {
			return false
		}
		name = name[1:]
		i += n
	}
	return name == ""
}

func decode(value string) string {
	if strings.IndexByte(value, '%') < 0 && strings.IndexByte(value, '+') < 0 {
		return value
	}
	var out strings.Builder
	out.Grow(len(value))
	for len(value) > 0 {
		b, n := decodeByte(value)
		out.WriteByte(b)
		value = value[n:]
	}
	return out.String()
}

// decodeByte returns the byte that the encoded text, which is not empty, begins with, and how many bytes encode it.
func decodeByte(text string) (b byte, n int) {
	switch {
	case text[0] == '+':
		return ' ', 1
	case text[0] == '%' && len(text) > 2 && isHex(text[1]) && isHex(text[2]):
		return unhex(text[1])<<4 | unhex(text[2]), 3
	}
	return text[0], 1
}

func isHex(c byte) bool {
	return isDigit(c) || 'a' <= c|0x20 && c|0x20 <= 'f'
}

// unhex returns the value of a hexadecimal digit.
func unhex(c byte) byte {
	if isDigit(c) {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}

func isDigit(c byte) bool {
	return c-'0' < 10
}

// FromCookie returns the first value of the cookie name that is not empty in one Cookie header field value, and
// whether there is one. Pairs are split at ';' with the white space around them dropped (RFC 6265 section 4.2.1); the
// value is taken as it is: not decoded, quotes kept. Cookie names are case-sensitive. Nothing is allocated.
func FromCookie(headerValue, name string) (id string, ok bool) {
	for len(headerValue) > 0 {
		var pair string
		pair, headerValue, _ = strings.Cut(headerValue, ";")
		key, value, _ := strings.Cut(strings.Trim(pair, " \t"), "=")
		if value != "" && strings.TrimRight(key, " \t") == name {
			return value, true
		}
	}
	return "", false
}
