package proxy

import (
	"sync/atomic"
	"time"

	"difylb/pkg/health"
	"difylb/pkg/lb"
	"difylb/pkg/limit"
	"difylb/pkg/route"
	"difylb/pkg/stats"
)

// view is a Table with the run-time state of its applications beside it. It is
// immutable; what it points to lives on from view to view.
type view struct {
	table *route.Table
	apps  []*appView // by slot
}

// appView joins one compiled application with its state. Shared by views for
// as long as the application does not change.
type appView struct {
	app       *route.App
	state     *appState
	instances []*instanceState // in declared order
	labels    map[string]*stats.Label
}

// appState is what outlives changes of an application's declaration.
type appState struct {
	stats     *stats.App
	bucket    limit.Bucket   // per_app
	lease     limit.Lease    // of per_app
	asked     *tally         // per_app; nil until the declaration first has such a limit
	users     *limit.Buckets // per_user; nil until the declaration first has such a limit
	instances map[string]*instanceState
	decl      *lb.Application // newest; guarded by Proxy.mu
	measured  asked           // guarded by Proxy.mu
}

// instanceState is what outlives changes of an instance's declaration.
type instanceState struct {
	stats    *stats.Instance
	health   atomic.Pointer[lb.Health]
	passive  health.Passive
	gate     *limit.Gate
	slots    *slots    // of the gate; guarded by Proxy.mu
	upstream *upstream // replaced with the address; guarded by Proxy.mu, views hold their own
	decl     *lb.Instance
}

func (p *Proxy) newView(t *route.Table) *view {
	old := p.view.Load()
	v := &view{table: t, apps: make([]*appView, len(t.Slots()))}
	for slot, app := range t.Slots() {
		if app == nil {
			continue
		}
		if old != nil && slot < len(old.apps) && old.apps[slot] != nil && old.apps[slot].app == app {
			v.apps[slot] = old.apps[slot]
			continue
		}
		v.apps[slot] = p.newAppView(app)
	}
	if old != nil && len(p.states) > len(t.Apps()) {
		for name, st := range p.states {
			if t.App(name) == nil {
				delete(p.states, name)
				st.retire()
			}
		}
	}
	return v
}

func (p *Proxy) newAppView(app *route.App) *appView {
	name := app.Decl.Name
	st := p.states[name]
	if st == nil {
		st = &appState{
			stats:     p.opts.Registry.App(name),
			instances: make(map[string]*instanceState),
		}
		p.states[name] = st
	}
	st.decl = app.Decl
	if app.Decl.RateLimit.PerUser != nil && st.users == nil {
		st.users = limit.NewBuckets(p.opts.Limits.UserKeys)
		st.users.SetHasher(p.hasher)
	}
	if app.Decl.RateLimit.PerApp != nil && st.asked == nil {
		st.asked = new(tally)
	}
	av := &appView{app: app, state: st, instances: make([]*instanceState, len(app.Instances))}
	for _, t := range app.Decl.UserTokens {
		if t.Label == "" {
			continue
		}
		if av.labels == nil {
			av.labels = make(map[string]*stats.Label)
		}
		av.labels[t.Label] = st.stats.Label(t.Label)
	}
	for i := range app.Instances {
		av.instances[i] = p.instance(st, &app.Instances[i], name)
	}
	for name, in := range st.instances {
		if app.Index(name) < 0 {
			delete(st.instances, name)
			in.upstream.retire()
		}
	}
	st.setHealth(p.health[name])
	st.setSlots(p.place, time.Now())
	return av
}

// instance returns the state for a declaration. One whose address changed, or
// whom it believes, gets a state of its own pool, which the old view does not
// see: requests under way finish on the old one.
func (p *Proxy) instance(st *appState, in *route.Instance, app string) *instanceState {
	old := st.instances[in.Decl.Name]
	switch {
	case old == nil:
		old = &instanceState{stats: st.stats.Instance(in.Decl.Name), gate: limit.NewGate(), slots: new(slots)}
		old.upstream = p.newPool(in, app)
	case !old.upstream.serves(in):
		fresh := &instanceState{stats: old.stats, gate: old.gate, slots: old.slots, upstream: p.newPool(in, app)}
		old.upstream.retire()
		old = fresh
	case old.decl.Token != in.Decl.Token, old.decl.State != lb.Active && in.Decl.State == lb.Active:
		// It was perhaps ejected for its token; and who activates it has seen to it.
		old.passive.Reset()
	}
	old.decl = in.Decl
	st.instances[in.Decl.Name] = old
	return old
}

// newPool makes a pool, and warns of one that leads who knows where.
func (p *Proxy) newPool(in *route.Instance, app string) *upstream {
	log := p.log.With().Str("app", app).Str("instance", in.Decl.Name).Str("address", in.Address).Logger()
	if in.TLS != nil && in.TLS.InsecureSkipVerify {
		log.Warn().Msg("the certificate of an instance is not verified, as its insecure_skip_verify says: whoever is between reads everything, its token included")
	}
	u := newUpstream(in, &p.pool, p.pollers)
	u.trouble = &trouble{log: log}
	u.dialer.follow(p.opts.Names)
	return u
}

func (st *appState) setHealth(verdicts map[string]lb.Verdict) {
	for name, in := range st.instances {
		h := lb.HealthUnknown
		if v, ok := verdicts[name]; ok {
			h = v.Health
		}
		in.health.Store(&h)
	}
}

func (st *appState) retire() {
	for _, in := range st.instances {
		in.upstream.retire()
	}
}

// condition tells what is known of an instance now. An instance on trial after
// an ejection counts as ejected but for one request at a time: asking for it
// takes up its turn.
func (in *instanceState) condition(now time.Time, failTimeout time.Duration) route.Condition {
	return route.Condition{Health: *in.health.Load(), Ejected: !in.passive.Admit(now, failTimeout)}
}

// look is condition for who only looks.
func (in *instanceState) look(now time.Time) route.Condition {
	return route.Condition{Health: *in.health.Load(), Ejected: in.passive.Ejected(now), Trial: in.passive.OnTrial(now)}
}
