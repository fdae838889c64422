// Package document reads and writes declarations: the YAML or JSON that
// people keep in files and the JSON that the REST API and the store speak. It
// turns bytes into the types of pkg/lb, reporting every fault with its path
// and line instead of stopping at the first, and writes them back, with
// secrets only where that is asked for. What a declaration means it leaves to
// pkg/lb.
package document

import (
	"bytes"
	"encoding/json"
	"fmt"

	"difylb/pkg/lb"
)

// Parse reads a whole document, YAML or JSON, with defaults filled in. The
// error is lb.Faults with everything that could not be read: unknown keys,
// wrong types, keys that stand twice. Whether the document makes sense is
// Document.Validate's to say, after Resolve.
func Parse(data []byte) (*lb.Document, error) {
	root, fs := read(data)
	doc := &lb.Document{}
	if len(fs) > 0 {
		return nil, fs
	}
	if root.kind == kindNull {
		root = &value{kind: kindMap, line: root.line}
	}
	d := decoder{}
	d.decode(root, doc, "")
	if doc.Applications == nil {
		doc.Applications = make(map[string]*lb.Application)
	}
	for name, app := range doc.Applications {
		if app == nil {
			app = lb.NewApplication(name)
			doc.Applications[name] = app
		}
		if app.Name == "" {
			app.Name = name
		}
	}
	d.sort()
	return doc, d.faults.Err()
}

// ParseApplication reads one application. Its name is the one given unless the
// declaration names itself; paths of faults begin with path.
func ParseApplication(data []byte, name, path string) (*lb.Application, lb.Faults) {
	app := &lb.Application{}
	fs := parse(data, app, path)
	if app.Name == "" {
		app.Name = name
	}
	return app, fs
}

// ParseInstance reads one instance.
func ParseInstance(data []byte, path string) (*lb.Instance, lb.Faults) {
	in := &lb.Instance{}
	fs := parse(data, in, path)
	return in, fs
}

// ParseUserToken reads one user token, in any of its forms.
func ParseUserToken(data []byte, path string) (lb.UserToken, lb.Faults) {
	var t lb.UserToken
	fs := parse(data, &t, path)
	return t, fs
}

// ParseSettings reads the cluster's settings.
func ParseSettings(data []byte, path string) (lb.Settings, lb.Faults) {
	var s lb.Settings
	fs := parse(data, &s, path)
	return s, fs
}

func parse(data []byte, into any, path string) lb.Faults {
	root, fs := read(data)
	if len(fs) > 0 {
		return fs
	}
	d := decoder{}
	d.decode(root, into, path)
	d.sort()
	return d.faults
}

// Lenient decodes JSON that was written by a program, perhaps a newer one:
// unknown keys are passed over. Everything else is as strict as Parse. The
// store reads its values so.
func Lenient(data []byte, into any) error {
	root, fs := readJSON(data)
	if len(fs) > 0 {
		return fs
	}
	d := decoder{lenient: true}
	d.decode(root, into, "")
	return d.faults.Err()
}

// Secrets says whether tokens are written.
type Secrets bool

// MarshalJSON writes the document as indented JSON. With secrets, instances
// carry their token and user tokens their SHA-256, so that applying it to an
// empty cluster restores everything; without, tokens are named by hint and id,
// which apply to a cluster that holds them.
func MarshalJSON(doc *lb.Document, secrets Secrets) ([]byte, error) {
	compact, err := MarshalCompact(doc, secrets)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, compact, "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// MarshalYAML writes the document as YAML; see MarshalJSON.
func MarshalYAML(doc *lb.Document, secrets Secrets) ([]byte, error) {
	compact, err := MarshalCompact(doc, secrets)
	if err != nil {
		return nil, err
	}
	return JSONToYAML(compact)
}

// MarshalCompact is MarshalJSON without white space, for programs.
func MarshalCompact(doc *lb.Document, secrets Secrets) ([]byte, error) {
	if !secrets {
		return json.Marshal(doc)
	}
	apps := make(map[string]json.RawMessage, len(doc.Applications))
	for name, a := range doc.Applications {
		raw, err := MarshalApplication(a, true)
		if err != nil {
			return nil, fmt.Errorf("write application %q: %w", name, err)
		}
		apps[name] = raw
	}
	return json.Marshal(struct {
		Applications map[string]json.RawMessage `json:"applications"`
		Settings     *lb.Settings               `json:"settings,omitempty"`
	}{apps, doc.Settings})
}

// MarshalApplication writes one application as JSON.
func MarshalApplication(a *lb.Application, secrets Secrets) ([]byte, error) {
	type plain lb.Application // without methods, so that embedding shadows cleanly
	if !secrets {
		return json.Marshal(a)
	}
	out := struct {
		plain
		UserTokens []json.RawMessage `json:"user_tokens"`
		Instances  []json.RawMessage `json:"instances"`
	}{plain: plain(*a), UserTokens: []json.RawMessage{}, Instances: []json.RawMessage{}}
	for _, t := range a.UserTokens {
		raw, err := MarshalUserToken(t, true)
		if err != nil {
			return nil, err
		}
		out.UserTokens = append(out.UserTokens, raw)
	}
	for _, in := range a.Instances {
		raw, err := in.MarshalSecret()
		if err != nil {
			return nil, err
		}
		out.Instances = append(out.Instances, raw)
	}
	return json.Marshal(out)
}

// MarshalUserToken writes one user token as JSON; with secrets as its SHA-256,
// which is all that the cluster knows of it.
func MarshalUserToken(t lb.UserToken, secrets Secrets) ([]byte, error) {
	if !secrets {
		return json.Marshal(t)
	}
	return json.Marshal(struct {
		SHA256   string `json:"sha256"`
		Hint     string `json:"token_hint,omitempty"`
		Label    string `json:"label,omitempty"`
		Disabled bool   `json:"disabled,omitempty"`
	}{t.SHA256.String(), t.Hint, t.Label, t.Disabled})
}
