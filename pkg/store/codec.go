package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"sort"
	"strings"
	"time"

	"difylb/pkg/lb"
)

// The stored forms. Each decodes with the defaults of pkg/lb under it, and
// encodes every field, so that a later change of a default moves nobody.
// Revision is set in what a staged change wrote: the revision at which the
// change took effect, because its keys were written later.

type plainApplication lb.Application

type applicationWire struct {
	plainApplication
	// These two shadow the fields that have keys of their own.
	UserTokens json.RawMessage `json:"user_tokens,omitempty"`
	Instances  json.RawMessage `json:"instances,omitempty"`
	Revision   int64           `json:"revision,omitempty"`
}

type plainInstance lb.Instance

type instanceWire struct {
	plainInstance
	Token    string `json:"token"` // shadows the redacted one
	Position int    `json:"position"`
	Revision int64  `json:"revision,omitempty"`
}

type tokenWire struct {
	App      string    `json:"app"`
	Label    string    `json:"label,omitempty"`
	Disabled bool      `json:"disabled,omitempty"`
	Hint     string    `json:"hint,omitempty"`
	Created  time.Time `json:"created,omitzero"`
	Position int       `json:"position"`
	Revision int64     `json:"revision,omitempty"`
}

type plainSettings lb.Settings

type settingsWire struct {
	plainSettings
	Revision int64 `json:"revision,omitempty"`
}

type epochWire struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
}

type clusterKeyWire struct {
	Key string `json:"key"`
}

// configWire is meta/config: the head of the chain of changes.
type configWire struct {
	Seq   int64     `json:"seq"`
	Who   string    `json:"who"`
	From  string    `json:"from,omitempty"`
	At    time.Time `json:"at"`
	Nonce string    `json:"nonce"` // tells the writer whether it was his transaction
}

// pendingWire is meta/pending. Its own mod revision is the change's.
type pendingWire struct {
	ID     string `json:"id"`
	Chunks int    `json:"chunks"`
	Seq    int64  `json:"seq"`
}

type committedWire struct {
	Seq   int64 `json:"seq"`
	Bytes int   `json:"bytes"`
}

// marshal is json.Marshal without the escapes meant for HTML.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// mustMarshal is for our own structs, which always encode.
func mustMarshal(v any) []byte {
	b, err := marshal(v)
	if err != nil {
		panic(fmt.Sprintf("store: encode %T: %v", v, err))
	}
	return b
}

func encodeApplication(a *lb.Application) []byte {
	return mustMarshal(applicationWire{plainApplication: plainApplication(*a)})
}

func encodeInstance(in *lb.Instance, position int) []byte {
	return mustMarshal(instanceWire{plainInstance: plainInstance(*in), Token: in.Token.Reveal(), Position: position})
}

func encodeToken(app string, t *lb.UserToken, position int) []byte {
	return mustMarshal(tokenWire{App: app, Label: t.Label, Disabled: t.Disabled, Hint: t.Hint, Created: t.Created, Position: position})
}

func encodeSettings(s *lb.Settings) []byte {
	return mustMarshal(settingsWire{plainSettings: plainSettings(*s)})
}

// decoded is what a key of the configuration holds: exactly one of the
// pointers is set.
type decoded struct {
	app      *lb.Application // without tokens and instances
	instance *lb.Instance
	token    *lb.UserToken
	settings *lb.Settings

	owner    string // the application of an instance or token
	position int
	revision int64 // from the value; 0 means the key's own
}

// decode reads the value of a key of the configuration. The error is for
// people and holds no secret.
func decode(key string, raw []byte) (decoded, error) {
	switch {
	case strings.HasPrefix(key, dirApps):
		return decodeApplication(strings.TrimPrefix(key, dirApps), raw)
	case strings.HasPrefix(key, dirInstances):
		app, name, ok := strings.Cut(strings.TrimPrefix(key, dirInstances), "/")
		if !ok {
			return decoded{}, fmt.Errorf("the key is not instances/<application>/<instance>")
		}
		return decodeInstance(app, name, raw)
	case strings.HasPrefix(key, dirTokens):
		return decodeToken(strings.TrimPrefix(key, dirTokens), raw)
	case key == keySettings:
		return decodeSettings(raw)
	}
	return decoded{}, fmt.Errorf("not a key of the configuration")
}

func decodeApplication(name string, raw []byte) (decoded, error) {
	var w applicationWire
	(*lb.Application)(&w.plainApplication).SetDefaults()
	if err := unmarshal(raw, &w); err != nil {
		return decoded{}, err
	}
	a := lb.Application(w.plainApplication)
	if a.Name == "" {
		a.Name = name
	}
	if a.Name != name {
		return decoded{}, fmt.Errorf("the value is named %q, unlike its key", a.Name)
	}
	a.UserTokens, a.Instances = nil, nil
	if err := a.Validate("").Err(); err != nil {
		return decoded{}, err
	}
	return decoded{app: &a, revision: w.Revision}, nil
}

