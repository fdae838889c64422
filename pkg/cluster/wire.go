package cluster

import (
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
	pb "difylb/proto"
)

// Bounds of what comes from the other side. The cluster key makes peers
// trusted, not infallible.
const (
	maxNameBytes = 255
	maxMessage   = 16 << 20 // bytes, received
	partSeries   = 1000     // series or instances in one message; at most a few hundred bytes each
)

func totalsToWire(t *stats.Totals) *pb.Totals {
	w := &pb.Totals{
		Requests: t.Requests, Errors: t.Errors, Retries: t.Retries,
		BytesIn: t.BytesIn, BytesOut: t.BytesOut,
		Latency: histogramToWire(&t.Latency), FirstByte: histogramToWire(&t.FirstByte),
		Active: t.Active, Streams: t.Streams,
		Usage: usageToWire(&t.Usage),
	}
	for r, n := range t.Reasons {
		if n > 0 {
			w.Reasons = append(w.Reasons, &pb.ReasonCount{Reason: lb.Reason(r).String(), Count: n})
		}
	}
	if !t.LastError.None() {
		w.LastError = &pb.LastError{Reason: t.LastError.Reason.String(), UnixMilli: t.LastError.UnixMilli}
	}
	return w
}

// histogramToWire shares the counts with h.
func histogramToWire(h *stats.Histogram) *pb.Histogram {
	if len(h.Counts) == 0 {
		return nil
	}
	return &pb.Histogram{Offset: uint32(h.Offset), Counts: h.Counts}
}

// totalsFromWire reads foreign figures. A reason that this version does not
// know is left out of Reasons; Requests and Errors count it all the same.
func totalsFromWire(w *pb.Totals) stats.Totals {
	t := stats.Totals{
		Requests: w.GetRequests(), Errors: w.GetErrors(), Retries: w.GetRetries(),
		BytesIn: w.GetBytesIn(), BytesOut: w.GetBytesOut(),
		Latency: histogramFromWire(w.GetLatency()), FirstByte: histogramFromWire(w.GetFirstByte()),
		Active: w.GetActive(), Streams: w.GetStreams(),
		Usage: usageFromWire(w.GetUsage()),
	}
	for _, c := range w.GetReasons() {
		if r, ok := lb.ParseReason(c.GetReason()); ok {
			t.Reasons[r] += c.GetCount()
		}
	}
	if e := w.GetLastError(); e.GetUnixMilli() > 0 {
		r, ok := lb.ParseReason(e.GetReason())
		if !ok {
			r = lb.ReasonUpstreamError
		}
		t.LastError = stats.LastError{Reason: r, UnixMilli: e.GetUnixMilli()}
	}
	return t
}

// histogramFromWire takes the counts over: the message is not used again.
func histogramFromWire(w *pb.Histogram) stats.Histogram {
	offset, counts := int(w.GetOffset()), w.GetCounts()
	if len(counts) == 0 || offset >= stats.NumBucket {
		return stats.Histogram{}
	}
	return stats.Histogram{Offset: offset, Counts: counts[:min(len(counts), stats.NumBucket-offset)]}
}

// applicationToWire leaves the labels out: they go apart, when they change.
func applicationToWire(name string, a *ApplicationStatus) *pb.ApplicationStatus {
	w := &pb.ApplicationStatus{
		Name: name, TotalRequests: a.TotalRequests, Errors: a.Errors, Active: a.Active,
		Instances:     make([]*pb.InstanceStatus, 0, len(a.Instances)),
		Usage:         usageStatusToWire(a.Usage),
		LatencyRecent: a.LatencyRecent.toWire(), FirstByteRecent: a.FirstByteRecent.toWire(),
	}
	for n, in := range a.Instances {
		i := &pb.InstanceStatus{
			Name: n, Requests: in.Requests, Errors: in.Errors, Retries: in.Retries,
			Active: in.Active, Streams: in.Streams, Status: in.Status, State: string(in.State),
			BytesIn: in.BytesIn, BytesOut: in.BytesOut, SinceUnixMilli: in.Since.UnixMilli(),
			EjectedBy: in.EjectedBy,
			Usage:     usageStatusToWire(in.Usage),
		}
		i.LatencyMs, i.FirstByteMs = in.Latency.toWire(), in.FirstByte.toWire()
		i.LatencyRecent, i.FirstByteRecent = in.LatencyRecent.toWire(), in.FirstByteRecent.toWire()
		if in.EjectedSince != nil {
			i.EjectedSinceUnixMilli = in.EjectedSince.UnixMilli()
		}
		if in.LastError != nil {
			i.LastError = &pb.LastError{Reason: in.LastError.Reason, UnixMilli: in.LastError.Time.UnixMilli()}
		}
		w.Instances = append(w.Instances, i)
	}
	return w
}

