package limit

import (
	"hash/maphash"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxShards   = 64
	minPerShard = 1024 // below it the shards' unequal filling would waste too much of the table
	sample      = 8    // slots looked at for each of the two steps of an eviction
)

// Buckets is a table of token buckets, one for each key, with a fixed upper bound on their number and on its memory:
// a key costs at most 150 bytes however long it is, because only a 128-bit keyed hash of it is kept. Trim gives back what
// a crowd has left behind. Safe for concurrent use; a call holds the lock of one shard for some ten nanoseconds and
// never waits for anything else, but where Trim has just found a shard mostly idle, which takes some 0.1 ms.
//
// When the table is full, a new key takes the place of one whose bucket is full again, which loses nothing, or else,
// of a small random sample, of the one that would be full soonest. For keys of one rate that is the one that asked
// least and longest ago. Plain least-recently-used was rejected: a flood of fresh keys would push out just those
// buckets that hold somebody back.
//
// What a client with many keys can do: have a fresh burst for each key (hence a wider limit above the one by key),
// and, with more keys in use than the table holds, make it forget lightly used buckets, whose owners then have a
// little more than their due. What it cannot do: get anybody refused (forgetting only ever gives), use more memory,
// slow the others' lookups down, choose whom the table forgets or aim at one shard (the hash is keyed by a secret of
// the process), or make room for a bucket it has emptied itself while its own fresh ones are there to be taken.
type Buckets struct {
	seeds     [2]maphash.Seed
	shards    []shard // a power of two of them; immutable after NewBuckets
	forgotten atomic.Uint64
	trimmed   atomic.Uint32 // how often Trim was called

	hasher  atomic.Pointer[Hasher]    // nil: keys have no names
	leases  atomic.Pointer[keyLeases] // nil: none
	pressed pressure
}

type fingerprint [2]uint64

type shard struct {
	mu    sync.Mutex // guards the fields below
	index map[fingerprint]uint32
	slots []slot   // len(slots) == len(index) <= max
	names []uint64 // of the keys in slots, see Hasher; 0: none. Apart, as most requests need none
	max   int
	hand  int // where the next look for a bucket that is full again starts
	_     [64]byte
}

type slot struct {
	key  fingerprint
	full int64 // see Rate.decide
}

// NewBuckets makes an empty table for at most maxKeys keys; less than 1 counts as 1. Memory is taken as keys come.
// From 2,048 keys on the table is divided, and as keys do not fall quite evenly, a division can be full, and forget,
// when the whole is some percent short of maxKeys.
func NewBuckets(maxKeys int) *Buckets {
	maxKeys = max(1, maxKeys)
	n := 1
	for n < maxShards && maxKeys/(2*n) >= minPerShard {
		n *= 2
	}
	b := &Buckets{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, shards: make([]shard, n)}
	for i := range b.shards {
		s := &b.shards[i]
		s.index = make(map[fingerprint]uint32)
		s.max = maxKeys / n
		if i < maxKeys%n {
			s.max++
		}
	}
	return b
}

// Allow is Bucket.Allow for the bucket of key. A rate without limit is answered without looking at the table. key is
// not kept. Nothing is allocated for a key that is in the table, nor for a new one once the table is full.
func (b *Buckets) Allow(key string, r Rate, now time.Time) (ok bool, retryAfter time.Duration) {
	return b.AllowPart(key, r, 1, now)
}

// AllowPart is Allow with a part of a rate that is shared with others: the part leased to this key, see Lease, or
// without one the part given.
func (b *Buckets) AllowPart(key string, whole Rate, part float64, now time.Time) (ok bool, retryAfter time.Duration) {
	if whole.Unlimited() {
		return true, 0
	}
	at := instant(now)
	leases := b.leases.Load()
	if leases != nil && leases.until <= at {
		leases = nil
	}
	k := fingerprint{maphash.String(b.seeds[0], key), maphash.String(b.seeds[1], key)}
	s := &b.shards[k[0]&uint64(len(b.shards)-1)]

	s.mu.Lock()
	i, known := s.index[k]
	forgot := false
	if !known {
		i, forgot = s.addLocked(k, b.name(key), at)
	}
	var lease *keyLease
	even := part
	if leases != nil {
		if lease = leases.byName[s.names[i]]; lease != nil {
			part = lease.part
		}
	}
	next, wait := whole.Part(part, even).decide(s.slots[i].full, at)
	s.slots[i].full = next
	var name uint64
	if wait != 0 {
		name = s.names[i]
	}
	s.mu.Unlock()

	if forgot {
		b.forgotten.Add(1)
	}
	if lease != nil {
		lease.asked.Add(1)
	} else if wait != 0 {
		b.pressed.note(name)
	}
	return wait == 0, time.Duration(wait)
}

func (b *Buckets) name(key string) uint64 {
	if h := b.hasher.Load(); h != nil {
		return h.Hash(key)
	}
	return 0
}

// Len returns the number of keys in the table.
func (b *Buckets) Len() int {
	n := 0
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		n += len(s.slots)
		s.mu.Unlock()
	}
	return n
}

// Forgotten returns how many keys lost their place while their bucket was not full again. Growth says that the table
// is too small for its traffic, or that somebody invents keys.
func (b *Buckets) Forgotten() uint64 { return b.forgotten.Load() }

// Trim looks at one part of the table, the next with each call, and gives its room back where three quarters of the
// keys in it have buckets that are full again: to forget those loses nothing. Call it about once a second: then all of
// the table is looked at within a minute.
func (b *Buckets) Trim(now time.Time) {
	s := &b.shards[b.trimmed.Add(1)&uint32(len(b.shards)-1)]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trimLocked(instant(now))
}

// minTrimmed is how many keys of a shard are not worth looking at.
const minTrimmed = 32

func (s *shard) trimLocked(now int64) {
	if len(s.slots) < minTrimmed {
		return
	}
	used := 0
	for i := range s.slots {
		if s.slots[i].full > now {
			used++
		}
	}
	if used > len(s.slots)/4 {
		return
	}
	slots, names := make([]slot, 0, used), make([]uint64, 0, used)
	index := make(map[fingerprint]uint32, used)
	for i, old := range s.slots {
		if old.full > now {
			index[old.key] = uint32(len(slots))
			slots, names = append(slots, old), append(names, s.names[i])
		}
	}
	s.slots, s.names, s.index, s.hand = slots, names, index, 0
}

// addLocked makes a slot for k and reports whether a bucket that still held somebody back had to go for it.
func (s *shard) addLocked(k fingerprint, name uint64, now int64) (i uint32, forgot bool) {
	if len(s.slots) < s.max {
		i = uint32(len(s.slots))
		s.slots = append(s.slots, slot{key: k})
		s.names = append(s.names, name)
		s.index[k] = i
		return i, false
	}
	v := s.victimLocked(now)
	forgot = s.slots[v].full > now
	delete(s.index, s.slots[v].key)
	s.slots[v], s.names[v] = slot{key: k}, name
	s.index[k] = uint32(v)
	return uint32(v), forgot
}

// victimLocked picks the slot to reuse in a full shard. The hand comes past every slot once in len(slots)/sample
// evictions, so that no bucket that is full again is overlooked for long, as with random samples alone it could be.
func (s *shard) victimLocked(now int64) int {
	n := len(s.slots)
	for range min(sample, n) {
		s.hand = (s.hand + 1) % n
		if s.slots[s.hand].full <= now {
			return s.hand
		}
	}
	victim := rand.IntN(n)
	for range sample - 1 {
		if i := rand.IntN(n); s.slots[i].full < s.slots[victim].full {
			victim = i
		}
	}
	return victim
}
