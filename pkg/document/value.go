package document

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"difylb/pkg/lb"
)

// MaxDepth bounds how deep a declaration may nest. The deepest that means
// anything is seven.
const MaxDepth = 64

// kind is what JSON can tell apart.
type kind uint8

const (
	kindNull kind = iota
	kindBool
	kindNumber
	kindString
	kindList
	kindMap
)

func (k kind) String() string {
	return [...]string{"nothing", "true or false", "a number", "text", "a list", "a mapping"}[k]
}

// value is a parsed document before it is given types: ordered, with lines,
// and with keys that stand twice still there to be complained about.
type value struct {
	kind  kind
	text  string // of a scalar, as written
	line  int    // 0 when unknown
	items []*value
	keys  []key
}

type key struct {
	name string
	line int
	val  *value
}

// read parses JSON if the data begins like JSON, else YAML.
func read(data []byte) (*value, lb.Faults) {
	if t := bytes.TrimLeft(data, " \t\r\n"); len(t) > 0 && (t[0] == '{' || t[0] == '[') && json.Valid(t) {
		return readJSON(data)
	}
	return readYAML(data)
}

func readJSON(data []byte) (*value, lb.Faults) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	r := jsonReader{dec: dec, data: data, line: 1}
	v, err := r.value(0)
	if err == nil {
		if _, extra := dec.Token(); extra != io.EOF {
			err = errors.New("something follows the document")
		}
	}
	if err != nil {
		return nil, lb.Faults{{Message: "not JSON: " + err.Error(), Line: r.lineNow()}}
	}
	return v, nil
}

type jsonReader struct {
	dec  *json.Decoder
	data []byte
	pos  int // line counts up to here
	line int
}

func (r *jsonReader) lineNow() int {
	end := min(int(r.dec.InputOffset()), len(r.data))
	r.line += bytes.Count(r.data[r.pos:end], []byte{'\n'})
	r.pos = end
	return r.line
}

func (r *jsonReader) value(depth int) (*value, error) {
	tok, err := r.dec.Token()
	if err != nil {
		if err == io.EOF {
			return nil, errors.New("it is empty")
		}
		return nil, err
	}
	return r.from(tok, depth)
}

func (r *jsonReader) from(tok json.Token, depth int) (*value, error) {
	if depth > MaxDepth {
		return nil, fmt.Errorf("nested deeper than %d levels", MaxDepth)
	}
	v := &value{line: r.lineNow()}
	switch t := tok.(type) {
	case nil:
		v.kind = kindNull
	case bool:
		v.kind, v.text = kindBool, strconv.FormatBool(t)
	case json.Number:
		v.kind, v.text = kindNumber, t.String()
	case string:
		v.kind, v.text = kindString, t
	case json.Delim:
		if t == '[' {
			v.kind = kindList
			for r.dec.More() {
				item, err := r.value(depth + 1)
				if err != nil {
					return nil, err
				}
				v.items = append(v.items, item)
			}
		} else {
			v.kind = kindMap
			for r.dec.More() {
				name, err := r.dec.Token()
				if err != nil {
					return nil, err
				}
				line := r.lineNow()
				val, err := r.value(depth + 1)
				if err != nil {
					return nil, err
				}
				v.keys = append(v.keys, key{name.(string), line, val})
			}
		}
		if _, err := r.dec.Token(); err != nil { // the closing delimiter
			return nil, err
		}
	}
	return v, nil
}

var yamlLine = regexp.MustCompile(`line (\d+): (.*)`)

func readYAML(data []byte) (*value, lb.Faults) {
	var root yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&root); err != nil {
		if err == io.EOF {
			return &value{kind: kindNull}, nil
		}
		f := lb.Fault{Message: "not YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}
		if strings.Contains(f.Message, "unknown anchor") { // a token written [*token]; don't show it
			f.Message = "not YAML: an alias names no anchor; write text that begins with * or & in quotes"
		} else if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
			f.Line, _ = strconv.Atoi(m[1])
			f.Message = "not YAML: " + m[2]
		}
		return nil, lb.Faults{f}
	}
	var second yaml.Node
	if err := dec.Decode(&second); err != io.EOF {
		return nil, lb.Faults{{Message: "holds a second YAML document; put everything into one", Line: second.Line}}
	}
	budget := 1 << 22 // values, so that aliases cannot blow a small file up
	v, f := fromYAML(&root, 0, &budget)
	if f != nil {
		return nil, lb.Faults{*f}
	}
	return v, nil
}

