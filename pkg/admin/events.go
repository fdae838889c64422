package admin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"time"

	"difylb/pkg/cluster"
	"difylb/pkg/lb"
)

// eventNodePoll is how often a stream looks at the nodes: their receipts come
// by other ways than the store.
const eventNodePoll = 100 * time.Millisecond

// events streams what happens (text/event-stream of the HTML standard, section
// 9.2). A stream begins with an EventReset: what happened while nobody
// listened is not kept, so whoever shows a picture draws it anew.
func (s *Server) events(w http.ResponseWriter, r *http.Request, q *query) error {
	if err := q.err(); err != nil {
		return err
	}
	changed, unsubscribe := s.store.Subscribe()
	defer unsubscribe()
	acted := s.acts.listen()
	defer s.acts.leave(acted)
	e := &eventStream{w: w, rc: http.NewResponseController(w), snap: s.store.Current(), nodes: nodesByID(s.hub.Nodes())}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx in between would hold events back
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	e.reset()
	nodes := time.NewTicker(eventNodePoll)
	defer nodes.Stop()
	quiet := time.NewTimer(s.heartbeat)
	defer quiet.Stop()
	// A stream may outlive its token. Looking costs next to nothing, and the
	// nodes bring us here often enough, however quiet or busy it is.
	admitted := func() bool {
		_, valid := s.store.Access(callerOf(r).hash)
		return valid
	}
	for admitted() && e.flush() == nil {
		if e.sent {
			e.sent = false
			quiet.Reset(s.heartbeat)
		}
		select {
		case <-changed:
			e.look(s.store.Current())
		case <-nodes.C:
			e.lookNodes(nodesByID(s.hub.Nodes()))
		case a := <-acted.told:
			e.send(a.kind, a.data)
			if acted.missed.Swap(false) {
				e.reset()
			}
		case <-quiet.C:
			e.comment()
		case <-r.Context().Done():
			return nil
		case <-s.closing.Done():
			return nil
		}
	}
	return nil // the client went away, or its token was revoked
}

// eventStream turns successive states into events.
type eventStream struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	snap  *lb.Snapshot
	nodes map[string]cluster.NodeStatus
	seq   int64
	sent  bool
	err   error
}

func (e *eventStream) send(kind string, data any) {
	raw, err := json.Marshal(data)
	if err != nil {
		e.err = err
		return
	}
	e.seq++
	id := strconv.FormatInt(e.snap.Revision, 10) + "-" + strconv.FormatInt(e.seq, 10)
	if _, err := fmt.Fprintf(e.w, "id: %s\nevent: %s\ndata: %s\n\n", id, kind, raw); err != nil {
		e.err = err
	}
	e.sent = true
}

func (e *eventStream) reset() {
	e.send(EventReset, struct {
		Revision int64 `json:"revision"`
	}{e.snap.ConfigRevision})
}

// flush passes on what was written. A stream has no end, so the server's write
// timeout is not for it; but a client that does not read is given up.
func (e *eventStream) flush() error {
	if !e.sent || e.err != nil {
		return e.err
	}
	// An error means that the connection knows no deadlines.
	_ = e.rc.SetWriteDeadline(time.Now().Add(writeTime))
	e.err = e.rc.Flush()
	return e.err
}

func (e *eventStream) comment() {
	if _, err := fmt.Fprint(e.w, ": \n\n"); err != nil {
		e.err = err
	}
	e.sent = true
}

// look tells what is different in the next snapshot.
func (e *eventStream) look(next *lb.Snapshot) {
	prev := e.snap
	if next == nil || next == prev {
		return
	}
	e.snap = next
	now := time.Now().UTC()
	if prev.Epoch != next.Epoch {
		e.reset()
		return
	}
	if next.ConfigRevision != prev.ConfigRevision {
		e.send(EventConfiguration, ConfigurationEvent{Time: now, Revision: next.ConfigRevision, Changes: diff(prev, next)})
	}
	for _, app := range next.Applications {
		if reflect.ValueOf(prev.Health[app.Name]).Pointer() == reflect.ValueOf(next.Health[app.Name]).Pointer() {
			continue // the same map, or none in both
		}
		for i := range app.Instances {
			name := app.Instances[i].Name
			from, to := prev.HealthOf(app.Name, name), next.HealthOf(app.Name, name)
			if from.Health != to.Health {
				e.send(EventHealth, HealthEvent{Time: now, App: app.Name, Instance: name, From: from.Health, To: to.Health, Reason: to.Reason})
			}
		}
	}
}

