package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 10 * time.Second
	listPage   = 2000
	firstWait  = 4 * time.Second  // the first page: is anybody there?
	pageWait   = 15 * time.Second // a further page, over a slow line
	drainMost  = 256              // responses taken in before a Snapshot is built
	countEvery = 10 * time.Minute
)

// WatchStatus says how far Current can be trusted.
type WatchStatus struct {
	// Connected: the watch runs, and showed signs of life within three check intervals.
	Connected bool
	// Revision up to which the mirror has everything.
	Revision int64
	// StaleSince is when the mirror was last known to be up to date; zero while Connected.
	StaleSince time.Time
	// LastError is what went wrong last, "" while Connected.
	LastError string
}

// watchStatus is written by the mirror's loop and read by anyone.
type watchStatus struct {
	since atomic.Int64 // when it last proved to be up to date; nanoseconds since epoch
	live  atomic.Bool  // a watch is open and was heard
	mu    sync.Mutex   // guards err
	err   string
}

// epoch has a monotonic reading: ages by it do not care for the wall clock.
var epoch = time.Now()

func (w *watchStatus) heard() {
	w.since.Store(int64(time.Since(epoch)))
	w.live.Store(true)
}

func (w *watchStatus) failed(err error) {
	w.live.Store(false)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err.Error()
}

// Status tells how the watch is. It takes no part in any I/O.
func (s *Store) Status() WatchStatus {
	st := WatchStatus{Revision: s.cursor.Load()}
	age := time.Since(epoch) - time.Duration(s.watching.since.Load())
	st.Connected = s.watching.live.Load() && age < 3*s.opt.CheckInterval
	if st.Connected {
		return st
	}
	st.StaleSince = time.Now().Add(-age)
	s.watching.mu.Lock()
	defer s.watching.mu.Unlock()
	st.LastError = s.watching.err
	if st.LastError == "" {
		st.LastError = "no sign of life from etcd"
	}
	return st
}

// Lag is how long ago the mirror was last known to be up to date; 0 while the
// watch is alive. Before the first list it counts from Open.
func (s *Store) Lag() time.Duration {
	st := s.Status()
	if st.Connected {
		return 0
	}
	return time.Since(st.StaleSince)
}

// Run keeps the mirror up to date until ctx ends, whatever becomes of etcd
// meanwhile, and returns nil then. Call it once.
func (s *Store) Run(ctx context.Context) error {
	wait := minBackoff
	for ctx.Err() == nil {
		m := &mirror{s: s, reset: func() { wait = minBackoff }}
		err := m.follow(ctx)
		if ctx.Err() != nil {
			break
		}
		s.watching.failed(err)
		s.log.Warn().Err(err).Int64("revision", s.cursor.Load()).Dur("retry_ms", wait).Msg("watch on etcd ended, listing again")
		select {
		case <-ctx.Done():
		case <-time.After(wait/2 + rand.N(wait)):
		}
		wait = min(2*wait, maxBackoff)
	}
	s.watching.failed(errors.New("the store is not running"))
	return nil
}

// mirror is one list and the watch that follows it; owned by Run's goroutine.
type mirror struct {
	s       *Store
	reset   func()
	cli     *clientv3.Client
	cluster uint64 // id of the etcd cluster that was listed
	cursor  int64  // only revisions that arrived move it
	heard   bool   // since the last check
	ahead   bool   // at the last check, silent, etcd was ahead of the cursor
}

var (
	errSilent   = errors.New("the watch stays silent: it could not be opened in time")
	errStuck    = errors.New("the watch is silent while etcd has moved on")
	errReplaced = errors.New("etcd is another cluster than before")
	errBack     = errors.New("etcd's revision went backwards: it was wiped or restored")
	errCount    = errors.New("etcd holds another number of keys than the mirror")
)

