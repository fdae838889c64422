package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
	pb "difylb/proto"
)

// answered counts one request of a token with the label, and its answer.
func (l *testLink) answered(instance, label string, u stats.Usage) {
	a := l.registry.App("shop")
	a.Begin(0)
	a.Label(label).Begin(0)
	in := a.Instance(instance)
	in.Begin(0)
	in.AddUsage(0, a.Label(label), u)
	in.End(0, stats.Sample{})
	a.End(0, lb.ReasonOK)
}

func dollars(total, nano uint64) stats.Usage {
	return stats.Usage{Total: total, Costs: []stats.Cost{{Currency: "USD", Nano: nano}}}
}

func TestCluster_EveryNodeShowsTheUsageOfAll(t *testing.T) {
	c := newTestCluster(t)
	c.hub("admin1", "127.0.0.1:0")
	c.hub("admin2", "127.0.0.1:0")
	p1, p2 := c.link("proxy1", "b1"), c.link("proxy2", "b2")
	p1.answered("dify1", "web", dollars(15, 186_000))
	p2.answered("dify1", "web", stats.Usage{Prompt: 1, Completion: 2, Total: 3, Costs: []stats.Cost{{Currency: "RMB", Nano: 5}}})
	p2.answered("dify2", "", dollars(1, 14_000))
	p2.answered("dify2", "quiet", stats.Usage{})

	const usage = `"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":%d,"answers":%d,"cost":{"RMB":"0.000000005","USD":"%s"}}`
	for name, source := range map[string]func() *Status{
		"admin1": c.hubs[0].Status, "admin2": c.hubs[1].Status, "proxy1": p1.Status, "proxy2": p2.Status,
	} {
		eventually(t, name+" shows all", func() bool {
			s := source()
			return s.Complete && requestsOf(s) == 4 && len(s.Applications["shop"].TokenLabels) == 3
		})
		a := source().Applications["shop"]
		got, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		labels := `"token_labels":{"":{"requests":1,"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":1,"answers":1,"cost":{"USD":"0.000014"}}},` +
			`"quiet":{"requests":1},"web":{"requests":2,` + fmt.Sprintf(usage, 18, 2, "0.000186") + `}}}`
		for _, want := range []string{"," + fmt.Sprintf(usage, 19, 3, "0.0002") + "," + labels, `Z","latency_recent":{"p50":0,"p90":0,"p99":0},"first_byte_recent":{"p50":0,"p99":0},` + fmt.Sprintf(usage, 18, 2, "0.000186") + "}"} {
			if !strings.Contains(string(got), want) {
				t.Errorf("%s: %s\nlacks %s", name, got, want)
			}
		}
	}
}

func TestLink_UsageGoesOnWhileNoAdminAnswers(t *testing.T) {
	c := newTestCluster(t)
	h := c.hub("admin1", "127.0.0.1:0")
	lead := c.background(func(ctx context.Context) error { return h.Lead(ctx, c.store.office()) })
	p1, p2 := c.link("proxy1", "b1"), c.link("proxy2", "b2")
	p1.registry.App("shop").Label("declared only")
	p1.answered("dify1", "web", dollars(20, 2))
	p2.answered("dify1", "web", dollars(7, 1))
	p2.answered("dify2", "cli", dollars(5, 1))
	figures := func(s *Status) [5]uint64 {
		a := s.Applications["shop"]
		if a == nil || a.Usage == nil {
			return [5]uint64{}
		}
		out := [5]uint64{a.Usage.TotalTokens, 0, 0, 0, uint64(len(a.TokenLabels))}
		if in := a.Instances["dify1"]; in != nil && in.Usage != nil {
			out[1] = in.Usage.TotalTokens
		}
		for i, name := range []string{"web", "cli"} {
			if l := a.TokenLabels[name]; l != nil && l.Usage != nil {
				out[2+i] = l.Usage.TotalTokens
			}
		}
		return out
	}
	shows := func(p *testLink, complete bool, want [5]uint64) {
		t.Helper()
		floor := figures(p.Status())
		eventually(t, fmt.Sprint(p.opts.Node.ID, " shows ", want), func() bool {
			s := p.Status()
			got := figures(s)
			for i := range got {
				if got[i] < floor[i] {
					t.Fatalf("went back from %v to %v", floor, got)
				}
			}
			floor = got
			return s.Complete == complete && got == want
		})
	}
	shows(p1, true, [5]uint64{32, 27, 27, 5, 2})
	lead() // writes what it knows
	h.stop()
	p1.answered("dify1", "web", dollars(4, 8))
	shows(p1, false, [5]uint64{36, 31, 31, 5, 2})
	p1.answered("dify1", "new", dollars(1, 1))
	shows(p1, false, [5]uint64{37, 32, 31, 5, 3})
	if got := p1.Status().Applications["shop"].Usage.Cost["USD"]; got != "0.000000013" {
		t.Errorf("USD %s", got)
	}
	p2.stop()
	p3 := c.link("proxy2", "b3") // restarted; its counters begin at 0
	p3.answered("dify1", "web", dollars(2, 0))
	shows(p3, false, [5]uint64{2, 2, 2, 0, 1})

	c.hubs = nil
	c.hub("admin1", h.address)
	shows(p1, true, [5]uint64{39, 34, 33, 5, 3})
	shows(p3, true, [5]uint64{39, 34, 33, 5, 3})
}

