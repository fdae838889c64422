//go:build linux

package load

import (
	"math/bits"
	"time"
)

// Histogram counts durations with an error below 1.6 %. The zero value is
// empty.
type Histogram struct {
	counts [64 * subBuckets]uint32
	total  int64
}

const (
	subBits    = 6
	subBuckets = 1 << subBits
)

// Record counts d; less than zero counts as zero.
func (h *Histogram) Record(d time.Duration) {
	h.counts[bucket(uint64(max(d, 0)))]++
	h.total++
}

// bucket keeps the subBits+1 highest bits of ns.
func bucket(ns uint64) int {
	shift := max(0, bits.Len64(ns)-subBits-1)
	return shift<<subBits + int(ns>>shift)
}

// middle is the inverse of bucket.
func middle(b int) time.Duration {
	if b < 2*subBuckets {
		return time.Duration(b)
	}
	shift := b>>subBits - 1
	low := uint64(b-shift<<subBits) << shift
	return time.Duration(low + 1<<shift/2)
}

// Count returns how many durations were recorded.
func (h *Histogram) Count() int64 { return h.total }

// Quantile returns the duration that the share q of all does not exceed, 0 of
// an empty Histogram.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := int64(q * float64(h.total))
	for b, n := range h.counts {
		if rank -= int64(n); rank < 0 {
			return middle(b)
		}
	}
	for b := len(h.counts) - 1; b >= 0; b-- { // q is 1
		if h.counts[b] > 0 {
			return middle(b)
		}
	}
	return 0
}
