package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"difylb/pkg/lb"
	"difylb/pkg/store"
	"difylb/pkg/store/storetest"
)

// many makes n applications of 5 instances and 10 tokens each.
func many(n int) []*lb.Application {
	apps := make([]*lb.Application, n)
	for i := range apps {
		app := lb.NewApplication(fmt.Sprintf("app-%05d", i))
		for k := range 5 {
			app.Instances = append(app.Instances, instance(fmt.Sprintf("dify%d", k)))
		}
		for k := range 10 {
			app.UserTokens = append(app.UserTokens, lb.NewUserToken(lb.Secret(fmt.Sprintf("user-token-%d-%d", i, k)), "web", false))
		}
		apps[i] = app
	}
	return apps
}

func putAll(apps []*lb.Application) func(*store.Draft) error {
	return func(d *store.Draft) error {
		for _, app := range apps {
			d.Put(app)
		}
		return nil
	}
}

func TestStaged_IsSeenAtOnceAndKeepsItsRevision(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	s, watcher := storetest.OpenAt(t, end, prefix), storetest.OpenAt(t, end, prefix)
	cli := etcd(t, end)
	old := put(t, s, application("old", "a"))

	changed, unsubscribe := watcher.Subscribe()
	defer unsubscribe()
	stop := make(chan struct{})
	var seen sync.Map
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-changed:
				seen.Store(len(watcher.Current().Applications), true)
			case <-stop:
				return
			}
		}
	})
	apps := many(100)
	res, err := s.Update(t.Context(), audit, func(d *store.Draft) error {
		d.Delete("old")
		return putAll(apps)(d)
	})
	if err != nil {
		t.Fatal(err)
	}
	snap := await(t, watcher, res.Revision)
	if len(snap.Applications) != 100 || len(res.Changes()) != 1603 {
		t.Errorf("%d applications, %d changes", len(snap.Applications), len(res.Changes()))
	}
	if snap.ConfigRevision != res.Revision || snap.Applications[7].Revision != res.Revision || snap.Applications[7].Instances[2].Revision != res.Revision {
		t.Errorf("revision %d, application %d, instance %d; want %d", snap.ConfigRevision, snap.Applications[7].Revision, snap.Applications[7].Instances[2].Revision, res.Revision)
	}
	// Whoever lists after it was rolled forward sees the same revisions, and
	// rolling forward changed nothing for those who watched.
	rev := rawPut(t, cli, prefix+"/meta/marker", "{}")
	fresh := storetest.OpenAt(t, end, prefix)
	after := await(t, watcher, rev)
	if after.Applications[7] != snap.Applications[7] {
		t.Error("rolling forward made another application of the same one")
	}
	now := await(t, fresh, rev)
	if now.Applications[7].Revision != res.Revision || now.ConfigRevision != res.Revision {
		t.Errorf("after the roll: application %d, configuration %d; want %d", now.Applications[7].Revision, now.ConfigRevision, res.Revision)
	}
	if fresh.Keys() != watcher.Keys() {
		t.Errorf("%d keys listed, %d watched", fresh.Keys(), watcher.Keys())
	}
	close(stop)
	wg.Wait()
	seen.Range(func(n, _ any) bool {
		if n != 0 && n != 1 && n != 100 {
			t.Errorf("a snapshot of %d applications was seen", n)
		}
		return true
	})
	// A small change on top has its own revision, and only where it touched.
	next := update(t, s, func(d *store.Draft) {
		app := d.Application("app-00007").Clone()
		app.Instances[2].Weight = 9
		d.Put(app)
	})
	app := s.Current().Applications[7]
	if app.Revision != next.Revision || app.Instances[2].Revision != next.Revision || app.Instances[1].Revision != res.Revision {
		t.Errorf("application %d, changed %d, other %d; want %d %d %d", app.Revision, app.Instances[2].Revision, app.Instances[1].Revision, next.Revision, next.Revision, res.Revision)
	}
	// History and undo reach through it.
	e, err := s.HistoryAt(t.Context(), res.Revision)
	if err != nil || len(e.Changes) != 1603 || e.Count != 1603 {
		t.Errorf("history: %d changes, count %d, %v", len(e.Changes), e.Count, err)
	}
	doc, err := s.ConfigAt(t.Context(), old.Revision)
	if err != nil || len(doc.Applications) != 1 || doc.Applications["old"] == nil {
		t.Errorf("configuration before: %+v, %v", doc, err)
	}
}

var errKilled = errors.New("killed")

// crashAt counts the steps of a change and ends it at the n-th.
func crashAt(n int) (func(string) error, func() bool) {
	var mu sync.Mutex
	count, crashed := 0, false
	return func(string) error {
			mu.Lock()
			defer mu.Unlock()
			count++
			if count >= n { // a dead process does nothing more
				crashed = true
				return errKilled
			}
			return nil
		}, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return crashed
		}
}

