package cluster

import (
	"context"
	"fmt"
	"testing"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/sketch"
	"difylb/pkg/stats"
	pb "difylb/proto"
)

func TestHub_ChecksFromEveryProxy(t *testing.T) {
	c := newTestCluster(t)
	h := c.hub("a1", "")
	c.linkWith("p1", "b1", quick, func(o *LinkOptions) {
		o.Check = func(_ context.Context, app string) []Reach {
			var out []Reach
			for i := range checkParts + 5 {
				out = append(out, Reach{App: app, Instance: fmt.Sprintf("i%04d", i), Address: "10.0.0.1:80", MS: 1.5})
			}
			return out
		}
	})
	far := c.linkWith("p2", "b2", quick, func(o *LinkOptions) {
		o.Check = func(_ context.Context, app string) []Reach {
			return []Reach{{App: app, Instance: "i1", Address: "10.0.0.1:80", Error: "connection refused"}}
		}
	})
	eventually(t, "both are linked", func() bool { return h.Status().Nodes.Reporting == 2 })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	got := h.Check(ctx, "shop")
	if len(got) != 2 || got[0].Node != "p1" || !got[0].Answered || len(got[0].Instances) != checkParts+5 || got[0].Instances[7] != (Reach{App: "shop", Instance: "i0007", Address: "10.0.0.1:80", MS: 1.5}) {
		t.Fatalf("%d nodes, the first %.300v", len(got), got)
	}
	if !got[1].Answered || len(got[1].Instances) != 1 || got[1].Instances[0].Error != "connection refused" || got[1].SkewMS > 1000 || got[1].SkewMS < -1000 {
		t.Errorf("%+v", got[1])
	}
	// Who is gone has not answered, and is not waited for.
	far.stop()
	began := time.Now()
	got = h.Check(ctx, "shop")
	if len(got) != 2 || !got[0].Answered || got[1].Answered || got[1].Instances == nil {
		t.Errorf("without p2 %.300v", got)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it waited %s", took)
	}
}

func TestHub_KnowsTheUsersOfTheLastDay(t *testing.T) {
	c := newTestCluster(t)
	h := c.hub("a1", "")
	now := time.Now()
	first, other := c.link("p1", "b1"), c.link("p2", "b2")
	for i := range uint64(300) {
		first.registry.App("shop").Seen("crc32", i, now)
		other.registry.App("shop").Seen("crc32", i+200, now)
	}
	eventually(t, "the samples are there", func() bool { return h.Recent("shop").Len() == 500 })
	if s := h.Recent("shop"); s.Kind != "crc32" || !s.Exact() || h.Recent("desk").Len() != 0 {
		t.Errorf("%s, exact %v", s.Kind, s.Exact())
	}
	// A proxy that restarts has seen nobody yet; what it told before counts.
	first.stop()
	again := c.link("p1", "b3")
	again.registry.App("shop").Seen("crc32", 9000, now)
	eventually(t, "the new boot's user is there", func() bool { return h.Recent("shop").Len() == 501 })
	// An application that is gone is forgotten, also while proxies go on to tell.
	other.registry.App("gone").Seen("crc32", 1, now)
	c.change(func(s *lb.Snapshot) { s.Applications = nil })
	other.registry.App("shop").Seen("crc32", 77_777, now)
	again.requests("a", 1, lb.ReasonOK)
	eventually(t, "it is forgotten", func() bool { return h.Recent("shop").Len() == 0 && h.Recent("gone").Len() == 0 })
}

func TestRecentUsers_ForgetsAndBounds(t *testing.T) {
	var r recentUsers
	now := time.Now()
	sample := func(kind string, points ...uint64) []byte {
		var u sketch.Recent
		for _, p := range points {
			u.Seen(kind, p, now)
		}
		b, err := u.Sample(now).AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	r.take("p1", "b", &pb.RecentUsers{App: "shop", Sample: sample("md5", 1, 2)}, now)
	r.take("p2", "b", &pb.RecentUsers{App: "shop", Sample: sample("md5", 2, 3)}, now.Add(20*time.Hour))
	r.take("p2", "b", &pb.RecentUsers{App: "shop", Sample: []byte("nonsense")}, now)
	r.take("p2", "b", &pb.RecentUsers{Sample: sample("md5", 9)}, now)
	for after, want := range map[time.Duration]int{time.Minute: 3, 24 * time.Hour: 3, 26 * time.Hour: 2, 50 * time.Hour: 0} {
		if got := r.of("shop", now.Add(after)).Len(); got != want {
			t.Errorf("after %s %d users, want %d", after, got, want)
		}
	}
	// Another kind takes the place of the old one.
	r.take("p2", "b2", &pb.RecentUsers{App: "shop", Sample: sample("xxhash", 7)}, now.Add(30*time.Hour))
	if s := r.of("shop", now.Add(30*time.Hour)); s.Kind != "xxhash" || s.Len() != 1 {
		t.Errorf("%s with %d users", s.Kind, s.Len())
	}
}

func TestSentSamples_SendsWhatIsNew(t *testing.T) {
	reg := stats.NewRegistry(1)
	now := time.Unix(1_700_000_000, 0)
	for i := range samplesAtOnce + 10 {
		reg.App(fmt.Sprintf("app%d", i)).Seen("md5", 1, now)
	}
	reg.App("idle")
	var s sentSamples
	if a, b := len(s.next(reg, now, samplesEvery)), len(s.next(reg, now, samplesEvery)); a != samplesAtOnce || b != 10 {
		t.Errorf("%d, then %d", a, b)
	}
	if n := len(s.next(reg, now, samplesEvery)); n != 0 {
		t.Errorf("%d again at once", n)
	}
	reg.App("app3").Seen("md5", 2, now)
	reg.App("app4").Seen("md5", 1, now)
	if out := s.next(reg, now.Add(samplesEvery), samplesEvery); len(out) != 1 || out[0].GetRecentUsers().GetApp() != "app3" {
		t.Errorf("of one new user %d samples", len(out))
	}
	if n := len(s.next(reg, now.Add(2*samplesAgain), samplesEvery)); n != samplesAtOnce {
		t.Errorf("after an hour %d", n)
	}
}