// TestDocument_AloneOrNotNothingFallsOrExceedsTheTruth: a proxy serves, hears
// of an lb-admin or not, in any order.
func TestDocument_AloneOrNotNothingFallsOrExceedsTheTruth(t *testing.T) {
	for seed := range 100 {
		m := newModel(t, uint64(seed))
		r := stats.NewRegistry(2)
		self := m.newBoot("self")
		m.proxies = append(m.proxies, self)
		for _, a := range m.admins {
			a.hub.SetSnapshot(m.snapshot())
		}
		own := func() figures {
			f := make(figures)
			series, _ := r.Collect(0)
			labels, _ := r.CollectLabels(0)
			for _, s := range append(series, labels...) {
				f[s.Key] = &s.Totals
			}
			return f
		}
		seen := make(map[string]*ApplicationStatus)
		var sent *sentStatus
		var from *modelAdmin
		for range 200 {
			switch m.rng.IntN(6) {
			case 0, 1:
				m.serve(r)
			case 2:
				self.truth = own()
				m.deliver(m.admin(), m.message(self, m.rng.IntN(2) == 0))
			case 3:
				p := m.proxies[m.rng.IntN(3)]
				m.traffic(p)
				m.deliver(m.admin(), m.message(p, m.rng.IntN(2) == 0))
			case 4:
				if from == nil || m.rng.IntN(4) == 0 {
					from, sent = m.admin(), &sentStatus{}
					m.doc.begin()
				}
				from.hub.Status()
				messages, _ := from.hub.update(sent)
				for _, w := range messages {
					m.doc.take(w.GetStatus(), r)
				}
			case 5:
				for _, app := range m.apps {
					m.doc.own(app, m.snapshot(), r, nil, "p1", m.clock)
				}
			}
			shown := make(map[string]*ApplicationStatus)
			for name, a := range m.doc.apps {
				shown[name] = a.shown
			}
			self.truth = own()
			m.check("the proxy", shown, seen, m.truth())
		}
		// All is reported, and heard from a new stream.
		self.truth = own()
		m.reportAll(m.admins...)
		m.doc.begin()
		m.admins[0].hub.Status()
		messages, _ := m.admins[0].hub.update(&sentStatus{})
		for _, w := range messages {
			m.doc.take(w.GetStatus(), r)
		}
		for alone := range 2 {
			for _, app := range m.apps {
				a := m.doc.apps[app.Name].shown
				if alone == 1 {
					a = m.doc.own(app, m.snapshot(), r, nil, "p1", m.clock)
				}
				for key, want := range m.truth() {
					if key.App != app.Name || a.Usage == nil {
						continue
					}
					requests, usage := a.TotalRequests, a.Usage
					if key.ByLabel {
						requests, usage = a.TokenLabels[key.Label].Requests, a.TokenLabels[key.Label].Usage
					} else if key.Instance != "" {
						requests, usage = a.Instances[key.Instance].Requests, a.Instances[key.Instance].Usage
					}
					if requests != want.Requests || !usage.equal(usageStatus(&want.Usage)) {
						t.Fatalf("seed %d, alone %d: %+v shows %d, %+v; true is %+v", seed, alone, key, requests, usage, want)
					}
				}
			}
		}
	}
}

