package dataplane

import (
	"testing"

	"github.com/rs/zerolog"

	"difylb/pkg/cluster"
	"difylb/pkg/lb"
	"difylb/pkg/proxy"
	"difylb/pkg/stats"
)

// What an operator accepts is what he was shown: neither another revision, nor
// another store, nor a loss that comes after it.
func TestApplier_AcceptsWhatWasNamed(t *testing.T) {
	registry := stats.NewRegistry(1)
	p := proxy.New(proxy.Options{Registry: registry, Log: zerolog.Nop()})
	defer p.Close()
	link := cluster.NewLink(cluster.LinkOptions{Node: lb.Node{ID: "p1"}, Registry: registry, Log: zerolog.Nop()})
	a := newApplier("p1", nil, p, link, newLastGood(t.TempDir()), zerolog.Nop())
	inForce := func(what, epoch string, revision int64, held bool) {
		t.Helper()
		if got := a.held.Load(); got.Epoch != epoch || got.ConfigRevision != revision {
			t.Errorf("%s: revision %d of %s is in force, want %d of %s", what, got.ConfigRevision, got.Epoch, revision, epoch)
		}
		if a.receipt.HeldBack != held || (a.receipt.Refused != "") != held || a.receipt.ConfigRevision != revision {
			t.Errorf("%s: %+v", what, a.receipt)
		}
	}
	loss := func(epoch string, revision int64) *lb.Snapshot {
		return &lb.Snapshot{Epoch: epoch, Revision: revision, ConfigRevision: revision}
	}
	good := sampleSnapshot(100)
	a.take(good)
	inForce("at first", good.Epoch, good.ConfigRevision, false)
	a.take(loss("e2", 5))
	inForce("held back", good.Epoch, good.ConfigRevision, true)
	if a.receipt.RefusedRevision != 5 || a.receipt.RefusedEpoch != "e2" {
		t.Errorf("%+v", a.receipt)
	}
	for _, word := range []cluster.Acceptance{{}, {Epoch: "e2", Revision: 4}, {Epoch: "e3", Revision: 5}, {Epoch: good.Epoch, Revision: 5}} {
		a.accept(word)
		inForce("another was named", good.Epoch, good.ConfigRevision, true)
	}
	a.take(loss("e3", 6)) // it was replaced again before the word came
	a.accept(cluster.Acceptance{Epoch: "e2", Revision: 5})
	inForce("the word is out of date", good.Epoch, good.ConfigRevision, true)
	a.accept(cluster.Acceptance{Epoch: "e3", Revision: 6})
	inForce("accepted", "e3", 6, false)

	full := sampleSnapshot(200)
	full.Epoch, full.ConfigRevision = "e3", 200
	a.take(full)
	inForce("declared anew", "e3", 200, false)
	a.accept(cluster.Acceptance{Epoch: "e3", Revision: 6})
	inForce("nothing is held back", "e3", 200, false)
	a.take(loss("e4", 6))
	inForce("the next loss", "e3", 200, true)
	restored := sampleSnapshot(300)
	restored.Epoch, restored.ConfigRevision = "e5", 300
	a.take(restored)
	inForce("restored", "e5", 300, false)
	a.accept(cluster.Acceptance{Epoch: "e4", Revision: 6})
	inForce("accepted too late", "e5", 300, false)
}

func TestApplier_KnowsItsPlace(t *testing.T) {
	a := &applier{node: "p2"}
	nodes := func(ids ...string) *lb.Snapshot {
		s := &lb.Snapshot{Nodes: []lb.Node{{ID: "a", Role: lb.RoleAdmin}}}
		for _, id := range ids {
			s.Nodes = append(s.Nodes, lb.Node{ID: id, Role: lb.RoleProxy})
		}
		return s
	}
	for _, c := range []struct {
		snap          *lb.Snapshot
		rank, proxies int
	}{
		{nodes(), 0, 1},
		{nodes("p2"), 0, 1},
		{nodes("p1", "p2", "p3"), 1, 3},
		{nodes("p1", "p3"), 2, 3}, // not registered yet
	} {
		if rank, proxies := a.placeIn(c.snap); rank != c.rank || proxies != c.proxies {
			t.Errorf("%+v: %d of %d, want %d of %d", c.snap.Nodes, rank, proxies, c.rank, c.proxies)
		}
	}
}
