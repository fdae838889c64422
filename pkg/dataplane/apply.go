package dataplane

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/cluster"
	"difylb/pkg/lb"
	"difylb/pkg/proxy"
	"difylb/pkg/route"
	"difylb/pkg/store"
)

const (
	// Between two applications of a change lies holdOffFactor times what the
	// one before took, within bounds: in a storm of changes applying them takes
	// a fifth of a core at most, and each application takes in all that has come
	// meanwhile. A change after a quiet time is applied at once.
	holdOffFactor = 4
	minHoldOff    = time.Millisecond
	maxHoldOff    = 100 * time.Millisecond
	// storeWait is how long a start waits for etcd before it serves by the
	// last good state on disk.
	storeWait = 2 * time.Second
)

// applier puts snapshots in force. One goroutine, run, does all of it.
type applier struct {
	store *store.Store
	proxy *proxy.Proxy
	node  string // id of this proxy
	link  *cluster.Link
	disk  *lastGood
	log   zerolog.Logger

	first chan struct{}               // closed when something is in force
	held  atomic.Pointer[lb.Snapshot] // what is in force; nil before first
	facts atomic.Pointer[applyFacts]
	dirty chan struct{} // capacity 1: held is newer than what is on disk
	once  sync.Once

	// Owned by run.
	receipt   cluster.Receipt
	lastApply time.Time
	took      time.Duration // of the last application
	warned    time.Time     // when a refused snapshot was last complained about
	heldBack  *lb.Snapshot  // suspicious, and waits for an operator's word; nil: none
}

// applyFacts is what metrics and readiness show.
type applyFacts struct {
	Revision, ConfigRevision int64
	Checksum                 uint64
	AppliedAt                time.Time
	Took                     time.Duration
	Applies                  uint64
	FromDisk                 bool
	Refused                  string // "" when the newest is in force
	Refusals                 uint64
	Faults                   int // keys of the store that can't be read
}

func newApplier(node string, st *store.Store, p *proxy.Proxy, link *cluster.Link, disk *lastGood, log zerolog.Logger) *applier {
	a := &applier{node: node, store: st, proxy: p, link: link, disk: disk, log: log, first: make(chan struct{}), dirty: make(chan struct{}, 1)}
	a.facts.Store(&applyFacts{})
	return a
}

// clusterKey returns the key of the state in force, "" before there is one.
func (a *applier) clusterKey() lb.Secret {
	if s := a.held.Load(); s != nil {
		return s.ClusterKey
	}
	return ""
}

func (a *applier) run(ctx context.Context) error {
	changed, cancel := a.store.Subscribe()
	defer cancel()
	noStore := time.NewTimer(storeWait)
	defer noStore.Stop()
	wait := time.NewTimer(0)
	<-wait.C
	defer wait.Stop()
	pending := false // wait is running
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-noStore.C:
			a.loadFromDisk()
		case <-changed:
			if pending {
				continue
			}
			if d := a.holdOff() - time.Since(a.lastApply); d > 0 {
				wait.Reset(d)
				pending = true
				continue
			}
			a.take(a.store.Current())
		case <-wait.C:
			pending = false
			a.take(a.store.Current())
		case word := <-a.link.Accepted():
			a.accept(word)
		}
	}
}

// holdOff is the least time between the last application and the next.
func (a *applier) holdOff() time.Duration {
	return min(max(holdOffFactor*a.took, minHoldOff), maxHoldOff)
}

// take looks at a snapshot from the store and puts it in force, unless that
// would be a mistake.
func (a *applier) take(snap *lb.Snapshot) {
	if snap == nil {
		return
	}
	start := time.Now()
	if why := a.suspicious(snap); why != "" {
		a.heldBack = snap
		a.refuse(snap, why)
		return
	}
	a.heldBack = nil
	a.keep(snap, start)
}

// keep puts a snapshot in force and has it kept on disk.
func (a *applier) keep(snap *lb.Snapshot, start time.Time) {
	if err := a.putInForce(snap, start, false); err != nil {
		a.refuse(snap, err.Error())
		return
	}
	select {
	case a.dirty <- struct{}{}:
	default:
	}
}

// accept puts in force what is held back, if that is what the operator has
// seen. What has come since is another matter, and waits for another word.
func (a *applier) accept(word cluster.Acceptance) {
	snap := a.heldBack
	if snap == nil || snap.Epoch != word.Epoch || snap.ConfigRevision != word.Revision {
		a.log.Warn().Int64("revision", word.Revision).Str("epoch", word.Epoch).Msg("an operator accepted a configuration that is not held back here")
		return
	}
	a.log.Warn().Int64("revision", word.Revision).Str("epoch", word.Epoch).Msg("an operator accepted the configuration that was held back")
	a.heldBack = nil
	a.keep(snap, time.Now())
}

// saveInterval is the least time between two writes of the last good state.
// With 10,000 applications one takes half a second of a core: no change may
// wait for it, and not every change of a storm is worth one.
const saveInterval = time.Second

