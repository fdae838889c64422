package dataplane

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"difylb/pkg/lb"
	"difylb/pkg/proxy"
	"difylb/pkg/stats"
)

// metrics returns the registry of this proxy. Counting is done by pkg/stats;
// this only tells Prometheus what it counted, so a scrape costs the path of a
// request nothing.
func (p *Plane) metrics() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), newCollector(p))
	return r
}

type collector struct {
	p *Plane

	requests, instanceRequests, errors, retries, bytes *prometheus.Desc
	active, streams, duration, firstByte, ejected      *prometheus.Desc
	revision, lag, applied, applySeconds, applies      *prometheus.Desc
	refusals, checksum, connections, failOpen, dropped *prometheus.Desc
	faults, admins                                     *prometheus.Desc
}

func newCollector(p *Plane) *collector {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("difylb_"+name, help, labels, nil)
	}
	return &collector{
		p:                p,
		requests:         d("requests_total", "Requests ended, by application and reason; application is empty for those that reached none.", "app", "reason"),
		instanceRequests: d("instance_requests_total", "Attempts ended on an instance, by reason.", "app", "instance", "reason"),
		errors:           d("instance_errors_total", "Attempts that failed by the instance's doing.", "app", "instance"),
		retries:          d("instance_retries_total", "Attempts that came after another instance had failed.", "app", "instance"),
		bytes:            d("instance_bytes_total", "Body bytes, from clients (in) and to clients (out).", "app", "instance", "direction"),
		active:           d("instance_active_requests", "Requests open on an instance now.", "app", "instance"),
		streams:          d("instance_active_streams", "Event streams open on an instance now.", "app", "instance"),
		duration:         d("instance_request_duration_seconds", "Duration of attempts.", "app", "instance"),
		firstByte:        d("instance_first_byte_seconds", "Time to the first byte of an answer, of a stream to its first event that is not a ping.", "app", "instance"),
		ejected:          d("instance_ejected", "1 while live traffic keeps the instance out.", "app", "instance"),
		revision:         d("config_revision", "Revision of the configuration in force."),
		lag:              d("config_lag_seconds", "For how long the configuration could not be brought up to date; 0 while etcd is watched."),
		applied:          d("config_applied_timestamp_seconds", "When the configuration in force was applied."),
		applySeconds:     d("config_apply_seconds", "What the last application took."),
		applies:          d("config_applies_total", "Configurations applied."),
		refusals:         d("config_refusals_total", "Configurations refused; the last good one stayed."),
		checksum:         d("ring_checksum", "Digest of all rings, the upper 32 bits: equal on all proxies that place users alike."),
		connections:      d("client_connections", "Client connections open now."),
		failOpen:         d("fail_open_total", "Requests sent to an instance that was not usable because none was."),
		dropped:          d("access_log_dropped_total", "Access log lines lost to a slow disk."),
		faults:           d("config_faulty_keys", "Keys of the store that can't be read."),
		admins:           d("admins_connected", "lb-admins that answered within the last 3 seconds."),
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
	series, _ := c.p.registry.Collect(0)
	for _, s := range series {
		if s.Instance == "" {
			c.reasons(s.Reasons, func(n uint64, reason string) { counter(c.requests, n, s.App, reason) })
			continue
		}
		c.reasons(s.Reasons, func(n uint64, reason string) { counter(c.instanceRequests, n, s.App, s.Instance, reason) })
		counter(c.errors, s.Errors, s.App, s.Instance)
		counter(c.retries, s.Retries, s.App, s.Instance)
		counter(c.bytes, s.BytesIn, s.App, s.Instance, "in")
		counter(c.bytes, s.BytesOut, s.App, s.Instance, "out")
		gauge(c.active, float64(s.Active), s.App, s.Instance)
		gauge(c.streams, float64(s.Streams), s.App, s.Instance)
		ch <- histogram(c.duration, &s.Latency, s.App, s.Instance)
		ch <- histogram(c.firstByte, &s.FirstByte, s.App, s.Instance)
	}
	for _, e := range c.p.proxy.Ejections(time.Now()) {
		gauge(c.ejected, 1, e.App, e.Instance)
	}
	f := c.p.apply.facts.Load()
	gauge(c.revision, float64(f.ConfigRevision))
	gauge(c.lag, c.p.store.Lag().Seconds())
	if !f.AppliedAt.IsZero() {
		gauge(c.applied, float64(f.AppliedAt.UnixMilli())/1000)
	}
	gauge(c.applySeconds, f.Took.Seconds())
	counter(c.applies, f.Applies)
	counter(c.refusals, f.Refusals)
	gauge(c.checksum, float64(f.Checksum>>32))
	gauge(c.connections, float64(c.p.proxy.Connections()))
	counter(c.failOpen, c.p.proxy.FailOpen())
	counter(c.dropped, dropped(c.p.accessLog))
	gauge(c.faults, float64(f.Faults))
	gauge(c.admins, float64(c.p.link.Connected()))
}

func dropped(l *proxy.AccessLog) uint64 {
	if l == nil {
		return 0
	}
	return l.Dropped()
}

func (c *collector) reasons(counts [lb.NumReasons]uint64, emit func(uint64, string)) {
	for r, n := range counts {
		if n > 0 || lb.Reason(r) == lb.ReasonOK {
			emit(n, lb.Reason(r).String())
		}
	}
}

// metricBounds are the buckets shown to Prometheus: fewer than are kept.
var metricBounds = []time.Duration{
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second,
	10 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute, 20 * time.Minute,
}

// histogram sums the kept buckets into Prometheus's cumulative ones. A kept
// bucket counts where its upper bound lies.
func histogram(d *prometheus.Desc, h *stats.Histogram, labels ...string) prometheus.Metric {
	buckets := make(map[float64]uint64, len(metricBounds))
	next, sum := 0, uint64(0)
	for i, n := range h.Counts {
		_, hi := stats.BucketBounds(h.Offset + i)
		for next < len(metricBounds) && hi > metricBounds[next] {
			buckets[metricBounds[next].Seconds()] = sum
			next++
		}
		sum += n
	}
	for ; next < len(metricBounds); next++ {
		buckets[metricBounds[next].Seconds()] = sum
	}
	return prometheus.MustNewConstHistogram(d, h.Count(), h.Sum().Seconds(), buckets, labels...)
}
