package limit

import (
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestBuckets_KeysAreIndependent(t *testing.T) {
	b := NewBuckets(10000)
	r := Rate{PerSecond: 1, Burst: 3}
	now := time.Now()
	for i := range 1000 {
		key := strconv.Itoa(i)
		for n := range 5 {
			ok, wait := b.Allow(key, r, now)
			if want := n < 3; ok != want || (wait == 0) != want {
				t.Fatalf("key %s request %d: %v, %v", key, n, ok, wait)
			}
		}
	}
	if b.Len() != 1000 || b.Forgotten() != 0 {
		t.Errorf("%d keys, %d forgotten", b.Len(), b.Forgotten())
	}
}

func TestBuckets_SameAsOneBucketPerKey(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	b := NewBuckets(500)
	model := make(map[string]*Bucket)
	now := time.Now()
	for range 50000 {
		now = now.Add(time.Duration(rng.Int64N(int64(time.Millisecond))))
		key := strconv.Itoa(rng.IntN(500))
		if model[key] == nil {
			model[key] = new(Bucket)
		}
		r := Rate{PerSecond: 1 + 10*rng.Float64(), Burst: 1 + rng.IntN(5)}
		ok, wait := b.Allow(key, r, now)
		if wantOK, wantWait := model[key].Allow(r, now); ok != wantOK || wait != wantWait {
			t.Fatalf("key %s: %v %v, a bucket of its own says %v %v", key, ok, wait, wantOK, wantWait)
		}
	}
}

func TestBuckets_NeverMoreThanMaxKeys(t *testing.T) {
	for _, n := range []int{-1, 0, 1, 2, 7, 1000, 2048, 5000, 100001} {
		b := NewBuckets(n)
		capacity := 0
		for i := range b.shards {
			capacity += b.shards[i].max
		}
		if want := max(1, n); capacity != want {
			t.Errorf("NewBuckets(%d) has room for %d", n, capacity)
		}
		for i := range 3 * max(1, n) {
			b.Allow(strconv.Itoa(i), Rate{PerSecond: 1, Burst: 5}, time.Now())
		}
		if got := b.Len(); got > max(1, n) || got < max(1, n)*95/100 {
			t.Errorf("NewBuckets(%d) holds %d keys", n, got)
		}
		for i := range b.shards {
			if s := &b.shards[i]; len(s.index) != len(s.slots) {
				t.Fatalf("index of %d for %d slots", len(s.index), len(s.slots))
			}
		}
	}
}

func TestBuckets_FullTableTakesRefilledBucketsFirst(t *testing.T) {
	const n = 1000
	b := NewBuckets(n)
	now := time.Now()
	limited := Rate{PerSecond: 0.001, Burst: 1}
	for i := range n {
		r := limited
		if i%2 == 0 {
			r = Rate{PerSecond: 1000, Burst: 10}
		}
		b.Allow("k"+strconv.Itoa(i), r, now)
	}
	now = now.Add(time.Second) // the even ones are full again
	for i := range n / 4 {
		b.Allow("new"+strconv.Itoa(i), Rate{PerSecond: 0.01, Burst: 1}, now)
	}
	if got := b.Forgotten(); got > n/100 {
		t.Errorf("%d of %d buckets with information forgotten while others were full again", got, n/2)
	}
}

// The attack that plain least-recently-used falls to: a client that is being held back floods the table with fresh
// keys, waits for its own bucket to be forgotten, and starts with a new burst.
func TestBuckets_FloodOfFreshKeysDoesNotFreeTheLimited(t *testing.T) {
	const n = 4000
	b := NewBuckets(n)
	r := Rate{PerSecond: 1, Burst: 60}
	now := time.Now()
	const limited = 100
	for i := range limited {
		for range r.Burst {
			b.Allow("limited"+strconv.Itoa(i), r, now)
		}
	}
	for i := range 20 * n {
		b.Allow("flood"+strconv.Itoa(i), r, now)
	}
	freed := 0
	for i := range limited {
		if ok, _ := b.Allow("limited"+strconv.Itoa(i), r, now); ok {
			freed++
		}
	}
	if freed > 0 {
		t.Errorf("%d of %d limited keys were forgotten", freed, limited)
	}
	if b.Forgotten() == 0 {
		t.Error("the flood is not visible in Forgotten")
	}
}

func TestBuckets_LongKeysCostNoMemory(t *testing.T) {
	b := NewBuckets(2000)
	long := strings.Repeat("x", 100_000)
	before := heap()
	for i := range 2000 {
		b.Allow(long+strconv.Itoa(i), Rate{PerSecond: 1, Burst: 1}, time.Now())
	}
	if grown := int64(heap()) - int64(before); grown > 2000*200 {
		t.Errorf("2,000 keys of 100 kB hold %d bytes", grown)
	}
	runtime.KeepAlive(b)
}

// A million users: the table holds what it may, whoever is held back stays so,
// and when they have gone, so has what they took.
func TestBuckets_AMillionUsersComeAndGo(t *testing.T) {
	const most, users = 65536, 1_000_000
	b := NewBuckets(most)
	r := Rate{PerSecond: 1, Burst: 30}
	now := time.Now()
	before := heap()
	size := func() int64 { return int64(heap()) - int64(before) }
	for range r.Burst {
		b.Allow("greedy", r, now)
	}
	for i := range users {
		if ok, _ := b.Allow("user-"+strconv.Itoa(i), r, now); !ok {
			t.Fatalf("user %d is held back for others", i)
		}
		if i%1000 == 0 {
			b.Trim(now) // nothing may be forgotten that still counts
			if ok, _ := b.Allow("greedy", r, now); ok {
				t.Fatalf("who is held back was forgotten after %d users", i)
			}
		}
	}
	full := size()
	if b.Len() > most || full > most*160 {
		t.Errorf("%d keys in %d bytes", b.Len(), full)
	}
	later := now.Add(10 * time.Second) // the crowd's buckets are full again, the greedy one's is not
	for range maxShards {
		b.Trim(later)
	}
	if n := b.Len(); n != 1 {
		t.Errorf("%d keys are left", n)
	}
	if left := size(); left > full/50 {
		t.Errorf("%d of %d bytes are left", left, full)
	}
	for range 10 { // as many as ten seconds brought
		if ok, _ := b.Allow("greedy", r, later); !ok {
			t.Error("refused what was due")
		}
	}
	if ok, _ := b.Allow("greedy", r, later); ok {
		t.Error("who was held back got a fresh bucket")
	}
	runtime.KeepAlive(b)
}

// With and without Trim the same requests pass.
func TestBuckets_TrimChangesNothing(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	trimmed, plain := NewBuckets(4000), NewBuckets(4000)
	now := time.Now()
	for i := range 100_000 {
		key := strconv.Itoa(rng.IntN(1 + rng.IntN(3000)))
		r := Rate{PerSecond: 0.5 + 5*rng.Float64(), Burst: 1 + rng.IntN(5)}
		now = now.Add(time.Duration(rng.IntN(2000)) * time.Microsecond)
		if rng.IntN(1000) == 0 {
			now = now.Add(10 * time.Second)
		}
		if rng.IntN(10) == 0 {
			trimmed.Trim(now)
		}
		a, wait := trimmed.Allow(key, r, now)
		b, want := plain.Allow(key, r, now)
		if a != b || wait != want {
			t.Fatalf("request %d: %t after %v, without Trim %t after %v", i, a, wait, b, want)
		}
	}
	if trimmed.Len() >= plain.Len() {
		t.Errorf("%d keys of %d are left: nothing was trimmed", trimmed.Len(), plain.Len())
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestBuckets_AllowDoesNotAllocate(t *testing.T) {
	b := NewBuckets(64)
	keys := make([]string, 1024)
	for i := range keys {
		keys[i] = strconv.Itoa(i)
		b.Allow(keys[i], Rate{PerSecond: 1, Burst: 1}, time.Now())
	}
	now := time.Now()
	if n := testing.AllocsPerRun(1000, func() { b.Allow("1", Rate{PerSecond: 1, Burst: 1}, now) }); n != 0 {
		t.Errorf("%v allocations for a known key", n)
	}
	i := 0
	if n := testing.AllocsPerRun(5000, func() { b.Allow(keys[i%1024], Rate{PerSecond: 1, Burst: 1}, now); i++ }); n != 0 {
		t.Errorf("%v allocations for a new key in a full table", n)
	}
}

func TestBuckets_ConcurrentUse(t *testing.T) {
	b := NewBuckets(3000)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 0))
			for range 20000 {
				b.Allow(strconv.Itoa(rng.IntN(10000)), Rate{PerSecond: 5, Burst: 2}, time.Now())
			}
		})
	}
	wg.Wait()
	if got := b.Len(); got > 3000 {
		t.Errorf("%d keys", got)
	}
}

func BenchmarkBuckets_Allow(b *testing.B) {
	const n = 100_000
	keys := make([]string, 2*n)
	for i := range keys {
		keys[i] = "customer_service:user-" + strconv.Itoa(i)
	}
	now := time.Now()
	r := Rate{PerSecond: 50, Burst: 100}
	for _, bm := range []struct {
		name string
		keys []string
	}{{"one key", keys[:1]}, {"100,000 known keys", keys[:n]}, {"twice as many keys as room", keys}} {
		b.Run(bm.name, func(b *testing.B) {
			table := NewBuckets(n)
			for _, k := range bm.keys {
				table.Allow(k, r, now)
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				table.Allow(bm.keys[i], r, now)
				if i++; i == len(bm.keys) {
					i = 0
				}
			}
		})
	}
	b.Run("parallel", func(b *testing.B) {
		table := NewBuckets(n)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for i := rand.IntN(n); pb.Next(); i++ {
				table.Allow(keys[i%n], r, now)
			}
		})
	})
}
