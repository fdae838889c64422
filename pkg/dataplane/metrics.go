package dataplane

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"difylb/pkg/certs"
	"difylb/pkg/daemon"
	"difylb/pkg/lb"
	"difylb/pkg/proxy"
	"difylb/pkg/stats"
)

// maxNamed bounds how many applications, and how many instances, have series
// of their own: the first that this process has had in its configuration.
// All further ones are summed under stats.Overflow. So a scrape is bounded
// whatever is declared, and a counter never goes backwards by changing its
// name.
const maxNamed = 1000

// metrics returns the registry of this proxy. Counting is done by pkg/stats
// and pkg/proxy; this only reads what they counted, without a lock that a
// request takes, so a scrape costs the path of a request nothing.
func (p *Plane) metrics() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(daemon.Metrics(p.node.Version, p.names, map[string]*certs.Pair{"clients": p.certs, "etcd": p.opts.EtcdTLS.Shown(), "admins": p.opts.AdminTLS.Shown()})...)
	r.MustRegister(newCollector(p, maxNamed))
	return r
}

// collector turns what this proxy knows into metrics.
type collector struct {
	p *Plane
	appDescs
	instanceDescs
	processDescs

	mu    sync.Mutex // guards named: scrapes may overlap
	named named
}

type appDescs struct {
	requests, appErrors, activeRequests, usable *prometheus.Desc
	tokens, answers, cost, unpriced             *prometheus.Desc
}

type instanceDescs struct {
	attempts, errors, retries, bytes, active, streams *prometheus.Desc
	waiting, ejected, duration, firstByte, streamTime *prometheus.Desc
}

type processDescs struct {
	revision, lag, applied, applySeconds, applies, refusals, faults, checksum      *prometheus.Desc
	apps, instances, deserted                                                      *prometheus.Desc
	connections, connectionsMax, draining, failOpen, failovers, ejections, limited *prometheus.Desc
	upstreams, dials, dialErrors, reused, stale, dropped, spans, admins            *prometheus.Desc
}

