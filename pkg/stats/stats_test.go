package stats

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"difylb/pkg/lb"
)

func TestBucketOf_EveryBoundaryIsInItsBucket(t *testing.T) {
	for i := range NumBucket {
		lo, hi := BucketBounds(i)
		if got := bucketOf(uint64(lo.Microseconds())); got != i {
			t.Fatalf("lower bound %v of bucket %d falls into %d", lo, i, got)
		}
		if got := bucketOf(uint64(hi.Microseconds()) - 1); got != i {
			t.Fatalf("last microsecond below %v of bucket %d falls into %d", hi, i, got)
		}
		if i > 0 {
			if _, before := BucketBounds(i - 1); before != lo {
				t.Fatalf("bucket %d begins at %v, the one before ends at %v", i, lo, before)
			}
		}
		if lo >= 8*time.Microsecond && (hi-lo)*8 > lo {
			t.Fatalf("bucket %d, %v to %v, is wider than an eighth", i, lo, hi)
		}
	}
	if got := bucketOf(1 << 60); got != NumBucket-1 {
		t.Errorf("2^60 µs falls into bucket %d", got)
	}
}

func TestRegistry_StreamTimeCountsEndedStreamsOnly(t *testing.T) {
	r := NewRegistry(2)
	key := Key{App: "a", Instance: "i"}
	in := r.App("a").Instance("i")
	in.End(0, Sample{Latency: time.Second})
	if h := r.StreamTime(key); h.Count() != 0 {
		t.Errorf("an answer that is no stream counts: %+v", h)
	}
	for shard := range uint32(2) {
		in.StreamBegin(shard)
		in.End(shard, Sample{Stream: true, Latency: time.Minute})
	}
	if h := r.StreamTime(key); h.Count() != 2 || h.Quantile(0.5) < 50*time.Second {
		t.Errorf("%d streams of %v, want 2 of a minute", h.Count(), h.Quantile(0.5))
	}
	for _, none := range []Key{{App: "a"}, {App: "b", Instance: "i"}, {App: "a", Instance: "j"}, {}} {
		if h := r.StreamTime(none); h.Count() != 0 {
			t.Errorf("%+v has streams", none)
		}
	}
}

func TestHistogram_QuantileIsNearTheExactOne(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	in := NewRegistry(2).App("a").Instance("i")
	var exact []time.Duration
	for range 20_000 {
		d := time.Duration(float64(20*time.Millisecond) * (0.1 + rng.ExpFloat64()))
		exact = append(exact, d)
		in.End(rng.Uint32(), Sample{Latency: d})
	}
	slices.Sort(exact)
	var tot Totals
	in.totals(&tot)
	for _, p := range []float64{0, 0.5, 0.9, 0.99, 1} {
		want := exact[min(int(p*float64(len(exact))), len(exact)-1)]
		got := tot.Latency.Quantile(p)
		if diff := (got - want).Abs(); float64(diff) > 0.07*float64(want) {
			t.Errorf("p%g is %v, exactly %v", 100*p, got, want)
		}
	}
	if got := tot.Latency.Count(); got != 20_000 {
		t.Errorf("count %d", got)
	}
	var empty Histogram
	if got := empty.Quantile(0.5); got != 0 {
		t.Errorf("median of nothing is %v", got)
	}
}

// randomTotals moves t on by some random traffic.
func grow(rng *rand.Rand, t *Totals) {
	t.Requests += rng.Uint64N(5)
	t.Errors += rng.Uint64N(3)
	t.Reasons[rng.IntN(int(lb.NumReasons))] += rng.Uint64N(4)
	t.BytesIn += rng.Uint64N(1000)
	var h Histogram
	h.Offset = rng.IntN(NumBucket - 4)
	h.Counts = []uint64{rng.Uint64N(3), rng.Uint64N(3), 1}
	t.Latency.Add(&h)
	growUsage(rng, &t.Usage)
	if rng.IntN(3) == 0 {
		t.LastError = LastError{Reason: lb.ReasonBusy, UnixMilli: t.LastError.UnixMilli + 1}
	}
}

// same compares figures; the width of the histograms is not part of them.
func same(a, b Totals) bool {
	norm := func(h *Histogram) map[int]uint64 {
		m := make(map[int]uint64)
		for i, c := range h.Counts {
			if c > 0 {
				m[h.Offset+i] = c
			}
		}
		return m
	}
	if !reflect.DeepEqual(norm(&a.Latency), norm(&b.Latency)) || !reflect.DeepEqual(norm(&a.FirstByte), norm(&b.FirstByte)) {
		return false
	}
	a.Latency, b.Latency, a.FirstByte, b.FirstByte = Histogram{}, Histogram{}, Histogram{}, Histogram{}
	return reflect.DeepEqual(a, b)
}

