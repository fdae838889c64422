package limit

import (
	"sync/atomic"
	"time"
)

// Bucket is one token bucket. The zero value is a full one. It is safe for concurrent use, takes no lock, and must
// not be copied after first use.
type Bucket struct {
	full atomic.Int64 // see Rate.decide
}

// Allow takes a token if there is one. If not, it takes nothing and returns how long it will be, more than zero,
// until there is one for a single caller. The rate is that of this call and may differ from the one before: a
// bucket keeps the time it needs to be full again, so scaling PerSecond and Burst together changes nothing in how
// full it is, and after a change to a faster rate it is at worst empty. now should come from time.Now; a time
// somewhat older than that of another caller does no harm.
func (b *Bucket) Allow(r Rate, now time.Time) (ok bool, retryAfter time.Duration) {
	if r.Unlimited() {
		return true, 0
	}
	at := instant(now)
	for {
		full := b.full.Load()
		next, wait := r.decide(full, at)
		// A refusal mostly changes nothing, and then writes nothing: a flood of refused requests only reads.
		if next == full || b.full.CompareAndSwap(full, next) {
			return wait == 0, time.Duration(wait)
		}
	}
}
