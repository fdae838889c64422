package store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"difylb/pkg/lb"
	"difylb/pkg/store"
	"difylb/pkg/store/embedded"
	"difylb/pkg/store/storetest"
)

// link is a TCP relay between a store and etcd that can be cut or frozen.
type link struct {
	t      *testing.T
	l      net.Listener
	mu     sync.Mutex // guards target, frozen, conns, down
	target string
	frozen chan struct{} // nil: flowing; bytes wait until it is closed
	down   bool
	conns  map[net.Conn]struct{}
	wg     sync.WaitGroup
}

func newLink(t *testing.T, endpoint string) *link {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &link{t: t, l: l, target: strings.TrimPrefix(endpoint, "http://"), conns: make(map[net.Conn]struct{})}
	k.wg.Go(k.accept)
	t.Cleanup(func() {
		k.thaw()
		l.Close()
		k.cut()
		k.wg.Wait()
	})
	return k
}

func (k *link) url() string { return "http://" + k.l.Addr().String() }

func (k *link) accept() {
	for {
		in, err := k.l.Accept()
		if err != nil {
			return
		}
		k.mu.Lock()
		target, down := k.target, k.down
		k.mu.Unlock()
		out, err := net.Dial("tcp", target)
		if err != nil || down {
			in.Close()
			if out != nil {
				out.Close()
			}
			continue
		}
		k.mu.Lock()
		k.conns[in], k.conns[out] = struct{}{}, struct{}{}
		k.mu.Unlock()
		k.wg.Go(func() { k.pipe(in, out) })
		k.wg.Go(func() { k.pipe(out, in) })
	}
}

func (k *link) pipe(dst, src net.Conn) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		k.mu.Lock()
		frozen := k.frozen
		k.mu.Unlock()
		if frozen != nil {
			<-frozen
		}
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			if err != io.EOF {
				return
			}
			return
		}
	}
}

func (k *link) freeze() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.frozen == nil {
		k.frozen = make(chan struct{})
	}
}

func (k *link) thaw() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.frozen != nil {
		close(k.frozen)
		k.frozen = nil
	}
}

// cut resets the open connections; with stayDown, new ones as well.
func (k *link) cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c := range k.conns {
		c.Close()
	}
	clear(k.conns)
}

func (k *link) setDown(down bool, target string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.down = down
	if target != "" {
		k.target = strings.TrimPrefix(target, "http://")
	}
}

