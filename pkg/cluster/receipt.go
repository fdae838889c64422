package cluster

import (
	"context"
	"time"

	"difylb/pkg/lb"
)

// Receipt says which configuration a proxy has in force, and which it refused.
type Receipt struct {
	Revision       int64  // store revision of the snapshot in force
	ConfigRevision int64  // revision of its declarations
	Epoch          string // of the store that it came from
	RingChecksum   uint64 // over all rings; equal in proxies that place users alike
	AppliedAt      time.Time
	ApplyDuration  time.Duration // from receiving the snapshot to the swap
	// Refused says why RefusedRevision, a newer config revision, did not
	// build; empty when nothing newer was refused.
	Refused         string
	RefusedRevision int64
	// HeldBack: the refused one would build, and waits for an operator's word,
	// see Acceptance. RefusedEpoch is the store that it comes from.
	HeldBack     bool
	RefusedEpoch string
}

// NodeState is what there is to say of a node in a word.
type NodeState string

// The states, the first that holds is shown.
const (
	NodeDisconnected NodeState = "disconnected" // a proxy that does not report
	NodeHeldBack     NodeState = "held_back"    // waits for an operator to accept a configuration
	NodeRefused      NodeState = "refused"      // can't put the newest configuration in force
	NodeRingDiffers  NodeState = "ring_differs" // places users in another way than most others at its revision
	NodeBehind       NodeState = "behind"       // does not have the newest configuration in force
	NodeOK           NodeState = "ok"
)

// behindAfter is how long a configuration may be on its way.
const behindAfter = time.Second

// NodeStatus is one node as GET /nodes shows it.
type NodeStatus struct {
	ID      string    `json:"id"`             // its --node-id
	Role    lb.Role   `json:"role"`           // which of the two it is
	Version string    `json:"version"`        // of its program
	Address string    `json:"address"`        // where it listens: an lb-admin for REST, an lb-proxy for clients
	GRPC    string    `json:"grpc,omitempty"` // where proxies link with an lb-admin
	BootID  string    `json:"boot_id"`        // of this life of the process
	Started time.Time `json:"started"`        // when, by its own clock
	// UptimeSeconds is told by the node itself while it reports, otherwise
	// reckoned from Started.
	UptimeSeconds int64 `json:"uptime_seconds"`
	// Connected: an lb-proxy whose report is no older than 3 s. An lb-admin
	// is connected as long as it is registered.
	Connected bool `json:"connected"`
	// ConfigRevision is the configuration in force; 0 when it is not known.
	ConfigRevision int64  `json:"config_revision"`
	RingChecksum   string `json:"ring_checksum,omitempty"` // 16 hexadecimal digits
	// LagSeconds is how long the newest configuration has been known here and
	// not in force there.
	LagSeconds float64    `json:"lag_seconds"`
	AppliedAt  *time.Time `json:"applied_at,omitempty"` // when that came in force, by the clock of the proxy; nil: not known
	ApplyMS    float64    `json:"apply_ms,omitempty"`   // how long it took to put it in force, in milliseconds; 0: not known
	// Refused says why a newer configuration is not in force.
	Refused         string `json:"refused,omitempty"`
	RefusedRevision int64  `json:"refused_revision,omitempty"` // which that is
	// HeldBack: that waits for POST /nodes/{node}/accept, which names
	// RefusedRevision and RefusedEpoch.
	HeldBack     bool   `json:"held_back,omitempty"`
	RefusedEpoch string `json:"refused_epoch,omitempty"`
	// State is the worst that there is to say of the node.
	State NodeState `json:"state"`

	epoch string // of the store that ConfigRevision is of
}

// Refusing is a proxy that keeps an older configuration in force than the
// newest that it knows.
type Refusing struct {
	Node            string `json:"node"`             // id of the lb-proxy
	Revision        int64  `json:"revision"`         // in force
	RefusedRevision int64  `json:"refused_revision"` // not in force
	HeldBack        bool   `json:"held_back"`        // an operator may accept it
	Reason          string `json:"reason"`           // why not
}

// Lagging is a proxy that does not have a configuration in force.
type Lagging struct {
	Node           string `json:"node"`
	ConfigRevision int64  `json:"config_revision"`   // what it has
	Refused        string `json:"refused,omitempty"` // why it will not take the new one
	Connected      bool   `json:"connected"`
}

// Receipts returns the newest receipt of every proxy that is registered and
// has reported, by node id.
func (h *Hub) Receipts() map[string]Receipt {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make(map[string]Receipt)
	if h.snapshot == nil {
		return out
	}
	for _, n := range h.snapshot.Nodes {
		if b := h.registeredBoot(n); b != nil && b.hasReceipt {
			out[n.ID] = b.receipt
		}
	}
	return out
}

