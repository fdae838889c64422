package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
	pb "difylb/proto"
)

// memStore is a CounterStore that knows who is in office, and whose puts can
// fail before or after they are applied.
type memStore struct {
	chunks map[string]CounterChunk
	term   int // the present time in office
	fail   func() (before, after bool)
	puts   int
}

var errStore = errors.New("store out of reach")

func newMemStore() *memStore {
	return &memStore{chunks: make(map[string]CounterChunk), fail: func() (bool, bool) { return false, false }}
}

func (m *memStore) LoadCounters(context.Context) ([]CounterChunk, error) {
	return slices.Collect(maps.Values(m.chunks)), nil // in random order
}

// office is a CounterWriter of one time in office.
type office struct {
	store interface{ put(int, CounterChunk) error }
	term  int
}

func (o office) PutCounters(_ context.Context, c CounterChunk) error { return o.store.put(o.term, c) }

// office returns the writer of the present time in office.
func (m *memStore) office() office { return office{m, m.term} }

func (m *memStore) put(term int, c CounterChunk) error {
	if term != m.term {
		return lb.Errorf(lb.ErrConflict, "not the leader")
	}
	before, after := m.fail()
	if before {
		return errStore
	}
	if len(c.Value) > MaxChunkBytes {
		return fmt.Errorf("chunk of %d bytes", len(c.Value))
	}
	m.puts++
	c.Value = slices.Clone(c.Value)
	m.chunks[fmt.Sprintf("%s/%d", c.Node, c.Index)] = c
	if after {
		return errStore
	}
	return nil
}

// figures are the totals of some series; the model's truth.
type figures map[stats.Key]*stats.Totals

func (f figures) add(o figures) {
	for k, t := range o {
		if f[k] == nil {
			f[k] = new(stats.Totals)
		}
		f[k].Add(t)
	}
}

func (f figures) clone() figures {
	c := make(figures)
	c.add(f)
	return c
}

type modelBoot struct {
	node, id string
	seq      uint64
	truth    figures
}

type modelAdmin struct {
	hub    *Hub
	reload bool
	seen   map[string]*ApplicationStatus
}

type flight struct {
	node, boot string
	message    []byte
}

// model plays proxies, lb-admins, the network between them, and the store.
type model struct {
	t       *testing.T
	rng     *rand.Rand
	clock   time.Time
	store   *memStore
	apps    []*lb.Application
	admins  []*modelAdmin // in the order of the election: the first leads
	proxies []*modelBoot
	ended   figures // of boots that are over
	boots   int
	flights []flight
	// A reader of one proxy's document, across all lb-admins.
	doc     document
	docFrom *modelAdmin
	docSent *sentStatus
	docSeen map[string]*ApplicationStatus
}

func newModel(t *testing.T, seed uint64) *model {
	m := &model{
		t: t, rng: rand.New(rand.NewPCG(seed, 99)), clock: time.Unix(1_700_000_000, 0),
		store: newMemStore(), ended: make(figures),
		doc:     document{apps: make(map[string]*shownApp)},
		docSeen: make(map[string]*ApplicationStatus),
	}
	for a := range 3 {
		app := lb.NewApplication(fmt.Sprintf("app%d", a))
		for i := range 3 {
			app.Instances = append(app.Instances, lb.Instance{Name: fmt.Sprintf("dify%d", i), State: lb.Active})
		}
		m.apps = append(m.apps, app)
	}
	for n := range 3 {
		m.proxies = append(m.proxies, m.newBoot(fmt.Sprintf("proxy%d", n)))
	}
	for range 3 {
		m.startAdmin()
	}
	m.elect()
	return m
}

func (m *model) newBoot(node string) *modelBoot {
	m.boots++
	return &modelBoot{node: node, id: fmt.Sprintf("boot%d", m.boots), truth: make(figures)}
}

func (m *model) startAdmin() {
	h := NewHub(HubOptions{NodeID: "admin", Log: zerolog.Nop(), Counters: m.store, Now: func() time.Time { return m.clock }})
	h.book.small, h.book.target, h.book.limit = 100, 600, 1500
	a := &modelAdmin{hub: h, reload: true, seen: make(map[string]*ApplicationStatus)}
	m.admins = append(m.admins, a)
	h.SetSnapshot(m.snapshot())
	if err := h.loadCounters(context.Background()); err != nil {
		m.t.Fatal(err)
	}
	if m.rng.IntN(2) == 0 {
		m.reportAll(a)
	}
}

func (m *model) snapshot() *lb.Snapshot {
	s := &lb.Snapshot{Revision: 5, ConfigRevision: 5, Epoch: "e", Applications: m.apps, ClusterKey: "key"}
	for _, p := range m.proxies {
		s.Nodes = append(s.Nodes, lb.Node{ID: p.node, Role: lb.RoleProxy, BootID: p.id})
	}
	return s
}

