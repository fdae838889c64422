package admin

import (
	"context"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"difylb/pkg/cluster"
	"difylb/pkg/lb"
)

func TestWhoami_SaysWhoseTheTokenIs(t *testing.T) {
	f := newFixture(t)
	for _, role := range []AccessRole{RoleViewer, RoleOperator, RoleAdmin} {
		var who WhoAmI
		r := f.want(200, role, "GET", "/api/v1/whoami", "")
		if err := json.Unmarshal([]byte(r.body), &who); err != nil || who.Name != string(role) || who.Role != role || who.From != "127.0.0.1" || who.Node != "n1" || who.ID != f.tokens[role].Hash().ID() {
			t.Errorf("%v: %+v", err, who)
		}
	}
	f.want(401, "", "GET", "/api/v1/whoami", "")
}

func TestAccess_TellsTheLastUse(t *testing.T) {
	f := newFixture(t)
	before := time.Now().Add(-time.Second)
	f.want(200, RoleViewer, "GET", "/api/v1/whoami", "")
	tokens, err := f.admin.AccessTokens(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range tokens {
		used := a.Name != string(RoleOperator) // who has shown it
		if (a.LastUsed != nil) != used || (used && (a.LastUsed.Before(before.Truncate(time.Second)) || a.LastUsed.After(time.Now()))) {
			t.Errorf("%s was used at %v", a.Name, a.LastUsed)
		}
	}
}

func TestAccess_ChangesStandInTheHistory(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	made, err := f.admin.CreateAccess(ctx, AccessRequest{Name: "grafana", Role: RoleViewer})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.admin.DeleteAccess(ctx, made.ID); err != nil {
		t.Fatal(err)
	}
	entries, err := f.admin.History(ctx, 2, 0)
	if err != nil || len(entries) != 2 {
		t.Fatal(err, entries)
	}
	for i, want := range []struct{ action, did string }{{"access.delete", "deleted"}, {"access.create", "created"}} {
		e := entries[i]
		if e.Action != want.action || e.Note != "grafana" || e.Who != "admin" || e.From != "127.0.0.1" || len(e.Changes) != 1 || e.Changes[0].Kind != "access" || e.Changes[0].Action != want.did || e.Changes[0].Name != made.ID {
			t.Errorf("%+v", e)
		}
		full := f.want(200, RoleViewer, "GET", "/api/v1/history/"+strings.Trim(ETag(e.Revision), `"`), "")
		if !strings.Contains(full.body, `"role":"viewer"`) || strings.Contains(full.body, made.Token) {
			t.Errorf("in full %s", full.body)
		}
	}
	// A configuration rolls back over them.
	if _, err := f.admin.Rollback(ctx, entries[1].Revision, ApplyOptions{DryRun: true}); err != nil {
		t.Error(err)
	}
}

func TestInstances_TellTheirShareOfTheRing(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	list, err := f.admin.Instances(ctx, "shop")
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, in := range list {
		if in.RingShare == nil || in.Probe == nil || in.Probe.Health != "unknown" {
			t.Fatalf("%+v", in)
		}
		sum += *in.RingShare
	}
	if math.Abs(sum-1) > 1e-9 {
		t.Errorf("the shares add up to %v", sum)
	}
	// What was listed can be put back.
	data, err := json.Marshal(list[0])
	if err != nil {
		t.Fatal(err)
	}
	f.want(200, RoleAdmin, "PUT", "/api/v1/apps/shop/instances/"+list[0].Name, string(data))
}

// TestInstances_TellWhatIsSeenOfThem: who ejects one and its newest probe, in
// lists, of one, and in the status; what was read can be put back.
func TestInstances_TellWhatIsSeenOfThem(t *testing.T) {
	probe := cluster.LastProbe{Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), DurationMS: 1.5, Verdict: lb.Healthy, Found: "status 200", By: "n1"}
	f := newFixture(t, func(o *Options) {
		o.LastProbes = func(context.Context) func(string, string) *cluster.LastProbe {
			return func(app, instance string) *cluster.LastProbe {
				if app == "shop" && instance == "dify1" {
					return &probe
				}
				return nil
			}
		}
	})
	f.applyShop()
	f.hub.mu.Lock()
	f.hub.ejectedBy = map[string][]string{"dify1": {"p1", "p2"}}
	f.hub.mu.Unlock()
	list, err := f.admin.Instances(ctx, "shop")
	if err != nil {
		t.Fatal(err)
	}
	one, err := f.admin.Instance(ctx, "shop", "dify1")
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range []Instance{list[0], *one} {
		if in.LastProbe == nil || *in.LastProbe != probe || !slices.Equal(in.EjectedBy, []string{"p1", "p2"}) || in.RingShare == nil || in.Probe == nil {
			t.Errorf("%+v", in)
		}
	}
	if in := list[1]; in.LastProbe != nil || in.EjectedBy != nil {
		t.Errorf("%+v", in)
	}
	st, err := f.admin.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if in := st.Applications["shop"].Instances["dify1"]; in.LastProbe == nil || *in.LastProbe != probe || !slices.Equal(in.EjectedBy, []string{"p1", "p2"}) || in.Status != cluster.StatusEjected {
		t.Errorf("%+v", in)
	}
	data, err := json.Marshal(one)
	if err != nil {
		t.Fatal(err)
	}
	if put := f.want(200, RoleAdmin, "PUT", "/api/v1/apps/shop/instances/dify1", string(data)); strings.Contains(put.body, "last_probe") {
		t.Errorf("the answer to a write tells what is seen: %s", put.body)
	}
}

