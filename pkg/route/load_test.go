package route

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"difylb/pkg/lb"
)

// loaded builds an application with a load factor and instances of these weights.
func loaded(t *testing.T, factor float64, weights ...int) *App {
	t.Helper()
	names := make([]string, len(weights))
	for i := range names {
		names[i] = fmt.Sprint("i", i)
	}
	decl := app("shop", nil, names...)
	decl.ConsistentHash.LoadFactor = factor
	for i, w := range weights {
		decl.Instances[i].Weight = w
	}
	return build(t, snapshot(1, decl), nil).App("shop")
}

// However requests come and go, and whatever is unusable: none is refused for
// its load, no usable instance gets more than its bound, and without load
// everybody is at home.
func TestPick_KeepsTheBoundAndNeverRefuses(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 9))
		weights := make([]int, 1+rnd.IntN(7))
		for i := range weights {
			weights[i] = 1 + rnd.IntN(4)
		}
		factor := 1.01 + 2*rnd.Float64()
		a := loaded(t, factor, weights...)
		open := make([]int, len(weights))
		conds := make([]Condition, len(weights))
		sight := Sight{See: func(i int) Condition { return conds[i] }, Open: func(i int) int { return open[i] }}
		users := 1 + rnd.IntN(40)
		var placed []int
		for range 1500 {
			if n := len(placed); n > 0 && rnd.IntN(5) < 2 {
				k := rnd.IntN(n)
				open[placed[k]]--
				placed[k] = placed[n-1]
				placed = placed[:n-1]
				continue
			}
			if rnd.IntN(100) == 0 {
				i := rnd.IntN(len(conds))
				conds[i] = []Condition{{}, {Ejected: true}, {Health: lb.Unhealthy}, {Trial: true}}[rnd.IntN(4)]
			}
			p := a.Point(fmt.Sprint(rnd.IntN(users)))
			got, failOpen := a.Pick(p, nil, sight)
			if got < 0 {
				t.Fatalf("seed %d: refused with %v open, %+v", seed, open, conds)
			}
			unbounded, _ := a.Choose(p, nil, sight.See)
			total, weight, usable := 1, 0, 0
			for i := range weights {
				if conds[i].Usable(lb.Active) {
					usable++
					if !conds[i].Trial {
						total += open[i]
						weight += weights[i]
					}
				}
			}
			bound := func(i int) int {
				return max(1, int(math.Ceil(factor*float64(total)*float64(weights[i])/float64(weight)-1e-9)))
			}
			switch {
			case usable == 0:
				if !failOpen {
					t.Fatalf("seed %d: nobody is usable and it did not fail open", seed)
				}
			case weight == 0:
			case open[got]+1 > bound(got):
				t.Fatalf("seed %d: instance %d has %d of %d, bound %d, factor %v", seed, got, open[got], total, bound(got), factor)
			case got != unbounded && open[unbounded] < bound(unbounded):
				t.Fatalf("seed %d: %d was passed over below its bound", seed, unbounded)
			}
			open[got]++
			placed = append(placed, got)
		}
	}
}

func TestPick_OverTheBoundGoesToTheNextInFailoverOrder(t *testing.T) {
	a := loaded(t, 1.25, 1, 1, 1, 1)
	for u := range 200 {
		p := a.Point(fmt.Sprint(u))
		owner := a.Ring.Owner(p)
		next, _ := a.Choose(p, []int{owner}, func(int) Condition { return Condition{} })
		open := [4]int{4, 4, 4, 4}
		pick := func(tried ...int) int {
			i, _ := a.Pick(p, tried, Sight{See: func(int) Condition { return Condition{} }, Open: func(i int) int { return open[i] }})
			return i
		}
		if got := pick(); got != owner {
			t.Fatalf("evenly loaded: %d, owner %d", got, owner)
		}
		open[owner] = 8 // bound: 1.25 × 21 ÷ 4, rounded up = 7
		if got := pick(); got != next {
			t.Fatalf("over the bound: %d, want %d", got, next)
		}
		open[owner] = 6 // bound: 1.25 × 19 ÷ 4 = 6
		if got := pick(); got != next {
			t.Fatalf("at the bound: %d, want %d", got, next)
		}
		open[owner] = 5
		if got := pick(); got != owner {
			t.Fatalf("below the bound: %d, want the owner %d", got, owner)
		}
		// A retry is not refused because all that is left carries much.
		open = [4]int{9, 9, 9, 9}
		open[owner] = 0
		if got := pick(owner); got != next {
			t.Fatalf("retry with the rest over its bound: %d, want %d", got, next)
		}
	}
}

// Without a load factor load is not even asked for.
func TestPick_WithoutALoadFactorDoesNotLookAtLoad(t *testing.T) {
	a := loaded(t, 0, 1, 1, 1)
	s := Sight{See: func(int) Condition { return Condition{} }, Open: func(int) int { panic("asked") }}
	for u := range 50 {
		p := a.Point(fmt.Sprint(u))
		if got, _ := a.Pick(p, nil, s); got != a.Ring.Owner(p) {
			t.Fatal(got)
		}
	}
}

