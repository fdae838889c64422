package stats

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"difylb/pkg/lb"
)

func BenchmarkInstance_BeginEnd(b *testing.B) {
	r := NewRegistry(0)
	in := r.App("shop").Instance("dify1")
	m := Sample{Reason: lb.ReasonOK, BytesIn: 250, BytesOut: 600, Latency: 41 * time.Millisecond, FirstByte: 20 * time.Millisecond}
	b.ReportAllocs()
	for b.Loop() {
		in.Begin(1)
		in.End(1, m)
	}
}

func BenchmarkApp_BeginEnd(b *testing.B) {
	a := NewRegistry(0).App("shop")
	b.ReportAllocs()
	for b.Loop() {
		a.Begin(1)
		a.End(1, lb.ReasonOK)
	}
}

func BenchmarkInstance_BeginEndParallel(b *testing.B) {
	r := NewRegistry(0)
	in := r.App("shop").Instance("dify1")
	m := Sample{Reason: lb.ReasonOK, BytesIn: 250, BytesOut: 600, Latency: 41 * time.Millisecond, FirstByte: 20 * time.Millisecond}
	b.ReportAllocs()
	var next atomic.Uint32
	b.RunParallel(func(pb *testing.PB) {
		shard := next.Add(1)
		for pb.Next() {
			in.Begin(shard)
			in.End(shard, m)
		}
	})
}

func BenchmarkInstance_AddUsageParallel(b *testing.B) {
	in := NewRegistry(0).App("shop").Instance("dify1")
	label := in.app.Label("web")
	u := Usage{Prompt: 1033, Completion: 128, Total: 1161, Costs: []Cost{{"USD", 1_289_000}}}
	b.ReportAllocs()
	var next atomic.Uint32
	b.RunParallel(func(pb *testing.PB) {
		shard := next.Add(1)
		for pb.Next() {
			in.AddUsage(shard, label, u)
		}
	})
}

func BenchmarkLabel_Begin(b *testing.B) {
	l := NewRegistry(0).App("shop").Label("web")
	for b.Loop() {
		l.Begin(1)
	}
}

func BenchmarkRegistry_Collect(b *testing.B) {
	for _, changed := range []int{0, 100, 50_000} {
		b.Run(fmt.Sprintf("changed=%d", changed), func(b *testing.B) {
			r := NewRegistry(0)
			var all []*Instance
			for a := range 10_000 {
				for i := range 5 {
					in := r.App(fmt.Sprintf("app%d", a)).Instance(fmt.Sprintf("dify%d", i))
					in.Begin(0)
					in.End(0, Sample{Latency: time.Duration(a) * time.Millisecond})
					all = append(all, in)
				}
			}
			_, gen := r.Collect(0)
			b.ReportAllocs()
			for b.Loop() {
				for _, in := range all[:changed] {
					in.Begin(0)
				}
				_, gen = r.Collect(gen)
			}
		})
	}
}
