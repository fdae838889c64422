package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/rs/zerolog"

	"difylb/pkg/cluster"
	"difylb/pkg/document"
	"difylb/pkg/lb"
	"difylb/pkg/store"
)

var ctx = context.Background()

func TestApps_LifeOfAnApplication(t *testing.T) {
	f := newFixture(t)
	made, err := f.admin.CreateApplication(ctx, []byte(`
name: shop
user_tokens: [user-token-shop-1]
instances: [{name: dify1, host: 10.0.0.1, token: app-token-dify1-aaaa, weight: 3}]`))
	if err != nil {
		t.Fatal(err)
	}
	if made.Name != "shop" || made.Revision == 0 || made.Instances[0].TokenHint != "aaaa" || made.Instances[0].Token != "" ||
		made.Instances[0].Port != 80 || made.Retry.Attempts != 2 || made.UserTokens[0].Hint != "op-1" || made.UserTokens[0].Created == nil {
		t.Fatalf("made %+v", made)
	}
	if _, err := f.admin.CreateApplication(ctx, []byte("name: shop")); !errors.Is(err, lb.ErrExists) {
		t.Errorf("again: %v", err)
	}
	if _, err := f.admin.CreateApplication(ctx, []byte("missing_user: auto")); !errors.Is(err, lb.ErrInvalid) || !strings.Contains(err.Error(), "name") {
		t.Errorf("without a name: %v", err)
	}
	// A PUT that does not speak of the lists leaves them; what it does not
	// speak of otherwise goes back to its default.
	put, err := f.admin.PutApplication(ctx, "shop", []byte(`{"missing_user":"reject"}`), IfRevision(made.Revision))
	if err != nil {
		t.Fatal(err)
	}
	if put.MissingUser != lb.MissingUserReject || len(put.Instances) != 1 || len(put.UserTokens) != 1 || put.Revision <= made.Revision {
		t.Errorf("put %+v", put)
	}
	if put.Instances[0].Revision != made.Instances[0].Revision {
		t.Error("the instance was written although it did not change")
	}
	if _, err := f.admin.PutApplication(ctx, "shop", []byte(`{}`), IfRevision(made.Revision)); !errors.Is(err, lb.ErrConflict) {
		t.Errorf("stale put: %v", err)
	}
	if _, err := f.admin.PutApplication(ctx, "shop", []byte(`{}`), IfAbsent()); !errors.Is(err, lb.ErrConflict) {
		t.Errorf("put if absent: %v", err)
	}
	if _, err := f.admin.PutApplication(ctx, "nobody", []byte(`{}`), IfExists()); !errors.Is(err, lb.ErrConflict) {
		t.Errorf("put if exists: %v", err)
	}
	if _, err := f.admin.PutApplication(ctx, "second", []byte(`{}`), IfAbsent()); err != nil {
		t.Errorf("put of a new one: %v", err)
	}
	if stored, _ := f.store.Current().Application("shop").Instance("dify1"); stored.Token != "app-token-dify1-aaaa" || stored.Weight != 3 {
		t.Errorf("stored %+v", stored)
	}
	// Back to what GET answered: nothing changes.
	seen, err := f.admin.Application(ctx, "shop")
	if err != nil {
		t.Fatal(err)
	}
	raw := f.want(200, RoleViewer, "GET", "/api/v1/apps/shop", "")
	back := f.want(200, RoleAdmin, "PUT", "/api/v1/apps/shop", raw.body)
	if back.header.Get("ETag") != raw.header.Get("ETag") || raw.header.Get("ETag") != ETag(seen.Revision) || back.body != raw.body {
		t.Errorf("a PUT of what GET said changed it: %s\n%s", raw.body, back.body)
	}
	f.want(304, RoleViewer, "GET", "/api/v1/apps/shop", "", "If-None-Match", raw.header.Get("ETag"))
	f.want(304, RoleViewer, "GET", "/api/v1/apps/shop", "", "If-None-Match", `"1", W/`+raw.header.Get("ETag"))
	f.want(200, RoleViewer, "GET", "/api/v1/apps/shop", "", "If-None-Match", `"1"`)
	if err := f.admin.DeleteApplication(ctx, "shop", IfRevision(made.Revision)); !errors.Is(err, lb.ErrConflict) {
		t.Errorf("stale delete: %v", err)
	}
	if err := f.admin.DeleteApplication(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.admin.Application(ctx, "shop"); !errors.Is(err, lb.ErrNotFound) {
		t.Errorf("after delete: %v", err)
	}
	if err := f.admin.DeleteApplication(ctx, "secund"); !errors.Is(err, lb.ErrNotFound) || !strings.Contains(err.Error(), `did you mean "second"`) {
		t.Errorf("delete of another: %v", err)
	}
}

func TestApps_MergePatch(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	steps := []struct {
		patch string
		check func(a *lb.Application) bool
	}{
		{`{"rate_limit":{"per_app":{"rate":5,"burst":2},"per_user":{"rate":1,"burst":1}}}`, func(a *lb.Application) bool {
			return a.RateLimit.PerApp.PerSecond == 5 && a.RateLimit.PerUser.Burst == 1 && len(a.Instances) == 2
		}},
		{`{"rate_limit":{"per_user":null}}`, func(a *lb.Application) bool { return a.RateLimit.PerUser == nil && a.RateLimit.PerApp.Burst == 2 }},
		{`{"queue":{"size":7},"timeouts":{"read":"9s"}}`, func(a *lb.Application) bool {
			return a.Queue.Size == 7 && a.Queue.Timeout.String() == "30s" && a.Timeouts.Read.String() == "9s" && a.Timeouts.Connect.String() == "5s"
		}},
		{`{"queue":null}`, func(a *lb.Application) bool { return a.Queue.Size == 100 }},
		{`{"instances":[{"name":"dify2","host":"10.0.0.2"}]}`, func(a *lb.Application) bool {
			return len(a.Instances) == 1 && a.Instances[0].Token == "app-token-dify2-bbbb" && a.Instances[0].Port == 80
		}},
		{`{"user_tokens":null}`, func(a *lb.Application) bool { return len(a.UserTokens) == 0 && len(a.Instances) == 1 }},
		{`{}`, func(a *lb.Application) bool { return len(a.Instances) == 1 }},
		{`{"instances":null}`, func(a *lb.Application) bool { return len(a.Instances) == 0 }},
	}
	created := f.store.Current().Application("shop").UserTokens[0].Created
	for _, s := range steps {
		if _, err := f.admin.PatchApplication(ctx, "shop", []byte(s.patch)); err != nil {
			t.Fatalf("%s: %v", s.patch, err)
		}
		a := f.store.Current().Application("shop")
		if !s.check(a) {
			t.Errorf("%s made %+v", s.patch, a)
		}
		if len(a.UserTokens) > 0 && (a.UserTokens[0].Created != created || a.UserTokens[0].Label != "web") {
			t.Errorf("%s changed the token to %+v", s.patch, a.UserTokens[0])
		}
	}
	before := f.store.Current().ConfigRevision
	for patch, want := range map[string]int{
		`{"queue":{"size":-1},"retry":{"attempts":99},"bogus":1,"name":"other"}`: 4,
		`{"instances":[{"name":"new","host":"x"}]}`:                              1,
	} {
		r := f.want(422, RoleAdmin, "PATCH", "/api/v1/apps/shop", patch, "Content-Type", mergePatch)
		if fs := r.problem(t).Faults; len(fs) != want {
			t.Errorf("%s: %d faults %v", patch, len(fs), fs)
		}
	}
	f.want(400, RoleAdmin, "PATCH", "/api/v1/apps/shop", `[1]`)
	f.want(400, RoleAdmin, "PATCH", "/api/v1/apps/shop", `{"a"`)
	f.want(415, RoleAdmin, "PATCH", "/api/v1/apps/shop", `a: b`, "Content-Type", "application/yaml")
	f.want(404, RoleAdmin, "PATCH", "/api/v1/apps/shob", `{}`)
	if f.store.Current().ConfigRevision != before {
		t.Error("a refused patch was stored")
	}
}

func TestMergePatch_ExamplesOfTheRFC(t *testing.T) {
	// RFC 7396 appendix A, those whose outcome is an object.
	for _, c := range [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`{"e":null}`, `{"a":1}`, `{"a":1,"e":null}`},
		{`[1,2]`, `{"a":"b","c":null}`, `{"a":"b"}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
	} {
		got, err := patched([]byte(c[0]), []byte(c[1]))
		if err != nil || string(got) != c[2] {
			t.Errorf("%s with %s is %s, %v; want %s", c[0], c[1], got, err, c[2])
		}
	}
}

func FuzzMergePatch(f *testing.F) {
	f.Add(`{"a":{"b":[1]}}`, `{"a":{"b":null,"c":{"d":null}}}`)
	f.Add(`{"instances":[{"name":"a"}]}`, `{"instances":null,"queue":{"size":1}}`)
	f.Add(`{}`, `{"":{"":{"":null}}}`)
	f.Fuzz(func(t *testing.T, object, patch string) {
		once, err := patched([]byte(object), []byte(patch))
		if err != nil {
			return
		}
		twice, err := patched(once, []byte(patch))
		if err != nil || string(twice) != string(once) {
			t.Errorf("%s with %s is %s, and again %s, %v", object, patch, once, twice, err)
		}
		if unchanged, err := patched(once, []byte(`{}`)); err != nil || string(unchanged) != string(once) {
			t.Errorf("the empty patch of %s makes %s, %v", once, unchanged, err)
		}
	})
}

func TestFailureOf_MapsEveryKind(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		kind   error // what the client makes of it
	}{
		{lb.Errorf(lb.ErrNotFound, "x"), 404, lb.ErrNotFound},
		{lb.Errorf(lb.ErrExists, "x"), 409, lb.ErrExists},
		{fmt.Errorf("put: %w", lb.Errorf(lb.ErrConflict, "x")), 409, lb.ErrConflict},
		{lb.Errorf(lb.ErrInvalid, "x"), 422, lb.ErrInvalid},
		{fmt.Errorf("put: %w", lb.Faults{{Path: "a", Message: "b"}}), 422, lb.ErrInvalid},
		{lb.Errorf(lb.ErrUnavailable, "x"), 503, lb.ErrUnavailable},
		{context.DeadlineExceeded, 503, lb.ErrUnavailable},
		{&http.MaxBytesError{Limit: 5}, 413, nil},
		{errors.New("a secret of the inside"), 500, nil},
		{(condition{match: []string{"*"}}).check("x", 0), 412, lb.ErrConflict},
	} {
		f := failureOf(c.err)
		e := &ProblemError{Problem: Problem{Type: typePrefix + f.kind, Status: f.status, Faults: f.faults, Detail: f.detail}}
		if f.status != c.status || (c.kind != nil && !errors.Is(e, c.kind)) || (c.kind == nil && e.Unwrap() != nil) || e.Error() == "" {
			t.Errorf("%v becomes %d %q (%v)", c.err, f.status, f.detail, e.Unwrap())
		}
		if strings.Contains(f.detail, "secret") {
			t.Errorf("tells %q", f.detail)
		}
	}
}

func TestApps_TwoWritersOneWins(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	seen, err := f.admin.Application(ctx, "shop")
	if err != nil {
		t.Fatal(err)
	}
	const writers = 8
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			_, errs[i] = f.client(RoleAdmin).PatchApplication(ctx, "shop", map[string]any{"queue": map[string]any{"size": 200 + i}}, IfRevision(seen.Revision))
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, lb.ErrConflict) {
			t.Errorf("loser: %v", err)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d conditional writes won", won, writers)
	}
	// Without a condition all of them are carried out, one after the other.
	for i := range writers {
		wg.Go(func() {
			_, errs[i] = f.admin.CreateInstance(ctx, "shop", map[string]any{"name": fmt.Sprint("n", i), "host": "10.1.0.1", "token": "app-x"})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if n := len(f.store.Current().Application("shop").Instances); n != 2+writers {
		t.Errorf("%d instances", n)
	}
}

func TestTokens_MakeAddRemove(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	made, err := f.admin.CreateToken(ctx, "shop", TokenRequest{Label: "mobile"})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(made.Token, userPrefix) || len(made.Token) < 40 || made.Label != "mobile" || made.Hint != made.Token[len(made.Token)-4:] {
		t.Errorf("made %+v", made)
	}
	if app, _ := f.admin.ExplainToken(ctx, lb.Secret(made.Token), "u1"); app == nil || app.App != "shop" {
		t.Errorf("the new token opens %v", app)
	}
	f.want(201, RoleAdmin, "POST", "/api/v1/apps/shop/tokens", "") // no body at all
	given, err := f.admin.CreateToken(ctx, "shop", TokenRequest{Token: "given-token-000001"})
	if err != nil || given.Token != "" || given.ID != lb.Secret("given-token-000001").Hash().ID() {
		t.Errorf("given %+v, %v", given, err)
	}
	if _, err := f.admin.CreateToken(ctx, "shop", TokenRequest{Token: "given-token-000001"}); !errors.Is(err, lb.ErrExists) {
		t.Errorf("again: %v", err)
	}
	if _, err := f.admin.CreateToken(ctx, "desk", TokenRequest{Token: "given-token-000001"}); !errors.Is(err, lb.ErrInvalid) || !strings.Contains(err.Error(), `"shop"`) {
		t.Errorf("of another: %v", err)
	}
	f.want(422, RoleAdmin, "POST", "/api/v1/apps/shop/tokens", `{"tokem":"x"}`)
	f.want(422, RoleAdmin, "POST", "/api/v1/apps/shop/tokens", `{"token":"a b"}`)
	f.want(422, RoleAdmin, "POST", "/api/v1/apps/shop/tokens", `{"label":"\u0007"}`)
	f.want(400, RoleAdmin, "POST", "/api/v1/apps/shop/tokens", `{"token"`)
	f.want(404, RoleAdmin, "POST", "/api/v1/apps/nope/tokens", `{}`)
	tokens, err := f.admin.Tokens(ctx, "shop")
	if err != nil || len(tokens) != 4 || tokens[0].Label != "web" {
		t.Fatalf("tokens %+v, %v", tokens, err)
	}
	if err := f.admin.DeleteToken(ctx, "shop", made.ID); err != nil {
		t.Fatal(err)
	}
	if err := f.admin.DeleteToken(ctx, "shop", made.ID); !errors.Is(err, lb.ErrNotFound) {
		t.Errorf("delete again: %v", err)
	}
	if _, err := f.admin.ExplainToken(ctx, lb.Secret(made.Token), "u1"); !errors.Is(err, lb.ErrNotFound) || strings.Contains(err.Error(), made.Token) {
		t.Errorf("explain of a removed token: %v", err)
	}
}

func TestInstances_LifeOfAnInstance(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	in := &lb.Instance{Name: "dify3", Host: "10.0.0.3", Port: 80, Token: "app-token-dify3-dddd", Weight: 2, MaxFails: 3, FailTimeout: lb.Duration(30e9), State: lb.Active}
	made, err := f.admin.CreateInstance(ctx, "shop", in)
	if err != nil || made.TokenHint != "dddd" || made.Weight != 2 {
		t.Fatalf("made %+v, %v", made, err)
	}
	if _, err := f.admin.CreateInstance(ctx, "shop", in); !errors.Is(err, lb.ErrExists) {
		t.Errorf("again: %v", err)
	}
	put, err := f.admin.PutInstance(ctx, "shop", "dify1", []byte("host: 10.9.9.9"), IfExists())
	if err != nil || put.Host != "10.9.9.9" || put.TokenHint != "aaaa" {
		t.Errorf("put %+v, %v", put, err)
	}
	patched, err := f.admin.PatchInstance(ctx, "shop", "dify1", []byte(`{"weight":7,"domain":"a"}`), IfRevision(put.Revision))
	if err != nil || patched.Weight != 7 || patched.Host != "10.9.9.9" || patched.Domain != "a" {
		t.Errorf("patched %+v, %v", patched, err)
	}
	if _, err := f.admin.PatchInstance(ctx, "shop", "dify1", []byte(`{"weight":8}`), IfRevision(put.Revision)); !errors.Is(err, lb.ErrConflict) {
		t.Errorf("stale patch: %v", err)
	}
	patched, err = f.admin.PatchInstance(ctx, "shop", "dify1", []byte(`{"weight":null}`))
	if err != nil || patched.Weight != 1 {
		t.Errorf("weight removed: %+v, %v", patched, err)
	}
	list, err := f.admin.Instances(ctx, "shop")
	if err != nil || len(list) != 3 || list[0].Name != "dify1" || list[2].Name != "dify3" {
		t.Errorf("order %+v, %v", list, err)
	}
	if stored, _ := f.store.Current().Application("shop").Instance("dify1"); stored.Token != "app-token-dify1-aaaa" {
		t.Error("the token did not survive")
	}
	f.want(201, RoleAdmin, "PUT", "/api/v1/apps/shop/instances/new", `{"host":"h","token":"app-n"}`, "If-None-Match", "*")
	f.want(412, RoleAdmin, "PUT", "/api/v1/apps/shop/instances/new", `{"host":"h","token":"app-n"}`, "If-None-Match", "*")
	p := f.want(422, RoleAdmin, "PUT", "/api/v1/apps/shop/instances/dify2", `{"name":"x","host":"h","port":70000,"weight":-1}`).problem(t)
	paths := []string{}
	for _, fault := range p.Faults {
		paths = append(paths, fault.Path)
	}
	if want := []string{"applications.shop.instances[1].name", "applications.shop.instances[1].port", "applications.shop.instances[1].token", "applications.shop.instances[1].weight"}; !slices.Equal(sorted(paths), want) {
		t.Errorf("faults %v, want %v", paths, want)
	}
	p = f.want(404, RoleAdmin, "DELETE", "/api/v1/apps/shop/instances/difi2", "").problem(t)
	if !strings.Contains(p.Detail, `"shop/difi2"`) || !strings.Contains(p.Detail, `did you mean "shop/dify2"`) {
		t.Errorf("404 says %q", p.Detail)
	}
	if err := f.admin.DeleteInstance(ctx, "shop", "dify2", IfExists()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.admin.Instance(ctx, "shop", "dify2"); !errors.Is(err, lb.ErrNotFound) {
		t.Errorf("after delete: %v", err)
	}
}

func sorted(s []string) []string { slices.Sort(s); return s }

func TestDrain_WaitsForProxiesAndOpenRequests(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	f.hub.set(3, proxy("p1", 0))
	op := f.client(RoleOperator)
	st, err := op.DrainInstance(ctx, "shop", "dify1", 50*time.Millisecond)
	if err != nil || st.Drained || st.Open != 3 || st.State != lb.Draining {
		t.Fatalf("with requests open: %+v, %v", st, err)
	}
	revision := f.store.Current().ConfigRevision
	// Nothing open, but the proxy does not know yet.
	f.hub.set(0, proxy("p1", revision-1))
	if st, err = op.DrainInstance(ctx, "shop", "dify1", 50*time.Millisecond); err != nil || st.Drained {
		t.Fatalf("before the receipt: %+v, %v", st, err)
	}
	if f.store.Current().ConfigRevision != revision {
		t.Error("draining again was a write")
	}
	silent := proxy("p1", revision)
	silent.Connected = false
	f.hub.set(0, silent)
	if st, err = op.DrainInstance(ctx, "shop", "dify1", 50*time.Millisecond); err != nil || st.Drained {
		t.Fatalf("while a proxy is silent: %+v, %v", st, err)
	}
	done := make(chan *InstanceState, 1)
	go func() {
		st, err := op.DrainInstance(ctx, "shop", "dify1", time.Minute)
		if err != nil {
			t.Error(err)
		}
		done <- st
	}()
	f.hub.set(1, proxy("p1", revision))
	f.hub.set(0, proxy("p1", revision))
	if st := <-done; st == nil || !st.Drained || st.Open != 0 || st.Revision != f.store.Current().Application("shop").Instances[0].Revision {
		t.Errorf("drained: %+v", st)
	}
	if st, err = op.ActivateInstance(ctx, "shop", "dify1"); err != nil || st.State != lb.Active || st.Drained {
		t.Errorf("activate: %+v, %v", st, err)
	}
	f.hub.set(0)
	if st, err = op.DisableInstance(ctx, "shop", "dify1", time.Second); err != nil || st.State != lb.Disabled || !st.Drained {
		t.Errorf("disable without proxies: %+v, %v", st, err)
	}
	f.want(412, RoleOperator, "POST", "/api/v1/apps/shop/instances/dify1/activate", "", "If-Match", `"1"`)
	f.want(412, RoleOperator, "POST", "/api/v1/apps/shop/instances/dify1/activate", "", "If-Match", "W/"+ETag(f.store.Current().Application("shop").Instances[0].Revision))
	f.want(400, RoleOperator, "POST", "/api/v1/apps/shop/instances/dify1/drain?wait=forever", "")
	f.want(400, RoleOperator, "POST", "/api/v1/apps/shop/instances/dify1/drain?wait=11m", "")
	f.want(404, RoleOperator, "POST", "/api/v1/apps/shop/instances/nope/drain", "")
}

// What a proxy let in just before it had the change shows in its next report.
func TestDrain_WaitsForTheReportAfterTheReceipt(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	f.hub.set(0, proxy("p1", 1<<40))
	start := time.Now()
	st, err := f.admin.DrainInstance(ctx, "shop", "dify1", time.Minute)
	if took := time.Since(start); err != nil || !st.Drained || took < drainSettle {
		t.Errorf("%+v, %v after %s", st, err, took)
	}
	if _, err = f.admin.ActivateInstance(ctx, "shop", "dify1"); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { f.hub.set(1, proxy("p1", 1<<40)) })
	if st, err = f.admin.DrainInstance(ctx, "shop", "dify1", drainSettle+200*time.Millisecond); err != nil || st.Drained || st.Open != 1 {
		t.Errorf("with a late report: %+v, %v", st, err)
	}
	f.want(200, RoleOperator, "POST", "/api/v1/apps/shop/instances/dify1/activate?wait=1m", "")
}

func TestDrain_EndsWhenTheServerCloses(t *testing.T) {
	closing, closeNow := context.WithCancel(ctx)
	f := newFixture(t, func(o *Options) { o.Closing = closing })
	f.applyShop()
	f.hub.set(3, proxy("p1", 0))
	time.AfterFunc(20*time.Millisecond, closeNow)
	start := time.Now()
	st, err := f.admin.DrainInstance(ctx, "shop", "dify1", time.Minute)
	if err != nil || st.Drained || time.Since(start) > 10*time.Second {
		t.Errorf("%+v, %v after %s", st, err, time.Since(start))
	}
	res, err := f.admin.Apply(ctx, []byte(shop), ApplyOptions{Wait: time.Minute})
	if err != nil || res.InForce.All {
		t.Errorf("apply: %+v, %v", res, err)
	}
}

func TestApply_TellsAndDoesTheSame(t *testing.T) {
	f := newFixture(t)
	dry, err := f.admin.Apply(ctx, []byte(shop), ApplyOptions{DryRun: true})
	if err != nil || !dry.DryRun || !slices.Equal(dry.Created, []string{"desk", "shop"}) || len(f.store.Current().Applications) != 0 {
		t.Fatalf("dry run %+v, %v; stored %d", dry, err, len(f.store.Current().Applications))
	}
	res := f.applyShop()
	if res.DryRun || res.Unchanged || !slices.Equal(res.Created, dry.Created) || len(res.Changes) != len(dry.Changes) || res.Revision != f.store.Current().ConfigRevision {
		t.Errorf("apply %+v, dry run had said %+v", res, dry)
	}
	for i, c := range res.Changes {
		if d := dry.Changes[i]; c.Kind != d.Kind || c.App != d.App || c.Name != d.Name || c.Action != d.Action {
			t.Errorf("did %+v, said %+v", c, d)
		}
	}
	again := f.applyShop()
	if !again.Unchanged || again.Revision != res.Revision || f.store.Current().ConfigRevision != res.Revision || len(again.Changes) != 0 {
		t.Errorf("again %+v", again)
	}
	third := strings.Replace(shop, "  desk:", "      - {name: dify3, host: 10.0.0.3, token: app-x}\n  desk:", 1)
	third = third[:strings.Index(third, "  desk:")]
	dry, err = f.admin.Apply(ctx, []byte(third), ApplyOptions{DryRun: true})
	if err != nil || !slices.Equal(dry.Changed, []string{"shop"}) || len(dry.Deleted) != 0 || dry.Moved["shop"] < 0.2 || dry.Moved["shop"] > 0.5 {
		t.Errorf("a third instance: %+v, %v", dry, err)
	}
	dry, err = f.admin.Apply(ctx, []byte(third), ApplyOptions{DryRun: true, Prune: true})
	if err != nil || !slices.Equal(dry.Deleted, []string{"desk"}) {
		t.Errorf("prune: %+v, %v", dry, err)
	}
	if f.store.Current().ConfigRevision != res.Revision {
		t.Fatal("a dry run wrote")
	}
	if _, err := f.admin.Apply(ctx, []byte(third), ApplyOptions{}); err != nil || f.store.Current().Application("desk") == nil {
		t.Errorf("without prune: %v", err)
	}
	if f.store.Current().Settings.RateLimit.PerIP == nil {
		t.Error("settings that the document does not speak of are gone")
	}
	if _, err := f.admin.Apply(ctx, []byte(third), ApplyOptions{Prune: true}); err != nil || f.store.Current().Application("desk") != nil {
		t.Errorf("prune: %v", err)
	}
	f.want(412, RoleAdmin, "POST", "/api/v1/apply", "{}", "If-Match", ETag(res.Revision))
	f.want(400, RoleAdmin, "POST", "/api/v1/apply?dryrun=true", "{}")
}

func TestApply_ListsEveryFaultAndStoresNothing(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	before := f.store.Current().ConfigRevision
	p := f.want(422, RoleAdmin, "POST", "/api/v1/apply", `
applications:
  shop:
    missing_user: maybe
    instances:
      - {name: dify1, host: 10.0.0.1, port: 0x, weight: -1}
      - {name: dify1, host: 10.0.0.1, token: app-x}
      - {name: fresh, url: "ftp://x"}
  other:
    user_tokens: [user-token-desk-1, {id: 0123456789abcdef}]
    colour: red
  UPPER: {}
settings: {rate_limit: {per_ip: {rate: 0, burst: 1}}}
`, "Content-Type", "application/yaml").problem(t)
	want := []string{
		"applications.UPPER", "applications.other.colour", "applications.other.user_tokens[0]", "applications.other.user_tokens[1].id",
		"applications.shop.instances[0].port", "applications.shop.instances[0].weight", "applications.shop.instances[1].name",
		"applications.shop.instances[2].token", "applications.shop.instances[2].url", "applications.shop.missing_user",
		"settings.rate_limit.per_ip.rate",
	}
	var got []string
	for _, fault := range p.Faults {
		got = append(got, fault.Path)
		if fault.Path == "applications.other.colour" && fault.Line != 11 {
			t.Errorf("line %d", fault.Line)
		}
	}
	if !slices.Equal(sorted(got), want) {
		t.Errorf("faults\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if f.store.Current().ConfigRevision != before {
		t.Error("something was stored")
	}
	if p.Type != "urn:difylb:problem:invalid" || p.Instance != "/api/v1/apply" {
		t.Errorf("problem %+v", p)
	}
	// A token may go to another application when its owner is pruned.
	taker := []byte(`{applications: {taker: {user_tokens: [user-token-desk-1]}}}`)
	if _, err := f.admin.Apply(ctx, taker, ApplyOptions{DryRun: true}); !errors.Is(err, lb.ErrInvalid) {
		t.Error(err)
	}
	if _, err := f.admin.Apply(ctx, taker, ApplyOptions{DryRun: true, Prune: true}); err != nil {
		t.Error(err)
	}
	// A token may move to another application within one document.
	if _, err := f.admin.Apply(ctx, []byte(`{applications: {desk: {user_tokens: []}, shop: {user_tokens: [user-token-desk-1]}}}`), ApplyOptions{}); err != nil {
		t.Error(err)
	}
	if e, err := f.admin.ExplainToken(ctx, "user-token-desk-1", "u"); err != nil || e.App != "shop" {
		t.Errorf("%+v, %v", e, err)
	}
}

// A document is only written where it differs, so every field must count.
func TestSameDeclaration_SeesEveryField(t *testing.T) {
	yes := true
	base := func() *lb.Application {
		a := lb.NewApplication("a")
		in := lb.Instance{Name: "i", Host: "h", Port: 80, Token: "t", PreserveHost: &yes, Revision: 7}
		in.SetDefaults()
		a.Instances = []lb.Instance{in, in}
		a.UserTokens = []lb.UserToken{lb.NewUserToken("some-user-token", "l", false)}
		a.RateLimit.PerUser = &lb.Rate{PerSecond: 1, Burst: 1}
		return a
	}
	same := base().Clone()
	same.Revision, same.Instances[0].Revision, same.UserTokens[0].Created = 9, 9, time.Now()
	if !sameDeclaration(base(), same) {
		t.Error("what does not count, counts")
	}
	var walk func(v reflect.Value, path string, check func(string))
	walk = func(v reflect.Value, path string, check func(string)) {
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				name := v.Type().Field(i).Name
				if name != "Revision" && name != "Created" {
					walk(v.Field(i), path+"."+name, check)
				}
			}
			return
		case reflect.Pointer:
			old := v.Interface()
			v.Set(reflect.New(v.Type().Elem()))
			check(path)
			v.Set(reflect.ValueOf(old))
			return
		case reflect.Slice:
			walk(v.Index(0), path+"[0]", check)
			old := v.Interface()
			v.Set(v.Slice(1, v.Len()))
			check(path)
			v.Set(reflect.ValueOf(old))
			return
		case reflect.Array:
			v = v.Index(0)
		}
		old := reflect.ValueOf(v.Interface())
		switch v.Kind() {
		case reflect.String:
			v.SetString(v.String() + "x")
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.Uint8:
			v.SetUint(v.Uint() ^ 1)
		case reflect.Float64:
			v.SetFloat(v.Float() + 1)
		default:
			v.SetInt(v.Int() + 1)
		}
		check(path)
		v.Set(old)
	}
	changed := base()
	n := 0
	walk(reflect.ValueOf(changed).Elem(), "app", func(path string) {
		n++
		if sameDeclaration(base(), changed) {
			t.Errorf("%s does not count", path)
		}
	})
	if n < 40 || !sameDeclaration(base(), changed) {
		t.Errorf("%d fields looked at", n)
	}
}

func TestApply_WaitsForReceipts(t *testing.T) {
	f := newFixture(t)
	f.hub.set(0, proxy("p1", 0), proxy("p2", 1<<40))
	res, err := f.admin.Apply(ctx, []byte(shop), ApplyOptions{Wait: 30 * time.Millisecond})
	if err != nil || res.InForce == nil || res.InForce.All || !slices.Equal(res.InForce.Waiting, []string{"p1"}) || !slices.Equal(res.InForce.Nodes, []string{"p2"}) {
		t.Fatalf("%+v, %v", res, err)
	}
	refusing := proxy("p1", 0)
	refusing.Refused = "does not build"
	f.hub.set(0, refusing)
	res, err = f.admin.Apply(ctx, []byte(shop), ApplyOptions{Wait: 30 * time.Millisecond})
	if err != nil || res.InForce.All || !slices.Equal(res.InForce.Refused, []string{"p1: does not build"}) || len(res.InForce.Waiting) != 0 {
		t.Errorf("%+v, %v", res.InForce, err)
	}
	f.hub.set(0, proxy("p1", 1<<40))
	res, err = f.admin.Apply(ctx, []byte(shop), ApplyOptions{Wait: time.Minute})
	if err != nil || !res.InForce.All || !res.Unchanged {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestExport_AppliesAgain(t *testing.T) {
	f, g := newFixture(t), newFixture(t)
	f.applyShop()
	for _, format := range []Format{JSON, YAML, ""} {
		data, err := f.admin.Export(ctx, format, true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.admin.Apply(ctx, data, ApplyOptions{Prune: true}); err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		redacted, err := f.client(RoleViewer).Export(ctx, format, false)
		if err != nil || strings.Contains(string(redacted), "app-token") {
			t.Errorf("%v\n%s", err, redacted)
		}
		if res, err := f.admin.Apply(ctx, redacted, ApplyOptions{Prune: true}); err != nil || !res.Unchanged {
			t.Errorf("%s without secrets: %+v, %v", format, res, err)
		}
	}
	a, _ := document.MarshalJSON(f.store.Current().Document(), true)
	b, _ := document.MarshalJSON(g.store.Current().Document(), true)
	if string(a) != string(b) {
		t.Errorf("differ:\n%s\n%s", a, b)
	}
	f.want(403, RoleViewer, "GET", "/api/v1/export?secrets=true", "")
	f.want(403, RoleOperator, "GET", "/api/v1/export?secrets", "")
	f.want(400, RoleAdmin, "GET", "/api/v1/export?format=toml", "")
	if r := f.want(200, RoleViewer, "GET", "/api/v1/export", "", "Accept", "application/yaml"); r.header.Get("Content-Type") != "application/yaml" {
		t.Error(r.header)
	}
}

func TestExplain_AgreesWithTheRing(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	e, err := f.admin.Explain(ctx, "shop", "u1")
	if err != nil || e.Owner == "" || len(e.Order) != 2 || e.Order[0].Instance != e.Owner || e.Chosen != e.Owner {
		t.Fatalf("%+v, %v", e, err)
	}
	if _, err := f.admin.DrainInstance(ctx, "shop", e.Owner, 0); err != nil {
		t.Fatal(err)
	}
	d, err := f.admin.Explain(ctx, "shop", "u1")
	if err != nil || d.Owner != e.Owner || d.Chosen == e.Owner || d.Order[0].Usable || d.Order[0].Status != "draining" {
		t.Errorf("drained: %+v, %v", d, err)
	}
	for _, q := range []string{"", "?app=shop", "?user=u", "?app=shop&token=t&user=u", "?app=shop&user=u&x=1", "?app=shop&app=desk&user=u"} {
		f.want(400, RoleViewer, "GET", "/api/v1/explain"+q, "")
	}
	if _, err := f.admin.Explain(ctx, "shob", "u"); !errors.Is(err, lb.ErrNotFound) || !strings.Contains(err.Error(), `"shop"`) {
		t.Error(err)
	}
}

func TestHistory_AndRollback(t *testing.T) {
	f := newFixture(t)
	first := f.applyShop()
	op := f.client(RoleOperator)
	if _, err := op.DrainInstance(ctx, "shop", "dify1", 0); err != nil {
		t.Fatal(err)
	}
	if err := f.admin.DeleteApplication(ctx, "desk"); err != nil {
		t.Fatal(err)
	}
	h, err := f.admin.History(ctx, 0, 0)
	if err != nil || len(h) != 3 {
		t.Fatalf("%+v, %v", h, err)
	}
	if h[0].Action != "application.delete" || h[0].Who != "admin" || h[0].Note != "desk" || h[1].Action != "instance.drain" ||
		h[1].Who != "operator" || h[1].From != "127.0.0.1" || h[2].Action != "apply" || h[2].Revision != first.Revision || h[0].Time.IsZero() {
		t.Errorf("%+v", h)
	}
	older, err := f.admin.History(ctx, 1, h[0].Revision)
	if err != nil || len(older) != 1 || older[0].Revision != h[1].Revision {
		t.Errorf("%+v, %v", older, err)
	}
	one, err := f.admin.HistoryAt(ctx, h[1].Revision)
	if err != nil || len(one.Changes) == 0 || one.Changes[0].Before == nil {
		t.Errorf("%+v, %v", one, err)
	}
	if _, err := f.admin.HistoryAt(ctx, 1); !errors.Is(err, lb.ErrNotFound) {
		t.Error(err)
	}
	f.want(400, RoleViewer, "GET", "/api/v1/history/x", "")
	dry, err := f.admin.Rollback(ctx, first.Revision, ApplyOptions{DryRun: true})
	if err != nil || !slices.Equal(dry.Created, []string{"desk"}) || !slices.Equal(dry.Changed, []string{"shop"}) || dry.Moved["shop"] == 0 {
		t.Errorf("%+v, %v", dry, err)
	}
	if _, err := f.admin.Rollback(ctx, first.Revision, ApplyOptions{}, IfRevision(first.Revision)); !errors.Is(err, lb.ErrConflict) {
		t.Error(err)
	}
	res, err := f.admin.Rollback(ctx, first.Revision, ApplyOptions{}, IfRevision(h[0].Revision))
	if err != nil || res.Revision <= h[0].Revision {
		t.Fatalf("%+v, %v", res, err)
	}
	if a := f.store.Current(); a.Application("desk") == nil || a.Application("shop").Instances[0].State != lb.Active || a.Application("shop").Instances[0].Token != "app-token-dify1-aaaa" {
		t.Errorf("after rollback %+v", a.Applications)
	}
	if h, _ := f.admin.History(ctx, 1, 0); len(h) != 1 || h[0].Action != "rollback" || h[0].Note != fmt.Sprint(first.Revision) {
		t.Errorf("%+v", h)
	}
	if same := f.applyShop(); !same.Unchanged {
		t.Errorf("not what it was: %+v", same)
	}
	f.want(404, RoleAdmin, "POST", "/api/v1/rollback/999999999", "")
}

func TestLists_Page(t *testing.T) {
	f := newFixture(t)
	doc := &lb.Document{Applications: map[string]*lb.Application{}}
	var names []string
	for i := range 25 {
		a := lb.NewApplication(fmt.Sprintf("app-%02d", i))
		for j := range 5 {
			in := lb.Instance{Name: fmt.Sprint("z", 9-j), Host: "h", Port: 80, Token: "app-t"}
			in.SetDefaults()
			a.Instances = append(a.Instances, in)
		}
		doc.Applications[a.Name] = a
		names = append(names, a.Name)
	}
	raw, err := document.MarshalJSON(doc, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.admin.Apply(ctx, raw, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	var got []string
	next, pages := "", 0
	for {
		var l List[Application]
		r := f.want(200, RoleViewer, "GET", "/api/v1/apps?limit=7&continue="+next, "")
		if err := json.Unmarshal([]byte(r.body), &l); err != nil {
			t.Fatal(err)
		}
		for _, a := range l.Items {
			got = append(got, a.Name)
		}
		pages++
		if next = l.Continue; next == "" {
			break
		}
	}
	if !slices.Equal(got, names) || pages != 4 {
		t.Errorf("%d pages: %v", pages, got)
	}
	r := f.want(200, RoleViewer, "GET", "/api/v1/apps/app-00/instances?limit=2&continue=z8", "")
	var l List[Instance]
	if err := json.Unmarshal([]byte(r.body), &l); err != nil || len(l.Items) != 2 || l.Items[0].Name != "z7" || l.Continue != "z6" {
		t.Errorf("%s", r.body)
	}
	f.want(400, RoleViewer, "GET", "/api/v1/apps/app-00/instances?continue=gone", "")
	f.want(400, RoleViewer, "GET", "/api/v1/apps?limit=-1", "")
	if apps, err := f.admin.Applications(ctx); err != nil || len(apps) != 25 {
		t.Errorf("%d, %v", len(apps), err)
	}
}

func TestErrors_EveryClass(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Dashboard = nil })
	f.applyShop()
	big := `{"name":"x","missing_user":"` + strings.Repeat("a", maxBodyBytes) + `"}`
	for _, c := range []struct {
		status             int
		method, path, body string
		header             string
		contains           string
	}{
		{400, "POST", "/api/v1/apps", `{"name":`, "", "not YAML"},
		{400, "POST", "/api/v1/apps", ``, "", "empty"},
		{400, "PUT", "/api/v1/apps/shop", "a: [", "application/yaml", "not YAML"},
		{400, "GET", "/api/v1/apps?limit=x", "", "", "limit"},
		{404, "GET", "/api/v1/nothing", "", "", "openapi.json"},
		{404, "GET", "/", "", "", ""},
		{404, "GET", "/metrics", "", "", ""},
		{404, "GET", "/api/v1/apps/shpo", "", "", `did you mean \"shop\"`},
		{405, "DELETE", "/api/v1/apps", "", "", "GET, HEAD, POST"},
		{405, "POST", "/api/v1/nodes", "", "", "GET"},
		{409, "POST", "/api/v1/apps", `{"name":"shop"}`, "", "exists"},
		{413, "POST", "/api/v1/apps", big, "", "1048576"},
		{415, "POST", "/api/v1/apps", `<a/>`, "application/xml", "application/json"},
		{415, "POST", "/api/v1/apply", `<a/>`, "text/html; charset=utf-8", "application/yaml"},
		{422, "PUT", "/api/v1/apps/shop", `{"instances":{}}`, "", "instances"},
		{422, "PUT", "/api/v1/apps/Shop", `{}`, "", "name"},
	} {
		kind := c.header
		if kind == "" {
			kind = "application/json"
		}
		r := f.call(RoleAdmin, c.method, c.path, c.body, "Content-Type", kind)
		if r.status != c.status || !strings.Contains(r.body, c.contains) {
			t.Errorf("%s %s: %d %s, want %d with %q", c.method, c.path, r.status, r.body, c.status, c.contains)
			continue
		}
		r.problem(t)
		if c.status == 405 && !strings.HasPrefix(r.header.Get("Allow"), c.contains) {
			t.Errorf("%s %s: Allow %q", c.method, c.path, r.header.Get("Allow"))
		}
	}
	// What curl -d sends when it is told nothing.
	f.want(200, RoleAdmin, "PUT", "/api/v1/apps/shop", `{}`, "Content-Type", "application/x-www-form-urlencoded")
	if r := f.want(200, RoleViewer, "HEAD", "/api/v1/apps", ""); r.body != "" {
		t.Error(r.body)
	}
}

func TestErrors_StoreAway(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	f.store.Close()
	r := f.want(503, RoleAdmin, "POST", "/api/v1/apps", `{"name":"x"}`)
	if r.header.Get("Retry-After") == "" || !strings.Contains(r.problem(t).Detail, "store") {
		t.Errorf("%v %s", r.header, r.body)
	}
	r = f.want(503, "", "GET", "/readyz", "")
	if !strings.Contains(r.problem(t).Detail, "store: ") {
		t.Error(r.body)
	}
	f.want(200, "", "GET", "/health", "")
	// What is known is still told, and that it may be old.
	if r := f.want(200, RoleViewer, "GET", "/api/v1/apps/shop", ""); r.header.Get(StaleHeader) == "" {
		t.Error(r.header)
	}
}

func TestErrors_BeforeTheFirstSnapshot(t *testing.T) {
	f := newFixture(t)
	st, err := store.Open(store.Options{Endpoints: etcdURLs, Prefix: "/never-run", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	f.server.store = st
	f.want(503, RoleAdmin, "GET", "/api/v1/apps", "")
	f.want(503, RoleAdmin, "POST", "/api/v1/apply", "{}")
	f.want(200, "", "GET", "/health", "")
}

func TestErrors_PanicIsLoggedAndAnswered(t *testing.T) {
	f := newFixture(t, func(o *Options) {
		o.Metrics = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") })
	})
	r := f.want(500, "", "GET", "/metrics", "")
	if strings.Contains(r.body, "boom") || !strings.Contains(f.log.String(), "boom") {
		t.Errorf("%s\n%s", r.body, f.log)
	}
}

func TestClient_ServerAway(t *testing.T) {
	f := newFixture(t)
	f.http.Close()
	_, err := f.admin.ExplainToken(ctx, "very-secret-token", "u")
	if !errors.Is(err, lb.ErrUnavailable) || strings.Contains(err.Error(), "very-secret") {
		t.Error(err)
	}
	if err := f.admin.Events(ctx, nil); !errors.Is(err, lb.ErrUnavailable) {
		t.Error(err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := f.admin.Nodes(gone); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for _, server := range []string{"", "ftp://x", "http://", "http://a:b@c", "http://x?y"} {
		if _, err := NewClient(ClientOptions{Server: server}); !errors.Is(err, lb.ErrInvalid) {
			t.Errorf("%q: %v", server, err)
		}
	}
}

func TestClient_AnswerOfSomethingElse(t *testing.T) {
	f := newFixture(t, func(o *Options) {})
	f.server.router = chi.NewRouter()
	f.http.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "<html>", http.StatusBadGateway)
	})
	_, err := f.admin.Nodes(ctx)
	var p *ProblemError
	if !errors.As(err, &p) || p.Status != 502 || !errors.Is(err, lb.ErrUnavailable) || !strings.Contains(err.Error(), "lb-admin") {
		t.Error(err)
	}
}

// TestRoles_Matrix asks every call with every role, and with none.
func TestRoles_Matrix(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	f.hub.set(0, proxy("p1", 0))
	for _, e := range endpoints {
		path := strings.NewReplacer("{app}", "absent", "{name}", "absent", "{id}", "absent", "{revision}", "999999").Replace(e.path)
		if strings.HasSuffix(path, "/events") {
			continue // has no end; TestEvents asks
		}
		for _, role := range []AccessRole{"", RoleViewer, RoleOperator, RoleAdmin} {
			r := f.call(role, e.method, path, "", "X-Forwarded-For", "203.0.113.9")
			may := e.role == "" || role.rank() >= e.role.rank()
			switch {
			case may && (r.status == 401 || r.status == 403):
				t.Errorf("%s %s as %q: %d", e.method, e.path, role, r.status)
			case !may && role == "" && r.status != 401, !may && role != "" && r.status != 403:
				t.Errorf("%s %s as %q: %d, but it needs %s", e.method, e.path, role, r.status, e.role)
			}
			if r.status == 401 && !strings.HasPrefix(r.header.Get("WWW-Authenticate"), "Bearer") {
				t.Errorf("%s %s: 401 without a challenge", e.method, e.path)
			}
		}
		// The rules of the contract, told apart from the table.
		switch {
		case !strings.HasPrefix(e.path, Base) || e.path == Base+"/openapi.json":
		case e.method == "GET" && e.role != RoleViewer:
			t.Errorf("GET %s needs %q", e.path, e.role)
		case e.method != "GET":
			want := RoleAdmin
			if slices.ContainsFunc([]string{"/drain", "/activate", "/disable", "/check"}, func(s string) bool { return strings.HasSuffix(e.path, s) }) {
				want = RoleOperator
			}
			if e.role != want {
				t.Errorf("%s %s needs %q, want %q", e.method, e.path, e.role, want)
			}
		}
	}
}

func TestAccess_NearAndFar(t *testing.T) {
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "up 1") })
	f := newFixture(t, func(o *Options) {
		o.Metrics = metrics
		o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	})
	for _, c := range []struct {
		remote, forwarded string
		near              bool
	}{
		{"127.0.0.1:5", "", true},
		{"[::1]:5", "", true},
		{"[::ffff:192.168.1.1]:5", "", true},
		{"172.20.1.1:5", "", true},
		{"203.0.113.9:5", "", false},
		{"169.254.1.1:5", "", false},
		{"127.0.0.1:5", "10.1.1.1", false}, // forwarded by someone not trusted
		{"10.1.1.1:5", "203.0.113.9", false},
		{"10.1.1.1:5", "192.168.0.7", true},
		{"10.1.1.1:5", "127.0.0.1, 203.0.113.9", false}, // only the last is the proxy's word
		{"10.1.1.1:5", "192.168.0.7, 10.2.2.2", true},
		{"10.1.1.1:5", "nonsense", false},
	} {
		r, _ := http.NewRequest("GET", "http://x/status", nil)
		r.RemoteAddr = c.remote
		if c.forwarded != "" {
			r.Header.Set("X-Forwarded-For", c.forwarded)
		}
		if got := f.server.locate(r); got.near != c.near {
			t.Errorf("%+v: near %v, from %s", c, got.near, got.from)
		}
	}
	f.want(200, "", "GET", "/status", "")
	f.want(200, "", "GET", "/metrics", "")
	f.want(401, "", "GET", "/status", "", "X-Forwarded-For", "203.0.113.9")
	f.want(401, "", "GET", "/metrics", "", "X-Forwarded-For", "203.0.113.9")
	f.want(200, RoleViewer, "GET", "/metrics", "", "X-Forwarded-For", "203.0.113.9")
	f.want(401, "", "GET", "/api/v1/status", "")
	f.want(401, "", "GET", "/api/v1/health", "")
	f.want(200, "", "GET", "/api/v1/openapi.json", "")
	f.want(200, "", "GET", "/openapi.json", "")
}

func TestAccess_WrongTokensAreSlowedDown(t *testing.T) {
	f := newFixture(t)
	statuses := map[int]int{}
	var last reply
	for range 15 {
		last = f.callWith("lb-wrong", "GET", "/api/v1/apps", "")
		statuses[last.status]++
	}
	if statuses[401] != 10 || statuses[429] != 5 || last.header.Get("Retry-After") == "" {
		t.Errorf("%v, Retry-After %q", statuses, last.header.Get("Retry-After"))
	}
	if n := f.server.WrongTokens(); n != 15 {
		t.Errorf("counted %d", n)
	}
	f.want(200, RoleViewer, "GET", "/api/v1/apps", "") // the others on that address go on
	req, _ := http.NewRequest("GET", f.http.URL+"/api/v1/apps", nil)
	req.Header["Authorization"] = []string{"Bearer " + f.tokens[RoleViewer].Reveal(), "Bearer " + f.tokens[RoleAdmin].Reveal()}
	resp, err := f.http.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode == 200 {
		t.Error("two tokens are no token")
	}
	for _, header := range []string{"Basic abc", "Bearer", "Bearer ", "lb-x", "Bearer a b"} {
		if r := f.call("", "GET", "/api/v1/apps", "", "Authorization", header); r.status != 401 && r.status != 429 {
			t.Errorf("%q: %d", header, r.status)
		}
	}
}

func TestPenalties_BackOffAndForget(t *testing.T) {
	var p penalties
	now := time.Unix(1e9, 0)
	addr := netip.MustParseAddr("203.0.113.9")
	for i := range wrongPerMin {
		if d := p.failed(addr, now); d != 0 {
			t.Fatalf("failure %d waits %s", i, d)
		}
	}
	var waits []time.Duration
	for range 8 {
		d := p.failed(addr, now)
		waits = append(waits, d)
		now = now.Add(d)
		// Within the wait nothing gets longer.
		if d2 := p.failed(addr, now.Add(-time.Nanosecond)); d2 > d {
			t.Errorf("%s grew to %s", d, d2)
		}
		p.young[netip.PrefixFrom(addr, 32)].budget = 0
	}
	if waits[0] != time.Second || !slices.IsSorted(waits) || slices.Max(waits) != longestPenalty {
		t.Errorf("waits %v", waits)
	}
	now = now.Add(10 * time.Minute)
	if d := p.failed(addr, now); d != 0 {
		t.Errorf("after ten minutes: %s", d)
	}
	for i := range 3 * maxPenalties {
		p.failed(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), now.Add(time.Duration(i)*time.Millisecond))
	}
	if n := len(p.young) + len(p.old); n > 2*maxPenalties {
		t.Errorf("%d addresses are kept", n)
	}
	a, b := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	for range wrongPerMin {
		p.failed(a, now)
	}
	if p.failed(b, now) == 0 {
		t.Error("the neighbour in one /64 begins anew")
	}
}

