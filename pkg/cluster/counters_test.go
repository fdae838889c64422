package cluster

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/stats"
	pb "difylb/proto"
)

func reportOne(h *Hub, seq uint64, app string, requests uint64) {
	b := h.open(&pb.Hello{Node: "p", BootId: "b"})
	h.report(b, &pb.Report{Seq: seq, Full: true, Series: []*pb.Series{{App: app, Instance: "dify1", Totals: &pb.Totals{Requests: requests}}}})
}

func storedRequests(t *testing.T, store CounterStore, app string) uint64 {
	t.Helper()
	fresh := NewHub(HubOptions{Log: zerolog.Nop(), Counters: store})
	if err := fresh.loadCounters(context.Background()); err != nil {
		t.Fatal(err)
	}
	return fresh.Totals(stats.Key{App: app, Instance: "dify1"}).Requests
}

func TestLead_KeepsTheStoreNearThroughOutagesAndWritesAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := false
		store := &lockedStore{memStore: newMemStore()}
		store.fail = func() (bool, bool) { return down, false }
		h := NewHub(HubOptions{Log: zerolog.Nop(), Counters: store})
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- h.Lead(ctx, store.office()) }()

		for n := uint64(1); n <= 10; n++ {
			reportOne(h, n, "shop", n)
			time.Sleep(persistMax)
			synctest.Wait()
			if got := storedRequests(t, store, "shop"); got != n {
				t.Fatalf("%d of %d requests stored after %v", got, n, persistMax)
			}
		}
		store.mu.Lock()
		down = true
		store.mu.Unlock()
		reportOne(h, 11, "shop", 11)
		time.Sleep(time.Minute)
		store.mu.Lock()
		down = false
		store.mu.Unlock()
		time.Sleep(persistMax)
		synctest.Wait()
		if got := storedRequests(t, store, "shop"); got != 11 {
			t.Fatalf("%d of 11 requests stored after the outage", got)
		}
		puts := store.puts
		time.Sleep(time.Hour)
		synctest.Wait()
		if store.puts != puts {
			t.Errorf("%d writes while nothing changed", store.puts-puts)
		}
		reportOne(h, 12, "shop", 12)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("lead ended with %v", err)
		}
		if got := storedRequests(t, store, "shop"); got != 12 {
			t.Errorf("%d of 12 requests stored at the end", got)
		}
	})
}

func TestPersist_WritesInProportionToWhatChanges(t *testing.T) {
	store := newMemStore()
	h := NewHub(HubOptions{Log: zerolog.Nop(), Counters: store})
	const all, hot = 20_000, 20
	name := func(i int) string { return fmt.Sprintf("app%05d", i) }
	for i := range all {
		reportOne(h, uint64(i+1), name(i), 1)
	}
	whole, err := h.persist(context.Background(), store.office(), false)
	if err != nil {
		t.Fatal(err)
	}
	var bytes int
	for round := range 5 {
		for i := range hot { // far apart, so that they stand in different chunks
			reportOne(h, uint64(all+round+1), name(i*all/hot), uint64(round+2))
		}
		if bytes, err = h.persist(context.Background(), store.office(), false); err != nil {
			t.Fatal(err)
		}
	}
	if most := 8 * hot * (whole/all + 1); bytes > most {
		t.Errorf("%d of %d series changed and %d bytes were written, at most %d were expected; all of them are %d", hot, all, bytes, most, whole)
	}
	for _, i := range []int{0, 1, all / hot, all - 1} {
		want := h.Totals(stats.Key{App: name(i), Instance: "dify1"}).Requests
		if got := storedRequests(t, store, name(i)); got != want {
			t.Errorf("%s: %d requests stored, %d counted", name(i), got, want)
		}
	}
}

