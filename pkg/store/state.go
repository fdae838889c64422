package store

import (
	"bytes"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"sort"
	"strings"
	"sync"

	"difylb/pkg/lb"
)

// event is one key as it became. Key is relative to the prefix.
type event struct {
	key     string
	raw     []byte
	deleted bool
	stray   bool // deleted, and no change of ours did it
	create  int64
	mod     int64
}

// object is one mirrored key.
type object struct {
	raw  []byte
	mod  int64 // mod revision of the key; a staged change that is not yet in its keys: of the change
	rev  int64 // revision at which the value took effect; rev <= mod
	good *decoded
	// fault says why raw can't be read; good is then the last value that could, or nil.
	fault string
}

// parts is what the keys of one application hold, whether or not it has one of its own.
type parts struct {
	own       *object
	instances map[string]*object
	tokens    map[lb.TokenHash]*object
}

func (p *parts) empty() bool { return p.own == nil && len(p.instances) == 0 && len(p.tokens) == 0 }

// state is the mirror of the store: every mirrored key, and what follows from
// them. The mirror's loop alone writes it; drafts read it. It does no I/O.
type state struct {
	mu sync.RWMutex // guards everything below

	objects  map[string]*object
	apps     map[string]*parts
	owners   map[lb.TokenHash]string // application of each readable token
	settings lb.Settings
	health   map[string]map[string]lb.Verdict // immutable, replaced by build
	nodes    map[string]lb.Node
	access   map[lb.TokenHash]AccessToken
	election map[string]candidate

	epoch      string
	clusterKey lb.Secret
	config     configWire
	configMod  int64        // mod revision of meta/config; 0 when there is none
	configRev  int64        // highest revision of a declaration, configMod <= configRev
	removedRev int64        // see lb.Snapshot.RemovedRevision
	strayRev   int64        // see lb.Snapshot.StrayRevision
	pending    *pendingWire // nil when no staged change waits to be rolled forward
	pendingMod int64

	faulty  map[string]struct{} // keys whose object has a fault
	orphans map[string]struct{} // applications that have parts but no key of their own

	// What build has to look at.
	dirtyApps   map[string]struct{}
	dirtyHealth map[string]map[string]*lb.Verdict // nil verdict: gone
	dirtyNodes  bool
	dirtyFaults bool
	dirtyMeta   bool

	most int // len(objects) at its largest since the maps were made
}

type candidate struct {
	node   string
	create int64
}

// Maps that held more than trimFrom entries are made anew once no more than one
// in trimTo is left: a map never gives its room back.
const (
	trimFrom = 4096
	trimTo   = 4
)

func newState() *state {
	return &state{
		objects:     make(map[string]*object),
		apps:        make(map[string]*parts),
		owners:      make(map[lb.TokenHash]string),
		health:      make(map[string]map[string]lb.Verdict),
		nodes:       make(map[string]lb.Node),
		access:      make(map[lb.TokenHash]AccessToken),
		election:    make(map[string]candidate),
		faulty:      make(map[string]struct{}),
		orphans:     make(map[string]struct{}),
		dirtyApps:   make(map[string]struct{}),
		dirtyHealth: make(map[string]map[string]*lb.Verdict),
		dirtyMeta:   true,
	}
}

// applyLocked takes one event in. Events come in the order of their revisions.
func (st *state) applyLocked(ev event) {
	if !mirrored(ev.key) {
		return
	}
	old := st.objects[ev.key]
	if ev.deleted {
		if old == nil {
			return
		}
		delete(st.objects, ev.key)
		if declares(ev.key) {
			st.removedRev = max(st.removedRev, ev.mod)
			if ev.stray {
				st.strayRev = max(st.strayRev, ev.mod)
			}
		}
		st.clearFaultLocked(ev.key)
		st.removeLocked(ev.key, old)
		return
	}
	if declares(ev.key) {
		st.declareLocked(ev, old)
		return
	}
	st.objects[ev.key] = &object{raw: ev.raw, mod: ev.mod, rev: ev.mod}
	if err := st.noteLocked(ev); err != nil {
		st.faultLocked(ev.key, st.objects[ev.key], err)
	} else {
		st.clearFaultLocked(ev.key)
	}
}

