package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
	pb "difylb/proto"
)

const (
	// freshFor is how old a proxy's report may be for its figures to be whole.
	freshFor = 3 * time.Second
	// liveFor is how long an answer proves an instance alive.
	liveFor = 5 * time.Second
	// readyAfter bounds how long Ready waits for proxies.
	readyAfter = 5 * time.Second
	// refreshEvery is how often the document is brought up to date for proxies.
	refreshEvery = 500 * time.Millisecond
)

// HubOptions configure a Hub.
type HubOptions struct {
	NodeID   string // this lb-admin's
	Log      zerolog.Logger
	Counters CounterStore
	// Probes is what this lb-admin's own prober knows; nil: it never probes.
	Probes Prober
	// TLS returns the settings for the next connection to another lb-admin that
	// registered with TLS; nil means the system's roots.
	TLS func() *tls.Config
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Hub is the lb-admin's side of the link: it takes reports, sums them, keeps
// the sums in the store while elected, and makes the Status document. Its
// methods are safe for concurrent use and never wait for the network, except
// Run, Lead, WaitReceipts, Check, LastProbes and Tell.
type Hub struct {
	pb.UnimplementedClusterServer
	opts HubOptions
	log  zerolog.Logger
	now  func() time.Time

	lessor lessor

	mu              sync.Mutex // guards all below
	snapshot        *lb.Snapshot
	spreading       []spreading // oldest first
	propagated      func(time.Duration)
	configSince     time.Time // when snapshot.ConfigRevision was first seen
	ledger          *ledger
	book            book
	loaded          bool // the store's counters are part of the sums
	ready           bool
	firstSnapshot   time.Time
	ejecting        map[*boot]bool
	live            map[bootKey]bool // registered proxies
	views           map[string]*view // by application of the configuration
	stale           map[string]bool  // applications whose view is not up to date
	words           map[stats.Key]word
	version         uint64        // of the newest view
	began           time.Time     // immutable after NewHub; when slot 0 began
	moved           int64         // slot of the last refresh
	header          header        // as of the last refresh
	unsent          bool          // something changed since the last publish
	changed         chan struct{} // closed by publish
	receiptsChanged chan struct{} // closed when a receipt or the snapshot has changed
	announced       func(kind string, data []byte) error

	recent recentUsers // each has a lock of its own, taken after mu
	checks checks
	probes probes // has locks of its own, not held together with mu
}

// view is one application of the document. It is immutable.
type view struct {
	status  *ApplicationStatus
	wire    *pb.ApplicationStatus
	labels  map[string]*labelView
	version uint64
}

// word is an instance's status and since when.
type word struct {
	status string
	since  time.Time
}

// header is the part of the document outside of the applications.
type header struct {
	revision int64
	epoch    string
	complete bool
	nodes    NodeCounts
	refusing *[]Refusing // nil: none; the same pointer as long as it says the same
}

// NewHub returns a hub that has no snapshot yet and therefore refuses every link.
func NewHub(opts HubOptions) *Hub {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	h := &Hub{
		opts: opts, log: opts.Log.With().Str("component", "cluster").Logger(), now: opts.Now,
		book:            book{small: chunkSmall, target: chunkTarget, limit: chunkLimit, nodes: make(map[string][]*chunk)},
		ejecting:        make(map[*boot]bool),
		live:            make(map[bootKey]bool),
		views:           make(map[string]*view),
		stale:           make(map[string]bool),
		words:           make(map[stats.Key]word),
		changed:         make(chan struct{}),
		receiptsChanged: make(chan struct{}),
		began:           opts.Now(),
	}
	h.probes.init()
	h.ledger = newLedger(func(app string) { h.stale[app] = true }, h.shareDirtied)
	return h
}

// Run loads the counters, and keeps the document up to date for the proxies
// that are linked. It returns when ctx ends. Serving the link itself is the
// caller's: NewServer.
func (h *Hub) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { h.reload(ctx) })
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			h.mu.Lock()
			h.refresh(h.now())
			h.publish()
			h.mu.Unlock()
		case <-ctx.Done():
			wg.Wait()
			return nil
		}
	}
}