func decodeInstance(app, name string, raw []byte) (decoded, error) {
	var w instanceWire
	(*lb.Instance)(&w.plainInstance).SetDefaults()
	if err := unmarshal(raw, &w); err != nil {
		return decoded{}, err
	}
	in := lb.Instance(w.plainInstance)
	in.Token = lb.Secret(w.Token)
	if in.Name == "" {
		in.Name = name
	}
	if in.Name != name {
		return decoded{}, fmt.Errorf("the value is named %q, unlike its key", in.Name)
	}
	if !lb.ValidApplicationName(app) {
		return decoded{}, fmt.Errorf("%q is not a name for an application", app)
	}
	in.Normalize()
	if err := in.Validate("").Err(); err != nil {
		return decoded{}, err
	}
	return decoded{instance: &in, owner: app, position: w.Position, revision: w.Revision}, nil
}

func decodeToken(hash string, raw []byte) (decoded, error) {
	h, err := lb.ParseTokenHash(hash)
	if err != nil || h.String() != hash {
		return decoded{}, fmt.Errorf("the key does not end in the 64 lower-case hexadecimal digits of a SHA-256")
	}
	var w tokenWire
	if err := unmarshal(raw, &w); err != nil {
		return decoded{}, err
	}
	if !lb.ValidApplicationName(w.App) {
		return decoded{}, fmt.Errorf("app: %q is not a name for an application", w.App)
	}
	t := &lb.UserToken{SHA256: h, Hint: w.Hint, Label: w.Label, Disabled: w.Disabled, Created: w.Created}
	return decoded{token: t, owner: w.App, position: w.Position, revision: w.Revision}, nil
}

func decodeSettings(raw []byte) (decoded, error) {
	var w settingsWire
	if err := unmarshal(raw, &w); err != nil {
		return decoded{}, err
	}
	s := lb.Settings(w.plainSettings)
	if err := s.Validate("").Err(); err != nil {
		return decoded{}, err
	}
	return decoded{settings: &s, revision: w.Revision}, nil
}

// unmarshal wants an object: null would pass as one and mean all defaults.
func unmarshal(raw []byte, v any) error {
	trimmed := bytes.TrimLeft(raw, " \t\r\n")
	if len(trimmed) == 0 || trimmed[0] != '{' {
		return fmt.Errorf("the value is not a JSON object")
	}
	return json.Unmarshal(raw, v)
}

// withRevision adds the revision at which a staged change took effect to a
// value that encode… wrote.
func withRevision(raw []byte, revision int64) []byte {
	out := make([]byte, 0, len(raw)+32)
	out = append(out, raw[:len(raw)-1]...)
	return fmt.Appendf(out, `,"revision":%d}`, revision)
}

// keepUnknown returns next, the encoding of wire, with those fields of prev
// that this version does not know, at every level. A newer version wrote them
// and wants them back.
func keepUnknown(wire any, prev, next []byte) []byte {
	if len(prev) == 0 {
		return next
	}
	merged, err := mergeUnknown(reflect.TypeOf(wire), prev, next)
	if err != nil {
		return next // prev was no JSON object: there is nothing to keep
	}
	return merged
}

func mergeUnknown(t reflect.Type, prev, next json.RawMessage) (json.RawMessage, error) {
	var before, after map[string]json.RawMessage
	if err := json.Unmarshal(prev, &before); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(next, &after); err != nil {
		return nil, err
	}
	known := knownFields(t)
	changed := false
	var unknown []string
	for name, old := range before {
		field, ok := known[strings.ToLower(name)]
		if !ok {
			unknown = append(unknown, name)
			continue
		}
		cur, ok := after[name]
		if !ok || field == nil || !isObject(old) || !isObject(cur) {
			continue
		}
		if m, err := mergeUnknown(field, old, cur); err == nil && !bytes.Equal(m, cur) {
			after[name], changed = m, true
		}
	}
	if len(unknown) == 0 && !changed {
		return next, nil
	}
	sort.Strings(unknown)
	return rebuild(next, after, unknown, before)
}

// rebuild writes next's fields in their order, with the values of after, and
// the unknown ones behind them.
func rebuild(next json.RawMessage, after map[string]json.RawMessage, unknown []string, before map[string]json.RawMessage) (json.RawMessage, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	put := func(name string, v json.RawMessage) {
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		b.Write(mustMarshal(name))
		b.WriteByte(':')
		b.Write(bytes.TrimSpace(v))
	}
	dec := json.NewDecoder(bytes.NewReader(next))
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, err
		}
		var skipped json.RawMessage
		if err := dec.Decode(&skipped); err != nil {
			return nil, err
		}
		name := tok.(string)
		put(name, after[name])
	}
	for _, name := range unknown {
		put(name, before[name])
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func isObject(raw json.RawMessage) bool {
	raw = bytes.TrimLeft(raw, " \t\r\n")
	return len(raw) > 0 && raw[0] == '{'
}

// knownFields returns the JSON names, in lower case as encoding/json matches
// them, that a struct of type t reads; the value is the type of a nested
// struct, nil for anything else.
func knownFields(t reflect.Type) map[string]reflect.Type {
	fields := make(map[string]reflect.Type)
	for _, f := range reflect.VisibleFields(t) {
		if f.Anonymous || !f.IsExported() {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		ft := f.Type
		if ft.Kind() == reflect.Pointer {
			ft = ft.Elem()
		}
		if ft.Kind() != reflect.Struct || ft == reflect.TypeFor[time.Time]() {
			ft = nil
		}
		fields[strings.ToLower(name)] = ft
	}
	return fields
}
