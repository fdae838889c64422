package cluster

import (
	"context"

	"difylb/pkg/lb"
	pb "difylb/proto"
)

// Acceptance is an operator's word that a configuration which a proxy holds
// back is to be put in force: this one, and no other that may come after it.
type Acceptance struct {
	Epoch    string // of the store that it comes from
	Revision int64  // its config revision
}

// Accept tells a proxy to put in force what it holds back. With the zero
// Acceptance that is what it last reported; else that must be what is accepted.
// It returns what was asked for, and does not wait until it is done: see
// WaitAccepted. Errors are of the kinds NotFound (no such proxy), Conflict
// (nothing, or something else, is held back there) and Unavailable (no link).
func (h *Hub) Accept(node string, a Acceptance) (Acceptance, error) {
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	b, err := h.proxyLocked(node)
	if err != nil {
		return a, err
	}
	if b == nil || !b.hasReceipt || !h.fresh(b, now) {
		return a, lb.Errorf(lb.ErrUnavailable, "proxy %q is not linked with this lb-admin", node)
	}
	held := Acceptance{b.receipt.RefusedEpoch, b.receipt.RefusedRevision}
	switch {
	case b.receipt.Refused == "":
		return a, lb.Errorf(lb.ErrConflict, "proxy %q holds nothing back; it has revision %d in force", node, b.receipt.ConfigRevision)
	case !b.receipt.HeldBack:
		return a, lb.Errorf(lb.ErrConflict, "proxy %q can't put revision %d in force: %s", node, held.Revision, b.receipt.Refused)
	case a == Acceptance{}:
		a = held
	case a != held:
		return a, lb.Errorf(lb.ErrConflict, "proxy %q holds back revision %d of store %q, not revision %d of %q", node, held.Revision, held.Epoch, a.Revision, a.Epoch)
	}
	if !h.lessor.tell(b, &pb.AdminMessage{Kind: &pb.AdminMessage_Accept{Accept: &pb.Accept{Epoch: a.Epoch, Revision: a.Revision}}}) {
		return a, lb.Errorf(lb.ErrUnavailable, "proxy %q is not linked with this lb-admin", node)
	}
	return a, nil
}

// proxyLocked returns the boot of a registered proxy, nil when it has not been
// heard of.
func (h *Hub) proxyLocked(node string) (*boot, error) {
	if h.snapshot != nil {
		for _, n := range h.snapshot.Nodes {
			if n.Role == lb.RoleProxy && n.ID == node {
				return h.registeredBoot(n), nil
			}
		}
	}
	return nil, lb.Errorf(lb.ErrNotFound, "there is no live proxy %q", node)
}

// tell sends a message over every open stream of a boot, and reports whether
// there is one.
func (l *lessor) tell(b *boot, m *pb.AdminMessage) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := false
	for s := range l.sessions {
		if s.boot == b {
			found = true
			s.set(func() { s.accept = m })
		}
	}
	return found
}

// WaitAccepted blocks until the proxy no longer holds back what was accepted,
// and returns its state. When ctx ends first the error is its cause.
func (h *Hub) WaitAccepted(ctx context.Context, node string, a Acceptance) (NodeStatus, error) {
	for {
		h.mu.Lock()
		b, err := h.proxyLocked(node)
		changed := h.receiptsChanged
		done := err == nil && b != nil && b.hasReceipt && (!b.receipt.HeldBack || (Acceptance{b.receipt.RefusedEpoch, b.receipt.RefusedRevision}) != a)
		h.mu.Unlock()
		if err != nil {
			return NodeStatus{}, err
		}
		if done {
			for _, n := range h.Nodes() {
				if n.Role == lb.RoleProxy && n.ID == node {
					return n, nil
				}
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return NodeStatus{}, context.Cause(ctx)
		}
	}
}

// Accepted receives what operators accept; of several that nobody has taken
// yet the newest.
func (l *Link) Accepted() <-chan Acceptance { return l.accepted }

// takeAcceptance is called by any peer's receiver. l.mu is held.
func (l *Link) takeAcceptance(w *pb.Accept) {
	select {
	case <-l.accepted:
	default:
	}
	l.accepted <- Acceptance{w.GetEpoch(), w.GetRevision()} // only written here, with l.mu held: there is room
}
