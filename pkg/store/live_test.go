package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"difylb/pkg/lb"
	"difylb/pkg/store"
	"difylb/pkg/store/storetest"
)

func TestCampaign_OneLeadsAndHandsOverAtOnce(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	s := storetest.OpenAt(t, end, prefix)
	var leading atomic.Int32
	elected := make(chan string)
	var wg sync.WaitGroup
	cancels := make(map[string]context.CancelFunc)
	for i := range 3 {
		id := fmt.Sprintf("n%d", i)
		ctx, cancel := context.WithCancel(t.Context())
		cancels[id] = cancel
		wg.Go(func() {
			err := s.Campaign(ctx, id, func(ctx context.Context, _ store.Fence) error {
				if n := leading.Add(1); n != 1 {
					t.Errorf("%d lead at once", n)
				}
				elected <- id
				<-ctx.Done()
				leading.Add(-1)
				return nil
			})
			if err != nil {
				t.Errorf("campaign: %v", err)
			}
		})
	}
	for range 3 {
		id := <-elected
		eventually(t, "the mirror knows the leader", func() bool { return s.Leader() == id })
		begin := time.Now()
		cancels[id]()
		if len(cancels) > 1 {
			defer func() {
				if d := time.Since(begin); d > 30*time.Second {
					t.Errorf("hand-over took %s", d)
				}
			}()
		}
	}
	wg.Wait()
	eventually(t, "nobody leads", func() bool { return s.Leader() == "" })
}

func TestCampaign_AStaleLeaderIsRefused(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	k := newLink(t, end)
	old, next := storetest.OpenAt(t, k.url(), prefix), storetest.OpenAt(t, end, prefix)
	put(t, next, application("shop", "a"))
	good := lb.Verdict{Health: lb.Healthy, Since: time.Now().UTC(), By: "old"}
	bad := lb.Verdict{Health: lb.Unhealthy, Since: time.Now().UTC(), By: "next"}

	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	fences := make(chan store.Fence, 2)
	lost := make(chan struct{})
	octx, endOld := context.WithCancel(ctx)
	defer endOld()
	wg.Go(func() {
		var once sync.Once
		_ = old.Campaign(octx, "old", func(ctx context.Context, f store.Fence) error {
			if err := old.PutHealth(ctx, "shop", "a", good, f); err != nil {
				t.Errorf("the leader is refused: %v", err)
			}
			fences <- f
			<-ctx.Done()
			once.Do(func() { close(lost) })
			<-octx.Done()
			return nil
		})
	})
	stale := <-fences
	k.freeze() // as if the process had been paused
	err := next.Campaign(ctx, "next", func(ctx context.Context, f store.Fence) error {
		return next.PutHealth(ctx, "shop", "a", bad, f)
	})
	if err != nil {
		t.Fatal(err)
	}
	<-lost // by its own clock, no answer being an answer
	k.thaw()
	eventually(t, "the link is back", func() bool { return old.Ping(ctx) == nil })
	if err := old.PutHealth(ctx, "shop", "a", good, stale); !errors.Is(err, lb.ErrConflict) {
		t.Errorf("the stale leader's write: %v", err)
	}
	if err := old.PutCounters(ctx, "p1", map[int][]byte{0: {1}}, stale); !errors.Is(err, lb.ErrConflict) {
		t.Errorf("the stale leader's counters: %v", err)
	}
	if err := next.PutHealth(ctx, "shop", "a", good, store.Fence{}); !errors.Is(err, lb.ErrConflict) {
		t.Errorf("a write without a fence: %v", err)
	}
	eventually(t, "the new leader's verdict stands", func() bool { return next.Current().HealthOf("shop", "a").By == "next" })
	endOld()
}