func TestTotals_MaxOfViewsInAnyOrderIsTheNewest(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		var views []Totals
		var now Totals
		for range 1 + rng.IntN(8) {
			grow(rng, &now)
			views = append(views, now.Clone())
		}
		var joined Totals
		for range 3 {
			for _, i := range rng.Perm(len(views)) {
				joined.Max(&views[i])
			}
		}
		if !same(joined, now) {
			t.Fatalf("views joined to\n%+v, the newest is\n%+v", joined, now)
		}
	}
}

func TestTotals_AddDoesNotDependOnOrderNorShareMemory(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		parts := make([]Totals, 1+rng.IntN(6))
		for i := range parts {
			grow(rng, &parts[i])
		}
		before := make([]Totals, len(parts))
		for i := range parts {
			before[i] = parts[i].Clone()
		}
		var a, b Totals
		for i := range parts {
			a.Add(&parts[i])
		}
		for _, i := range rng.Perm(len(parts)) {
			b.Add(&parts[i])
		}
		if !same(a, b) {
			t.Fatalf("%+v\n%+v", a, b)
		}
		if !reflect.DeepEqual(parts, before) {
			t.Fatal("Add changed its argument")
		}
	}
}

func TestRegistry_CountsWhatHappened(t *testing.T) {
	r := NewRegistry(4)
	a := r.App("shop")
	in := a.Instance("dify1")
	a.Begin(0)
	in.Begin(1)
	in.StreamBegin(2)
	in.Flow(3, 10, 20)
	if in.Active() != 1 || in.Streams() != 1 || a.Active() != 1 {
		t.Fatalf("open: %d attempts, %d streams, %d requests", in.Active(), in.Streams(), a.Active())
	}
	in.End(0, Sample{Reason: lb.ReasonConnectFailed, Stream: true, BytesIn: 1, BytesOut: 2, Latency: time.Millisecond})
	in.Begin(1)
	in.End(3, Sample{Reason: lb.ReasonOK, Retry: true, Latency: time.Second, FirstByte: time.Millisecond})
	a.End(2, lb.ReasonOK)
	r.Unrouted(9, lb.ReasonUnauthorized)

	got := make(map[Key]Totals)
	series, _ := r.Collect(0)
	for _, s := range series {
		got[s.Key] = s.Totals
	}
	i := got[Key{App: "shop", Instance: "dify1"}]
	if i.Requests != 2 || i.Errors != 1 || i.Retries != 1 || i.Active != 0 || i.Streams != 0 || i.BytesIn != 11 || i.BytesOut != 22 {
		t.Errorf("instance: %+v", i)
	}
	if i.LastError.Reason != lb.ReasonConnectFailed || time.Since(i.LastError.Time()) > time.Minute {
		t.Errorf("last error: %+v", i.LastError)
	}
	if i.Latency.Count() != 2 || i.FirstByte.Count() != 1 {
		t.Errorf("%d latencies, %d first bytes", i.Latency.Count(), i.FirstByte.Count())
	}
	app := got[Key{App: "shop"}]
	if app.Requests != 1 || app.Errors != 0 || app.Reasons[lb.ReasonOK] != 1 || app.Active != 0 {
		t.Errorf("application: %+v", app)
	}
	if u := got[Key{}]; u.Requests != 1 || u.Errors != 0 || u.Reasons[lb.ReasonUnauthorized] != 1 {
		t.Errorf("unrouted: %+v", u)
	}
}

func TestRegistry_CollectReturnsWhatChangedToEachCaller(t *testing.T) {
	r := NewRegistry(1)
	a, b := r.App("a"), r.App("b")
	keys := func(since uint64) (names []string, gen uint64) {
		series, gen := r.Collect(since)
		for _, s := range series {
			names = append(names, s.App)
		}
		slices.Sort(names)
		return names, gen
	}
	if names, gen := keys(0); len(names) != 0 || gen != 0 {
		t.Fatalf("untouched: %v, generation %d", names, gen)
	}
	a.Begin(0)
	names, first := keys(0)
	if !slices.Equal(names, []string{"a"}) {
		t.Fatalf("after a: %v", names)
	}
	b.Begin(0)
	if names, _ := keys(first); !slices.Equal(names, []string{"b"}) {
		t.Fatalf("after b, since the first: %v", names)
	}
	// Another caller's Collect in between takes nothing away.
	names, second := keys(first)
	if !slices.Equal(names, []string{"b"}) {
		t.Fatalf("after b, again: %v", names)
	}
	if names, _ := keys(second); len(names) != 0 {
		t.Fatalf("nothing changed, yet: %v", names)
	}
	if names, _ := keys(0); !slices.Equal(names, []string{"a", "b"}) {
		t.Fatalf("all: %v", names)
	}
}

