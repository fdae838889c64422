package proxy

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"time"

	"difylb/pkg/lb"
)

func TestCounts_NameTheLimitThatRefused(t *testing.T) {
	for name, c := range map[string]struct {
		limits *lb.RateLimit
		perIP  *lb.Rate
		want   Counts
	}{
		"per user":    {limits: &lb.RateLimit{PerUser: &lb.Rate{PerSecond: 0.001, Burst: 1}}, want: Counts{LimitedPerUser: 2}},
		"per app":     {limits: &lb.RateLimit{PerApp: &lb.Rate{PerSecond: 0.001, Burst: 1}}, want: Counts{LimitedPerApp: 2}},
		"per address": {perIP: &lb.Rate{PerSecond: 0.001, Burst: 1}, want: Counts{LimitedPerIP: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(_ *Options, app *lb.Application) {
				if c.limits != nil {
					app.RateLimit = *c.limits
				}
			}, echo("a"))
			r.settings.RateLimit.PerIP = c.perIP
			r.apply()
			for i, want := range []int{200, 429, 429} {
				if resp, body := r.do("GET", "/v1/info", "alice", ""); resp.StatusCode != want {
					t.Errorf("request %d: %d %s", i, resp.StatusCode, body)
				}
			}
			if got := r.p.Counts(); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

func TestCounts_FailoversAreRequestsThatTheirOwnerCouldNotTake(t *testing.T) {
	r := newRig(t, nil, echo("a"), echo("b"))
	user := r.userOf("a")
	health := func(a, b lb.Health) {
		r.p.SetHealth(map[string]map[string]lb.Verdict{"shop": {"a": {Health: a}, "b": {Health: b}}})
	}
	for _, c := range []struct {
		what string
		a, b lb.Health
		user string
		want uint64
	}{
		{"the owner serves", lb.Healthy, lb.Healthy, user, 0},
		{"the owner is down", lb.Unhealthy, lb.Healthy, user, 1},
		{"all are down, the owner is tried", lb.Unhealthy, lb.Unhealthy, user, 1},
		{"there is no owner without a user", lb.Unhealthy, lb.Healthy, "", 1},
		{"the owner is back", lb.Healthy, lb.Unhealthy, user, 1},
	} {
		health(c.a, c.b)
		if resp, body := r.do("GET", "/v1/info", c.user, ""); resp.StatusCode != 200 {
			t.Fatalf("%s: %d %s", c.what, resp.StatusCode, body)
		}
		if got := r.p.Counts().Failovers; got != c.want {
			t.Errorf("%s: %d failovers, want %d", c.what, got, c.want)
		}
	}
}

func TestInstances_TellWhatIsKnownNow(t *testing.T) {
	broken := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	r := newRig(t, func(_ *Options, app *lb.Application) {
		app.Retry.Attempts = 0
	}, broken, echo("b"), echo("c"), echo("d"))
	r.app.Instances[0].MaxFails = 1
	r.app.Instances[2].State = lb.Draining
	r.app.Instances[3].Weight = 0
	r.apply()
	if resp, body := r.do("GET", "/v1/info", r.userOf("a"), ""); resp.StatusCode != 503 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	got := slices.Collect(r.p.Instances(time.Now()))
	want := []InstanceFacts{
		{App: "shop", Instance: "a", Ejected: true},
		{App: "shop", Instance: "b", Usable: true},
		{App: "shop", Instance: "c"},
		{App: "shop", Instance: "d"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if n := r.p.Counts().Ejections; n != 1 {
		t.Errorf("%d ejections, want 1", n)
	}
	for range r.p.Instances(time.Now()) {
		break // ends the walk
	}
	p := New(Options{})
	defer p.Close()
	if n := len(slices.Collect(p.Instances(time.Now()))); n != 0 {
		t.Errorf("%d instances before there is a table", n)
	}
}

func TestPool_CountsConnections(t *testing.T) {
	r := newRig(t, nil, echo("a"))
	for range 5 {
		if resp, _ := r.do("GET", "/v1/info", "u", ""); resp.StatusCode != 200 {
			t.Fatal(resp.StatusCode)
		}
	}
	if c := r.p.Pool(); c.Dialled < 1 || c.Dialled+c.Reused != 5 || c.Open != int64(c.Dialled) || c.Failed != 0 {
		t.Errorf("%+v", c)
	}
	port := r.app.Instances[0].Port
	r.app.Instances[0].Port = 1
	r.apply()
	r.do("GET", "/v1/info", "u", "")
	if c := r.p.Pool(); c.Failed == 0 {
		t.Errorf("%+v", c)
	}
	r.app.Instances[0].Port = port
	r.apply()
	r.do("GET", "/v1/info", "u", "")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r.s.Shutdown(ctx)
	if n := r.p.Pool().Open; n == 0 {
		t.Error("no connection is kept")
	}
	r.p.Close()
	eventually(t, "all idle connections are closed", func() bool { return r.p.Pool().Open == 0 })
}
