package cluster

import (
	"context"
	"testing"

	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"

	"difylb/pkg/stats"
	pb "difylb/proto"
)

// FuzzHub_TakesAnyBytes: whatever stands in the store or comes in a report,
// the hub neither panics nor writes what it cannot read again.
func FuzzHub_TakesAnyBytes(f *testing.F) {
	totals := &pb.Totals{Requests: 3, Reasons: []*pb.ReasonCount{{Reason: "ok", Count: 2}, {Reason: "new", Count: 1}}, Latency: &pb.Histogram{Offset: 270, Counts: []uint64{1, 2, 3}}}
	chunk, _ := proto.Marshal(&pb.CounterChunk{Node: "p", Boots: []*pb.StoredBoot{{BootId: "a"}, {BootId: "b"}}, Series: []*pb.StoredSeries{
		{App: "shop", Instance: "dify1", Version: 2, Base: totals, Folded: []uint32{0, 9}, Boots: []*pb.StoredTotals{{Boot: 1, Totals: totals}, {Boot: 7, Totals: totals}}},
	}})
	report, _ := proto.Marshal(&pb.Report{Seq: 1, Full: true, Series: []*pb.Series{{App: "shop", Instance: "dify1", Totals: totals}},
		Ejections: &pb.Ejections{Ejections: []*pb.Ejection{{App: "shop", Instance: "dify1", SinceUnixMilli: -5}}}, Receipt: &pb.Receipt{Revision: 3, ApplyMicros: -1}})
	f.Add(chunk, report)
	f.Add([]byte("not protobuf"), []byte{0xff})
	f.Fuzz(func(t *testing.T, chunk, report []byte) {
		store := newMemStore()
		store.chunks["p/0"] = CounterChunk{Node: "p", Index: 0, Value: chunk}
		h := NewHub(HubOptions{Log: zerolog.Nop(), Counters: store})
		if err := h.loadCounters(context.Background()); err != nil {
			t.Fatal(err)
		}
		var r pb.Report
		if proto.Unmarshal(report, &r) == nil {
			h.report(h.open(&pb.Hello{Node: "p", BootId: "b"}), &r)
		}
		want := make(map[stats.Key]uint64)
		for key := range h.ledger.entries {
			want[key] = h.Totals(key).Requests
		}
		if _, err := h.persist(context.Background(), store.office(), true); err != nil {
			t.Fatal(err)
		}
		again := NewHub(HubOptions{Log: zerolog.Nop(), Counters: store})
		if err := again.loadCounters(context.Background()); err != nil {
			t.Fatal(err)
		}
		for key, n := range want {
			if got := again.Totals(key).Requests; got != n {
				t.Errorf("%q: %d requests, %d before they were stored", key, got, n)
			}
		}
	})
}
