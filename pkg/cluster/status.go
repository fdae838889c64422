package cluster

import (
	"encoding/json"
	"math"
	"sort"
	"strconv"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
)

// The words for an instance's status. Several facts may hold at once; the
// first of this order that holds is shown: what the operator wants (disabled,
// draining), what live traffic showed (ejected), what probes found.
const (
	StatusDisabled      = "disabled"
	StatusDraining      = "draining"
	StatusEjected       = "ejected"
	StatusTokenRejected = "token_rejected"
	StatusUnhealthy     = "unhealthy"
	StatusHealthy       = "healthy"
	StatusUnknown       = "unknown"
)

// Status is the state of the whole cluster as GET /status shows it. What it
// points to is immutable and may be shared with other documents.
type Status struct {
	Status    string    `json:"status"`    // "running"
	Timestamp time.Time `json:"timestamp"` // when the document was made, whole seconds, UTC
	// Revision is that of the configuration which the document describes.
	Revision int64 `json:"revision"`
	// Complete is false while some proxy's figures, or those of earlier boots, are missing.
	Complete bool       `json:"complete"`
	Nodes    NodeCounts `json:"nodes"` // how many there are
	// Refusing names the proxies that keep an older configuration in force, by
	// node; left out when there is none.
	Refusing     []Refusing                    `json:"refusing,omitempty"`
	Applications map[string]*ApplicationStatus `json:"applications"` // by name
}

// NodeCounts are the live nodes.
type NodeCounts struct {
	Proxies   int `json:"proxies"`   // registered
	Admins    int `json:"admins"`    // registered
	Reporting int `json:"reporting"` // proxies whose figures are no older than 3 s
}

// ApplicationStatus is one application of the configuration, with or without traffic.
type ApplicationStatus struct {
	TotalRequests uint64                     `json:"total_requests"` // requests of clients that were begun, ever
	Errors        uint64                     `json:"errors"`         // ended for a Reason that IsError
	Active        int64                      `json:"active"`         // requests open now, at the proxies that report
	Instances     map[string]*InstanceStatus `json:"instances"`      // by name
	// LatencyRecent and FirstByteRecent cover the attempts on all instances
	// that ended within the last 60 s; 0 means none.
	LatencyRecent   LatencyQuantiles   `json:"latency_recent"`
	FirstByteRecent FirstByteQuantiles `json:"first_byte_recent"`
	Usage           *UsageStatus       `json:"usage,omitempty"` // nil: none
	// TokenLabels are the user tokens by label; those without one are not listed; empty
	// while there is no Usage. A label stays when its tokens are removed.
	TokenLabels map[string]*LabelStatus `json:"token_labels,omitempty"`
}

// InstanceStatus is one instance of the configuration, with or without traffic.
type InstanceStatus struct {
	Requests uint64   `json:"requests"` // attempts that it was given
	Errors   uint64   `json:"errors"`   // those that failed by its doing
	Retries  uint64   `json:"retries"`  // those that came after another instance had failed
	Active   int64    `json:"active"`   // attempts open now, at the proxies that report
	Streams  int64    `json:"streams"`  // event streams among them
	Status   string   `json:"status"`   // the one word: disabled, draining, ejected, token_rejected, unhealthy, healthy or unknown
	State    lb.State `json:"state"`    // what the operator wants
	// Latency and FirstByte cover all attempts ever counted; 0 means none.
	Latency   LatencyQuantiles   `json:"latency_ms"`
	FirstByte FirstByteQuantiles `json:"first_byte_ms"`
	BytesIn   uint64             `json:"bytes_in"`   // of bodies, from clients
	BytesOut  uint64             `json:"bytes_out"`  // of bodies, to clients
	LastError *LastError         `json:"last_error"` // nil: none yet
	// Since is when Status became what it is, as far as is known; whole seconds, UTC.
	Since time.Time `json:"since"`
	// LatencyRecent and FirstByteRecent cover the attempts that ended within
	// the last 60 s; 0 means none, and on a proxy that no lb-admin answers not known.
	LatencyRecent   LatencyQuantiles   `json:"latency_recent"`
	FirstByteRecent FirstByteQuantiles `json:"first_byte_recent"`
	// EjectedBy are the ids of the proxies that eject it now, sorted, whatever
	// Status says; empty: none does.
	EjectedBy []string `json:"ejected_by,omitempty"`
	// EjectedSince is since when the first of them does; whole seconds, UTC.
	EjectedSince *time.Time `json:"ejected_since,omitempty"`
	// LastProbe is the newest active probe of it; nil: none is known. Proxies
	// do not know it.
	LastProbe *LastProbe   `json:"last_probe,omitempty"`
	Usage     *UsageStatus `json:"usage,omitempty"` // nil: none
}