// elect makes the first lb-admin the leader.
func (m *model) elect() {
	m.store.term++
	m.admins[0].reload = true
}

func (m *model) traffic(p *modelBoot) {
	for range 1 + m.rng.IntN(4) {
		app := fmt.Sprintf("app%d", m.rng.IntN(3))
		usage := m.answer()
		label := stats.LabelKey(app, []string{"", "web", "dify0"}[m.rng.IntN(3)])
		for _, key := range []stats.Key{{App: app}, {App: app, Instance: fmt.Sprintf("dify%d", m.rng.IntN(3))}, label} {
			t := p.truth[key]
			if t == nil {
				t = new(stats.Totals)
				p.truth[key] = t
			}
			t.Requests++
			t.Usage.Add(&usage)
			if key.ByLabel {
				continue
			}
			reason := lb.Reason(m.rng.IntN(int(lb.NumReasons)))
			t.Reasons[reason]++
			if reason.IsError() {
				t.Errors++
			}
			if key.Instance != "" {
				t.BytesOut += m.rng.Uint64N(1000)
				h := stats.Histogram{Offset: m.rng.IntN(200), Counts: []uint64{1}}
				t.Latency.Add(&h)
			}
		}
	}
}

// answer is the usage that an answer tells, of half of them none.
func (m *model) answer() stats.Usage {
	if m.rng.IntN(2) == 0 {
		return stats.Usage{}
	}
	u := stats.Usage{Prompt: m.rng.Uint64N(100), Completion: m.rng.Uint64N(100), Total: m.rng.Uint64N(300), Answers: 1, Unpriced: m.rng.Uint64N(2)}
	if m.rng.IntN(100) == 0 {
		u.Total = 1 << 62 // sums reach their end
	}
	u.AddCost(stats.Cost{Currency: fmt.Sprintf("C%d", m.rng.IntN(10)), Nano: m.rng.Uint64N(1e9)})
	return u
}

// message is a report of some or all of a boot's series as they are now.
func (m *model) message(p *modelBoot, full bool) flight {
	p.seq++
	r := &pb.Report{Seq: p.seq, Full: full}
	for k, t := range p.truth {
		if full || m.rng.IntN(2) == 0 {
			if k.ByLabel {
				r.Labels = append(r.Labels, &pb.LabelSeries{App: k.App, Label: k.Label, Totals: totalsToWire(t)})
			} else {
				r.Series = append(r.Series, &pb.Series{App: k.App, Instance: k.Instance, Totals: totalsToWire(t)})
			}
		}
	}
	b, err := proto.Marshal(r)
	if err != nil {
		m.t.Fatal(err)
	}
	return flight{p.node, p.id, b}
}

func (m *model) deliver(a *modelAdmin, f flight) {
	var r pb.Report
	if err := proto.Unmarshal(f.message, &r); err != nil {
		m.t.Fatal(err)
	}
	b := a.hub.open(&pb.Hello{Node: f.node, BootId: f.boot})
	a.hub.report(b, &r)
	a.hub.closeSession(&session{hub: a.hub, boot: b})
}

func (m *model) reportAll(to ...*modelAdmin) {
	for _, p := range m.proxies {
		for _, a := range to {
			m.deliver(a, m.message(p, true))
		}
	}
}

func (m *model) admin() *modelAdmin { return m.admins[m.rng.IntN(len(m.admins))] }

func (m *model) persist(a *modelAdmin, w CounterWriter) error {
	_, err := a.hub.persist(context.Background(), w, a.reload)
	a.reload = err != nil
	return err
}

// lead has the leader write until it succeeds.
func (m *model) lead() {
	for range 100 {
		err := m.persist(m.admins[0], m.store.office())
		if err == nil {
			return
		}
		if !errors.Is(err, errStore) {
			m.t.Fatalf("persist: %v", err)
		}
	}
	m.t.Fatal("the leader never got through")
}

func (m *model) restartProxy() {
	i := m.rng.IntN(len(m.proxies))
	p := m.proxies[i]
	// The last report that every lb-admin heard; what comes after dies with
	// the process, and never was in anybody's sum.
	final := m.message(p, true)
	for _, a := range m.admins {
		m.deliver(a, final)
	}
	m.ended.add(p.truth)
	m.proxies[i] = m.newBoot(p.node)
	for _, a := range m.admins {
		a.hub.SetSnapshot(m.snapshot())
	}
}

// killAdmin ends an lb-admin without warning. What only it knew is gone, so at
// least one that heard the same goes on: the one that is next to lead.
func (m *model) killAdmin() {
	if len(m.admins) < 3 {
		return
	}
	i := m.rng.IntN(2) // of the two oldest; the younger ones may not have heard of ended boots
	if i == 1 {
		m.lead()
	}
	m.admins = slices.Delete(m.admins, i, i+1)
	if i == 0 {
		m.elect()
		m.lead()
	}
	m.startAdmin()
}