func TestHealth_FollowsTheInstance(t *testing.T) {
	s := storetest.Open(t)
	put(t, s, application("shop", "a", "b"))
	ctx := t.Context()
	lead(t, s, "n", func(_ context.Context, f store.Fence) {
		for _, name := range []string{"a", "b"} {
			if err := s.PutHealth(ctx, "shop", name, lb.Verdict{Health: lb.TokenRejected}, f); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.PutHealth(ctx, "shop", "gone", lb.Verdict{Health: lb.Healthy}, f); !errors.Is(err, lb.ErrNotFound) {
			t.Errorf("health of no instance: %v", err)
		}
		if err := s.PutHealth(ctx, "shop", "a", lb.Verdict{Health: "dizzy"}, f); !errors.Is(err, lb.ErrInvalid) {
			t.Errorf("no such health: %v", err)
		}
		eventually(t, "the verdicts are seen", func() bool { return len(s.Current().Health["shop"]) == 2 })
		app := s.Current().Application("shop")
		put(t, s, application("shop", "a"))
		if s.Current().HealthOf("shop", "b").Health != lb.HealthUnknown || s.Current().HealthOf("shop", "a").Health != lb.TokenRejected {
			t.Errorf("health %v", s.Current().Health)
		}
		if err := s.DeleteHealth(ctx, "shop", "a", f); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the verdict is gone", func() bool { return len(s.Current().Health) == 0 })
		if app == nil {
			t.Error("no application")
		}
	})
}

func node(id, boot string) lb.Node {
	return lb.Node{ID: id, Role: lb.RoleProxy, BootID: boot, Version: "v", Started: time.Now().UTC()}
}

func TestRegister_LivesAndLeaves(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	s := storetest.OpenAt(t, end, prefix)
	cli := etcd(t, end)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Register(ctx, node("p/1", "b1")) }()
	present := func() bool { return len(s.Current().Nodes) == 1 && s.Current().Nodes[0].ID == "p/1" }
	eventually(t, "the node is there", present)

	// Its lease is revoked behind its back.
	resp, err := cli.Get(ctx, prefix+"/nodes/", clientv3.WithPrefix())
	if err != nil || len(resp.Kvs) != 1 {
		t.Fatalf("%d keys, %v", len(resp.Kvs), err)
	}
	first := resp.Kvs[0]
	if _, err := cli.Revoke(ctx, clientv3.LeaseID(first.Lease)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has registered again", func() bool {
		resp, err := cli.Get(ctx, string(first.Key))
		return err == nil && len(resp.Kvs) == 1 && resp.Kvs[0].CreateRevision > first.CreateRevision
	})
	// Its key is deleted, the lease is not.
	if _, err := cli.Delete(ctx, string(first.Key)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node is back", present)

	begin := time.Now()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	eventually(t, "the node has left", func() bool { return len(s.Current().Nodes) == 0 })
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("leaving took %s", d)
	}
	if err := s.Register(t.Context(), lb.Node{}); !errors.Is(err, lb.ErrInvalid) {
		t.Errorf("no id: %v", err)
	}
}

