package cluster

import (
	"maps"

	"difylb/pkg/lb"
	pb "difylb/proto"
)

// Figures that have been shown must not go back, although who told them may
// have died before the store had them, together with the proxy that they were
// of. What the proxies have shown is the memory of the cluster: they tell every
// lb-admin that they link with, which lifts its document to that. The sums
// themselves are left alone, so nothing is counted twice; a document that has
// been lifted stays as it is until the sums have caught up with it.

// olderLocked reports whether the lb-admin of p has been running for longer
// than that of q. Whose figures are shown is best asked of who has seen most.
func (l *Link) olderLocked(p, q *peer) bool {
	if l.snapshot == nil {
		return false
	}
	var started [2]int64
	for _, n := range l.snapshot.Nodes {
		if n.Role != lb.RoleAdmin || n.Started.IsZero() {
			continue
		}
		for i, x := range []*peer{p, q} {
			if n.ID == x.key.id {
				started[i] = n.Started.Unix()
			}
		}
	}
	return started[0] != 0 && started[1] != 0 && started[0] < started[1]
}

// shown are the figures that this proxy has shown, in parts; none where that
// is nothing.
func (l *Link) shown() []*pb.ProxyMessage {
	l.mu.Lock()
	epoch := l.doc.header.epoch
	apps := make(map[string]*ApplicationStatus)
	for name, a := range l.doc.apps {
		if a.shown != nil && a.shown.TotalRequests > 0 { // without requests there is nothing that could go back
			apps[name] = a.shown
		}
	}
	l.mu.Unlock()
	if len(apps) == 0 {
		return nil
	}
	wires := make([]*pb.ApplicationStatus, 0, len(apps))
	var labels []*pb.LabelStatus
	for _, name := range sortedNames(apps) {
		a := apps[name]
		wires = append(wires, applicationToWire(name, a))
		for _, label := range sortedNames(a.TokenLabels) {
			labels = append(labels, labelToWire(name, label, a.TokenLabels[label]))
		}
	}
	var out []*pb.ProxyMessage
	for _, m := range statusMessages(0, false, header{epoch: epoch}, wires, nil, labels) {
		out = append(out, &pb.ProxyMessage{Kind: &pb.ProxyMessage_Shown{Shown: m.GetStatus()}})
	}
	return out
}

// takeShown lifts the document to what a proxy has shown. What is not declared,
// or of another store, is not taken.
func (h *Hub) takeShown(u *pb.StatusUpdate) {
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.snapshot == nil || u.GetEpoch() != h.snapshot.Epoch {
		return
	}
	h.refresh(now)
	floors := make(map[string]*ApplicationStatus, len(u.GetApplications()))
	for _, w := range u.GetApplications() {
		floors[w.GetName()] = applicationFromWire(w)
	}
	for _, w := range u.GetLabels() {
		if len(w.GetLabel()) > maxNameBytes {
			continue
		}
		floor := floors[w.GetApp()]
		if floor == nil { // its application was in an earlier part
			floor = &ApplicationStatus{}
			floors[w.GetApp()] = floor
		}
		if floor.TokenLabels == nil {
			floor.TokenLabels = make(map[string]*LabelStatus)
		}
		floor.TokenLabels[w.GetLabel()] = labelFromWire(w)
	}
	for name, floor := range floors {
		if v := h.views[name]; v != nil {
			h.liftLocked(name, v, floor)
		}
	}
}

func (h *Hub) liftLocked(name string, v *view, floor *ApplicationStatus) {
	labels := maps.Clone(v.labels)
	lifted := false
	for label, f := range floor.TokenLabels {
		lv := labels[label]
		if lv == nil { // it comes with the proxy's own figures, or the store's
			continue
		}
		if s := lv.status.raised(f); !s.equal(lv.status) {
			labels[label] = &labelView{status: s, wire: labelToWire(name, label, s), version: h.version + 1}
			lifted = true
		}
	}
	status := v.status.clone()
	status.raise(floor)
	for label, lv := range labels {
		status.TokenLabels[label] = lv.status
	}
	for label := range status.TokenLabels {
		if labels[label] == nil {
			delete(status.TokenLabels, label)
		}
	}
	if !lifted && status.covers(v.status) && v.status.covers(status) {
		return
	}
	h.version++
	h.views[name] = &view{status: status, wire: applicationToWire(name, status), labels: labels, version: h.version}
	h.unsent = true
}

// clone returns a copy that may be changed.
func (a *ApplicationStatus) clone() *ApplicationStatus {
	c := *a
	c.TokenLabels = maps.Clone(a.TokenLabels)
	c.Instances = make(map[string]*InstanceStatus, len(a.Instances))
	for name, in := range a.Instances {
		copied := *in
		c.Instances[name] = &copied
	}
	return &c
}

// covers reports whether no counter is below o's.
func (a *ApplicationStatus) covers(o *ApplicationStatus) bool {
	if a.TotalRequests < o.TotalRequests || a.Errors < o.Errors || !a.Usage.raised(o.Usage).equal(a.Usage) {
		return false
	}
	for name, in := range o.Instances {
		mine := a.Instances[name]
		if mine == nil {
			continue
		}
		if mine.Requests < in.Requests || mine.Errors < in.Errors || mine.Retries < in.Retries ||
			mine.BytesIn < in.BytesIn || mine.BytesOut < in.BytesOut || !mine.Usage.raised(in.Usage).equal(mine.Usage) {
			return false
		}
	}
	return true
}