func TestAccess_Manage(t *testing.T) {
	f := newFixture(t)
	made, err := f.admin.CreateAccess(ctx, AccessRequest{Name: "ci", Role: RoleOperator})
	if err != nil || !strings.HasPrefix(made.Token, accessPrefix) || made.ID == "" {
		t.Fatalf("%+v, %v", made, err)
	}
	if r := f.callWith(lb.Secret(made.Token), "GET", "/api/v1/apps", ""); r.status != 200 {
		t.Error(r)
	}
	if _, err := f.admin.CreateAccess(ctx, AccessRequest{Name: "ci", Role: RoleViewer}); !errors.Is(err, lb.ErrExists) {
		t.Error(err)
	}
	p := f.want(422, RoleAdmin, "POST", "/api/v1/access", `{"name":"","role":"admn"}`).problem(t)
	if len(p.Faults) != 2 || !strings.Contains(p.Faults[1].Message, `did you mean "admin"`) {
		t.Errorf("%+v", p)
	}
	list, err := f.admin.AccessTokens(ctx)
	if err != nil || len(list) != 4 || list[1].Name != "ci" || list[1].Token != "" || list[1].Role != RoleOperator {
		t.Errorf("%+v, %v", list, err)
	}
	if err := f.admin.DeleteAccess(ctx, made.ID); err != nil {
		t.Fatal(err)
	}
	if r := f.callWith(lb.Secret(made.Token), "GET", "/api/v1/apps", ""); r.status != 401 {
		t.Errorf("revoked: %d", r.status)
	}
	if err := f.admin.DeleteAccess(ctx, made.ID); !errors.Is(err, lb.ErrNotFound) {
		t.Error(err)
	}
	if err := f.admin.DeleteAccess(ctx, f.tokens[RoleAdmin].Hash().ID()); !errors.Is(err, lb.ErrExists) {
		t.Errorf("the last admin: %v", err)
	}
}

