package cluster

import (
	"context"
	"reflect"
	"testing"

	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"

	"difylb/pkg/stats"
	pb "difylb/proto"
)

// FuzzHub_TakesAnyBytes: whatever stands in the store or comes in a report,
// the hub neither panics nor writes what it cannot read again.
func FuzzHub_TakesAnyBytes(f *testing.F) {
	totals := &pb.Totals{Requests: 3, Reasons: []*pb.ReasonCount{{Reason: "ok", Count: 2}, {Reason: "new", Count: 1}}, Latency: &pb.Histogram{Offset: 270, Counts: []uint64{1, 2, 3}},
		Usage: &pb.Usage{TotalTokens: 1 << 63, Answers: 2, Costs: []*pb.Cost{{Currency: "USD", Nano: 5}, {Currency: "EUR", Nano: 1 << 63}, {Currency: "USD", Nano: 1}, {Currency: "no name"}}}}
	labelled := &pb.Totals{Requests: 4, Usage: &pb.Usage{Answers: 1}}
	chunk, _ := proto.Marshal(&pb.CounterChunk{Node: "p", Boots: []*pb.StoredBoot{{BootId: "a"}, {BootId: "b"}}, Series: []*pb.StoredSeries{
		{App: "shop", Instance: "dify1", Version: 2, Base: totals, Folded: []uint32{0, 9}, Boots: []*pb.StoredTotals{{Boot: 1, Totals: totals}, {Boot: 7, Totals: totals}}},
	}, Labels: []*pb.StoredSeries{{App: "shop", Label: "web", Instance: "ignored", Folded: []uint32{1}, Version: 1, Base: labelled}, {App: "shop", Boots: []*pb.StoredTotals{{Totals: labelled}}}}})
	report, _ := proto.Marshal(&pb.Report{Seq: 1, Full: true, Labels: []*pb.LabelSeries{{App: "shop", Label: "web", Totals: labelled}, {App: "shop", Totals: labelled}, {Label: "nobody's"}}, Series: []*pb.Series{{App: "shop", Instance: "dify1", Totals: totals}},
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
		want := make(map[stats.Key]stats.Totals)
		for key := range h.ledger.entries {
			want[key] = h.Totals(key)
		}
		if _, err := h.persist(context.Background(), store.office(), true); err != nil {
			t.Fatal(err)
		}
		again := NewHub(HubOptions{Log: zerolog.Nop(), Counters: store})
		if err := again.loadCounters(context.Background()); err != nil {
			t.Fatal(err)
		}
		for key, was := range want {
			got := again.Totals(key)
			if got.Requests != was.Requests || !reflect.DeepEqual(got.Usage, was.Usage) {
				t.Errorf("%+v: %+v, %+v before they were stored", key, got, was)
			}
		}
	})
}
