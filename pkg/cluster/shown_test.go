package cluster

import (
	"context"
	"slices"
	"testing"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
	pb "difylb/proto"
)

// A proxy and the only lb-admin die before the store has had the proxy's last
// figures. The other proxy has shown them: they must not go back, neither there
// nor at the ones that begin anew, and nothing may be counted twice.
func TestShown_FiguresOutliveThoseWhoToldThem(t *testing.T) {
	c := newTestCluster(t)
	h := c.hub("admin1", "127.0.0.1:0")
	p1, p2 := c.link("proxy1", "b1"), c.link("proxy2", "b1")
	p1.requests("dify1", 10, lb.ReasonOK)
	p2.requests("dify1", 5, lb.ReasonOK)
	whole := func(s *Status, n uint64) bool { return s.Complete && requestsOf(s) == n }
	eventually(t, "both show the sum", func() bool { return whole(p1.Status(), 15) && whole(p2.Status(), 15) })
	p1.stop()
	h.stop()

	h2 := c.hub("admin1", h.address)
	p1 = c.link("proxy1", "b2")
	seen := 0
	look := func(what string, s *Status) bool {
		if s.Complete {
			seen++
			if n := requestsOf(s); n < 15 {
				t.Errorf("%s shows %d requests of 15 as complete", what, n)
			}
			if in := s.Applications["shop"].Instances["dify1"]; in.Requests < 15 || in.BytesIn < 150 {
				t.Errorf("%s shows %+v as complete", what, in)
			}
		}
		return whole(s, 15)
	}
	eventually(t, "all are whole again", func() bool {
		a, b, hub := look("the new proxy", p1.Status()), look("the old proxy", p2.Status()), look("lb-admin", h2.Status())
		return a && b && hub
	})
	// What is lost is lost: the figures wait until the sums have caught up.
	p1.requests("dify1", 4, lb.ReasonOK)
	eventually(t, "it was reported", func() bool { return h2.Totals(stats.Key{App: "shop"}).Requests == 9 })
	for _, s := range []*Status{p1.Status(), p2.Status(), h2.Status()} {
		look("behind", s)
	}
	p1.requests("dify1", 16, lb.ReasonOK)
	eventually(t, "the sums have caught up, each request counted once", func() bool {
		return whole(p1.Status(), 25) && whole(p2.Status(), 25) && whole(h2.Status(), 25)
	})
	if seen == 0 {
		t.Error("nothing was complete")
	}
}

func TestShown_LiftsLabelsAndUsageOfDeclaredApplications(t *testing.T) {
	h := NewHub(HubOptions{NodeID: "admin"})
	h.SetSnapshot(newTestCluster(t).snap)
	usage := func(n uint64) stats.Usage {
		u := stats.Usage{Prompt: n, Completion: n, Total: 2 * n, Answers: 1}
		u.AddCost(stats.Cost{Currency: "USD", Nano: 1000 * n})
		return u
	}
	h.mu.Lock()
	b := h.ledger.boot(bootKey{"p", "b"}, h.now())
	for _, key := range []stats.Key{{App: "shop"}, {App: "shop", Instance: "dify1"}, stats.LabelKey("shop", "web")} {
		h.ledger.report(b, 1, &stats.Series{Key: key, Totals: stats.Totals{Requests: 3, Usage: usage(3)}}, noSlot, h.now())
	}
	h.mu.Unlock()
	shown := func(epoch string, n uint64) *pb.StatusUpdate {
		u := usage(n)
		floor := &ApplicationStatus{TotalRequests: n, Usage: usageStatus(&u), Instances: map[string]*InstanceStatus{
			"dify1": {Requests: n, Usage: usageStatus(&u)}, "gone": {Requests: n}}}
		label := &LabelStatus{Requests: n, Usage: usageStatus(&u)}
		return &pb.StatusUpdate{Epoch: epoch,
			Applications: []*pb.ApplicationStatus{applicationToWire("shop", floor), applicationToWire("gone", floor)},
			Labels:       []*pb.LabelStatus{labelToWire("shop", "web", label), labelToWire("shop", "never", label), labelToWire("gone", "web", label)}}
	}
	check := func(what string, n uint64) {
		t.Helper()
		s := h.Status()
		a := s.Applications["shop"]
		want := usage(n)
		if len(s.Applications) != 1 || a.TotalRequests != n || a.Instances["dify1"].Requests != n || len(a.Instances) != 2 || len(a.TokenLabels) != 1 ||
			a.TokenLabels["web"].Requests != n || !a.TokenLabels["web"].Usage.equal(usageStatus(&want)) || !a.Usage.equal(usageStatus(&want)) {
			t.Errorf("%s: %+v, labels %+v, usage %+v", what, a, a.TokenLabels["web"], a.Usage)
		}
	}
	check("at first", 3)
	version := h.version
	h.takeShown(shown("e", 2))
	if check("less was shown", 3); h.version != version {
		t.Error("a view was made anew for nothing")
	}
	h.takeShown(shown("another", 9))
	check("another store's", 3)
	h.takeShown(shown("e", 7))
	check("more was shown", 7)
	if sent := (&sentStatus{versions: map[string]uint64{"shop": version}, started: true, header: h.header}); true {
		m, _ := h.update(sent)
		if len(m) != 1 || len(m[0].GetStatus().GetApplications()) != 1 || len(m[0].GetStatus().GetLabels()) != 1 {
			t.Errorf("proxies are told %+v", m)
		}
	}
	h.mu.Lock()
	h.ledger.report(b, 2, &stats.Series{Key: stats.Key{App: "shop"}, Totals: stats.Totals{Requests: 5, Usage: usage(5)}}, noSlot, h.now())
	h.mu.Unlock()
	check("the sums are still behind", 7)
	if n := h.Totals(stats.Key{App: "shop"}).Requests; n != 5 {
		t.Errorf("the sum is %d: what was shown must not become a part of it", n)
	}
}