// declareLocked takes in a key of the configuration.
func (st *state) declareLocked(ev event, old *object) {
	obj := &object{raw: ev.raw, mod: ev.mod, rev: ev.mod}
	if old != nil && old.fault == "" && bytes.Equal(old.raw, ev.raw) {
		obj.good = old.good
	} else if dec, err := decode(ev.key, ev.raw); err != nil {
		st.faultLocked(ev.key, obj, err)
		if old != nil && old.good != nil {
			obj.good, obj.rev = old.good, old.rev
		}
	} else {
		obj.good = &dec
		if old != nil && old.good != nil && reflect.DeepEqual(*old.good, dec) {
			obj.good = old.good
		}
	}
	if obj.fault == "" {
		st.clearFaultLocked(ev.key)
		if r := obj.good.revision; r > 0 && r < obj.mod {
			obj.rev = r
		}
		st.configRev = max(st.configRev, obj.rev)
	}
	st.objects[ev.key] = obj
	same := old != nil && old.good == obj.good && old.rev == obj.rev
	if old != nil && old.good != nil && (obj.good == nil || old.good.owner != obj.good.owner) {
		st.removeLocked(ev.key, old) // a token that changed its application
	}
	st.placeLocked(ev.key, obj, !same)
}

// placeLocked puts an object where its application finds it.
func (st *state) placeLocked(key string, obj *object, dirty bool) {
	var app string
	switch {
	case key == keySettings:
		if obj.good != nil && dirty {
			st.settings, st.dirtyMeta = *obj.good.settings, true
		}
		return
	case strings.HasPrefix(key, dirApps):
		app = strings.TrimPrefix(key, dirApps)
		st.partsLocked(app).own = obj
	case strings.HasPrefix(key, dirInstances):
		var name string
		app, name, _ = strings.Cut(strings.TrimPrefix(key, dirInstances), "/")
		st.partsLocked(app).instances[name] = obj
	case strings.HasPrefix(key, dirTokens):
		if obj.good == nil {
			return // nobody knows whose it is; it stays in objects
		}
		app = obj.good.owner
		st.partsLocked(app).tokens[obj.good.token.SHA256] = obj
		st.owners[obj.good.token.SHA256] = app
	}
	if dirty {
		st.dirtyApps[app] = struct{}{}
	}
}

func (st *state) partsLocked(app string) *parts {
	p := st.apps[app]
	if p == nil {
		p = &parts{instances: make(map[string]*object), tokens: make(map[lb.TokenHash]*object)}
		st.apps[app] = p
	}
	return p
}

// removeLocked takes the key's object out of where placeLocked or noteLocked put it.
func (st *state) removeLocked(key string, old *object) {
	switch {
	case key == keySettings:
		st.settings, st.dirtyMeta = lb.Settings{}, true
	case strings.HasPrefix(key, dirApps):
		st.takeOutLocked(strings.TrimPrefix(key, dirApps), func(p *parts) { p.own = nil })
	case strings.HasPrefix(key, dirInstances):
		app, name, _ := strings.Cut(strings.TrimPrefix(key, dirInstances), "/")
		st.takeOutLocked(app, func(p *parts) { delete(p.instances, name) })
	case strings.HasPrefix(key, dirTokens):
		if old.good != nil {
			h := old.good.token.SHA256
			st.takeOutLocked(old.good.owner, func(p *parts) { delete(p.tokens, h) })
			delete(st.owners, h)
		}
	case strings.HasPrefix(key, dirHealth):
		if app, name, ok := strings.Cut(strings.TrimPrefix(key, dirHealth), "/"); ok {
			st.setHealthLocked(app, name, nil)
		}
	case strings.HasPrefix(key, dirNodes):
		delete(st.nodes, key)
		st.dirtyNodes = true
	case strings.HasPrefix(key, dirAccess):
		if h, err := lb.ParseTokenHash(strings.TrimPrefix(key, dirAccess)); err == nil {
			delete(st.access, h)
		}
	case strings.HasPrefix(key, dirElection):
		delete(st.election, key)
	case key == keyEpoch:
		st.epoch, st.dirtyMeta = "", true
	case key == keyCluster:
		st.clusterKey, st.dirtyMeta = "", true
	case key == keyConfig:
		st.config, st.configMod, st.dirtyMeta = configWire{}, 0, true
	case key == keyPending:
		st.pending, st.pendingMod = nil, 0
	}
}

