package route

import (
	"math/rand/v2"
	"slices"

	"difylb/pkg/lb"
	"difylb/pkg/ring"
)

// Condition is what is known of an instance beside its declaration.
type Condition struct {
	Health  lb.Health // active probes; "" is unknown
	Ejected bool      // passive health, in this proxy
}

// Usable reports whether an instance of that state and condition takes new requests.
func (c Condition) Usable(state lb.State) bool {
	return state == lb.Active && !c.Ejected && c.Health != lb.Unhealthy && c.Health != lb.TokenRejected
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

// Choose returns the index of the instance that a request at p goes to: the
// owner, or clockwise from it the next distinct instance that may take it and
// is not among those tried already. -1 when there is none.
//
// Where no instance is usable, failOpen is true and the first of these is
// taken: one that only the probes hold against, one that rejects its own
// token, one that is ejected. A prober cut off must not stop traffic, and
// when everything fails trying costs nothing. What the operator drained or
// disabled is never taken.
//
// It does not allocate. see is asked in failover order, about no instance that
// was tried, and no more once one is usable, so that it may count a turn.
func (a *App) Choose(p ring.Point, tried []int, see func(i int) Condition) (index int, failOpen bool) {
	index = a.Ring.OwnerIn(p, func(i int) bool {
		return !slices.Contains(tried, i) && see(i).Usable(a.Instances[i].Decl.State)
	})
	if index >= 0 {
		return index, false
	}
	if len(tried) > 0 && a.anyUsable(see) {
		return -1, false // usable ones were tried: no reason to turn to bad ones
	}
	for pass := range 3 {
		index = a.Ring.OwnerIn(p, func(i int) bool {
			if a.Instances[i].Decl.State != lb.Active || slices.Contains(tried, i) {
				return false
			}
			c := see(i)
			return (pass > 0 || c.Health != lb.TokenRejected) && (pass > 1 || !c.Ejected)
		})
		if index >= 0 {
			return index, true
		}
	}
	return -1, false
}

func (a *App) anyUsable(see func(i int) Condition) bool {
	for i := range a.Instances {
		if see(i).Usable(a.Instances[i].Decl.State) {
			return true
		}
	}
	return false
}