func TestEnsureAdminToken_OnceAndPrivate(t *testing.T) {
	f := newFixture(t)
	dir := filepath.Join(t.TempDir(), "data")
	if err := f.server.EnsureAdminToken(ctx, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, TokenFile)); !os.IsNotExist(err) {
		t.Error("made a token although there are some")
	}
	for _, token := range f.tokens {
		if err := f.store.DeleteAccess(ctx, token.Hash()); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := f.server.EnsureAdminToken(ctx, dir); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, TokenFile)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	token := strings.TrimSpace(string(raw))
	if info, _ := os.Stat(file); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left beside it: %v", entries)
	}
	if r := f.callWith(lb.Secret(token), "GET", "/api/v1/access", ""); r.status != 200 || !strings.Contains(r.body, "admin@n1") {
		t.Error(r)
	}
	log := f.log.String()
	if strings.Contains(log, token) || strings.Count(log, file) != 1 || strings.Contains(log, `"level":"warn"`) {
		t.Errorf("log %s", log)
	}
}

// A store that lost everything gets a new token, and whoever holds the old one
// can read why it is refused.
func TestEnsureAdminToken_WarnsWhenItReplacesOne(t *testing.T) {
	f := newFixture(t)
	for _, token := range f.tokens {
		if err := f.store.DeleteAccess(ctx, token.Hash()); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	file := filepath.Join(dir, TokenFile)
	if err := os.WriteFile(file, []byte("lb-of-an-earlier-life\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.server.EnsureAdminToken(ctx, dir); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(file)
	if err != nil || strings.Contains(string(raw), "earlier") {
		t.Fatalf("%s, %v", raw, err)
	}
	log := f.log.String()
	if strings.Count(log, `"level":"warn"`) != 1 || !strings.Contains(log, file) || !strings.Contains(log, "is not valid any more") {
		t.Errorf("log %s", log)
	}
	if strings.Contains(log, strings.TrimSpace(string(raw))) || strings.Contains(log, "earlier-life") {
		t.Errorf("the log shows a token: %s", log)
	}
	// Its own file, when the store did not take the token at first, is none of an earlier life.
	for _, token := range f.store.AccessTokens() {
		if err := f.store.DeleteAccess(ctx, token.SHA256); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.server.EnsureAdminToken(ctx, dir); err != nil || strings.Count(f.log.String(), `"level":"warn"`) != 1 {
		t.Errorf("%v: log %s", err, f.log)
	}
}

func TestEvents_TellWhatHappens(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Heartbeat = 20 * time.Millisecond })
	f.hub.set(0, proxy("p1", 1))
	events := make(chan Event, 64)
	listening, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		done <- f.client(RoleViewer).Events(listening, func(e Event) error { events <- e; return nil })
	}()
	next := func(kind string, into any) Event {
		t.Helper()
		select {
		case e := <-events:
			if e.Type != kind || e.ID == "" {
				t.Fatalf("%s %s, want %s", e.Type, e.Data, kind)
			}
			if err := json.Unmarshal(e.Data, into); err != nil {
				t.Fatal(err)
			}
			return e
		case <-time.After(10 * time.Second):
			t.Fatalf("no %s", kind)
		}
		return Event{}
	}
	var any map[string]any
	next(EventReset, &any)
	res := f.applyShop()
	var c ConfigurationEvent
	next(EventConfiguration, &c)
	if c.Revision != res.Revision || len(c.Changes) != 3 || c.Changes[0].App != "desk" || c.Changes[2].Kind != "settings" {
		t.Errorf("%+v", c)
	}
	if _, err := f.admin.DrainInstance(ctx, "shop", "dify1", 0); err != nil {
		t.Fatal(err)
	}
	next(EventConfiguration, &c)
	if !slices.ContainsFunc(c.Changes, func(c Change) bool { return c.Kind == "instance" && c.Name == "dify1" && c.Action == "changed" }) || len(c.Changes) != 2 {
		t.Errorf("%+v", c)
	}
	n := proxy("p1", c.Revision)
	f.hub.set(0, n)
	var ne NodeEvent
	if next(EventNode, &ne); ne.Action != "in_force" || ne.ID != "p1" || ne.Revision != c.Revision {
		t.Errorf("%+v", ne)
	}
	n.Connected = false
	f.hub.set(0, n)
	if next(EventNode, &ne); ne.Action != "disconnected" {
		t.Errorf("%+v", ne)
	}
	n.Refused = "does not build"
	f.hub.set(0, n)
	if next(EventNode, &ne); ne.Action != "refused" || ne.Reason != n.Refused {
		t.Errorf("%+v", ne)
	}
	f.hub.set(0)
	if next(EventNode, &ne); ne.Action != "left" {
		t.Errorf("%+v", ne)
	}
	f.hub.set(0, proxy("p2", 0))
	if next(EventNode, &ne); ne.Action != "joined" || ne.ID != "p2" {
		t.Errorf("%+v", ne)
	}
	again := proxy("p2", 0)
	again.BootID = "another"
	f.hub.set(0, again)
	if next(EventNode, &ne); ne.Action != "restarted" || ne.ID != "p2" {
		t.Errorf("%+v", ne)
	}
	stop()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	enough := errors.New("enough")
	if err := f.admin.Events(ctx, func(Event) error { return enough }); err != enough {
		t.Error(err)
	}
	f.want(401, "", "GET", "/api/v1/events", "")
	f.want(200, RoleViewer, "HEAD", "/api/v1/events", "")
}

// Revisions of two stores can't be compared, so nothing can be said but that
// all may be different.
func TestEvents_AnotherEpochIsAReset(t *testing.T) {
	w := httptest.NewRecorder()
	e := &eventStream{w: w, rc: http.NewResponseController(w), snap: &lb.Snapshot{Epoch: "a", ConfigRevision: 9}}
	e.look(&lb.Snapshot{Epoch: "b", ConfigRevision: 3, Applications: []*lb.Application{lb.NewApplication("x")}})
	if got := w.Body.String(); strings.Count(got, "event: ") != 1 || !strings.Contains(got, "event: reset\ndata: {\"revision\":3}") {
		t.Error(got)
	}
}

func TestEvents_EndWithTheToken(t *testing.T) {
	closing, closeNow := context.WithCancel(ctx)
	// An hour without a heartbeat: neither silence nor events keep the stream.
	f := newFixture(t, func(o *Options) { o.Heartbeat, o.Closing = time.Hour, closing })
	started := make(chan struct{}, 1)
	ended := make(chan error)
	follow := func(role AccessRole) {
		go func() {
			ended <- f.client(role).Events(ctx, func(Event) error {
				select {
				case started <- struct{}{}:
				default:
				}
				return nil
			})
		}()
		<-started
	}
	over := func(what string) {
		t.Helper()
		select {
		case err := <-ended:
			if !errors.Is(err, lb.ErrUnavailable) {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: the stream goes on", what)
		}
	}
	follow(RoleViewer)
	if err := f.store.DeleteAccess(ctx, f.tokens[RoleViewer].Hash()); err != nil {
		t.Fatal(err)
	}
	over("a quiet one")
	follow(RoleOperator)
	busy, idle := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { // ends by idle: an event at every look at the nodes
		for n := int64(1); busy.Err() == nil; n++ {
			f.hub.set(0, proxy("p1", n))
			time.Sleep(eventNodePoll / 2)
		}
	})
	if err := f.store.DeleteAccess(ctx, f.tokens[RoleOperator].Hash()); err != nil {
		t.Fatal(err)
	}
	over("a busy one")
	idle()
	wg.Wait()
	follow(RoleAdmin)
	closeNow()
	over("one of a server that closes")
}

func TestClient_AsksForTheRest(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	f.hub.set(2, proxy("p1", 7))
	if st, err := f.admin.Status(ctx); err != nil || st.Nodes.Proxies != 1 || st.Applications["shop"].Instances["dify1"].Active != 2 {
		t.Errorf("%+v, %v", st, err)
	}
	if nodes, err := f.admin.Nodes(ctx); err != nil || len(nodes) != 1 || nodes[0].ConfigRevision != 7 {
		t.Errorf("%+v, %v", nodes, err)
	}
	open, err := NewClient(ClientOptions{Server: strings.TrimPrefix(f.http.URL, "http://")})
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if h, err := open.Health(ctx); err != nil || h.Status != "ok" || h.Version != "1.2.3" {
		t.Errorf("%+v, %v", h, err)
	}
	if h, err := open.Ready(ctx); err != nil || h.Checks["store"] != "ok" {
		t.Errorf("%+v, %v", h, err)
	}
	var p *ProblemError
	if _, err := open.Nodes(ctx); !errors.As(err, &p) || p.Status != 401 {
		t.Error(err)
	}
	if _, err := f.client(RoleViewer).CreateToken(ctx, "shop", TokenRequest{}); !errors.As(err, &p) || p.Status != 403 || !strings.Contains(err.Error(), "role admin") {
		t.Error(err)
	}
}

func TestReady_AsksTheOthers(t *testing.T) {
	f := newFixture(t, func(o *Options) {
		o.Checks = map[string]func(context.Context) error{"grpc": func(context.Context) error { return errors.New("not listening") }}
	})
	if r := f.want(503, "", "GET", "/readyz", ""); !strings.Contains(r.problem(t).Detail, "grpc: not listening") || r.header.Get("Retry-After") == "" {
		t.Error(r)
	}
}

func TestDashboard_GetsWhatIsNotTheAPIs(t *testing.T) {
	f := newFixture(t, func(o *Options) {
		o.Dashboard = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "dash ", r.URL.Path) })
	})
	for path, want := range map[string]string{"/": "dash /", "/assets/x.js": "dash /assets/x.js"} {
		if r := f.want(200, "", "GET", path, ""); r.body != want {
			t.Error(r)
		}
	}
	f.want(404, "", "GET", "/api/v1/nothing", "")
	f.want(404, "", "POST", "/", "")
}