// follow lists and watches until something goes wrong.
func (m *mirror) follow(ctx context.Context) error {
	var err error
	if m.cli, err = m.s.watchClient.get(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	if err := m.list(ctx); err != nil {
		return m.s.watchClient.unreached("list", err)
	}
	err = m.watch(ctx)
	if errors.Is(err, errStuck) || errors.Is(err, errSilent) {
		cancel()
		m.s.watchClient.discard(m.cli)
	}
	return unavailable("watch", err)
}

func (m *mirror) watch(ctx context.Context) error {
	// Watch itself waits until the stream is open, over a half-open connection
	// for as long as the kernel likes.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	late := time.AfterFunc(firstWait, cancel)
	responses := m.cli.Watch(ctx, m.s.prefix, clientv3.WithPrefix(), clientv3.WithRev(m.cursor+1),
		clientv3.WithProgressNotify(), clientv3.WithFragment(), clientv3.WithCreatedNotify())
	if !late.Stop() {
		return errSilent
	}
	check := time.NewTicker(m.s.opt.CheckInterval)
	defer check.Stop()
	count := time.NewTicker(countEvery + rand.N(countEvery/10))
	defer count.Stop()
	for {
		var err error
		select {
		case resp, ok := <-responses:
			err = m.take(ctx, resp, ok, responses)
		case <-check.C:
			err = m.check(ctx)
		case <-count.C:
			err = m.count(ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// take applies a response, and what has arrived behind it, and publishes the
// outcome. Each response is whole: one revision is never split over two.
func (m *mirror) take(ctx context.Context, resp clientv3.WatchResponse, ok bool, more <-chan clientv3.WatchResponse) error {
	defer m.publish()
	for n := 0; ; n++ {
		if !ok {
			return errors.New("the watch was closed")
		}
		if err := m.apply(ctx, resp); err != nil {
			return err
		}
		if n == drainMost {
			return nil
		}
		select {
		case resp, ok = <-more:
		default:
			return nil
		}
	}
}

func (m *mirror) apply(ctx context.Context, resp clientv3.WatchResponse) error {
	if err := resp.Err(); err != nil {
		return err
	}
	rev := resp.Header.Revision
	if resp.Header.ClusterId != m.cluster {
		return errReplaced
	}
	if resp.Created {
		// Its revision is the store's of that moment: the events up to it are
		// still to come.
		m.reset()
		m.alive()
		return nil
	}
	if len(resp.Events) > 0 {
		// The header may be ahead of the events of a watch that is catching up.
		rev = resp.Events[len(resp.Events)-1].Kv.ModRevision
	}
	if rev < m.cursor {
		return m.wentBack(ctx)
	}
	if err := m.takeEvents(ctx, resp.Events, rev); err != nil {
		return err
	}
	m.cursor = rev
	m.alive()
	return nil
}

func (m *mirror) alive() {
	m.heard, m.ahead = true, false
	m.s.watching.heard()
}

func (m *mirror) takeEvents(ctx context.Context, events []*clientv3.Event, rev int64) error {
	evs := make([]event, 0, len(events))
	var committed *event
	changed := make(map[int64]bool) // revisions at which a change of ours was made
	for _, e := range events {
		if e.Type == mvccpb.Event_PUT && strings.TrimPrefix(string(e.Kv.Key), m.s.prefix) == keyConfig {
			changed[e.Kv.ModRevision] = true
		}
	}
	for _, e := range events {
		ev := m.s.event(e.Kv)
		ev.deleted = e.Type == mvccpb.Event_DELETE
		ev.stray = ev.deleted && !changed[ev.mod]
		evs = append(evs, ev)
		if ev.key == keyPending && !ev.deleted {
			committed = &evs[len(evs)-1]
		}
	}
	if committed != nil {
		// A large change took effect: all of it, or nothing of this response.
		overlay, err := m.s.overlay(ctx, m.cli, *committed, rev)
		if err != nil {
			return err
		}
		evs = append(evs, overlay...)
	}
	m.s.st.mu.Lock()
	defer m.s.st.mu.Unlock()
	for _, ev := range evs {
		m.s.st.applyLocked(ev)
	}
	return nil
}

func (s *Store) event(kv *mvccpb.KeyValue) event {
	return event{key: strings.TrimPrefix(string(kv.Key), s.prefix), raw: kv.Value, create: kv.CreateRevision, mod: kv.ModRevision}
}

// publish makes what was applied visible.
func (m *mirror) publish() {
	st := m.s.st
	old := m.s.view.Load()
	st.mu.Lock()
	snap := st.buildLocked(old.snap, m.s.prefix, m.cursor)
	st.trimLocked()
	next := &view{snap: snap, leader: st.leaderLocked(), access: old.access, objects: len(st.objects)}
	if !maps.Equal(old.access, st.access) {
		next.access = maps.Clone(st.access)
	}
	st.mu.Unlock()
	m.s.view.Store(next)
	m.s.moved(m.cursor)
	if snap != old.snap {
		m.s.signal()
	}
}

// list reads everything at one revision and publishes it.
func (m *mirror) list(ctx context.Context) error {
	listed := make(map[string]event)
	rev := int64(0)
	for _, span := range mirrorRanges {
		from, to := m.s.prefix+span[0], m.s.prefix+span[1]
		if span[1] == "" {
			to = clientv3.GetPrefixRangeEnd(m.s.prefix)
		}
		for {
			resp, err := m.page(ctx, from, to, rev)
			if err != nil {
				return err
			}
			// The first page is linearizable and fixes the revision of all.
			if rev == 0 {
				rev, m.cluster = resp.Header.Revision, resp.Header.ClusterId
			}
			for _, kv := range resp.Kvs {
				ev := m.s.event(kv)
				listed[ev.key] = ev
			}
			if !resp.More || len(resp.Kvs) == 0 {
				break
			}
			from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		}
	}
	if p, ok := listed[keyPending]; ok {
		overlay, err := m.s.overlay(ctx, m.cli, p, rev)
		if err != nil {
			return err
		}
		for _, ev := range overlay {
			if ev.deleted {
				delete(listed, ev.key)
			} else {
				listed[ev.key] = ev
			}
		}
	}
	m.cursor = rev
	m.replace(listed, rev)
	m.publish()
	m.s.watching.heard()
	m.heard = true
	return nil
}

// replace turns the mirror into what was listed, sharing what did not change.
func (m *mirror) replace(listed map[string]event, rev int64) {
	st := m.s.st
	st.mu.Lock()
	defer st.mu.Unlock()
	var epoch epochWire
	if ev, ok := listed[keyEpoch]; ok {
		_ = unmarshal(ev.raw, &epoch) // a damaged epoch counts as another one
	}
	if epoch.ID != st.epoch {
		// Another store: nothing of the old one, not even a last good value, holds there.
		for key := range st.objects {
			if _, ok := listed[key]; ok {
				st.applyLocked(event{key: key, deleted: true})
			}
		}
		st.configRev, st.removedRev, st.strayRev = 0, 0, 0
	}
	// A store that went back in time knows nothing of what came after.
	st.removedRev, st.strayRev = min(st.removedRev, rev), min(st.strayRev, rev)
	for _, ev := range st.diffLocked(listed, rev) {
		st.applyLocked(ev)
	}
	st.configRev = st.configMod
	for key, obj := range st.objects {
		if declares(key) {
			st.configRev = max(st.configRev, obj.rev)
		}
	}
}

func (m *mirror) page(ctx context.Context, from, to string, rev int64) (*clientv3.GetResponse, error) {
	wait := pageWait
	if rev == 0 {
		wait = firstWait
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	opts := []clientv3.OpOption{clientv3.WithRange(to), clientv3.WithLimit(listPage), clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend)}
	if rev > 0 {
		opts = append(opts, clientv3.WithRev(rev))
	}
	return m.cli.Get(ctx, from, opts...)
}

// check is the mirror's own proof of life, because a watch that hangs, or
// waits for a revision that a restored store will not reach for years, looks
// like one that has nothing to say.
func (m *mirror) check(ctx context.Context) error {
	defer m.requestProgress(ctx)
	if m.heard {
		m.heard, m.ahead = false, false
		return nil
	}
	header, err := m.s.header(ctx, clientv3.WithSerializable())
	if err != nil {
		m.s.watching.failed(err)
		return nil // nobody answers: the watch may still come back by itself
	}
	if header.cluster != m.cluster {
		return errReplaced
	}
	if header.revision < m.cursor {
		return m.wentBack(ctx)
	}
	if header.revision > m.cursor {
		if m.ahead {
			return errStuck
		}
		m.ahead = true
	}
	return nil
}

// wentBack returns errBack if etcd's revision is below the cursor. A member
// that lags behind may say so; a linearizable read may not.
func (m *mirror) wentBack(ctx context.Context) error {
	if h, err := m.s.header(ctx); err == nil && h.revision < m.cursor {
		return errBack
	}
	return nil
}

func (m *mirror) requestProgress(ctx context.Context) {
	// It blocks while the stream is being made anew; the next check asks again.
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := m.cli.RequestProgress(ctx); err != nil && ctx.Err() == nil {
		m.s.log.Debug().Err(err).Msg("watch progress not requested")
	}
}

type header struct {
	revision int64
	cluster  uint64
}

func (s *Store) header(ctx context.Context, opts ...clientv3.OpOption) (header, error) {
	cli, err := s.client.get()
	if err != nil {
		return header{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	resp, err := cli.Get(ctx, s.prefix+keyEpoch, append(opts, clientv3.WithKeysOnly())...)
	if err != nil {
		return header{}, s.client.unreached("read "+keyEpoch, err)
	}
	return header{resp.Header.Revision, resp.Header.ClusterId}, nil
}

// count compares the number of keys at the cursor's revision, against events
// that never came. While a large change is being rolled forward the two
// differ on purpose.
func (m *mirror) count(ctx context.Context) error {
	m.s.st.mu.RLock()
	want, pending := len(m.s.st.objects), m.s.st.pending != nil
	m.s.st.mu.RUnlock()
	if pending {
		return nil
	}
	got := 0
	for _, span := range mirrorRanges {
		to := m.s.prefix + span[1]
		if span[1] == "" {
			to = clientv3.GetPrefixRangeEnd(m.s.prefix)
		}
		cctx, cancel := context.WithTimeout(ctx, opTimeout)
		resp, err := m.cli.Get(cctx, m.s.prefix+span[0], clientv3.WithRange(to), clientv3.WithCountOnly(), clientv3.WithRev(m.cursor))
		cancel()
		if err != nil {
			return nil // compacted or cut off: check looks after that
		}
		got += int(resp.Count)
	}
	if got != want {
		return fmt.Errorf("%w: %d and %d", errCount, got, want)
	}
	return nil
}
