package controlplane

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/rs/zerolog"

	"difylb/pkg/cluster"
	"difylb/pkg/health"
	"difylb/pkg/lb"
	"difylb/pkg/store"
)

func TestTally_CountsWordsAndDesertedApplications(t *testing.T) {
	app := func(words ...string) *cluster.ApplicationStatus {
		a := &cluster.ApplicationStatus{Instances: make(map[string]*cluster.InstanceStatus)}
		for i, w := range words {
			a.Instances[string(rune('a'+i))] = &cluster.InstanceStatus{Status: w}
		}
		return a
	}
	words, deserted := tally(&cluster.Status{Applications: map[string]*cluster.ApplicationStatus{
		"well":   app("healthy", "unhealthy"),
		"new":    app("unknown"),
		"down":   app("unhealthy", "draining", "ejected"),
		"wrong":  app("token_rejected"),
		"nobody": app(),
	}})
	if deserted != 2 {
		t.Errorf("%d applications without instance, want down and wrong", deserted)
	}
	known := 0
	for _, w := range statusWords {
		known += words[w]
	}
	if known != 7 || words["unhealthy"] != 2 {
		t.Errorf("%v: %d of 7 instances have a known word", words, known)
	}
}

// Every word that an instance can have is one of the label's values.
func TestStatusWords_AreAllThereAre(t *testing.T) {
	known := make(map[string]bool)
	for _, w := range statusWords {
		known[w] = true
	}
	for _, state := range []lb.State{lb.Active, lb.Draining, lb.Disabled} {
		for _, ejected := range []bool{false, true} {
			for _, h := range []lb.Health{lb.HealthUnknown, lb.Healthy, lb.Unhealthy, lb.TokenRejected} {
				if w := lb.StatusWord(state, ejected, h); !known[w] {
					t.Errorf("%s, ejected %v, %s: the word %q is not exported", state, ejected, h, w)
				}
			}
		}
	}
}

func TestMetrics_FollowPrometheussRules(t *testing.T) {
	st, err := store.Open(store.Options{Endpoints: []string{"http://127.0.0.1:1"}, Prefix: "/x", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	p, err := New(Options{NodeID: "a", Version: "v", HTTPListen: "127.0.0.1:0", GRPCListen: "127.0.0.1:0", DataDir: t.TempDir(), Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	defer p.http.Close()
	defer p.grpc.Close()
	hub := cluster.NewHub(cluster.HubOptions{NodeID: "a", Log: zerolog.Nop(), Counters: counterStore{st}})
	hub.SetSnapshot(&lb.Snapshot{Revision: 5, ConfigRevision: 5, Nodes: []lb.Node{{ID: "p1", Role: lb.RoleProxy, BootID: "b"}}})
	p.prober = newElected(p, st, hub).prober
	p.healthChanges.count(health.Unhealthy)
	p.healthChanges.count("what no probe says")

	r := p.metrics(st, hub)
	api := counted(r, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	api.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("BREW", "/pot", nil))
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	text := rec.Body.String()
	for _, want := range []string{
		`difylb_build_info{goversion="`, `difylb_instances{status="token_rejected"} 0`, `difylb_node_config_refused{node="p1"} 0`,
		`difylb_nodes_proxies 1`, `difylb_nodes_reporting 0`, `difylb_health_changes_total{health="unhealthy"} 1`,
		`difylb_api_requests_total{code="418",method="unknown"} 1`, "go_goroutines", "process_open_fds",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	problems, err := promlint.New(bytes.NewReader(rec.Body.Bytes())).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, pr := range problems {
		if strings.HasPrefix(pr.Metric, "difylb_") {
			t.Errorf("%s: %s", pr.Metric, pr.Text)
		}
	}
}

// What streams through the counting handler is not held back.
func TestCounted_PassesFlushesOn(t *testing.T) {
	h := counted(prometheus.NewRegistry(), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
	}))
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("GET", "/api/v1/events", nil))
	if !rec.Flushed {
		t.Error("not flushed")
	}
}
