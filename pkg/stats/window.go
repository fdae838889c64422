package stats

import "time"

const (
	// WindowSlot is the step by which a Window moves on.
	WindowSlot  = 5 * time.Second
	windowSlots = 12
	// WindowSpan is the time that a Window covers at most; at least it is one
	// WindowSlot less.
	WindowSpan = windowSlots * WindowSlot
)

// Window is a histogram of the last minute. It is made of successive looks at
// cumulative histograms: what came between two of them is kept apart for each
// WindowSlot and forgotten after WindowSpan. Windows are exact; quantiles of
// several are taken from their sum. It costs a few bytes for each bucket of a
// slot that counts anything, whatever the rate. The zero value is empty. It is
// not safe for concurrent use.
type Window struct {
	slots []windowSlot // by number, the newest last
}

// windowSlot is sparse: most instances answer a few requests in five seconds.
type windowSlot struct {
	number int64
	counts []bucketCount // by bucket
}

type bucketCount struct {
	bucket uint16
	count  uint32 // at most 800 million a second
}

// Add counts in slot number what after holds more than before. Numbers that
// went back count in the newest slot.
func (w *Window) Add(number int64, before, after *Histogram) {
	var s *windowSlot
	for i, c := range after.Counts {
		bucket := after.Offset + i
		if j := bucket - before.Offset; j >= 0 && j < len(before.Counts) {
			c -= min(c, before.Counts[j])
		}
		if c == 0 {
			continue
		}
		if s == nil {
			s = w.slot(number)
		}
		s.add(uint16(bucket), c)
	}
}

func (w *Window) slot(number int64) *windowSlot {
	n := len(w.slots)
	if n > 0 && w.slots[n-1].number >= number {
		return &w.slots[n-1]
	}
	w.Expire(number)
	w.slots = append(w.slots, windowSlot{number: number})
	return &w.slots[len(w.slots)-1]
}

func (s *windowSlot) add(bucket uint16, n uint64) {
	i := len(s.counts)
	for i > 0 && s.counts[i-1].bucket >= bucket {
		i--
	}
	if i == len(s.counts) || s.counts[i].bucket != bucket {
		s.counts = append(s.counts, bucketCount{})
		copy(s.counts[i+1:], s.counts[i:])
		s.counts[i] = bucketCount{bucket: bucket}
	}
	c := &s.counts[i].count
	*c = uint32(min(uint64(*c)+n, 1<<32-1))
}

// Expire forgets what is older than the window that ends in slot number, and
// reports whether nothing is left.
func (w *Window) Expire(number int64) bool {
	old := 0
	for old < len(w.slots) && w.slots[old].number <= number-windowSlots {
		old++
	}
	if old > 0 {
		kept := copy(w.slots, w.slots[old:])
		clear(w.slots[kept:])
		if w.slots = w.slots[:kept]; kept == 0 {
			w.slots = nil
		}
	}
	return len(w.slots) == 0
}

// AddTo adds what the window that ends in slot number holds to h, and reports
// whether it holds anything.
func (w *Window) AddTo(number int64, h *Histogram) bool {
	if w.Expire(number) {
		return false
	}
	lo, hi := NumBucket, 0
	for i := range w.slots {
		c := w.slots[i].counts // never empty
		lo, hi = min(lo, int(c[0].bucket)), max(hi, int(c[len(c)-1].bucket)+1)
	}
	h.cover(&Histogram{Offset: lo, Counts: make([]uint64, hi-lo)})
	for i := range w.slots {
		for _, c := range w.slots[i].counts {
			h.Counts[int(c.bucket)-h.Offset] += uint64(c.count)
		}
	}
	return true
}
