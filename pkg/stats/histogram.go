package stats

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Buckets are log-linear: every power of two of microseconds is cut into
// eight, so a bucket is at most an eighth of its lower bound wide and its
// middle is within 6.3 % of every value in it. The same cut everywhere is what
// lets histograms of different processes merge without loss.
const (
	subBits   = 3
	subCount  = 1 << subBits
	maxExp    = 36 // 2^37 µs is 38 h; what lasts longer counts in the last bucket
	octaves   = maxExp - subBits + 2
	NumBucket = octaves * subCount // buckets of a Histogram; indexes are 0 to NumBucket-1
)

func bucketOf(us uint64) int {
	if us < subCount {
		return int(us)
	}
	e := bits.Len64(us) - 1
	if e > maxExp {
		return NumBucket - 1
	}
	return (e-subBits+1)<<subBits + int(us>>(e-subBits))&(subCount-1)
}

// BucketBounds returns the range lo <= d < hi that bucket i counts. The last
// bucket also holds everything above it.
func BucketBounds(i int) (lo, hi time.Duration) {
	octave, sub := i>>subBits, uint64(i&(subCount-1))
	if octave == 0 {
		return time.Duration(sub) * time.Microsecond, time.Duration(sub+1) * time.Microsecond
	}
	shift := octave - 1
	return time.Duration((subCount+sub)<<shift) * time.Microsecond,
		time.Duration((subCount+sub+1)<<shift) * time.Microsecond
}

// Histogram is a distribution of durations. It is a value: Add and Max change
// the receiver and never share memory with their argument. The zero value is empty.
type Histogram struct {
	// Offset is the index of the bucket that Counts begins with; buckets
	// outside of Counts are zero.
	Offset int
	Counts []uint64
}

// Sum returns the sum of all durations, each taken as the middle of its
// bucket. The exact sum would cost every request one more write and say
// little more.
func (h *Histogram) Sum() time.Duration {
	var sum time.Duration
	for i, c := range h.Counts {
		if c > 0 {
			lo, hi := BucketBounds(h.Offset + i)
			sum += time.Duration(c) * ((lo + hi) / 2)
		}
	}
	return sum
}

// Count returns the number of durations in it.
func (h *Histogram) Count() uint64 {
	var n uint64
	for _, c := range h.Counts {
		n += c
	}
	return n
}

// Quantile returns the duration below which the part p (0 to 1) of all lies,
// as the middle of its bucket; 0 when the histogram is empty.
func (h *Histogram) Quantile(p float64) time.Duration {
	n := h.Count()
	if n == 0 {
		return 0
	}
	return h.at(p, n)
}

// Quantiles is Quantile for several parts at the cost of one count.
func (h *Histogram) Quantiles(into []time.Duration, ps ...float64) []time.Duration {
	n := h.Count()
	for _, p := range ps {
		d := time.Duration(0)
		if n > 0 {
			d = h.at(p, n)
		}
		into = append(into, d)
	}
	return into
}

func (h *Histogram) at(p float64, n uint64) time.Duration {
	rank := uint64(p * float64(n))
	if rank >= n {
		rank = n - 1
	}
	for i, c := range h.Counts {
		if rank < c {
			lo, hi := BucketBounds(h.Offset + i)
			return (lo + hi) / 2
		}
		rank -= c
	}
	return 0
}

// Add sums o into h, for figures of different boots.
func (h *Histogram) Add(o *Histogram) {
	h.cover(o)
	for i, c := range o.Counts {
		h.Counts[o.Offset-h.Offset+i] += c
	}
}

// Max raises h to o bucket by bucket, for two views of the same boot.
func (h *Histogram) Max(o *Histogram) {
	h.cover(o)
	for i, c := range o.Counts {
		p := &h.Counts[o.Offset-h.Offset+i]
		*p = max(*p, c)
	}
}

// cover widens h so that every bucket of o is within Counts.
func (h *Histogram) cover(o *Histogram) {
	if len(o.Counts) == 0 {
		return
	}
	if len(h.Counts) == 0 {
		h.Offset, h.Counts = o.Offset, make([]uint64, len(o.Counts))
		return
	}
	lo := min(h.Offset, o.Offset)
	hi := max(h.Offset+len(h.Counts), o.Offset+len(o.Counts))
	if lo == h.Offset && hi == h.Offset+len(h.Counts) {
		return
	}
	wide := make([]uint64, hi-lo)
	copy(wide[h.Offset-lo:], h.Counts)
	h.Offset, h.Counts = lo, wide
}

// Clone returns a copy that shares nothing.
func (h *Histogram) Clone() Histogram {
	return Histogram{Offset: h.Offset, Counts: append([]uint64(nil), h.Counts...)}
}

// octave is eight neighbouring buckets: one cache line, made when the first
// duration falls into it, because a series sees few of the powers of two.
type octave [subCount]atomic.Uint64

// liveHistogram is one shard's histogram, written by Observe without a lock.
type liveHistogram struct {
	octaves [octaves]atomic.Pointer[octave]
}

func (l *liveHistogram) observe(d time.Duration) {
	i := bucketOf(uint64(max(d, 0)) / uint64(time.Microsecond))
	o := l.octaves[i>>subBits].Load()
	if o == nil {
		o = l.grow(i >> subBits)
	}
	o[i&(subCount-1)].Add(1)
}

func (l *liveHistogram) grow(i int) *octave {
	l.octaves[i].CompareAndSwap(nil, new(octave))
	return l.octaves[i].Load()
}

// addTo sums the shard into a dense array of all buckets.
func (l *liveHistogram) addTo(dense *[NumBucket]uint64) {
	for i := range l.octaves {
		if o := l.octaves[i].Load(); o != nil {
			for j := range o {
				dense[i<<subBits+j] += o[j].Load()
			}
		}
	}
}

// pack cuts the empty ends off a dense array.
func pack(dense *[NumBucket]uint64) Histogram {
	lo, hi := 0, len(dense)
	for lo < hi && dense[lo] == 0 {
		lo++
	}
	for hi > lo && dense[hi-1] == 0 {
		hi--
	}
	if lo == hi {
		return Histogram{}
	}
	return Histogram{Offset: lo, Counts: append([]uint64(nil), dense[lo:hi]...)}
}