func TestEvents_HealthAndHeartbeat(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Heartbeat = 10 * time.Millisecond })
	f.applyShop()
	leading, stop := context.WithCancel(ctx)
	defer stop()
	elected := make(chan store.Fence, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = f.store.Campaign(leading, "n1", func(ctx context.Context, fence store.Fence) error {
			elected <- fence
			<-ctx.Done()
			return nil
		})
	}()
	fence := <-elected
	req, _ := http.NewRequestWithContext(leading, "GET", f.http.URL+"/api/v1/events", nil)
	req.Header.Set("Authorization", "Bearer "+f.tokens[RoleViewer].Reveal())
	resp, err := f.http.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Error(resp.Header)
	}
	if err := f.store.PutHealth(ctx, "shop", "dify2", lb.Verdict{Health: lb.Unhealthy, Since: time.Now(), Reason: "no route"}, fence); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(seen.String(), `"to":"unhealthy"`) || !strings.Contains(seen.String(), "\n: \n\n") {
		n, err := resp.Body.Read(buf)
		if err != nil {
			t.Fatalf("%v after %s", err, seen.String())
		}
		seen.Write(buf[:n])
	}
	if !strings.Contains(seen.String(), `event: health`) || !strings.Contains(seen.String(), `"instance":"dify2","from":"unknown","to":"unhealthy","reason":"no route"`) {
		t.Error(seen.String())
	}
	stop()
	<-ended
}

