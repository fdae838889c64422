package admin

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"

	"difylb/pkg/cluster"
	"difylb/pkg/lb"
)

// Accept is what *cluster.Hub does, with a proxy that obeys at once.
func (h *fakeHub) Accept(node string, a cluster.Acceptance) (cluster.Acceptance, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.nodes {
		n := &h.nodes[i]
		held := cluster.Acceptance{Epoch: n.RefusedEpoch, Revision: n.RefusedRevision}
		switch {
		case n.ID != node || n.Role != lb.RoleProxy:
			continue
		case !n.HeldBack || a != (cluster.Acceptance{}) && a != held:
			return a, lb.Errorf(lb.ErrConflict, "proxy %q does not hold that back", node)
		}
		n.ConfigRevision, n.HeldBack, n.Refused = held.Revision, false, ""
		return held, nil
	}
	return a, lb.Errorf(lb.ErrNotFound, "there is no live proxy %q", node)
}

func (h *fakeHub) WaitAccepted(ctx context.Context, node string, _ cluster.Acceptance) (cluster.NodeStatus, error) {
	for _, n := range h.Nodes() {
		if n.ID == node {
			return n, nil
		}
	}
	return cluster.NodeStatus{}, lb.Errorf(lb.ErrNotFound, "there is no live proxy %q", node)
}

func TestAcceptNode_PassesTheWordOnAndNamesWhoGaveIt(t *testing.T) {
	f := newFixture(t)
	holding := proxy("p1", 4700)
	holding.HeldBack, holding.Refused, holding.RefusedRevision, holding.RefusedEpoch = true, "the store was replaced", 3, "new"
	f.hub.set(0, holding, proxy("p2", 4700))
	path := Base + "/nodes/p1/accept"
	f.want(403, RoleOperator, "POST", path, "")
	f.want(404, RoleAdmin, "POST", Base+"/nodes/p9/accept", "")
	f.want(409, RoleAdmin, "POST", Base+"/nodes/p2/accept", "")
	f.want(409, RoleAdmin, "POST", path, `{"refused_revision":4,"refused_epoch":"new"}`, "Content-Type", "application/json")
	f.want(409, RoleAdmin, "POST", path, `{"refused_revision":3,"refused_epoch":"older"}`, "Content-Type", "application/json")
	f.want(422, RoleAdmin, "POST", path, `{"refused_revision":3}`, "Content-Type", "application/json")
	n, err := f.admin.AcceptNode(t.Context(), "p1", AcceptRequest{Revision: 3, Epoch: "new"})
	if err != nil || n.ConfigRevision != 3 || n.Refused != "" {
		t.Fatalf("%+v, %v", n, err)
	}
	if log := f.log.String(); !strings.Contains(log, `"action":"node.accept"`) || !strings.Contains(log, `"who":"admin"`) || !strings.Contains(log, `"revision":3`) {
		t.Errorf("the log does not say who accepted what: %s", log)
	}
}

func TestEvents_NameWhoLagsDiffersAndIsWellAgain(t *testing.T) {
	rec := httptest.NewRecorder()
	e := &eventStream{w: rec, snap: &lb.Snapshot{Revision: 9}}
	look := func(state cluster.NodeState, refused string) string {
		rec.Body.Reset()
		n := proxy("p1", 9)
		n.State, n.Refused, n.RingChecksum = state, refused, "00ff"
		e.lookNodes(nodesByID([]cluster.NodeStatus{n}))
		return rec.Body.String()
	}
	look(cluster.NodeOK, "")
	for _, c := range []struct {
		state   cluster.NodeState
		refused string
		want    string
	}{
		{cluster.NodeBehind, "", `"action":"behind"`},
		{cluster.NodeBehind, "", ""},
		{cluster.NodeRingDiffers, "", `"action":"ring_differs"`},
		{cluster.NodeHeldBack, "the store was replaced", `"action":"refused"`},
		{cluster.NodeOK, "", `"action":"in_force"`},
		{cluster.NodeOK, "", ""},
	} {
		if got := look(c.state, c.refused); (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.state, got, c.want)
		}
	}
}