func (m *model) step() {
	switch m.rng.IntN(12) {
	case 0, 1, 2:
		m.traffic(m.proxies[m.rng.IntN(len(m.proxies))])
	case 3, 4:
		p := m.proxies[m.rng.IntN(len(m.proxies))]
		f := m.message(p, m.rng.IntN(3) == 0)
		m.deliver(m.admin(), f)
		m.flights = append(m.flights, f) // a copy arrives again, late
	case 5:
		if n := len(m.flights); n > 0 {
			i := m.rng.IntN(n)
			m.deliver(m.admin(), m.flights[i])
			if m.rng.IntN(2) == 0 {
				m.flights = slices.Delete(m.flights, i, i+1)
			}
		}
	case 6:
		m.restartProxy()
	case 7:
		m.killAdmin()
	case 8:
		if err := m.persist(m.admins[0], m.store.office()); err != nil && !errors.Is(err, errStore) {
			m.t.Fatalf("persist: %v", err)
		}
	case 9:
		// A leader that does not know that it is no longer one.
		stale := m.store.office()
		stale.term--
		a := m.admins[len(m.admins)-1]
		before, wasReload := m.store.puts, a.reload
		if err := m.persist(a, stale); err == nil && len(a.hub.book.queue) > 0 || m.store.puts != before {
			m.t.Fatal("one whose time in office is over wrote")
		}
		a.hub.endLead()
		a.reload = a.reload || wasReload
	case 10:
		// A leader gives up its office: what it knows is written first.
		m.lead()
		m.admins[0].hub.endLead()
		m.admins = append(m.admins[1:], m.admins[0])
		m.elect()
		m.lead()
	case 11:
		m.clock = m.clock.Add(time.Duration(m.rng.IntN(50)) * time.Second)
		m.lead()
	}
}

func (m *model) truth() figures {
	f := m.ended.clone()
	for _, p := range m.proxies {
		f.add(p.truth)
	}
	return f
}

// observe looks at every lb-admin's document and at a proxy's.
func (m *model) observe() {
	truth := m.truth()
	for i, a := range m.admins {
		m.check(fmt.Sprintf("lb-admin %d", i), a.hub.Status().Applications, a.seen, truth)
	}
	if m.docFrom == nil || !slices.Contains(m.admins, m.docFrom) || m.rng.IntN(5) == 0 {
		m.docFrom, m.docSent = m.admin(), &sentStatus{subscription: m.rng.Uint64()}
		m.doc.begin()
	}
	messages, _ := m.docFrom.hub.update(m.docSent)
	for _, w := range messages {
		m.doc.take(w.GetStatus(), stats.NewRegistry(1))
	}
	shown := make(map[string]*ApplicationStatus)
	for name, a := range m.doc.apps {
		shown[name] = a.shown
	}
	m.check("a proxy", shown, m.docSeen, truth)
}

// check: nothing goes backwards, and nothing is counted twice.
func (m *model) check(who string, now, seen map[string]*ApplicationStatus, truth figures) {
	for name, a := range now {
		if old := seen[name]; old != nil {
			if a.TotalRequests < old.TotalRequests || a.Errors < old.Errors {
				m.t.Fatalf("%s: %s went back from %d to %d requests", who, name, old.TotalRequests, a.TotalRequests)
			}
			for in, o := range old.Instances {
				if n := a.Instances[in]; n.Requests < o.Requests || n.Errors < o.Errors || n.BytesOut < o.BytesOut || !within(o.Usage, n.Usage) {
					m.t.Fatalf("%s: %s/%s went back from %+v to %+v", who, name, in, o, n)
				}
			}
			for label, o := range old.TokenLabels {
				if n := a.TokenLabels[label]; n == nil || n.Requests < o.Requests || !within(o.Usage, n.Usage) {
					m.t.Fatalf("%s: %s, label %q went back from %+v to %+v", who, name, label, o, n)
				}
			}
			if !within(old.Usage, a.Usage) {
				m.t.Fatalf("%s: %s went back from %+v to %+v", who, name, old.Usage, a.Usage)
			}
		}
		if a.Usage == nil && len(a.TokenLabels) > 0 {
			m.t.Fatalf("%s: %s has labels and no usage", who, name)
		}
		for label, l := range a.TokenLabels {
			t := truth[stats.LabelKey(name, label)]
			if t == nil || l.Requests > t.Requests || !within(l.Usage, usageStatus(&t.Usage)) {
				m.t.Fatalf("%s: %s, label %q shows %+v; there were %+v", who, name, label, l, t)
			}
		}
		for in, i := range a.Instances {
			if t := truth[stats.Key{App: name, Instance: in}]; i.Usage != nil && (t == nil || !within(i.Usage, usageStatus(&t.Usage))) {
				m.t.Fatalf("%s: %s/%s shows %+v; there were %+v", who, name, in, i.Usage, t)
			}
		}
		if t := truth[stats.Key{App: name}]; a.Usage != nil && (t == nil || !within(a.Usage, usageStatus(&t.Usage))) {
			m.t.Fatalf("%s: %s shows %+v; there were %+v", who, name, a.Usage, t)
		}
		seen[name] = a
		if t := truth[stats.Key{App: name}]; t != nil && a.TotalRequests > t.Requests || t == nil && a.TotalRequests > 0 {
			m.t.Fatalf("%s: %s shows %d requests; there were %+v", who, name, a.TotalRequests, t)
		}
	}
}

