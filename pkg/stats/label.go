package stats

import "sync/atomic"

// MaxLabels bounds the labels of user tokens that a Registry tells apart in
// one application. What comes after is counted together under Overflow.
const MaxLabels = 1 << 12

// Label counts what the user tokens of one label in one application have
// asked for. A nil one counts nothing.
type Label struct {
	series
	shards []atomic.Pointer[labelShard]
}

type labelShard struct {
	begun atomic.Uint64
	_     [56]byte // no two shards share a cache line
}

// Label returns the figures of a label of user tokens, made at the first
// call. Tokens without a label need none. The pointer stays valid; keep it, so
// that the path of a request looks nothing up. Labels must come from the
// configuration only.
func (a *App) Label(name string) *Label {
	r := a.registry
	r.mu.RLock()
	l := a.labels[name]
	r.mu.RUnlock()
	if l != nil {
		return l
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := a.labels[name]; l != nil {
		return l
	}
	if len(a.labels) >= r.maxLabels || r.labelCount >= r.maxSeries {
		name = Overflow
		if l := a.labels[name]; l != nil {
			return l
		}
	}
	r.labelCount++
	l = &Label{shards: make([]atomic.Pointer[labelShard], r.mask+1)}
	l.series = series{key: LabelKey(a.key.App, name), registry: r, changes: &r.labels, owner: l}
	if a.labels == nil {
		a.labels = make(map[string]*Label)
	}
	a.labels[name] = l
	return l
}

// Labels returns the labels of an application that have been made, in no order.
func (r *Registry) Labels(app string) []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	a := r.apps[app]
	if a == nil {
		return nil
	}
	names := make([]string, 0, len(a.labels))
	for name := range a.labels {
		names = append(names, name)
	}
	return names
}

// Name returns the label, or Overflow.
func (l *Label) Name() string { return l.key.Label }

// Begin counts a client request. For the shard see App.Begin.
func (l *Label) Begin(shard uint32) {
	if l == nil {
		return
	}
	p := &l.shards[shard&l.registry.mask]
	s := p.Load()
	if s == nil {
		p.CompareAndSwap(nil, new(labelShard))
		s = p.Load()
	}
	s.begun.Add(1)
	l.touch()
}

// totals reads the usage before the beginnings, so that no more answers than
// requests are seen.
func (l *Label) totals(t *Totals) {
	l.usageTotals(&t.Usage)
	for i := range l.shards {
		if s := l.shards[i].Load(); s != nil {
			t.Requests += s.begun.Load()
		}
	}
}

// AddUsage counts what one answer has cost, for the instance that gave it, its
// application, and the label of the token that asked, which may be nil. It
// counts as one answer whatever u.Answers says; a u that says nothing counts
// nothing. Of a ninth currency in one series, and of one whose name is not
// proper, only Unpriced tells. It keeps nothing of u. For the shard see
// App.Begin.
func (i *Instance) AddUsage(shard uint32, label *Label, u Usage) {
	u.Answers = 0
	if u.IsZero() {
		return
	}
	i.addUsage(shard, &u)
	i.app.addUsage(shard, &u)
	if label != nil {
		label.addUsage(shard, &u)
	}
}
