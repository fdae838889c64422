package dataplane

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"difylb/pkg/cluster"
	"difylb/pkg/lb"
	"difylb/pkg/proxy"
	"difylb/pkg/stats"
)

// startApplier is a proxy's applier that has not seen the store yet.
func startApplier(t *testing.T, dir string) *applier {
	t.Helper()
	registry := stats.NewRegistry(1)
	p := proxy.New(proxy.Options{Registry: registry, Log: zerolog.Nop()})
	t.Cleanup(p.Close)
	link := cluster.NewLink(cluster.LinkOptions{Node: lb.Node{ID: "p1"}, Registry: registry, Log: zerolog.Nop()})
	return newApplier("p1", nil, p, link, newLastGood(dir), zerolog.Nop())
}

// shops is a state with so many applications, the first of which are gone.
func shops(n, gone int, rev int64) *lb.Snapshot {
	s := sampleSnapshot(rev)
	s.ConfigRevision, s.ChangeRevision = 90, 90
	shop := s.Applications[0]
	s.Applications = nil
	for i := gone; i < n; i++ {
		app := *shop
		app.Name = fmt.Sprintf("shop-%03d", i)
		app.UserTokens = []lb.UserToken{lb.NewUserToken(lb.Secret(fmt.Sprintf("usertoken--of-shop-%d", i)), "", false)}
		s.Applications = append(s.Applications, &app)
	}
	if gone > 0 {
		s.RemovedRevision, s.StrayRevision = rev, rev
	}
	return s
}

// serves checks how many applications are in force, and whether something is held back.
func (a *applier) serves(t *testing.T, what string, apps int, held bool) {
	t.Helper()
	if got := len(a.held.Load().Applications); got != apps || len(a.proxy.Table().Apps()) != apps {
		t.Errorf("%s: %d applications in force, %d in the table, want %d", what, got, len(a.proxy.Table().Apps()), apps)
	}
	if a.receipt.HeldBack != held || (a.receipt.Refused != "") != held {
		t.Errorf("%s: %+v", what, a.receipt)
	}
}

func TestApplier_DoubtsWhatIsDeletedPastLBAdmin(t *testing.T) {
	a := startApplier(t, t.TempDir())
	a.take(shops(10, 0, 100))
	a.take(shops(10, 8, 110))
	a.serves(t, "most deleted at once", 10, true)
	word := cluster.Acceptance{Epoch: a.receipt.RefusedEpoch, Revision: a.receipt.RefusedRevision}
	if word.Revision != 110 {
		t.Errorf("%+v: the revision of the configuration does not tell two deletions apart", a.receipt)
	}
	// An honest change afterwards does not make the loss believable.
	more := shops(10, 8, 120)
	more.ConfigRevision, more.ChangeRevision, more.RemovedRevision, more.StrayRevision = 120, 120, 110, 110
	a.take(more)
	a.serves(t, "and a change behind it", 10, true)
	if a.receipt.RefusedRevision != 120 {
		t.Errorf("%+v", a.receipt)
	}
	a.accept(word)
	a.serves(t, "accepted was the deletion without the change", 10, true)
	all := shops(10, 10, 130)
	all.ConfigRevision, all.ChangeRevision = 120, 120
	a.take(all)
	a.accept(cluster.Acceptance{Epoch: "e1", Revision: 120})
	a.serves(t, "accepted was less than what is gone by now", 10, true)
	a.accept(cluster.Acceptance{Epoch: "e1", Revision: 130})
	a.serves(t, "accepted", 0, false)

	back := shops(10, 0, 200)
	back.ConfigRevision, back.ChangeRevision, back.RemovedRevision, back.StrayRevision = 200, 200, 130, 130
	a.take(back)
	a.serves(t, "declared anew", 10, false)
	pruned := shops(10, 9, 210)
	pruned.ConfigRevision, pruned.ChangeRevision, pruned.RemovedRevision, pruned.StrayRevision = 210, 210, 210, 130
	a.take(pruned)
	a.serves(t, "taken away by a change", 1, false)
}

