package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"difylb/pkg/lb"
)

// Draft is one change in the making: the base it starts from, and what the
// edit has put on top. It is used by one goroutine, inside one call of edit.
type Draft struct {
	s        *Store
	base     *lb.Snapshot
	apps     map[string]*lb.Application // nil: deleted
	tokens   map[lb.TokenHash]string    // owner where it differs from the base; "": nobody
	settings *lb.Settings
	planned  *plan // what plan returned last; nil: the draft has changed since
}

func newDraft(s *Store, base *lb.Snapshot) *Draft {
	return &Draft{s: s, base: base, apps: make(map[string]*lb.Application), tokens: make(map[lb.TokenHash]string)}
}

// Base returns the Snapshot that the change starts from, without the edits.
func (d *Draft) Base() *lb.Snapshot { return d.base }

// Application returns the named application as the draft has it, or nil. It
// must not be changed: Clone it, change the clone, Put that.
func (d *Draft) Application(name string) *lb.Application {
	if app, ok := d.apps[name]; ok {
		return app
	}
	return d.base.Application(name)
}

// Put sets the whole application, its tokens and instances in their order
// included. The draft keeps a copy.
func (d *Draft) Put(app *lb.Application) {
	d.planned = nil
	d.disown(app.Name)
	d.apps[app.Name] = app.Clone()
	for i := range app.UserTokens {
		d.tokens[app.UserTokens[i].SHA256] = app.Name
	}
}

// Delete removes the application with all that belongs to it. A name that is
// not there is no error.
func (d *Draft) Delete(name string) {
	d.planned = nil
	d.disown(name)
	d.apps[name] = nil
}

func (d *Draft) disown(name string) {
	old := d.Application(name)
	if old == nil {
		return
	}
	for i := range old.UserTokens {
		h := old.UserTokens[i].SHA256
		if owner, ok := d.tokens[h]; !ok || owner == name {
			d.tokens[h] = ""
		}
	}
}

// Settings returns the settings as the draft has them.
func (d *Draft) Settings() lb.Settings {
	if d.settings != nil {
		return *d.settings
	}
	return d.base.Settings
}

// SetSettings sets the settings.
func (d *Draft) SetSettings(s lb.Settings) { d.planned, d.settings = nil, &s }

// TokenOwner returns the application to which the token belongs in the draft,
// in constant time.
func (d *Draft) TokenOwner(h lb.TokenHash) (app string, ok bool) {
	if app, ok = d.tokens[h]; ok {
		return app, app != ""
	}
	d.s.st.mu.RLock()
	defer d.s.st.mu.RUnlock()
	app, ok = d.s.st.owners[h]
	return app, ok
}

// Changes returns what the draft would change, in the order of Update's Result.
// It is worked out anew with each call: of a large change it is several times as
// much memory as what changes.
func (d *Draft) Changes() []Change {
	p, err := d.plan()
	if err != nil {
		return nil
	}
	return p.changes()
}

// Change is one object that a change touched, for people. No secrets: a token
// is its hint, or its id.
type Change struct {
	Kind   string          `json:"kind"` // application, instance, token, settings
	App    string          `json:"application,omitempty"`
	Name   string          `json:"name,omitempty"` // of an instance; id of a token
	Action string          `json:"action"`         // created, changed, deleted
	Before json.RawMessage `json:"before,omitempty"`
	After  json.RawMessage `json:"after,omitempty"`
}

// record is one key before and after a change, as history and staging keep it.
type record struct {
	Key        string          `json:"key"`
	Before     json.RawMessage `json:"before,omitempty"`
	BeforeText string          `json:"before_text,omitempty"` // a Before that is not JSON
	After      json.RawMessage `json:"after,omitempty"`       // absent: deleted
}

func (r *record) before() []byte {
	if r.Before == nil && r.BeforeText != "" {
		return []byte(r.BeforeText)
	}
	return r.Before
}

// quiet records carry no change for people or history: a touched application,
// a verdict that goes with its instance.
func (r *record) quiet() bool {
	return !declares(r.Key) && !strings.HasPrefix(r.Key, dirAccess) || bytes.Equal(withoutRevision(r.Before), withoutRevision(r.After))
}

// plan is a draft turned into keys.
type plan struct {
	records []record
	mods    map[string]int64 // mod revision that each touched key had
}

var errStale = errors.New("the mirror has moved past the draft's base")

// plan works out the records, once: an edit that looks at what it changes, as
// those of people do, need not pay for it twice. errStale: begin again.
func (d *Draft) plan() (*plan, error) {
	if d.planned != nil {
		return d.planned, nil
	}
	p, err := d.workOut()
	if err == nil {
		d.planned = p
	}
	return p, err
}