func bg(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestMirror_SurvivesCompactionWhileCutOff(t *testing.T) {
	srv := storetest.Own(t, "")
	t.Cleanup(func() { srv.Stop() })
	end := srv.Client()[0]
	k := newLink(t, end)
	prefix := storetest.Prefix(t)
	writer, reader := storetest.OpenAt(t, end, prefix), storetest.OpenAt(t, k.url(), prefix)
	cli := etcd(t, end)
	res := put(t, writer, application("shop", "a"), application("web", "x"))
	before := await(t, reader, res.Revision)

	snapshots, unsubscribe := reader.Subscribe()
	defer unsubscribe()
	<-snapshots
	k.setDown(true, "")
	k.cut()
	var last store.Result
	for i := range 20 {
		last = update(t, writer, func(d *store.Draft) {
			app := d.Application("shop").Clone()
			app.Instances[0].Weight = i + 2
			d.Put(app)
		})
	}
	update(t, writer, func(d *store.Draft) { d.Put(application("new", "n")) })
	resp, err := cli.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cli.Compact(t.Context(), resp.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the reader knows that it is stale", func() bool { return !reader.Status().Connected && reader.Lag() > 0 })
	if reader.Current() != before {
		t.Error("being cut off changed the snapshot")
	}
	k.setDown(false, "")
	snap := await(t, reader, last.Revision)
	eventually(t, "the reader is up to date", func() bool { snap = reader.Current(); return snap.Application("new") != nil })
	if snap.Application("shop").Instances[0].Weight != 21 {
		t.Errorf("weight %d", snap.Application("shop").Instances[0].Weight)
	}
	if snap.Application("web") != before.Application("web") {
		t.Error("listing again did not share what had not changed")
	}
	eventually(t, "the reader is connected", func() bool {
		return reader.Status().Connected && reader.Lag() == 0 && reader.Status().StaleSince.IsZero()
	})
}

func TestMirror_NoticesAWipedStore(t *testing.T) {
	first := storetest.Own(t, "")
	k := newLink(t, first.Client()[0])
	prefix := storetest.Prefix(t)
	s := storetest.OpenAt(t, k.url(), prefix)
	for i := range 30 {
		app := application("shop", "a")
		app.Instances[0].Weight = i + 1
		put(t, s, app)
	}
	before := s.Current()
	k.setDown(true, "")
	k.cut()
	if err := first.Stop(); err != nil {
		t.Log(err)
	}
	second := storetest.Own(t, "")
	t.Cleanup(func() { second.Stop() })
	admin := storetest.OpenAt(t, second.Client()[0], prefix)
	put(t, admin, application("web", "x"))
	if s.Current() != before {
		t.Fatal("the snapshot changed while etcd was away")
	}
	k.setDown(false, second.Client()[0])
	eventually(t, "the new store is seen", func() bool { return s.Current().Epoch == admin.Current().Epoch })
	snap := s.Current()
	if snap.Revision >= before.Revision || snap.Application("shop") != nil || snap.Application("web") == nil {
		t.Errorf("revision %d after %d, applications %v", snap.Revision, before.Revision, snap.Applications)
	}
	if snap.ConfigRevision != admin.Current().ConfigRevision {
		t.Errorf("config revision %d, want %d", snap.ConfigRevision, admin.Current().ConfigRevision)
	}
	put(t, s, application("more", "m"))
}

func TestMirror_NoticesARestoredOlderStore(t *testing.T) {
	// The same data directory as it was some revisions ago.
	dir := t.TempDir()
	srv := storetest.Own(t, dir)
	prefix := storetest.Prefix(t)
	k := newLink(t, srv.Client()[0])
	s := storetest.OpenAt(t, k.url(), prefix)
	old := put(t, s, application("shop", "a"))
	k.setDown(true, "")
	k.cut()
	stop(t, srv)
	backup := copyDir(t, dir)
	srv = storetest.Own(t, dir)
	k.setDown(false, srv.Client()[0])
	for i := range 10 {
		app := application("shop", "a")
		app.Instances[0].Weight = i + 2
		put(t, s, app)
	}
	before := s.Current()
	k.setDown(true, "")
	k.cut()
	stop(t, srv)
	srv = storetest.Own(t, backup)
	t.Cleanup(func() { srv.Stop() })
	k.setDown(false, srv.Client()[0])
	eventually(t, "the older state is seen", func() bool { return s.Current().ConfigRevision == old.Revision })
	snap := s.Current()
	if snap.Epoch != before.Epoch || snap.Revision >= before.Revision || snap.Application("shop").Instances[0].Weight != 1 {
		t.Errorf("revision %d after %d, weight %d", snap.Revision, before.Revision, snap.Application("shop").Instances[0].Weight)
	}
}

func stop(t *testing.T, srv *embedded.Server) {
	t.Helper()
	if err := srv.Stop(); err != nil {
		t.Fatal(err)
	}
}

func TestMirror_RecoversFromAHalfOpenConnection(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	k := newLink(t, end)
	writer, reader := storetest.OpenAt(t, end, prefix), storetest.OpenAt(t, k.url(), prefix)
	await(t, reader, put(t, writer, application("shop", "a")).Revision)
	k.freeze() // alive to the kernel, dead to us
	res := put(t, writer, application("web", "x"))
	eventually(t, "the reader knows that it is stale", func() bool { return !reader.Status().Connected })
	if reader.Current().Application("shop") == nil {
		t.Error("the snapshot was lost")
	}
	k.thaw()
	if await(t, reader, res.Revision).Application("web") == nil {
		t.Error("the change did not arrive")
	}
}

func TestMirror_AStormCoalesces(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	s := storetest.OpenAt(t, end, prefix)
	cli := etcd(t, end)
	put(t, s, application("shop", "a"))
	base := rawGet(t, cli, prefix+"/instances/shop/a")
	var rev int64
	for i := range 1000 {
		rev = rawPut(t, cli, prefix+"/instances/shop/a", strings.Replace(base, `"weight":1`, fmt.Sprintf(`"weight":%d`, i+2), 1))
	}
	snap := await(t, s, rev)
	if w := snap.Application("shop").Instances[0].Weight; w != 1001 {
		t.Errorf("weight %d", w)
	}
	if app := snap.Application("shop"); app.Revision != rev || app.Instances[0].Revision != rev {
		t.Errorf("revisions %d, %d; want %d", app.Revision, app.Instances[0].Revision, rev)
	}
}

func TestMirror_OrphansAreReported(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	s := storetest.OpenAt(t, end, prefix)
	cli := etcd(t, end)
	put(t, s, application("shop", "a"))
	if _, err := cli.Delete(t.Context(), prefix+"/apps/shop"); err != nil {
		t.Fatal(err)
	}
	snap := await(t, s, rawPut(t, cli, prefix+"/meta/x", "{}"))
	if snap.Application("shop") != nil || len(snap.Faults) != 1 || !strings.Contains(snap.Faults[0].Message, "no such key") {
		t.Errorf("faults %v", snap.Faults)
	}
	put(t, s, application("shop", "b"))
	snap = s.Current()
	if app := snap.Application("shop"); app == nil || len(app.Instances) != 1 || len(snap.Faults) != 0 {
		t.Errorf("after putting it back: %+v, faults %v", app, snap.Faults)
	}
}

func TestStore_HandMadeEditsAreNotOverwrittenUnseen(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	k := newLink(t, end)
	s := storetest.OpenAt(t, k.url(), prefix)
	cli := etcd(t, end)
	put(t, s, application("shop", "a"))
	base := rawGet(t, cli, prefix+"/instances/shop/a")
	calls := 0
	update(t, s, func(d *store.Draft) {
		if calls++; calls == 1 {
			// Behind the draft's back, after it took its base.
			rawPut(t, cli, prefix+"/instances/shop/a", strings.Replace(base, `"max_fails":3`, `"max_fails":9`, 1))
		}
		app := d.Application("shop").Clone()
		app.Instances[0].Weight = 4
		d.Put(app)
	})
	in := s.Current().Application("shop").Instances[0]
	if calls < 2 || in.MaxFails != 9 || in.Weight != 4 {
		t.Errorf("%d calls, %+v", calls, in)
	}
}

func TestUpdate_FindsOutWhatBecameOfIt(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	k := newLink(t, end)
	s := storetest.OpenAt(t, k.url(), prefix)
	put(t, s, application("shop", "a"))
	// The connection breaks again and again while writes are on their way:
	// each is either reported as failed and not there, or done once.
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(11 * time.Millisecond):
				k.cut()
			}
		}
	})
	done := 0
	for range 40 {
		_, err := s.Update(bg(t, 30*time.Second), audit, func(d *store.Draft) error {
			app := d.Application("shop").Clone()
			app.Instances[0].MaxInFlight++
			d.Put(app)
			return nil
		})
		switch {
		case err == nil:
			done++
		case !errors.Is(err, lb.ErrUnavailable):
			t.Errorf("error %v", err)
		}
	}
	close(stop)
	wg.Wait()
	check := storetest.OpenAt(t, end, prefix).Current().Application("shop").Instances[0].MaxInFlight
	if done == 0 || check != done {
		t.Errorf("%d of 40 reported done, %d done", done, check)
	}
	t.Logf("%d of 40 done", done)
}

