package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
	pb "difylb/proto"
)

// lockedStore makes a memStore safe for concurrent use.
type lockedStore struct {
	mu sync.Mutex
	*memStore
}

func (s *lockedStore) LoadCounters(ctx context.Context) ([]CounterChunk, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.memStore.LoadCounters(ctx)
}

func (s *lockedStore) put(term int, c CounterChunk) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.memStore.put(term, c)
}

func (s *lockedStore) office() office {
	s.mu.Lock()
	defer s.mu.Unlock()
	return office{s, s.term}
}

// testCluster is lb-admins and proxies that talk over loopback.
type testCluster struct {
	t     *testing.T
	store *lockedStore
	snap  *lb.Snapshot
	hubs  []*testHub
	links []*testLink
}

type testHub struct {
	*Hub
	address string
	stop    func()
}

type testLink struct {
	*Link
	registry *stats.Registry
	stop     func()
}

func newTestCluster(t *testing.T) *testCluster {
	app := lb.NewApplication("shop")
	for _, name := range []string{"dify1", "dify2"} {
		app.Instances = append(app.Instances, lb.Instance{Name: name, State: lb.Active})
	}
	return &testCluster{
		t: t, store: &lockedStore{memStore: newMemStore()},
		snap: &lb.Snapshot{Revision: 7, ConfigRevision: 7, Epoch: "e", Applications: []*lb.Application{app}, ClusterKey: "cluster-key"},
	}
}

// change makes a new snapshot known everywhere.
func (c *testCluster) change(edit func(*lb.Snapshot)) {
	s := *c.snap
	s.Nodes = slices.Clone(s.Nodes)
	edit(&s)
	c.snap = &s
	for _, h := range c.hubs {
		h.SetSnapshot(c.snap)
	}
	for _, l := range c.links {
		l.SetSnapshot(c.snap)
	}
}

// background runs a component and returns what ends it and waits.
func (c *testCluster) background(run func(context.Context) error) func() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil {
			c.t.Errorf("run: %v", err)
		}
	}()
	stop := sync.OnceFunc(func() { cancel(); <-done })
	c.t.Cleanup(stop)
	return stop
}

func (c *testCluster) hub(id, address string) *testHub {
	c.t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		c.t.Fatal(err)
	}
	h := &testHub{Hub: NewHub(HubOptions{NodeID: id, Log: zerolog.Nop(), Counters: c.store}), address: ln.Addr().String()}
	server := NewServer(h.Hub, nil)
	stopServe := c.background(func(context.Context) error { return server.Serve(ln) })
	stopRun := c.background(h.Run)
	h.stop = sync.OnceFunc(func() { server.Stop(); stopServe(); stopRun() })
	c.t.Cleanup(h.stop)
	c.hubs = append(c.hubs, h)
	c.change(func(s *lb.Snapshot) {
		s.Nodes = slices.DeleteFunc(s.Nodes, func(n lb.Node) bool { return n.ID == id })
		s.Nodes = append(s.Nodes, lb.Node{ID: id, Role: lb.RoleAdmin, GRPC: h.address, BootID: id})
	})
	return h
}

var quick = times{report: 30 * time.Millisecond, stalled: 600 * time.Millisecond, change: 250 * time.Millisecond, fresh: 400 * time.Millisecond, samples: 50 * time.Millisecond}

func (c *testCluster) link(id, boot string) *testLink { return c.linkWith(id, boot, quick) }

func (c *testCluster) linkWith(id, boot string, with times, change ...func(*LinkOptions)) *testLink {
	node := lb.Node{ID: id, Role: lb.RoleProxy, BootID: boot, Version: "v1", Started: time.Now()}
	r := stats.NewRegistry(2)
	o := LinkOptions{Node: node, Registry: r, Log: zerolog.Nop()}
	for _, f := range change {
		f(&o)
	}
	l := &testLink{Link: NewLink(o), registry: r}
	l.times = with
	l.stop = c.background(l.Run)
	c.links = append(c.links, l)
	c.change(func(s *lb.Snapshot) {
		s.Nodes = slices.DeleteFunc(s.Nodes, func(n lb.Node) bool { return n.ID == id })
		s.Nodes = append(s.Nodes, node)
	})
	return l
}

func (l *testLink) requests(instance string, n int, reason lb.Reason) {
	a := l.registry.App("shop")
	in := a.Instance(instance)
	for range n {
		a.Begin(0)
		in.Begin(0)
		in.End(0, stats.Sample{Reason: reason, BytesIn: 10, BytesOut: 20, Latency: 40 * time.Millisecond, FirstByte: 20 * time.Millisecond})
		a.End(0, reason)
	}
}

// eventually waits for a condition; it is polled because the parties to it
// run by themselves.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func requestsOf(s *Status) uint64 {
	if a := s.Applications["shop"]; a != nil {
		return a.TotalRequests
	}
	return 0
}