// reload reads the counters until that succeeds, then again from time to time.
func (h *Hub) reload(ctx context.Context) {
	wait := time.Second
	for {
		err := h.loadCounters(ctx)
		if ctx.Err() != nil {
			return
		}
		next := reloadEvery
		if err != nil {
			h.log.Warn().Err(err).Msg("counters not loaded")
			next, wait = wait, min(2*wait, reloadEvery)
		}
		if !sleep(ctx, next) {
			return
		}
	}
}

// SetSnapshot tells the hub the state of the cluster: which applications the
// document shows, which proxies should report, and the key that they show.
func (h *Hub) SetSnapshot(s *lb.Snapshot) {
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.snapshot
	if old == nil {
		h.firstSnapshot = now
	}
	if old == nil || old.ConfigRevision != s.ConfigRevision || old.Epoch != s.Epoch {
		h.configSince = now
	}
	h.snapshot = s
	clear(h.live)
	for _, n := range s.Nodes {
		if n.Role == lb.RoleProxy {
			h.live[bootKey{n.ID, n.BootID}] = true
		}
	}
	h.beginSpreadLocked(old, s, now)
	h.endSpreadLocked() // the last that was waited for may have gone
	h.markChanged(old, s)
	close(h.receiptsChanged)
	h.receiptsChanged = make(chan struct{})
	h.refresh(now)
	h.publish()
}

// markChanged finds the applications whose part of the document may differ.
func (h *Hub) markChanged(old, s *lb.Snapshot) {
	if old == nil {
		old = &lb.Snapshot{}
	}
	was := make(map[string]*lb.Application, len(old.Applications))
	for _, a := range old.Applications {
		was[a.Name] = a
	}
	for _, a := range s.Applications {
		if was[a.Name] != a || !sameHealth(old.Health[a.Name], s.Health[a.Name]) {
			h.stale[a.Name] = true
		}
		delete(was, a.Name)
	}
	for name, a := range was {
		delete(h.views, name)
		h.recent.forget(name)
		h.unsent = true
		for i := range a.Instances {
			delete(h.words, stats.Key{App: name, Instance: a.Instances[i].Name})
		}
	}
}

func sameHealth(a, b map[string]lb.Verdict) bool {
	if len(a) != len(b) {
		return false
	}
	for name, v := range a {
		if w, ok := b[name]; !ok || w.Health != v.Health || !w.Since.Equal(v.Since) {
			return false
		}
	}
	return true
}

// Status returns the document as of now.
func (h *Hub) Status() *Status {
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refresh(now)
	s := &Status{
		Status: "running", Timestamp: now.UTC().Truncate(time.Second),
		Revision: h.header.revision, Complete: h.header.complete, Nodes: h.header.nodes, Refusing: h.header.refused(),
		Applications: make(map[string]*ApplicationStatus, len(h.views)),
	}
	for name, v := range h.views {
		s.Applications[name] = v.status
	}
	return s
}

// Live reports whether live answers have come from the instance within the
// last few seconds: then a probe that times out is not a death.
func (h *Hub) Live(app, instance string) bool {
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.ledger.entries[stats.Key{App: app, Instance: instance}]
	return e != nil && !e.lastAnswer.IsZero() && now.Sub(e.lastAnswer) < liveFor
}

// Ready reports whether the document is worth showing after a start: the
// stored counters are loaded, and every registered proxy has reported, or has
// had 5 s to do so. Before that, counters may be up to a few seconds behind
// what this lb-admin showed before it was restarted. Once true it stays true.
func (h *Hub) Ready() bool {
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ready && h.snapshot != nil && h.loaded {
		h.ready = h.headerNow(now).complete || now.Sub(h.firstSnapshot) >= readyAfter
	}
	return h.ready
}

// Totals returns the sum of one series over every boot that ever reported, for
// metrics; the zero value when there is none.
func (h *Hub) Totals(key stats.Key) stats.Totals {
	h.mu.Lock()
	defer h.mu.Unlock()
	var t stats.Totals
	h.ledger.sum(key, &t)
	return t
}