// Beside the GETs, which TestOpenAPI_AnswersAreAsDescribed asks.
func TestOpenAPI_AnswersToWritesAreAsDescribed(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	f.hub.set(1, proxy("p1", 1<<40))
	var d map[string]any
	if err := json.Unmarshal(f.server.openapi, &d); err != nil {
		t.Fatal(err)
	}
	fewer := strings.Replace(shop, "      - {name: dify2, host: 10.0.0.2, port: 8080, token: app-token-dify2-bbbb}\n", "", 1)
	yaml := []string{"Content-Type", "application/yaml"}
	for _, c := range []struct {
		status             int
		method, path, real string
		body               string
		headers            []string
	}{
		{201, "POST", "/apps", "/apps", `{"name":"new","user_tokens":["user-token-new-1"]}`, nil},
		{200, "PUT", "/apps/{app}", "/apps/new", `{"timeouts":{"read":"60s"}}`, nil},
		{201, "PUT", "/apps/{app}", "/apps/newer", `{}`, nil},
		{200, "PATCH", "/apps/{app}", "/apps/new", `{"max_body":"5m"}`, nil},
		{201, "POST", "/apps/{app}/tokens", "/apps/new/tokens", `{"label":"web"}`, nil},
		{201, "POST", "/apps/{app}/instances", "/apps/new/instances", `{"name":"a","host":"10.0.0.7","token":"app-token-new-a"}`, nil},
		{200, "PUT", "/apps/{app}/instances/{name}", "/apps/new/instances/a", `{"host":"10.0.0.8"}`, nil},
		{200, "PATCH", "/apps/{app}/instances/{name}", "/apps/new/instances/a", `{"weight":2}`, nil},
		{200, "POST", "/apps/{app}/instances/{name}/drain", "/apps/shop/instances/dify1/drain", "", nil},
		{200, "POST", "/apps/{app}/instances/{name}/disable", "/apps/shop/instances/dify1/disable", "", nil},
		{200, "POST", "/apps/{app}/instances/{name}/activate", "/apps/shop/instances/dify1/activate?wait=1s", "", nil},
		{200, "POST", "/apps/{app}/instances/{name}/drain", "/apps/shop/instances/dify1/drain?dry_run", "", nil},
		{200, "DELETE", "/apps/{app}/instances/{name}", "/apps/shop/instances/dify1?dry_run", "", nil},
		{200, "POST", "/apply", "/apply?dry_run&prune", fewer, yaml},
		{200, "POST", "/apply", "/apply?wait=1s", fewer, yaml},
		{200, "POST", "/check", "/check", "", nil},
		{201, "POST", "/access", "/access", `{"name":"g","role":"viewer"}`, nil},
	} {
		r := f.want(c.status, RoleAdmin, c.method, Base+c.real, c.body, c.headers...)
		var v any
		if err := json.Unmarshal([]byte(r.body), &v); err != nil {
			t.Fatal(err)
		}
		status := map[int]string{200: "200", 201: "201"}[c.status]
		s := dig(d, "paths", Base+c.path, strings.ToLower(c.method), "responses", status, "content", "application/json", "schema")
		for _, fault := range conform(d, s, v, c.method+" "+c.path) {
			t.Error(fault)
		}
	}
}