// TestSecrets_Canary drives every call with secrets in everything that can
// hold one, and looks for them in every answer and in the log.
func TestSecrets_Canary(t *testing.T) {
	f := newFixture(t)
	const user, inst, user2 = "CANARYuser-0123456789", "CANARYinst-0123456789", "CANARYsecond-0123456789"
	canaries := []string{user, inst, user2, f.store.Current().ClusterKey.Reveal()}
	for _, token := range f.tokens {
		canaries = append(canaries, token.Reveal())
	}
	if f.store.Current().ClusterKey == "" {
		t.Fatal("no cluster key")
	}
	doc := `{"applications":{"shop":{"user_tokens":[{"token":"` + user + `"}],"instances":[{"name":"dify1","host":"h","token":"` + inst + `"}]}}}`
	app := `{"name":"a2","user_tokens":["` + user2 + `"],"instances":[{"name":"i","host":"h","token":"` + inst + `"}]}`
	bodies := map[string]string{
		"POST /apply": doc, "POST /apps": app, "PUT /apps/{app}": `{"instances":[{"name":"dify1","host":"h","token":"` + inst + `"}]}`,
		"PATCH /apps/{app}":       `{"instances":[{"name":"dify1","host":"h","token":"` + inst + `"}]}`,
		"POST /apps/{app}/tokens": `{"token":"` + user + `x"}`, "POST /apps/{app}/instances": `{"name":"j","host":"h","token":"` + inst + `"}`,
		"PUT /apps/{app}/instances/{name}": `{"host":"h","token":"` + inst + `"}`, "PATCH /apps/{app}/instances/{name}": `{"token":"` + inst + `2"}`,
		"POST /access": `{"name":"x","role":"viewer"}`,
	}
	broken := []string{
		`{"user_tokens":["` + user + ` "],"instances":[{"name":"` + `dify1","host":"h","token":{"a":"` + inst + `"}}]}`,
		`{"token":"` + inst + ` ","tokens":"` + user + `"}`, `{"token":["` + user + `"`, `{"token":7,"user_tokens":[["` + user + `"]]}`,
		`{"applications":{"shop":{"user_tokens":[{"token":"` + user + `","id":"` + `x","colour":1}],"instances":[{"token":"` + inst + `\u0001"}]}}}`,
	}
	check := func(what string, r reply) {
		for _, c := range canaries {
			if strings.Contains(r.body, c) || strings.Contains(fmt.Sprint(r.header), c) {
				t.Errorf("%s shows a secret: %s %v", what, r.body, r.header)
			}
		}
	}
	check("apply", f.want(200, RoleAdmin, "POST", "/api/v1/apply", doc))
	revision := fmt.Sprint(f.store.Current().ConfigRevision)
	fill := strings.NewReplacer("{app}", "shop", "{name}", "dify1", "{id}", lb.Secret(user).Hash().ID(), "{revision}", revision)
	queries := map[string]string{"/explain": "?token=" + user + "&user=u", "/apply": "?dry_run=true", "/rollback/{revision}": "?dry_run=true"}
	calls := slices.Clone(endpoints)
	slices.SortStableFunc(calls, func(a, b endpoint) int { return strings.Compare(order(a.method), order(b.method)) })
	for _, e := range calls {
		short := strings.TrimPrefix(e.path, Base)
		if short == "/events" {
			continue
		}
		what := e.method + " " + short
		path := fill.Replace(e.path)
		check(what, f.call(RoleAdmin, e.method, path+queries[short], bodies[what]))
		if e.body != nil {
			for _, b := range broken {
				check(what+" broken", f.call(RoleAdmin, e.method, path+queries[short], b))
			}
		}
		check(what+" refused", f.call(RoleAdmin, e.method, path+"?secret="+user, bodies[what]))
	}
	r := f.want(201, RoleAdmin, "POST", "/api/v1/access", `{"name":"once","role":"viewer"}`)
	var once AccessToken
	if err := json.Unmarshal([]byte(r.body), &once); err != nil || once.Token == "" {
		t.Fatal(r.body)
	}
	canaries = append(canaries, once.Token)
	check("access", f.want(200, RoleAdmin, "GET", "/api/v1/access", ""))
	f.applyDoc(doc)
	if r := f.want(200, RoleAdmin, "GET", "/api/v1/export?secrets=true", ""); !strings.Contains(r.body, inst) || strings.Contains(r.body, user) {
		t.Errorf("export with secrets: %s", r.body)
	}
	log := f.log.String()
	for _, c := range canaries {
		if strings.Contains(log, c) {
			t.Errorf("the log shows a secret: %s", log)
		}
	}
	if !strings.Contains(log, `"path":"/api/v1/explain"`) {
		t.Error("the log holds no calls: this proves nothing")
	}
}