// serve is traffic through the proxy whose registry it is.
func (m *model) serve(r *stats.Registry) {
	a := r.App(fmt.Sprintf("app%d", m.rng.IntN(3)))
	in, l := a.Instance(fmt.Sprintf("dify%d", m.rng.IntN(3))), a.Label([]string{"", "web", "own"}[m.rng.IntN(3)])
	a.Begin(0)
	l.Begin(0)
	in.Begin(0)
	u := m.answer()
	for i := range u.Costs { // within what one registry tells apart
		u.Costs[i].Currency = fmt.Sprintf("C%d", m.rng.IntN(stats.MaxCurrencies))
	}
	in.AddUsage(m.rng.Uint32(), l, u)
	in.End(0, stats.Sample{})
	a.End(0, lb.ReasonOK)
}

func TestHub_SendsOnlyLabelsThatChanged(t *testing.T) {
	h := NewHub(HubOptions{Log: zerolog.Nop(), Counters: newMemStore()})
	app := lb.NewApplication("shop")
	h.SetSnapshot(&lb.Snapshot{Applications: []*lb.Application{app, lb.NewApplication("zoo")}})
	b := h.open(&pb.Hello{Node: "p", BootId: "b"})
	seq := uint64(0)
	report := func(usage *pb.Usage, labels ...*pb.LabelSeries) {
		seq++
		h.report(b, &pb.Report{Seq: seq, Full: true, Labels: labels, Series: []*pb.Series{{App: "shop", Totals: &pb.Totals{Requests: seq, Usage: usage}}}})
		h.Status()
	}
	label := func(name string, requests uint64) *pb.LabelSeries {
		return &pb.LabelSeries{App: "shop", Label: name, Totals: &pb.Totals{Requests: requests}}
	}
	sent := &sentStatus{}
	names := func() map[string]uint64 {
		messages, _ := h.update(sent)
		out := make(map[string]uint64)
		for _, m := range messages {
			for _, l := range m.GetStatus().GetLabels() {
				out[l.GetLabel()] = l.GetRequests()
			}
		}
		return out
	}
	expect := func(when string, want map[string]uint64) {
		t.Helper()
		if got := names(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v were sent, want %v", when, got, want)
		}
	}
	report(nil, label("a", 1), label("b", 1))
	expect("without any usage", map[string]uint64{})
	report(&pb.Usage{TotalTokens: 1})
	expect("with the first usage", map[string]uint64{"a": 1, "b": 1})
	report(&pb.Usage{TotalTokens: 1}, label("a", 1), label("b", 2))
	expect("after one changed", map[string]uint64{"b": 2})
	report(&pb.Usage{TotalTokens: 2})
	expect("after none changed", map[string]uint64{})
	report(&pb.Usage{TotalTokens: 2}, label("a", 3))
	report(&pb.Usage{TotalTokens: 2}, label("", 1))
	expect("after two changed", map[string]uint64{"a": 3, "": 1})
	sent = &sentStatus{}
	expect("to another", map[string]uint64{"a": 3, "b": 2, "": 1})
	h.SetSnapshot(&lb.Snapshot{ConfigRevision: 2})
	expect("after the application is gone", map[string]uint64{})
	h.SetSnapshot(&lb.Snapshot{ConfigRevision: 3, Applications: []*lb.Application{app}})
	expect("after it came back", map[string]uint64{"a": 3, "b": 2, "": 1})
}

