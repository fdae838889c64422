package stats

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"difylb/pkg/lb"
)

// growUsage moves u on by an answer or none; some are so large that sums
// reach their end.
func growUsage(rng *rand.Rand, u *Usage) {
	if rng.IntN(3) == 0 {
		return
	}
	o := Usage{Prompt: rng.Uint64N(1000), Completion: rng.Uint64N(1000), Answers: 1, Unpriced: rng.Uint64N(2)}
	o.Total = o.Prompt + o.Completion
	if rng.IntN(20) == 0 {
		o.Total = rng.Uint64()
	}
	for range rng.IntN(3) {
		o.AddCost(Cost{fmt.Sprint("C", rng.IntN(12)), rng.Uint64() >> rng.IntN(60)})
	}
	u.Add(&o)
}

func TestUsage_SumsStopAtTheirEnd(t *testing.T) {
	var u Usage
	big := Usage{Prompt: math.MaxUint64, Total: math.MaxInt64 - 1, Answers: 1}
	big.AddCost(Cost{"USD", math.MaxUint64})
	for range 5 {
		u.Add(&big)
	}
	want := Usage{Prompt: maxFigure, Total: maxFigure, Answers: 5, Costs: []Cost{{"USD", maxFigure}}}
	if !reflect.DeepEqual(u, want) {
		t.Errorf("%+v", u)
	}
	in := NewRegistry(4).App("a").Instance("i")
	for shard := range uint32(5) {
		in.AddUsage(shard, nil, big)
	}
	var got Totals
	in.totals(&got)
	if !reflect.DeepEqual(got.Usage, want) {
		t.Errorf("live: %+v", got.Usage)
	}
}

func TestUsage_LessIsWhatCameSince(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 500 {
		var before Usage
		for range rng.IntN(3) {
			growUsage(rng, &before)
		}
		now := before.Clone()
		for range rng.IntN(3) {
			growUsage(rng, &now)
		}
		was := before.Clone()
		since := now.Less(&before)
		before.Add(&since)
		if !reflect.DeepEqual(before, now) {
			t.Fatalf("%+v and then %+v is not %+v", was, since, now)
		}
		for _, c := range since.Costs {
			if c.Nano == 0 {
				t.Fatalf("nothing of %s: %+v", c.Currency, since)
			}
		}
	}
	var zero Usage
	if got := zero.Less(&Usage{Prompt: 3, Costs: []Cost{{"USD", 1}}}); !got.IsZero() {
		t.Errorf("less than nothing: %+v", got)
	}
}

func TestInstance_AddUsageCountsForThreeSeries(t *testing.T) {
	r := NewRegistry(2)
	a := r.App("shop")
	one, two := a.Instance("dify1"), a.Instance("dify2")
	web, none := a.Label("web"), a.Label("")
	web.Begin(0)
	web.Begin(1)
	none.Begin(0)
	one.AddUsage(0, web, Usage{Prompt: 10, Completion: 5, Total: 15, Answers: 99, Costs: []Cost{{"USD", 186_000}}})
	two.AddUsage(1, web, Usage{Total: 7, Costs: []Cost{{"RMB", 1}, {"USD", 14_000}}})
	two.AddUsage(0, none, Usage{Total: 1})
	two.AddUsage(0, nil, Usage{Total: 2})
	two.AddUsage(0, none, Usage{})           // an answer that tells nothing
	two.AddUsage(0, none, Usage{Answers: 1}) // the same
	var nobody *Label
	nobody.Begin(0)

	for _, c := range []struct {
		key      Key
		requests uint64
		want     Usage
	}{
		{Key{App: "shop", Instance: "dify1"}, 0, Usage{Prompt: 10, Completion: 5, Total: 15, Answers: 1, Costs: []Cost{{"USD", 186_000}}}},
		{Key{App: "shop", Instance: "dify2"}, 0, Usage{Total: 10, Answers: 3, Costs: []Cost{{"RMB", 1}, {"USD", 14_000}}}},
		{Key{App: "shop"}, 0, Usage{Prompt: 10, Completion: 5, Total: 25, Answers: 4, Costs: []Cost{{"RMB", 1}, {"USD", 200_000}}}},
		{LabelKey("shop", "web"), 2, Usage{Prompt: 10, Completion: 5, Total: 22, Answers: 2, Costs: []Cost{{"RMB", 1}, {"USD", 200_000}}}},
		{LabelKey("shop", ""), 1, Usage{Total: 1, Answers: 1}},
	} {
		got, ok := r.Totals(c.key)
		if !ok || !reflect.DeepEqual(got.Usage, c.want) || got.Requests != c.requests {
			t.Errorf("%+v: %v %d requests, %+v", c.key, ok, got.Requests, got.Usage)
		}
	}
	for _, key := range []Key{LabelKey("shop", "app"), LabelKey("other", ""), {App: "shop", Instance: "web"}} {
		if got, ok := r.Totals(key); ok {
			t.Errorf("%+v exists: %+v", key, got)
		}
	}
}