func TestCluster_EveryNodeShowsTheSumOfAll(t *testing.T) {
	c := newTestCluster(t)
	c.hub("admin1", "127.0.0.1:0")
	c.hub("admin2", "127.0.0.1:0")
	p1, p2 := c.link("proxy1", "b1"), c.link("proxy2", "b2")
	p1.requests("dify1", 30, lb.ReasonOK)
	p2.requests("dify1", 12, lb.ReasonOK)
	p2.requests("dify2", 3, lb.ReasonConnectFailed)

	for name, source := range map[string]func() *Status{
		"admin1": c.hubs[0].Status, "admin2": c.hubs[1].Status, "proxy1": p1.Status, "proxy2": p2.Status,
	} {
		eventually(t, name+" shows 45 requests", func() bool { s := source(); return s.Complete && requestsOf(s) == 45 })
		s := source()
		if s.Nodes != (NodeCounts{Proxies: 2, Admins: 2, Reporting: 2}) || s.Revision != 7 || s.Status != "running" {
			t.Errorf("%s: %+v", name, s)
		}
		a := s.Applications["shop"]
		one, two := a.Instances["dify1"], a.Instances["dify2"]
		if a.Errors != 3 || one.Requests != 42 || one.Errors != 0 || one.BytesOut != 840 || two.Errors != 3 {
			t.Errorf("%s: %+v, dify1 %+v, dify2 %+v", name, a, one, two)
		}
		if one.LastError != nil || two.LastError == nil || two.LastError.Reason != "connect_failed" {
			t.Errorf("%s: last errors %v, %v", name, one.LastError, two.LastError)
		}
		if p := one.Latency.P50; p < 37 || p > 43 {
			t.Errorf("%s: median latency %v ms, true is 40", name, p)
		}
	}
}

func TestCluster_GaugesAreThoseOfLiveProxies(t *testing.T) {
	c := newTestCluster(t)
	h := c.hub("admin1", "127.0.0.1:0")
	p := c.link("proxy1", "b1")
	in := p.registry.App("shop").Instance("dify1")
	in.Begin(0)
	in.StreamBegin(0)
	open := func() (int64, int64) {
		i := h.Status().Applications["shop"].Instances["dify1"]
		return i.Active, i.Streams
	}
	eventually(t, "one open stream", func() bool { a, s := open(); return a == 1 && s == 1 })
	p.stop()
	eventually(t, "no open stream after the proxy is gone", func() bool { a, s := open(); return a == 0 && s == 0 })
	if s := h.Status(); s.Complete || s.Nodes.Reporting != 0 || s.Nodes.Proxies != 1 {
		t.Errorf("a registered proxy is silent, yet %+v", s)
	}
}

func TestLink_AnotherAdminTakesOverWithoutAGap(t *testing.T) {
	c := newTestCluster(t)
	c.hub("admin1", "127.0.0.1:0")
	c.hub("admin2", "127.0.0.1:0")
	p := c.link("proxy1", "b1")
	p.requests("dify1", 5, lb.ReasonOK)
	eventually(t, "both linked and whole", func() bool { return p.Connected() == 2 && p.Status().Complete && requestsOf(p.Status()) == 5 })
	p.mu.Lock()
	primary := p.primary.key.id
	p.mu.Unlock()
	for _, h := range c.hubs {
		if h.opts.NodeID == primary {
			h.stop()
		}
	}
	p.requests("dify1", 5, lb.ReasonOK)
	eventually(t, "the other's document", func() bool {
		s := p.Status()
		if requestsOf(s) < 5 {
			t.Fatalf("went back to %d", requestsOf(s))
		}
		return s.Complete && requestsOf(s) == 10
	})
}

func TestLink_CountsOnWhileNoAdminAnswers(t *testing.T) {
	c := newTestCluster(t)
	h := c.hub("admin1", "127.0.0.1:0")
	lead := c.background(func(ctx context.Context) error { return h.Lead(ctx, c.store.office()) })
	p1, p2 := c.link("proxy1", "b1"), c.link("proxy2", "b2")
	p1.requests("dify1", 20, lb.ReasonOK)
	p2.requests("dify1", 7, lb.ReasonOK)
	eventually(t, "27 at proxy1", func() bool { s := p1.Status(); return s.Complete && requestsOf(s) == 27 })

	lead() // writes what it knows
	h.stop()
	p1.requests("dify1", 4, lb.ReasonOK)
	eventually(t, "27 and its own 4", func() bool { s := p1.Status(); return !s.Complete && requestsOf(s) == 31 })
	p2.stop()
	p3 := c.link("proxy2", "b3") // restarted; its counters begin at 0
	p3.requests("dify1", 2, lb.ReasonOK)
	eventually(t, "proxy2 shows its own", func() bool { return requestsOf(p3.Status()) == 2 })

	c.hubs = nil
	c.hub("admin1", h.address)
	eventually(t, "all of it at proxy1", func() bool {
		s := p1.Status()
		if requestsOf(s) < 31 {
			t.Fatalf("went back to %d", requestsOf(s))
		}
		return s.Complete && requestsOf(s) == 33
	})
	eventually(t, "all of it at proxy2", func() bool { s := p3.Status(); return s.Complete && requestsOf(s) == 33 })
}

