package controlplane

import (
	"time"

	"difylb/pkg/cluster"
	"difylb/pkg/health"
	"difylb/pkg/lb"
)

// lastProbes is what this lb-admin's prober knows, for the hub.
type lastProbes struct {
	plane  *Plane
	prober *health.Prober // set before the hub is asked for anything
}

// Elected implements cluster.Prober.
func (l *lastProbes) Elected() bool { return l.plane.leading.Load() }

// LastProbe implements cluster.Prober.
func (l *lastProbes) LastProbe(app, instance string) (cluster.LastProbe, bool) {
	v := l.prober.Verdict(app, instance)
	return l.of(v), !v.At.IsZero()
}

// LastProbes implements cluster.Prober.
func (l *lastProbes) LastProbes(after int64, f func(app, instance string, seq int64, p cluster.LastProbe)) {
	l.prober.Since(after, func(id health.ID, v health.Verdict) { f(id.App, id.Instance, v.Seq, l.of(v)) })
}

func (l *lastProbes) of(v health.Verdict) cluster.LastProbe {
	return cluster.LastProbe{
		Time: v.At.UTC().Truncate(time.Millisecond), DurationMS: float64(v.Latency.Microseconds()) / 1000,
		Verdict: lb.Health(v.Health), Found: v.Latest, By: l.plane.node.ID,
	}
}