// Nodes returns every registered node, in the order of the snapshot.
func (h *Hub) Nodes() []NodeStatus {
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.snapshot == nil {
		return nil
	}
	out := make([]NodeStatus, 0, len(h.snapshot.Nodes))
	for _, n := range h.snapshot.Nodes {
		s := NodeStatus{
			ID: n.ID, Role: n.Role, Version: n.Version, Address: n.Address, GRPC: n.GRPC,
			BootID: n.BootID, Started: n.Started, UptimeSeconds: max(0, int64(now.Sub(n.Started).Seconds())),
			Connected: n.Role == lb.RoleAdmin,
		}
		if n.Role == lb.RoleAdmin && n.ID == h.opts.NodeID {
			s.ConfigRevision = h.snapshot.ConfigRevision
		}
		if n.Role == lb.RoleProxy {
			h.fillProxy(&s, h.registeredBoot(n), now)
		}
		out = append(out, s)
	}
	h.judge(out)
	return out
}

// judge fills in the states. Of the proxies that have one revision of one store
// in force, those differ whose rings are not those of most.
func (h *Hub) judge(nodes []NodeStatus) {
	type place struct {
		revision int64
		epoch    string
	}
	rings := make(map[place]map[string]int)
	at := func(n *NodeStatus) place { return place{n.ConfigRevision, n.epoch} }
	for i := range nodes {
		n := &nodes[i]
		if n.Connected && n.RingChecksum != "" {
			if rings[at(n)] == nil {
				rings[at(n)] = make(map[string]int)
			}
			rings[at(n)][n.RingChecksum]++
		}
	}
	for i := range nodes {
		n := &nodes[i]
		differs := false
		if mine := rings[at(n)]; n.Connected && n.RingChecksum != "" {
			for sum, count := range mine {
				differs = differs || sum != n.RingChecksum && count >= mine[n.RingChecksum]
			}
		}
		switch {
		case !n.Connected:
			n.State = NodeDisconnected
		case n.HeldBack:
			n.State = NodeHeldBack
		case n.Refused != "":
			n.State = NodeRefused
		case differs:
			n.State = NodeRingDiffers
		case n.Role == lb.RoleProxy && n.LagSeconds >= behindAfter.Seconds():
			n.State = NodeBehind
		default:
			n.State = NodeOK
		}
	}
}

func (h *Hub) fillProxy(s *NodeStatus, b *boot, now time.Time) {
	if b == nil || !b.hasReceipt {
		s.LagSeconds = max(0, now.Sub(h.configSince).Seconds())
		return
	}
	s.Connected = h.fresh(b, now)
	s.UptimeSeconds = int64((b.uptime + max(0, now.Sub(b.lastReport))).Seconds())
	r := b.receipt
	s.ConfigRevision, s.RingChecksum = r.ConfigRevision, hex64(r.RingChecksum)
	s.ApplyMS = float64(r.ApplyDuration.Microseconds()) / 1000
	if !r.AppliedAt.IsZero() {
		s.AppliedAt = &r.AppliedAt
	}
	s.Refused, s.RefusedRevision, s.HeldBack, s.RefusedEpoch = r.Refused, r.RefusedRevision, r.HeldBack, r.RefusedEpoch
	s.epoch = r.Epoch
	if !h.inForce(r, h.snapshot.ConfigRevision) {
		s.LagSeconds = max(0, now.Sub(h.configSince).Seconds())
	}
}

// inForce reports whether the receipt covers the config revision of the
// present epoch. Revisions of another store can't be compared.
func (h *Hub) inForce(r Receipt, configRevision int64) bool {
	return r.ConfigRevision >= configRevision && (r.Epoch == h.snapshot.Epoch || r.Epoch == "" || h.snapshot.Epoch == "")
}

// WaitReceipts blocks until every registered proxy has the config revision in
// force, or each that has not has refused it: then no waiting helps. It
// returns those that have it not, none when all do. When ctx ends first the
// error is its cause.
func (h *Hub) WaitReceipts(ctx context.Context, configRevision int64) ([]Lagging, error) {
	for {
		h.mu.Lock()
		lagging, settled := h.laggingLocked(configRevision)
		changed := h.receiptsChanged
		h.mu.Unlock()
		if settled {
			return lagging, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return lagging, context.Cause(ctx)
		}
	}
}

func (h *Hub) laggingLocked(configRevision int64) (lagging []Lagging, settled bool) {
	if h.snapshot == nil {
		return nil, false
	}
	settled = true
	now := h.now()
	for _, n := range h.snapshot.Nodes {
		if n.Role != lb.RoleProxy {
			continue
		}
		b := h.registeredBoot(n)
		l := Lagging{Node: n.ID}
		if b != nil && b.hasReceipt {
			if h.inForce(b.receipt, configRevision) {
				continue
			}
			l.ConfigRevision, l.Connected = b.receipt.ConfigRevision, h.fresh(b, now)
			if b.receipt.RefusedRevision >= configRevision {
				l.Refused = b.receipt.Refused
			}
		}
		settled = settled && l.Refused != ""
		lagging = append(lagging, l)
	}
	return lagging, settled
}
