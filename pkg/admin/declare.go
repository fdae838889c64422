package admin

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"

	"difylb/pkg/document"
	"difylb/pkg/lb"
	"difylb/pkg/store"
)

func appPath(name string) string { return "applications." + name }

// view is an application as it is shown.
func view(a *lb.Application) Application {
	v := Application{Application: *a, Revision: a.Revision, UserTokens: []UserToken{}, Instances: []Instance{}}
	for _, t := range a.UserTokens {
		v.UserTokens = append(v.UserTokens, viewToken(t))
	}
	for _, in := range a.Instances {
		v.Instances = append(v.Instances, viewInstance(in))
	}
	return v
}

func viewToken(t lb.UserToken) UserToken {
	v := UserToken{ID: t.ID(), Hint: t.Hint, Label: t.Label, Disabled: t.Disabled}
	if !t.Created.IsZero() {
		v.Created = &t.Created
	}
	return v
}

func viewInstance(in lb.Instance) Instance {
	v := Instance{Instance: in, TokenHint: in.Token.Hint(), Revision: in.Revision}
	v.Token = "" // not even where only this process could see it
	return v
}

func appNames(snap *lb.Snapshot) []string {
	names := make([]string, len(snap.Applications))
	for i, a := range snap.Applications {
		names[i] = a.Name
	}
	return names
}

func instanceNames(a *lb.Application) []string {
	names := make([]string, len(a.Instances))
	for i := range a.Instances {
		names[i] = a.Instances[i].Name
	}
	return names
}

// declaredApp turns a body into the application that is to be stored, or
// into every fault that it has.
func declaredApp(d *store.Draft, data []byte, name string) (*lb.Application, error) {
	app, fs := document.ParseApplication(data, name, appPath(name))
	if unreadable(fs) {
		return nil, declarationFaults(fs)
	}
	if app.Name != name {
		fs.Add(appPath(name)+".name", "%q is not the application %q that is written to; an application is not renamed", app.Name, name)
		app.Name = name
	}
	return app, settle(d, app, fs)
}

// settle resolves what the application leaves to the stored one and adds what
// is wrong with the result to the faults that reading it gave.
func settle(d *store.Draft, app *lb.Application, read lb.Faults) error {
	path := appPath(app.Name)
	more := app.Resolve(d.Application(app.Name), path)
	more = append(more, app.Validate(path)...)
	for i, t := range app.UserTokens {
		if owner, taken := d.TokenOwner(t.SHA256); taken && owner != app.Name {
			more.Add(fmt.Sprintf("%s.user_tokens[%d]", path, i), "this token belongs to application %q already; a token belongs to one application only", owner)
		}
	}
	return join(read, more).Err()
}

// join adds faults of meaning to those of reading, but those that only follow
// from a field that could not be read.
func join(read, more lb.Faults) lb.Faults {
	seen := make(map[string]bool, len(read))
	for _, f := range read {
		seen[f.Path] = true
	}
	for _, f := range more {
		if !covered(f.Path, seen) {
			read = append(read, f)
		}
	}
	return read
}

// covered reports whether the path, or what it lies below, is among the seen.
func covered(path string, seen map[string]bool) bool {
	for path != "" {
		if seen[path] {
			return true
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return false
}

// mergePatch is the media type of RFC 7396.
const mergePatch = "application/merge-patch+json"

var patchTypes = []string{mergePatch, "application/json", "application/x-www-form-urlencoded"}

// patched applies an RFC 7396 merge patch to an object.
func patched(object, patch []byte) ([]byte, error) {
	var base, change any
	if err := json.Unmarshal(object, &base); err != nil {
		return nil, fmt.Errorf("read stored object: %w", err)
	}
	if err := json.Unmarshal(patch, &change); err != nil {
		return nil, fail(400, "malformed", "not JSON: %s", err)
	}
	if _, ok := change.(map[string]any); !ok {
		return nil, fail(400, "malformed", "a merge patch of an object is an object")
	}
	return json.Marshal(merge(base, change))
}

// merge is the MergePatch function of RFC 7396 section 2.
func merge(target, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	t, ok := target.(map[string]any)
	if !ok {
		t = make(map[string]any)
	}
	for k, v := range p {
		if v == nil {
			delete(t, k)
		} else {
			t[k] = merge(t[k], v)
		}
	}
	return t
}

// changesOf translates the store's account of a change. In full it holds the
// objects before and after.
func changesOf(in []store.Change, full bool) []Change {
	out := make([]Change, len(in))
	for i, c := range in {
		out[i] = Change{Kind: c.Kind, App: c.App, Name: c.Name, Action: c.Action}
		if full {
			out[i].Before, out[i].After = c.Before, c.After
		}
	}
	sort.SliceStable(out, func(i, j int) bool {
		a, b := out[i], out[j]
		if a.App != b.App {
			return a.App < b.App
		}
		if a.Kind != b.Kind {
			return a.Kind < b.Kind
		}
		return a.Name < b.Name
	})
	return out
}