func (f *fixture) applyDoc(doc string) { f.want(200, RoleAdmin, "POST", "/api/v1/apply", doc) }

// order asks before it changes, and deletes last.
func order(method string) string {
	return map[string]string{"GET": "0", "POST": "1", "PUT": "2", "PATCH": "3", "DELETE": "4"}[method]
}

func TestOpenAPI_DescribesEveryRoute(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Metrics = http.NotFoundHandler() })
	var d struct {
		OpenAPI    string
		Paths      map[string]map[string]map[string]any
		Components struct{ Schemas map[string]map[string]any }
	}
	if err := json.Unmarshal([]byte(f.want(200, "", "GET", "/api/v1/openapi.json", "").body), &d); err != nil || d.OpenAPI != "3.1.0" {
		t.Fatal(err, d.OpenAPI)
	}
	described := map[string]bool{}
	ids := map[string]bool{}
	for path, ops := range d.Paths {
		for method, op := range ops {
			described[strings.ToUpper(method)+" "+path] = true
			id := op["operationId"].(string)
			if ids[id] {
				t.Errorf("operation id %s twice", id)
			}
			ids[id] = true
		}
	}
	routed := map[string]bool{}
	err := chi.Walk(f.server.router, func(method, path string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if path != "/metrics" { // the plane's
			routed[method+" "+path] = true
		}
		return nil
	})
	if err != nil || !maps.Equal(described, routed) {
		t.Errorf("%v: described %v\nrouted %v", err, described, routed)
	}
	for name, s := range d.Components.Schemas {
		if s == nil || name == "" {
			t.Errorf("schema %q is empty", name)
		}
	}
}