// etcd hangs with its connections open: whoever waits for a change is told so
// soon, in words, and nothing is left behind that keeps later changes from
// being made.
func TestUpdate_AHangingEtcdIsSaidSoon(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	k := newLink(t, end)
	s := storetest.OpenAt(t, k.url(), prefix)
	put(t, s, application("shop", "a"))
	k.freeze()
	for what, edit := range map[string]func(*store.Draft) error{
		"a change":                 putAll([]*lb.Application{application("web", "x")}),
		"no change, which asks":    func(*store.Draft) error { return nil },
		"a refusal, which asks it": func(*store.Draft) error { return errors.New("refused") },
	} {
		begin := time.Now()
		_, err := s.Update(t.Context(), audit, edit)
		if d := time.Since(begin); d > 9*time.Second { // the bound is 6 s; the machine may be busy
			t.Errorf("%s: it took %s to say so", what, d)
		}
		if what == "a refusal, which asks it" {
			if err == nil {
				t.Error("a refusal was lost")
			}
			continue
		}
		if !errors.Is(err, lb.ErrUnavailable) || !strings.Contains(err.Error(), "etcd does not answer") || strings.Contains(err.Error(), "deadline") {
			t.Errorf("%s: %v", what, err)
		}
		if unknown := strings.Contains(err.Error(), "is not known"); unknown != (what == "a change") {
			t.Errorf("%s: %v", what, err)
		}
	}
	k.thaw()
	put(t, s, application("more", "m"))
	if s.Current().Application("more") == nil {
		t.Error("the change that came after it is not there")
	}
}