// LatencyQuantiles are milliseconds.
type LatencyQuantiles struct {
	P50 float64 `json:"p50"` // half took no longer; 0: none
	P90 float64 `json:"p90"` // 9 of 10 took no longer; 0: none
	P99 float64 `json:"p99"` // 99 of 100 took no longer; 0: none
}

// FirstByteQuantiles are milliseconds.
type FirstByteQuantiles struct {
	P50 float64 `json:"p50"` // half took no longer; 0: none
	P99 float64 `json:"p99"` // 99 of 100 took no longer; 0: none
}

// LastError is the newest failed attempt on an instance.
type LastError struct {
	Reason string    `json:"reason"` // label of a lb.Reason
	Time   time.Time `json:"time"`   // when it ended, whole seconds, UTC
}

// fill sets what comes from counters and gauges.
func (in *InstanceStatus) fill(t *stats.Totals) {
	in.Requests, in.Errors, in.Retries = t.Requests, t.Errors, t.Retries
	in.Active, in.Streams = max(t.Active, 0), max(t.Streams, 0)
	in.BytesIn, in.BytesOut = t.BytesIn, t.BytesOut
	in.setQuantiles(t)
	in.Usage = usageStatus(&t.Usage)
	if !t.LastError.None() {
		in.LastError = &LastError{Reason: t.LastError.Reason.String(), Time: t.LastError.Time().Truncate(time.Second)}
	}
}

func (in *InstanceStatus) setQuantiles(t *stats.Totals) {
	in.Latency, in.FirstByte = latencyOf(&t.Latency), firstByteOf(&t.FirstByte)
}

func latencyOf(h *stats.Histogram) LatencyQuantiles {
	var ds [3]time.Duration
	q := h.Quantiles(ds[:0], 0.5, 0.9, 0.99)
	return LatencyQuantiles{P50: millis(q[0]), P90: millis(q[1]), P99: millis(q[2])}
}

func firstByteOf(h *stats.Histogram) FirstByteQuantiles {
	var ds [2]time.Duration
	q := h.Quantiles(ds[:0], 0.5, 0.99)
	return FirstByteQuantiles{P50: millis(q[0]), P99: millis(q[1])}
}

// millis keeps what the width of a bucket leaves of a duration: three digits.
func millis(d time.Duration) float64 {
	ms := float64(d) / float64(time.Millisecond)
	if ms == 0 {
		return 0
	}
	scale := math.Pow(10, 2-math.Floor(math.Log10(ms)))
	if scale < 1 {
		return math.Round(ms)
	}
	return math.Round(ms*scale) / scale
}

// raise lifts every counter to at least old's, so that no reader sees one go
// backwards while figures are missing.
func (a *ApplicationStatus) raise(old *ApplicationStatus) {
	a.TotalRequests = max(a.TotalRequests, old.TotalRequests)
	a.Errors = max(a.Errors, old.Errors)
	for name, o := range old.Instances {
		if in := a.Instances[name]; in != nil {
			in.raise(o)
		}
	}
	a.Usage = a.Usage.raised(old.Usage)
	if a.TokenLabels == nil && len(old.TokenLabels) > 0 {
		a.TokenLabels = make(map[string]*LabelStatus, len(old.TokenLabels))
	}
	for name, o := range old.TokenLabels {
		if l := a.TokenLabels[name]; l != nil {
			o = l.raised(o)
		}
		a.TokenLabels[name] = o
	}
}