func newCollector(p *Plane, limit int) *collector {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("difylb_"+name, help, labels, nil)
	}
	// The label is not called instance, because that is what Prometheus calls
	// the target that it scrapes: it would rename ours.
	return &collector{
		p: p, named: named{max: limit, apps: make(map[string]bool), instances: make(map[stats.Key]bool)},
		appDescs: appDescs{
			requests:       d("requests_total", "Requests ended, by reason; app is empty for those that reached no application.", "app", "reason"),
			appErrors:      d("request_errors_total", "Requests ended for a reason that counts as error.", "app"),
			activeRequests: d("active_requests", "Requests open now.", "app"),
			usable:         d("usable_instances", "Instances that take new requests: active, of a weight above 0, not ejected, not known to be bad by probes; of applications that have any.", "app"),
			tokens:         d("usage_tokens_total", "Tokens that answers told to have used: prompt, completion, or unsplit where only a sum was told.", "app", "type"),
			answers:        d("usage_answers_total", "Answers that told their usage.", "app"),
			cost:           d("usage_cost_total", "Money that answers told to have cost, in units of the currency.", "app", "currency"),
			unpriced:       d("usage_unpriced_total", "Costs left out: of a ninth currency, or of one without a proper name.", "app"),
		},
		instanceDescs: instanceDescs{
			attempts:   d("instance_requests_total", "Attempts ended on an instance, by reason.", "app", "dify_instance", "reason"),
			errors:     d("instance_errors_total", "Attempts that failed by the instance's doing.", "app", "dify_instance"),
			retries:    d("instance_retries_total", "Attempts that came after another instance had failed.", "app", "dify_instance"),
			bytes:      d("instance_bytes_total", "Body bytes, from clients (in) and to clients (out).", "app", "dify_instance", "direction"),
			active:     d("instance_active_requests", "Requests open on an instance now.", "app", "dify_instance"),
			streams:    d("instance_active_streams", "Event streams open on an instance now.", "app", "dify_instance"),
			waiting:    d("instance_queued_requests", "Requests that wait for room on an instance now.", "app", "dify_instance"),
			ejected:    d("instance_ejected", "1 while live traffic keeps the instance out; summed up, how many are.", "app", "dify_instance"),
			duration:   d("instance_request_duration_seconds", "Duration of attempts, streams included.", "app", "dify_instance"),
			firstByte:  d("instance_first_byte_seconds", "Time to the first byte of an answer, of a stream to its first event that is not a ping.", "app", "dify_instance"),
			streamTime: d("instance_stream_duration_seconds", "Duration of event streams that have ended.", "app", "dify_instance"),
		},
		processDescs: processDescs{
			revision:       d("config_revision", "Revision of the configuration in force."),
			lag:            d("config_lag_seconds", "For how long the configuration could not be brought up to date; 0 while etcd is watched."),
			applied:        d("config_applied_timestamp_seconds", "When the configuration in force was applied."),
			applySeconds:   d("config_apply_seconds", "What the last application took."),
			applies:        d("config_applies_total", "Configurations applied."),
			refusals:       d("config_refusals_total", "Configurations refused; the last good one stayed."),
			faults:         d("config_faulty_keys", "Keys of the store that can't be read."),
			checksum:       d("ring_checksum", "Digest of all rings, the upper 32 bits: equal on all proxies that place users alike."),
			apps:           d("config_applications", "Applications of the configuration in force."),
			instances:      d("config_instances", "Instances of the configuration in force."),
			deserted:       d("config_applications_without_instance", "Applications of which no instance takes new requests, those that have none left out."),
			connections:    d("client_connections", "Client connections open now."),
			connectionsMax: d("client_connections_max", "Client connections that may be open at once; further ones wait."),
			upstreams:      d("upstream_connections", "Connections to instances open now, in use or idle."),
			dials:          d("upstream_dials_total", "Connections to instances that were made."),
			dialErrors:     d("upstream_dial_errors_total", "Attempts at a connection to an instance that failed."),
			reused:         d("upstream_reused_total", "Requests on a connection that had served another."),
			stale:          d("upstream_stale_total", "Idle connections found ended, or about to be, when they were wanted."),
			draining:       d("draining", "1 while this proxy is shutting down."),
			failOpen:       d("fail_open_total", "Requests sent to an instance that was not usable because none was."),
			failovers:      d("failovers_total", "Requests whose user's own instance was not usable, sent to the next on the ring."),
			ejections:      d("ejections_total", "Times that live traffic ejected an instance."),
			limited:        d("limited_requests_total", "Requests refused, by the rate limit that refused them.", "limit"),
			dropped:        d("access_log_dropped_total", "Access log lines lost to a slow disk."),
			spans:          d("trace_spans_total", "Spans that ended, by what became of them: exported, dropped because the collector was too slow, failed because it did not take them.", "result"),
			admins:         d("admins_connected", "lb-admins that answered within the last 3 seconds."),
		},
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	out := emitter{ch}
	unrouted, _ := c.p.registry.Totals(stats.Key{})
	out.reasons(c.requests, &unrouted, "")
	f := c.collectDeclared(out)
	c.collectProcess(out, f)
}

// declaredFacts are sums over the configuration in force.
type declaredFacts struct{ apps, instances, deserted int }