func (d *Draft) workOut() (*plan, error) {
	if err := d.validate(); err != nil {
		return nil, err
	}
	st := d.s.st
	st.mu.RLock()
	defer st.mu.RUnlock()
	if st.configRev != d.base.ConfigRevision || st.epoch != d.base.Epoch {
		return nil, errStale
	}
	if err := d.checkTokensLocked(); err != nil {
		return nil, err
	}
	b := &planner{st: st, now: d.s.now().UTC().Truncate(time.Millisecond), records: make(map[string]record)}
	names := make([]string, 0, len(d.apps))
	for name := range d.apps {
		names = append(names, name)
	}
	slices.Sort(names)
	// First what goes, then what comes: a token that moves from one
	// application to another is one key.
	for _, name := range names {
		b.removals(name, d.apps[name])
	}
	for _, name := range names {
		if app := d.apps[name]; app != nil {
			b.put(app)
		}
	}
	if d.settings != nil {
		b.putSettings(d.settings)
	}
	return b.plan(), nil
}

// validate is the last line of defence: a value that readers would leave out
// is never written.
func (d *Draft) validate() error {
	var fs lb.Faults
	for name, app := range d.apps {
		if app == nil {
			continue
		}
		path := "applications." + name
		fs = append(fs, app.Validate(path)...)
		for i := range app.UserTokens {
			if app.UserTokens[i].Ref != "" {
				fs.Add(fmt.Sprintf("%s.user_tokens[%d].id", path, i), "%q was not resolved to a stored token", app.UserTokens[i].Ref)
			}
		}
	}
	if d.settings != nil {
		fs = append(fs, d.settings.Validate("settings")...)
	}
	slices.SortStableFunc(fs, func(a, b lb.Fault) int { return strings.Compare(a.Path, b.Path) })
	return fs.Err()
}

func (d *Draft) checkTokensLocked() error {
	var fs lb.Faults
	claimed := make(map[lb.TokenHash]string)
	for name, app := range d.apps {
		if app == nil {
			continue
		}
		for i := range app.UserTokens {
			h := app.UserTokens[i].SHA256
			other, taken := claimed[h]
			if !taken {
				other, taken = d.s.st.owners[h]
				if _, edited := d.apps[other]; edited {
					taken = false // its claim, if it keeps one, is in claimed
				}
			}
			if taken && other != name {
				fs.Add(fmt.Sprintf("applications.%s.user_tokens[%d]", name, i), "this token belongs to application %q already; a token belongs to one application only", other)
			}
			claimed[h] = name
		}
	}
	return fs.Err()
}

// planner collects records under the mirror's read lock.
type planner struct {
	st      *state
	now     time.Time
	records map[string]record
	touched []string // applications whose tokens or instances change
}

// set records that the key becomes after; nil deletes it.
func (b *planner) set(key string, after []byte) {
	r := record{Key: key, After: after}
	if old := b.st.objects[key]; old != nil {
		if json.Valid(old.raw) {
			r.Before = old.raw
		} else {
			r.BeforeText = string(old.raw)
		}
	}
	b.records[key] = r
}

// removals records what of the application goes when it becomes next (nil: all).
func (b *planner) removals(name string, next *lb.Application) {
	p := b.st.apps[name]
	if p == nil {
		return
	}
	if next == nil && p.own != nil {
		b.set(appKey(name), nil)
	}
	kept := make(map[string]struct{})
	keptTokens := make(map[lb.TokenHash]struct{})
	if next != nil {
		for i := range next.Instances {
			kept[next.Instances[i].Name] = struct{}{}
		}
		for i := range next.UserTokens {
			keptTokens[next.UserTokens[i].SHA256] = struct{}{}
		}
	}
	for in, obj := range p.instances {
		// One that this version can't read was never shown to whoever made
		// the draft. It goes only together with its application.
		if _, keep := kept[in]; !keep && (next == nil || obj.good != nil) {
			b.set(instanceKey(name, in), nil)
			b.records[healthKey(name, in)] = record{Key: healthKey(name, in)}
			b.touched = append(b.touched, name)
		}
	}
	for h := range p.tokens {
		if _, keep := keptTokens[h]; !keep {
			b.set(tokenKey(h), nil)
			b.touched = append(b.touched, name)
		}
	}
}

// put records what differs from what is stored. A key that can't be read is
// written anew even where the application equals the key's last good value:
// whoever declares it has said what belongs there.
func (b *planner) put(app *lb.Application) {
	p := b.st.apps[app.Name]
	if p == nil {
		p = &parts{}
	}
	changed := slices.Contains(b.touched, app.Name)
	next := -1
	for i := range app.Instances {
		in := &app.Instances[i]
		old := p.instances[in.Name]
		next = position(old, next)
		enc := encodeInstance(in, next)
		if old == nil || old.good == nil || old.fault != "" || !bytes.Equal(enc, encodeInstance(old.good.instance, old.good.position)) {
			b.set(instanceKey(app.Name, in.Name), b.keep(instanceWire{}, old, enc))
			changed = true
		}
	}
	next = -1
	for i := range app.UserTokens {
		t := app.UserTokens[i]
		old := b.st.objects[tokenKey(t.SHA256)]
		if old != nil && old.good != nil && old.good.owner == app.Name {
			next = position(old, next)
		} else {
			next++
		}
		if old != nil && old.good != nil && t.Created.IsZero() {
			t.Created = old.good.token.Created
		}
		if t.Created.IsZero() {
			t.Created = b.now
		}
		enc := encodeToken(app.Name, &t, next)
		if old == nil || old.good == nil || old.fault != "" || !bytes.Equal(enc, encodeToken(old.good.owner, old.good.token, old.good.position)) {
			b.set(tokenKey(t.SHA256), b.keep(tokenWire{}, old, enc))
			changed = true
		}
	}
	enc := encodeApplication(app)
	if changed || p.own == nil || p.own.good == nil || p.own.fault != "" || !bytes.Equal(enc, encodeApplication(p.own.good.app)) {
		b.set(appKey(app.Name), b.keep(applicationWire{}, p.own, enc))
	}
}

