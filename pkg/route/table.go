// Package route compiles a Snapshot into a Table, the immutable structure that
// requests are routed by, and answers one question: where does this user go,
// and why. The proxy's hot path, /explain, dry runs and tests all ask it here.
// It refuses to know how a request is read or sent, and how health is found
// out: what is known of an instance comes in as a Condition.
package route

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"difylb/pkg/lb"
	"difylb/pkg/ring"
)

// Table is a Snapshot compiled for lookup. It never changes after Build and is
// safe for concurrent use.
type Table struct {
	Revision       int64  // of the store, see lb.Snapshot
	ConfigRevision int64  //
	Epoch          string //
	// Settings are the cluster's.
	Settings lb.Settings

	apps     []*App         // by slot; nil where a slot is free
	slots    map[string]int // by name; shared with other Tables of the same names
	sorted   []*App         // by name
	tokens   tokenIndex
	checksum uint64
}

// App is one compiled application. It is shared by the Tables of all
// snapshots in which its declaration is the same.
type App struct {
	Decl *lb.Application // immutable
	// Slot is the application's place in Table.Slots. It stays the same from
	// Table to Table for as long as the application exists, so run-time state
	// can stand beside it in a plain slice.
	Slot int
	Ring *ring.Ring
	// Instances are in declared order, as are the ring's members.
	Instances []Instance
	// Worlds is the number of sets of instances that share their state: one
	// for each domain, and one for each instance without a domain. What one
	// world has made, the others do not know.
	Worlds int

	hasher   ring.Hasher
	checksum uint64
}

// Instance is an instance with what a request to it needs made ready.
type Instance struct {
	Decl    *lb.Instance
	Address string // host:port to dial
	Host    string // of the Host header
	// TLS is how to speak to an https instance, nil for one in clear. It is the
	// same from Table to Table for as long as it comes out the same, so that
	// connections and sessions outlive changes of other things. Not to be changed.
	TLS *tls.Config
	// PreserveHost sends the client's Host instead.
	PreserveHost  bool
	Authorization lb.Secret // the header's whole value
}

// Build compiles a snapshot. It looks at everything each time, and takes over
// from prev (nil the first time) what was compiled from the same declaration:
// whole in meaning, cheap in work. The error names the application that can't
// be compiled; the caller then keeps the Table it has.
func Build(snap *lb.Snapshot, prev *Table) (*Table, error) {
	t := &Table{
		Revision: snap.Revision, ConfigRevision: snap.ConfigRevision, Epoch: snap.Epoch,
		Settings: snap.Settings,
		sorted:   make([]*App, 0, len(snap.Applications)),
	}
	if prev == nil {
		prev = &Table{}
	}
	b := builder{t: t, prev: prev, edit: prev.tokens.edit()}
	if err := b.apps(snap.Applications); err != nil {
		return nil, err
	}
	t.tokens = b.edit.done()
	for _, a := range t.sorted {
		t.checksum += a.checksum // a sum, so that it does not depend on the order
	}
	return t, nil
}

// builder holds what only the time of a Build needs.
type builder struct {
	t, prev *Table
	edit    *tokenEdit
	changed []*App // compiled anew; no slot yet where it is new
}

func (b *builder) apps(decls []*lb.Application) error {
	t, prev := b.t, b.prev
	t.apps = append([]*App(nil), prev.apps...)
	sameNames := len(decls) == len(prev.sorted)
	for i, decl := range decls {
		if i > 0 && decls[i-1].Name >= decl.Name {
			return fmt.Errorf("application %q: the snapshot is not sorted by name", decl.Name)
		}
		old := prev.App(decl.Name)
		sameNames = sameNames && old != nil
		if old != nil && old.Decl == decl {
			t.sorted = append(t.sorted, old)
			continue
		}
		app, err := compile(decl, old)
		if err != nil {
			return fmt.Errorf("application %q: %w", decl.Name, err)
		}
		t.sorted = append(t.sorted, app)
		b.changed = append(b.changed, app)
	}
	if sameNames {
		t.slots = prev.slots
	} else {
		t.slots = b.assign()
	}
	b.place()
	return nil
}

// assign gives every application a slot: the one it had, or a free one.
func (b *builder) assign() map[string]int {
	t, prev := b.t, b.prev
	slots := make(map[string]int, len(t.sorted))
	taken := make([]bool, len(prev.apps))
	for _, a := range t.sorted {
		if slot, ok := prev.slots[a.Decl.Name]; ok {
			slots[a.Decl.Name], taken[slot] = slot, true
		}
	}
	var free []int
	for slot, is := range taken {
		if !is {
			free = append(free, slot)
		}
	}
	for _, a := range t.sorted {
		if _, ok := slots[a.Decl.Name]; ok {
			continue
		}
		if n := len(free); n > 0 {
			slots[a.Decl.Name], free = free[n-1], free[:n-1]
			continue
		}
		slots[a.Decl.Name] = len(t.apps)
		t.apps = append(t.apps, nil)
	}
	for _, slot := range free {
		t.apps[slot] = nil
	}
	return slots
}