func TestHub_RefusesWhoDoesNotKnowTheClusterKey(t *testing.T) {
	c := newTestCluster(t)
	h := c.hub("admin1", "127.0.0.1:0")
	conn, err := grpc.NewClient("passthrough:///"+h.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(md ...string) error {
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), md...), 10*time.Second)
		defer cancel()
		s, err := pb.NewClusterClient(conn).Link(ctx)
		if err != nil {
			return err
		}
		_ = s.Send(&pb.ProxyMessage{Kind: &pb.ProxyMessage_Hello{Hello: &pb.Hello{Node: "p", BootId: "b"}}})
		_, err = s.Recv()
		return err
	}
	for name, md := range map[string][]string{
		"none":     nil,
		"empty":    {"authorization", "Bearer "},
		"wrong":    {"authorization", "Bearer cluster-kez"},
		"scheme":   {"authorization", "Basic cluster-key"},
		"longer":   {"authorization", "Bearer cluster-key1"},
		"repeated": {"authorization", "Bearer cluster-key", "authorization", "Bearer cluster-key"},
	} {
		err := ask(md...)
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("key %s: %v", name, err)
		}
		if strings.Contains(err.Error(), "cluster-key") {
			t.Errorf("key %s: the answer holds the key", name)
		}
	}
	if err := ask("authorization", "bearer cluster-key"); err != nil {
		t.Errorf("right key: %v", err)
	}
	c.change(func(s *lb.Snapshot) { s.ClusterKey = "" })
	if err := ask("authorization", "Bearer "); status.Code(err) != codes.Unavailable {
		t.Errorf("no key known: %v", err)
	}
}

func TestHub_KeyChangeEndsOldStreams(t *testing.T) {
	c := newTestCluster(t)
	h := c.hub("admin1", "127.0.0.1:0")
	p := c.link("proxy1", "b1")
	eventually(t, "linked", func() bool { return p.Connected() == 1 })
	s := *c.snap
	s.ClusterKey = "another"
	h.SetSnapshot(&s)
	eventually(t, "cut off", func() bool { return p.Connected() == 0 })
	p.SetSnapshot(&s)
	eventually(t, "linked with the new key", func() bool { return p.Connected() == 1 })
}

// stuckServer reads hello and then nothing more, as a stopped process would.
type stuckServer struct {
	pb.UnimplementedClusterServer
	begun chan struct{}
}

func (s *stuckServer) Link(stream grpc.BidiStreamingServer[pb.ProxyMessage, pb.AdminMessage]) error {
	if err := stream.Send(&pb.AdminMessage{}); err != nil {
		return err
	}
	select {
	case s.begun <- struct{}{}:
	default:
	}
	<-stream.Context().Done()
	return nil
}