// within reports whether no figure of u is above that of o.
func within(u, o *UsageStatus) bool {
	if u == nil {
		return true
	}
	small, large := u.counts(), o.counts()
	joined := large.Clone()
	joined.Max(&small)
	return reflect.DeepEqual(joined, large)
}

func (m *model) exact(when string) {
	truth := m.truth()
	for i, a := range m.admins {
		for key, want := range truth {
			got := a.hub.Totals(key)
			if !sameFigures(got, *want) {
				m.t.Fatalf("%s: lb-admin %d has %v at\n%+v\ntrue is\n%+v", when, i, key, got, *want)
			}
		}
		for key := range a.hub.ledger.entries {
			if truth[key] == nil {
				m.t.Fatalf("%s: lb-admin %d invented %v", when, i, key)
			}
		}
		for name, app := range a.hub.Status().Applications {
			for key, want := range truth {
				if key.App == name && key.ByLabel && app.Usage != nil {
					if l := app.TokenLabels[key.Label]; l == nil || l.Requests != want.Requests || !l.Usage.equal(usageStatus(&want.Usage)) {
						m.t.Fatalf("%s: lb-admin %d shows label %q as %+v, true is %+v", when, i, key.Label, l, want)
					}
				}
			}
			if t := truth[stats.Key{App: name}]; t != nil && !app.Usage.equal(usageStatus(&t.Usage)) {
				m.t.Fatalf("%s: lb-admin %d shows %+v, true is %+v", when, i, app.Usage, t.Usage)
			}
		}
	}
}

func sameFigures(a, b stats.Totals) bool {
	sparse := func(h stats.Histogram) map[int]uint64 {
		m := make(map[int]uint64)
		for i, c := range h.Counts {
			if c > 0 {
				m[h.Offset+i] = c
			}
		}
		return m
	}
	if !reflect.DeepEqual(sparse(a.Latency), sparse(b.Latency)) {
		return false
	}
	a.Latency, b.Latency = stats.Histogram{}, stats.Histogram{}
	a.FirstByte, b.FirstByte = stats.Histogram{}, stats.Histogram{}
	return reflect.DeepEqual(a, b)
}

// TestSums_ExactUnderEveryInterleaving: proxies and lb-admins restart, streams
// lose, repeat and reorder reports, leadership moves, writes fail with and
// without having been applied. No observer sees a counter fall or exceed the
// truth, and in the end all is counted exactly once.
func TestSums_ExactUnderEveryInterleaving(t *testing.T) {
	seeds := 200
	if testing.Short() {
		seeds = 40
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newModel(t, uint64(seed))
			m.store.fail = func() (bool, bool) { return m.rng.IntN(10) == 0, m.rng.IntN(10) == 0 }
			for range 150 {
				m.step()
				if m.rng.IntN(3) == 0 {
					m.observe()
				}
			}
			m.reportAll(m.admins...)
			m.lead()
			m.exact("live proxies have reported")
			for range 3 {
				m.clock = m.clock.Add(2 * foldAfter) // every ended boot is folded
				m.reportAll(m.admins...)
				m.lead()
				m.admins = append(m.admins[1:], m.admins[0])
				m.elect()
			}
			for _, a := range m.admins {
				if err := a.hub.loadCounters(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			m.exact("after folding")
			m.observe()
			for _, f := range m.flights {
				m.deliver(m.admin(), f) // the past comes back
			}
			m.exact("after late reports of ended boots")
			m.lead()
			// The whole control plane at once, from the store alone.
			m.admins = nil
			m.startAdmin()
			m.reportAll(m.admins...)
			m.exact("from the store")
			for _, e := range m.admins[0].hub.ledger.entries {
				for _, s := range e.shares {
					if len(s.boots) > 1 {
						t.Errorf("%v of %s still has %d boots that are not folded", e.key, s.node, len(s.boots))
					}
				}
			}
		})
	}
}
