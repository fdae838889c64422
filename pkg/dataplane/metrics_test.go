package dataplane

import (
	"bytes"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/rs/zerolog"

	"difylb/pkg/lb"
	"difylb/pkg/route"
	"difylb/pkg/stats"
	"difylb/pkg/store"
)

// idle is a proxy that is not started: its parts can be told everything.
func idle(t testing.TB) *Plane {
	t.Helper()
	p, err := New(Options{
		NodeID: "p", Version: "v", Listen: []string{"127.0.0.1:0"}, DataDir: t.TempDir(), AccessLog: "off", Log: zerolog.Nop(),
		Store: store.Options{Endpoints: []string{"http://127.0.0.1:1"}, Prefix: "/x"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.closeListeners(); p.store.Close() })
	return p
}

// declare puts applications of the given names in force, with so many
// instances each.
func (p *Plane) declare(t testing.TB, rev int64, instances int, names ...string) {
	t.Helper()
	snap := &lb.Snapshot{Revision: rev, ConfigRevision: rev}
	for _, name := range names {
		app := lb.NewApplication(name)
		app.UserTokens = []lb.UserToken{lb.NewUserToken(lb.Secret("usertoken-of-"+name), "", false)}
		app.ConsistentHash.VirtualNodes = 1
		for i := range instances {
			in := lb.Instance{Name: fmt.Sprint("i", i), Host: "127.0.0.1", Port: 1, Token: "app-secret"}
			in.SetDefaults()
			app.Instances = append(app.Instances, in)
		}
		snap.Applications = append(snap.Applications, app)
	}
	table, err := route.Build(snap, p.proxy.Table())
	if err != nil {
		t.Fatal(err)
	}
	p.proxy.SetTable(table)
}

// serve counts what a request with one attempt comes to.
func (p *Plane) serve(app, instance string, reason lb.Reason) {
	a := p.registry.App(app)
	a.Begin(0)
	in := a.Instance(instance)
	in.Begin(0)
	in.AddUsage(0, nil, stats.Usage{Prompt: 3, Completion: 4, Total: 7, Costs: []stats.Cost{{Currency: "USD", Nano: 5e8}}})
	in.End(0, stats.Sample{Reason: reason, Stream: true, BytesIn: 1, BytesOut: 2, Latency: 20 * time.Millisecond, FirstByte: time.Millisecond})
	a.End(0, reason)
}

func gather(t testing.TB, c prometheus.Collector) map[string]*dto.MetricFamily {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]*dto.MetricFamily)
	for _, f := range families {
		out[f.GetName()] = f
	}
	return out
}

