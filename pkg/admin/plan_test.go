package admin

import (
	"encoding/json"
	"errors"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/sketch"
)

func TestParseShare(t *testing.T) {
	for text, want := range map[string]float64{"5%": 0.05, " 5 % ": 0.05, "0.05": 0.05, "0": 0, "1": 1, "100%": 1, "0.5%": 0.005, "1e-3": 0.001} {
		if got, err := ParseShare(text); err != nil || math.Abs(got-want) > 1e-12 {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	for text, words := range map[string]string{"5": "5% is a share", "": "not a share", "101%": "0% to 100%", "500": "0% to 100%", "-1%": "0% to 100%", "NaN": "not a share", "much": "not a share"} {
		if got, err := ParseShare(text); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
}

// seen is an application's users of the last day, as proxies would tell of them.
func seen(t *testing.T, f *fixture, app string, users ...string) sketch.Sample {
	t.Helper()
	table, err := f.server.tableOf(f.store.Current())
	if err != nil {
		t.Fatal(err)
	}
	var r sketch.Recent
	a := table.App(app)
	for _, u := range users {
		r.Seen(string(a.Decl.ConsistentHash.HashAlgorithm), uint64(a.Point(u)), time.Unix(1e9, 0))
	}
	return r.Sample(time.Unix(1e9, 0))
}

func TestApply_TellsWhoMovesWhereTo(t *testing.T) {
	var sample sketch.Sample
	f := newFixture(t, func(o *Options) {
		o.Recent = func(app string) sketch.Sample {
			if app == "shop" {
				return sample
			}
			return sketch.Sample{}
		}
	})
	f.applyShop()
	var users, movers []string
	for i := range 200 {
		users = append(users, strings.Repeat("u", i+1))
	}
	for _, u := range users {
		e, err := f.admin.Explain(ctx, "shop", u)
		if err != nil {
			t.Fatal(err)
		}
		if e.Owner == "dify2" {
			movers = append(movers, u)
		}
	}
	sample = seen(t, f, "shop", users...)
	f.hub.set(7)

	fewer := strings.Replace(shop, "      - {name: dify2, host: 10.0.0.2, port: 8080, token: app-token-dify2-bbbb}\n", "", 1)
	res, err := f.admin.Apply(ctx, []byte(fewer), ApplyOptions{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	m, ok := res.Movements["shop"]
	if !ok || len(res.Movements) != 1 || m.Share != res.Moved["shop"] || len(m.Flows) != 1 || m.Flows[0].From != "dify2" || m.Flows[0].To != "dify1" || math.Abs(m.Flows[0].Share-m.Share) > 1e-9 {
		t.Errorf("movements %+v, moved %v", res.Movements, res.Moved)
	}
	if m.Recent == nil || m.Recent.Seen != 200 || m.Recent.Moving != int64(len(movers)) || !m.Recent.Exact {
		t.Errorf("of the last day %+v, want %d of 200", m.Recent, len(movers))
	}
	if len(res.Touched) != 1 || res.Touched[0] != (Touched{App: "shop", Instance: "dify2", How: Removed, Open: 7}) {
		t.Errorf("touched %+v", res.Touched)
	}

	// Without desk, which is deleted; and shop drains one and moves another's address.
	other := strings.NewReplacer("token: app-token-dify1-aaaa", "token: app-token-dify1-aaaa, state: draining", "host: 10.0.0.2", "host: 10.0.0.9").Replace(shop)
	other = other[:strings.Index(other, "  desk:")]
	if res, err = f.admin.Apply(ctx, []byte(other), ApplyOptions{DryRun: true, Prune: true}); err != nil {
		t.Fatal(err)
	}
	if d := res.Movements["desk"]; d.Share != 1 || d.Recent != nil || d.Flows == nil {
		t.Errorf("of what is deleted %+v", d)
	}
	var how []string
	for _, in := range res.Touched {
		how = append(how, in.Instance+" "+in.How)
	}
	if got := strings.Join(how, ", "); got != "only removed, dify1 draining, dify2 readdressed" {
		t.Errorf("touched %s", got)
	}
	// Another hash: nobody can be promised to stay.
	hashed := strings.Replace(shop, "    instances:\n      - {name: dify1", "    consistent_hash: {hash_algorithm: xxhash}\n    instances:\n      - {name: dify1", 1)
	if res, err = f.admin.Apply(ctx, []byte(hashed), ApplyOptions{DryRun: true}); err != nil {
		t.Fatal(err)
	}
	if m := res.Movements["shop"]; m.Share != 1 || m.Recent == nil || m.Recent.Moving != 200 {
		t.Errorf("between algorithms %+v", m)
	}
}

func TestApply_RefusesToMoveMoreThanMay(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	before := f.store.Current().ConfigRevision
	fewer := strings.Replace(shop, "      - {name: dify2, host: 10.0.0.2, port: 8080, token: app-token-dify2-bbbb}\n", "", 1)
	share := 0.05
	for _, dry := range []bool{true, false} {
		_, err := f.admin.Apply(ctx, []byte(fewer), ApplyOptions{DryRun: dry, MaxMoved: &share})
		var p *ProblemError
		if !errors.As(err, &p) || p.Status != 409 || p.Type != typePrefix+"moves-too-many" || len(p.Faults) != 1 || p.Faults[0].Path != "applications.shop" || !strings.Contains(p.Detail, "at most 5% may") {
			t.Errorf("dry %v: %v", dry, err)
		}
	}
	if f.store.Current().ConfigRevision != before {
		t.Error("something was applied")
	}
	// Deletion is the greatest move.
	noDesk := shop[:strings.Index(shop, "  desk:")]
	all := 0.99
	if _, err := f.admin.Apply(ctx, []byte(noDesk), ApplyOptions{Prune: true, MaxMoved: &all}); err == nil || !strings.Contains(err.Error(), "deleted") {
		t.Errorf("deletes: %v", err)
	}
	// What moves nobody passes, also where nobody may move.
	none := 0.0
	if _, err := f.admin.Apply(ctx, []byte(strings.Replace(shop, "10.0.0.2", "10.0.0.3", 1)), ApplyOptions{MaxMoved: &none}); err != nil {
		t.Error(err)
	}
	whole := 1.0
	if _, err := f.admin.Apply(ctx, []byte(fewer), ApplyOptions{MaxMoved: &whole}); err != nil {
		t.Error(err)
	}
	// Going back moves them again.
	if _, err := f.admin.Rollback(ctx, before, ApplyOptions{MaxMoved: &share}); err == nil {
		t.Error("rollback moves more than may")
	}
	f.want(400, RoleAdmin, "POST", "/api/v1/apply?max_moved=5", shop, "Content-Type", "application/yaml")
	r := f.want(200, RoleAdmin, "POST", "/api/v1/apply?max_moved=50%25&dry_run", shop, "Content-Type", "application/yaml")
	var res map[string]json.RawMessage
	if err := json.Unmarshal([]byte(r.body), &res); err != nil || res["touched"] == nil || res["movements"] == nil {
		t.Errorf("%v: %s", err, r.body)
	}
}

// TestInstances_ADryRunTellsWhoMoves compares what a dry run of each call tells
// with what explain says before and after the real one.
func TestInstances_ADryRunTellsWhoMoves(t *testing.T) {
	var sample sketch.Sample
	f := newFixture(t, func(o *Options) {
		o.Recent = func(app string) sketch.Sample {
			if app == "shop" {
				return sample
			}
			return sketch.Sample{}
		}
	})
	f.applyShop()
	var users []string
	for i := range 200 {
		users = append(users, strings.Repeat("u", i+1))
	}
	chosen := func() map[string]string {
		out := make(map[string]string)
		for _, u := range users {
			e, err := f.admin.Explain(ctx, "shop", u)
			if err != nil {
				t.Fatal(err)
			}
			out[u] = e.Chosen
		}
		return out
	}
	sample = seen(t, f, "shop", users...)
	f.hub.set(3)
	for _, c := range []struct {
		name string
		plan func() (*ApplyResult, error)
		do   func() error
		how  string // of dify1; "": its requests are left alone
		from string
	}{
		{"drain", func() (*ApplyResult, error) { return f.admin.PlanState(ctx, "shop", "dify1", lb.Draining) },
			func() error { _, err := f.admin.DrainInstance(ctx, "shop", "dify1", 0); return err }, "draining", "dify1"},
		{"disable", func() (*ApplyResult, error) { return f.admin.PlanState(ctx, "shop", "dify1", lb.Disabled) },
			func() error { _, err := f.admin.DisableInstance(ctx, "shop", "dify1", 0); return err }, "disabled", ""},
		{"activate", func() (*ApplyResult, error) { return f.admin.PlanState(ctx, "shop", "dify1", lb.Active) },
			func() error { _, err := f.admin.ActivateInstance(ctx, "shop", "dify1"); return err }, "", "dify2"},
		{"delete", func() (*ApplyResult, error) { return f.admin.PlanDeleteInstance(ctx, "shop", "dify1") },
			func() error { return f.admin.DeleteInstance(ctx, "shop", "dify1") }, Removed, "dify1"},
	} {
		before, revision := chosen(), f.store.Current().ConfigRevision
		plan, err := c.plan()
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got := f.store.Current(); got.ConfigRevision != revision || plan.Revision != revision || !plan.DryRun || plan.Unchanged {
			t.Errorf("%s: at %d, was %d, plan %+v", c.name, got.ConfigRevision, revision, plan)
		}
		if after := chosen(); !maps.Equal(after, before) {
			t.Errorf("%s: the dry run moved users", c.name)
		}
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		moving := int64(0)
		for u, after := range chosen() {
			if after != before[u] {
				moving++
			}
		}
		m := plan.Movements["shop"]
		if moving == 0 {
			if len(plan.Moved) > 0 || len(plan.Movements) > 0 {
				t.Errorf("%s: nobody moves, told %+v", c.name, plan.Movements)
			}
		} else if m.Share != plan.Moved["shop"] || math.Abs(m.Share-float64(moving)/200) > 0.15 || len(m.Flows) != 1 || m.Flows[0].From != c.from ||
			m.Recent == nil || m.Recent.Seen != 200 || m.Recent.Moving != moving {
			t.Errorf("%s: %d of 200 move, told %+v, recent %+v", c.name, moving, m, m.Recent)
		}
		var want []Touched
		if c.how != "" {
			want = []Touched{{App: "shop", Instance: "dify1", How: c.how, Open: 3}}
		}
		if !slices.Equal(plan.Touched, want) {
			t.Errorf("%s: touched %+v", c.name, plan.Touched)
		}
	}
	// What is so already changes nothing.
	plan, err := f.admin.PlanState(ctx, "shop", "dify2", lb.Active)
	if err != nil || !plan.Unchanged || len(plan.Movements) > 0 || len(plan.Touched) > 0 {
		t.Errorf("%+v, %v", plan, err)
	}
}

func TestInstances_RefuseToMoveMoreThanMay(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	before := f.store.Current().ConfigRevision
	most := MaxMoved(0.05)
	for name, call := range map[string]func() error{
		"drain":           func() error { _, err := f.admin.DrainInstance(ctx, "shop", "dify1", time.Second, most); return err },
		"disable":         func() error { _, err := f.admin.DisableInstance(ctx, "shop", "dify1", 0, most); return err },
		"delete":          func() error { return f.admin.DeleteInstance(ctx, "shop", "dify1", most) },
		"a dry run":       func() error { _, err := f.admin.PlanState(ctx, "shop", "dify1", lb.Draining, most); return err },
		"one of deleting": func() error { _, err := f.admin.PlanDeleteInstance(ctx, "shop", "dify1", most); return err },
	} {
		var p *ProblemError
		if err := call(); !errors.As(err, &p) || p.Status != 409 || p.Type != typePrefix+"moves-too-many" || !strings.Contains(p.Detail, "at most 5% may") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if f.store.Current().ConfigRevision != before {
		t.Error("something was changed")
	}
	if _, err := f.admin.DrainInstance(ctx, "shop", "dify1", 0, MaxMoved(1)); err != nil {
		t.Error(err)
	}
	if _, err := f.admin.ActivateInstance(ctx, "shop", "dify1", most); err == nil {
		t.Error("activate moves more back than may")
	}
	// As strict as the real call: who may, what is there, at which revision.
	f.want(403, RoleViewer, "POST", "/api/v1/apps/shop/instances/dify1/drain?dry_run", "")
	f.want(403, RoleOperator, "DELETE", "/api/v1/apps/shop/instances/dify1?dry_run", "")
	f.want(404, RoleOperator, "POST", "/api/v1/apps/shop/instances/dify9/drain?dry_run", "")
	f.want(412, RoleOperator, "POST", "/api/v1/apps/shop/instances/dify1/activate?dry_run", "", "If-Match", `"1"`)
	f.want(400, RoleOperator, "POST", "/api/v1/apps/shop/instances/dify1/activate?dryrun", "")
	f.want(400, RoleAdmin, "DELETE", "/api/v1/apps/shop/instances/dify1?max_moved=5", "")
}
