package ring

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

func TestFlows_AddUpToMoved(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	random := func(alg Algorithm) *Ring {
		var members []Member
		for i := range rng.IntN(7) {
			if rng.IntN(4) > 0 {
				members = append(members, Member{Name: fmt.Sprintf("dify%d", i), Weight: rng.IntN(3)})
			}
		}
		r, err := New(alg, 1+rng.IntN(60), members)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, alg := range []Algorithm{CRC32, MD5, SHA1, XXHash} {
		for range 60 {
			a, b := random(alg), random(alg)
			sum := 0.0
			flows := make(map[[2]string]float64)
			for _, f := range Flows(a, b) {
				if f.From == f.To || f.Share <= 0 {
					t.Errorf("%+v", f)
				}
				sum += f.Share
				flows[[2]string{f.From, f.To}] += f.Share
			}
			if want := Moved(a, b); math.Abs(sum-want) > 1e-12 {
				t.Errorf("%s: the flows add up to %v, moved is %v", alg, sum, want)
			}
			// And each is what keys do.
			const keys = 4000
			seen := make(map[[2]string]float64)
			for i := range keys {
				p := a.Hash("shop", fmt.Sprintf("%x", scatter(i)))
				from, to := nameOf(a, a.Owner(p)), nameOf(b, b.Owner(p))
				if from != to {
					if flows[[2]string{from, to}] == 0 {
						t.Errorf("%s: a key goes from %q to %q, which no flow says", alg, from, to)
					}
					seen[[2]string{from, to}] += 1.0 / keys
				}
			}
			for way, share := range flows {
				if math.Abs(share-seen[way]) > 0.05 {
					t.Errorf("%s: %v is said to be %v, of %d keys it is %v", alg, way, share, keys, seen[way])
				}
			}
		}
	}
}

func scatter(i int) uint64 { return uint64(i) * 0x9e3779b97f4a7c15 }

func nameOf(r *Ring, i int) string {
	if i < 0 {
		return ""
	}
	return r.Name(i)
}

func TestFlows_BetweenAlgorithms(t *testing.T) {
	members := []Member{{"a", 1}, {"b", 1}, {"c", 1}}
	a, _ := New(MD5, 150, members)
	b, _ := New(XXHash, 150, members)
	sum := 0.0
	for _, f := range Flows(a, b) {
		sum += f.Share
	}
	if sum < 0.6 || sum > 0.72 { // two thirds, as the shares are about even
		t.Errorf("%v moves", sum)
	}
	one, _ := New(CRC32, 10, members[:1])
	same, _ := New(XXHash, 10, members[:1])
	if f := Flows(one, same); f != nil {
		t.Errorf("without a choice %+v", f)
	}
	none, _ := New(XXHash, 10, nil)
	if f := Flows(one, none); len(f) != 1 || f[0] != (Flow{"a", "", 1}) {
		t.Errorf("to nobody %+v", f)
	}
}
