package sketch

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"
)

var start = time.Unix(1_700_000_000, 0).Truncate(time.Hour)

// brute is who was seen when, without bounds.
type brute map[uint64]int64

func (b brute) sample(kind string, now time.Time) Sample {
	s := Sample{Kind: kind}
	for p, at := range b {
		if at > now.Unix()/3600-windows {
			s.hashes = append(s.hashes, scramble(p))
		}
	}
	slices.Sort(s.hashes)
	s.hashes = s.hashes[:min(len(s.hashes), Size)]
	return s
}

func equal(a, b Sample) bool { return a.Kind == b.Kind && slices.Equal(a.hashes, b.hashes) }

func TestScramble_IsABijection(t *testing.T) {
	for range 100_000 {
		p := rand.Uint64()
		if unscramble(scramble(p)) != p {
			t.Fatalf("%x becomes %x", p, unscramble(scramble(p)))
		}
	}
}

// What is forgotten must never be missed, however the hours pass.
func TestRecent_SamplesAsIfItRememberedAll(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			var r Recent
			all := make(brute)
			now := start
			users := []int{300, 3000, 20000}[seed%3]
			for range 60 {
				base := uint64(rng.IntN(4)) * uint64(users) // who comes changes with the hour
				for range rng.IntN(6000) {
					p := base + uint64(rng.IntN(users))
					r.Seen("crc32", p, now)
					all[p] = now.Unix() / 3600
				}
				if rng.IntN(3) == 0 {
					if got, want := r.Sample(now), all.sample("crc32", now); !equal(got, want) {
						t.Fatalf("%d of %d users, want %d", got.Len(), len(all), want.Len())
					}
				}
				if n := len(r.last); n > int(windows)*Size+Size {
					t.Fatalf("remembers %d users", n)
				}
				now = now.Add(time.Duration(rng.IntN(100)) * time.Minute)
				if rng.IntN(15) == 0 {
					now = now.Add(30 * time.Hour)
				}
			}
		})
	}
}

func TestRecent_ForgetsAfterTheWindow(t *testing.T) {
	var r Recent
	r.Seen("md5", 1, start)
	r.Seen("md5", 2, start.Add(2*time.Hour))
	r.Seen("md5", 1, start) // again, which changes nothing
	for after, want := range map[time.Duration]int{0: 2, 24 * time.Hour: 2, 25 * time.Hour: 1, 26*time.Hour + 59*time.Minute: 1} {
		var c Recent
		c.Seen("md5", 1, start)
		c.Seen("md5", 2, start.Add(2*time.Hour))
		if got := c.Sample(start.Add(after)).Len(); got != want {
			t.Errorf("after %s %d users, want %d", after, got, want)
		}
	}
	if got := r.Sample(start.Add(27 * time.Hour)).Len(); got != 0 {
		t.Errorf("after 27 hours %d users", got)
	}
}

// A clock that jumps, by an hour or by far, and back: nobody is forgotten for
// long, and nobody is remembered for longer than the window.
func TestRecent_ClockThatJumps(t *testing.T) {
	for _, jump := range []time.Duration{time.Hour, 90 * time.Minute, 40 * 24 * time.Hour, -time.Hour, -90 * time.Minute, -40 * 24 * time.Hour} {
		var r Recent
		seen := func(n int, now time.Time) {
			for i := range uint64(n) {
				r.Seen("crc32", i, now)
			}
		}
		seen(5000, start)
		seen(5000, start.Add(jump))
		if n := r.Sample(start.Add(jump)).Users(); n < 4000 || n > 6000 {
			t.Errorf("jump by %s: about %.0f users, want 5000", jump, n)
		}
		seen(3000, start)
		now := start
		if n := r.Sample(now).Users(); n < 2000 || n > 6000 {
			t.Errorf("jump by %s and back: about %.0f users, want 3000 to 5000", jump, n)
		}
		// Only some of them go on.
		for range windows + 2 {
			now = now.Add(time.Hour)
			seen(100, now)
			if n := r.Sample(now).Users(); n < 100 {
				t.Errorf("jump by %s, %s after it: %.0f users, want 100 at least", jump, now.Sub(start), n)
			}
		}
		if s := r.Sample(now); s.Len() != 100 {
			t.Errorf("jump by %s, a day later: %d users in the sample, want the 100 who came", jump, s.Len())
		}
	}
}

func TestRecent_KindsDoNotMix(t *testing.T) {
	var r Recent
	for i := range uint64(2000) {
		r.Seen("crc32", i, start)
	}
	r.Seen("xxhash", 5, start)
	if s := r.Sample(start); s.Kind != "xxhash" || s.Len() != 1 || !s.Exact() {
		t.Errorf("%s with %d users", s.Kind, s.Len())
	}
	var none Recent
	if s := none.Sample(start); s.Len() != 0 || s.Users() != 0 || s.Share(func(uint64) bool { return true }) != 0 {
		t.Errorf("of nobody %+v", s)
	}
}

