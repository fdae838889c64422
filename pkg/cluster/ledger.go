package cluster

import (
	"slices"
	"time"

	"difylb/pkg/stats"
)

// maxFolded bounds how many ended boots a series remembers by name after they
// went into its base. An older one would have to report again after that many
// restarts of its own node to be counted twice.
const maxFolded = 64

// bootKey names one life of one proxy.
type bootKey struct {
	node, id string
}

// boot is what is known of one life of a proxy.
type boot struct {
	bootKey
	version, address string
	started          time.Time
	uptime           time.Duration // as of lastReport
	seq              uint64        // of the newest report
	lastReport       time.Time     // on this process's clock; zero: only known from the store
	known            time.Time     // when this process first heard of it
	streams          int           // open ones
	whole            bool          // a full report has been received
	receipt          Receipt
	hasReceipt       bool
	ejections        map[stats.Key]time.Time
	open             map[*entry]struct{} // series in which this boot has a gauge that is not zero
	counted          bool                // its gauges are part of the sums
	closing          bool                // being folded: nothing more is taken from it
}

// entry is one series over all nodes.
type entry struct {
	key        stats.Key
	shares     []*share // one per node
	lastAnswer time.Time
	latency    stats.Window // of the last minute
	firstByte  stats.Window
}

// share is one node's part of a series:
//
//	part of the sum = base + Σ boots,  base = Σ folded
//
// where every boot is in exactly one of folded and boots. Two views of one
// share join by: base and folded of the higher version; of the boots that are
// not folded there, the maximum. That is commutative, associative and
// idempotent, so views may arrive in any order and any number of times.
type share struct {
	entry   *entry
	node    string
	version uint64
	base    stats.Totals
	folded  []string // newest last
	boots   []bootShare
	chunk   *chunk // where it is stored; nil: not yet
	dirty   bool   // changed since its chunk was written
}

type bootShare struct {
	boot   *boot
	totals stats.Totals
	seq    uint64 // of the report that the gauges are from
}

// ledger holds the figures of every boot that ever reported. It decides and
// does no I/O; its owner's lock guards it.
type ledger struct {
	boots   map[bootKey]*boot
	entries map[stats.Key]*entry
	labels  map[string][]string // of the entries that are a label's, by application
	recent  map[*entry]struct{} // those whose windows may hold something
	// touched is called with the application of every series that changed.
	touched func(app string)
	// dirtied is called with every share that has become dirty.
	dirtied func(*share)
}

func newLedger(touched func(string), dirtied func(*share)) *ledger {
	return &ledger{boots: make(map[bootKey]*boot), entries: make(map[stats.Key]*entry), labels: make(map[string][]string), recent: make(map[*entry]struct{}), touched: touched, dirtied: dirtied}
}

func (l *ledger) boot(key bootKey, now time.Time) *boot {
	b := l.boots[key]
	if b == nil {
		b = &boot{bootKey: key, known: now, open: make(map[*entry]struct{})}
		l.boots[key] = b
	}
	return b
}

func (l *ledger) entry(key stats.Key) *entry {
	e := l.entries[key]
	if e == nil {
		e = &entry{key: key}
		l.entries[key] = e
		if key.ByLabel {
			l.labels[key.App] = append(l.labels[key.App], key.Label)
		}
	}
	return e
}

func (e *entry) share(node string) *share {
	for _, s := range e.shares {
		if s.node == node {
			return s
		}
	}
	s := &share{entry: e, node: node}
	e.shares = append(e.shares, s)
	return s
}

// of returns the boot's place in the share, nil when there is none.
func (s *share) of(b *boot) *bootShare {
	for i := range s.boots {
		if s.boots[i].boot == b {
			return &s.boots[i]
		}
	}
	return nil
}

// noSlot is the slot of figures of which it is not known when they came.
const noSlot = -1

// report takes one series of a boot's report. What came since the one before
// counts in the slot of the entry's windows.
func (l *ledger) report(b *boot, seq uint64, in *stats.Series, slot int64, now time.Time) {
	if b.closing {
		return
	}
	e := l.entry(in.Key)
	s := e.share(b.node)
	if slices.Contains(s.folded, b.id) {
		return
	}
	bs := s.of(b)
	first := bs == nil
	if first {
		s.boots = append(s.boots, bootShare{boot: b})
		bs = &s.boots[len(s.boots)-1]
	}
	if answered(&bs.totals, &in.Totals) && (!first || b.whole) {
		e.lastAnswer = now
	}
	if slot != noSlot && len(in.Latency.Counts) > 0 {
		e.latency.Add(slot, &bs.totals.Latency, &in.Latency)
		e.firstByte.Add(slot, &bs.totals.FirstByte, &in.FirstByte)
		l.recent[e] = struct{}{}
	}
	bs.totals.Max(&in.Totals)
	if seq >= bs.seq {
		bs.seq, bs.totals.Active, bs.totals.Streams = seq, in.Active, in.Streams
		if in.Active != 0 || in.Streams != 0 {
			b.open[e] = struct{}{}
		} else {
			delete(b.open, e)
		}
	}
	l.change(s)
}