func TestPersist_AFailedWriteIsMadeUpForWhatever(t *testing.T) {
	for _, applied := range []bool{false, true} {
		store := newMemStore()
		h := NewHub(HubOptions{Log: zerolog.Nop(), Counters: store})
		const series = 300 // enough for a chunk to be sifted
		seq := uint64(0)
		report := func(i int, n uint64) { seq++; reportOne(h, seq, fmt.Sprint(i), n) }
		for i := range series {
			report(i, 1)
		}
		if _, err := h.persist(context.Background(), store.office(), true); err != nil {
			t.Fatal(err)
		}
		for i := range series {
			report(i, 2)
		}
		store.fail = func() (bool, bool) { return !applied, applied }
		if _, err := h.persist(context.Background(), store.office(), false); err == nil {
			t.Fatal("the store did not fail")
		}
		store.fail = func() (bool, bool) { return false, false }
		report(7, 3) // one that changes among many that only failed
		if _, err := h.persist(context.Background(), store.office(), true); err != nil {
			t.Fatal(err)
		}
		for i := range series {
			want := uint64(2)
			if i == 7 {
				want = 3
			}
			if got := storedRequests(t, store, fmt.Sprint(i)); got != want {
				t.Fatalf("applied=%v: series %d: %d stored, %d counted", applied, i, got, want)
			}
		}
	}
}

func TestPersist_DividesChunksThatGrow(t *testing.T) {
	store := newMemStore()
	h := NewHub(HubOptions{Log: zerolog.Nop(), Counters: store})
	wide := make([]uint64, stats.NumBucket)
	for i := range wide {
		wide[i] = 1 << 40
	}
	const series = 500
	for seq := uint64(1); seq <= 2; seq++ { // small at first, then 3 KB each
		for i := range series {
			b := h.open(&pb.Hello{Node: "p", BootId: "b"})
			t := &pb.Totals{Requests: seq}
			if seq == 2 {
				t.Latency = &pb.Histogram{Counts: wide}
			}
			h.report(b, &pb.Report{Seq: seq, Full: true, Series: []*pb.Series{{App: fmt.Sprint(i), Instance: "dify1", Totals: t}}})
		}
		// memStore refuses a chunk over MaxChunkBytes.
		if _, err := h.persist(context.Background(), store.office(), false); err != nil {
			t.Fatal(err)
		}
	}
	fresh := NewHub(HubOptions{Log: zerolog.Nop(), Counters: store})
	if err := fresh.loadCounters(context.Background()); err != nil {
		t.Fatal(err)
	}
	for i := range series {
		got := fresh.Totals(stats.Key{App: fmt.Sprint(i), Instance: "dify1"})
		if got.Requests != 2 || got.Latency.Count() != stats.NumBucket<<40 {
			t.Fatalf("series %d: %d requests, %d latencies stored", i, got.Requests, got.Latency.Count())
		}
	}
}

func TestLoad_LeavesAnUnreadableChunkAlone(t *testing.T) {
	store := newMemStore()
	garbage := CounterChunk{Node: "p", Index: 0, Value: []byte("garbage")}
	store.chunks["p/0"] = garbage
	h := NewHub(HubOptions{Log: zerolog.Nop(), Counters: store})
	reportOne(h, 1, "shop", 5) // placed before the store is known
	if _, err := h.persist(context.Background(), store.office(), true); err != nil {
		t.Fatal(err)
	}
	if got := string(store.chunks["p/0"].Value); got != "garbage" {
		t.Errorf("the chunk was overwritten with %q", got)
	}
	if got := storedRequests(t, store, "shop"); got != 5 {
		t.Errorf("%d of 5 requests stored beside it", got)
	}
}

func TestHub_ReadyWhenEveryProxyHasReportedOrHadItsTime(t *testing.T) {
	m := newModel(t, 1)
	h := NewHub(HubOptions{Log: zerolog.Nop(), Counters: m.store, Now: func() time.Time { return m.clock }})
	h.SetSnapshot(m.snapshot())
	if h.Ready() {
		t.Error("ready before the counters are loaded")
	}
	if err := h.loadCounters(context.Background()); err != nil {
		t.Fatal(err)
	}
	if h.Ready() {
		t.Error("ready before any proxy has reported")
	}
	a := &modelAdmin{hub: h}
	m.reportAll(a)
	if !h.Ready() {
		t.Error("not ready although all have reported")
	}
	late := NewHub(HubOptions{Log: zerolog.Nop(), Counters: m.store, Now: func() time.Time { return m.clock }})
	late.SetSnapshot(m.snapshot())
	if err := late.loadCounters(context.Background()); err != nil {
		t.Fatal(err)
	}
	m.clock = m.clock.Add(readyAfter)
	if !late.Ready() || late.Status().Complete {
		t.Error("silent proxies must delay, not prevent, readiness, and never count as complete")
	}
}