func (in *InstanceStatus) raise(o *InstanceStatus) {
	in.Requests = max(in.Requests, o.Requests)
	in.Errors = max(in.Errors, o.Errors)
	in.Retries = max(in.Retries, o.Retries)
	in.BytesIn = max(in.BytesIn, o.BytesIn)
	in.BytesOut = max(in.BytesOut, o.BytesOut)
	if o.LastError != nil && (in.LastError == nil || in.LastError.Time.Before(o.LastError.Time)) {
		in.LastError = o.LastError
	}
	in.Usage = in.Usage.raised(o.Usage)
}

// MarshalJSON writes the document with its names sorted. It is written by hand
// because a cluster of 50,000 instances is asked for it, too.
func (s *Status) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, 256+512*s.size())
	b = append(b, `{"status":`...)
	b = appendString(b, s.Status)
	b = append(b, `,"timestamp":`...)
	b = appendTime(b, s.Timestamp)
	b = append(b, `,"revision":`...)
	b = strconv.AppendInt(b, s.Revision, 10)
	b = append(b, `,"complete":`...)
	b = strconv.AppendBool(b, s.Complete)
	b = append(b, `,"nodes":{"proxies":`...)
	b = strconv.AppendInt(b, int64(s.Nodes.Proxies), 10)
	b = append(b, `,"admins":`...)
	b = strconv.AppendInt(b, int64(s.Nodes.Admins), 10)
	b = append(b, `,"reporting":`...)
	b = strconv.AppendInt(b, int64(s.Nodes.Reporting), 10)
	b = append(b, '}')
	if len(s.Refusing) > 0 {
		list, err := json.Marshal(s.Refusing)
		if err != nil {
			return nil, err
		}
		b = append(append(b, `,"refusing":`...), list...)
	}
	b = append(b, `,"applications":{`...)
	for i, name := range sortedNames(s.Applications) {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, name)
		b = append(b, ':')
		b = s.Applications[name].appendJSON(b)
	}
	return append(b, `}}`...), nil
}

func (s *Status) size() int {
	n := len(s.Applications)
	for _, a := range s.Applications {
		n += len(a.Instances) + len(a.TokenLabels)/2
	}
	return n
}

// MarshalJSON writes the application as it stands in a Status.
func (a *ApplicationStatus) MarshalJSON() ([]byte, error) { return a.appendJSON(nil), nil }

func (a *ApplicationStatus) appendJSON(b []byte) []byte {
	b = append(b, `{"total_requests":`...)
	b = strconv.AppendUint(b, a.TotalRequests, 10)
	b = append(b, `,"errors":`...)
	b = strconv.AppendUint(b, a.Errors, 10)
	b = append(b, `,"active":`...)
	b = strconv.AppendInt(b, a.Active, 10)
	b = append(b, `,"instances":{`...)
	for i, name := range sortedNames(a.Instances) {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, name)
		b = append(b, ':')
		b = a.Instances[name].appendJSON(b)
	}
	b = append(b, '}')
	b = appendLatency(b, `,"latency_recent":`, a.LatencyRecent)
	b = appendFirstByte(b, `,"first_byte_recent":`, a.FirstByteRecent)
	b = appendUsage(b, a.Usage)
	b = appendLabels(b, a.TokenLabels)
	return append(b, '}')
}

// MarshalJSON writes the instance as it stands in a Status.
func (in *InstanceStatus) MarshalJSON() ([]byte, error) { return in.appendJSON(nil), nil }

