package admin

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"difylb/pkg/sketch"
)

func TestParseShare(t *testing.T) {
	for text, want := range map[string]float64{"5%": 0.05, " 5 % ": 0.05, "0.05": 0.05, "0": 0, "1": 1, "100%": 1, "0.5%": 0.005, "1e-3": 0.001} {
		if got, err := ParseShare(text); err != nil || math.Abs(got-want) > 1e-12 {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	for text, words := range map[string]string{"5": "5% is a share", "": "not a share", "101%": "0% to 100%", "-1%": "0% to 100%", "NaN": "not a share", "much": "not a share"} {
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
