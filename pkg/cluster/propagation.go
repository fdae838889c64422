package cluster

import (
	"time"

	"difylb/pkg/lb"
)

// maxSpreading bounds how many configurations are watched on their way.
const maxSpreading = 1024

// spreading is a configuration on its way to the proxies.
type spreading struct {
	revision int64
	since    time.Time // when it was known here: writers get their answer then
	latest   time.Time // when the last of the proxies so far had it in force
}

// ObservePropagation has f called for every configuration that comes to be in
// force on all registered proxies, with the time from when it was known to this
// lb-admin until it was in force on the last of them. f must not block. What a
// proxy refuses, or what comes while none is registered, is not told of.
func (h *Hub) ObservePropagation(f func(time.Duration)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.propagated = f
}

// beginSpreadLocked notes a new configuration.
func (h *Hub) beginSpreadLocked(old, s *lb.Snapshot, now time.Time) {
	switch {
	case old == nil: // it has been there before
		return
	case old.Epoch != s.Epoch || s.ConfigRevision < old.ConfigRevision:
		h.spreading = nil // numbers of another store
	}
	if s.ConfigRevision != old.ConfigRevision && len(h.spreading) < maxSpreading {
		h.spreading = append(h.spreading, spreading{revision: s.ConfigRevision, since: now})
	}
}

// spreadLocked takes a receipt into account: the configurations from after the
// one before up to it came into force on that proxy at a time.
func (h *Hub) spreadLocked(before, r Receipt, at time.Time) {
	for i := range h.spreading {
		s := &h.spreading[i]
		if h.inForce(r, s.revision) && !h.inForce(before, s.revision) && at.After(s.latest) {
			s.latest = at
		}
	}
	h.endSpreadLocked()
}

// endSpreadLocked tells of what is in force everywhere.
func (h *Hub) endSpreadLocked() {
	for len(h.spreading) > 0 {
		s := h.spreading[0]
		proxies := 0
		for _, n := range h.snapshot.Nodes {
			if n.Role != lb.RoleProxy {
				continue
			}
			proxies++
			if b := h.registeredBoot(n); b == nil || !b.hasReceipt || !h.inForce(b.receipt, s.revision) {
				return
			}
		}
		h.spreading = h.spreading[1:]
		if proxies > 0 && h.propagated != nil && !s.latest.IsZero() {
			h.propagated(max(0, s.latest.Sub(s.since)))
		}
	}
}