func TestSample_Estimates(t *testing.T) {
	for _, n := range []int{1, 100, Size - 1, Size, 5_000, 200_000} {
		var r Recent
		for i := range n {
			r.Seen("crc32", uint64(i)<<3, start) // far from random
		}
		s := r.Sample(start)
		users := s.Users()
		share := s.Share(func(p uint64) bool { return p>>3 < uint64(n)/4 })
		if n < Size {
			if users != float64(n) || !s.Exact() || share != float64(n/4)/float64(n) {
				t.Errorf("of %d users it counts %v, and %v of them", n, users, share)
			}
			continue
		}
		// Four standard deviations.
		if off := math.Abs(users/float64(n) - 1); off > 4/math.Sqrt(Size) {
			t.Errorf("of %d users it says %v", n, users)
		}
		if off := math.Abs(share - 0.25); off > 4*math.Sqrt(0.25*0.75/Size) {
			t.Errorf("of a quarter of %d it says %v", n, share)
		}
	}
}

func samples(seed uint64) [3]Sample {
	rng := rand.New(rand.NewPCG(seed, 3))
	var out [3]Sample
	for i := range out {
		var r Recent
		for range rng.IntN(3000) {
			r.Seen("sha1", uint64(rng.IntN(4000)), start)
		}
		out[i] = r.Sample(start)
		out[i].Kind = "sha1"
	}
	return out
}

func TestMerge_IsASetUnion(t *testing.T) {
	for seed := range uint64(50) {
		s := samples(seed)
		a, b, c := s[0], s[1], s[2]
		if !equal(Merge(a, b), Merge(b, a)) || !equal(Merge(a, Merge(b, c)), Merge(Merge(a, b), c)) || !equal(Merge(a, a), a) || !equal(Merge(a, Sample{Kind: "sha1"}), a) {
			t.Fatalf("seed %d: not a union", seed)
		}
	}
	// Two proxies, together, are one that saw all.
	var one, other, both Recent
	for i := range uint64(10_000) {
		both.Seen("md5", i, start)
		if i%3 != 0 {
			one.Seen("md5", i, start)
		}
		if i%2 == 0 || i%3 == 0 {
			other.Seen("md5", i, start)
		}
	}
	if got, want := Merge(one.Sample(start), other.Sample(start)), both.Sample(start); !equal(got, want) {
		t.Errorf("merged %d users, want %d", got.Len(), want.Len())
	}
	if got := Merge(Sample{Kind: "a", hashes: []uint64{1}}, Sample{Kind: "b", hashes: []uint64{1, 2}}); got.Kind != "b" {
		t.Errorf("of two kinds it keeps %s", got.Kind)
	}
}

func TestSample_ComesBackFromBytes(t *testing.T) {
	for seed := range uint64(20) {
		want := samples(seed)[0]
		b, err := want.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 1+maxKind+8*Size {
			t.Errorf("%d bytes", len(b))
		}
		var got Sample
		if err := got.UnmarshalBinary(b); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%v", err)
		}
	}
}

func FuzzSample_UnmarshalBinary(f *testing.F) {
	for seed := range uint64(3) {
		b, _ := samples(seed)[0].AppendBinary(nil)
		f.Add(b)
	}
	f.Add([]byte{0})
	f.Add([]byte{3, 'm', 'd', '5', 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Sample
		if s.UnmarshalBinary(b) != nil {
			return
		}
		again, err := s.AppendBinary(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x becomes %x, %v", b, again, err)
		}
		if u := s.Users(); math.IsNaN(u) || u < 0 || math.IsInf(u, 0) {
			t.Fatalf("%x has %v users", b, u)
		}
	})
}

func TestRecent_IsSafeForConcurrentUse(t *testing.T) {
	var r Recent
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			for i := range uint64(20_000) {
				r.Seen("md5", (i*7+g)%5000, start.Add(time.Duration(i/5000)*time.Hour))
				if i%4000 == 0 {
					r.Sample(start)
				}
			}
		})
	}
	wg.Wait()
	all := make(brute)
	for i := range uint64(5000) {
		all[i] = start.Unix() / 3600
	}
	if got, want := r.Sample(start), all.sample("md5", start); !equal(got, want) {
		t.Errorf("%d users, want %d", got.Len(), want.Len())
	}
}

func BenchmarkRecent_Seen(b *testing.B) {
	for _, users := range []uint64{10, 100, 10_000, 1_000_000} {
		b.Run(fmt.Sprint(users), func(b *testing.B) {
			var r Recent
			for i := range users {
				r.Seen("crc32", i, start)
			}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				i := rand.Uint64()
				for pb.Next() {
					i = i*6364136223846793005 + 1
					r.Seen("crc32", i>>32%users, start)
				}
			})
		})
	}
}