func TestOpenAPI_AnswersAreAsDescribed(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	f.hub.set(1, proxy("p1", 5))
	var d map[string]any
	if err := json.Unmarshal(f.server.openapi, &d); err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("{app}", "shop", "{name}", "dify1", "{revision}", fmt.Sprint(f.store.Current().ConfigRevision))
	queries := map[string]string{"/explain": "?app=shop&user=u"}
	asked := 0
	for _, e := range endpoints {
		short := strings.TrimPrefix(e.path, Base)
		if e.method != "GET" || e.answer == nil {
			continue
		}
		r := f.want(200, RoleAdmin, "GET", fill.Replace(e.path)+queries[short], "")
		var v any
		if err := json.Unmarshal([]byte(r.body), &v); err != nil {
			t.Fatal(err)
		}
		s := dig(d, "paths", e.path, "get", "responses", "200", "content", "application/json", "schema")
		for _, fault := range conform(d, s, v, e.path) {
			t.Error(fault)
		}
		asked++
	}
	if asked < 15 {
		t.Errorf("only %d calls", asked)
	}
	// The description refuses what the server refuses, and takes what it takes.
	app := dig(d, "components", "schemas", "ApplicationDeclaration")
	for body, ok := range map[string]bool{
		`{}`: true, `{"colour":1}`: false, `{"instances":[{"name":"a","port":80}]}`: true, `{"instances":[{"port":"x"}]}`: false,
		`{"user_tokens":["t",{"token":"x","label":"l"}]}`: true, `{"user_tokens":[1]}`: false, `{"timeouts":{"read":5}}`: true, `{"queue":[]}`: false,
	} {
		var v any
		if err := json.Unmarshal([]byte(body), &v); err != nil {
			t.Fatal(err)
		}
		if faults := conform(d, app, v, "body"); (len(faults) == 0) != ok {
			t.Errorf("%s: %v", body, faults)
		}
	}
	p := f.want(404, RoleAdmin, "GET", "/api/v1/apps/nope", "")
	var v any
	_ = json.Unmarshal([]byte(p.body), &v)
	for _, fault := range conform(d, dig(d, "components", "schemas", "Problem"), v, "problem") {
		t.Error(fault)
	}
}