// fresh reports whether the boot's figures are whole. h.mu is held.
func (h *Hub) fresh(b *boot, now time.Time) bool {
	return b.whole && !b.lastReport.IsZero() && now.Sub(b.lastReport) < freshFor
}

// registeredBoot returns the boot of a registered proxy, nil when it has not
// been heard of. h.mu is held.
func (h *Hub) registeredBoot(n lb.Node) *boot {
	if n.Role != lb.RoleProxy {
		return nil
	}
	return h.ledger.boots[bootKey{n.ID, n.BootID}]
}

func (h *Hub) registeredLocked(b *boot) bool { return h.live[b.bootKey] }

// supersededLocked reports whether the boot's node is registered under another
// boot id: node ids are unique, so this one has ended.
func (h *Hub) supersededLocked(b *boot) bool {
	if h.snapshot == nil || h.live[b.bootKey] {
		return false
	}
	for key := range h.live {
		if key.node == b.node {
			return true
		}
	}
	return false
}

// refresh brings the views of the stale applications and the header up to
// date. h.mu is held.
func (h *Hub) refresh(now time.Time) {
	if h.snapshot == nil {
		return
	}
	for _, b := range h.ledger.boots {
		h.ledger.count(b, h.fresh(b, now))
	}
	for b := range h.ejecting {
		// A proxy that went silent no longer says anything about instances.
		if !h.fresh(b, now) {
			h.setEjections(b, nil)
		}
	}
	if slot := h.slot(now); slot != h.moved {
		h.moved = slot
		h.ledger.move(slot)
	}
	changed := false
	for name := range h.stale {
		if app := h.snapshot.Application(name); app != nil {
			h.version++
			h.views[name] = h.view(app, now)
			changed = true
		}
		delete(h.stale, name)
	}
	if next := h.headerNow(now); next != h.header {
		h.header, changed = next, true
	}
	h.unsent = h.unsent || changed
}

// publish wakes the streams when there is something that they have not been
// sent. Only the ticker and new snapshots do so: people who ask for the
// document often must not make the proxies' links busy. h.mu is held.
func (h *Hub) publish() {
	if h.unsent {
		h.unsent = false
		close(h.changed)
		h.changed = make(chan struct{})
	}
}

func (h *Hub) headerNow(now time.Time) header {
	hd := header{revision: h.snapshot.ConfigRevision, epoch: h.snapshot.Epoch}
	for _, n := range h.snapshot.Nodes {
		if n.Role == lb.RoleAdmin {
			hd.nodes.Admins++
			continue
		}
		hd.nodes.Proxies++
		if b := h.registeredBoot(n); b != nil && h.fresh(b, now) {
			hd.nodes.Reporting++
		}
	}
	hd.complete = h.loaded && hd.nodes.Reporting == hd.nodes.Proxies
	if refusing := h.refusing(now); len(refusing) > 0 {
		if hd.refusing = &refusing; h.header.refusing != nil && slices.Equal(refusing, *h.header.refusing) {
			hd.refusing = h.header.refusing
		}
	}
	return hd
}

func (hd *header) refused() []Refusing {
	if hd.refusing == nil {
		return nil
	}
	return *hd.refusing
}

func (h *Hub) refusing(now time.Time) (out []Refusing) {
	for _, n := range h.snapshot.Nodes {
		if b := h.registeredBoot(n); b != nil && b.hasReceipt && b.receipt.Refused != "" && h.fresh(b, now) {
			out = append(out, refusingOf(n.ID, b.receipt))
		}
	}
	return out
}

func refusingOf(node string, r Receipt) Refusing {
	return Refusing{Node: node, Revision: r.ConfigRevision, RefusedRevision: r.RefusedRevision, HeldBack: r.HeldBack, Reason: r.Refused}
}

