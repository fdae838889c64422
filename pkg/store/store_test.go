package store_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"difylb/pkg/lb"
	"difylb/pkg/store"
	"difylb/pkg/store/storetest"
)

func instance(name string) lb.Instance {
	in := lb.Instance{Name: name, Host: "10.0.0.1", Port: 80, Token: lb.Secret("app-secret-of-" + name)}
	in.SetDefaults()
	return in
}

func application(name string, instances ...string) *lb.Application {
	app := lb.NewApplication(name)
	app.UserTokens = []lb.UserToken{lb.NewUserToken(lb.Secret("user-token-of-"+name), "web", false)}
	for _, in := range instances {
		app.Instances = append(app.Instances, instance(in))
	}
	return app
}

var audit = lb.Audit{Who: "test", From: "local", Action: "apply"}

func update(t testing.TB, s *store.Store, edit func(*store.Draft)) store.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	res, err := s.Update(ctx, audit, func(d *store.Draft) error { edit(d); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func put(t testing.TB, s *store.Store, apps ...*lb.Application) store.Result {
	t.Helper()
	return update(t, s, func(d *store.Draft) {
		for _, app := range apps {
			d.Put(app)
		}
	})
}

// etcd returns a client of its own for looking under the store.
func etcd(t testing.TB, endpoint string) *clientv3.Client {
	t.Helper()
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cli.Close() })
	return cli
}

func rawPut(t testing.TB, cli *clientv3.Client, key, value string) int64 {
	t.Helper()
	resp, err := cli.Put(t.Context(), key, value)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

func rawGet(t testing.TB, cli *clientv3.Client, key string) string {
	t.Helper()
	resp, err := cli.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

func await(t testing.TB, s *store.Store, rev int64) *lb.Snapshot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.WaitRevision(ctx, rev); err != nil {
		t.Fatal(err)
	}
	return s.Current()
}

// eventually waits for a condition that Subscribe does not announce.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func TestUpdate_IsSeenByEveryStore(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	a, b := storetest.OpenAt(t, end, prefix), storetest.OpenAt(t, end, prefix)
	res := put(t, a, application("shop", "dify1", "dify2"))
	if !res.Changed || len(res.Changes()) != 4 {
		t.Errorf("result %+v, want 4 changes", res)
	}
	for _, s := range []*store.Store{a, b} {
		snap := await(t, s, res.Revision)
		app := snap.Application("shop")
		if app == nil || len(app.Instances) != 2 || app.Instances[1].Name != "dify2" || len(app.UserTokens) != 1 {
			t.Fatalf("application %+v", app)
		}
		if app.Instances[0].Token != "app-secret-of-dify1" || app.UserTokens[0].Label != "web" || app.UserTokens[0].Created.IsZero() {
			t.Errorf("application %+v", app)
		}
		if app.Revision != res.Revision || app.Instances[0].Revision != res.Revision || snap.ConfigRevision != res.Revision {
			t.Errorf("revisions %d %d %d, want %d", app.Revision, app.Instances[0].Revision, snap.ConfigRevision, res.Revision)
		}
		if snap.Epoch == "" || snap.ClusterKey == "" || len(snap.Faults) > 0 {
			t.Errorf("snapshot %+v", snap)
		}
	}
	if a.Current().Epoch != b.Current().Epoch {
		t.Error("the epochs differ")
	}
}

func TestUpdate_WithoutChangeWritesNothing(t *testing.T) {
	s := storetest.Open(t)
	first := put(t, s, application("shop", "dify1"))
	again := put(t, s, s.Current().Application("shop").Clone())
	if again.Changed || again.Revision != first.Revision {
		t.Errorf("second put: %+v", again)
	}
	entries, err := s.History(t.Context(), 10, 0)
	if err != nil || len(entries) != 1 {
		t.Errorf("%d history entries, %v", len(entries), err)
	}
	res := update(t, s, func(d *store.Draft) { d.Delete("nobody") })
	if res.Changed {
		t.Error("deleting nothing changed something")
	}
}

func TestUpdate_TouchesOnlyWhatChanged(t *testing.T) {
	s := storetest.Open(t)
	first := put(t, s, application("shop", "a", "b", "c"), application("web", "x"))
	before := s.Current()
	res := update(t, s, func(d *store.Draft) {
		app := d.Application("shop").Clone()
		app.Instances[1].Weight = 7
		d.Put(app)
	})
	after := s.Current()
	app := after.Application("shop")
	if app.Revision != res.Revision || app.Instances[1].Revision != res.Revision || app.Instances[0].Revision != first.Revision {
		t.Errorf("revisions: app %d, b %d, a %d", app.Revision, app.Instances[1].Revision, app.Instances[0].Revision)
	}
	if before.Application("web") != after.Application("web") {
		t.Error("an application that did not change is not shared")
	}
	if len(res.Changes()) != 1 || res.Changes()[0].Kind != "instance" || res.Changes()[0].Name != "b" || res.Changes()[0].Action != "changed" {
		t.Errorf("changes %+v", res.Changes())
	}
	if strings.Contains(string(res.Changes()[0].After), "app-secret") {
		t.Errorf("a change shows a secret: %s", res.Changes()[0].After)
	}
}