// save keeps what is in force on disk, until ctx ends and the last of it is there.
func (a *applier) save(ctx context.Context) error {
	var saved *lb.Snapshot
	write := func() {
		snap := a.held.Load()
		if snap == nil || (saved != nil && snap.ConfigRevision == saved.ConfigRevision && snap.Epoch == saved.Epoch) {
			return
		}
		if err := a.disk.save(snap); err != nil {
			a.log.Warn().Err(err).Msg("last good state not saved")
			return
		}
		saved = snap
	}
	for {
		select {
		case <-a.dirty:
			write()
		case <-ctx.Done():
			select {
			case <-a.dirty:
				write()
			default:
			}
			return nil
		}
		pause := time.NewTimer(saveInterval)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
}

// suspicious says why a snapshot must not be believed: the store is another
// one, or went back in time, and most of what is served would be gone. That is
// what a wiped or half-restored store looks like, and no operator's change.
func (a *applier) suspicious(snap *lb.Snapshot) string {
	old := a.held.Load()
	if old == nil || (snap.Epoch == old.Epoch && snap.Revision >= old.Revision) {
		return ""
	}
	have, lost := 0, 0
	for _, app := range old.Applications {
		now := snap.Application(app.Name)
		for i := range app.Instances {
			have++
			if now == nil {
				lost++
			} else if in, _ := now.Instance(app.Instances[i].Name); in == nil {
				lost++
			}
		}
	}
	if lost*2 <= have {
		return ""
	}
	what := "the store went back from revision %d to %d"
	if snap.Epoch != old.Epoch {
		what = "the store was replaced (revision %d before, %d now)"
	}
	return fmt.Sprintf(what+" and would remove %d of %d instances; serving the last good state until the store is restored, or an operator accepts the loss (lbctl node accept)", old.Revision, snap.Revision, lost, have)
}

func (a *applier) refuse(snap *lb.Snapshot, why string) {
	if why != a.receipt.Refused || time.Since(a.warned) > time.Minute {
		a.log.Error().Int64("revision", snap.Revision).Str("why", why).Msg("configuration refused, the last good one stays in force")
		a.warned = time.Now()
	}
	a.receipt.Refused, a.receipt.RefusedRevision = why, snap.ConfigRevision
	a.receipt.HeldBack, a.receipt.RefusedEpoch = a.heldBack == snap, snap.Epoch
	a.link.SetSnapshot(snap) // its nodes and key are still the way to report this
	a.link.SetReceipt(a.receipt)
	f := *a.facts.Load()
	f.Refused, f.Refusals = why, f.Refusals+1
	a.facts.Store(&f)
}

// placeIn returns where this proxy stands among the registered ones, and how
// many these are. One that is not registered yet comes last.
func (a *applier) placeIn(snap *lb.Snapshot) (rank, proxies int) {
	known := false
	for _, n := range snap.Nodes { // sorted by id
		if n.Role != lb.RoleProxy {
			continue
		}
		if n.ID == a.node {
			known = true
		} else if !known {
			rank++
		}
		proxies++
	}
	if !known {
		proxies++
	}
	return rank, proxies
}

// putInForce compiles a snapshot and swaps it in.
func (a *applier) putInForce(snap *lb.Snapshot, start time.Time, fromDisk bool) error {
	prev := a.proxy.Table()
	table, err := route.Build(snap, prev)
	if err != nil {
		return err
	}
	a.proxy.SetPlace(a.placeIn(snap))
	a.proxy.SetLimitSecret(snap.ClusterKey)
	a.proxy.SetHealth(snap.Health)
	a.proxy.SetTable(table)
	old := a.held.Swap(snap)
	now := time.Now()
	a.lastApply, a.took = now, now.Sub(start)
	a.link.SetSnapshot(snap)
	if prev == nil || prev.ConfigRevision != table.ConfigRevision || prev.Epoch != table.Epoch || a.receipt.Refused != "" {
		a.receipt = cluster.Receipt{
			Revision: snap.Revision, ConfigRevision: snap.ConfigRevision, Epoch: snap.Epoch,
			RingChecksum: table.Checksum(), AppliedAt: now, ApplyDuration: now.Sub(start),
		}
		a.link.SetReceipt(a.receipt)
		a.log.Info().Int64("revision", snap.ConfigRevision).Int("applications", len(snap.Applications)).
			Int("instances", table.Instances()).Dur("took", now.Sub(start)).Bool("from_disk", fromDisk).Msg("configuration in force")
	}
	if len(snap.Faults) > 0 && (old == nil || len(old.Faults) != len(snap.Faults)) {
		for _, f := range snap.Faults {
			a.log.Error().Str("key", f.Path).Str("why", f.Message).Msg("a key of the store can't be read, its last good value stays")
		}
	}
	f := *a.facts.Load()
	a.facts.Store(&applyFacts{
		Revision: snap.Revision, ConfigRevision: snap.ConfigRevision, Checksum: table.Checksum(),
		AppliedAt: now, Took: now.Sub(start), Applies: f.Applies + 1, Refusals: f.Refusals,
		FromDisk: fromDisk, Faults: len(snap.Faults),
	})
	a.once.Do(func() { close(a.first) })
	return nil
}

// loadFromDisk serves by the last good state when the store has not answered
// since the start.
func (a *applier) loadFromDisk() {
	if a.held.Load() != nil {
		return
	}
	snap, err := a.disk.load()
	switch {
	case errors.Is(err, errNoLastGood):
		return
	case err != nil:
		a.log.Error().Err(err).Msg("last good state not usable")
		return
	}
	a.log.Warn().Str("etcd", a.store.Status().LastError).Int64("revision", snap.ConfigRevision).Msg("etcd does not answer, serving by the last good state on disk")
	if err := a.putInForce(snap, time.Now(), true); err != nil {
		a.log.Error().Err(err).Msg("last good state not usable")
	}
}
