package cluster

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
)

// fakeProber is moved by hand.
type fakeProber struct {
	node    string
	elected atomic.Bool
	told    atomic.Int64 // probes that were told to others

	mu   sync.Mutex // guards all below
	seq  int64
	seqs map[stats.Key]int64
	last map[stats.Key]LastProbe
}

func (p *fakeProber) probe(instance string, at time.Time, verdict lb.Health) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil {
		p.seqs, p.last = make(map[stats.Key]int64), make(map[stats.Key]LastProbe)
	}
	key := stats.Key{App: "shop", Instance: instance}
	p.seq++
	p.seqs[key] = p.seq
	p.last[key] = LastProbe{Time: at.UTC(), DurationMS: 2.5, Verdict: verdict, Found: "status 200", By: p.node}
}

func (p *fakeProber) Elected() bool { return p.elected.Load() }

func (p *fakeProber) LastProbe(app, instance string) (LastProbe, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, ok := p.last[stats.Key{App: app, Instance: instance}]
	return l, ok
}

func (p *fakeProber) LastProbes(after int64, f func(string, string, int64, LastProbe)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, l := range p.last {
		if p.seqs[key] > after {
			p.told.Add(1)
			f(key.App, key.Instance, p.seqs[key], l)
		}
	}
}

// probingHub is a hub with a prober, whose clock the test moves.
func (c *testCluster) probingHub(id string, clock func() time.Time) (*testHub, *fakeProber) {
	c.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	p := &fakeProber{node: id}
	h := &testHub{Hub: NewHub(HubOptions{NodeID: id, Log: zerolog.Nop(), Counters: c.store, Probes: p, Now: clock}), address: ln.Addr().String()}
	server := NewServer(h.Hub, nil)
	stop := c.background(func(context.Context) error { return server.Serve(ln) })
	h.stop = sync.OnceFunc(func() { server.Stop(); stop() })
	c.t.Cleanup(h.stop)
	c.hubs = append(c.hubs, h)
	c.change(func(s *lb.Snapshot) {
		s.Nodes = slices.DeleteFunc(s.Nodes, func(n lb.Node) bool { return n.ID == id })
		s.Nodes = append(s.Nodes, lb.Node{ID: id, Role: lb.RoleAdmin, GRPC: h.address, BootID: id})
	})
	return h, p
}

// TestHub_EveryAdminKnowsTheLastProbes: only the elected one probes, all tell
// of it, also after another was elected, and what changed is all that is asked for.
func TestHub_EveryAdminKnowsTheLastProbes(t *testing.T) {
	c := newTestCluster(t)
	var offset atomic.Int64
	clock := func() time.Time { return time.Unix(1_700_000_000, offset.Load()) }
	pass := func() { offset.Add(int64(2 * probesEvery)) }
	a1, p1 := c.probingHub("admin1", clock)
	a2, p2 := c.probingHub("admin2", clock)
	a3, _ := c.probingHub("admin3", clock)
	at := time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC)

	p1.elected.Store(true)
	p1.probe("dify1", at, lb.Healthy)
	p1.probe("gone", at, lb.Healthy) // is not declared
	for _, h := range []*testHub{a1, a2, a3} {
		last := h.LastProbes(t.Context())
		if got := last("shop", "dify1"); got == nil || *got != (LastProbe{Time: at, DurationMS: 2.5, Verdict: lb.Healthy, Found: "status 200", By: "admin1"}) {
			t.Errorf("%s: %+v", h.opts.NodeID, got)
		}
		if got := last("shop", "dify2"); got != nil {
			t.Errorf("%s of one that was never probed: %+v", h.opts.NodeID, got)
		}
	}
	if _, kept := a2.probes.known[stats.Key{App: "shop", Instance: "gone"}]; kept {
		t.Error("what is not declared is kept")
	}

	// Asked again at once, nobody asks; later, for what is new.
	told := p1.told.Load()
	p1.probe("dify1", at.Add(time.Minute), lb.Unhealthy)
	if got := a2.LastProbes(t.Context())("shop", "dify1"); got == nil || !got.Time.Equal(at) {
		t.Errorf("within a second: %+v", got)
	}
	pass()
	p1.probe("dify2", at, lb.Healthy)
	if got := a2.LastProbes(t.Context())("shop", "dify1"); got == nil || got.Verdict != lb.Unhealthy || !got.Time.Equal(at.Add(time.Minute)) {
		t.Errorf("after a second: %+v", got)
	}
	if n := p1.told.Load() - told; n != 2 {
		t.Errorf("%d were told, want the two new ones", n)
	}

	// Another is elected. What it has not probed yet, the first one did.
	p1.elected.Store(false)
	p2.elected.Store(true)
	p2.probe("dify1", at.Add(time.Hour), lb.Healthy)
	pass()
	for _, h := range []*testHub{a1, a2} {
		last := h.LastProbes(t.Context())
		if got := last("shop", "dify1"); got == nil || got.By != "admin2" {
			t.Errorf("%s: %+v", h.opts.NodeID, got)
		}
		if got := last("shop", "dify2"); got == nil || got.By != "admin1" {
			t.Errorf("%s: %+v", h.opts.NodeID, got)
		}
	}

	// The elected one does not answer: what is known is what there is, and nobody waits long.
	a2.stop()
	pass()
	began := time.Now()
	if got := a1.LastProbes(t.Context())("shop", "dify1"); got == nil || got.By != "admin2" {
		t.Errorf("%+v", got)
	}
	if took := time.Since(began); took > 5*probesPatience {
		t.Errorf("it took %s", took)
	}
}

