package main

import (
	"errors"
	"fmt"
	"strings"
)

// parseInstance reads name=dify1,url=http://10.0.0.7:5001,token=app-…,weight=1
// into a tree with the fields of an instance. A value that holds a comma is
// put into double quotes, in which \ takes the next character as it is.
func parseInstance(spec string) (tree, error) {
	in := tree{}
	pairs, err := splitPairs(spec)
	if err != nil {
		return nil, err
	}
	for _, p := range pairs {
		if err := in.set(instanceSchema, p.key, p.value); err != nil {
			return nil, err
		}
	}
	return in, nil
}

type pair struct{ key, value string }

// splitPairs cuts at the commas. Messages name keys only: values may be tokens.
func splitPairs(spec string) ([]pair, error) {
	if strings.TrimSpace(spec) == "" {
		return nil, errors.New("is empty; it is name=…,url=…,token=…")
	}
	var out []pair
	for i := 0; i < len(spec); {
		eq := strings.IndexAny(spec[i:], "=,")
		if eq < 0 || spec[i+eq] == ',' {
			last := "the beginning"
			if len(out) > 0 {
				last = "the value of " + out[len(out)-1].key
			}
			return nil, fmt.Errorf("a part after %s has no key=; put a value that holds a comma into double quotes", last)
		}
		p := pair{key: strings.TrimSpace(spec[i : i+eq])}
		if p.key == "" {
			return nil, errors.New("a value has no key before its =")
		}
		i += eq + 1
		var err error
		if i < len(spec) && spec[i] == '"' {
			p.value, i, err = quoted(spec, i)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p.key, err)
			}
		} else {
			end := strings.IndexByte(spec[i:], ',')
			if end < 0 {
				end = len(spec) - i
			}
			p.value = strings.TrimSpace(spec[i : i+end])
			i += end
		}
		out = append(out, p)
		if i < len(spec) {
			i++ // the comma
			if i == len(spec) {
				return nil, fmt.Errorf("ends in a comma after %s", p.key)
			}
		}
	}
	return out, nil
}

// quoted reads a value in double quotes that begins at i, and returns where
// the next comma is.
func quoted(spec string, i int) (string, int, error) {
	var b strings.Builder
	for i++; i < len(spec); i++ {
		switch c := spec[i]; {
		case c == '"':
			i++
			if i < len(spec) && spec[i] != ',' {
				return "", 0, errors.New("something follows the closing quote")
			}
			return b.String(), i, nil
		case c == '\\' && i+1 < len(spec):
			i++
			b.WriteByte(spec[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", 0, errors.New("the closing quote is missing")
}