// A trial lets one request in at a time: asking after an instance that was
// tried, or that is passed over, must not use a turn up.
func TestPick_AsksForATurnOnlyToTakeIt(t *testing.T) {
	decl := app("shop", nil, "a", "b", "c")
	decl.ConsistentHash.LoadFactor = 1.5
	a := build(t, snapshot(1, decl), nil).App("shop")
	trial, down := Condition{Trial: true}, Condition{Health: lb.Unhealthy}
	for u := range 100 {
		p := a.Point(fmt.Sprint(u))
		owner := a.Ring.Owner(p)
		second, _ := a.Choose(p, []int{owner}, func(int) Condition { return Condition{} })
		third := 3 - owner - second
		var turns []int
		admit := func(i int) bool { turns = append(turns, i); return true }
		for _, c := range []struct {
			name       string
			tried      []int
			conds      map[int]Condition
			open       map[int]int
			deny       bool
			want       int
			wantOpen   bool
			askedTurns []int
		}{
			{name: "on trial", conds: map[int]Condition{owner: trial}, want: owner, askedTurns: []int{owner}},
			{name: "behind the chosen one", conds: map[int]Condition{second: trial}, want: owner},
			{name: "tried, the rest is down", tried: []int{owner}, conds: map[int]Condition{owner: trial, second: down, third: down}, want: second, wantOpen: true},
			{name: "tried and usable, the rest is down", tried: []int{owner}, conds: map[int]Condition{second: down, third: down}, want: -1},
			{name: "over its bound", conds: map[int]Condition{owner: trial}, open: map[int]int{owner: 9}, want: second},
			{name: "no turn", conds: map[int]Condition{owner: trial}, deny: true, want: second, askedTurns: []int{owner}},
		} {
			turns = nil
			s := Sight{See: func(i int) Condition { return c.conds[i] }, Admit: admit}
			if c.open != nil {
				s.Open = func(i int) int { return c.open[i] }
			}
			if c.deny {
				s.Admit = func(i int) bool { admit(i); return false }
			}
			got, open := a.Pick(p, c.tried, s)
			if got != c.want || open != c.wantOpen || fmt.Sprint(turns) != fmt.Sprint(c.askedTurns) {
				t.Fatalf("%s: %d (open %v), turns asked %v; want %d (%v), %v", c.name, got, open, turns, c.want, c.wantOpen, c.askedTurns)
			}
		}
	}
}

func TestPick_DoesNotAllocate(t *testing.T) {
	a := loaded(t, 1.25, 1, 2, 3)
	open := []int{9, 1, 1}
	turns := 0
	if n := testing.AllocsPerRun(100, func() {
		a.Pick(a.Point("user-4711"), nil, Sight{
			See:   func(i int) Condition { return Condition{Trial: i == 0} },
			Admit: func(int) bool { turns++; return true },
			Open:  func(i int) int { return open[i] },
		})
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestExplain_NamesTheLoadFactor(t *testing.T) {
	decl := app("shop", nil, "a", "b")
	decl.ConsistentHash.LoadFactor = 1.25
	decl.Instances[0].Domain, decl.Instances[1].Domain = "one", "one"
	explain := func() *Explanation {
		e, err := build(t, snapshot(1, decl), nil).Explain("shop", "alice", nil)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := explain()
	if e.LoadFactor != 1.25 || !strings.Contains(e.Order[0].Why, "more than 1.25 times its share") || strings.Contains(e.Order[0].Why, "conversation") {
		t.Errorf("%+v", e)
	}
	decl.Instances[1].Domain = "two"
	if e := explain(); !strings.Contains(e.Order[0].Why, "begins a conversation") {
		t.Errorf("%+v", e)
	}
	decl.ConsistentHash.LoadFactor = 0
	if e := explain(); e.LoadFactor != 0 || e.Order[0].Why != "takes the request" {
		t.Errorf("%+v", e)
	}
}

// The factor has no part in where anybody lives.
func TestBuild_TakesTheRingOverWhenTheLoadFactorChanges(t *testing.T) {
	a := app("shop", nil, "a", "b")
	t1 := build(t, snapshot(1, a), nil)
	b := a.Clone()
	b.ConsistentHash.LoadFactor = 2
	t2 := build(t, snapshot(2, b), t1)
	if t1.App("shop").Ring != t2.App("shop").Ring || t1.Checksum() != t2.Checksum() || len(Moved(t1, t2)) != 0 {
		t.Error("a load factor moves users")
	}
}

func BenchmarkPick_Bounded(b *testing.B) {
	decl := app("shop", nil, "a", "b", "c", "d", "e")
	decl.ConsistentHash.LoadFactor = 1.25
	tbl, err := Build(snapshot(1, decl), nil)
	if err != nil {
		b.Fatal(err)
	}
	a := tbl.App("shop")
	s := Sight{See: func(int) Condition { return Condition{} }, Open: func(int) int { return 3 }}
	p := a.Point("user-4711")
	b.ReportAllocs()
	for b.Loop() {
		a.Pick(p, nil, s)
	}
}