func TestUpdate_ManyLabelsGoInPartsOfBoundedSize(t *testing.T) {
	h := NewHub(HubOptions{Log: zerolog.Nop(), Counters: newMemStore()})
	h.SetSnapshot(&lb.Snapshot{Applications: []*lb.Application{lb.NewApplication("shop")}})
	r := stats.NewRegistry(1)
	a := r.App("shop")
	const labels = stats.MaxLabels
	for i := range labels {
		l := a.Label(fmt.Sprint(i))
		l.Begin(0)
		a.Instance("dify1").AddUsage(0, l, dollars(uint64(i), 1))
	}
	l := NewLink(LinkOptions{Node: lb.Node{ID: "p", BootID: "b"}, Registry: r, Log: zerolog.Nop()})
	p := &peer{link: l}
	b, parts := h.open(&pb.Hello{Node: "p", BootId: "b"}), 0
	for m := range p.messages(&reported{}) {
		if n := len(m.GetReport().GetSeries()) + len(m.GetReport().GetLabels()); n > partSeries {
			t.Errorf("%d series in one message", n)
		}
		h.report(b, m.GetReport())
		parts++
	}
	if parts < labels/partSeries || !b.whole {
		t.Errorf("%d parts, whole: %v", parts, b.whole)
	}
	h.Status()
	messages, _ := h.update(&sentStatus{})
	d := document{apps: make(map[string]*shownApp)}
	for _, m := range messages {
		if size := proto.Size(m); size > 200*partSeries {
			t.Errorf("a message of %d bytes", size)
		}
		d.take(m.GetStatus(), r)
	}
	shown := d.apps["shop"].shown.TokenLabels
	if len(shown) != labels || shown["77"].Usage.TotalTokens != 77 || !d.whole {
		t.Errorf("%d labels, whole: %v", len(shown), d.whole)
	}
}

// What a version that knows no labels makes of the messages is what a reader
// makes of them without those fields.
func TestWire_ThoseThatKnowNoUsageSeeWhatTheySaw(t *testing.T) {
	r := stats.NewRegistry(1)
	l := &testLink{registry: r}
	l.requests("dify1", 3, lb.ReasonOK)
	messages := func() []*pb.ProxyMessage {
		p := &peer{link: NewLink(LinkOptions{Registry: r, Log: zerolog.Nop()})}
		var out []*pb.ProxyMessage
		for m := range p.messages(&reported{}) {
			out = append(out, m)
		}
		return out
	}
	strip := func(m *pb.ProxyMessage) {
		m.GetReport().Labels, m.GetReport().UptimeMillis = nil, 0
		for _, s := range m.GetReport().GetSeries() {
			s.Totals.Usage = nil
		}
	}
	before := messages()
	a := r.App("shop")
	a.Label("web").Begin(0)
	a.Instance("dify1").AddUsage(0, a.Label("web"), dollars(1, 1))
	after := messages()
	if len(before) != 1 || len(after) != 1 || len(after[0].GetReport().GetLabels()) != 1 {
		t.Fatalf("%v\n%v", before, after)
	}
	byName := func(m *pb.ProxyMessage) map[string]string {
		strip(m)
		out := make(map[string]string)
		for _, s := range m.GetReport().GetSeries() {
			if _, twice := out[s.GetApp()+"/"+s.GetInstance()]; twice {
				t.Errorf("two series of %s/%s", s.GetApp(), s.GetInstance())
			}
			out[s.GetApp()+"/"+s.GetInstance()] = s.String()
		}
		return out
	}
	if x, y := byName(before[0]), byName(after[0]); !reflect.DeepEqual(x, y) {
		t.Errorf("%v\n%v", x, y)
	}
	// And a document of an lb-admin that knows none takes nothing away.
	d := document{apps: make(map[string]*shownApp)}
	d.take(&pb.StatusUpdate{Full: true, Applications: []*pb.ApplicationStatus{{Name: "shop", Usage: &pb.Usage{TotalTokens: 5}}},
		Labels: []*pb.LabelStatus{{App: "shop", Label: "web", Requests: 2}, {App: "gone", Label: "web"}}}, r)
	d.begin()
	d.take(&pb.StatusUpdate{Full: true, Applications: []*pb.ApplicationStatus{{Name: "shop"}}}, r)
	if s := d.apps["shop"].shown; s.Usage == nil || s.Usage.TotalTokens != 5 || s.TokenLabels["web"] == nil || s.TokenLabels["web"].Requests != 2 || len(d.apps) != 1 {
		t.Errorf("%+v", s)
	}
}