func TestRegistry_ReadersNeverSeeCountersFallOrGaugesNegative(t *testing.T) {
	r := NewRegistry(4)
	a := r.App("a")
	in := a.Instance("i")
	const writers, rounds = 4, 5000
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for range rounds {
				a.Begin(rng.Uint32())
				in.Begin(rng.Uint32())
				m := Sample{Reason: lb.Reason(rng.IntN(int(lb.NumReasons))), Latency: time.Duration(rng.IntN(1e9))}
				if m.Stream = rng.IntN(2) == 0; m.Stream {
					in.StreamBegin(rng.Uint32())
				}
				l := a.Label(fmt.Sprint(rng.IntN(3)))
				l.Begin(rng.Uint32())
				in.AddUsage(rng.Uint32(), l, Usage{Prompt: 1, Total: 2, Costs: []Cost{{fmt.Sprint("C", rng.IntN(10)), 3}}})
				in.End(rng.Uint32(), m)
				a.End(rng.Uint32(), m.Reason)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	seen := make(map[Key]Totals)
	gen, labelGen := uint64(0), uint64(0)
	for last := false; ; {
		series, next := r.Collect(gen)
		gen = next
		labels, next := r.CollectLabels(labelGen)
		labelGen = next
		for _, s := range append(series, labels...) {
			old := seen[s.Key]
			joined := s.Totals.Clone()
			joined.Max(&old)
			if !same(joined, s.Totals) {
				t.Fatalf("a counter of %v fell:\n%+v\nwas\n%+v", s.Key, s.Totals, old)
			}
			if s.Active < 0 || s.Streams < 0 || s.Errors > s.Requests || s.Ended() > s.Requests || s.Usage.Answers > s.Requests {
				t.Fatalf("impossible: %+v", s)
			}
			seen[s.Key] = s.Totals
		}
		if last {
			break
		}
		select {
		case <-done:
			last = true
		default:
		}
	}
	// The last Collect saw all: nothing may be lost between dirty and clean.
	if got := seen[Key{App: "a", Instance: "i"}]; got.Requests != writers*rounds || got.Ended() != writers*rounds || got.Active != 0 || got.Streams != 0 || got.Latency.Count() < writers*rounds-writers {
		t.Errorf("instance at the end: %+v", got)
	}
	if got := seen[Key{App: "a"}]; got.Requests != writers*rounds || got.Active != 0 {
		t.Errorf("application at the end: %+v", got)
	}
	exact := func(name string, u Usage) {
		var costs uint64
		for _, c := range u.Costs {
			costs += c.Nano
		}
		if u.Answers != writers*rounds || u.Prompt != u.Answers || u.Total != 2*u.Answers || costs != 3*(u.Answers-u.Unpriced) || len(u.Costs) != MaxCurrencies {
			t.Errorf("%s at the end: %+v", name, u)
		}
	}
	exact("instance", seen[Key{App: "a", Instance: "i"}].Usage)
	exact("application", seen[Key{App: "a"}].Usage)
	var labels Totals
	for i := range 3 {
		l := seen[LabelKey("a", fmt.Sprint(i))]
		labels.Requests += l.Requests
		labels.Usage.Answers += l.Usage.Answers
	}
	if labels.Requests != writers*rounds || labels.Usage.Answers != labels.Requests {
		t.Errorf("labels at the end: %+v", labels)
	}
}

func TestRegistry_NamesAreBounded(t *testing.T) {
	r := NewRegistry(1)
	r.maxSeries = 10
	for i := range 50 {
		a := r.App(fmt.Sprintf("app%d", i))
		a.Begin(0)
		a.Instance("one").Begin(0)
	}
	series, _ := r.Collect(0)
	// At the bound every application may still get its own overflow series.
	if len(series) > 10+10+2 {
		t.Fatalf("%d series", len(series))
	}
	var sum, other uint64
	for _, s := range series {
		if s.Instance == "" {
			sum += s.Requests
			if s.App == Overflow {
				other = s.Requests
			}
		}
	}
	if sum != 50 || other == 0 {
		t.Errorf("%d requests counted, %d of them together", sum, other)
	}
	if lb.ValidApplicationName(Overflow) {
		t.Errorf("%q can be declared", Overflow)
	}
}

func TestInstance_WritingAllocatesNothing(t *testing.T) {
	in := NewRegistry(1).App("a").Instance("i")
	m := Sample{Reason: lb.ReasonBusy, Stream: true, Retry: true, BytesIn: 1, BytesOut: 1, Latency: time.Second, FirstByte: time.Millisecond}
	label := in.app.Label("web")
	u := Usage{Prompt: 1, Completion: 2, Total: 3, Costs: []Cost{{"USD", 1}, {"RMB", 1}}}
	write := func() {
		in.Begin(0)
		label.Begin(0)
		in.StreamBegin(0)
		in.Flow(0, 1, 1)
		in.AddUsage(0, label, u)
		in.End(0, m)
	}
	write()
	if n := testing.AllocsPerRun(1000, write); n != 0 {
		t.Errorf("%v allocations per attempt", n)
	}
}
