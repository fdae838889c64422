package main

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sort"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"difylb/pkg/document"
	"difylb/pkg/lb"
)

// tree is a declaration, or a merge patch of one, on its way to JSON. It is
// filled by path, with the fields of the domain types as its schema, so that a
// field which is added there can be set here at once.
type tree map[string]any

var (
	applicationSchema = reflect.TypeFor[lb.Application]()
	instanceSchema    = reflect.TypeFor[lb.Instance]()
)

// set puts the value that the text means at the path. The error names path
// and value, but no value that is a token.
func (t tree) set(schema reflect.Type, path, text string) error {
	at, typ := t, schema
	keys := strings.Split(path, ".")
	for i, key := range keys {
		field, err := fieldOf(typ, key, path)
		if err != nil {
			return err
		}
		typ = field
		if i == len(keys)-1 {
			if _, twice := at[key]; twice {
				return fmt.Errorf("%s is set twice", path)
			}
			v, err := valueOf(typ, text)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			at[key] = v
			return nil
		}
		next, ok := at[key].(tree)
		if !ok {
			if _, taken := at[key]; taken {
				return fmt.Errorf("%s is set twice", strings.Join(keys[:i+1], "."))
			}
			next = tree{}
			at[key] = next
		}
		at = next
	}
	return nil
}

// fieldOf returns the type of a field by its JSON name.
func fieldOf(typ reflect.Type, key, path string) (reflect.Type, error) {
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct || scalar(typ) {
		return nil, fmt.Errorf("%s: there is nothing below %s", path, strings.TrimSuffix(strings.TrimSuffix(path, key), "."))
	}
	var names []string
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		if name == key {
			return typ.Field(i).Type, nil
		}
		names = append(names, name)
	}
	hint := lb.DidYouMean(key, names)
	if hint == "" {
		sort.Strings(names)
		hint = "; there are " + strings.Join(names, ", ")
	}
	return nil, fmt.Errorf("there is no field %q%s", path, hint)
}

// scalar reports whether a type is written as one value.
func scalar(typ reflect.Type) bool {
	return typ.Kind() != reflect.Struct || reflect.PointerTo(typ).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// valueOf reads a text as a value of the type. "null" takes the field back to
// its default.
func valueOf(typ reflect.Type, text string) (any, error) {
	if text == "null" {
		return nil, nil
	}
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	switch u := reflect.New(typ).Interface().(type) {
	case encoding.TextUnmarshaler:
		return text, u.UnmarshalText([]byte(text))
	case *lb.Secret:
		return text, lb.CheckToken(lb.Secret(text))
	}
	switch typ.Kind() {
	case reflect.String:
		return text, nil
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not true or false", text)
		}
		return b, nil
	case reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not a whole number", text)
		}
		return n, nil
	case reflect.Float64:
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || f-f != 0 {
			return nil, fmt.Errorf("%q is not a number", text)
		}
		return f, nil
	case reflect.Struct:
		return blockOf(typ, text)
	}
	return nil, errors.New("is a list, which has commands of its own (lbctl token, lbctl instance)")
}

// blockOf reads a whole block, as in rate_limit.per_app={rate: 5, burst: 10}.
func blockOf(typ reflect.Type, text string) (any, error) {
	var n yaml.Node
	if err := yaml.Unmarshal([]byte(text), &n); err != nil || n.Kind != yaml.DocumentNode || n.Content[0].Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%q is not a block such as {key: value}; name a field of it, or null for none", text)
	}
	out := tree{}
	m := n.Content[0]
	for i := 0; i+1 < len(m.Content); i += 2 {
		v := m.Content[i+1]
		if v.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("%s: blocks in blocks are set by path", m.Content[i].Value)
		}
		if err := out.set(typ, m.Content[i].Value, v.Value); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// assign sets what "path=value" says.
func (t tree) assign(schema reflect.Type, text string) error {
	path, value, ok := strings.Cut(text, "=")
	if !ok || path == "" {
		return usagef("%q is not field=value, such as timeouts.read=600s", text)
	}
	if err := t.set(schema, path, value); err != nil {
		return usagef("%s", err)
	}
	return nil
}

// paths returns the paths that are set.
func (t tree) paths() []string {
	var out []string
	for k, v := range t {
		if sub, ok := v.(tree); ok {
			for _, p := range sub.paths() {
				out = append(out, k+"."+p)
			}
			continue
		}
		out = append(out, k)
	}
	return out
}

// withoutNulls returns what a reader of declarations, not of patches, understands.
func (t tree) withoutNulls() tree {
	out := tree{}
	for k, v := range t {
		switch v := v.(type) {
		case nil:
		case tree:
			out[k] = v.withoutNulls()
		default:
			out[k] = v
		}
	}
	return out
}

// applicationFaults returns the faults of the fields that are set; of a whole
// application, all of them.
func (t tree) applicationFaults(name string, whole bool) (lb.Faults, error) {
	data, err := json.Marshal(t.withoutNulls())
	if err != nil {
		return nil, err
	}
	app, fs := document.ParseApplication(data, name, "")
	if len(fs) == 0 {
		fs = app.Resolve(nil, "")
		fs = append(fs, app.Validate("")...)
	}
	return t.faultsOf(fs, whole), nil
}

