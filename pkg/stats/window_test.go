package stats

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func observed(ds ...time.Duration) Histogram {
	var live liveHistogram
	for _, d := range ds {
		live.observe(d)
	}
	var dense [NumBucket]uint64
	live.addTo(&dense)
	return pack(&dense)
}

func (h *Histogram) equal(o *Histogram) bool {
	var a, b [NumBucket]uint64
	copy(a[h.Offset:], h.Counts)
	copy(b[o.Offset:], o.Counts)
	return a == b
}

// TestWindow_HoldsTheLastMinute compares the window with every duration and
// when it came, over random looks with gaps, from two processes at once.
func TestWindow_HoldsTheLastMinute(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	type one struct {
		slot int64
		d    time.Duration
	}
	var all []one
	var w Window
	var cumulative [2]Histogram
	slot := int64(3)
	for range 4000 {
		slot += []int64{0, 0, 0, 1, 1, 2, 20}[r.IntN(7)]
		p := r.IntN(2)
		before := cumulative[p].Clone()
		for range r.IntN(4) {
			d := time.Duration(r.ExpFloat64() * float64(50*time.Millisecond))
			if d <= 0 {
				continue
			}
			h := observed(d)
			cumulative[p].Add(&h)
			all = append(all, one{slot, d})
		}
		w.Add(slot, &before, &cumulative[p])

		var want Histogram
		for _, o := range all {
			if o.slot > slot-windowSlots {
				h := observed(o.d)
				want.Add(&h)
			}
		}
		var got Histogram
		if any := w.AddTo(slot, &got); any != (want.Count() > 0) {
			t.Fatalf("AddTo says %v, and %d are of the last minute", any, want.Count())
		}
		if !got.equal(&want) {
			t.Fatalf("in slot %d it holds %v, want %v", slot, got, want)
		}
		if len(w.slots) > windowSlots {
			t.Fatalf("it keeps %d slots", len(w.slots))
		}
		all = slices.DeleteFunc(all, func(o one) bool { return o.slot <= slot-windowSlots })
	}
}

func TestWindow_ForgetsWhatIsOver(t *testing.T) {
	var w Window
	h := observed(time.Millisecond, time.Second)
	w.Add(0, &Histogram{}, &h)
	var got Histogram
	if !w.AddTo(windowSlots-1, &got) || got.Count() != 2 {
		t.Errorf("within the minute it holds %d, want 2", got.Count())
	}
	if w.AddTo(windowSlots, &got); w.slots != nil || got.Count() != 2 {
		t.Errorf("after a minute it holds %v and adds %d", w.slots, got.Count()-2)
	}
}

func TestWindow_ACumulativeHistogramThatWentBackCountsNothing(t *testing.T) {
	var w Window
	before, after := observed(time.Second, time.Second, time.Millisecond), observed(time.Second)
	w.Add(0, &before, &after)
	var got Histogram
	if w.AddTo(0, &got) {
		t.Errorf("it holds %v", got)
	}
}

func TestWindow_AClockThatWentBackCountsInTheNewestSlot(t *testing.T) {
	var w Window
	one, two := observed(time.Second), observed(time.Second, time.Second)
	w.Add(5, &Histogram{}, &one)
	w.Add(3, &one, &two)
	var got Histogram
	if w.AddTo(5, &got); got.Count() != 2 || len(w.slots) != 1 {
		t.Errorf("it holds %d in %d slots, want 2 in 1", got.Count(), len(w.slots))
	}
}
