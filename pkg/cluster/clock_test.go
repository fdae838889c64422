package cluster

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
	pb "difylb/proto"
)

// negatives are the numbers below nought of something that is told as JSON, by
// their keys.
func negatives(t *testing.T, told any) map[string]float64 {
	t.Helper()
	data, err := json.Marshal(told) // refuses what is no number
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	found := make(map[string]float64)
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				walk(path+"."+k, e)
			}
		case []any:
			for _, e := range v {
				walk(path+"[]", e)
			}
		case float64:
			if v < 0 {
				found[path] = v
			}
		}
	}
	walk("", v)
	return found
}

// The clock jumps, here without the monotonic one that keeps ages apart from
// it: nothing that is told becomes negative, no figure is lost, and all is
// complete again with the next reports.
func TestHub_ClockThatJumps(t *testing.T) {
	for _, jump := range []time.Duration{time.Hour, -time.Hour, 48 * time.Hour, -48 * time.Hour} {
		now := time.Unix(1_700_000_000, 0)
		app := lb.NewApplication("shop")
		app.Instances = []lb.Instance{{Name: "dify1", State: lb.Active}}
		h := NewHub(HubOptions{NodeID: "a", Log: zerolog.Nop(), Now: func() time.Time { return now }})
		snap := &lb.Snapshot{Revision: 9, ConfigRevision: 9, Applications: []*lb.Application{app}, Nodes: []lb.Node{
			{ID: "p1", BootID: "b", Role: lb.RoleProxy, Started: now.Add(-time.Minute)}, {ID: "p2", BootID: "b", Role: lb.RoleProxy, Started: now.Add(-time.Minute)},
			{ID: "a", Role: lb.RoleAdmin, Started: now.Add(-time.Minute)},
		}}
		h.SetSnapshot(snap)
		boots := map[string]*boot{}
		registries := map[string]*stats.Registry{}
		seq := uint64(0)
		report := func() {
			seq++
			for _, id := range []string{"p1", "p2"} {
				if boots[id] == nil {
					boots[id], registries[id] = h.open(&pb.Hello{Node: id, BootId: "b"}), stats.NewRegistry(1)
				}
				in := registries[id].App("shop").Instance("dify1")
				in.Begin(0)
				in.End(0, stats.Sample{Latency: 20 * time.Millisecond, Reason: lb.ReasonUpstreamBroke})
				series, _ := registries[id].Collect(0)
				h.report(boots[id], &pb.Report{Seq: seq, Full: true, UptimeMillis: 61_000, Series: seriesToWire(series),
					Receipt: receiptToWire(Receipt{ConfigRevision: 8, AppliedAt: now})})
			}
		}
		look := func(when string, requests uint64) {
			t.Helper()
			s := h.Status()
			if got := s.Applications["shop"].Instances["dify1"].Requests; got != requests {
				t.Errorf("jump by %s, %s: %d requests, want %d", jump, when, got, requests)
			}
			for key, v := range negatives(t, s) {
				t.Errorf("jump by %s, %s: status%s is %v", jump, when, key, v)
			}
			for key, v := range negatives(t, h.Receipts()) {
				t.Errorf("jump by %s, %s: nodes%s is %v", jump, when, key, v)
			}
		}
		report()
		now = now.Add(time.Second)
		report()
		look("before it", 4)
		now = now.Add(jump)
		look("just after it", 4)
		report()
		look("after the next report", 6)
		for range 120 {
			now = now.Add(time.Second)
			report()
		}
		look("two minutes later", 246)
		if s := h.Status(); s.Nodes.Reporting != 2 {
			t.Errorf("jump by %s, two minutes later: %d proxies report, want both", jump, s.Nodes.Reporting)
		}
		now = now.Add(-jump)
		look("and back", 246)
		report()
		look("and back, after the next report", 248)
	}
}

// How long a node runs does not depend on the wall clock that it was started by.
func TestLink_UptimeOfAClockThatJumps(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	l := NewLink(LinkOptions{Node: lb.Node{ID: "p", Started: now.Add(-500 * time.Millisecond)}, Registry: stats.NewRegistry(1), Log: zerolog.Nop(), Now: func() time.Time { return now }})
	if got := l.uptime(); got != 500*time.Millisecond {
		t.Errorf("%s at first", got)
	}
	now = now.Add(time.Minute)
	if got := l.uptime(); got != time.Minute+500*time.Millisecond {
		t.Errorf("%s after a minute", got)
	}
	now = now.Add(-2 * time.Hour)
	if got := l.uptime(); got < 0 {
		t.Errorf("%s after the clock was set back", got)
	}
	ahead := NewLink(LinkOptions{Node: lb.Node{ID: "p", Started: now.Add(time.Hour)}, Registry: stats.NewRegistry(1), Log: zerolog.Nop(), Now: func() time.Time { return now }})
	if got := ahead.uptime(); got != 0 {
		t.Errorf("%s of a node that is to start in an hour", got)
	}
}