// instanceFaults is applicationFaults for an instance.
func (t tree) instanceFaults(whole bool) (lb.Faults, error) {
	data, err := json.Marshal(t.withoutNulls())
	if err != nil {
		return nil, err
	}
	in, fs := document.ParseInstance(data, "")
	if len(fs) == 0 {
		in.Normalize()
		fs = in.Validate("")
	}
	return t.faultsOf(fs, whole), nil
}

// faultsOf leaves out lines, which mean nothing on a command line, and where
// only some fields are given, faults of the others.
func (t tree) faultsOf(fs lb.Faults, whole bool) lb.Faults {
	set := make(map[string]bool)
	for _, p := range t.paths() {
		set[p] = true
	}
	var out lb.Faults
	for _, f := range fs {
		f.Line = 0
		if whole || set[f.Path] {
			out = append(out, f)
		}
	}
	return out
}

// fieldFlag is a flag for a field that is set often; --set and positional
// field=value reach the rest.
type fieldFlag struct{ flag, path, usage string }

// fieldFlags defines the flags on a command and returns what puts those that
// were given into a tree.
func fieldFlags(cmd *cobra.Command, schema reflect.Type, flags []fieldFlag) func(tree) error {
	values := make([]string, len(flags))
	for i, f := range flags {
		cmd.Flags().StringVar(&values[i], f.flag, "", f.usage)
		cmd.Flags().Lookup(f.flag).NoOptDefVal = boolDefault(schema, f.path)
	}
	var sets []string
	cmd.Flags().StringArrayVar(&sets, "set", nil, "`field=value` for any field, by its path; null takes the default; repeatable")
	return func(t tree) error {
		for i, f := range flags {
			if !cmd.Flags().Changed(f.flag) {
				continue
			}
			if err := t.set(schema, f.path, values[i]); err != nil {
				return usagef("--%s: %s", f.flag, err)
			}
		}
		for _, s := range sets {
			if err := t.assign(schema, s); err != nil {
				return err
			}
		}
		return nil
	}
}

// boolDefault lets the flag of a boolean field stand alone for true.
func boolDefault(typ reflect.Type, path string) string {
	for _, key := range strings.Split(path, ".") {
		next, err := fieldOf(typ, key, path)
		if err != nil {
			panic("lbctl: flag for a field that is not there: " + path)
		}
		typ = next
	}
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	if typ.Kind() == reflect.Bool {
		return "true"
	}
	return ""
}

var applicationFlags = []fieldFlag{
	{"hash", "consistent_hash.hash_algorithm", "hash `algorithm`: crc32, md5, sha1 or xxhash"},
	{"virtual-nodes", "consistent_hash.virtual_nodes", "`points` on the ring per unit of weight"},
	{"load-factor", "consistent_hash.load_factor", "pass an instance with more than so many `times` its share of open requests: above 1, or 0 for never"},
	{"missing-user", "missing_user", "what happens to requests without a user id: auto, reject or spread (`policy`)"},
	{"connect-timeout", "timeouts.connect", "`time` to connect to an instance"},
	{"read-timeout", "timeouts.read", "longest `time` between two bytes of an answer"},
	{"send-timeout", "timeouts.send", "longest `time` between two writes of a request"},
	{"retry-attempts", "retry.attempts", "further `attempts` after the first"},
	{"retry-timeout", "retry.timeout", "`time` in which attempts may start"},
	{"retry-non-idempotent", "retry.non_idempotent", "also retry POST and the like after broken connections and 502, 503, 504"},
	{"max-body", "max_body", "largest request body (`size`)"},
	{"check-type", "health_check.type", "`kind` of probe: http, tcp or none"},
	{"check-path", "health_check.path", "`path` of the probe"},
	{"check-interval", "health_check.interval", "`time` between probes"},
	{"check-timeout", "health_check.timeout", "`time` a probe may take"},
	{"queue-size", "queue.size", "how many requests may wait for an instance at its max_in_flight (`number`)"},
	{"queue-timeout", "queue.timeout", "longest `time` a request waits there"},
	{"preserve-host", "preserve_host", "send the client's Host to the instances"},
}

// instanceFlags leaves out the token, whose flag would be in the way of the
// global one on commands that do not need it.
var instanceFlags = []fieldFlag{
	{"url", "url", "address as a `URL`, for https; or --host and --port"},
	{"host", "host", "`host` name or address"},
	{"port", "port", "`port` (default 80)"},
	{"weight", "weight", "share of new users, 0 to 65535 (`number`)"},
	{"max-fails", "max_fails", "`failures` within --fail-timeout that eject it; 0 never does"},
	{"fail-timeout", "fail_timeout", "`time` in which they count, and for which it is ejected"},
	{"max-in-flight", "max_in_flight", "`requests` open at once over the whole cluster; 0 is no limit"},
	{"domain", "domain", "`name` of the instances that share database and storage with it"},
	{"state", "state", "`state`: active, draining or disabled"},
	{"preserve-host", "preserve_host", "send the client's Host to it"},
}