func TestRegister_OfTwoTheLaterWins(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	s := storetest.OpenAt(t, end, prefix)
	boot := func() string {
		if n := s.Current().Nodes; len(n) == 1 {
			return n[0].BootID
		}
		return ""
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx1, cancel1 := context.WithCancel(t.Context())
	defer cancel1()
	wg.Go(func() { s.Register(ctx1, node("p", "b1")) })
	eventually(t, "the first is there", func() bool { return boot() == "b1" })
	ctx2, cancel2 := context.WithCancel(t.Context())
	defer cancel2()
	wg.Go(func() { s.Register(ctx2, node("p", "b2")) })
	eventually(t, "the second has the key", func() bool { return boot() == "b2" })
	cli := etcd(t, end)
	rev := rawPut(t, cli, prefix+"/meta/x", "{}")
	await(t, s, rev)
	if boot() != "b2" {
		t.Error("the first fights for the key")
	}
	cancel2()
	eventually(t, "the first is back", func() bool { return boot() == "b1" })
}

func TestAccess_TokensAreMirrored(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	s, other := storetest.OpenAt(t, end, prefix), storetest.OpenAt(t, end, prefix)
	cli := etcd(t, end)
	secret := lb.NewSecret("adm-")
	tok := store.AccessToken{SHA256: secret.Hash(), Name: "ci", Role: store.AccessOperator, Hint: secret.Hint()}
	if err := s.PutAccess(t.Context(), tok); err != nil {
		t.Fatal(err)
	}
	if got, ok := s.Access(secret.Hash()); !ok || got.Role != store.AccessOperator || got.Name != "ci" || got.Created.IsZero() {
		t.Errorf("token %+v, %t", got, ok)
	}
	eventually(t, "the other store knows it", func() bool { return len(other.AccessTokens()) == 1 })
	key := prefix + "/access/" + secret.Hash().String()
	raw := rawGet(t, cli, key)
	if bytes.Contains([]byte(raw), []byte(secret.Reveal())) {
		t.Error("the token itself is stored")
	}
	rawPut(t, cli, key, `{"scope":"x",`+raw[1:])
	tok.Role = store.AccessAdmin
	if err := s.PutAccess(t.Context(), tok); err != nil {
		t.Fatal(err)
	}
	if raw := rawGet(t, cli, key); !bytes.Contains([]byte(raw), []byte(`"scope":"x"`)) || !bytes.Contains([]byte(raw), []byte(`"admin"`)) {
		t.Error(raw)
	}
	if err := s.DeleteAccess(t.Context(), secret.Hash()); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Access(secret.Hash()); ok {
		t.Error("a deleted token is still known")
	}
	if err := s.DeleteAccess(t.Context(), secret.Hash()); !errors.Is(err, lb.ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	if err := s.PutAccess(t.Context(), store.AccessToken{SHA256: secret.Hash(), Name: "x", Role: "god"}); !errors.Is(err, lb.ErrInvalid) {
		t.Errorf("no such role: %v", err)
	}
}

func TestCounters_AreKeptPerNode(t *testing.T) {
	s := storetest.Open(t)
	ctx := t.Context()
	lead(t, s, "n", func(_ context.Context, f store.Fence) {
		big := map[int][]byte{}
		for n := range 5 {
			big[n] = bytes.Repeat([]byte{byte(n)}, store.MaxCounterBytes)
		}
		if err := s.PutCounters(ctx, "host/a b", big, f); err != nil {
			t.Fatal(err)
		}
		if err := s.PutCounters(ctx, "p2", map[int][]byte{0: []byte("x")}, f); err != nil {
			t.Fatal(err)
		}
		if err := s.PutCounters(ctx, "host/a b", map[int][]byte{1: nil, 2: []byte("y")}, f); err != nil {
			t.Fatal(err)
		}
		all, err := s.Counters(ctx)
		if err != nil || len(all) != 2 || len(all["host/a b"]) != 4 || string(all["host/a b"][1].Data) != "y" || all["host/a b"][1].N != 2 {
			t.Errorf("%d nodes, %d chunks, %v", len(all), len(all["host/a b"]), err)
		}
		if err := s.PutCounters(ctx, "p", map[int][]byte{0: make([]byte, store.MaxCounterBytes+1)}, f); !errors.Is(err, lb.ErrInvalid) {
			t.Errorf("too large: %v", err)
		}
		if err := s.DeleteCounters(ctx, "host/a b", f); err != nil {
			t.Fatal(err)
		}
		if all, err := s.Counters(ctx); err != nil || len(all) != 1 {
			t.Errorf("after the deletion: %d nodes, %v", len(all), err)
		}
	})
}

func TestInit_IsDoneOnce(t *testing.T) {
	end, prefix := storetest.Etcd(t), storetest.Prefix(t)
	a := storetest.OpenAt(t, end, prefix)
	epoch, key := a.Current().Epoch, a.Current().ClusterKey
	b := storetest.OpenAt(t, end, prefix)
	if b.Current().Epoch != epoch || b.Current().ClusterKey != key || key == "" {
		t.Error("a second Init made another store of it")
	}
	if alarms, err := a.Alarms(t.Context()); err != nil || len(alarms) != 0 {
		t.Errorf("alarms %v, %v", alarms, err)
	}
}
