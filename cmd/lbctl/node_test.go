package main

import (
	"context"
	"strings"
	"testing"

	"difylb/pkg/cluster"
	"difylb/pkg/lb"
)

// Accept puts in force what a played proxy holds back.
func (h *playedHub) Accept(node string, a cluster.Acceptance) (cluster.Acceptance, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.nodes {
		n := &h.nodes[i]
		if n.ID != node {
			continue
		}
		if !n.HeldBack || (a != cluster.Acceptance{Epoch: n.RefusedEpoch, Revision: n.RefusedRevision}) {
			return a, lb.Errorf(lb.ErrConflict, "proxy %q does not hold that back", node)
		}
		n.ConfigRevision, n.State = n.RefusedRevision, cluster.NodeOK
		n.HeldBack, n.Refused, n.RefusedRevision, n.RefusedEpoch = false, "", 0, ""
		return a, nil
	}
	return a, lb.Errorf(lb.ErrNotFound, "there is no live proxy %q", node)
}

func (h *playedHub) WaitAccepted(_ context.Context, node string, _ cluster.Acceptance) (cluster.NodeStatus, error) {
	for _, n := range h.Nodes() {
		if n.ID == node {
			return n, nil
		}
	}
	return cluster.NodeStatus{}, lb.Errorf(lb.ErrNotFound, "there is no live proxy %q", node)
}

func TestNodeAccept_NamesWhatItAccepts(t *testing.T) {
	r := newRig(t)
	holding := played("proxy-1", 4700)
	holding.State, holding.HeldBack, holding.Refused, holding.RefusedRevision, holding.RefusedEpoch = cluster.NodeHeldBack, true, "the store was replaced", 3, "new"
	other := played("proxy-2", 4700)
	other.State, other.RingChecksum = cluster.NodeRingDiffers, "0123456789abcdef"
	r.hub.set(0, holding, other)
	list := r.ok("node", "list")
	for _, want := range []string{"held back", "proxy-1 holds revision 3 back and runs revision 4700: the store was replaced", "ring differs", "proxy-2 places users in another way than most proxies at revision 4700: ring checksum 0123456789abcdef."} {
		if !strings.Contains(list, want) {
			t.Errorf("%q is not in\n%s", want, list)
		}
	}
	r.fails(1, "does not hold", "node", "accept", "proxy-2")
	r.fails(1, "no live proxy", "node", "accept", "proxy-9")
	r.fails(2, "nothing belongs", "node", "accept", "proxy-1", "proxy-2")
	if out := r.ok("node", "accept"); out != "proxy-1 runs revision 3.\n" {
		t.Error(out)
	}
	if out := r.ok("node", "accept", "--yes"); !strings.Contains(out, "No proxy holds anything back") {
		t.Error(out)
	}
}
