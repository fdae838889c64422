package daemon

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"difylb/pkg/certs"
	"difylb/pkg/names"
)

// Metrics returns what both daemons tell of themselves: the Go runtime, the
// process, what runs, names of instances without an answer, and when the
// certificates run out that the process shows. Those are given by whom they are
// shown to; nil: none is.
func Metrics(version string, resolver *names.Resolver, shown map[string]*certs.Pair) []prometheus.Collector {
	out := []prometheus.Collector{
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo(version), failingNames(resolver),
	}
	for to, p := range shown {
		if p != nil {
			out = append(out, expiry(to, p))
		}
	}
	return out
}

// buildInfo is a metric whose labels say what runs here.
func buildInfo(version string) prometheus.Collector {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "difylb_build_info", Help: "Always 1; its labels say what runs.",
		ConstLabels: prometheus.Labels{"version": version, "revision": Revision, "goversion": runtime.Version()},
	})
	g.Set(1)
	return g
}

// failingNames is a metric of names of instances.
func failingNames(r *names.Resolver) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "difylb_names_failing", Help: "Names of instances in use that had no answer when they were last asked for; the addresses of the last answer serve on.",
	}, func() float64 { return float64(r.Failing()) })
}

// expiry is a metric of a certificate. It looks at the file, so it tells of a
// renewal before the next connection is made.
func expiry(to string, p *certs.Pair) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "difylb_certificate_expiry_timestamp_seconds", Help: "Unix time at which a certificate runs out that this process shows: to whom, by the label.",
		ConstLabels: prometheus.Labels{"shown_to": to},
	}, func() float64 { return float64(p.Expires().Unix()) })
}