// diff compares declarations. Snapshots share applications that did not
// change, so it costs what changed.
func diff(prev, next *lb.Snapshot) []Change {
	changes := []Change{}
	for _, a := range prev.Applications {
		if next.Application(a.Name) == nil {
			changes = append(changes, Change{Kind: "application", App: a.Name, Action: "deleted"})
		}
	}
	for _, b := range next.Applications {
		a := prev.Application(b.Name)
		switch {
		case a == nil:
			changes = append(changes, Change{Kind: "application", App: b.Name, Action: "created"})
		case a != b:
			changes = append(changes, Change{Kind: "application", App: b.Name, Action: "changed"})
			changes = append(changes, diffInstances(a, b)...)
		}
	}
	if !reflect.DeepEqual(prev.Settings, next.Settings) {
		changes = append(changes, Change{Kind: "settings", Action: "changed"})
	}
	return changes
}

func diffInstances(a, b *lb.Application) []Change {
	var changes []Change
	add := func(name, action string) {
		changes = append(changes, Change{Kind: "instance", App: b.Name, Name: name, Action: action})
	}
	for i := range a.Instances {
		if in, _ := b.Instance(a.Instances[i].Name); in == nil {
			add(a.Instances[i].Name, "deleted")
		}
	}
	for i := range b.Instances {
		switch old, _ := a.Instance(b.Instances[i].Name); {
		case old == nil:
			add(b.Instances[i].Name, "created")
		case old.Revision != b.Instances[i].Revision:
			add(b.Instances[i].Name, "changed")
		}
	}
	return changes
}

func nodesByID(nodes []cluster.NodeStatus) map[string]cluster.NodeStatus {
	m := make(map[string]cluster.NodeStatus, len(nodes))
	for _, n := range nodes {
		m[string(n.Role)+"/"+n.ID] = n
	}
	return m
}

func (e *eventStream) lookNodes(next map[string]cluster.NodeStatus) {
	prev := e.nodes
	e.nodes = next
	for key, n := range prev {
		if _, still := next[key]; !still {
			e.node(n, "left", "")
		}
	}
	for key, n := range next {
		old, known := prev[key]
		switch {
		case !known:
			e.node(n, "joined", "")
		case old.BootID != n.BootID:
			e.node(n, "restarted", "")
		}
		if known && old.Connected != n.Connected {
			e.node(n, map[bool]string{true: "connected", false: "disconnected"}[n.Connected], "")
		}
		if n.Role == lb.RoleProxy && n.ConfigRevision != 0 && (n.ConfigRevision != old.ConfigRevision || old.Refused != "" && n.Refused == "") {
			e.node(n, "in_force", "")
		}
		if n.State != old.State {
			switch n.State {
			case cluster.NodeBehind:
				e.node(n, string(n.State), "a newer configuration is not in force there")
			case cluster.NodeRingDiffers:
				e.node(n, string(n.State), "its rings are not those of most proxies at its revision: "+n.RingChecksum)
			}
		}
		if n.Refused != "" && (n.Refused != old.Refused || n.RefusedRevision != old.RefusedRevision) {
			e.node(n, "refused", n.Refused)
		}
	}
}

func (e *eventStream) node(n cluster.NodeStatus, action, reason string) {
	e.send(EventNode, NodeEvent{Time: time.Now().UTC(), ID: n.ID, Role: n.Role, Action: action, Revision: n.ConfigRevision, Reason: reason})
}
