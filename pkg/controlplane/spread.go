package controlplane

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"difylb/pkg/cluster"
)

// linkMetrics are what the hub counts and no other collector reads: what is
// leased, how long configurations take to the proxies, and which proxies place
// users in another way than the rest.
func linkMetrics(hub *cluster.Hub) []prometheus.Collector {
	propagation := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "difylb_propagation_seconds", Help: "Time from when a configuration was known to this lb-admin until it was in force on every lb-proxy.",
		Buckets: []float64{.001, .0025, .005, .01, .02, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	})
	hub.ObservePropagation(func(d time.Duration) { propagation.Observe(d.Seconds()) })
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "difylb_" + name, Help: help}, f)
	}
	return []prometheus.Collector{
		propagation,
		gauge("limits_leased", "Limits leased to the lb-proxies by demand; 0 unless this lb-admin is elected.", func() float64 { return float64(hub.Leased()) }),
		gauge("nodes_ring_differs", "lb-proxies that place users in another way than most others at their revision.", func() float64 {
			n := 0
			for _, s := range hub.Nodes() {
				if s.State == cluster.NodeRingDiffers {
					n++
				}
			}
			return float64(n)
		}),
	}
}
