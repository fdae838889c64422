package route

import (
	"math"
	"math/rand/v2"
	"slices"

	"difylb/pkg/lb"
	"difylb/pkg/ring"
)

// Condition is what is known of an instance beside its declaration.
type Condition struct {
	Health  lb.Health // active probes; "" is unknown
	Ejected bool      // passive health, in this proxy
	// Trial: an ejection has ended and nothing has succeeded since. The
	// instance takes one request at a time, see Sight.Admit.
	Trial bool
}

// Usable reports whether an instance of that state and condition takes new
// requests; one on trial does for whom Sight.Admit lets in.
func (c Condition) Usable(state lb.State) bool {
	return state == lb.Active && !c.Ejected && c.Health != lb.Unhealthy && c.Health != lb.TokenRejected
}

// Sight is what a choice asks of what happens at run time. None of the
// functions may be kept.
type Sight struct {
	// See tells an instance's condition. It may be asked about any instance any
	// number of times and must change nothing.
	See func(i int) Condition
	// Admit is asked about an instance on trial when all else speaks for it, and
	// takes up its turn; nil: always yes.
	Admit func(i int) bool
	// Open counts the requests that are open on an instance now; nil: the choice
	// does not look at load. It is asked only where the application has a load
	// factor, and must change nothing.
	Open func(i int) int
}

// Point returns where a user stands on the application's ring. It does not
// allocate, and user does not escape.
func (a *App) Point(user string) ring.Point { return a.hasher.Point(user) }

// RandomPoint returns a point for a request that belongs to no user: every
// instance is as likely as its share of the ring.
func (a *App) RandomPoint() ring.Point {
	if a.Ring.Algorithm() == ring.XXHash {
		return ring.Point(rand.Uint64())
	}
	return ring.Point(rand.Uint32())
}

// Choose is Pick for who knows conditions alone, and has no trials to count.
func (a *App) Choose(p ring.Point, tried []int, see func(i int) Condition) (index int, failOpen bool) {
	return a.Pick(p, tried, Sight{See: see})
}

// Pick returns the index of the instance that a request at p goes to: the
// owner, or clockwise from it the next distinct instance that may take it and
// is not among those tried already. -1 when there is none.
//
// Where the application has a load factor and s tells the load, an instance
// with more than its bound of open requests is passed over, see bounds. That
// alone never refuses a request: when every instance that is left is over its
// bound, the first of them has it.
//
// Where no instance is usable, failOpen is true and the first of these is
// taken: one that only the probes hold against, one that rejects its own
// token, one that is ejected. A prober cut off must not stop traffic, and
// when everything fails trying costs nothing. What the operator drained or
// disabled is never taken.
//
// It does not allocate.
func (a *App) Pick(p ring.Point, tried []int, s Sight) (index int, failOpen bool) {
	if s.Open != nil && a.Decl.ConsistentHash.LoadFactor > 0 {
		b := a.bounds(s)
		index = a.Ring.OwnerIn(p, func(i int) bool {
			return !slices.Contains(tried, i) && s.Open(i) < b.of(a, i) && a.takes(i, s)
		})
		if index >= 0 {
			return index, false
		}
	}
	index = a.Ring.OwnerIn(p, func(i int) bool { return !slices.Contains(tried, i) && a.takes(i, s) })
	if index >= 0 {
		return index, false
	}
	if a.anyUsable(tried, s) {
		return -1, false // usable ones were tried: no reason to turn to bad ones
	}
	for pass := range 3 {
		index = a.Ring.OwnerIn(p, func(i int) bool {
			if a.Instances[i].Decl.State != lb.Active || slices.Contains(tried, i) {
				return false
			}
			c := s.See(i)
			return (pass > 0 || c.Health != lb.TokenRejected) && (pass > 1 || !c.Ejected && !c.Trial)
		})
		if index >= 0 {
			return index, true
		}
	}
	return -1, false
}

// takes reports whether instance i takes this request. It is the last question
// before the request goes there: a trial's turn is used up by the answer.
func (a *App) takes(i int, s Sight) bool {
	c := s.See(i)
	return c.Usable(a.Instances[i].Decl.State) && (!c.Trial || s.Admit == nil || s.Admit(i))
}

// anyUsable reports whether one of those tried is usable and not on trial. Of
// the others it is known that they are not.
func (a *App) anyUsable(tried []int, s Sight) bool {
	for _, i := range tried {
		if c := s.See(i); c.Usable(a.Instances[i].Decl.State) && !c.Trial {
			return true
		}
	}
	return false
}

// bounds are how many requests an application's instances may have open
// ("Consistent Hashing with Bounded Loads", Mirrokni, Thorup, Zadimoghaddam
// 2016): with m requests open on the usable instances and this one to come,
//
//	bound(i) = ⌈load factor × (m+1) × weight(i) ÷ sum of the weights⌉
//
// The bounds sum up to more than m, so at least one instance is below its own.
type bounds struct {
	perWeight float64
}

// bounds looks at the instances that take requests without a doubt: one on
// trial, taking one at a time, can't carry its share.
func (a *App) bounds(s Sight) bounds {
	open, weight := 1, 0
	for i := range a.Instances {
		in := a.Instances[i].Decl
		if in.Weight == 0 {
			continue // not on the ring
		}
		if c := s.See(i); c.Usable(in.State) && !c.Trial {
			open += s.Open(i)
			weight += in.Weight
		}
	}
	if weight == 0 {
		return bounds{math.Inf(1)}
	}
	return bounds{a.Decl.ConsistentHash.LoadFactor * float64(open) / float64(weight)}
}

// of returns the bound of instance i, at least 1.
func (b bounds) of(a *App, i int) int {
	// What floating point adds to a whole number must not become one more.
	bound := math.Ceil(b.perWeight*float64(a.Instances[i].Decl.Weight) - 1e-9)
	if !(bound < math.MaxInt32) {
		return math.MaxInt32
	}
	return max(1, int(bound))
}
