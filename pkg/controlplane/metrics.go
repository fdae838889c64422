package controlplane

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"difylb/pkg/cluster"
	"difylb/pkg/store"
)

// metrics returns the registry of this lb-admin.
func (p *Plane) metrics(st *store.Store, hub *cluster.Hub) *prometheus.Registry {
	r := prometheus.NewRegistry()
	gauge := func(name, help string, f func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "difylb_" + name, Help: help}, f))
	}
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge("admin_leader", "1 on the elected lb-admin.", func() float64 {
		if p.leading.Load() {
			return 1
		}
		return 0
	})
	gauge("config_revision", "Revision of the newest configuration.", func() float64 {
		if s := st.Current(); s != nil {
			return float64(s.ConfigRevision)
		}
		return 0
	})
	gauge("config_lag_seconds", "For how long the configuration could not be brought up to date; 0 while etcd is watched.", func() float64 { return st.Lag().Seconds() })
	gauge("config_faulty_keys", "Keys of the store that can't be read.", func() float64 {
		if s := st.Current(); s != nil {
			return float64(len(s.Faults))
		}
		return 0
	})
	gauge("nodes_proxies", "lb-proxies registered.", func() float64 { return float64(hub.Status().Nodes.Proxies) })
	gauge("nodes_admins", "lb-admins registered.", func() float64 { return float64(hub.Status().Nodes.Admins) })
	gauge("nodes_reporting", "lb-proxies whose figures are fresh.", func() float64 { return float64(hub.Status().Nodes.Reporting) })
	r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "difylb_probes_total", Help: "Active probes completed by this lb-admin."},
		func() float64 { return float64(p.prober.Progress().Probes) }))
	gauge("probe_behind_seconds", "How long the longest overdue probe has been waiting to start.", func() float64 { return p.prober.Progress().Behind.Seconds() })
	gauge("probe_targets", "Instances that are probed.", func() float64 { return float64(p.prober.Progress().Targets) })
	return r
}
