package proxy

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/limit"
	"difylb/pkg/route"
)

func quiet(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }

// demandOf finds the demand of a kind, and fails if there are several.
func demandOf(t *testing.T, demands []limit.Demand, kind limit.Kind) (out limit.Demand) {
	t.Helper()
	n := 0
	for _, d := range demands {
		if d.Kind == kind {
			out = d
			n++
		}
	}
	if n > 1 {
		t.Fatalf("%+v", demands)
	}
	return out
}

// forget empties all buckets: the application comes anew.
func (r *rig) forget() {
	empty, err := route.Build(&lb.Snapshot{Settings: r.settings}, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	r.p.SetTable(empty)
	r.p.ips = limit.NewBuckets(100)
	r.p.ips.SetHasher(r.p.hasher)
	r.apply()
}

func TestShares_OfRates(t *testing.T) {
	r := newRig(t, nil, http.HandlerFunc(quiet))
	r.p.SetLimitSecret("the cluster's key, thirty-two bytes")
	r.p.SetPlace(1, 2)
	passed := func(n int, user string) (ok int) {
		for range n {
			if resp, _ := r.do("GET", "/v1/info", user, ""); resp.StatusCode == 200 {
				ok++
			}
		}
		return ok
	}
	now := time.Now()
	r.p.Demands(now) // from here on it is measured
	rate := &lb.Rate{PerSecond: 0.001, Burst: 8}
	for kind, declare := range map[limit.Kind]func(){
		limit.PerApp:  func() { r.app.RateLimit = lb.RateLimit{PerApp: rate} },
		limit.PerUser: func() { r.app.RateLimit = lb.RateLimit{PerUser: rate} },
		limit.PerIP:   func() { r.app.RateLimit = lb.RateLimit{}; r.settings.RateLimit.PerIP = rate },
	} {
		r.settings = lb.Settings{}
		declare()
		r.apply()
		user := fmt.Sprint("user of kind ", kind)
		if n := passed(6, user); n != 4 {
			t.Errorf("kind %d: %d of a burst of 8 passed at one of two proxies", kind, n)
		}
		now = now.Add(time.Second)
		d := demandOf(t, r.p.Demands(now), kind)
		if !d.Pressed || d.PerSecond <= 0 || (kind != limit.PerApp) != (d.Name != 0) || (kind != limit.PerIP) != (d.App == "shop") {
			t.Fatalf("kind %d: %+v", kind, d)
		}
		r.forget()
		r.p.SetShares([]limit.Share{{Key: d.Key, Part: 1}, {Key: limit.Key{Kind: limit.PerApp, App: "unknown"}, Part: 1}}, time.Now().Add(time.Hour))
		if n := passed(10, user); n != 8 {
			t.Errorf("kind %d: with all of it %d of a burst of 8 passed", kind, n)
		}
		now = now.Add(time.Second)
		if d := demandOf(t, r.p.Demands(now), kind); d.PerSecond != 10 {
			t.Errorf("kind %d: %+v, asked were 10 in a second", kind, d)
		}
		r.p.SetShares(nil, time.Now().Add(time.Hour))
		now = now.Add(time.Second)
		r.p.Demands(now)
		now = now.Add(time.Second)
		if d := r.p.Demands(now); len(d) != 0 {
			t.Errorf("kind %d: nothing is leased nor asked: %+v", kind, d)
		}
	}
}

func TestShares_OfSlots(t *testing.T) {
	r := newRig(t, func(_ *Options, app *lb.Application) {
		for i := range app.Instances {
			app.Instances[i].MaxInFlight = 5
		}
	}, http.HandlerFunc(quiet), http.HandlerFunc(quiet))
	room := func() (n int) {
		gate := r.p.view.Load().apps[0].instances[0].gate
		for gate.TryAcquire() {
			n++
		}
		for range n {
			gate.Release()
		}
		return n
	}
	want := func(what string, n int) {
		t.Helper()
		if got := room(); got != n {
			t.Errorf("%s: room for %d, want %d", what, got, n)
		}
	}
	want("alone", 5)
	r.p.SetPlace(0, 2)
	want("first of two", 3)
	r.p.SetPlace(1, 2)
	want("second of two", 2)
	if d := r.p.Demands(time.Now()); len(d) != 0 {
		t.Errorf("nothing is open: %+v", d)
	}
	key := limit.Key{Kind: limit.InFlight, App: "shop", Instance: "a"}
	r.p.SetShares([]limit.Share{{Key: key, Slots: 4}}, time.Now().Add(time.Hour))
	want("leased", 4)
	r.apply()
	want("after a change", 4)
	if d := r.p.Demands(time.Now()); len(d) != 1 || d[0] != (limit.Demand{Key: key, Slots: 4, Pressed: true}) {
		t.Errorf("leased: %+v", d)
	}
	r.p.SetShares([]limit.Share{{Key: key, Slots: 0}}, time.Now().Add(time.Hour))
	want("leased away", 0)
	r.p.SetShares([]limit.Share{{Key: key, Slots: 0}}, time.Now().Add(-time.Millisecond))
	r.p.Demands(time.Now())
	want("expired", 2)
	r.p.SetShares([]limit.Share{{Key: key, Slots: 4}}, time.Now().Add(time.Hour))
	r.p.SetShares([]limit.Share{{Key: limit.Key{Kind: limit.InFlight, App: "shop", Instance: "b"}, Slots: 1}}, time.Now().Add(time.Hour))
	want("not named any more", 2)

	r.app.Queue.Size = 0
	r.apply()
	gate := r.p.view.Load().apps[0].instances[0].gate
	for gate.TryAcquire() {
	}
	if resp, _ := r.do("GET", "/v1/info", r.userOf("a"), ""); resp.StatusCode != 503 {
		t.Errorf("full: %d", resp.StatusCode)
	}
	d := r.p.Demands(time.Now())
	if i := slices.IndexFunc(d, func(d limit.Demand) bool { return d.Key == key }); i < 0 || d[i] != (limit.Demand{Key: key, Open: 2, Refused: true, Slots: 2, Pressed: true}) {
		t.Errorf("full: %+v", d)
	}
	gate.Release()
	gate.Release()
	r.app.Instances[0].MaxInFlight = 0
	r.apply()
	gate = r.p.view.Load().apps[0].instances[0].gate
	for range 100 {
		if !gate.TryAcquire() {
			t.Fatal("no limit refuses")
		}
	}
}

func BenchmarkTally(b *testing.B) {
	t := new(tally)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			t.count(1, true)
		}
	})
}
