package limit

import (
	"cmp"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Part returns a part of the rate, 0 to 1, for one of several who enforce it together. The burst goes with it, but is
// never less than burst of it, the even part: to divide a small one by demand would leave who has little with nothing
// for chance. No part is so small that nothing ever passes, and a rate without limit has none.
func (r Rate) Part(part, burst float64) Rate {
	if r.Unlimited() || part >= 1 {
		return r
	}
	if !(part > minPart) { // not a number is none
		part = minPart
	}
	return Rate{PerSecond: r.PerSecond * part, Burst: max(1, int(float64(r.Burst)*min(max(part, burst), 1)))}
}

const minPart = 1e-6

// Lease is the part of a rate that its holder may use until it expires. The zero value is none. Safe for concurrent
// use; reading it takes no lock.
type Lease struct {
	part  atomic.Uint64 // math.Float64bits
	until atomic.Int64  // see instant; 0: none
}

// Set leases part until then.
func (l *Lease) Set(part float64, until time.Time) {
	l.part.Store(math.Float64bits(part))
	l.until.Store(instant(until))
}

// End ends the lease.
func (l *Lease) End() { l.until.Store(0) }

// Part returns the leased part, or without, which is for who has no lease.
func (l *Lease) Part(without float64, now time.Time) float64 {
	if until := l.until.Load(); until == 0 || until <= instant(now) {
		return without
	}
	return math.Float64frombits(l.part.Load())
}

// Held reports whether there is a lease.
func (l *Lease) Held(now time.Time) bool {
	until := l.until.Load()
	return until != 0 && until > instant(now)
}

// keyLeases are the leases of single keys of a Buckets. What it points to is immutable, but for the counts.
type keyLeases struct {
	until  int64 // see instant
	byName map[uint64]*keyLease
}

type keyLease struct {
	part  float64
	asked *atomic.Uint64 // since the last Demands; lives on from lease to lease
}

// KeyPart is the part of its rate that is leased to a key.
type KeyPart struct {
	Name uint64 // see Hasher
	Part float64
}

// KeyDemand is how much was asked for under a key.
type KeyDemand struct {
	Name   uint64
	Asked  uint64 // requests, admitted or not; of a key without a lease only those refused
	Leased bool
}

// maxPressed bounds how many keys without a lease a Buckets counts refusals for at a time.
const maxPressed = 256

// pressure counts the refusals of keys that have no lease: of those with most of them, after "Efficient Computation of
// Frequent and Top-k Elements in Data Streams" (Metwally, Agrawal, El Abbadi 2005). A newcomer to a full table takes
// the place of the key with least and its count, so a flood of keys can inflate counts but not hide a key that has
// more refusals than its fair part of all.
type pressure struct {
	mu     sync.Mutex // guards counts; refusals that find it taken are not counted
	counts map[uint64]uint64
}

func (p *pressure) note(name uint64) {
	if name == 0 || !p.mu.TryLock() {
		return
	}
	defer p.mu.Unlock()
	if p.counts == nil {
		p.counts = make(map[uint64]uint64)
	}
	n, known := p.counts[name]
	if !known && len(p.counts) >= maxPressed {
		var least uint64
		n = math.MaxUint64
		for k, v := range p.counts {
			if v < n {
				least, n = k, v
			}
		}
		delete(p.counts, least)
	}
	p.counts[name] = n + 1
}

func (p *pressure) take() map[uint64]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	counts := p.counts
	p.counts = nil
	return counts
}

// SetHasher lets keys have names, by which others can speak of them; keys that are in the table already get none until
// they leave it. nil, as at the beginning: no names, so no leases and no demands.
func (b *Buckets) SetHasher(h *Hasher) { b.hasher.Store(h) }

// Lease replaces all leases by those of these keys, until then. Keys without one have the part that AllowPart is given.
func (b *Buckets) Lease(parts []KeyPart, until time.Time) {
	old := b.leases.Load()
	if len(parts) == 0 {
		if old != nil {
			b.leases.Store(nil)
		}
		return
	}
	next := &keyLeases{until: instant(until), byName: make(map[uint64]*keyLease, len(parts))}
	for _, p := range parts {
		l := &keyLease{part: p.Part}
		if old != nil && old.byName[p.Name] != nil {
			l.asked = old.byName[p.Name].asked
		} else {
			l.asked = new(atomic.Uint64)
		}
		next.byName[p.Name] = l
	}
	b.leases.Store(next)
}

// Demands returns, of the keys with a lease and of those without that were refused, the ones with the most requests
// since the call before, at most so many.
func (b *Buckets) Demands(atMost int) []KeyDemand {
	var out []KeyDemand
	leased := b.leases.Load()
	if leased != nil {
		for name, l := range leased.byName {
			if n := l.asked.Swap(0); n > 0 {
				out = append(out, KeyDemand{name, n, true})
			}
		}
	}
	for name, n := range b.pressed.take() {
		if leased == nil || leased.byName[name] == nil {
			out = append(out, KeyDemand{name, n, false})
		}
	}
	slices.SortFunc(out, func(x, y KeyDemand) int { return cmp.Or(cmp.Compare(y.Asked, x.Asked), cmp.Compare(x.Name, y.Name)) })
	return out[:min(len(out), max(0, atMost))]
}
