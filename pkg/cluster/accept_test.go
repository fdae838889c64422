package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"difylb/pkg/lb"
)

// An operator's word reaches the proxy that it is about, by the lb-admin that
// was asked, and names what was seen.
func TestAccept_ReachesTheProxyAndNamesTheRevision(t *testing.T) {
	c := newTestCluster(t)
	one, two := c.hub("admin1", "127.0.0.1:0"), c.hub("admin2", "127.0.0.1:0")
	p1, p2 := c.link("proxy1", "b1"), c.link("proxy2", "b2")
	p2.SetReceipt(Receipt{Revision: 7, ConfigRevision: 7, Epoch: "e", RingChecksum: 1, AppliedAt: time.Now()})
	p1.SetReceipt(Receipt{Revision: 4700, ConfigRevision: 4700, Epoch: "old", RingChecksum: 1, AppliedAt: time.Now(),
		Refused: "the store was replaced", RefusedRevision: 7, RefusedEpoch: "e", HeldBack: true})
	state := func(h *testHub, id string) (s NodeStatus) {
		for _, n := range h.Nodes() {
			if n.ID == id {
				s = n
			}
		}
		return s
	}
	for _, h := range []*testHub{one, two} {
		eventually(t, "it is known what is held back", func() bool {
			s := state(h, "proxy1")
			return s.State == NodeHeldBack && s.HeldBack && s.RefusedRevision == 7 && s.RefusedEpoch == "e" && state(h, "proxy2").State == NodeOK
		})
	}
	// Every /status names it, a proxy's included.
	for name, status := range map[string]func() *Status{"admin": two.Status, "proxy": p2.Status} {
		eventually(t, name+" names the proxy", func() bool {
			r := status().Refusing
			return len(r) == 1 && r[0] == Refusing{Node: "proxy1", Revision: 4700, RefusedRevision: 7, HeldBack: true, Reason: "the store was replaced"}
		})
	}
	text, err := json.Marshal(two.Status())
	if err != nil || !strings.Contains(string(text), `"refusing":[{"node":"proxy1","revision":4700,"refused_revision":7,"held_back":true,"reason":"the store was replaced"}],"applications"`) {
		t.Errorf("%s, %v", text, err)
	}

	for what, try := range map[string]struct {
		node string
		a    Acceptance
		kind error
	}{
		"nobody":        {"proxy9", Acceptance{}, lb.ErrNotFound},
		"nothing":       {"proxy2", Acceptance{}, lb.ErrConflict},
		"another one":   {"proxy1", Acceptance{"e", 8}, lb.ErrConflict},
		"another store": {"proxy1", Acceptance{"f", 7}, lb.ErrConflict},
		"an lb-admin":   {"admin1", Acceptance{}, lb.ErrNotFound},
	} {
		if _, err := one.Accept(try.node, try.a); !errors.Is(err, try.kind) {
			t.Errorf("%s: %v, want %v", what, err, try.kind)
		}
	}
	a, err := two.Accept("proxy1", Acceptance{})
	if err != nil || a != (Acceptance{"e", 7}) {
		t.Fatal(a, err)
	}
	select {
	case got := <-p1.Accepted():
		if got != a {
			t.Fatal(got)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the word does not arrive")
	}
	select {
	case got := <-p2.Accepted():
		t.Fatal("another proxy heard", got)
	default:
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := two.WaitAccepted(short, "proxy1", a); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("not in force yet, and %v", err)
	}
	p1.SetReceipt(Receipt{Revision: 7, ConfigRevision: 7, Epoch: "e", RingChecksum: 1, AppliedAt: time.Now()})
	got, err := two.WaitAccepted(t.Context(), "proxy1", a)
	if err != nil || got.ConfigRevision != 7 || got.State != NodeOK {
		t.Errorf("%+v, %v", got, err)
	}
	eventually(t, "nobody refuses any more", func() bool { return two.Status().Refusing == nil && p2.Status().Refusing == nil })
}

func TestNodes_NameWhoDiffersAndWhoLags(t *testing.T) {
	now := time.Now()
	h := NewHub(HubOptions{Now: func() time.Time { return now }})
	var nodes []lb.Node
	for _, id := range []string{"p1", "p2", "p3", "p4"} {
		nodes = append(nodes, lb.Node{ID: id, Role: lb.RoleProxy, BootID: "b"})
	}
	h.SetSnapshot(&lb.Snapshot{Revision: 9, ConfigRevision: 9, Epoch: "e", Nodes: nodes})
	report := func(id string, revision int64, checksum uint64) {
		b := h.ledger.boot(bootKey{id, "b"}, now)
		b.receipt, b.hasReceipt, b.whole, b.lastReport = Receipt{ConfigRevision: revision, Epoch: "e", RingChecksum: checksum}, true, true, now
	}
	want := func(states ...NodeState) {
		t.Helper()
		for i, n := range h.Nodes() {
			if n.State != states[i] {
				t.Errorf("%s: %s, want %s", n.ID, n.State, states[i])
			}
		}
	}
	report("p1", 9, 1)
	report("p2", 9, 1)
	report("p3", 9, 2)
	report("p4", 8, 3) // another revision: nothing to compare it with
	want(NodeOK, NodeOK, NodeRingDiffers, NodeOK)
	now = now.Add(behindAfter)
	want(NodeOK, NodeOK, NodeRingDiffers, NodeBehind)
	report("p2", 8, 3)
	want(NodeRingDiffers, NodeBehind, NodeRingDiffers, NodeBehind) // one against one: nobody knows who is right
	now = now.Add(freshFor)
	want(NodeDisconnected, NodeDisconnected, NodeDisconnected, NodeDisconnected)
}

func TestPropagation_IsUntilTheLastProxyHasIt(t *testing.T) {
	now := time.Now()
	h := NewHub(HubOptions{Now: func() time.Time { return now }})
	var seen []time.Duration
	h.ObservePropagation(func(d time.Duration) { seen = append(seen, d) })
	snap := func(revision int64, epoch string, ids ...string) *lb.Snapshot {
		s := &lb.Snapshot{Revision: revision, ConfigRevision: revision, Epoch: epoch}
		for _, id := range ids {
			s.Nodes = append(s.Nodes, lb.Node{ID: id, Role: lb.RoleProxy, BootID: "b"})
		}
		return s
	}
	receipt := func(id string, revision int64, epoch string, age time.Duration) {
		b := h.ledger.boot(bootKey{id, "b"}, now)
		w := receiptToWire(Receipt{ConfigRevision: revision, Epoch: epoch})
		w.AgeMicros = age.Microseconds()
		h.mu.Lock()
		h.takeReceiptLocked(b, w, now)
		h.mu.Unlock()
	}
	want := func(what string, ds ...time.Duration) {
		t.Helper()
		if len(seen) != len(ds) {
			t.Fatalf("%s: %v, want %v", what, seen, ds)
		}
		for i := range ds {
			if seen[i] != ds[i] {
				t.Errorf("%s: %v, want %v", what, seen, ds)
			}
		}
		seen = nil
	}
	const ms = time.Millisecond
	h.SetSnapshot(snap(5, "e", "p", "q")) // was there before
	receipt("p", 5, "e", 0)
	receipt("q", 5, "e", 0)
	want("the first")
	h.SetSnapshot(snap(6, "e", "p", "q"))
	now = now.Add(30 * ms)
	receipt("p", 6, "e", 20*ms) // in force 10 ms after it was known, told of later
	want("one of two")
	receipt("q", 6, "e", 25*ms)
	want("both", 10*ms)
	h.SetSnapshot(snap(7, "e", "p", "q"))
	now = now.Add(5 * ms)
	h.SetSnapshot(snap(8, "e", "p", "q"))
	now = now.Add(5 * ms)
	receipt("p", 8, "e", 0) // has passed over 7
	receipt("q", 7, "e", 0)
	want("the older of two", 10*ms)
	now = now.Add(5 * ms)
	receipt("q", 8, "e", 0)
	want("the newer of two", 10*ms)
	h.SetSnapshot(snap(9, "e", "p", "q"))
	now = now.Add(5 * ms)
	receipt("p", 9, "e", 0)
	h.SetSnapshot(snap(9, "e", "p")) // q has gone
	want("who has gone is not waited for", 5*ms)
	h.SetSnapshot(snap(10, "e", "p"))
	h.SetSnapshot(snap(3, "f", "p"))
	receipt("p", 3, "f", 0)
	want("another store", 0)
}