func (in *InstanceStatus) appendJSON(b []byte) []byte {
	b = append(b, `{"requests":`...)
	b = strconv.AppendUint(b, in.Requests, 10)
	b = append(b, `,"errors":`...)
	b = strconv.AppendUint(b, in.Errors, 10)
	b = append(b, `,"retries":`...)
	b = strconv.AppendUint(b, in.Retries, 10)
	b = append(b, `,"active":`...)
	b = strconv.AppendInt(b, in.Active, 10)
	b = append(b, `,"streams":`...)
	b = strconv.AppendInt(b, in.Streams, 10)
	b = append(b, `,"status":`...)
	b = appendString(b, in.Status)
	b = append(b, `,"state":`...)
	b = appendString(b, string(in.State))
	b = appendLatency(b, `,"latency_ms":`, in.Latency)
	b = appendFirstByte(b, `,"first_byte_ms":`, in.FirstByte)
	b = append(b, `,"bytes_in":`...)
	b = strconv.AppendUint(b, in.BytesIn, 10)
	b = append(b, `,"bytes_out":`...)
	b = strconv.AppendUint(b, in.BytesOut, 10)
	if in.LastError == nil {
		b = append(b, `,"last_error":null`...)
	} else {
		b = append(b, `,"last_error":{"reason":`...)
		b = appendString(b, in.LastError.Reason)
		b = append(b, `,"time":`...)
		b = appendTime(b, in.LastError.Time)
		b = append(b, '}')
	}
	b = append(b, `,"since":`...)
	b = appendTime(b, in.Since)
	b = appendLatency(b, `,"latency_recent":`, in.LatencyRecent)
	b = appendFirstByte(b, `,"first_byte_recent":`, in.FirstByteRecent)
	for i, node := range in.EjectedBy {
		if i == 0 {
			b = append(b, `,"ejected_by":[`...)
		} else {
			b = append(b, ',')
		}
		if b = appendString(b, node); i == len(in.EjectedBy)-1 {
			b = append(b, ']')
		}
	}
	if in.EjectedSince != nil {
		b = append(b, `,"ejected_since":`...)
		b = appendTime(b, *in.EjectedSince)
	}
	if p := in.LastProbe; p != nil {
		b = append(b, `,"last_probe":{"time":"`...)
		b = p.Time.UTC().AppendFormat(b, probeTime)
		b = append(b, `","duration_ms":`...)
		b = appendFloat(b, p.DurationMS)
		b = append(b, `,"verdict":`...)
		b = appendString(b, string(p.Verdict))
		b = append(b, `,"found":`...)
		b = appendString(b, p.Found)
		b = append(b, `,"by":`...)
		b = appendString(b, p.By)
		b = append(b, '}')
	}
	b = appendUsage(b, in.Usage)
	return append(b, '}')
}

func appendLatency(b []byte, key string, q LatencyQuantiles) []byte {
	b = append(append(b, key...), `{"p50":`...)
	b = appendFloat(b, q.P50)
	b = append(b, `,"p90":`...)
	b = appendFloat(b, q.P90)
	b = append(b, `,"p99":`...)
	b = appendFloat(b, q.P99)
	return append(b, '}')
}

func appendFirstByte(b []byte, key string, q FirstByteQuantiles) []byte {
	b = append(append(b, key...), `{"p50":`...)
	b = appendFloat(b, q.P50)
	b = append(b, `,"p99":`...)
	b = appendFloat(b, q.P99)
	return append(b, '}')
}

func appendFloat(b []byte, f float64) []byte { return strconv.AppendFloat(b, f, 'f', -1, 64) }

func appendTime(b []byte, t time.Time) []byte {
	b = append(b, '"')
	b = t.UTC().AppendFormat(b, "2006-01-02T15:04:05Z")
	return append(b, '"')
}

// appendString takes the short way for declared names, which need no escape.
func appendString(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, err := json.Marshal(s)
			if err != nil {
				return append(b, `""`...)
			}
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}