// place puts what changed into its slot and brings the token index up to
// date, removals first: a token may have moved between applications.
func (b *builder) place() {
	t, prev := b.t, b.prev
	gone := prev.sorted
	if len(b.changed) == 0 && len(t.sorted) == len(prev.sorted) {
		gone = nil
	}
	for _, old := range gone {
		if _, still := t.slots[old.Decl.Name]; !still {
			b.edit.remove(old.Decl.UserTokens)
		}
	}
	for _, a := range b.changed {
		if old := prev.App(a.Decl.Name); old != nil {
			b.edit.remove(old.Decl.UserTokens)
		}
	}
	for _, a := range b.changed {
		a.Slot = t.slots[a.Decl.Name]
		t.apps[a.Slot] = a
		b.edit.add(a.Decl.UserTokens, a.Slot)
	}
}

// compile makes an App; the ring of old serves again if it would come out the same.
func compile(decl *lb.Application, old *App) (*App, error) {
	a := &App{Decl: decl, Instances: make([]Instance, len(decl.Instances)), Worlds: worlds(decl)}
	trusted := make(authorities)
	for i := range decl.Instances {
		in := &decl.Instances[i]
		base := in.BaseURL()
		secure, err := trusted.config(i, in, base, old)
		if err != nil {
			return nil, fmt.Errorf("instance %q: tls: %w", in.Name, err)
		}
		a.Instances[i] = Instance{
			Decl: in, Address: in.Address(), Host: base.Host, TLS: secure,
			PreserveHost:  decl.PreserveHost,
			Authorization: "Bearer " + in.Token,
		}
		if in.PreserveHost != nil {
			a.Instances[i].PreserveHost = *in.PreserveHost
		}
	}
	if old != nil && sameRing(decl, old.Decl) {
		a.Ring, a.hasher, a.checksum = old.Ring, old.hasher, old.checksum
		return a, nil
	}
	r, err := newRing(decl)
	if err != nil {
		return nil, err
	}
	a.Ring, a.hasher = r, r.Hasher(decl.Name)
	var sum [8]byte
	binary.LittleEndian.PutUint64(sum[:], r.Checksum())
	h := xxhash.New()
	h.WriteString(decl.Name)
	h.Write([]byte{0})
	h.Write(sum[:])
	a.checksum = h.Sum64()
	return a, nil
}

func worlds(decl *lb.Application) int {
	n := 0
	seen := make(map[string]bool)
	for i := range decl.Instances {
		if d := decl.Instances[i].Domain; d == "" || !seen[d] {
			seen[d] = true
			n++
		}
	}
	return n
}

// SameWorld reports whether instances i and j share their state.
func (a *App) SameWorld(i, j int) bool {
	d := a.Instances[i].Decl.Domain
	return i == j || (d != "" && d == a.Instances[j].Decl.Domain)
}

func newRing(decl *lb.Application) (*ring.Ring, error) {
	members := make([]ring.Member, len(decl.Instances))
	for i, in := range decl.Instances {
		members[i] = ring.Member{Name: in.Name, Weight: in.Weight}
	}
	return ring.New(ring.Algorithm(decl.ConsistentHash.HashAlgorithm), decl.ConsistentHash.VirtualNodes, members)
}

func sameRing(a, b *lb.Application) bool {
	x, y := a.ConsistentHash, b.ConsistentHash
	if x.VirtualNodes != y.VirtualNodes || x.HashAlgorithm != y.HashAlgorithm || a.Name != b.Name || len(a.Instances) != len(b.Instances) {
		return false
	}
	for i := range a.Instances {
		if a.Instances[i].Name != b.Instances[i].Name || a.Instances[i].Weight != b.Instances[i].Weight {
			return false
		}
	}
	return true
}

// ByToken returns the application that a user token opens. A disabled token
// opens nothing. It does not allocate.
func (t *Table) ByToken(h lb.TokenHash) (*App, *lb.UserToken) {
	e := t.tokens.find(h)
	if e == nil || e.token.Disabled {
		return nil, nil
	}
	return t.apps[e.slot], e.token
}

// AppByToken is ByToken for who only wants the name.
func (t *Table) AppByToken(h lb.TokenHash) (name string, ok bool) {
	a, _ := t.ByToken(h)
	if a == nil {
		return "", false
	}
	return a.Decl.Name, true
}

// App returns the named application, or nil.
func (t *Table) App(name string) *App {
	if slot, ok := t.slots[name]; ok {
		return t.apps[slot]
	}
	return nil
}

// Apps returns the applications sorted by name. The slice is not the caller's.
func (t *Table) Apps() []*App { return t.sorted }

// Slots returns the applications by their Slot, nil where none is. The slice
// is not the caller's.
func (t *Table) Slots() []*App { return t.apps }

// Checksum is equal on all proxies that place every user alike: a digest of
// the applications' names and rings, independent of how the Table came about.
func (t *Table) Checksum() uint64 { return t.checksum }

// Instances returns the number of instances of all applications.
func (t *Table) Instances() int {
	n := 0
	for _, a := range t.sorted {
		n += len(a.Instances)
	}
	return n
}

// Index returns the place of the named instance in the declared order, -1 if there is none.
func (a *App) Index(instance string) int {
	for i := range a.Instances {
		if a.Instances[i].Decl.Name == instance {
			return i
		}
	}
	return -1
}
