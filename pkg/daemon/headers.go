package daemon

import (
	"os"
	"strings"
)

// ReadHeaders reads a file of header fields for the flag, a line each, "Name:
// value"; empty lines and those that begin with # are passed over. Such files
// hold credentials, so errors name lines and show no value.
func ReadHeaders(flag, path string) (map[string]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, Usagef("--%s: %w", flag, err)
	}
	out := make(map[string]string)
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		switch {
		case !ok || !fieldName(name):
			return nil, Usagef("--%s: line %d of %s is not a header field; write Name: value", flag, i+1, path)
		case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r >= 0x7f }):
			return nil, Usagef("--%s: line %d of %s: the value holds what no header can", flag, i+1, path)
		}
		if _, twice := out[strings.ToLower(name)]; twice {
			return nil, Usagef("--%s: line %d of %s: %s stands twice", flag, i+1, path, name)
		}
		out[strings.ToLower(name)] = value
	}
	return out, nil
}

// fieldName reports whether s is a token (RFC 9110 section 5.6.2).
func fieldName(s string) bool {
	const others = "!#$%&'*+-.^_`|~"
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(others, r)) {
			return false
		}
	}
	return s != ""
}