func TestDocument_WhatWasShownDoesNotChange(t *testing.T) {
	r := stats.NewRegistry(1)
	d := document{apps: make(map[string]*shownApp)}
	update := func(apps bool, requests uint64) {
		u := &pb.StatusUpdate{Labels: []*pb.LabelStatus{{App: "shop", Label: "web", Requests: requests}}}
		if apps {
			u.Applications = []*pb.ApplicationStatus{{Name: "shop", Usage: &pb.Usage{Answers: requests}}}
		}
		d.take(u, r)
	}
	update(true, 1)
	for n := uint64(2); n < 8; n++ {
		shown := d.apps["shop"].shown
		before, _ := shown.MarshalJSON()
		update(n%2 == 0, n)
		if after, _ := shown.MarshalJSON(); string(after) != string(before) {
			t.Fatalf("%s became %s", before, after)
		}
		if got := d.apps["shop"].shown.TokenLabels["web"].Requests; got != n {
			t.Fatalf("%d requests shown, want %d", got, n)
		}
	}
}

func TestDocument_LabelsGoOnFromWhatWasToldLast(t *testing.T) {
	r := stats.NewRegistry(1)
	l := &testLink{registry: r}
	l.answered("dify1", "web", dollars(2, 1)) // is part of what the lb-admin tells
	d := document{apps: make(map[string]*shownApp)}
	d.take(&pb.StatusUpdate{Applications: []*pb.ApplicationStatus{{Name: "shop", Usage: &pb.Usage{TotalTokens: 10}}},
		Labels: []*pb.LabelStatus{{App: "shop", Label: "web", Requests: 5, Usage: &pb.Usage{TotalTokens: 10}}}}, r)
	// The application changes, the label does not.
	d.take(&pb.StatusUpdate{Applications: []*pb.ApplicationStatus{{Name: "shop", TotalRequests: 1, Usage: &pb.Usage{TotalTokens: 10}}}}, r)
	l.answered("dify1", "web", dollars(3, 1))
	a := d.own(lb.NewApplication("shop"), &lb.Snapshot{}, r, nil, "p1", time.Time{})
	if web := a.TokenLabels["web"]; web.Requests != 6 || web.Usage.TotalTokens != 13 {
		t.Errorf("%+v, %+v", web, web.Usage)
	}
}

func TestLink_ReportsLabelsThatChanged(t *testing.T) {
	l := &testLink{registry: stats.NewRegistry(1)}
	l.answered("dify1", "web", dollars(2, 1))
	l.answered("dify1", "cli", dollars(2, 1))
	p := &peer{link: NewLink(LinkOptions{Registry: l.registry, Log: zerolog.Nop()})}
	var sent reported
	labels := func() (names []string) {
		for m := range p.messages(&sent) {
			for _, s := range m.GetReport().GetLabels() {
				names = append(names, s.GetLabel())
			}
		}
		slices.Sort(names)
		return names
	}
	for i, want := range [][]string{{"cli", "web"}, nil, {"web"}, {"cli", "web"}} {
		switch i {
		case 2:
			l.registry.App("shop").Label("web").Begin(0)
		case 3:
			p.resync = true
		}
		if got := labels(); !slices.Equal(got, want) {
			t.Errorf("report %d holds %v, want %v", i, got, want)
		}
	}
}

func TestStatus_JSONWithUsage(t *testing.T) {
	u := &UsageStatus{PromptTokens: 10, CompletionTokens: 5, TotalTokens: 15, Answers: 2, Cost: map[string]string{"USD": "0.000186", "<\">": "1"}, Unpriced: 3}
	a := &ApplicationStatus{
		Instances:   map[string]*InstanceStatus{"dify1": {Usage: u, Since: time.Unix(0, 0).UTC()}},
		Usage:       u,
		TokenLabels: map[string]*LabelStatus{"": {Requests: 1}, "web: a/b": {Requests: 2, Usage: u}},
	}
	got, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	type plain ApplicationStatus // by its tags
	tagged, err := json.Marshal((*plain)(a))
	if err != nil || string(tagged) != string(got) {
		t.Errorf("by tags:\n%s, %v\nby hand:\n%s", tagged, err, got)
	}
	var back ApplicationStatus
	if err := json.Unmarshal(got, &back); err != nil || !reflect.DeepEqual(&back, a) {
		t.Errorf("read again: %+v, %v", back, err)
	}
	empty := &ApplicationStatus{Instances: map[string]*InstanceStatus{"dify1": {}}}
	if got, _ = json.Marshal(empty); strings.Contains(string(got), "usage") || strings.Contains(string(got), "label") {
		t.Errorf("without usage: %s", got)
	}
	bare, _ := json.Marshal(&ApplicationStatus{Usage: &UsageStatus{}})
	if !strings.Contains(string(bare), `"cost":{}`) {
		t.Errorf("without costs: %s", bare)
	}
}