func (h *Hub) view(app *lb.Application, now time.Time) *view {
	var total stats.Totals
	h.ledger.sum(stats.Key{App: app.Name}, &total)
	a := &ApplicationStatus{
		TotalRequests: total.Requests, Errors: total.Errors, Active: max(total.Active, 0), Usage: usageStatus(&total.Usage),
		Instances: make(map[string]*InstanceStatus, len(app.Instances)),
	}
	var recent stats.Totals
	for i := range app.Instances {
		a.Instances[app.Instances[i].Name] = h.instance(app.Name, &app.Instances[i], &recent, now)
	}
	a.LatencyRecent, a.FirstByteRecent = latencyOf(&recent.Latency), firstByteOf(&recent.FirstByte)
	old := h.views[app.Name]
	if old == nil {
		old = &view{status: &ApplicationStatus{}}
	}
	labels := h.labels(app.Name, a, old.labels)
	a.raise(old.status)
	for name := range old.status.Instances {
		if a.Instances[name] == nil {
			delete(h.words, stats.Key{App: app.Name, Instance: name})
		}
	}
	return &view{status: a, wire: applicationToWire(app.Name, a), labels: labels, version: h.version}
}

// instance adds the histograms of the last minute to recent.
func (h *Hub) instance(app string, in *lb.Instance, recent *stats.Totals, now time.Time) *InstanceStatus {
	key := stats.Key{App: app, Instance: in.Name}
	var t stats.Totals
	h.ledger.sum(key, &t)
	s := &InstanceStatus{State: in.State}
	s.fill(&t)
	if e := h.ledger.entries[key]; e != nil {
		var latency, firstByte stats.Histogram
		if e.latency.AddTo(h.slot(now), &latency) {
			s.LatencyRecent = latencyOf(&latency)
			recent.Latency.Add(&latency)
		}
		if e.firstByte.AddTo(h.slot(now), &firstByte) {
			s.FirstByteRecent = firstByteOf(&firstByte)
			recent.FirstByte.Add(&firstByte)
		}
	}

	verdict := h.snapshot.HealthOf(app, in.Name)
	var ejectedSince time.Time
	s.EjectedBy, ejectedSince = h.ejected(key)
	if len(s.EjectedBy) > 0 {
		since := ejectedSince.UTC().Truncate(time.Second)
		s.EjectedSince = &since
	}
	s.Status = lb.StatusWord(in.State, len(s.EjectedBy) > 0, verdict.Health)
	w, known := h.words[key]
	if !known || w.status != s.Status {
		w = word{status: s.Status, since: now}
		switch {
		case s.Status == StatusEjected:
			w.since = ejectedSince
		case s.Status == string(verdict.Health) && !verdict.Since.IsZero() && (!known || verdict.Since.After(h.words[key].since)):
			w.since = verdict.Since
		}
		h.words[key] = w
	}
	s.Since = w.since.UTC().Truncate(time.Second)
	return s
}

// ejected returns the proxies that have ejected the instance, sorted, and since
// when the first of them has.
func (h *Hub) ejected(key stats.Key) (by []string, first time.Time) {
	for b := range h.ejecting {
		if since, ok := b.ejections[key]; ok {
			if by == nil || since.Before(first) {
				first = since
			}
			by = append(by, b.node)
		}
	}
	slices.Sort(by)
	return slices.Compact(by), first // a proxy that was restarted is there twice for a while
}

// slot is the number of the slot of the last minute's figures that time is in.
func (h *Hub) slot(now time.Time) int64 { return max(0, int64(now.Sub(h.began)/stats.WindowSlot)) }

func (h *Hub) setEjections(b *boot, next map[stats.Key]time.Time) {
	for key := range b.ejections {
		if _, still := next[key]; !still {
			h.stale[key.App] = true
		}
	}
	for key := range next {
		if _, was := b.ejections[key]; !was {
			h.stale[key.App] = true
		}
	}
	b.ejections = next
	if len(next) > 0 {
		h.ejecting[b] = true
	} else {
		delete(h.ejecting, b)
	}
}

func hex64(v uint64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf("%016x", v)
}