func TestStore_WithoutEtcd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := "http://" + l.Addr().String()
	l.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for name, end := range map[string]string{"refused": refused, "silent": "http://" + silent.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := store.Open(store.Options{Endpoints: []string{end}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { s.Run(ctx) })
			wg.Go(func() { s.Register(ctx, lb.Node{ID: "p", Role: lb.RoleProxy, BootID: "b"}) })
			wg.Go(func() {
				s.Campaign(ctx, "n", func(context.Context, store.Fence) error { return errors.New("elected by nobody") })
			})
			begin := time.Now()
			if err := s.Ping(ctx); !errors.Is(err, lb.ErrUnavailable) {
				t.Errorf("ping: %v", err)
			}
			_, err = s.Update(ctx, audit, func(*store.Draft) error { return nil })
			if !errors.Is(err, lb.ErrUnavailable) {
				t.Errorf("update: %v", err)
			}
			if name == "refused" && !strings.Contains(err.Error(), end) {
				t.Errorf("the error does not say where etcd should be: %v", err)
			}
			if _, err := s.History(ctx, 1, 0); !errors.Is(err, lb.ErrUnavailable) {
				t.Errorf("history: %v", err)
			}
			if d := time.Since(begin); d > 15*time.Second {
				t.Errorf("answers took %s", d)
			}
			if s.Current() != nil || s.Status().Connected || s.Status().LastError == "" || s.Lag() <= 0 {
				t.Errorf("status %+v", s.Status())
			}
			begin = time.Now()
			cancel()
			wg.Wait()
			if d := time.Since(begin); d > 4*time.Second {
				t.Errorf("ending took %s", d)
			}
			s.Close()
		})
	}
}

func TestStore_AuthFailuresAreClear(t *testing.T) {
	srv := storetest.Own(t, "")
	t.Cleanup(func() { srv.Stop() })
	end := srv.Client()[0]
	cli := etcd(t, end)
	ctx := bg(t, 30*time.Second)
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(cli.UserAdd(ctx, "root", "secret-root"))
	must(cli.UserGrantRole(ctx, "root", "root"))
	must(cli.RoleAdd(ctx, "reader"))
	must(cli.RoleGrantPermission(ctx, "reader", "/lb/", clientv3.GetPrefixRangeEnd("/lb/"), clientv3.PermissionType(clientv3.PermRead)))
	must(cli.UserAdd(ctx, "proxy", "secret-proxy"))
	must(cli.UserGrantRole(ctx, "proxy", "reader"))
	must(cli.AuthEnable(ctx))
	k := newLink(t, end)
	open := func(user string, password lb.Secret, prefix string) *store.Store {
		s, err := store.Open(store.Options{Endpoints: []string{k.url()}, Username: user, Password: password, Prefix: prefix})
		if err != nil {
			t.Fatal(err)
		}
		rctx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { defer close(done); s.Run(rctx) }()
		t.Cleanup(func() { cancel(); <-done; s.Close() })
		return s
	}
	admin := open("root", "secret-root", "/lb")
	if err := admin.Init(ctx); err != nil {
		t.Fatal(err)
	}
	res := put(t, admin, application("shop", "a"))
	proxy := open("proxy", "secret-proxy", "/lb")
	if await(t, proxy, res.Revision).Application("shop") == nil {
		t.Error("a read-only user does not see the configuration")
	}
	for _, c := range []struct {
		name, user string
		password   lb.Secret
		prefix     string
		want       string
	}{
		{"wrong password", "proxy", "secret-wrong", "/lb", "user name or password"},
		{"no password", "", "", "/lb", "user name"},
		{"other prefix", "proxy", "secret-proxy", "/other", "denied permission"},
	} {
		s := open(c.user, c.password, c.prefix)
		err := s.Ping(ctx)
		if !errors.Is(err, lb.ErrUnavailable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: ping: %v", c.name, err)
		}
		eventually(t, "the mirror says why", func() bool { return strings.Contains(s.Status().LastError, c.want) })
		if s.Current() != nil {
			t.Errorf("%s: a snapshot came from nowhere", c.name)
		}
		if err != nil && strings.Contains(err.Error(), "secret-") {
			t.Errorf("%s: the error shows the password: %v", c.name, err)
		}
	}
	if _, err := proxy.Update(ctx, audit, putAll([]*lb.Application{application("web", "x")})); !errors.Is(err, lb.ErrUnavailable) || !strings.Contains(err.Error(), "denied permission") {
		t.Errorf("a read-only user writes: %v", err)
	}
	// Permission taken away while the watch runs: an error, not an empty configuration.
	must(etcdAs(t, end, "root", "secret-root").RoleRevokePermission(ctx, "reader", "/lb/", clientv3.GetPrefixRangeEnd("/lb/")))
	k.cut() // a watch that is open stays open; one made anew is refused
	eventually(t, "the proxy says that it is denied", func() bool { return strings.Contains(proxy.Status().LastError, "denied permission") })
	if proxy.Current().Application("shop") == nil {
		t.Error("losing the permission emptied the configuration")
	}
}