// Deletions one by one, each of which is the lesser part of what is there, add up.
func TestApplier_AddsUpWhatIsDeletedPastLBAdmin(t *testing.T) {
	a := startApplier(t, t.TempDir())
	a.take(shops(10, 0, 100))
	for gone := 1; gone <= 5; gone++ {
		a.take(shops(10, gone, 100+int64(gone)))
		a.serves(t, fmt.Sprintf("%d gone", gone), 10-gone, false)
	}
	a.take(shops(10, 6, 106))
	a.serves(t, "more than half is gone", 5, true)
	restored := shops(10, 0, 107)
	restored.ConfigRevision, restored.RemovedRevision, restored.StrayRevision = 107, 106, 106
	a.take(restored)
	a.serves(t, "put back by hand", 10, false)

	// Whoever makes a change after a deletion has seen what is there.
	a.take(shops(10, 5, 110))
	seen := shops(10, 5, 120)
	seen.ConfigRevision, seen.ChangeRevision, seen.RemovedRevision, seen.StrayRevision = 120, 120, 110, 110
	a.take(seen)
	fewer := shops(10, 7, 130)
	fewer.ConfigRevision, fewer.ChangeRevision = 120, 120
	a.take(fewer)
	a.serves(t, "2 of the 5 that are left", 3, false)
}

func TestApplier_ComparesTheFirstAnswerWithTheDisk(t *testing.T) {
	good := shops(10, 0, 100)
	changed := func(s *lb.Snapshot) *lb.Snapshot {
		s.ConfigRevision, s.ChangeRevision = s.Revision, s.Revision
		return s
	}
	fresh := func(s *lb.Snapshot) *lb.Snapshot { // a process that has just begun has seen nothing go
		s.RemovedRevision, s.StrayRevision = 0, 0
		return s
	}
	for name, c := range map[string]struct {
		first *lb.Snapshot
		apps  int
		held  bool
	}{
		"as it was":                     {shops(10, 0, 150), 10, false},
		"changed":                       {changed(shops(12, 0, 150)), 12, false},
		"most taken away by a change":   {fresh(changed(shops(10, 9, 150))), 1, false},
		"few deleted by hand":           {fresh(shops(10, 3, 150)), 7, false},
		"most deleted by hand":          {fresh(shops(10, 9, 150)), 10, true},
		"all deleted, nothing declared": {&lb.Snapshot{Epoch: "e1", Revision: 150}, 10, true},
		"another store, empty":          {&lb.Snapshot{Epoch: "e2", Revision: 3}, 10, true},
		"no store at all":               {&lb.Snapshot{Revision: 3}, 10, true},
		"went back, most is missing":    {changed(fresh(shops(10, 9, 50))), 10, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := newLastGood(dir).save(good); err != nil {
				t.Fatal(err)
			}
			a := startApplier(t, dir)
			a.take(c.first)
			a.serves(t, "at first", c.apps, c.held)
			if c.held != a.facts.Load().FromDisk {
				t.Errorf("%+v", a.facts.Load())
			}
			if !c.held {
				return
			}
			a.take(changed(shops(10, 0, 200)))
			a.serves(t, "restored", 10, false)

			b := startApplier(t, dir)
			b.take(c.first)
			b.accept(cluster.Acceptance{Epoch: b.receipt.RefusedEpoch, Revision: b.receipt.RefusedRevision})
			b.serves(t, "accepted", len(c.first.Applications), false)
		})
	}
	t.Run("without a disk", func(t *testing.T) {
		a := startApplier(t, t.TempDir())
		a.take(&lb.Snapshot{Epoch: "e2", Revision: 3})
		a.serves(t, "a new proxy", 0, false)
	})
	t.Run("the disk is spoilt", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, lastGoodName), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		a := startApplier(t, dir)
		a.take(&lb.Snapshot{Epoch: "e2", Revision: 3})
		a.serves(t, "nothing to compare with", 0, false)
	})
}

// What an operator has accepted must not be in doubt again after a restart.
func TestApplier_KeepsWhatWasAccepted(t *testing.T) {
	dir := t.TempDir()
	a := startApplier(t, dir)
	saved := func() int64 {
		t.Helper()
		select {
		case <-a.dirty:
		default:
			t.Fatal("nothing to be saved")
		}
		if err := a.disk.save(a.held.Load()); err != nil {
			t.Fatal(err)
		}
		return heldRevision(a.held.Load())
	}
	a.take(shops(10, 0, 100))
	before := saved()
	a.take(shops(10, 8, 110))
	a.accept(cluster.Acceptance{Epoch: "e1", Revision: 110})
	if saved() == before {
		t.Error("on disk it would pass for what was there before")
	}
	b := startApplier(t, dir)
	again := shops(10, 8, 150)
	again.RemovedRevision, again.StrayRevision = 0, 0
	b.take(again)
	b.serves(t, "after a restart", 2, false)
	if why := b.receipt.Refused; strings.Contains(why, "past") {
		t.Error(why)
	}
}