// position keeps an object's place where the order allows it, so that an
// insertion or removal rewrites no neighbours it need not.
func position(old *object, last int) int {
	if old != nil && old.good != nil && old.good.position > last {
		return old.good.position
	}
	return last + 1
}

func (b *planner) putSettings(s *lb.Settings) {
	old := b.st.objects[keySettings]
	enc := encodeSettings(s)
	cur := b.st.settings
	if (old == nil && s.RateLimit.PerIP == nil) || (old != nil && old.good != nil && old.fault == "" && bytes.Equal(enc, encodeSettings(&cur))) {
		return
	}
	b.set(keySettings, b.keep(settingsWire{}, old, enc))
}

func (b *planner) keep(wire any, old *object, enc []byte) []byte {
	if old == nil {
		return enc
	}
	return keepUnknown(wire, old.raw, enc)
}

func (b *planner) plan() *plan {
	p := &plan{mods: make(map[string]int64, len(b.records))}
	for key, r := range b.records {
		p.records = append(p.records, r)
		if declares(key) {
			if old := b.st.objects[key]; old != nil {
				p.mods[key] = old.mod
			} else {
				p.mods[key] = 0
			}
		}
	}
	slices.SortFunc(p.records, func(a, b record) int { return strings.Compare(a.Key, b.Key) })
	return p
}

// changes tells people what the plan does.
func (p *plan) changes() []Change { return describeAll(p.records) }

func describeAll(records []record) []Change {
	var cs []Change
	for i := range records {
		if !records[i].quiet() {
			cs = append(cs, describe(&records[i]))
		}
	}
	return cs
}

func describe(r *record) Change {
	c := Change{Action: "changed"}
	switch {
	case r.before() == nil:
		c.Action = "created"
	case r.After == nil:
		c.Action = "deleted"
	}
	switch {
	case r.Key == keySettings:
		c.Kind = "settings"
	case strings.HasPrefix(r.Key, dirApps):
		c.Kind, c.App = "application", strings.TrimPrefix(r.Key, dirApps)
	case strings.HasPrefix(r.Key, dirInstances):
		c.Kind = "instance"
		c.App, c.Name, _ = strings.Cut(strings.TrimPrefix(r.Key, dirInstances), "/")
	case strings.HasPrefix(r.Key, dirAccess):
		c.Kind = "access"
		h, _ := lb.ParseTokenHash(strings.TrimPrefix(r.Key, dirAccess))
		c.Name = h.ID()
		c.Before, c.After = redactedAccess(h, r.before()), redactedAccess(h, r.After)
		return c
	case strings.HasPrefix(r.Key, dirTokens):
		c.Kind = "token"
		if h, err := lb.ParseTokenHash(strings.TrimPrefix(r.Key, dirTokens)); err == nil {
			c.Name = h.ID()
		}
	}
	c.Before = c.redacted(r.Key, r.before())
	c.After = c.redacted(r.Key, r.After)
	return c
}

// redactedAccess is a stored access token as people may see it. Its hash, which
// is its key, is not part of it.
func redactedAccess(h lb.TokenHash, raw []byte) json.RawMessage {
	if raw == nil {
		return nil
	}
	t, err := decodeAccess(h, raw)
	if err != nil {
		return nil
	}
	return mustMarshal(map[string]any{"id": h.ID(), "name": t.Name, "role": t.Role, "token_hint": t.Hint, "created": t.Created})
}

// redacted is a stored value as people may see it, nil when it can't be read.
func (c *Change) redacted(key string, raw []byte) json.RawMessage {
	if raw == nil {
		return nil
	}
	dec, err := decode(key, raw)
	if err != nil {
		return nil
	}
	switch {
	case dec.app != nil:
		return encodeApplication(dec.app)
	case dec.instance != nil:
		return mustMarshal(dec.instance)
	case dec.token != nil:
		c.App = dec.owner
		return mustMarshal(dec.token)
	}
	return encodeSettings(dec.settings)
}

// withoutRevision drops what withRevision added.
func withoutRevision(raw []byte) []byte {
	if i := bytes.LastIndex(raw, []byte(`,"revision":`)); i >= 0 && bytes.IndexByte(raw[i:], '}') == len(raw)-i-1 {
		return append(slices.Clone(raw[:i]), '}')
	}
	return raw
}
