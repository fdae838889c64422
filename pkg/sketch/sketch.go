// Package sketch remembers of the users of one application, in bounded memory,
// who was seen within the last day: a sample from which can be told how many
// there were, and how many of them a change would move. Samples of several
// proxies merge into the one that a single proxy would have taken. It refuses
// to know who the users are and where they are placed: it is given points, and
// gives points back.
package sketch

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Size is how many users a Sample holds at most: of more it holds those whose
// scrambled points are the lowest, so that every user is as likely in it as any
// other. Numbers and shares estimated from a full one are within 5 % and 2.3 %
// (one standard deviation) of the truth; one that is not full is exact.
const Size = 512

// Window is for how long a user is remembered, to the hour: he is in a Sample
// until 24 to 25 hours after he was last seen.
const Window = 24 * time.Hour

const (
	hour    = time.Hour
	windows = int64(Window/hour) + 1 // hours that a Sample covers, the present one included
)

// Recent follows the users of one application in one proxy. It is safe for
// concurrent use; the zero value has seen nobody. It holds half a KiB, and some 64
// bytes per user of at most 2,000 in practice: Size for each hour of the window
// in which none of those of another hour came back.
type Recent struct {
	// limit is the highest scrambled point that still matters in its hour;
	// nil while all do.
	limit atomic.Pointer[limit]
	// touched are the users noted last, so that who comes again and again costs
	// no lock; nil while nobody was. It has room for twice as many as there are,
	// in pairs of which one is a user's place, the later one first.
	touched atomic.Pointer[[]pair]

	version atomic.Uint64

	mu     sync.Mutex
	kind   string           // guarded by mu, as is all below
	last   map[uint64]int64 // the hour in which a scrambled point was last seen
	prune  int              // the length of last at which it is gone through
	newest int64            // hour
}

// pair holds the marks of two users.
type pair [2]atomic.Uint64

// How many pairs touched has.
const (
	minTouched = 32
	maxTouched = 2048
)

type limit struct {
	hour int64
	max  uint64
	kind string
}

// Seen notes that the user at a point was seen. kind names what the point is
// one of, such as a hash algorithm; points of different kinds do not mix, so
// another kind than before forgets what was. It costs some nanoseconds for most
// users of an application that has many.
func (r *Recent) Seen(kind string, point uint64, now time.Time) {
	h := scramble(point)
	at := now.Unix() / int64(hour/time.Second)
	if l := r.limit.Load(); l != nil && l.hour == at && h > l.max && l.kind == kind {
		return
	}
	// Another hour gives another mark, so that he is noted in each. 0 is no
	// mark, and what a user costs who has it is a lock.
	mark := h ^ scramble(uint64(at)) ^ kindMark(kind)
	if t := r.touched.Load(); t != nil && mark != 0 {
		if at := &(*t)[h%uint64(len(*t))]; at[0].Load() == mark || at[1].Load() == mark {
			return
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kind != kind || r.last == nil {
		r.kind, r.last, r.prune, r.newest = kind, make(map[uint64]int64), 2*Size, at
		r.limit.Store(nil)
		r.touched.Store(nil)
	}
	t := r.touched.Load()
	switch {
	case t == nil:
		t = r.touchLocked(minTouched)
	case len(*t) < len(r.last) && len(*t) < maxTouched:
		t = r.touchLocked(2 * len(*t))
	}
	place := &(*t)[h%uint64(len(*t))]
	place[1].Store(place[0].Load())
	place[0].Store(mark)
	r.turnLocked(at)
	before, known := r.last[h]
	if !known {
		r.version.Add(1)
	}
	if !known || before < at || before > r.newest {
		r.last[h] = at
	}
	if len(r.last) >= r.prune {
		r.pruneLocked()
		r.prune = len(r.last) + Size
	}
}

// touchLocked makes so many pairs.
func (r *Recent) touchLocked(size int) *[]pair {
	t := make([]pair, size)
	r.touched.Store(&t)
	return &t
}

// turnLocked takes note of the hour. A clock that was set back by more than
// what callers may be late is believed: else whoever is seen from now on would
// count as seen long ago.
func (r *Recent) turnLocked(at int64) {
	if at < r.newest-1 {
		r.limit.Store(nil) // it is of an hour that is still to come
	} else if at <= r.newest {
		return
	}
	r.newest = at
}

// Version grows when a user comes who was not known; while it stays, a Sample
// only loses users, to time. 0 means that nobody was seen.
func (r *Recent) Version() uint64 { return r.version.Load() }

// kindMark tells kinds apart in marks. Kinds are few and short.
func kindMark(kind string) uint64 {
	var v uint64
	for i := range len(kind) {
		v = v*31 + uint64(kind[i])
	}
	return scramble(v + 1)
}

type entry struct {
	h  uint64
	at int64
}

// pruneLocked forgets who left the window, and who can't be in a Sample any
// more, now or later: there are Size users with lower points who were seen in
// the same hour or later, so they stay in the window at least as long as he.
func (r *Recent) pruneLocked() []entry {
	entries := make([]entry, 0, len(r.last))
	for h, at := range r.last {
		at = min(at, r.newest) // of a time when the clock was ahead
		if at > r.newest-windows {
			entries = append(entries, entry{h, at})
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.h, b.h) })
	var seen [windows]int // by age in hours
	kept := entries[:0]
	var highest *limit
	for _, e := range entries {
		age := max(r.newest-e.at, 0)
		lower := 0
		for i := range age + 1 {
			lower += seen[i]
		}
		if lower >= Size {
			continue
		}
		kept = append(kept, e)
		seen[age]++
		if seen[0] == Size && highest == nil {
			highest = &limit{hour: r.newest, max: e.h, kind: r.kind}
		}
	}
	clear(r.last)
	for _, e := range kept {
		r.last[e.h] = e.at
	}
	r.limit.Store(highest)
	return kept
}

// Sample returns a sample of the users seen within the window that ends now.
func (r *Recent) Sample(now time.Time) Sample {
	at := now.Unix() / int64(hour/time.Second)
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Sample{Kind: r.kind}
	r.turnLocked(at)
	if r.last == nil {
		return s
	}
	for _, e := range r.pruneLocked() {
		if len(s.hashes) == Size {
			break
		}
		s.hashes = append(s.hashes, e.h)
	}
	return s
}

// scramble is a bijection that spreads points as if at random (the finalizer
// of splitmix64): with crc32, points of similar ids are not.
func scramble(z uint64) uint64 {
	z += 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// unscramble is the inverse of scramble.
func unscramble(z uint64) uint64 {
	z = (z ^ z>>31 ^ z>>62) * 0x319642b2d24d8ec3
	z = (z ^ z>>27 ^ z>>54) * 0x96de1b173f119089
	return (z ^ z>>30 ^ z>>60) - 0x9e3779b97f4a7c15
}
