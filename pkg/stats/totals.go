package stats

import (
	"time"

	"difylb/pkg/lb"
)

// Key names a series. An empty Instance is the application itself; an empty
// App is the requests that reached no application.
type Key struct {
	App, Instance string
	// ByLabel makes it the series of the application's user tokens whose
	// label is Label, which is "" for tokens without one. Instance is empty then.
	ByLabel bool
	Label   string
}

// LabelKey returns the key of a label's series.
func LabelKey(app, label string) Key { return Key{App: app, ByLabel: true, Label: label} }

// Totals are the figures of one series. The counters are cumulative and only
// grow; Active and Streams are gauges. An application's totals count client
// requests and leave the fields of attempts (Retries, bytes, histograms,
// LastError) zero; an instance's count attempts; a label's have Requests and
// Usage only.
//
// Totals merge in two ways, neither of which subtracts: Add sums figures of
// different boots, Max joins two views of the same boot.
type Totals struct {
	Requests uint64 // begun
	// Errors are the ended ones whose Reason was an error: Reason.IsError for
	// an application, Reason.IsInstanceError for an instance.
	Errors   uint64
	Reasons  [lb.NumReasons]uint64 // ended ones by Reason
	Retries  uint64                // attempts that came after another instance had failed
	BytesIn  uint64                // from clients
	BytesOut uint64                // to clients

	Latency   Histogram
	FirstByte Histogram
	LastError LastError

	Usage Usage // of the answers that told any

	Active  int64
	Streams int64
}

// LastError is the newest failed attempt. The zero value is none.
type LastError struct {
	Reason    lb.Reason
	UnixMilli int64
}

// None reports whether there has been no error.
func (e LastError) None() bool { return e.UnixMilli == 0 }

// Time returns when it was, in UTC.
func (e LastError) Time() time.Time { return time.UnixMilli(e.UnixMilli).UTC() }

// later orders by time, then by reason, so that merging does not depend on order.
func (e LastError) later(o LastError) bool {
	return e.UnixMilli > o.UnixMilli || e.UnixMilli == o.UnixMilli && e.Reason > o.Reason
}

// Add sums o into t, the gauges too.
func (t *Totals) Add(o *Totals) {
	t.Requests += o.Requests
	t.Errors += o.Errors
	t.Retries += o.Retries
	t.BytesIn += o.BytesIn
	t.BytesOut += o.BytesOut
	for i, n := range o.Reasons {
		t.Reasons[i] += n
	}
	t.Latency.Add(&o.Latency)
	t.FirstByte.Add(&o.FirstByte)
	t.raiseLastError(o)
	t.Usage.Add(&o.Usage)
	t.Active += o.Active
	t.Streams += o.Streams
}

// Max raises every counter of t to o's. The gauges are not touched: which of
// two is newer, the figures themselves do not say.
func (t *Totals) Max(o *Totals) {
	t.Requests = max(t.Requests, o.Requests)
	t.Errors = max(t.Errors, o.Errors)
	t.Retries = max(t.Retries, o.Retries)
	t.BytesIn = max(t.BytesIn, o.BytesIn)
	t.BytesOut = max(t.BytesOut, o.BytesOut)
	for i, n := range o.Reasons {
		t.Reasons[i] = max(t.Reasons[i], n)
	}
	t.Latency.Max(&o.Latency)
	t.FirstByte.Max(&o.FirstByte)
	t.raiseLastError(o)
	t.Usage.Max(&o.Usage)
}

func (t *Totals) raiseLastError(o *Totals) {
	if o.LastError.later(t.LastError) {
		t.LastError = o.LastError
	}
}

// Ended returns the number of requests that have ended.
func (t *Totals) Ended() uint64 {
	var n uint64
	for _, c := range t.Reasons {
		n += c
	}
	return n
}

// Clone returns a copy that shares nothing.
func (t *Totals) Clone() Totals {
	c := *t
	c.Latency, c.FirstByte, c.Usage = t.Latency.Clone(), t.FirstByte.Clone(), t.Usage.Clone()
	return c
}

// Series is a Key with its Totals.
type Series struct {
	Key
	Totals
}