func TestLink_StalledAdminLosesOnlyItsOwnStream(t *testing.T) {
	c := newTestCluster(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stuck := &stuckServer{begun: make(chan struct{}, 1)}
	server := grpc.NewServer()
	pb.RegisterClusterServer(server, stuck)
	stopServe := c.background(func(context.Context) error { return server.Serve(ln) })
	defer func() { server.Stop(); stopServe() }()
	// And one that accepts connections and never says a word.
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	c.change(func(s *lb.Snapshot) {
		s.Nodes = append(s.Nodes,
			lb.Node{ID: "stuck", Role: lb.RoleAdmin, GRPC: ln.Addr().String()},
			lb.Node{ID: "mute", Role: lb.RoleAdmin, GRPC: mute.Addr().String()})
	})
	// The healthy one, too, may take a while over what comes below.
	slow := quick
	slow.stalled = 2 * time.Second
	p := c.linkWith("proxy1", "b1", slow)
	<-stuck.begun
	c.hub("admin1", "127.0.0.1:0")
	p.requests("dify1", 3, lb.ReasonOK)
	// Enough figures that flow control stops the stuck stream.
	for i := range 20_000 {
		in := p.registry.App("bulk").Instance("i" + string(rune('a'+i%26)) + time.Duration(i).String())
		in.Begin(0)
		in.End(0, stats.Sample{Latency: time.Duration(i) * time.Microsecond})
	}
	eventually(t, "the healthy lb-admin's document", func() bool { s := p.Status(); return s.Complete && requestsOf(s) == 3 })
	began := time.Now()
	for i := range 1000 {
		p.SetReceipt(Receipt{ConfigRevision: int64(i)})
		p.SetEjections(nil)
		p.Status()
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("3,000 calls beside a stalled lb-admin took %v", d)
	}
	// The stalled stream is given up and tried again, long before keepalive
	// would notice: the transport of a stuck process may still answer pings.
	select {
	case <-stuck.begun:
	case <-time.After(8 * time.Second):
		t.Error("the stalled stream was not given up")
	}
	if n := requestsOf(p.Status()); n != 3 {
		t.Errorf("%d requests", n)
	}
}

func TestLink_ReceiptAndEjectionsArriveAtOnce(t *testing.T) {
	c := newTestCluster(t)
	h := c.hub("admin1", "127.0.0.1:0")
	// Nothing but what is urgent is reported.
	p := c.linkWith("proxy1", "b1", times{report: time.Hour, stalled: time.Hour, change: time.Hour, fresh: time.Hour})
	eventually(t, "linked", func() bool { return p.Connected() == 1 })

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	p.SetReceipt(Receipt{Revision: 8, ConfigRevision: 7, Epoch: "e", RingChecksum: 0xabc, AppliedAt: time.Now(), ApplyDuration: 3 * time.Millisecond})
	if lagging, err := h.WaitReceipts(ctx, 7); err != nil || len(lagging) != 0 {
		t.Fatalf("%+v, %v", lagging, err)
	}
	nodes := h.Nodes()
	i := slices.IndexFunc(nodes, func(n NodeStatus) bool { return n.ID == "proxy1" })
	if n := nodes[i]; n.ConfigRevision != 7 || n.RingChecksum != "0000000000000abc" || n.ApplyMS != 3 || n.LagSeconds != 0 || n.Version != "v1" && n.Version != "" {
		t.Errorf("%+v", n)
	}

	p.SetEjections([]Ejection{{App: "shop", Instance: "dify2", Since: time.Unix(1_700_000_000, 0)}})
	word := func() *InstanceStatus { return h.Status().Applications["shop"].Instances["dify2"] }
	eventually(t, "ejected", func() bool { return word().Status == StatusEjected })
	if got := word().Since; !got.Equal(time.Unix(1_700_000_000, 0)) {
		t.Errorf("ejected since %v", got)
	}
	if got := word().EjectedBy; !slices.Equal(got, []string{"proxy1"}) {
		t.Errorf("ejected by %q", got)
	}
	p.SetEjections(nil)
	eventually(t, "not ejected", func() bool { return word().Status == StatusUnknown && word().EjectedBy == nil })
}

// TestHub_SaysWhichProxiesEject has two proxies eject, one restart, and one go
// silent: the list names, once each, those that eject now. All nodes show the same.
func TestHub_SaysWhichProxiesEject(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	app := lb.NewApplication("shop")
	app.Instances = []lb.Instance{{Name: "dify1", State: lb.Draining}}
	h := NewHub(HubOptions{NodeID: "a", Log: zerolog.Nop(), Now: func() time.Time { return now }})
	h.SetSnapshot(&lb.Snapshot{Applications: []*lb.Application{app}, Nodes: []lb.Node{
		{ID: "p2", BootID: "2b", Role: lb.RoleProxy}, {ID: "p1", BootID: "1a", Role: lb.RoleProxy},
	}})
	eject := func(node, boot string, seq uint64) {
		h.report(h.open(&pb.Hello{Node: node, BootId: boot}), &pb.Report{Seq: seq, Full: true, Ejections: &pb.Ejections{
			Ejections: []*pb.Ejection{{App: "shop", Instance: "dify1", SinceUnixMilli: now.UnixMilli()}},
		}})
	}
	by := func() []string { return h.Status().Applications["shop"].Instances["dify1"].EjectedBy }
	eject("p2", "2a", 1)
	eject("p2", "2b", 1)
	now = now.Add(freshFor / 2)
	eject("p1", "1a", 1)
	if got := by(); !slices.Equal(got, []string{"p1", "p2"}) {
		t.Errorf("ejected by %q", got)
	}
	in := h.Status().Applications["shop"].Instances["dify1"]
	back := applicationFromWire(applicationToWire("shop", h.Status().Applications["shop"])).Instances["dify1"]
	if in.Status != StatusDraining || !slices.Equal(back.EjectedBy, in.EjectedBy) || in.EjectedSince == nil || back.EjectedSince == nil || !back.EjectedSince.Equal(*in.EjectedSince) {
		t.Errorf("%q, ejected since %v, and over the wire by %q since %v", in.Status, in.EjectedSince, back.EjectedBy, back.EjectedSince)
	}
	now = now.Add(freshFor/2 + time.Millisecond)
	if got := by(); !slices.Equal(got, []string{"p1"}) {
		t.Errorf("while p2 is silent: ejected by %q", got)
	}
}

// TestHub_RecentLatencyIsOfTheLastMinute: of two proxies' attempts those of the
// last minute count together, those before a proxy was linked do not, and a
// minute without any ends it.
func TestHub_RecentLatencyIsOfTheLastMinute(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	app := lb.NewApplication("shop")
	for _, name := range []string{"dify1", "dify2"} {
		app.Instances = append(app.Instances, lb.Instance{Name: name, State: lb.Active})
	}
	h := NewHub(HubOptions{NodeID: "a", Log: zerolog.Nop(), Now: func() time.Time { return now }})
	h.SetSnapshot(&lb.Snapshot{Applications: []*lb.Application{app}})
	type proxy struct {
		*boot
		*stats.Registry
		generation, seq uint64
	}
	proxies := make(map[string]*proxy)
	report := func(node, instance string, n int, latency, firstByte time.Duration) {
		p := proxies[node]
		if p == nil {
			p = &proxy{boot: h.open(&pb.Hello{Node: node, BootId: "b"}), Registry: stats.NewRegistry(1)}
			proxies[node] = p
		}
		in := p.App("shop").Instance(instance)
		for range n {
			in.Begin(0)
			in.End(0, stats.Sample{Latency: latency, FirstByte: firstByte})
		}
		var series []stats.Series
		series, p.generation = p.Collect(p.generation)
		p.seq++
		h.report(p.boot, &pb.Report{Seq: p.seq, Full: p.seq == 1, Series: seriesToWire(series)})
	}
	near := func(what string, got float64, want time.Duration) {
		t.Helper()
		if ms := float64(want) / 1e6; got < ms*0.93 || got > ms*1.07 {
			t.Errorf("%s: %v ms, want %v", what, got, want)
		}
	}
	shown := func() *ApplicationStatus { return h.Status().Applications["shop"] }

	report("p1", "dify1", 1000, time.Second, time.Second) // before it was linked
	report("p2", "dify2", 1, 0, 0)
	if a := shown(); a.LatencyRecent != (LatencyQuantiles{}) || a.Instances["dify1"].LatencyRecent != (LatencyQuantiles{}) {
		t.Errorf("from before the link: %+v", a.LatencyRecent)
	}
	report("p1", "dify1", 98, 10*time.Millisecond, 5*time.Millisecond)
	report("p2", "dify1", 2, 3*time.Second, time.Second)
	report("p2", "dify2", 300, 100*time.Millisecond, 50*time.Millisecond)
	a := shown()
	near("dify1 p50", a.Instances["dify1"].LatencyRecent.P50, 10*time.Millisecond)
	near("dify1 p90", a.Instances["dify1"].LatencyRecent.P90, 10*time.Millisecond)
	near("dify1 p99", a.Instances["dify1"].LatencyRecent.P99, 3*time.Second) // no mean of p99s says that
	near("dify1 first byte", a.Instances["dify1"].FirstByteRecent.P50, 5*time.Millisecond)
	near("dify2 p99", a.Instances["dify2"].LatencyRecent.P99, 100*time.Millisecond)
	near("p50 of the application", a.LatencyRecent.P50, 100*time.Millisecond)
	near("first byte p99 of the application", a.FirstByteRecent.P99, 50*time.Millisecond)
	near("dify1 p50 of all time", a.Instances["dify1"].Latency.P50, time.Second)
	if back := applicationFromWire(applicationToWire("shop", a)); back.LatencyRecent != a.LatencyRecent || back.FirstByteRecent != a.FirstByteRecent ||
		back.Instances["dify1"].LatencyRecent != a.Instances["dify1"].LatencyRecent || back.Instances["dify1"].FirstByteRecent != a.Instances["dify1"].FirstByteRecent {
		t.Errorf("over the wire %+v became %+v", a, back)
	}

	now = now.Add(30 * time.Second)
	report("p1", "dify1", 100, 20*time.Millisecond, 5*time.Millisecond)
	near("both halves", shown().Instances["dify1"].LatencyRecent.P90, 20*time.Millisecond)
	now = now.Add(31 * time.Second)
	near("the first half is over", shown().Instances["dify1"].LatencyRecent.P50, 20*time.Millisecond)
	if got := shown().Instances["dify2"].LatencyRecent; got != (LatencyQuantiles{}) {
		t.Errorf("a minute later: %+v", got)
	}
	now = now.Add(30 * time.Second)
	if a := shown(); a.LatencyRecent != (LatencyQuantiles{}) || a.FirstByteRecent != (FirstByteQuantiles{}) || len(h.ledger.recent) > 0 {
		t.Errorf("in the end: %+v, and %d series are kept an eye on", a.LatencyRecent, len(h.ledger.recent))
	}
}

func TestHub_WaitReceiptsNamesWhoLags(t *testing.T) {
	c := newTestCluster(t)
	h := c.hub("admin1", "127.0.0.1:0")
	p1, p2 := c.link("proxy1", "b1"), c.link("proxy2", "b2")
	p1.SetReceipt(Receipt{ConfigRevision: 9, Epoch: "e"})
	p2.SetReceipt(Receipt{ConfigRevision: 8, Epoch: "e"})
	eventually(t, "both heard", func() bool { return len(h.Receipts()) == 2 })

	ctx, cancel := context.WithTimeoutCause(context.Background(), 100*time.Millisecond, errors.New("waited enough"))
	defer cancel()
	lagging, err := h.WaitReceipts(ctx, 9)
	if err == nil || err.Error() != "waited enough" || len(lagging) != 1 || lagging[0].Node != "proxy2" || lagging[0].ConfigRevision != 8 || !lagging[0].Connected {
		t.Fatalf("%+v, %v", lagging, err)
	}

	ctx, cancel = context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	p2.SetReceipt(Receipt{ConfigRevision: 8, Epoch: "e", Refused: "ring of shop has no points", RefusedRevision: 9})
	if lagging, err = h.WaitReceipts(ctx, 9); err != nil || len(lagging) != 1 || lagging[0].Refused != "ring of shop has no points" {
		t.Fatalf("%+v, %v", lagging, err)
	}
	p2.SetReceipt(Receipt{ConfigRevision: 10, Epoch: "e"})
	eventually(t, "the refusal is over", func() bool { return h.Receipts()["proxy2"].ConfigRevision == 10 })
	if lagging, err = h.WaitReceipts(ctx, 9); err != nil || len(lagging) != 0 {
		t.Fatalf("%+v, %v", lagging, err)
	}
	// A higher revision of another store proves nothing.
	p2.SetReceipt(Receipt{ConfigRevision: 99, Epoch: "other"})
	eventually(t, "another epoch's receipt", func() bool { return h.Receipts()["proxy2"].Epoch == "other" })
	ctx, cancel = context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if lagging, err = h.WaitReceipts(ctx, 9); err == nil || len(lagging) != 1 {
		t.Fatalf("%+v, %v", lagging, err)
	}
}

func TestLink_FlushBringsTheLastFiguresAcross(t *testing.T) {
	c := newTestCluster(t)
	h := c.hub("admin1", "127.0.0.1:0")
	p := c.link("proxy1", "b1")
	eventually(t, "linked", func() bool { return p.Connected() == 1 })
	for range 20 {
		p.requests("dify1", 1, lb.ReasonOK)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if err := p.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		want, _ := p.registry.Totals(stats.Key{App: "shop"})
		if got := h.Totals(stats.Key{App: "shop"}).Requests; got != want.Requests {
			t.Fatalf("%d of %d requests after the flush", got, want.Requests)
		}
	}
}

func TestHub_LiveWhileAnswersFlow(t *testing.T) {
	c := newTestCluster(t)
	h := c.hub("admin1", "127.0.0.1:0")
	p := c.link("proxy1", "b1")
	p.requests("dify1", 1, lb.ReasonOK) // before the first report: may be old
	eventually(t, "linked", func() bool { return h.Status().Complete })
	if h.Live("shop", "dify1") {
		t.Error("figures of a first report prove dify1 alive")
	}
	p.requests("dify1", 1, lb.ReasonConnectFailed)
	p.requests("dify2", 1, lb.ReasonOK)
	eventually(t, "dify2 alive", func() bool { return h.Live("shop", "dify2") })
	in := p.registry.App("shop").Instance("dify1")
	in.Begin(0)
	in.Flow(0, 0, 100) // an event of a stream that goes on
	eventually(t, "dify1 alive", func() bool { return h.Live("shop", "dify1") })
	if h.Live("shop", "other") || h.Live("other", "dify1") {
		t.Error("unknown instances are alive")
	}
}

func TestHub_AsksForEverythingWhenAReportIsMissing(t *testing.T) {
	c := newTestCluster(t)
	h := c.hub("admin1", "127.0.0.1:0")
	conn, err := grpc.NewClient("passthrough:///"+h.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer cluster-key"), 10*time.Second)
	defer cancel()
	s, err := pb.NewClusterClient(conn).Link(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Send(&pb.ProxyMessage{Kind: &pb.ProxyMessage_Hello{Hello: &pb.Hello{Node: "p", BootId: "b"}}})
	report := func(r *pb.Report) { _ = s.Send(&pb.ProxyMessage{Kind: &pb.ProxyMessage_Report{Report: r}}) }
	report(&pb.Report{Seq: 1, Full: true})
	report(&pb.Report{Seq: 5, Previous: 3})
	_ = s.Send(&pb.ProxyMessage{}) // a kind of a newer version
	for {
		m, err := s.Recv()
		if err != nil {
			t.Fatalf("no resync: %v", err)
		}
		if m.GetResync() != nil {
			return
		}
	}
}

func TestHub_LeadWritesAndEndsWithItsTimeInOffice(t *testing.T) {
	c := newTestCluster(t)
	h := c.hub("admin1", "127.0.0.1:0")
	p := c.link("proxy1", "b1")
	p.requests("dify1", 3, lb.ReasonOK)
	failed := make(chan error, 1)
	first := c.store.office()
	c.background(func(ctx context.Context) error { failed <- h.Lead(ctx, first); return nil })
	stored := func() uint64 {
		fresh := NewHub(HubOptions{Log: zerolog.Nop(), Counters: c.store})
		if err := fresh.loadCounters(context.Background()); err != nil {
			t.Fatal(err)
		}
		return fresh.Totals(stats.Key{App: "shop"}).Requests
	}
	eventually(t, "3 requests stored", func() bool { return stored() == 3 })
	c.store.mu.Lock()
	c.store.term++ // another lb-admin was elected
	c.store.mu.Unlock()
	p.requests("dify1", 1, lb.ReasonOK)
	if err := <-failed; !errors.Is(err, lb.ErrConflict) {
		t.Errorf("lead ended with %v", err)
	}
	if got := stored(); got != 3 {
		t.Errorf("%d requests stored by who may not", got)
	}
}

func TestLink_TakesNoDocumentButTheSubscribedOne(t *testing.T) {
	l := NewLink(LinkOptions{Registry: stats.NewRegistry(1), Log: zerolog.Nop()})
	newPeer := func(id string) *peer {
		p := &peer{link: l, key: peerKey{id: id}, due: make(chan struct{}, 1)}
		l.peers[p.key] = p
		return p
	}
	a, b := newPeer("a"), newPeer("b")
	update := func(subscription uint64, more bool, apps ...string) *pb.AdminMessage {
		u := &pb.StatusUpdate{Full: true, More: more, Subscription: subscription}
		for _, name := range apps {
			u.Applications = append(u.Applications, &pb.ApplicationStatus{Name: name})
		}
		return &pb.AdminMessage{Kind: &pb.AdminMessage_Status{Status: u}}
	}
	a.take(&pb.AdminMessage{})
	first := l.primaryN
	a.take(update(first, false, "one", "two"))
	if names := sortedNames(l.Status().Applications); !slices.Equal(names, []string{"one", "two"}) {
		t.Fatalf("shown: %v", names)
	}
	b.take(&pb.AdminMessage{})
	a.disconnect()
	b.disconnect()
	a.take(&pb.AdminMessage{}) // back; what it sent before is still under way
	a.take(update(l.primaryN, true, "one"))
	a.take(update(first, false, "one"))
	if l.doc.whole {
		t.Error("the end of an earlier document ended this one")
	}
	a.take(update(l.primaryN, false, "two"))
	if names := sortedNames(l.Status().Applications); !slices.Equal(names, []string{"one", "two"}) {
		t.Errorf("shown: %v", names)
	}
	b.take(update(l.primaryN, false))
	if n := len(l.Status().Applications); n != 2 {
		t.Errorf("another lb-admin's document was taken: %d applications", n)
	}
}

func TestHub_ProxyThatReadsNothingHoldsUpNobody(t *testing.T) {
	c := newTestCluster(t)
	h := c.hub("admin1", "127.0.0.1:0")
	c.change(func(s *lb.Snapshot) {
		for i := range 3000 { // more than flow control lets pass unread
			app := lb.NewApplication("bulk" + time.Duration(i).String())
			app.Instances = []lb.Instance{{Name: strings.Repeat("x", 60), State: lb.Active}}
			s.Applications = append(slices.Clip(s.Applications), app)
		}
		slices.SortFunc(s.Applications, func(a, b *lb.Application) int { return strings.Compare(a.Name, b.Name) })
	})
	conn, err := grpc.NewClient("passthrough:///"+h.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer cluster-key"))
	defer cancel()
	s, err := pb.NewClusterClient(conn).Link(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*pb.ProxyMessage{
		{Kind: &pb.ProxyMessage_Hello{Hello: &pb.Hello{Node: "deaf", BootId: "b"}}},
		{Kind: &pb.ProxyMessage_Subscribe{Subscribe: &pb.Subscribe{Status: true, Id: 1}}},
	} {
		if err := s.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	p := c.link("proxy1", "b1")
	for n := uint64(1); n <= 5; n++ {
		p.requests("dify1", 1, lb.ReasonOK)
		eventually(t, "the other proxy is served", func() bool { return requestsOf(p.Status()) == n && p.Status().Complete })
	}
}

func TestStatus_JSONIsTheContracts(t *testing.T) {
	at := time.Date(2024, 1, 1, 12, 0, 0, 0, time.UTC)
	hourAgo := at.Add(-time.Hour)
	s := &Status{
		Status: "running", Timestamp: at, Revision: 4711, Complete: true, Nodes: NodeCounts{Proxies: 2, Admins: 1, Reporting: 2},
		Applications: map[string]*ApplicationStatus{"customer_service": {TotalRequests: 1000, Errors: 3, Active: 12, Instances: map[string]*InstanceStatus{
			"dify1": {
				Requests: 334, Errors: 1, Active: 4, Streams: 3, Status: "healthy", State: lb.Active,
				Latency: LatencyQuantiles{P50: 41.2, P90: 80, P99: 130.5}, FirstByte: FirstByteQuantiles{P50: 20.1, P99: 61},
				BytesIn: 123, BytesOut: 456, Since: hourAgo, EjectedBy: []string{"p1", "p2"}, EjectedSince: &hourAgo,
				LastProbe:     &LastProbe{Time: at.Add(-500 * time.Millisecond), DurationMS: 2.5, Verdict: lb.Healthy, Found: "status 200", By: "admin1"},
				LatencyRecent: LatencyQuantiles{P50: 30, P99: 40.5}, FirstByteRecent: FirstByteQuantiles{P50: 7, P99: 9},
			},
		}, LatencyRecent: LatencyQuantiles{P50: 30, P90: 35, P99: 0.5}, FirstByteRecent: FirstByteQuantiles{P50: 8, P99: 9}}},
	}
	const want = `{"status":"running","timestamp":"2024-01-01T12:00:00Z","revision":4711,"complete":true,` +
		`"nodes":{"proxies":2,"admins":1,"reporting":2},"applications":{"customer_service":{"total_requests":1000,"errors":3,"active":12,` +
		`"instances":{"dify1":{"requests":334,"errors":1,"retries":0,"active":4,"streams":3,"status":"healthy","state":"active",` +
		`"latency_ms":{"p50":41.2,"p90":80,"p99":130.5},"first_byte_ms":{"p50":20.1,"p99":61},` +
		`"bytes_in":123,"bytes_out":456,"last_error":null,"since":"2024-01-01T11:00:00Z",` +
		`"latency_recent":{"p50":30,"p90":0,"p99":40.5},"first_byte_recent":{"p50":7,"p99":9},"ejected_by":["p1","p2"],"ejected_since":"2024-01-01T11:00:00Z",` +
		`"last_probe":{"time":"2024-01-01T11:59:59.5Z","duration_ms":2.5,"verdict":"healthy","found":"status 200","by":"admin1"}}},` +
		`"latency_recent":{"p50":30,"p90":35,"p99":0.5},"first_byte_recent":{"p50":8,"p99":9}}}}`
	got, err := json.Marshal(s)
	if err != nil || string(got) != want {
		t.Errorf("%s, %v\nwant\n%s", got, err, want)
	}
	in := s.Applications["customer_service"].Instances["dify1"]
	in.LastError = &LastError{Reason: "busy", Time: at}
	in.Status = "a \"word\" <of> \x01 another é version"
	if got, err = json.Marshal(s); err != nil {
		t.Fatal(err)
	}
	// The tags, which readers decode with, say the same as the hand-written code.
	type plainInstance InstanceStatus
	tagged, err := json.Marshal((*plainInstance)(in))
	if err != nil || !strings.Contains(string(got), string(tagged)) {
		t.Errorf("by tags:\n%s, %v\nby hand:\n%s", tagged, err, got)
	}
	var back Status
	if err := json.Unmarshal(got, &back); err != nil {
		t.Fatal(err)
	}
	if again, _ := json.Marshal(&back); string(again) != string(got) {
		t.Errorf("read and written again:\n%s\nwas\n%s", again, got)
	}
	empty, _ := json.Marshal(&Status{})
	if !strings.Contains(string(empty), `"applications":{}`) {
		t.Errorf("without applications: %s", empty)
	}
}

func TestWord_OperatorThenEjectionThenProbes(t *testing.T) {
	for _, c := range []struct {
		state   lb.State
		ejected bool
		health  lb.Health
		want    string
	}{
		{lb.Active, false, lb.HealthUnknown, "unknown"},
		{lb.Active, false, lb.Healthy, "healthy"},
		{lb.Active, false, lb.Unhealthy, "unhealthy"},
		{lb.Active, false, lb.TokenRejected, "token_rejected"},
		{lb.Active, true, lb.Healthy, "ejected"},
		{lb.Active, true, lb.Unhealthy, "ejected"},
		{lb.Draining, true, lb.Unhealthy, "draining"},
		{lb.Disabled, true, lb.Healthy, "disabled"},
		{lb.Active, false, "of a newer version", "unknown"},
	} {
		if got := lb.StatusWord(c.state, c.ejected, c.health); got != c.want {
			t.Errorf("%v ejected=%v %v: %q, want %q", c.state, c.ejected, c.health, got, c.want)
		}
	}
}

func TestHub_DocumentFollowsTheConfiguration(t *testing.T) {
	now := time.Date(2024, 1, 1, 12, 0, 0, 0, time.UTC)
	h := NewHub(HubOptions{Log: zerolog.Nop(), Counters: newMemStore(), Now: func() time.Time { return now }})
	app := lb.NewApplication("shop")
	app.Instances = []lb.Instance{{Name: "dify1", State: lb.Active}}
	set := func(revision int64, health lb.Health, since time.Time, apps ...*lb.Application) *InstanceStatus {
		h.SetSnapshot(&lb.Snapshot{ConfigRevision: revision, Applications: apps, Health: map[string]map[string]lb.Verdict{"shop": {"dify1": {Health: health, Since: since}}}})
		if a := h.Status().Applications["shop"]; a != nil {
			return a.Instances["dify1"]
		}
		return nil
	}
	probed := now.Add(-time.Hour)
	in := set(1, lb.Healthy, probed, app)
	if in == nil || in.Status != StatusHealthy || !in.Since.Equal(probed) || in.Requests != 0 {
		t.Fatalf("without traffic: %+v", in)
	}
	now = now.Add(time.Minute)
	drained := app.Clone()
	drained.Instances[0].State = lb.Draining
	if in = set(2, lb.Healthy, probed, drained); in.Status != StatusDraining || !in.Since.Equal(now) || in.State != lb.Draining {
		t.Fatalf("drained: %+v", in)
	}
	since := now
	now = now.Add(time.Minute)
	if in = set(3, lb.Unhealthy, now, drained); in.Status != StatusDraining || !in.Since.Equal(since) {
		t.Fatalf("unhealthy while draining: %+v", in)
	}
	b := h.open(&pb.Hello{Node: "p", BootId: "b"})
	h.report(b, &pb.Report{Seq: 1, Full: true, Series: []*pb.Series{{App: "shop", Totals: &pb.Totals{Requests: 9}}}})
	if in = set(4, lb.Healthy, now, app); in.Status != StatusHealthy || !in.Since.Equal(now) {
		t.Fatalf("active again: %+v", in)
	}
	if got := h.Status().Applications["shop"].TotalRequests; got != 9 {
		t.Fatalf("%d requests", got)
	}
	if in = set(5, lb.Healthy, now); in != nil {
		t.Fatalf("removed, yet shown: %+v", in)
	}
	set(6, lb.Healthy, now, app)
	if got := h.Status().Applications["shop"].TotalRequests; got != 9 {
		t.Fatalf("%d requests after it was declared again", got)
	}
}
