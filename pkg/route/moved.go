package route

import (
	"difylb/pkg/lb"
	"difylb/pkg/ring"
)

// movedSamples is how many points of the key space Moved looks at where the
// exact answer of the rings alone does not do. The error is below 1 in 10,000
// per border between two instances.
const movedSamples = 1 << 15

// Moved returns, per application that is in both Tables and whose placement
// differs, the share of its users that go elsewhere, 0 to 1. Health is left
// out: it passes. States count: users of a draining instance move. Between
// different hash algorithms everybody moves.
func Moved(from, to *Table) map[string]float64 {
	out := make(map[string]float64)
	for _, b := range to.Apps() {
		a := from.App(b.Decl.Name)
		if a == nil || a == b {
			continue
		}
		if share := moved(a, b); share > 0 {
			out[b.Decl.Name] = share
		}
	}
	return out
}

func moved(a, b *App) float64 {
	if a.Ring.Algorithm() != b.Ring.Algorithm() || (allActive(a) && allActive(b)) {
		if a.Ring == b.Ring {
			return 0
		}
		return ring.Moved(a.Ring, b.Ring)
	}
	n := 0
	a.eachSample(func(p ring.Point) {
		if a.home(p) != b.home(p) {
			n++
		}
	})
	return float64(n) / movedSamples
}

// home names the instance that a point goes to when all are healthy.
func (a *App) home(p ring.Point) string {
	i, _ := a.Choose(p, nil, func(int) Condition { return Condition{Health: lb.Healthy} })
	if i < 0 {
		return ""
	}
	return a.Instances[i].Decl.Name
}

func allActive(a *App) bool {
	for i := range a.Instances {
		if a.Instances[i].Decl.State != lb.Active {
			return false
		}
	}
	return true
}