// sum adds up the series of a family that have all these labels, such as "app=x".
func sum(f *dto.MetricFamily, labels ...string) (v float64) {
	for _, m := range f.GetMetric() {
		have := make(map[string]bool)
		for _, l := range m.GetLabel() {
			have[l.GetName()+"="+l.GetValue()] = true
		}
		all := true
		for _, l := range labels {
			all = all && have[l]
		}
		if all {
			v += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return v
}

func TestMetrics_TellWhatWasCounted(t *testing.T) {
	p := idle(t)
	c := newCollector(p, maxNamed)
	p.declare(t, 1, 2, "shop")
	p.serve("shop", "i0", lb.ReasonOK)
	p.serve("shop", "i0", lb.ReasonUpstreamBroke)
	p.registry.Unrouted(0, lb.ReasonUnauthorized)
	m := gather(t, c)
	for _, want := range []struct {
		name   string
		labels []string
		value  float64
	}{
		{"difylb_requests_total", []string{"app=shop", "reason=ok"}, 1},
		{"difylb_requests_total", []string{"app=shop", "reason=upstream_broke"}, 1},
		{"difylb_requests_total", []string{"app=", "reason=unauthorized"}, 1},
		{"difylb_request_errors_total", []string{"app=shop"}, 1},
		{"difylb_usable_instances", []string{"app=shop"}, 2},
		{"difylb_usage_tokens_total", []string{"app=shop", "type=prompt"}, 6},
		{"difylb_usage_tokens_total", []string{"app=shop", "type=completion"}, 8},
		{"difylb_usage_tokens_total", nil, 14},
		{"difylb_usage_answers_total", []string{"app=shop"}, 2},
		{"difylb_usage_cost_total", []string{"app=shop", "currency=USD"}, 1},
		{"difylb_instance_bytes_total", []string{"dify_instance=i0", "direction=out"}, 4},
		{"difylb_instance_request_duration_seconds", []string{"dify_instance=i0"}, 2},
		{"difylb_instance_first_byte_seconds", []string{"dify_instance=i0"}, 2},
		{"difylb_instance_stream_duration_seconds", []string{"dify_instance=i0"}, 2},
		{"difylb_instance_requests_total", []string{"dify_instance=i1", "reason=ok"}, 0},
		{"difylb_config_applications", nil, 1},
		{"difylb_config_instances", nil, 2},
	} {
		if got := sum(m[want.name], want.labels...); got != want.value || m[want.name] == nil {
			t.Errorf("%s%q is %v, want %v", want.name, want.labels, got, want.value)
		}
	}
	if n := len(m["difylb_instance_requests_total"].GetMetric()); n != 3 {
		t.Errorf("%d series of attempts, want ok and upstream_broke of i0 and ok of the idle i1", n)
	}
}

func TestMetrics_UsableInstancesFollowWhatIsKnown(t *testing.T) {
	p := idle(t)
	c := newCollector(p, maxNamed)
	p.declare(t, 1, 2, "shop", "till")
	bad := lb.Verdict{Health: lb.Unhealthy}
	p.proxy.SetHealth(map[string]map[string]lb.Verdict{"shop": {"i0": bad, "i1": bad}, "till": {"i0": bad}})
	m := gather(t, c)
	if a, b, d := sum(m["difylb_usable_instances"], "app=shop"), sum(m["difylb_usable_instances"], "app=till"), sum(m["difylb_config_applications_without_instance"]); a != 0 || b != 1 || d != 1 {
		t.Errorf("usable: shop %v, till %v; without: %v", a, b, d)
	}
}

// However many applications there are, a scrape is bounded, says the same in
// sum, and takes back nothing.
func TestMetrics_AreBoundedAndNeverGoBack(t *testing.T) {
	const limit = 10
	p := idle(t)
	c := newCollector(p, limit)
	names := func(from, to int) (out []string) {
		for i := from; i < to; i++ {
			out = append(out, fmt.Sprintf("app-%03d", i))
		}
		return out
	}
	served := 0
	serve := func(apps []string) {
		for _, app := range apps {
			for i := range 2 {
				p.serve(app, fmt.Sprint("i", i), lb.ReasonOK)
				served++
			}
		}
	}
	p.declare(t, 1, 2, names(0, 30)...)
	serve(names(0, 30))
	m := gather(t, c)
	if got := sum(m["difylb_requests_total"], "reason=ok"); got != float64(served) {
		t.Errorf("%v requests in sum, want %d", got, served)
	}
	for name, f := range m {
		if n := len(f.GetMetric()); n > 4*limit {
			t.Errorf("%s has %d series", name, n)
		}
	}
	// The order of names decides, so that proxies that start alike agree.
	if sum(m["difylb_requests_total"], "app=app-009") != 2 || m["difylb_requests_total"] == nil || sum(m["difylb_requests_total"], "app=app-010") != 0 {
		t.Error("not the first ten have series of their own")
	}
	if got := sum(m["difylb_instance_requests_total"], "app="+stats.Overflow, "dify_instance="+stats.Overflow); got != float64(served-limit) {
		t.Errorf("%v attempts on the rest, want %d", got, served-limit)
	}
	if got := sum(m["difylb_usable_instances"]); got != 60 {
		t.Errorf("%v usable instances in sum, want 60", got)
	}

	before := sum(m["difylb_requests_total"], "app="+stats.Overflow)
	p.declare(t, 2, 2, names(5, 40)...) // five of those with series and none of the rest are removed, ten come
	serve(names(5, 40))
	m = gather(t, c)
	if got := sum(m["difylb_requests_total"], "app="+stats.Overflow); got != before+2*30 {
		t.Errorf("the rest went from %v to %v, want %v more", before, got, 2*30)
	}
	if got := sum(m["difylb_requests_total"], "app=app-000"); got != 0 {
		t.Errorf("a removed application still has a series: %v", got)
	}
	p.declare(t, 3, 2, names(0, 2)...) // all of the rest are gone, what they counted stays
	m = gather(t, c)
	if got := sum(m["difylb_requests_total"], "app="+stats.Overflow); got != before+2*30 {
		t.Errorf("the rest went back to %v", got)
	}
	if got := sum(m["difylb_requests_total"], "app=app-000"); got != 2 {
		t.Errorf("an application that is declared again has %v requests, want its 2", got)
	}
}

func TestMetrics_FollowPrometheussRules(t *testing.T) {
	p := idle(t)
	p.declare(t, 1, 1, "shop")
	p.serve("shop", "i0", lb.ReasonOK)
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(p.metrics(), promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	text := rec.Body.Bytes()
	if rec.Code != 200 || !bytes.Contains(text, []byte(`difylb_build_info{goversion="`)) {
		t.Fatalf("%d %.500s", rec.Code, text)
	}
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, pr := range problems {
		if strings.HasPrefix(pr.Metric, "difylb_") {
			t.Errorf("%s: %s", pr.Metric, pr.Text)
		}
	}
}

// Scrapes may overlap with each other and with all that they look at.
func TestMetrics_ScrapeWhileEverythingMoves(t *testing.T) {
	p := idle(t)
	c := newCollector(p, 3)
	p.declare(t, 1, 2, "a", "b", "c", "d")
	var all sync.WaitGroup
	stop := make(chan struct{})
	during := func(f func(i int)) {
		all.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					f(i)
				}
			}
		})
	}
	during(func(i int) { p.serve([]string{"a", "b", "c", "d", "e"}[i%5], "i0", lb.ReasonOK) })
	during(func(i int) { p.declare(t, int64(2+i), 1+i%3, []string{"a", "b", "c", "d", "e"}[i%3:]...) })
	var scrapes sync.WaitGroup
	for range 2 {
		scrapes.Go(func() {
			last := 0.0
			for range 30 {
				ch := make(chan prometheus.Metric, 1<<10)
				go func() { defer close(ch); c.Collect(ch) }()
				for m := range ch {
					var d dto.Metric
					if err := m.Write(&d); err != nil {
						t.Error(err)
					}
					if m.Desc() == c.requests && d.GetLabel()[0].GetValue() == stats.Overflow {
						if v := d.GetCounter().GetValue(); v < last {
							t.Errorf("the rest went back from %v to %v", last, v)
						} else {
							last = v
						}
					}
				}
			}
		})
	}
	scrapes.Wait()
	close(stop)
	all.Wait()
}

// What the largest configuration that is promised costs a scrape.
func BenchmarkMetrics_TenThousandApplications(b *testing.B) {
	p := idle(b)
	names := make([]string, 10_000)
	for i := range names {
		names[i] = fmt.Sprintf("app-%05d", i)
	}
	p.declare(b, 1, 5, names...)
	for _, app := range names {
		for i := range 5 {
			p.serve(app, fmt.Sprint("i", i), lb.ReasonOK)
		}
	}
	h := promhttp.HandlerFor(p.metrics(), promhttp.HandlerOpts{DisableCompression: true})
	b.ReportAllocs()
	for b.Loop() {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
		b.ReportMetric(float64(rec.Body.Len()), "bytes/scrape")
		b.ReportMetric(float64(bytes.Count(rec.Body.Bytes(), []byte("\n"))), "lines/scrape")
	}
}