// answered reports whether an attempt has ended well, or bytes have come,
// between two views.
func answered(old, now *stats.Totals) bool {
	return now.BytesOut > old.BytesOut || now.Ended()-min(now.Ended(), now.Errors) > old.Ended()-min(old.Ended(), old.Errors)
}

func (l *ledger) change(s *share) {
	l.touched(s.entry.key.App)
	if !s.dirty {
		s.dirty = true
		l.dirtied(s)
	}
}

// count makes a boot's gauges part of the sums, or no longer.
func (l *ledger) count(b *boot, counted bool) {
	if b.counted == counted {
		return
	}
	b.counted = counted
	for e := range b.open {
		l.touched(e.key.App)
	}
}

// sum returns a series over every boot that ever reported; gauges over the
// counted ones.
func (l *ledger) sum(key stats.Key, into *stats.Totals) {
	e := l.entries[key]
	if e == nil {
		return
	}
	for _, s := range e.shares {
		into.Add(&s.base)
		for i := range s.boots {
			active, streams := into.Active, into.Streams
			into.Add(&s.boots[i].totals)
			if !s.boots[i].boot.counted {
				into.Active, into.Streams = active, streams
			}
		}
	}
}

// move marks the applications whose figures of the last minute change because
// it is over for some of them.
func (l *ledger) move(slot int64) {
	for e := range l.recent {
		l.touched(e.key.App)
		if e.latency.Expire(slot) && e.firstByte.Expire(slot) {
			delete(l.recent, e)
		}
	}
}

// storedShare is a share as it was read from the store.
type storedShare struct {
	key     stats.Key
	version uint64
	base    stats.Totals
	folded  []string
	boots   []storedBootShare
}

type storedBootShare struct {
	id     string
	seq    uint64
	totals stats.Totals
}

// join merges a stored view of a share. What memory holds beyond it is dirty
// already, since it was reported and has not been written.
func (l *ledger) join(node string, in *storedShare, now time.Time) *share {
	s := l.entry(in.key).share(node)
	if in.version > s.version {
		s.version, s.base, s.folded = in.version, in.base, in.folded
		s.boots = slices.DeleteFunc(s.boots, func(bs bootShare) bool {
			gone := slices.Contains(s.folded, bs.boot.id)
			if gone {
				delete(bs.boot.open, s.entry)
			}
			return gone
		})
	}
	for i := range in.boots {
		stored := &in.boots[i]
		if slices.Contains(s.folded, stored.id) {
			continue
		}
		b := l.boot(bootKey{node, stored.id}, now)
		b.seq = max(b.seq, stored.seq)
		bs := s.of(b)
		if bs == nil {
			s.boots = append(s.boots, bootShare{boot: b})
			bs = &s.boots[len(s.boots)-1]
		}
		bs.totals.Max(&stored.totals)
	}
	l.touched(in.key.App)
	return s
}

// fold moves ended boots into the base. It is called after the store has
// taken the folded form, never before.
func (l *ledger) fold(s *share, ended []*boot) {
	before := len(s.boots)
	for _, b := range ended {
		bs := s.of(b)
		if bs == nil {
			continue
		}
		addCounters(&s.base, &bs.totals)
		s.folded = appendFolded(s.folded, b.id)
		delete(b.open, s.entry)
		s.boots = slices.DeleteFunc(s.boots, func(x bootShare) bool { return x.boot == b })
	}
	// When the folded form was read back from the store meanwhile, nothing is
	// left to fold and the version is that of the store already.
	if len(s.boots) < before {
		s.version++
	}
}

func addCounters(sum, t *stats.Totals) {
	active, streams := sum.Active, sum.Streams
	sum.Add(t)
	sum.Active, sum.Streams = active, streams
}

func appendFolded(folded []string, id string) []string {
	folded = append(slices.Clone(folded), id)
	return folded[max(0, len(folded)-maxFolded):]
}

// forget drops boots that nothing refers to any more.
func (l *ledger) forget(keep func(*boot) bool) {
	used := make(map[*boot]bool)
	for _, e := range l.entries {
		for _, s := range e.shares {
			for i := range s.boots {
				used[s.boots[i].boot] = true
			}
		}
	}
	for key, b := range l.boots {
		if !used[b] && !keep(b) {
			delete(l.boots, key)
		}
	}
}
