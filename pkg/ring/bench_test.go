package ring

import (
	"fmt"
	"strings"
	"testing"
)

func TestLookup_DoesNotAllocate(t *testing.T) {
	users := benchUsers(8)
	var stack [40]byte
	sink := 0
	for _, alg := range algorithms {
		for _, n := range []int{1, 5, 256, 257, 2000} {
			r := mustNew(t, alg, 3, equalMembers(n))
			h := r.Hasher("customer_service")
			long := strings.Repeat("u", 3000)
			none := func(int) bool { return false }
			p := r.Hash("customer_service", users[0])
			calls := map[string]func(){
				"Hash":      func() { sink += r.Owner(r.Hash("customer_service", users[1])) },
				"Hash long": func() { sink += r.Owner(r.Hash("customer_service", long)) },
				"HashBytes": func() {
					b := stack // a local array: it must not be moved to the heap
					sink += r.Owner(r.HashBytes("customer_service", b[:]))
				},
				"HashBytes long": func() {
					var b [1000]byte
					sink += r.Owner(r.HashBytes("customer_service", b[:]))
				},
				"Hasher":       func() { sink += r.Owner(h.Point(users[2])) },
				"OwnerIn":      func() { sink += r.OwnerIn(p, func(i int) bool { return i == n-1 }) },
				"OwnerIn none": func() { sink += r.OwnerIn(p, none) },
				"Walk first": func() {
					w := r.Walk(p)
					i, _ := w.Next()
					sink += i
				},
			}
			if n <= 256 {
				calls["Walk all"] = func() {
					w := r.Walk(p)
					for i, ok := w.Next(); ok; i, ok = w.Next() {
						sink += i
					}
				}
			}
			for name, call := range calls {
				if got := testing.AllocsPerRun(100, call); got != 0 {
					t.Errorf("%s, %d members: %s allocates %v times", alg, n, name, got)
				}
			}
		}
	}
	if sink == 42 {
		t.Log("the results are used")
	}
}

// benchUsers returns random user ids of the forms people use.
func benchUsers(n int) []string {
	rnd := newRand(99)
	users := make([]string, n)
	for i := range users {
		if i%2 == 0 {
			users[i] = fmt.Sprintf("%08x-%04x-4%03x-a%03x-%012x", rnd.Uint32(), rnd.IntN(1<<16), rnd.IntN(1<<12), rnd.IntN(1<<12), rnd.Uint64N(1<<48))
		} else {
			users[i] = fmt.Sprintf("user-%d@example.com", rnd.IntN(1e8))
		}
	}
	return users
}

var benchSink int

func BenchmarkLookup(b *testing.B) {
	users := benchUsers(1 << 14)
	for _, alg := range algorithms {
		for _, members := range []int{3, 100} {
			r := mustNew(b, alg, 150, equalMembers(members))
			h := r.Hasher("customer_service")
			b.Run(fmt.Sprintf("%s/members=%d", alg, members), func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					benchSink += r.Owner(h.Point(users[i&(len(users)-1)]))
				}
			})
		}
	}
}

func BenchmarkHash(b *testing.B) {
	users := benchUsers(1 << 14)
	for _, alg := range algorithms {
		r := mustNew(b, alg, 150, equalMembers(3))
		b.Run(string(alg), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				benchSink += int(r.Hash("customer_service", users[i&(len(users)-1)]))
			}
		})
	}
}

func BenchmarkOwner(b *testing.B) {
	rnd := newRand(98)
	for _, alg := range []Algorithm{CRC32, XXHash} {
		for _, points := range []int{450, 15000, MaxPoints} {
			r := mustNew(b, alg, points/3, equalMembers(3))
			ps := make([]Point, 1<<14)
			for i := range ps {
				ps[i] = randomPoint(rnd, r)
			}
			b.Run(fmt.Sprintf("%s/points=%d", alg, points), func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					benchSink += r.Owner(ps[i&(len(ps)-1)])
				}
			})
		}
	}
}

func BenchmarkOwnerIn(b *testing.B) {
	rnd := newRand(97)
	bench := func(name string, r *Ring, allowed func(int) bool) {
		ps := make([]Point, 1<<14)
		for i := range ps {
			ps[i] = randomPoint(rnd, r)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				benchSink += r.OwnerIn(ps[i&(len(ps)-1)], allowed)
			}
		})
	}
	hundred := mustNew(b, CRC32, 150, equalMembers(100))
	bench("100/all", hundred, func(int) bool { return true })
	bench("100/half", hundred, func(i int) bool { return i%2 == 0 })
	bench("100/none", hundred, func(int) bool { return false })
	bench("1000/none", mustNew(b, CRC32, 60, equalMembers(1000)), func(int) bool { return false })
	// The worst there is: one point to find among MaxPoints.
	skewed := mustNew(b, CRC32, 150, []Member{{"giant", 65535}, {"dwarf", 1}})
	bench("skewed/none", skewed, func(int) bool { return false })
}

func BenchmarkNew(b *testing.B) {
	for _, alg := range algorithms {
		for _, members := range []int{3, 5, 100} {
			list := equalMembers(members)
			b.Run(fmt.Sprintf("%s/members=%d", alg, members), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					benchSink += mustNew(b, alg, 150, list).Points()
				}
			})
		}
	}
}

// BenchmarkNew_Applications is what a proxy does when it starts: 10,000
// applications of 5 instances each.
func BenchmarkNew_Applications(b *testing.B) {
	lists := make([][]Member, 10_000)
	for i := range lists {
		for j := range 5 {
			lists[i] = append(lists[i], Member{fmt.Sprintf("dify-%d-%d", i, j), 1})
		}
	}
	rings := make([]*Ring, len(lists))
	b.ReportAllocs()
	for b.Loop() {
		for i, list := range lists {
			rings[i] = mustNew(b, CRC32, 150, list)
		}
	}
}

func BenchmarkShare(b *testing.B) {
	r := mustNew(b, CRC32, 150, equalMembers(100))
	b.ReportAllocs()
	for b.Loop() {
		benchSink += len(r.Share())
	}
}

func BenchmarkMoved(b *testing.B) {
	x, y := mustNew(b, CRC32, 150, equalMembers(100)), mustNew(b, CRC32, 150, equalMembers(101))
	b.ReportAllocs()
	for b.Loop() {
		benchSink += int(1 / Moved(x, y))
	}
}

func BenchmarkChecksum(b *testing.B) {
	r := mustNew(b, CRC32, 150, equalMembers(100))
	b.ReportAllocs()
	for b.Loop() {
		benchSink += int(r.Checksum())
	}
}