// collectDeclared emits the series of the configuration in force, idle ones
// too, so that rates see a counter's first steps, and then the rest in one.
func (c *collector) collectDeclared(out emitter) declaredFacts {
	var f declaredFacts
	table := c.p.proxy.Table()
	if table == nil {
		return f
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var rest rest
	usable := make(map[string]int, len(table.Apps()))
	for in := range c.p.proxy.Instances(time.Now()) {
		f.instances++
		u := usable[in.App]
		if in.Usable {
			u++
		}
		usable[in.App] = u
		if key := (stats.Key{App: in.App, Instance: in.Instance}); c.named.instance(key) {
			t, _ := c.p.registry.Totals(key)
			streamed := c.p.registry.StreamTime(key)
			c.emitInstance(out, key, &t, &streamed)
			c.emitInstanceFacts(out, key, in.Waiting, btoi(in.Ejected))
		} else {
			rest.waiting += in.Waiting
			rest.ejected += btoi(in.Ejected)
		}
	}
	for _, app := range table.Apps() {
		f.apps++
		name := app.Decl.Name
		n, any := usable[name]
		if any && n == 0 {
			f.deserted++
		}
		if c.named.app(name) {
			t, _ := c.p.registry.Totals(stats.Key{App: name})
			c.emitApp(out, name, &t)
			if any {
				out.gauge(c.usable, float64(n), name)
			}
		} else {
			rest.usable += n
		}
	}
	if c.named.overflown {
		c.collectRest(out, &rest)
	}
	return f
}

// rest is what the applications and instances without series of their own
// have that no counter tells.
type rest struct{ usable, waiting, ejected int }

// collectRest sums everything that was ever counted and has no series of its
// own, what has been removed meanwhile included.
func (c *collector) collectRest(out emitter, r *rest) {
	var apps, instances stats.Totals
	var streamed stats.Histogram
	all, _ := c.p.registry.Collect(0)
	for i := range all {
		s := &all[i]
		switch {
		case s.App == "":
		case s.Instance == "":
			if !c.named.apps[s.App] {
				apps.Add(&s.Totals)
			}
		case !c.named.instances[s.Key]:
			instances.Add(&s.Totals)
			h := c.p.registry.StreamTime(s.Key)
			streamed.Add(&h)
		}
	}
	key := stats.Key{App: stats.Overflow, Instance: stats.Overflow}
	c.emitApp(out, key.App, &apps)
	out.gauge(c.usable, float64(r.usable), key.App)
	c.emitInstance(out, key, &instances, &streamed)
	c.emitInstanceFacts(out, key, r.waiting, r.ejected)
}

func (c *collector) emitApp(out emitter, name string, t *stats.Totals) {
	out.reasons(c.requests, t, name)
	out.counter(c.appErrors, t.Errors, name)
	out.gauge(c.activeRequests, float64(max(t.Active, 0)), name)
	u := &t.Usage
	out.counter(c.tokens, u.Prompt, name, "prompt")
	out.counter(c.tokens, u.Completion, name, "completion")
	if split := u.Prompt + u.Completion; u.Total > split {
		out.counter(c.tokens, u.Total-split, name, "unsplit")
	}
	out.counter(c.answers, u.Answers, name)
	out.counter(c.unpriced, u.Unpriced, name)
	for _, cost := range u.Costs {
		out.ch <- prometheus.MustNewConstMetric(c.cost, prometheus.CounterValue, float64(cost.Nano)/1e9, name, cost.Currency)
	}
}

func (c *collector) emitInstance(out emitter, key stats.Key, t *stats.Totals, streamed *stats.Histogram) {
	out.reasons(c.attempts, t, key.App, key.Instance)
	out.counter(c.errors, t.Errors, key.App, key.Instance)
	out.counter(c.retries, t.Retries, key.App, key.Instance)
	out.counter(c.bytes, t.BytesIn, key.App, key.Instance, "in")
	out.counter(c.bytes, t.BytesOut, key.App, key.Instance, "out")
	out.gauge(c.active, float64(max(t.Active, 0)), key.App, key.Instance)
	out.gauge(c.streams, float64(t.Streams), key.App, key.Instance)
	out.histogram(c.duration, &t.Latency, key.App, key.Instance)
	out.histogram(c.firstByte, &t.FirstByte, key.App, key.Instance)
	out.histogram(c.streamTime, streamed, key.App, key.Instance)
}

func (c *collector) emitInstanceFacts(out emitter, key stats.Key, waiting, ejected int) {
	out.gauge(c.waiting, float64(waiting), key.App, key.Instance)
	out.gauge(c.ejected, float64(ejected), key.App, key.Instance)
}

func (c *collector) collectProcess(out emitter, d declaredFacts) {
	f := c.p.apply.facts.Load()
	out.gauge(c.revision, float64(f.ConfigRevision))
	out.gauge(c.lag, c.p.store.Lag().Seconds())
	if !f.AppliedAt.IsZero() {
		out.gauge(c.applied, float64(f.AppliedAt.UnixMilli())/1000)
	}
	out.gauge(c.applySeconds, f.Took.Seconds())
	out.counter(c.applies, f.Applies)
	out.counter(c.refusals, f.Refusals)
	out.gauge(c.faults, float64(f.Faults))
	out.gauge(c.checksum, float64(f.Checksum>>32))
	out.gauge(c.apps, float64(d.apps))
	out.gauge(c.instances, float64(d.instances))
	out.gauge(c.deserted, float64(d.deserted))
	out.gauge(c.connections, float64(c.p.proxy.Connections()))
	out.gauge(c.connectionsMax, float64(c.p.opts.MaxConnections))
	pool := c.p.proxy.Pool()
	out.gauge(c.upstreams, float64(pool.Open))
	out.counter(c.dials, pool.Dialled)
	out.counter(c.dialErrors, pool.Failed)
	out.counter(c.reused, pool.Reused)
	out.counter(c.stale, pool.Stale)
	out.gauge(c.draining, float64(btoi(c.p.proxy.Draining())))
	out.counter(c.failOpen, c.p.proxy.FailOpen())
	n := c.p.proxy.Counts()
	out.counter(c.failovers, n.Failovers)
	out.counter(c.ejections, n.Ejections)
	out.counter(c.limited, n.LimitedPerIP, "per_ip")
	out.counter(c.limited, n.LimitedPerUser, "per_user")
	out.counter(c.limited, n.LimitedPerApp, "per_app")
	out.counter(c.dropped, dropped(c.p.accessLog))
	spans := c.p.tracer.Counts()
	out.counter(c.spans, spans.Exported, "exported")
	out.counter(c.spans, spans.Dropped, "dropped")
	out.counter(c.spans, spans.Failed, "failed")
	out.gauge(c.admins, float64(c.p.link.Connected()))
}

func dropped(l *proxy.AccessLog) uint64 {
	if l == nil {
		return 0
	}
	return l.Dropped()
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// named decides who has series of his own: the first max applications and the
// first max instances that it is asked about, for good. Names that are no
// longer declared keep their places, because what stands under Overflow must
// never have to take back a part.
type named struct {
	max       int
	apps      map[string]bool
	instances map[stats.Key]bool
	overflown bool // somebody was turned away
}

func (n *named) app(name string) bool {
	if !n.apps[name] {
		if len(n.apps) >= n.max {
			n.overflown = true
			return false
		}
		n.apps[name] = true
	}
	return true
}

func (n *named) instance(key stats.Key) bool {
	if !n.instances[key] {
		if len(n.instances) >= n.max {
			n.overflown = true
			return false
		}
		n.instances[key] = true
	}
	return true
}

// emitter writes metrics to a scrape.
type emitter struct{ ch chan<- prometheus.Metric }

func (e emitter) counter(d *prometheus.Desc, v uint64, labels ...string) {
	e.ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func (e emitter) gauge(d *prometheus.Desc, v float64, labels ...string) {
	e.ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

// reasons leaves out those that have not happened, but for ok.
func (e emitter) reasons(d *prometheus.Desc, t *stats.Totals, labels ...string) {
	for r, n := range t.Reasons {
		if n > 0 || lb.Reason(r) == lb.ReasonOK {
			e.counter(d, n, append(labels[:len(labels):len(labels)], lb.Reason(r).String())...)
		}
	}
}

// bounds are the buckets shown to Prometheus: fewer than are kept.
var bounds = []time.Duration{
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second,
	10 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute, 20 * time.Minute,
}

// histogram sums the kept buckets into Prometheus's cumulative ones. A kept
// bucket counts where its upper bound lies. An empty one is left out.
func (e emitter) histogram(d *prometheus.Desc, h *stats.Histogram, labels ...string) {
	if len(h.Counts) == 0 {
		return
	}
	buckets := make(map[float64]uint64, len(bounds))
	next, sum := 0, uint64(0)
	for i, n := range h.Counts {
		_, hi := stats.BucketBounds(h.Offset + i)
		for next < len(bounds) && hi > bounds[next] {
			buckets[bounds[next].Seconds()] = sum
			next++
		}
		sum += n
	}
	for ; next < len(bounds); next++ {
		buckets[bounds[next].Seconds()] = sum
	}
	e.ch <- prometheus.MustNewConstHistogram(d, sum, h.Sum().Seconds(), buckets, labels...)
}
