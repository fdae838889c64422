package cluster

import (
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
	pb "difylb/proto"
)

// document is the Status document as a proxy knows it. It outlives the
// streams: what was shown once is the floor of what is shown later. Its
// owner's lock guards it.
type document struct {
	header header
	whole  bool // a whole document has come since begin
	named  map[string]bool
	apps   map[string]*shownApp
}

// shownApp is one application.
type shownApp struct {
	// cluster is what the lb-admin said; own is what this proxy had counted
	// itself when it was told that, per instance and, under "", for the
	// application. Later own counts go on top while no lb-admin answers.
	cluster *ApplicationStatus
	own     map[string]ownCounts
	labels  map[string]knownLabel // the same for every label that it named
	shown   *ApplicationStatus    // the newest shown; immutable
}

// knownLabel is a label as the lb-admin told it, and what this proxy had
// counted of it by then.
type knownLabel struct {
	cluster *LabelStatus
	own     ownCounts
}

type ownCounts struct {
	requests, errors, retries, bytesIn, bytesOut uint64
	usage                                        stats.Usage
}

func countsOf(t *stats.Totals) ownCounts {
	return ownCounts{t.Requests, t.Errors, t.Retries, t.BytesIn, t.BytesOut, t.Usage}
}

// begin makes ready for another lb-admin's document.
func (d *document) begin() { d.whole, d.named = false, nil }

// take merges an update.
func (d *document) take(u *pb.StatusUpdate, own *stats.Registry) {
	if u.GetFull() && d.named == nil {
		d.named = make(map[string]bool)
	}
	fresh := make(map[string]bool)
	for _, w := range u.GetApplications() {
		name := w.GetName()
		if d.named != nil {
			d.named[name] = true
		}
		next := &shownApp{cluster: applicationFromWire(w), own: make(map[string]ownCounts)}
		if t, ok := own.Totals(stats.Key{App: name}); ok {
			next.own[""] = countsOf(&t)
		}
		for in := range next.cluster.Instances {
			if t, ok := own.Totals(stats.Key{App: name, Instance: in}); ok {
				next.own[in] = countsOf(&t)
			}
		}
		if old := d.apps[name]; old != nil {
			next.cluster.raise(old.shown)
			next.labels = old.labels
		}
		next.shown = next.cluster
		d.apps[name], fresh[name] = next, true
	}
	for _, name := range u.GetRemoved() {
		delete(d.apps, name)
	}
	d.takeLabels(u.GetLabels(), fresh, own)
	d.header = header{
		revision: u.GetRevision(), epoch: u.GetEpoch(), complete: u.GetComplete(),
		nodes: NodeCounts{Proxies: int(u.GetProxies()), Admins: int(u.GetAdmins()), Reporting: int(u.GetReporting())},
	}
	if len(u.GetRefusing()) > 0 {
		refusing := make([]Refusing, 0, len(u.GetRefusing()))
		for _, w := range u.GetRefusing() {
			refusing = append(refusing, Refusing{Node: w.GetNode(), Revision: w.GetRevision(), RefusedRevision: w.GetRefusedRevision(), HeldBack: w.GetHeldBack(), Reason: w.GetReason()})
		}
		d.header.refusing = &refusing
	}
	if u.GetFull() && !u.GetMore() {
		for name := range d.apps {
			if !d.named[name] {
				delete(d.apps, name)
			}
		}
		d.whole, d.named = true, nil
	}
}

// own returns an application as this proxy can tell it alone: the last known
// cluster figures plus what it has counted since.
func (d *document) own(app *lb.Application, s *lb.Snapshot, r *stats.Registry, ejected map[stats.Key]time.Time, node string, started time.Time) *ApplicationStatus {
	known := d.apps[app.Name]
	if known == nil {
		known = &shownApp{cluster: &ApplicationStatus{}}
		d.apps[app.Name] = known
	}
	t, _ := r.Totals(stats.Key{App: app.Name})
	since := countsOf(&t).less(known.own[""])
	a := &ApplicationStatus{
		TotalRequests: known.cluster.TotalRequests + since.requests,
		Errors:        known.cluster.Errors + since.errors,
		Active:        max(t.Active, 0),
		Instances:     make(map[string]*InstanceStatus, len(app.Instances)),
		Usage:         known.cluster.Usage.plus(&since.usage),
	}
	if a.Usage != nil {
		a.TokenLabels = known.ownLabels(app.Name, r)
	}
	for i := range app.Instances {
		in := &app.Instances[i]
		key := stats.Key{App: app.Name, Instance: in.Name}
		t, _ := r.Totals(key)
		out := &InstanceStatus{State: in.State}
		out.fill(&t)
		verdict := s.HealthOf(app.Name, in.Name)
		ejectedSince, isEjected := ejected[key]
		out.Status = lb.StatusWord(in.State, isEjected, verdict.Health)
		out.Since = started
		if !verdict.Since.IsZero() {
			out.Since = verdict.Since
		}
		if isEjected {
			since := ejectedSince.UTC().Truncate(time.Second)
			out.EjectedBy, out.EjectedSince = []string{node}, &since
		}
		if out.Status == StatusEjected {
			out.Since = ejectedSince
		}
		if c := known.cluster.Instances[in.Name]; c != nil {
			out.onTop(c, countsOf(&t).less(known.own[in.Name]))
		}
		out.Since = out.Since.UTC().Truncate(time.Second)
		a.Instances[in.Name] = out
	}
	if known.shown != nil {
		a.raise(known.shown)
	}
	known.shown = a
	return a
}

// onTop puts what was counted since on the cluster's figures.
func (in *InstanceStatus) onTop(c *InstanceStatus, since ownCounts) {
	in.Requests, in.Errors, in.Retries = c.Requests+since.requests, c.Errors+since.errors, c.Retries+since.retries
	in.BytesIn, in.BytesOut = c.BytesIn+since.bytesIn, c.BytesOut+since.bytesOut
	in.Latency, in.FirstByte = c.Latency, c.FirstByte
	in.Usage = c.Usage.plus(&since.usage)
	if in.LastError == nil || c.LastError != nil && in.LastError.Time.Before(c.LastError.Time) {
		in.LastError = c.LastError
	}
	if in.Status == c.Status {
		in.Since = c.Since
	}
}

// less returns what came since before. Own counts only grow.
func (c ownCounts) less(before ownCounts) ownCounts {
	return ownCounts{
		c.requests - before.requests, c.errors - before.errors, c.retries - before.retries,
		c.bytesIn - before.bytesIn, c.bytesOut - before.bytesOut,
		c.usage.Less(&before.usage),
	}
}