func (st *state) takeOutLocked(app string, out func(*parts)) {
	p := st.apps[app]
	if p == nil {
		return
	}
	out(p)
	if p.empty() {
		delete(st.apps, app)
	}
	st.dirtyApps[app] = struct{}{}
}

func (st *state) setHealthLocked(app, name string, v *lb.Verdict) {
	m := st.dirtyHealth[app]
	if m == nil {
		m = make(map[string]*lb.Verdict)
		st.dirtyHealth[app] = m
	}
	m[name] = v
}

// trimLocked gives back the room of maps that have become much smaller.
func (st *state) trimLocked() {
	st.most = max(st.most, len(st.objects))
	if st.most <= trimFrom || len(st.objects) > st.most/trimTo {
		return
	}
	st.most = len(st.objects)
	st.objects, st.apps, st.owners = remade(st.objects), remade(st.apps), remade(st.owners)
	st.faulty, st.orphans = remade(st.faulty), remade(st.orphans)
	st.dirtyApps, st.dirtyHealth = remade(st.dirtyApps), remade(st.dirtyHealth)
}

// remade is maps.Clone with the room that the entries need, not that of the original.
func remade[K comparable, V any](m map[K]V) map[K]V {
	next := make(map[K]V, len(m))
	for k, v := range m {
		next[k] = v
	}
	return next
}

// noteLocked reads a key that declares nothing. After an error what was known
// before stays.
func (st *state) noteLocked(ev event) error {
	switch {
	case strings.HasPrefix(ev.key, dirHealth):
		app, name, ok := strings.Cut(strings.TrimPrefix(ev.key, dirHealth), "/")
		if !ok {
			return fmt.Errorf("the key is not health/<application>/<instance>")
		}
		v, err := decodeVerdict(ev.raw)
		if err != nil {
			return err
		}
		st.setHealthLocked(app, name, &v)
	case strings.HasPrefix(ev.key, dirNodes):
		n, err := decodeNode(ev.key, ev.raw)
		if err != nil {
			return err
		}
		if st.nodes[ev.key] != n {
			st.nodes[ev.key] = n
			st.dirtyNodes = true
		}
	case strings.HasPrefix(ev.key, dirAccess):
		h, err := lb.ParseTokenHash(strings.TrimPrefix(ev.key, dirAccess))
		if err != nil {
			return err
		}
		t, err := decodeAccess(h, ev.raw)
		if err != nil {
			return err
		}
		st.access[h] = t
	case strings.HasPrefix(ev.key, dirElection):
		st.election[ev.key] = candidate{node: string(ev.raw), create: ev.create}
	case ev.key == keyEpoch:
		var w epochWire
		if err := unmarshal(ev.raw, &w); err != nil {
			return err
		}
		st.epoch, st.dirtyMeta = w.ID, true
	case ev.key == keyCluster:
		var w clusterKeyWire
		if err := unmarshal(ev.raw, &w); err != nil {
			return err
		}
		st.clusterKey, st.dirtyMeta = lb.Secret(w.Key), true
	case ev.key == keyConfig:
		// Its revision counts even where its value is damaged: writes are
		// conditional on the revision.
		st.configMod, st.dirtyMeta = ev.mod, true
		st.configRev = max(st.configRev, ev.mod)
		var w configWire
		if err := unmarshal(ev.raw, &w); err != nil {
			return err
		}
		st.config = w
	case ev.key == keyPending:
		var w pendingWire
		if err := unmarshal(ev.raw, &w); err != nil {
			return err
		}
		st.pending, st.pendingMod = &w, ev.mod
	}
	return nil
}

func (st *state) faultLocked(key string, obj *object, err error) {
	obj.fault = err.Error()
	st.faulty[key] = struct{}{}
	st.dirtyFaults = true
}

func (st *state) clearFaultLocked(key string) {
	if _, was := st.faulty[key]; was {
		delete(st.faulty, key)
		st.dirtyFaults = true
	}
}

