package limit

import (
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestBucket_AdmitsBurstThenRate(t *testing.T) {
	for _, tc := range []struct {
		name  string
		rate  Rate
		burst int
		gap   time.Duration
	}{
		{"plain", Rate{PerSecond: 10, Burst: 5}, 5, 100 * time.Millisecond},
		{"slower than one a second", Rate{PerSecond: 0.5, Burst: 2}, 2, 2 * time.Second},
		{"no burst is one", Rate{PerSecond: 4}, 1, 250 * time.Millisecond},
		{"negative burst is one", Rate{PerSecond: 4, Burst: -3}, 1, 250 * time.Millisecond},
		{"fast", Rate{PerSecond: 1e6, Burst: 1000}, 1000, time.Microsecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, start := range []time.Time{time.Now(), time.Unix(0, 0), time.Unix(4e9, 0), {}, epoch} {
				var b Bucket
				now := start
				for i := range tc.burst {
					if ok, wait := b.Allow(tc.rate, now); !ok || wait != 0 {
						t.Fatalf("start %v, request %d of the burst: %v, %v", start, i, ok, wait)
					}
				}
				for i := range 3 {
					ok, wait := b.Allow(tc.rate, now)
					if ok || wait != tc.gap {
						t.Fatalf("start %v, after the burst: %v, wait %v, want %v", start, ok, wait, tc.gap)
					}
					if start.IsZero() {
						break // instants that far away are all one
					}
					if ok, wait = b.Allow(tc.rate, now.Add(tc.gap-1)); ok || wait != 1 {
						t.Fatalf("start %v, 1 ns early: %v, %v", start, ok, wait)
					}
					now = now.Add(tc.gap)
					if ok, _ = b.Allow(tc.rate, now); !ok {
						t.Fatalf("start %v, token %d did not come in time", start, i)
					}
				}
			}
		})
	}
}

func TestBucket_NoLimit(t *testing.T) {
	for _, rate := range []float64{0, -1, math.NaN(), math.Inf(1), math.Inf(-1), 2e9} {
		var b Bucket
		for range 10 {
			if ok, wait := b.Allow(Rate{PerSecond: rate}, time.Now()); !ok || wait != 0 {
				t.Fatalf("rate %v: %v, %v", rate, ok, wait)
			}
		}
	}
}

func TestBucket_ExtremeRatesDoNotOverflow(t *testing.T) {
	times := []time.Time{{}, time.Unix(0, 0), time.Now(), time.Unix(1<<40, 0)}
	for _, rate := range []Rate{{1e-300, 1}, {1e-300, math.MaxInt}, {1e9, math.MaxInt}, {1e9, 1}, {math.SmallestNonzeroFloat64, math.MinInt}} {
		var b Bucket
		for _, now := range times {
			if ok, wait := b.Allow(rate, now); !ok && (wait <= 0 || int64(wait) > maxInterval+slack) {
				t.Errorf("%+v at %v: wait %v", rate, now, wait)
			}
		}
	}
}

// The property that defines a token bucket: no stretch of time, however chosen, sees more than burst + rate * length.
func TestBucket_NeverMoreThanBurstPlusRate(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		r := Rate{PerSecond: math.Exp(rng.Float64()*10 - 2), Burst: 1 + rng.IntN(20)}
		interval, _ := r.interval()
		var b Bucket
		now := time.Now()
		var admitted []time.Time
		for range 300 {
			now = now.Add(time.Duration(rng.ExpFloat64() * float64(interval) / 2))
			ok, wait := b.Allow(r, now)
			if ok {
				admitted = append(admitted, now)
				continue
			}
			var copied Bucket
			copied.full.Store(b.full.Load())
			if ok, _ := copied.Allow(r, now.Add(wait)); !ok {
				t.Fatalf("%+v: not admitted after the wait it named", r)
			}
		}
		for i := range admitted {
			for j := i; j < len(admitted); j++ {
				most := r.Burst + int(int64(admitted[j].Sub(admitted[i]))/interval)
				if got := j - i + 1; got > most {
					t.Fatalf("%+v: %d admitted in %v, at most %d", r, got, admitted[j].Sub(admitted[i]), most)
				}
			}
		}
	}
}

func TestBucket_RateChangesBetweenCalls(t *testing.T) {
	now := time.Now()
	var b Bucket
	slow := Rate{PerSecond: 0.01, Burst: 10}
	for range 10 {
		b.Allow(slow, now)
	}
	fast := Rate{PerSecond: 100, Burst: 10}
	if ok, wait := b.Allow(fast, now); ok || wait != 10*time.Millisecond {
		t.Errorf("an empty bucket made faster: %v, %v; want to wait one interval of the new rate", ok, wait)
	}
	if ok, _ := b.Allow(fast, now.Add(10*time.Millisecond)); !ok {
		t.Error("a bucket made faster still waits for the old rate")
	}

	var half Bucket
	whole := Rate{PerSecond: 100, Burst: 40}
	for range 20 {
		half.Allow(whole, now)
	}
	share, got := Rate{PerSecond: 25, Burst: 10}, 0
	for {
		if ok, _ := half.Allow(share, now); !ok {
			break
		}
		got++
	}
	if got != 5 {
		t.Errorf("half a bucket scaled to a quarter admits %d, want half of its 10", got)
	}
}

func TestBucket_StaleCallersGainNothing(t *testing.T) {
	var b Bucket
	r := Rate{PerSecond: 1000, Burst: 10}
	now := time.Now()
	admitted := 0
	for i := range 1000 {
		at := now
		if i%2 == 1 {
			at = now.Add(-50 * time.Millisecond)
		}
		if ok, _ := b.Allow(r, at); ok {
			admitted++
		}
	}
	if admitted != 10 {
		t.Errorf("%d admitted at one instant, half of the callers being late; want the burst of 10", admitted)
	}
}

func TestBucket_ConcurrentCallersShareOneBurst(t *testing.T) {
	var b Bucket
	var admitted atomic.Int64
	var wg sync.WaitGroup
	now := time.Now()
	for range 8 {
		wg.Go(func() {
			for range 5000 {
				if ok, _ := b.Allow(Rate{PerSecond: 1, Burst: 1000}, now); ok {
					admitted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if admitted.Load() != 1000 {
		t.Errorf("%d admitted, want 1000", admitted.Load())
	}
}

func BenchmarkBucket_Allow(b *testing.B) {
	for _, bm := range []struct {
		name string
		rate Rate
	}{{"admitted", Rate{PerSecond: 1e9, Burst: math.MaxInt}}, {"refused", Rate{PerSecond: 0.001, Burst: 1}}} {
		b.Run(bm.name, func(b *testing.B) {
			var bucket Bucket
			now := time.Now()
			b.ReportAllocs()
			for b.Loop() {
				bucket.Allow(bm.rate, now)
			}
		})
	}
}