func TestStaged_CrashAtEveryStepIsAllOrNothing(t *testing.T) {
	end := storetest.Etcd(t)
	cli := etcd(t, end)
	apps := many(60) // several chunks' worth of transactions
	for i := range apps {
		apps[i].Check.ExpectBody = strings.Repeat("x", 20_000) // and several chunks
	}
	for n := 1; ; n++ {
		prefix := storetest.Prefix(t)
		s := storetest.OpenAt(t, end, prefix)
		put(t, s, application("old", "a"))
		step, crashed := crashAt(n)
		s.Step(step)
		_, err := s.Update(t.Context(), audit, func(d *store.Draft) error {
			d.Delete("old")
			return putAll(apps)(d)
		})
		s.Step(nil)
		if !crashed() {
			if err != nil {
				t.Fatal(err)
			}
			if n < 12 {
				t.Errorf("only %d steps; the change is too small for this test", n)
			}
			t.Logf("%d steps", n-1)
			return
		}
		// Whoever comes next, having seen nothing or all of it.
		next := storetest.OpenAt(t, end, prefix) // Init rolls forward
		rev := rawPut(t, cli, prefix+"/meta/marker", "{}")
		for name, st := range map[string]*store.Store{"watching": s, "fresh": next} {
			snap := await(t, st, rev)
			all, nothing := len(snap.Applications) == 60 && snap.Application("old") == nil, len(snap.Applications) == 1 && snap.Application("old") != nil
			if !all && !nothing {
				t.Fatalf("step %d: %s store: %d applications", n, name, len(snap.Applications))
			}
			if (err == nil) != all && err == nil {
				t.Errorf("step %d: reported as done, but it is not", n)
			}
			if len(snap.Faults) > 0 {
				t.Errorf("step %d: faults %v", n, snap.Faults)
			}
		}
		if s.Keys() != next.Keys() {
			t.Errorf("step %d: %d keys watched, %d listed", n, s.Keys(), next.Keys())
		}
		if raw := rawGet(t, cli, prefix+"/meta/pending"); raw != "" {
			t.Errorf("step %d: still pending: %s", n, raw)
		}
		// And it can go on from there.
		put(t, next, application("more", "a"))
		if next.Current().Application("more") == nil {
			t.Errorf("step %d: the next change is not there", n)
		}
	}
}

func TestStaged_NextWriterRollsForward(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	s, other := storetest.OpenAt(t, end, prefix), storetest.OpenAt(t, end, prefix)
	s.Step(func(step string) error {
		if strings.HasPrefix(step, "roll 0.3") {
			return errKilled
		}
		return nil
	})
	res, err := s.Update(t.Context(), audit, putAll(many(50)))
	if err != nil {
		t.Fatalf("a change that is in force was reported as failed: %v", err)
	}
	s.Step(nil)
	if rawGet(t, etcd(t, end), prefix+"/meta/pending") == "" {
		t.Fatal("nothing pending; the test tests nothing")
	}
	await(t, other, res.Revision)
	// A verdict on an instance whose key may not be there yet.
	lead(t, other, "n1", func(ctx context.Context, f store.Fence) {
		if err := other.PutHealth(ctx, "app-00049", "dify4", lb.Verdict{Health: lb.Healthy}, f); err != nil {
			t.Error(err)
		}
	})
	update(t, other, func(d *store.Draft) {
		app := d.Application("app-00049").Clone()
		app.Instances[0].Weight = 5
		d.Put(app)
	})
	snap := other.Current()
	if len(snap.Applications) != 50 || snap.Application("app-00049").Instances[0].Weight != 5 {
		t.Errorf("%d applications", len(snap.Applications))
	}
}

func TestStaged_LitterIsSwept(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	s := storetest.OpenAt(t, end, prefix)
	cli := etcd(t, end)
	rawPut(t, cli, prefix+"/staging/dead/c/000000", `{"records":[]}`)
	lease, err := cli.Grant(t.Context(), 60)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cli.Put(t.Context(), prefix+"/staging/alive/owner", "{}", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	rawPut(t, cli, prefix+"/staging/alive/c/000000", `{"records":[]}`)
	if err := s.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rawGet(t, cli, prefix+"/staging/dead/c/000000") != "" {
		t.Error("a dead writer's chunk is still there")
	}
	if rawGet(t, cli, prefix+"/staging/alive/c/000000") == "" {
		t.Error("a living writer's chunk was swept")
	}
}

func TestStaged_TenThousandApplications(t *testing.T) {
	if testing.Short() {
		t.Skip("takes several seconds")
	}
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	s := storetest.OpenAt(t, end, prefix)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	begin := time.Now()
	res, err := s.Update(ctx, audit, putAll(many(10_000)))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("applied 10,000 applications, 100,000 tokens, 50,000 instances in %s", time.Since(begin))
	begin = time.Now()
	fresh := storetest.OpenAt(t, end, prefix)
	t.Logf("listed in %s", time.Since(begin))
	snap := await(t, fresh, res.Revision)
	instances, tokens := 0, 0
	for _, app := range snap.Applications {
		instances += len(app.Instances)
		tokens += len(app.UserTokens)
	}
	if len(snap.Applications) != 10_000 || instances != 50_000 || tokens != 100_000 || len(snap.Faults) > 0 {
		t.Errorf("%d applications, %d instances, %d tokens, %d faults", len(snap.Applications), instances, tokens, len(snap.Faults))
	}
	begin = time.Now()
	update(t, s, func(d *store.Draft) {
		app := d.Application("app-05000").Clone()
		app.Instances[0].Weight = 2
		d.Put(app)
	})
	t.Logf("one small change in %s", time.Since(begin))
	begin = time.Now()
	doc, err := s.ConfigAt(ctx, res.Revision-1)
	if err != nil || len(doc.Applications) != 0 {
		t.Errorf("before: %v", err)
	}
	t.Logf("undone in %s", time.Since(begin))
}

// lead runs f once as the elected leader.
func lead(t testing.TB, s *store.Store, node string, f func(context.Context, store.Fence)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ran := false
	err := s.Campaign(ctx, node, func(ctx context.Context, fence store.Fence) error {
		ran = true
		f(ctx, fence)
		return nil
	})
	if err != nil || !ran {
		t.Fatalf("campaign: ran %t, %v", ran, err)
	}
}