func TestInstance_AddUsageBoundsCurrencies(t *testing.T) {
	r := NewRegistry(8)
	in := r.App("a").Instance("i")
	for i := range uint32(20) { // every one on another shard
		in.AddUsage(i, nil, Usage{Costs: []Cost{{fmt.Sprint("C", i), 1}}})
	}
	for i, name := range []string{"", "U SD", "\xff\xfe", "DOLLAR-US", "\n", "\u20ac"} {
		in.AddUsage(uint32(i), nil, Usage{Costs: []Cost{{name, 1}}})
	}
	in.AddUsage(0, nil, Usage{Total: 1, Costs: []Cost{{"NEW", 0}, {"C3", 1}}})
	got, _ := r.Totals(Key{App: "a", Instance: "i"})
	if u := got.Usage; len(u.Costs) != MaxCurrencies || u.Unpriced != 20-MaxCurrencies+6 || u.Answers != 27 || u.Costs[3] != (Cost{"C3", 2}) {
		t.Errorf("%+v", u)
	}
	text := []byte("EUR and a large answer")
	in = r.App("b").Instance("i")
	in.AddUsage(0, nil, Usage{Costs: []Cost{{unsafe.String(&text[0], 3), 5}}})
	copy(text, "XXX")
	if got, _ := r.Totals(Key{App: "b"}); !reflect.DeepEqual(got.Usage.Costs, []Cost{{"EUR", 5}}) {
		t.Errorf("the name is the answer's memory: %+v", got.Usage)
	}
}

func TestRegistry_LabelsAreCollectedApart(t *testing.T) {
	r := NewRegistry(1)
	a := r.App("a")
	l := a.Label("web")
	l.Begin(0)
	if series, _ := r.Collect(0); len(series) != 0 {
		t.Errorf("a label among applications and instances: %+v", series)
	}
	series, gen := r.CollectLabels(0)
	if len(series) != 1 || series[0].Key != LabelKey("a", "web") || series[0].Requests != 1 {
		t.Fatalf("%+v", series)
	}
	if series, _ = r.CollectLabels(gen); len(series) != 0 {
		t.Fatalf("nothing changed, yet %+v", series)
	}
	a.Instance("i").AddUsage(0, l, Usage{Total: 4})
	if series, _ = r.CollectLabels(gen); len(series) != 1 || series[0].Usage.Total != 4 {
		t.Errorf("%+v", series)
	}
	if series, _ = r.Collect(0); len(series) != 2 {
		t.Errorf("an answer's usage changed %d of application and instance", len(series))
	}
}

func TestRegistry_LabelsAreBounded(t *testing.T) {
	r := NewRegistry(1)
	r.maxLabels = 5
	a := r.App("a")
	for i := range 20 {
		a.Label(fmt.Sprint(i)).Begin(0)
		a.Label(fmt.Sprint(i)).Begin(0)
	}
	series, _ := r.CollectLabels(0)
	other, _ := r.Totals(LabelKey("a", Overflow))
	if len(series) != 6 || other.Requests != 30 {
		t.Errorf("%d labels, %d requests of others", len(series), other.Requests)
	}
	if l := a.Label("3"); l.Name() != "3" || a.Label("17").Name() != Overflow {
		t.Errorf("%q, %q", l.Name(), a.Label("17").Name())
	}
	r = NewRegistry(1)
	r.maxSeries = 10
	for i := range 50 {
		r.App(fmt.Sprint("app", i%3)).Label(fmt.Sprint(i)).Begin(0)
	}
	if series, _ = r.CollectLabels(0); len(series) > 10+3 {
		t.Errorf("%d labels", len(series))
	}
	app := lb.NewApplication("a")
	app.UserTokens = []lb.UserToken{lb.NewUserToken("a-token-of-a-user-1", Overflow, false)}
	if faults := app.Validate("a"); !strings.Contains(fmt.Sprint(faults), "not a label") {
		t.Errorf("%q can be a label: %v", Overflow, faults)
	}
}

func TestNano_WrittenAndReadAgain(t *testing.T) {
	for nano, want := range map[uint64]string{
		0: "0", 1: "0.000000001", 186_000: "0.000186", 1_145_000: "0.001145", 1_000_000_000: "1", 2_500_000_000: "2.5",
		maxFigure: "9223372036.854775807", math.MaxUint64: "18446744073.709551615",
	} {
		got := AppendNano([]byte("x"), nano)
		if string(got) != "x"+want {
			t.Errorf("%d: %s, want %s", nano, got, want)
		}
		if back, ok := ParseNano(got[1:]); !ok || back != nano {
			t.Errorf("%s read as %d, %v", want, back, ok)
		}
	}
	for _, bad := range []string{"", ".", "1.", ".5", "-1", "+1", "1e3", "1.0000000001", "18446744073.709551616", "1.2.3", " 1", "1 "} {
		if nano, ok := ParseNano([]byte(bad)); ok {
			t.Errorf("%q read as %d", bad, nano)
		}
	}
}

func FuzzParseNano(f *testing.F) {
	f.Add([]byte("0.000186"))
	f.Add([]byte("007.10"))
	f.Fuzz(func(t *testing.T, text []byte) {
		nano, ok := ParseNano(text)
		if !ok {
			return
		}
		back, ok := ParseNano(AppendNano(nil, nano))
		if !ok || back != nano || bytes.ContainsAny(text, "eE+- ") {
			t.Errorf("%q is %d, written and read again %d, %v", text, nano, back, ok)
		}
	})
}
