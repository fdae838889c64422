package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
	pb "difylb/proto"
)

// bigHub is 10,000 applications with 5 instances each, all of which two
// proxies have served.
func bigHub(b *testing.B) (*Hub, [][]byte) {
	h := NewHub(HubOptions{Log: zerolog.Nop(), Counters: newMemStore()})
	s := &lb.Snapshot{Revision: 1, ConfigRevision: 1, ClusterKey: "k"}
	r := stats.NewRegistry(2)
	for a := range 10_000 {
		app := lb.NewApplication(fmt.Sprintf("app%05d", a))
		for i := range 5 {
			name := fmt.Sprintf("dify%d", i)
			app.Instances = append(app.Instances, lb.Instance{Name: name, State: lb.Active})
			in := r.App(app.Name).Instance(name)
			for k := range 4 {
				in.Begin(0)
				in.End(0, stats.Sample{BytesOut: 1, Latency: time.Duration(50<<k) * time.Millisecond, FirstByte: time.Duration(20<<k) * time.Millisecond})
			}
		}
		r.App(app.Name).Begin(0)
		s.Applications = append(s.Applications, app)
	}
	for n := range 2 {
		s.Nodes = append(s.Nodes, lb.Node{ID: fmt.Sprint(n), BootID: "b", Role: lb.RoleProxy})
	}
	h.SetSnapshot(s)
	series, _ := r.Collect(0)
	var reports [][]byte
	for len(series) > 0 {
		n := min(partSeries, len(series))
		m, err := proto.Marshal(&pb.Report{Seq: uint64(len(reports) + 1), Full: true, More: n < len(series), Series: seriesToWire(series[:n])})
		if err != nil {
			b.Fatal(err)
		}
		reports, series = append(reports, m), series[n:]
	}
	for n := range 2 {
		deliverAll(b, h, fmt.Sprint(n), reports)
	}
	return h, reports
}

func deliverAll(b *testing.B, h *Hub, node string, reports [][]byte) {
	boot := h.open(&pb.Hello{Node: node, BootId: "b"})
	for _, m := range reports {
		var r pb.Report
		if err := proto.Unmarshal(m, &r); err != nil {
			b.Fatal(err)
		}
		h.report(boot, &r)
	}
}

func BenchmarkHub_FullReportOf50000(b *testing.B) {
	h, reports := bigHub(b)
	n := 0
	for _, r := range reports {
		n += len(r)
	}
	b.ReportAllocs()
	for b.Loop() {
		deliverAll(b, h, "0", reports)
	}
	b.ReportMetric(float64(n)/60_000, "B/series")
}

func BenchmarkHub_Refresh50000(b *testing.B) {
	for _, changed := range []int{0, 10, 10_000} {
		b.Run(fmt.Sprintf("applications=%d", changed), func(b *testing.B) {
			h, _ := bigHub(b)
			h.Status()
			b.ReportAllocs()
			for b.Loop() {
				for i := range changed {
					h.stale[fmt.Sprintf("app%05d", i)] = true
				}
				h.refresh(h.now())
			}
		})
	}
}

func BenchmarkStatus_MarshalJSON50000(b *testing.B) {
	h, _ := bigHub(b)
	s := h.Status()
	b.ReportAllocs()
	for b.Loop() {
		out, err := s.MarshalJSON()
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(out)))
	}
}

func BenchmarkStatus_StandardJSON50000(b *testing.B) {
	type instance InstanceStatus
	h, _ := bigHub(b)
	var all []*instance
	for _, a := range h.Status().Applications {
		for _, in := range a.Instances {
			all = append(all, (*instance)(in))
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := json.Marshal(all); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUpdate_ToProxy50000(b *testing.B) {
	h, _ := bigHub(b)
	h.Status()
	b.ReportAllocs()
	bytes := 0
	for b.Loop() {
		d := document{apps: make(map[string]*shownApp)}
		bytes = 0
		messages, _ := h.update(&sentStatus{})
		for _, m := range messages {
			wire, err := proto.Marshal(m)
			if err != nil {
				b.Fatal(err)
			}
			bytes += len(wire)
			var back pb.AdminMessage
			if err := proto.Unmarshal(wire, &back); err != nil {
				b.Fatal(err)
			}
			d.take(back.GetStatus(), stats.NewRegistry(1))
		}
		if len(d.apps) != 10_000 {
			b.Fatalf("%d applications", len(d.apps))
		}
	}
	b.ReportMetric(float64(bytes)/50_000, "B/instance")
}

func BenchmarkCounters_PersistAndLoad50000(b *testing.B) {
	h, _ := bigHub(b)
	store := h.opts.Counters.(*memStore)
	if _, err := h.persist(context.Background(), store.office(), false); err != nil {
		b.Fatal(err)
	}
	bytes := 0
	for _, c := range store.chunks {
		bytes += len(c.Value)
	}
	b.Run("persist", func(b *testing.B) {
		for b.Loop() {
			for _, list := range h.book.nodes {
				for _, c := range list {
					h.book.markDirty(c)
				}
			}
			if _, err := h.persist(context.Background(), store.office(), false); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(bytes)/120_000, "B/series")
		b.ReportMetric(float64(len(store.chunks)), "chunks")
	})
	b.Run("load", func(b *testing.B) {
		for b.Loop() {
			fresh := NewHub(HubOptions{Log: zerolog.Nop(), Counters: store})
			if err := fresh.loadCounters(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