func fromYAML(n *yaml.Node, depth int, budget *int) (*value, *lb.Fault) {
	*budget--
	switch {
	case depth > MaxDepth:
		return nil, &lb.Fault{Message: fmt.Sprintf("nested deeper than %d levels", MaxDepth), Line: n.Line}
	case *budget < 0:
		return nil, &lb.Fault{Message: "aliases make it too large", Line: n.Line}
	}
	v := &value{line: n.Line}
	switch n.Kind {
	case yaml.DocumentNode:
		return fromYAML(n.Content[0], depth, budget)
	case yaml.AliasNode:
		return fromYAML(n.Alias, depth+1, budget)
	case yaml.SequenceNode:
		v.kind = kindList
		for _, c := range n.Content {
			item, f := fromYAML(c, depth+1, budget)
			if f != nil {
				return nil, f
			}
			v.items = append(v.items, item)
		}
	case yaml.MappingNode:
		v.kind = kindMap
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			val, f := fromYAML(n.Content[i+1], depth+1, budget)
			if f != nil {
				return nil, f
			}
			if k.Tag == "!!merge" { // <<: *anchor, keys already there win
				v.merge(val)
				continue
			}
			if k.Kind != yaml.ScalarNode {
				return nil, &lb.Fault{Message: "a key must be plain text", Line: k.Line}
			}
			v.keys = append(v.keys, key{k.Value, k.Line, val})
		}
	case yaml.ScalarNode:
		v.text = n.Value
		switch n.ShortTag() {
		case "!!null":
			v.kind = kindNull
		case "!!bool":
			var b bool
			if err := n.Decode(&b); err != nil {
				return nil, &lb.Fault{Message: err.Error(), Line: n.Line}
			}
			v.kind, v.text = kindBool, strconv.FormatBool(b)
		case "!!int", "!!float":
			v.kind = kindNumber
		default:
			v.kind = kindString
		}
	}
	return v, nil
}

func (v *value) merge(from *value) {
	have := make(map[string]bool, len(v.keys))
	for _, k := range v.keys {
		have[k.name] = true
	}
	for _, k := range from.keys {
		if !have[k.name] {
			v.keys = append(v.keys, k)
		}
	}
}

// JSONToYAML rewrites JSON as YAML, keys in the order in which they stand.
func JSONToYAML(data []byte) ([]byte, error) {
	v, fs := readJSON(data)
	if len(fs) > 0 {
		return nil, fs
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(v.yaml()); err != nil {
		return nil, err
	}
	return out.Bytes(), enc.Close()
}

func (v *value) yaml() *yaml.Node {
	switch v.kind {
	case kindNull:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}
	case kindBool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: v.text}
	case kindNumber:
		tag := "!!int"
		if f, err := strconv.ParseFloat(v.text, 64); err == nil && (f != math.Trunc(f) || strings.ContainsAny(v.text, ".eE")) {
			tag = "!!float"
		}
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: v.text}
	case kindString:
		n := &yaml.Node{}
		n.SetString(v.text)
		return n
	case kindList:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for _, item := range v.items {
			n.Content = append(n.Content, item.yaml())
		}
		if len(v.items) == 0 {
			n.Style = yaml.FlowStyle
		}
		return n
	default:
		n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		for _, k := range v.keys {
			name := &yaml.Node{}
			name.SetString(k.name)
			n.Content = append(n.Content, name, k.val.yaml())
		}
		if len(v.keys) == 0 {
			n.Style = yaml.FlowStyle
		}
		return n
	}
}