func TestUpdate_KeepsDeclaredOrder(t *testing.T) {
	s := storetest.Open(t)
	put(t, s, application("shop", "a", "b", "c"))
	orders := [][]string{{"z", "a", "b", "c"}, {"c", "a", "z"}, {"a", "c", "z", "b"}, {"b"}, {"q", "b", "a"}}
	for _, order := range orders {
		app := application("shop", order...)
		put(t, s, app)
		var got []string
		for _, in := range s.Current().Application("shop").Instances {
			got = append(got, in.Name)
		}
		if fmt.Sprint(got) != fmt.Sprint(order) {
			t.Errorf("order %v, want %v", got, order)
		}
	}
}

func TestUpdate_DeleteTakesEverythingAlong(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	s := storetest.OpenAt(t, end, prefix)
	cli := etcd(t, end)
	put(t, s, application("shop", "a", "b"), application("web", "x"))
	rawPut(t, cli, prefix+"/health/shop/a", `{"health":"unhealthy","since":"2026-01-01T00:00:00Z"}`)
	update(t, s, func(d *store.Draft) { d.Delete("shop") })
	if s.Current().Application("shop") != nil || len(s.Current().Health) != 0 {
		t.Errorf("left over: %+v", s.Current())
	}
	for _, dir := range []string{"/apps/shop", "/instances/shop/", "/health/shop/"} {
		resp, err := cli.Get(t.Context(), prefix+dir, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil || resp.Count != 0 {
			t.Errorf("%d keys left under %s, %v", resp.Count, dir, err)
		}
	}
	if _, ok := owner(t, s, "user-token-of-shop"); ok {
		t.Error("the token still has an owner")
	}
	if app, ok := owner(t, s, "user-token-of-web"); app != "web" || !ok {
		t.Errorf("owner of web's token: %q", app)
	}
}

func owner(t *testing.T, s *store.Store, token lb.Secret) (app string, ok bool) {
	t.Helper()
	update(t, s, func(d *store.Draft) { app, ok = d.TokenOwner(token.Hash()) })
	return app, ok
}

func TestUpdate_TokenBelongsToOneApplication(t *testing.T) {
	s := storetest.Open(t)
	shop, web := application("shop", "a"), application("web", "x")
	put(t, s, shop, web)
	shared := shop.UserTokens[0]
	thief := web.Clone()
	thief.UserTokens = append(thief.UserTokens, shared)
	_, err := s.Update(t.Context(), audit, func(d *store.Draft) error { d.Put(thief); return nil })
	if !errors.Is(err, lb.ErrInvalid) || !strings.Contains(err.Error(), `"shop"`) {
		t.Fatalf("error %v, want invalid, naming shop", err)
	}
	// In one change it may move, whichever is put first.
	for _, shopFirst := range []bool{true, false} {
		update(t, s, func(d *store.Draft) {
			bare := shop.Clone()
			bare.UserTokens = nil
			if shopFirst {
				d.Put(bare)
			}
			d.Put(thief)
			if !shopFirst {
				d.Put(bare)
			}
			if app, ok := d.TokenOwner(shared.SHA256); app != "web" || !ok {
				t.Errorf("owner in the draft: %q", app)
			}
		})
		if n := len(s.Current().Application("web").UserTokens); n != 2 {
			t.Errorf("web has %d tokens", n)
		}
		if n := len(s.Current().Application("shop").UserTokens); n != 0 {
			t.Errorf("shop has %d tokens", n)
		}
		put(t, s, shop, web)
	}
}

func TestUpdate_RefusesWhatWouldNotReadBack(t *testing.T) {
	s := storetest.Open(t)
	app := application("shop", "a")
	app.Instances[0].Weight = -1
	app.Check.ExpectStatus = "2xx"
	_, err := s.Update(t.Context(), audit, func(d *store.Draft) error { d.Put(app); return nil })
	var fs lb.Faults
	if !errors.As(err, &fs) || len(fs) != 2 {
		t.Errorf("error %v, want two faults", err)
	}
}

func TestUpdate_EditErrorPasses(t *testing.T) {
	s := storetest.Open(t)
	want := lb.Errorf(lb.ErrNotFound, "no such thing")
	if _, err := s.Update(t.Context(), audit, func(*store.Draft) error { return want }); err != want {
		t.Errorf("error %v", err)
	}
}

func TestUpdate_UnknownFieldsSurvive(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	s := storetest.OpenAt(t, end, prefix)
	cli := etcd(t, end)
	put(t, s, application("shop", "a"))
	inject := func(key, from, to string) {
		old := rawGet(t, cli, prefix+key)
		next := strings.Replace(old, from, to, 1)
		if next == old {
			t.Fatalf("%q is not in %s", from, old)
		}
		await(t, s, rawPut(t, cli, prefix+key, next))
	}
	inject("/apps/shop", `"consistent_hash":{`, `"new_top":{"x":[1,2]},"consistent_hash":{"new_deep":"v<1>",`)
	inject("/instances/shop/a", `{`, `{"zone":"eu",`)
	inject("/apps/shop", `"retry":{`, `"retry":{"budget":0.2,`)
	update(t, s, func(d *store.Draft) {
		app := d.Application("shop").Clone()
		app.Retry.Attempts = 1
		app.Instances[0].Weight = 3
		d.Put(app)
	})
	var app struct {
		NewTop struct{ X []int } `json:"new_top"`
		Hash   struct {
			NewDeep string `json:"new_deep"`
		} `json:"consistent_hash"`
		Retry struct {
			Budget   float64
			Attempts int
		}
	}
	raw := rawGet(t, cli, prefix+"/apps/shop")
	if err := json.Unmarshal([]byte(raw), &app); err != nil || len(app.NewTop.X) != 2 || app.Hash.NewDeep != "v<1>" || app.Retry.Budget != 0.2 || app.Retry.Attempts != 1 {
		t.Errorf("%s: %v", raw, err)
	}
	if raw := rawGet(t, cli, prefix+"/instances/shop/a"); !strings.Contains(raw, `"zone":"eu"`) || !strings.Contains(raw, `"weight":3`) {
		t.Error(raw)
	}
}

func TestUpdate_ConflictingWritersLoseNothing(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	stores := []*store.Store{storetest.OpenAt(t, end, prefix), storetest.OpenAt(t, end, prefix)}
	await(t, stores[1], put(t, stores[0], application("shop", "a")).Revision)
	const each = 200
	errs := make(chan error, 2*each)
	for i, s := range stores {
		for n := range each {
			go func() {
				_, err := s.Update(t.Context(), audit, func(d *store.Draft) error {
					app := d.Application("shop").Clone()
					app.Instances[0].MaxInFlight++
					app.UserTokens = append(app.UserTokens, lb.NewUserToken(lb.Secret(fmt.Sprintf("user-token-%d-%d", i, n)), "", false))
					d.Put(app)
					return nil
				})
				errs <- err
			}()
		}
	}
	for range 2 * each {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	snap := stores[0].Current()
	snap = await(t, stores[1], snap.Revision)
	app := snap.Application("shop")
	if app.Instances[0].MaxInFlight != 2*each || len(app.UserTokens) != 2*each+1 {
		t.Errorf("%d increments and %d tokens, want %d and %d", app.Instances[0].MaxInFlight, len(app.UserTokens), 2*each, 2*each+1)
	}
}

func TestPoisonedKey_KeepsItsLastGoodValue(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	s := storetest.OpenAt(t, end, prefix)
	cli := etcd(t, end)
	put(t, s, application("shop", "a", "b"), application("web", "x"))
	token := prefix + "/tokens/" + lb.Secret("user-token-of-shop").Hash().String()
	for _, c := range []struct{ key, value string }{
		{prefix + "/instances/shop/a", `{"name":"a","weight":`},
		{prefix + "/instances/shop/b", `{"name":"b","host":"h","port":80,"token":"t","state":"hibernating"}`},
		{prefix + "/apps/web", `{"name":"other"}`},
		{prefix + "/apps/shop", `null`},
		{token, `{"app":7}`},
		{prefix + "/settings", `{"rate_limit":{"per_ip":{"rate":-1,"burst":1}}}`},
		{prefix + "/health/shop/a", `{"health":"sleepy"}`},
		{prefix + "/nodes/proxy/p1", `{"id":"p2","role":"proxy"}`},
		{prefix + "/meta/epoch", `[]`},
	} {
		before := s.Current()
		good := rawGet(t, cli, c.key)
		snap := await(t, s, rawPut(t, cli, c.key, c.value))
		if len(snap.Faults) != 1 || !strings.HasPrefix(c.key, snap.Faults[0].Path) {
			t.Errorf("%s: faults %v", c.key, snap.Faults)
		}
		if strings.Contains(snap.Faults.Error(), "app-secret") {
			t.Errorf("a fault shows a secret: %v", snap.Faults)
		}
		if len(snap.Applications) != 2 || snap.Application("shop") != before.Application("shop") || snap.Epoch != before.Epoch {
			t.Errorf("%s: the last good value is gone", c.key)
		}
		// A store that never saw the good value leaves it out, and nothing else.
		fresh := storetest.OpenAt(t, end, prefix).Current()
		if len(fresh.Faults) == 0 || fresh.Application("web") == nil && c.key != prefix+"/apps/web" {
			t.Errorf("%s: fresh store: %v", c.key, fresh.Faults)
		}
		if good == "" {
			if _, err := cli.Delete(t.Context(), c.key); err != nil {
				t.Fatal(err)
			}
			good = "{}" // a key to wait for
			await(t, s, rawPut(t, cli, prefix+"/meta/other", good))
		} else {
			await(t, s, rawPut(t, cli, c.key, good))
		}
		if fs := s.Current().Faults; len(fs) != 0 {
			t.Errorf("%s: still at fault: %v", c.key, fs)
		}
	}
}

func TestPoisonedKey_IsHealedByPuttingItsLastGoodValue(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	s := storetest.OpenAt(t, end, prefix)
	cli := etcd(t, end)
	shop := application("shop", "a", "b")
	settings := lb.Settings{}
	settings.RateLimit.PerIP = &lb.Rate{PerSecond: 5, Burst: 9}
	declare := func(d *store.Draft) {
		d.Put(shop)
		d.SetSettings(settings)
	}
	update(t, s, declare)
	for _, c := range []struct{ key, value string }{
		{"/instances/shop/a", `{"name":"a","weight":`},
		{"/instances/shop/b", `{"name":"b","host":"h","port":80,"token":"t","state":"hibernating"}`},
		{"/apps/shop", `null`},
		{"/tokens/" + lb.Secret("user-token-of-shop").Hash().String(), `{"app":7}`},
		{"/settings", `{"rate_limit":{"per_ip":{"rate":-1,"burst":1}}}`},
	} {
		key := prefix + c.key
		if snap := await(t, s, rawPut(t, cli, key, c.value)); len(snap.Faults) != 1 {
			t.Fatalf("%s: faults %v", c.key, snap.Faults)
		}
		res := update(t, s, declare)
		if !res.Changed || rawGet(t, cli, key) == c.value {
			t.Errorf("%s: put anew: %+v, and it still holds %s", c.key, res, rawGet(t, cli, key))
		}
		// One that never saw the value before reads it, too.
		fresh := storetest.OpenAt(t, end, prefix).Current()
		for who, snap := range map[string]*lb.Snapshot{"the store": s.Current(), "a fresh one": fresh} {
			app := snap.Application("shop")
			if len(snap.Faults) != 0 || app == nil || len(app.Instances) != 2 || len(app.UserTokens) != 1 || snap.Settings.RateLimit.PerIP == nil {
				t.Errorf("%s: %s has %+v, %+v, faults %v", c.key, who, app, snap.Settings, snap.Faults)
			}
		}
		if again := update(t, s, declare); again.Changed {
			t.Errorf("%s: a sound store was written to: %+v", c.key, again.Changes())
		}
	}
}

// A change that was made is not reported as trouble because its maker goes away.
func TestUpdate_IsNoWarningWhenItsMakerLeaves(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	var log bytes.Buffer
	s, err := store.Open(store.Options{Endpoints: []string{end}, Prefix: prefix, Log: zerolog.New(zerolog.SyncWriter(&log)).Level(zerolog.WarnLevel)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	k := newLink(t, end)
	s.WatchVia(k.url())
	running, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(running) }()
	defer func() { stop(); <-done }()
	await(t, s, 1)
	k.freeze() // the watch does not see the change
	ctx, leave := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() {
		_, err := s.Update(ctx, audit, func(d *store.Draft) error { d.Put(application("shop", "a")); return nil })
		over <- err
	}()
	cli := etcd(t, end)
	eventually(t, "the change is in etcd", func() bool { return rawGet(t, cli, prefix+"/apps/shop") != "" })
	leave()
	if err := <-over; err != nil {
		t.Logf("the change was made, and its answer lost: %v", err)
	}
	k.thaw()
	stop()
	<-done
	if strings.Contains(log.String(), "has not seen it yet") {
		t.Error(log.String())
	}
}
