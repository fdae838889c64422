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
	// applied is called after each application; nil: it is not.
	applied func()

	// Owned by run.
	receipt   cluster.Receipt
	lastApply time.Time
	took      time.Duration // of the last application
	warned    time.Time     // when a refused snapshot was last complained about
	heldBack  *lb.Snapshot  // suspicious, and waits for an operator's word; nil: none
	// trusted is the newest state in force that losses are measured against, nil
	// before there is one: what is deleted past lb-admin bit by bit adds up.
	trusted *lb.Snapshot
	started bool // the store has answered since the start
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
	disk.log = log
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
	if !a.started {
		a.started = true
		a.compareWithDisk(snap)
	}
	if why := suspicious(a.trusted, snap); why != "" {
		a.heldBack = snap
		a.refuse(snap, why)
		return
	}
	a.heldBack = nil
	if t := a.trusted; t == nil || t.Epoch != snap.Epoch || snap.Revision < t.Revision || snap.StrayRevision <= t.Revision || snap.ChangeRevision > snap.StrayRevision {
		a.trusted = snap
	}
	a.keep(snap, start)
}

// compareWithDisk makes the last good state on disk the one that the first
// answer of the store is measured by, and serves by it if that answer is
// suspicious: a proxy that happens to start while the store is empty must not
// be the one that believes it.
func (a *applier) compareWithDisk(snap *lb.Snapshot) {
	if a.held.Load() != nil || a.disk.holds(snap) {
		return
	}
	disk, err := a.disk.load()
	switch {
	case errors.Is(err, errNoLastGood):
		return
	case err != nil:
		a.log.Error().Err(err).Msg("last good state not usable: what the store says is not compared with it")
		return
	}
	if suspicious(disk, snap) == "" {
		return
	}
	if err := a.putInForce(disk, time.Now(), true); err != nil {
		a.log.Error().Err(err).Msg("last good state not usable")
		return
	}
	a.trusted = disk
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
	if snap == nil || snap.Epoch != word.Epoch || heldRevision(snap) != word.Revision {
		a.log.Warn().Int64("revision", word.Revision).Str("epoch", word.Epoch).Msg("an operator accepted a configuration that is not held back here")
		return
	}
	a.log.Warn().Int64("revision", word.Revision).Str("epoch", word.Epoch).Msg("an operator accepted the configuration that was held back")
	a.heldBack, a.trusted = nil, snap
	a.keep(snap, time.Now())
}

// heldRevision names what is declared: by the configuration's revision, which a
// deletion past lb-admin leaves as it was, or that of such a deletion. Two of
// them are two losses.
func heldRevision(snap *lb.Snapshot) int64 { return max(snap.ConfigRevision, snap.RemovedRevision) }

// saveInterval is the least time between two writes of the last good state.
// With 10,000 applications one takes half a second of a core: no change may
// wait for it, and not every change of a storm is worth one.
const saveInterval = time.Second

// saveRetry is when writing it is tried again that failed, as on a full disk.
const saveRetry = 5 * time.Second

// save keeps what is in force on disk, until ctx ends and the last of it is there.
func (a *applier) save(ctx context.Context) error {
	var saved *lb.Snapshot
	var again <-chan time.Time // nil: the last write was good
	write := func() {
		again = nil
		snap := a.held.Load()
		if snap == nil || (saved != nil && heldRevision(snap) == heldRevision(saved) && snap.Epoch == saved.Epoch) {
			return
		}
		if err := a.disk.save(snap); err != nil {
			a.log.Warn().Err(err).Msg("last good state not saved")
			again = time.After(saveRetry)
			return
		}
		saved = snap
	}
	for {
		select {
		case <-a.dirty:
			write()
		case <-again:
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

// suspicious says why a snapshot must not be believed after the one that is
// trusted (nil: none): most of what is served would be gone, and no change of
// ours took it away. The store is another one, or went back in time, or keys
// were deleted past lb-admin. That is what a wiped or half-restored store looks
// like, and no operator's change.
func suspicious(trusted, snap *lb.Snapshot) string {
	if trusted == nil {
		return ""
	}
	var what string
	switch {
	case snap.Epoch != trusted.Epoch:
		what = fmt.Sprintf("the store was replaced (revision %d before, %d now)", trusted.Revision, heldRevision(snap))
	case snap.Revision < trusted.Revision:
		what = fmt.Sprintf("the store went back from revision %d to %d", trusted.Revision, heldRevision(snap))
	case snap.StrayRevision > trusted.Revision || trusted.ChangeRevision > 0 && snap.ChangeRevision <= trusted.ChangeRevision:
		what = fmt.Sprintf("keys were deleted past lb-admin (revision %d before, %d now)", trusted.Revision, heldRevision(snap))
	default:
		return ""
	}
	l := lossOf(trusted, snap)
	switch {
	case l.instances*2 > l.ofInstances:
		what += fmt.Sprintf(" and would remove %d of %d instances", l.instances, l.ofInstances)
	case l.tokens*2 > l.ofTokens:
		what += fmt.Sprintf(" and would remove %d of %d user tokens", l.tokens, l.ofTokens)
	default:
		return ""
	}
	return what + "; serving the last good state until the store is restored, or an operator accepts the loss (lbctl node accept)"
}

// loss is what one snapshot has and a later one has not.
type loss struct{ instances, ofInstances, tokens, ofTokens int }

func lossOf(old, snap *lb.Snapshot) (l loss) {
	for _, app := range old.Applications {
		l.ofInstances += len(app.Instances)
		l.ofTokens += len(app.UserTokens)
		now := snap.Application(app.Name)
		if now == app {
			continue
		}
		if now == nil {
			now = &lb.Application{}
		}
		for i := range app.Instances {
			if in, _ := now.Instance(app.Instances[i].Name); in == nil {
				l.instances++
			}
		}
		left := make(map[lb.TokenHash]bool, len(now.UserTokens))
		for i := range now.UserTokens {
			left[now.UserTokens[i].SHA256] = true
		}
		for i := range app.UserTokens {
			if !left[app.UserTokens[i].SHA256] {
				l.tokens++
			}
		}
	}
	return l
}

func (a *applier) refuse(snap *lb.Snapshot, why string) {
	if why != a.receipt.Refused || time.Since(a.warned) > time.Minute {
		a.log.Error().Int64("revision", snap.Revision).Str("why", why).Msg("configuration refused, the last good one stays in force")
		a.warned = time.Now()
	}
	a.receipt.Refused, a.receipt.RefusedRevision = why, snap.ConfigRevision
	a.receipt.HeldBack, a.receipt.RefusedEpoch = a.heldBack == snap, snap.Epoch
	if a.receipt.HeldBack {
		a.receipt.RefusedRevision = heldRevision(snap)
	}
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
	if prev == nil || prev.ConfigRevision != table.ConfigRevision || prev.Epoch != table.Epoch || prev.Checksum() != table.Checksum() || a.receipt.Refused != "" {
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
	if a.applied != nil {
		a.applied()
	}
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
		return
	}
	a.trusted = snap
}