func applicationFromWire(w *pb.ApplicationStatus) *ApplicationStatus {
	a := &ApplicationStatus{
		TotalRequests: w.GetTotalRequests(), Errors: w.GetErrors(), Active: w.GetActive(),
		Instances:     make(map[string]*InstanceStatus, len(w.GetInstances())),
		Usage:         usageStatusFromWire(w.GetUsage()),
		LatencyRecent: latencyFromWire(w.GetLatencyRecent()), FirstByteRecent: firstByteFromWire(w.GetFirstByteRecent()),
	}
	for _, i := range w.GetInstances() {
		in := &InstanceStatus{
			Requests: i.GetRequests(), Errors: i.GetErrors(), Retries: i.GetRetries(),
			Active: i.GetActive(), Streams: i.GetStreams(),
			Status: i.GetStatus(), State: lb.State(i.GetState()),
			BytesIn: i.GetBytesIn(), BytesOut: i.GetBytesOut(),
			Since:   time.UnixMilli(i.GetSinceUnixMilli()).UTC(),
			Latency: latencyFromWire(i.GetLatencyMs()), FirstByte: firstByteFromWire(i.GetFirstByteMs()),
			LatencyRecent: latencyFromWire(i.GetLatencyRecent()), FirstByteRecent: firstByteFromWire(i.GetFirstByteRecent()),
			EjectedBy: i.GetEjectedBy(),
			Usage:     usageStatusFromWire(i.GetUsage()),
		}
		if since := fromUnixMilli(i.GetEjectedSinceUnixMilli()); !since.IsZero() {
			in.EjectedSince = &since
		}
		if e := i.GetLastError(); e != nil {
			in.LastError = &LastError{Reason: e.GetReason(), Time: time.UnixMilli(e.GetUnixMilli()).UTC()}
		}
		a.Instances[i.GetName()] = in
	}
	return a
}

// toWire returns nil where nothing was counted.
func (q LatencyQuantiles) toWire() []float64 {
	if q == (LatencyQuantiles{}) {
		return nil
	}
	return []float64{q.P50, q.P90, q.P99}
}

func latencyFromWire(q []float64) LatencyQuantiles {
	if len(q) < 3 {
		return LatencyQuantiles{}
	}
	return LatencyQuantiles{P50: q[0], P90: q[1], P99: q[2]}
}

// toWire returns nil where nothing was counted.
func (q FirstByteQuantiles) toWire() []float64 {
	if q == (FirstByteQuantiles{}) {
		return nil
	}
	return []float64{q.P50, q.P99}
}

func firstByteFromWire(q []float64) FirstByteQuantiles {
	if len(q) < 2 {
		return FirstByteQuantiles{}
	}
	return FirstByteQuantiles{P50: q[0], P99: q[1]}
}

func receiptToWire(r Receipt) *pb.Receipt {
	return &pb.Receipt{
		Revision: r.Revision, ConfigRevision: r.ConfigRevision, Epoch: r.Epoch,
		RingChecksum: r.RingChecksum, AppliedUnixMilli: unixMilli(r.AppliedAt),
		ApplyMicros: r.ApplyDuration.Microseconds(), Refused: r.Refused, RefusedRevision: r.RefusedRevision,
		HeldBack: r.HeldBack, RefusedEpoch: r.RefusedEpoch,
	}
}

func receiptFromWire(w *pb.Receipt) Receipt {
	return Receipt{
		Revision: w.GetRevision(), ConfigRevision: w.GetConfigRevision(), Epoch: w.GetEpoch(),
		RingChecksum: w.GetRingChecksum(), AppliedAt: fromUnixMilli(w.GetAppliedUnixMilli()),
		ApplyDuration: time.Duration(w.GetApplyMicros()) * time.Microsecond,
		Refused:       w.GetRefused(), RefusedRevision: w.GetRefusedRevision(),
		HeldBack: w.GetHeldBack(), RefusedEpoch: w.GetRefusedEpoch(),
	}
}

func unixMilli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromUnixMilli(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
