package controlplane

import (
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"difylb/pkg/certs"
	"difylb/pkg/cluster"
	"difylb/pkg/daemon"
	"difylb/pkg/health"
	"difylb/pkg/lb"
	"difylb/pkg/store"
)

// metrics returns the registry of this lb-admin. Figures of requests are the
// proxies' to export; here are those of the cluster. No label names an
// application or an instance, so the number of series depends on the number
// of proxies only.
func (p *Plane) metrics(st *store.Store, hub *cluster.Hub) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(daemon.Metrics(p.node.Version, p.names, map[string]*certs.Pair{"clients": p.own, "etcd": p.opts.EtcdTLS.Shown()})...)
	r.MustRegister(newCollector(p, st, hub))
	r.MustRegister(linkMetrics(hub)...)
	return r
}

// counted makes a handler count its answers.
func counted(r prometheus.Registerer, h http.Handler) http.Handler {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "difylb_api_requests_total", Help: "Answers of the HTTP listener: REST API, dashboard, health and metrics.",
	}, []string{"method", "code"})
	r.MustRegister(requests)
	return promhttp.InstrumentHandlerCounter(requests, h)
}

// statusWords are all that an instance can be.
var statusWords = []string{
	cluster.StatusHealthy, cluster.StatusUnhealthy, cluster.StatusTokenRejected, cluster.StatusEjected, cluster.StatusUnknown,
	string(lb.Draining), string(lb.Disabled),
}

// verdicts are all that a probe can come to.
var verdicts = []health.Health{health.Healthy, health.Unhealthy, health.TokenRejected}

// healthChanges counts verdicts of this lb-admin's prober that differ from
// the ones before. Those of one instance are in the log. Made by New, then
// safe for concurrent use.
type healthChanges map[health.Health]*atomic.Uint64

func newHealthChanges() healthChanges {
	c := make(healthChanges)
	for _, v := range verdicts {
		c[v] = new(atomic.Uint64)
	}
	return c
}

func (c healthChanges) count(to health.Health) {
	if n := c[to]; n != nil {
		n.Add(1)
	}
}

// collector turns what this lb-admin knows into metrics. Every document is
// asked for once in a scrape.
type collector struct {
	p   *Plane
	st  *store.Store
	hub *cluster.Hub

	leader                                                   *prometheus.Desc
	revision, lag, faults, apps, deserted, instances         *prometheus.Desc
	proxies, admins, reporting, nodeLag, nodeRefuses         *prometheus.Desc
	probes, probeTargets, probesRunning, probeBehind, health *prometheus.Desc
}

func newCollector(p *Plane, st *store.Store, hub *cluster.Hub) *collector {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("difylb_"+name, help, labels, nil)
	}
	return &collector{
		p: p, st: st, hub: hub,
		leader:        d("admin_leader", "1 on the elected lb-admin."),
		revision:      d("config_revision", "Revision of the newest configuration."),
		lag:           d("config_lag_seconds", "For how long the configuration could not be brought up to date; 0 while etcd is watched."),
		faults:        d("config_faulty_keys", "Keys of the store that can't be read."),
		apps:          d("config_applications", "Applications of the newest configuration."),
		deserted:      d("config_applications_without_instance", "Applications of which no instance takes new requests on every proxy, those that have none left out."),
		instances:     d("instances", "Instances by the one word that /status has for them.", "status"),
		proxies:       d("nodes_proxies", "lb-proxies registered."),
		admins:        d("nodes_admins", "lb-admins registered."),
		reporting:     d("nodes_reporting", "lb-proxies whose figures are fresh."),
		nodeLag:       d("node_config_lag_seconds", "For how long an lb-proxy has not had the newest configuration in force.", "node"),
		nodeRefuses:   d("node_config_refused", "1 while an lb-proxy refuses a newer configuration.", "node"),
		probes:        d("probes_total", "Active probes completed by this lb-admin."),
		probeTargets:  d("probe_targets", "Instances that are probed."),
		probesRunning: d("probes_running", "Probes under way."),
		probeBehind:   d("probe_behind_seconds", "How long the longest overdue probe has been waiting to start."),
		health:        d("health_changes_total", "Changes of an instance's health that this lb-admin's probes found, by what it became.", "health"),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(c.leader, btof(c.p.leading.Load()))
	revision, faults := 0.0, 0.0
	if s := c.st.Current(); s != nil {
		revision, faults = float64(s.ConfigRevision), float64(len(s.Faults))
	}
	gauge(c.revision, revision)
	gauge(c.lag, c.st.Lag().Seconds())
	gauge(c.faults, faults)

	status := c.hub.Status()
	gauge(c.proxies, float64(status.Nodes.Proxies))
	gauge(c.admins, float64(status.Nodes.Admins))
	gauge(c.reporting, float64(status.Nodes.Reporting))
	words, deserted := tally(status)
	gauge(c.apps, float64(len(status.Applications)))
	gauge(c.deserted, float64(deserted))
	for _, w := range statusWords {
		gauge(c.instances, float64(words[w]), w)
	}
	for _, n := range c.hub.Nodes() {
		if n.Role == lb.RoleProxy {
			gauge(c.nodeLag, n.LagSeconds, n.ID)
			gauge(c.nodeRefuses, btof(n.Refused != ""), n.ID)
		}
	}

	pr := c.p.prober.Progress()
	counter(c.probes, uint64(pr.Probes))
	gauge(c.probeTargets, float64(pr.Targets))
	gauge(c.probesRunning, float64(pr.Running))
	gauge(c.probeBehind, pr.Behind.Seconds())
	for _, v := range verdicts {
		counter(c.health, c.p.healthChanges[v].Load(), string(v))
	}
}

// tally counts instances by status, and the applications none of whose
// instances is healthy or not known to be otherwise.
func tally(s *cluster.Status) (words map[string]int, deserted int) {
	words = make(map[string]int)
	for _, app := range s.Applications {
		usable := 0
		for _, in := range app.Instances {
			words[in.Status]++
			if in.Status == cluster.StatusHealthy || in.Status == cluster.StatusUnknown {
				usable++
			}
		}
		if usable == 0 && len(app.Instances) > 0 {
			deserted++
		}
	}
	return words, deserted
}

func btof(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