func TestMirror_ThrowsASilentWatchAway(t *testing.T) {
	for name, whenOpen := range map[string]bool{"open": true, "opening": false} {
		t.Run(name, func(t *testing.T) { testSilentWatch(t, whenOpen) })
	}
}

func testSilentWatch(t *testing.T, whenOpen bool) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	writer := storetest.OpenAt(t, end, prefix)
	k := newLink(t, end)
	s, err := store.Open(store.Options{Endpoints: []string{end}, Prefix: prefix, CheckInterval: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	s.WatchVia(k.url())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	defer func() { cancel(); <-done; s.Close() }()
	res := put(t, writer, application("shop", "a"))
	await(t, s, res.Revision)
	if whenOpen {
		eventually(t, "the watch is open", func() bool {
			rev := rawPut(t, etcd(t, end), prefix+"/meta/x", "{}")
			return await(t, s, rev) != nil && s.Status().Connected
		})
	}
	k.freeze()
	res = put(t, writer, application("web", "x"))
	eventually(t, "the silence is noticed", func() bool { return strings.Contains(s.Status().LastError, "silent") })
	if s.Current().Application("shop") == nil {
		t.Error("the configuration was lost")
	}
	k.thaw()
	if await(t, s, res.Revision).Application("web") == nil {
		t.Error("the change did not arrive")
	}
}

func TestStore_OutOfSpaceIsSaid(t *testing.T) {
	srv := embedded.New(embedded.Options{
		DataDir: t.TempDir(), ListenClient: "http://127.0.0.1:0", ListenPeer: "http://127.0.0.1:0", QuotaBytes: 4 << 20, NoSync: true,
	})
	if err := srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Stop() })
	end, prefix := srv.Client()[0], storetest.Prefix(t)
	s := storetest.OpenAt(t, end, prefix)
	put(t, s, application("shop", "a"))
	cli := etcd(t, end)
	var err error
	// etcd looks at its file, which grows in batches, 100 ms apart.
	for i, deadline := 0, time.Now().Add(20*time.Second); err == nil && time.Now().Before(deadline); i++ {
		_, err = cli.Put(t.Context(), fmt.Sprintf("/fill/%d", i%20), strings.Repeat("x", 256<<10))
	}
	if err == nil {
		t.Fatal("the quota does not hold")
	}
	begin := time.Now()
	_, err = s.Update(t.Context(), audit, putAll([]*lb.Application{application("web", "x")}))
	if !errors.Is(err, lb.ErrUnavailable) || !strings.Contains(err.Error(), "NOSPACE") {
		t.Errorf("update: %v", err)
	}
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("it took %s to say so", d)
	}
	if alarms, err := s.Alarms(t.Context()); err != nil || len(alarms) != 1 || !strings.Contains(alarms[0], "NOSPACE") {
		t.Errorf("alarms %v, %v", alarms, err)
	}
	if err := s.Ping(t.Context()); err != nil {
		t.Errorf("reads still work, but ping says %v", err)
	}
}

func TestUpdate_ADamagedHeadOverwritesNoHistory(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	s := storetest.OpenAt(t, end, prefix)
	first := put(t, s, application("shop", "a"))
	put(t, s, application("web", "x"))
	rawPut(t, etcd(t, end), prefix+"/meta/config", "garbage")
	fresh := storetest.OpenAt(t, end, prefix)
	put(t, fresh, application("more", "m"))
	entries, err := fresh.History(t.Context(), 10, 0)
	if err != nil || len(entries) != 3 || entries[0].Seq != 3 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	doc, err := fresh.ConfigAt(t.Context(), first.Revision)
	if err != nil || len(doc.Applications) != 1 {
		t.Errorf("the first configuration: %+v, %v", doc, err)
	}
}