func TestHub_ProbesWantTheClusterKeyAndComeInParts(t *testing.T) {
	c := newTestCluster(t)
	h, p := c.probingHub("admin1", time.Now)
	p.elected.Store(true)
	at := time.Unix(1_700_000_000, 0)
	for i := range 2*partSeries + 1 {
		p.probe(fmt.Sprint("i", i), at, lb.Healthy)
	}
	n := lb.Node{ID: "admin1", GRPC: h.address}
	admin := &otherAdmin{n, c.snap.ClusterKey, nil}
	if told, err := (&otherAdmin{n, "another key", nil}).probes(t.Context(), 0); err == nil {
		t.Errorf("with a wrong key: %d probes", len(told.probes))
	}
	told, err := admin.probes(t.Context(), 0)
	if err != nil || !told.elected || len(told.probes) != 2*partSeries+1 || told.newest != 2*partSeries+1 {
		t.Errorf("%+v, %v", told, err)
	}
	p.elected.Store(false)
	if told, err = admin.probes(t.Context(), 0); err != nil || told.elected || len(told.probes) > 0 {
		t.Errorf("of one that is not elected: %+v, %v", told, err)
	}
}

func TestStatus_WithProbesLeavesTheOriginalAlone(t *testing.T) {
	s := &Status{Applications: map[string]*ApplicationStatus{"shop": {Instances: map[string]*InstanceStatus{"dify1": {}, "dify2": {}}}}}
	with := s.WithProbes(func(_, instance string) *LastProbe {
		if instance == "dify2" {
			return nil
		}
		return &LastProbe{Found: "status 200"}
	})
	if s.Applications["shop"].Instances["dify1"].LastProbe != nil {
		t.Error("the original has changed")
	}
	if p := with.Applications["shop"].Instances["dify1"].LastProbe; p == nil || p.Found != "status 200" || with.Applications["shop"].Instances["dify2"].LastProbe != nil {
		t.Errorf("%+v", p)
	}
}

func TestHub_TellsTheOtherAdmins(t *testing.T) {
	c := newTestCluster(t)
	a1, a2, a3 := c.hub("admin1", "127.0.0.1:0"), c.hub("admin2", "127.0.0.1:0"), c.hub("admin3", "127.0.0.1:0")
	heard := make(chan string, 8)
	for _, h := range []*testHub{a1, a2, a3} {
		h.OnAnnounced(func(kind string, data []byte) error {
			if kind == "bad" {
				return lb.Errorf(lb.ErrInvalid, "no such kind")
			}
			heard <- h.opts.NodeID + " " + kind + " " + string(data)
			return nil
		})
	}
	a1.Tell(t.Context(), "node.accept", []byte(`{"node":"p1"}`))
	a1.Tell(t.Context(), "bad", nil)
	a3.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	a1.Tell(ctx, "node.accept", []byte(`{}`)) // one is gone, the other hears it
	close(heard)
	var got []string
	for s := range heard {
		got = append(got, s)
	}
	slices.Sort(got)
	if want := []string{`admin2 node.accept {"node":"p1"}`, `admin2 node.accept {}`, `admin3 node.accept {"node":"p1"}`}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	n := lb.Node{ID: "admin2", GRPC: a2.address}
	for what, err := range map[string]error{
		"a wrong key": (&otherAdmin{n, "another key", nil}).announce(t.Context(), "node.accept", nil),
		"too much":    (&otherAdmin{n, c.snap.ClusterKey, nil}).announce(t.Context(), "node.accept", make([]byte, maxAnnouncement+1)),
		"a bad kind":  (&otherAdmin{n, c.snap.ClusterKey, nil}).announce(t.Context(), "bad", nil),
	} {
		if err == nil {
			t.Errorf("%s passes", what)
		}
	}
}