func TestLink_AsksWhoHasBeenThereForLongest(t *testing.T) {
	c := newTestCluster(t)
	started := func(id string, at int64) {
		c.change(func(s *lb.Snapshot) {
			i := slices.IndexFunc(s.Nodes, func(n lb.Node) bool { return n.ID == id })
			s.Nodes[i].Started = time.Unix(at, 0)
		})
	}
	young := c.hub("young", "127.0.0.1:0")
	started("young", 2000)
	p := c.link("proxy1", "b1")
	primary := func() string {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.primary == nil {
			return ""
		}
		return p.primary.key.id
	}
	eventually(t, "the only one is asked", func() bool { return primary() == "young" && p.Status().Complete })
	old := c.hub("old", "127.0.0.1:0")
	started("old", 1000)
	eventually(t, "the older one is asked", func() bool { return primary() == "old" && p.Status().Complete })
	middle := c.hub("middle", "127.0.0.1:0")
	started("middle", 1500)
	eventually(t, "all are linked", func() bool { return p.Connected() == 3 })
	if got := primary(); got != "old" {
		t.Errorf("%q is asked", got)
	}
	old.stop()
	eventually(t, "the next one is asked", func() bool { return primary() == "middle" && p.Status().Complete })
	middle.stop()
	eventually(t, "the last one is asked", func() bool { return primary() == "young" && p.Status().Complete })
	young.stop()
}

// However far apart the links have begun, the reports on them go out together:
// when a proxy is killed, no lb-admin knows more of it than another.
func TestLink_ReportsToAllAtTheSameTimes(t *testing.T) {
	const every = 400 * time.Millisecond
	c := newTestCluster(t)
	one := c.hub("admin1", "127.0.0.1:0")
	with := quick
	with.report, with.stalled, with.fresh = every, time.Minute, time.Minute
	p := c.linkWith("proxy1", "b1", with)
	eventually(t, "linked with the first", func() bool { return p.Connected() == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), every*3/2-time.Since(p.began)%every)
	defer cancel()
	<-ctx.Done() // half way between two reports
	two := c.hub("admin2", "127.0.0.1:0")
	eventually(t, "linked with the second", func() bool { return p.Connected() == 2 })
	at := func(h *testHub) time.Time {
		h.mu.Lock()
		defer h.mu.Unlock()
		if b := h.ledger.boots[bootKey{"proxy1", "b1"}]; b != nil {
			return b.lastReport
		}
		return time.Time{}
	}
	eventually(t, "reports come together", func() bool {
		a, b := at(one), at(two)
		return !a.IsZero() && !b.IsZero() && a.Sub(b).Abs() < every/8
	})
}
