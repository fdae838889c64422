package route

import (
	"cmp"
	"slices"

	"difylb/pkg/ring"
)

// Flow is the share of an application's users, 0 to 1, who go from one instance
// to another; "" is nobody.
type Flow struct {
	From  string  `json:"from"`  // name of the instance; "" is nobody
	To    string  `json:"to"`    // name of the instance; "" is nobody
	Share float64 `json:"share"` // of the application's users, 0 to 1
}

// Flows returns who goes where in the application when one of the Tables takes
// the place of the other, the largest share first; none where nobody moves, or
// where one of them does not have it. The shares add up to what Moved says, but
// between different hash algorithms, where they are what is to be expected.
func Flows(from, to *Table, app string) []Flow {
	a, b := from.App(app), to.App(app)
	if a == nil || b == nil || a == b {
		return nil
	}
	var out []Flow
	switch {
	case a.Ring.Algorithm() == b.Ring.Algorithm() && !(allActive(a) && allActive(b)):
		n := make(map[[2]string]int)
		a.eachSample(func(p ring.Point) {
			if x, y := a.home(p), b.home(p); x != y {
				n[[2]string{x, y}]++
			}
		})
		for way, n := range n {
			out = append(out, Flow{way[0], way[1], float64(n) / movedSamples})
		}
	case a.Ring != b.Ring:
		for _, f := range ring.Flows(a.Ring, b.Ring) {
			out = append(out, Flow(f))
		}
	}
	slices.SortFunc(out, func(x, y Flow) int {
		return cmp.Or(cmp.Compare(y.Share, x.Share), cmp.Compare(x.From, y.From), cmp.Compare(x.To, y.To))
	})
	return out
}

// Moves returns a function that reports whether the user at a point of the
// application's ring, a ring.Point as a number, moves; nil where that can't be told: one of the Tables does
// not have the application, or it has another hash algorithm there.
func Moves(from, to *Table, app string) func(point uint64) bool {
	a, b := from.App(app), to.App(app)
	if a == nil || b == nil || a.Ring.Algorithm() != b.Ring.Algorithm() {
		return nil
	}
	return func(point uint64) bool {
		p := ring.Point(point)
		return a.home(p) != b.home(p)
	}
}

// eachSample calls f for movedSamples points, evenly spread over the key space.
func (a *App) eachSample(f func(ring.Point)) {
	width := uint64(1) << 32
	if a.Ring.Algorithm() == ring.XXHash {
		width = 0 // 2^64
	}
	step := (width - 1) / movedSamples
	for i := range uint64(movedSamples) {
		f(ring.Point(i*step + step/2))
	}
}
