package store_test

import (
	"fmt"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"difylb/pkg/store"
	"difylb/pkg/store/storetest"
)

// What a change of ours takes away and what is deleted by hand must be told
// apart: over the watch, by a new list, and for large changes.
func TestSnapshot_TellsStrayRemovals(t *testing.T) {
	srv := storetest.Own(t, "")
	t.Cleanup(func() { srv.Stop() })
	end := srv.Client()[0]
	k := newLink(t, end)
	prefix := storetest.Prefix(t)
	writer, reader := storetest.OpenAt(t, end, prefix), storetest.OpenAt(t, k.url(), prefix)
	cli := etcd(t, end)
	remove := func(key string, opts ...clientv3.OpOption) int64 {
		t.Helper()
		resp, err := cli.Delete(t.Context(), prefix+key, opts...)
		if err != nil {
			t.Fatal(err)
		}
		return resp.Header.Revision
	}
	// check looks at both processes; 0 for stray means that of before.
	var stray int64
	check := func(what string, rev, change, removed int64) {
		t.Helper()
		for name, s := range map[string]*store.Store{"writer": writer, "reader": reader} {
			snap := await(t, s, rev)
			if snap.ChangeRevision != change || snap.RemovedRevision != removed || snap.StrayRevision != stray {
				t.Errorf("%s, %s: change %d, removed %d, stray %d; want %d, %d, %d", what, name, snap.ChangeRevision, snap.RemovedRevision, snap.StrayRevision, change, removed, stray)
			}
		}
	}
	first := put(t, writer, application("shop", "a", "b"), application("web", "x")).Revision
	check("put", first, first, 0)
	change := update(t, writer, func(d *store.Draft) { d.Delete("web") }).Revision
	check("deleted by a change", change, change, change)

	stray = remove("/instances/shop/b")
	check("an instance deleted by hand", stray, change, stray)
	if config := writer.Current().ConfigRevision; config != change {
		t.Errorf("config revision %d, want %d: processes that start later can't know of the deletion", config, change)
	}
	rev := remove("/health/", clientv3.WithPrefix())
	check("what declares nothing", rev, change, stray)

	var ops []func(*store.Draft)
	for i := range 200 { // staged
		ops = append(ops, func(d *store.Draft) { d.Put(application(fmt.Sprintf("crowd-%d", i), "a")) })
	}
	before := stray
	change = update(t, writer, func(d *store.Draft) {
		for _, op := range ops {
			op(d)
		}
	}).Revision
	check("a large change", change, change, before)
	change = update(t, writer, func(d *store.Draft) {
		for i := range 200 {
			d.Delete(fmt.Sprintf("crowd-%d", i))
		}
	}).Revision
	check("a large change that deletes", change, change, change)
	last := put(t, writer, application("more", "m")).Revision // what was staged is in its keys by now
	check("behind a large change", last, last, change)

	// Cut off, one of the two has to find out by a list.
	away := func(what string, do func() int64) {
		t.Helper()
		k.setDown(true, "")
		k.cut()
		rev := do()
		if _, err := cli.Compact(t.Context(), rev, clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
		k.setDown(false, "")
		eventually(t, what+": the reader is up to date", func() bool {
			return reader.Current().Application("more") == nil == (writer.Current().Application("more") == nil) && reader.Status().Revision >= rev
		})
	}
	away("deleted by hand meanwhile", func() int64 { return remove("/", clientv3.WithPrefix(), clientv3.WithRange(prefix+"/apps0")) })
	if snap := reader.Current(); snap.StrayRevision <= last || snap.RemovedRevision != snap.StrayRevision || snap.ChangeRevision != last {
		t.Errorf("listed after a deletion by hand: %d, %d, %d", snap.ChangeRevision, snap.RemovedRevision, snap.StrayRevision)
	}
	stray = reader.Current().StrayRevision
	rev = put(t, writer, application("more", "m")).Revision
	await(t, reader, rev)
	away("deleted by a change meanwhile", func() int64 {
		return update(t, writer, func(d *store.Draft) { d.Delete("more") }).Revision
	})
	if snap := reader.Current(); snap.StrayRevision != stray || snap.RemovedRevision <= rev || snap.ChangeRevision <= rev {
		t.Errorf("listed after a change: %d, %d, %d", snap.ChangeRevision, snap.RemovedRevision, snap.StrayRevision)
	}
}

func TestObjects_CountsTheMirror(t *testing.T) {
	s := storetest.Open(t)
	before := s.Objects()
	put(t, s, application("shop", "a", "b"))
	n := s.Objects() - before
	if n < 3 || s.Objects() != s.Keys() {
		t.Errorf("%d more, the mirror has %d", n, s.Keys())
	}
	update(t, s, func(d *store.Draft) { d.Delete("shop") })
	if got := s.Objects(); got > before+1 { // the first change made meta/config
		t.Errorf("%d objects when all is deleted, %d before", got, before)
	}
}