func decodeVerdict(raw []byte) (lb.Verdict, error) {
	var v lb.Verdict
	if err := unmarshal(raw, &v); err != nil {
		return v, err
	}
	switch v.Health {
	case lb.HealthUnknown, lb.Healthy, lb.Unhealthy, lb.TokenRejected:
		return v, nil
	}
	return v, fmt.Errorf("health: %q is not one of unknown, healthy, unhealthy, token_rejected", string(v.Health))
}

func decodeNode(key string, raw []byte) (lb.Node, error) {
	var n lb.Node
	if err := unmarshal(raw, &n); err != nil {
		return n, err
	}
	role, id, _ := strings.Cut(strings.TrimPrefix(key, dirNodes), "/")
	if id, err := url.PathUnescape(id); err != nil || n.ID != id || string(n.Role) != role {
		return n, fmt.Errorf("the value is that of %s %q, unlike its key", n.Role, n.ID)
	}
	// As JSON gives them back, two equal times may differ in their location.
	n.Started = n.Started.UTC()
	return n, nil
}

// buildLocked returns the Snapshot that follows prev (nil at first), or prev
// itself when nothing that a Snapshot holds has changed. What did not change
// is shared with prev.
func (st *state) buildLocked(prev *lb.Snapshot, prefix string, revision int64) *lb.Snapshot {
	if prev != nil && !st.dirtyMeta && !st.dirtyNodes && !st.dirtyFaults && len(st.dirtyApps) == 0 && len(st.dirtyHealth) == 0 {
		return prev
	}
	next := &lb.Snapshot{Epoch: st.epoch, ClusterKey: st.clusterKey, Settings: st.settings}
	next.Revision, next.ConfigRevision, next.ChangeRevision = revision, st.configRev, st.configMod
	next.RemovedRevision, next.StrayRevision = st.removedRev, st.strayRev
	if prev != nil {
		next.Applications, next.Nodes, next.Faults = prev.Applications, prev.Nodes, prev.Faults
	}
	if len(st.dirtyApps) > 0 {
		st.findOrphansLocked()
		next.Applications = st.applicationsLocked(next.Applications)
	}
	if len(st.dirtyHealth) > 0 {
		st.health = st.healthLocked()
	}
	next.Health = st.health
	if st.dirtyNodes || prev == nil {
		next.Nodes = st.nodesLocked()
	}
	if st.dirtyFaults || prev == nil {
		next.Faults = st.faultsLocked(prefix)
	}
	clear(st.dirtyApps)
	clear(st.dirtyHealth)
	st.dirtyNodes, st.dirtyFaults, st.dirtyMeta = false, false, false
	return next
}

func (st *state) findOrphansLocked() {
	for name := range st.dirtyApps {
		p := st.apps[name]
		orphan := p != nil && p.own == nil
		if _, was := st.orphans[name]; was == orphan {
			continue
		}
		if orphan {
			st.orphans[name] = struct{}{}
		} else {
			delete(st.orphans, name)
		}
		st.dirtyFaults = true
	}
}

// applicationsLocked returns the sorted applications with the dirty ones built anew.
func (st *state) applicationsLocked(prev []*lb.Application) []*lb.Application {
	byName := func(a *lb.Application, name string) int { return strings.Compare(a.Name, name) }
	if len(st.dirtyApps) <= 64 {
		next := slices.Clone(prev)
		for name := range st.dirtyApps {
			app := st.apps[name].build()
			i, found := slices.BinarySearchFunc(next, name, byName)
			switch {
			case found && app != nil:
				next[i] = app
			case found:
				next = slices.Delete(next, i, i+1)
			case app != nil:
				next = slices.Insert(next, i, app)
			}
		}
		return next
	}
	next := make([]*lb.Application, 0, len(st.apps))
	for _, app := range prev {
		if _, dirty := st.dirtyApps[app.Name]; !dirty {
			next = append(next, app)
		}
	}
	for name := range st.dirtyApps {
		if app := st.apps[name].build(); app != nil {
			next = append(next, app)
		}
	}
	slices.SortFunc(next, func(a, b *lb.Application) int { return strings.Compare(a.Name, b.Name) })
	return next
}