func TestUsageStatus_WireAndBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	for range 300 {
		var u stats.Usage
		for range rng.IntN(4) {
			u.Add(&stats.Usage{Prompt: rng.Uint64() >> rng.IntN(64), Answers: 1, Unpriced: rng.Uint64N(2)})
			u.AddCost(stats.Cost{Currency: fmt.Sprint("C", rng.IntN(5)), Nano: rng.Uint64() >> rng.IntN(64)})
		}
		if got := usageFromWire(usageToWire(&u)); !reflect.DeepEqual(got, u) {
			t.Fatalf("wire: %+v, was %+v", got, u)
		}
		if got := usageStatus(&u).counts(); !reflect.DeepEqual(got, u) {
			t.Fatalf("status: %+v, was %+v", got, u)
		}
	}
	bad := usageFromWire(&pb.Usage{PromptTokens: 1 << 63, Costs: []*pb.Cost{{Currency: "\x01", Nano: 1}, {Currency: "B", Nano: 1 << 63}, {Currency: "A", Nano: 2}, {Currency: "A", Nano: 3}}})
	want := stats.Usage{Prompt: 1<<63 - 1, Unpriced: 1, Costs: []stats.Cost{{Currency: "A", Nano: 5}, {Currency: "B", Nano: 1<<63 - 1}}}
	if !reflect.DeepEqual(bad, want) {
		t.Errorf("%+v, want %+v", bad, want)
	}
}

func TestHub_UsageThatWasShownStaysWhenFiguresAreMissing(t *testing.T) {
	h := NewHub(HubOptions{Log: zerolog.Nop(), Counters: newMemStore()})
	app := lb.NewApplication("shop")
	app.Instances = []lb.Instance{{Name: "dify1", State: lb.Active}}
	h.SetSnapshot(&lb.Snapshot{Applications: []*lb.Application{app}})
	report := func(seq, n uint64, labels ...string) {
		u := &pb.Usage{TotalTokens: n, Costs: []*pb.Cost{{Currency: "USD", Nano: n}}}
		r := &pb.Report{Seq: seq, Full: true, Series: []*pb.Series{{App: "shop", Totals: &pb.Totals{Usage: u}}, {App: "shop", Instance: "dify1", Totals: &pb.Totals{Usage: u}}}}
		for _, l := range labels {
			r.Labels = append(r.Labels, &pb.LabelSeries{App: "shop", Label: l, Totals: &pb.Totals{Requests: n, Usage: u}})
		}
		h.report(h.open(&pb.Hello{Node: "p", BootId: "b"}), r)
	}
	report(1, 9, "web", "cli")
	want, _ := h.Status().Applications["shop"].MarshalJSON()
	h.ledger = newLedger(h.ledger.touched, h.ledger.dirtied) // all is forgotten
	report(2, 4, "web")
	if got, _ := h.Status().Applications["shop"].MarshalJSON(); string(got) != string(want) {
		t.Errorf("%s became %s", want, got)
	}
	messages, _ := h.update(&sentStatus{})
	for _, m := range messages {
		for _, l := range m.GetStatus().GetLabels() {
			if l.GetRequests() != 9 || l.GetUsage().GetTotalTokens() != 9 {
				t.Errorf("proxies are told %v", l)
			}
		}
	}
	low := &ApplicationStatus{TokenLabels: map[string]*LabelStatus{"web": {Requests: 10}}}
	low.raise(h.Status().Applications["shop"])
	if l := low.TokenLabels["web"]; l.Requests != 10 || l.Usage == nil || l.Usage.TotalTokens != 9 || low.TokenLabels["cli"] == nil {
		t.Errorf("%+v", low.TokenLabels)
	}
}