func TestOpenAPI_TheRealHubAnswersAsDescribed(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	hub := cluster.NewHub(cluster.HubOptions{NodeID: "n1", Log: zerolog.Nop()})
	snap := *f.store.Current()
	snap.Nodes = []lb.Node{{ID: "n1", Role: lb.RoleAdmin, BootID: "b", Started: time.Now()}, {ID: "p1", Role: lb.RoleProxy, BootID: "b", Started: time.Now()}}
	hub.SetSnapshot(&snap)
	f.server.hub = hub
	var d map[string]any
	if err := json.Unmarshal(f.server.openapi, &d); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/api/v1/status", "/status", "/api/v1/nodes", "/api/v1/explain"} {
		r := f.want(200, RoleViewer, "GET", path+map[bool]string{true: "?app=shop&user=u"}[strings.HasSuffix(path, "explain")], "")
		var v any
		if err := json.Unmarshal([]byte(r.body), &v); err != nil {
			t.Fatal(err)
		}
		for _, fault := range conform(d, dig(d, "paths", path, "get", "responses", "200", "content", "application/json", "schema"), v, path) {
			t.Error(fault)
		}
	}
	st, err := f.admin.Status(ctx)
	if err != nil || st.Status != "running" || st.Nodes.Admins != 1 || st.Applications["shop"].Instances["dify1"].Status != "unknown" {
		t.Errorf("%+v, %v", st, err)
	}
}

func dig(v any, keys ...string) any {
	for _, k := range keys {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	return v
}

// conform checks a value against the part of JSON Schema that we write.
func conform(doc map[string]any, s, v any, path string) []string {
	m, _ := s.(map[string]any)
	if m == nil {
		return []string{path + ": has no schema"}
	}
	if ref, ok := m["$ref"].(string); ok {
		return conform(doc, dig(doc, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...), v, path)
	}
	if any, ok := m["anyOf"].([]any); ok {
		for _, one := range any {
			if len(conform(doc, one, v, path)) == 0 {
				return nil
			}
		}
		return []string{path + ": is none of what it may be"}
	}
	var faults []string
	if types := typesOf(m["type"]); len(types) > 0 && !slices.ContainsFunc(types, func(t string) bool { return isType(t, v) }) {
		return []string{fmt.Sprintf("%s: %v is not of type %v", path, v, types)}
	}
	if enum, ok := m["enum"].([]any); ok && !slices.Contains(enum, v) {
		faults = append(faults, fmt.Sprintf("%s: %v is not one of %v", path, v, enum))
	}
	switch v := v.(type) {
	case []any:
		for i, item := range v {
			faults = append(faults, conform(doc, m["items"], item, fmt.Sprintf("%s[%d]", path, i))...)
		}
	case map[string]any:
		props, _ := m["properties"].(map[string]any)
		required, _ := m["required"].([]any)
		for _, k := range required {
			if _, ok := v[k.(string)]; !ok {
				faults = append(faults, fmt.Sprintf("%s.%s: is missing", path, k))
			}
		}
		for k, val := range v {
			switch more := m["additionalProperties"].(type) {
			case map[string]any:
				if props[k] == nil {
					faults = append(faults, conform(doc, more, val, path+"."+k)...)
					continue
				}
			default:
				if props[k] == nil && (more == false || props != nil) {
					faults = append(faults, path+"."+k+": is not described")
					continue
				}
			}
			if props[k] != nil {
				faults = append(faults, conform(doc, props[k], val, path+"."+k)...)
			}
		}
	}
	return faults
}

func typesOf(t any) []string {
	switch t := t.(type) {
	case string:
		return []string{t}
	case []any:
		var out []string
		for _, s := range t {
			out = append(out, s.(string))
		}
		return out
	}
	return nil
}

func isType(t string, v any) bool {
	switch v := v.(type) {
	case nil:
		return t == "null"
	case bool:
		return t == "boolean"
	case string:
		return t == "string"
	case float64:
		return t == "number" || (t == "integer" && v == float64(int64(v)))
	case []any:
		return t == "array"
	case map[string]any:
		return t == "object"
	}
	return false
}

func TestServer_Concurrent(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	f.hub.set(0, proxy("p1", 1<<40))
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 5 {
				name := fmt.Sprintf("app-%d-%d", i, j)
				if _, err := f.admin.PutApplication(ctx, name, []byte(`{"instances":[{"name":"a","host":"h","token":"app-t"}]}`)); err != nil {
					t.Error(err)
				}
				if _, err := f.admin.Application(ctx, name); err != nil { // what was written is read
					t.Error(err)
				}
				if _, err := f.admin.Explain(ctx, name, "u"); err != nil {
					t.Error(err)
				}
				if _, err := f.admin.Apply(ctx, []byte(shop), ApplyOptions{DryRun: j%2 == 0}); err != nil {
					t.Error(err)
				}
				if err := f.admin.DeleteApplication(ctx, name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(f.store.Current().Applications); n != 2 {
		t.Errorf("%d applications", n)
	}
}

func TestRollback_RefusesWhatWasBeforeTheFirstChange(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	if r := f.want(404, RoleAdmin, "POST", "/api/v1/rollback/1", ""); !strings.Contains(string(r.body), "before the first change") {
		t.Errorf("%s", r.body)
	}
	f.want(200, RoleAdmin, "GET", "/api/v1/apps/shop", "")
}
