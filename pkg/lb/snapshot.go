package lb

import (
	"sort"
	"time"
)

// Health is what active probes saw of an instance.
type Health string

const (
	// HealthUnknown: not probed yet, or not probed at all. Usable.
	HealthUnknown Health = "unknown"
	// Healthy: answers as the check expects.
	Healthy Health = "healthy"
	// Unhealthy: does not.
	Unhealthy Health = "unhealthy"
	// TokenRejected: it answers, but 401 or 403 to its own token. A fault of
	// the configuration that no user should see as his own.
	TokenRejected Health = "token_rejected"
)

// StatusWord returns the one word for an instance that people are shown: what
// the operator wants first, then what live traffic showed, then what probes
// found. A health that is empty or not known is "unknown".
func StatusWord(state State, ejected bool, health Health) string {
	switch {
	case state == Disabled, state == Draining:
		return string(state)
	case ejected:
		return "ejected"
	case health == TokenRejected, health == Unhealthy, health == Healthy:
		return string(health)
	}
	return string(HealthUnknown)
}

// Verdict is what the elected prober last found out about an instance.
// Stored on transitions only.
type Verdict struct {
	Health Health    `json:"health"`
	Since  time.Time `json:"since"`
	Reason string    `json:"reason,omitempty"` // for people; no secrets
	By     string    `json:"by,omitempty"`     // the lb-admin that found out
}

// Role tells the two kinds of node apart.
type Role string

// The roles of nodes.
const (
	RoleAdmin Role = "admin"
	RoleProxy Role = "proxy"
)

// Node is one running lb-admin or lb-proxy, registered under a lease.
type Node struct {
	ID      string    `json:"id"`
	Role    Role      `json:"role"`
	BootID  string    `json:"boot_id"` // random per process start
	Version string    `json:"version"`
	Address string    `json:"address"`        // REST of an lb-admin, client traffic of an lb-proxy
	GRPC    string    `json:"grpc,omitempty"` // where an lb-admin takes proxies' links
	TLS     bool      `json:"tls,omitempty"`  // GRPC speaks TLS
	Started time.Time `json:"started"`
}

// Snapshot is the complete state of the cluster at one revision of the store.
// It and all it points to are immutable; two snapshots share the applications
// that did not change, so comparing pointers tells what did.
type Snapshot struct {
	// Revision of the store at which this was the state. A Snapshot of a
	// higher revision may hold the same declarations.
	Revision int64
	// ConfigRevision is the revision of the last change to the declarations;
	// ConfigRevision <= Revision.
	ConfigRevision int64
	// ChangeRevision is that of the last change that went by way of the store's
	// Update, which all of ours do; 0: none. What was edited or deleted past
	// lb-admin does not move it.
	ChangeRevision int64
	// RemovedRevision is that at which declarations were last seen to have gone,
	// and StrayRevision the same of those that no change of ours took away;
	// 0: not since this process began to look.
	RemovedRevision, StrayRevision int64
	// Epoch is the random id of the store. Another epoch means another store,
	// or one that was wiped: revisions of the two can't be compared.
	Epoch string
	// Applications are sorted by name.
	Applications []*Application
	Settings     Settings
	// Health holds the verdicts by application and instance; a missing one is HealthUnknown.
	Health map[string]map[string]Verdict
	// Nodes are the live ones, sorted by role and id.
	Nodes []Node
	// ClusterKey authenticates the link between proxies and lb-admins: who
	// cannot read the store can neither report nor ask.
	ClusterKey Secret
	// Faults are keys that could not be read; each kept its last good value, or is left out.
	Faults Faults
}

// Application returns the named application or nil.
func (s *Snapshot) Application(name string) *Application {
	i := sort.Search(len(s.Applications), func(i int) bool { return s.Applications[i].Name >= name })
	if i < len(s.Applications) && s.Applications[i].Name == name {
		return s.Applications[i]
	}
	return nil
}

// HealthOf returns the verdict on an instance, of HealthUnknown when there is none.
func (s *Snapshot) HealthOf(app, instance string) Verdict {
	if v, ok := s.Health[app][instance]; ok {
		return v
	}
	return Verdict{Health: HealthUnknown}
}

// Document returns the declarations as people write them. The applications are
// shared with the snapshot and must not be changed.
func (s *Snapshot) Document() *Document {
	d := &Document{Applications: make(map[string]*Application, len(s.Applications))}
	for _, a := range s.Applications {
		d.Applications[a.Name] = a
	}
	settings := s.Settings
	d.Settings = &settings
	return d
}

// Audit says who made a change, for the history.
type Audit struct {
	Who    string `json:"who"`    // name of the admin token, or of the command
	From   string `json:"from"`   // remote address, or "local"
	Action string `json:"action"` // short and constant, such as "apply" or "instance.drain"
	Note   string `json:"note,omitempty"`
}