// build assembles the application, nil when it has no readable key of its own.
func (p *parts) build() *lb.Application {
	if p == nil || p.own == nil || p.own.good == nil {
		return nil
	}
	app := *p.own.good.app
	app.Revision = p.own.rev
	instances, tokens := p.sortedInstances(), p.sortedTokens()
	app.Instances = make([]lb.Instance, len(instances))
	for i, obj := range instances {
		app.Instances[i] = *obj.good.instance
		app.Instances[i].Revision = obj.rev
		// Our own writes touch the application's key as well; a hand-made one may not.
		app.Revision = max(app.Revision, obj.rev)
	}
	app.UserTokens = make([]lb.UserToken, len(tokens))
	for i, obj := range tokens {
		app.UserTokens[i] = *obj.good.token
		app.Revision = max(app.Revision, obj.rev)
	}
	return &app
}

func (p *parts) sortedInstances() []*object {
	return sortedGood(p.instances, func(a, b *object) int {
		return strings.Compare(a.good.instance.Name, b.good.instance.Name)
	})
}

func (p *parts) sortedTokens() []*object {
	return sortedGood(p.tokens, func(a, b *object) int {
		return bytes.Compare(a.good.token.SHA256[:], b.good.token.SHA256[:])
	})
}

// sortedGood returns the readable objects by position, then as tie says.
func sortedGood[K comparable](m map[K]*object, tie func(a, b *object) int) []*object {
	objs := make([]*object, 0, len(m))
	for _, o := range m {
		if o.good != nil {
			objs = append(objs, o)
		}
	}
	slices.SortFunc(objs, func(a, b *object) int {
		if a.good.position != b.good.position {
			return a.good.position - b.good.position
		}
		return tie(a, b)
	})
	return objs
}

func (st *state) healthLocked() map[string]map[string]lb.Verdict {
	next := make(map[string]map[string]lb.Verdict, len(st.health)+1)
	for app, m := range st.health {
		next[app] = m
	}
	for app, changed := range st.dirtyHealth {
		m := make(map[string]lb.Verdict, len(next[app])+1)
		for name, v := range next[app] {
			m[name] = v
		}
		for name, v := range changed {
			if v == nil {
				delete(m, name)
			} else {
				m[name] = *v
			}
		}
		if len(m) == 0 {
			delete(next, app)
		} else {
			next[app] = m
		}
	}
	return next
}

func (st *state) nodesLocked() []lb.Node {
	nodes := make([]lb.Node, 0, len(st.nodes))
	for _, n := range st.nodes {
		nodes = append(nodes, n)
	}
	sort.Slice(nodes, func(i, j int) bool {
		if nodes[i].Role != nodes[j].Role {
			return nodes[i].Role < nodes[j].Role
		}
		return nodes[i].ID < nodes[j].ID
	})
	return nodes
}

func (st *state) faultsLocked(prefix string) lb.Faults {
	var fs lb.Faults
	for key := range st.faulty {
		obj := st.objects[key]
		kept := "its last good value, if there was one, stays in force"
		switch {
		case obj.good != nil:
			kept = "its last good value stays in force"
		case declares(key):
			kept = "left out"
		}
		fs.Add(prefix+shownKey(key), "%s; %s", obj.fault, kept)
	}
	for name := range st.orphans {
		fs.Add(prefix+appKey(name), "there is no such key, but instances or tokens of application %q; they are left out", name)
	}
	sort.Slice(fs, func(i, j int) bool { return fs[i].Path < fs[j].Path })
	return fs
}

// leaderLocked returns the node that leads: the oldest candidate.
func (st *state) leaderLocked() string {
	var lead candidate
	for _, c := range st.election {
		if lead.create == 0 || c.create < lead.create {
			lead = c
		}
	}
	return lead.node
}

// diffLocked returns the events that turn the mirror into what was listed at the
// revision. What is gone is gone astray unless a change was made meanwhile.
func (st *state) diffLocked(listed map[string]event, rev int64) []event {
	var evs []event
	stray := listed[keyConfig].mod <= st.configMod
	for key := range st.objects {
		if _, ok := listed[key]; !ok {
			evs = append(evs, event{key: key, deleted: true, stray: stray, mod: rev})
		}
	}
	for key, ev := range listed {
		if old := st.objects[key]; old == nil || old.mod != ev.mod || !bytes.Equal(old.raw, ev.raw) {
			evs = append(evs, ev)
		}
	}
	return evs
}
