// Package limit decides whether a request may go on now: token buckets for rates (Bucket for one thing, Buckets for
// a bounded number of keys) and Gate for the number of requests open at once, with a queue that is fair between
// users; and, where several processes enforce one limit, how it is divided among them (Lessor). It refuses to know what is being limited: no HTTP, no applications, no configuration and no clock of its
// own; callers bring the key, the rate and the time. Where several limits apply, ask the narrowest first (address,
// user, application): a request that a narrow bucket refuses then costs the wide one nothing.
package limit

import (
	"math"
	"time"
)

// Rate is the size of a token bucket: it gains PerSecond tokens a second up to Burst, and each request takes one.
//
// A PerSecond that is zero, negative, not a number or above 1e9 means no limit. A Burst below 1 counts as 1, or
// nothing could ever pass. The spacing of requests is kept in whole nanoseconds, so a rate is exact to about
// PerSecond/1e9 of itself.
type Rate struct {
	PerSecond float64
	Burst     int
}

// Unlimited reports whether r lets everything pass.
func (r Rate) Unlimited() bool {
	return !(r.PerSecond > 0 && r.PerSecond <= 1e9)
}

const (
	// Bounds that keep the sums in decide within an int64, far beyond any rate that makes sense:
	// |now| <= maxNow, interval <= maxInterval, depth <= maxDepth, and their sum stays below 2^63.
	maxNow      = int64(1) << 61 // 73 years either side of the start of the process
	maxInterval = int64(1) << 58 // one request in 9 years
	maxDepth    = int64(1) << 60

	// slack is how far beyond empty a bucket must be before decide takes it for a leftover of another rate. It is
	// not zero because callers take their time before they come here: one that was descheduled for some
	// milliseconds would otherwise see a bucket "beyond empty" and hand out those milliseconds again.
	slack = int64(time.Second)
)

// decide is the generic cell rate algorithm (GCRA, ITU-T I.371), a token bucket whose whole state is one instant:
// full is when the bucket would be full again if nothing more came, 0 meaning that it has never been used. It
// returns the state to store and 0 to admit, or how long to wait until one request would be admitted.
//
// Because the state is a time and not a number of tokens, a change of rate needs no conversion: a bucket whose rate
// and burst are scaled together (a share of a cluster-wide limit) keeps its degree of filling exactly, and one that
// would take longer to fill than the new rate allows counts as empty under the new rate.
func (r Rate) decide(full, now int64) (next, wait int64) {
	interval, depth := r.interval()
	switch {
	case full == 0 || full < now:
		full = now
	case full-now > depth+slack:
		full = now + depth
	}
	if over := full + interval - depth - now; over > 0 {
		return stored(full), over
	}
	return stored(full + interval), 0
}

// interval returns the time one token takes to come and the time the whole bucket takes, in nanoseconds.
func (r Rate) interval() (interval, depth int64) {
	interval = maxInterval
	if f := math.Round(1e9 / r.PerSecond); f < float64(maxInterval) {
		interval = max(1, int64(f))
	}
	burst := int64(max(1, r.Burst))
	if burst > maxDepth/interval {
		return interval, maxDepth
	}
	return interval, burst * interval
}

// stored keeps a real instant apart from the 0 that means "never used".
func stored(full int64) int64 {
	if full == 0 {
		return 1
	}
	return full
}

// epoch is what instants are counted from. Differences to it use the monotonic clock, so that a step of the wall
// clock neither opens nor closes a limit.
var epoch = time.Now()

func instant(t time.Time) int64 {
	return max(-maxNow, min(int64(t.Sub(epoch)), maxNow))
}
