package admin

import (
	"encoding/json"
	"strconv"
	"time"

	"difylb/pkg/cluster"
	"difylb/pkg/lb"
	"difylb/pkg/route"
)

// Application is an application as the API answers it: the declaration with
// defaults filled in, tokens as id and hint. What GET answers may be changed
// and PUT back: ids and missing instance tokens then mean those that are stored.
type Application struct {
	lb.Application
	UserTokens []UserToken `json:"user_tokens"` // in their declared order
	Instances  []Instance  `json:"instances"`   // in their declared order
	// Revision of the last change to the application, its tokens or its
	// instances; the ETag is made of it.
	Revision int64 `json:"revision"`
}

// Instance is an instance as the API answers it, without its token.
type Instance struct {
	lb.Instance
	TokenHint string `json:"token_hint,omitempty"` // the token's last four characters
	Revision  int64  `json:"revision"`             // of the last change; the ETag is made of it
	// RingShare and what follows is as of now and no part of what the ETag is
	// of: GET of lists and of one instance tells it, answers to writes do not.
	RingShare *float64       `json:"ring_share,omitempty"` // of the users, 0 to 1, by the ring alone; its state does not count
	Probe     *InstanceProbe `json:"probe,omitempty"`      // what probes found
	// LastProbe is the newest probe of it; nil: none is known.
	LastProbe *LastProbe `json:"last_probe,omitempty"`
	// EjectedBy are the ids of the proxies that eject it now, sorted; empty: none does.
	EjectedBy []string `json:"ejected_by,omitempty"`
	// EjectedSince is since when the first of them does.
	EjectedSince *time.Time `json:"ejected_since,omitempty"`
}

// LastProbe is the newest active probe of an instance.
type LastProbe = cluster.LastProbe

// InstanceProbe is what active probes last found out about an instance.
type InstanceProbe struct {
	Health lb.Health `json:"health"` // unknown while nothing was found
	// Since is when that was first found; nil while nothing was.
	Since  *time.Time `json:"since,omitempty"`
	Reason string     `json:"reason,omitempty"` // why it is not well
	By     string     `json:"by,omitempty"`     // the lb-admin that probes
}

// MarshalJSON keeps the method of the embedded lb.Instance from hiding the rest.
func (in Instance) MarshalJSON() ([]byte, error) {
	type plain lb.Instance
	return json.Marshal(struct {
		plain
		Token        any            `json:"token,omitempty"` // shadows the field
		TokenHint    string         `json:"token_hint,omitempty"`
		Revision     int64          `json:"revision"`
		RingShare    *float64       `json:"ring_share,omitempty"`
		Probe        *InstanceProbe `json:"probe,omitempty"`
		LastProbe    *LastProbe     `json:"last_probe,omitempty"`
		EjectedBy    []string       `json:"ejected_by,omitempty"`
		EjectedSince *time.Time     `json:"ejected_since,omitempty"`
	}{
		plain: plain(in.Instance), TokenHint: in.TokenHint, Revision: in.Revision,
		RingShare: in.RingShare, Probe: in.Probe, LastProbe: in.LastProbe, EjectedBy: in.EjectedBy, EjectedSince: in.EjectedSince,
	})
}

// UserToken is a user token as the API answers it.
type UserToken struct {
	ID       string     `json:"id"`                   // by which it is removed: the beginning of its hash
	Hint     string     `json:"token_hint,omitempty"` // its last four characters
	Label    string     `json:"label,omitempty"`      // the operator's name for it; it stands in the access log and in usage
	Disabled bool       `json:"disabled,omitempty"`   // answered with 401, as if it did not exist
	Created  *time.Time `json:"created,omitempty"`    // when it was added
	// Token is the token itself: in the answer that made it, and never again.
	Token string `json:"token,omitempty"`
}

// TokenRequest asks for a user token.
type TokenRequest struct {
	Token    lb.Secret // empty: one of 256 random bits is made
	Label    string    // may be empty
	Disabled bool
}

// MarshalJSON writes the request as it goes over the wire, with the token.
func (r TokenRequest) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Token    string `json:"token,omitempty"`
		Label    string `json:"label,omitempty"`
		Disabled bool   `json:"disabled,omitempty"`
	}{r.Token.Reveal(), r.Label, r.Disabled})
}

// AccessRole is what the holder of an access token may do.
type AccessRole string

// The roles, each holding the rights of the one before.
const (
	RoleViewer   AccessRole = "viewer"   // every GET, but no secrets
	RoleOperator AccessRole = "operator" // and drain, activate, disable
	RoleAdmin    AccessRole = "admin"    // everything
)

// AccessToken is a token for this API as the API answers it.
type AccessToken struct {
	ID      string     `json:"id"`                   // by which it is revoked: the beginning of its hash
	Name    string     `json:"name"`                 // by which the history and the log name who used it
	Role    AccessRole `json:"role"`                 // what its holder may do
	Hint    string     `json:"token_hint,omitempty"` // its last four characters
	Created *time.Time `json:"created,omitempty"`    // when it was made
	// LastUsed is when it was last shown to the lb-admin that answers; nil when
	// not since that was started.
	LastUsed *time.Time `json:"last_used,omitempty"`
	// Token is the token itself: in the answer that made it, and never again.
	Token string `json:"token,omitempty"`
}

// AccessRequest asks for an access token; the server makes it.
type AccessRequest struct {
	Name string     `json:"name"` // shown in the history; unique
	Role AccessRole `json:"role"` // what its holder may do
}

// InstanceState answers drain, activate and disable.
type InstanceState struct {
	App      string   `json:"app"`      // name of the application
	Instance string   `json:"instance"` // name of the instance
	State    lb.State `json:"state"`    // that it has now
	Revision int64    `json:"revision"` // of the last change to the instance; the ETag is made of it
	// Open counts the requests and streams that the instance still serves,
	// over all reporting proxies.
	Open int64 `json:"open"`
	// Drained: the instance is draining or disabled, every live proxy has
	// that in force, and nothing is open.
	Drained bool `json:"drained"`
}

// Change is one thing that a write did, or in a dry run would do.
type Change struct {
	Kind   string `json:"kind"`           // application, instance, token or settings
	App    string `json:"app,omitempty"`  // the application, empty for settings
	Name   string `json:"name,omitempty"` // the instance's name or the token's id
	Action string `json:"action"`         // created, changed or deleted
	// Before and After are the object without its secrets: in dry runs and in
	// single entries of the history, and where it existed.
	Before json.RawMessage `json:"before,omitempty"`
	After  json.RawMessage `json:"after,omitempty"`
}

// ApplyResult answers apply and rollback.
type ApplyResult struct {
	// Revision at which the result is stored: the new one, or where nothing
	// changed (and in a dry run) the one that is in force already.
	Revision  int64 `json:"revision"`
	DryRun    bool  `json:"dry_run"`   // nothing was changed: this is what would be
	Unchanged bool  `json:"unchanged"` // the configuration holds all of it already
	// Created, Changed and Deleted name applications, sorted. A change to an
	// instance or a token is a change to its application.
	Created []string `json:"created"`
	Changed []string `json:"changed"`
	Deleted []string `json:"deleted"`
	// Changes lists every object, sorted.
	Changes []Change `json:"changes"`
	// Moved holds, for each application that stays, the share of users (0 to
	// 1) who will be served by another instance; applications in which nobody
	// moves are left out.
	Moved map[string]float64 `json:"moved"`
	// Movements holds, for each application in Moved, who goes where; and
	// applications that are deleted, all of whose users lose it.
	Movements map[string]Movement `json:"movements"`
	// Touched lists instances that are taken from their users, sorted, with
	// what is open on them. Open requests end as they would have.
	Touched []Touched `json:"touched"`
	// InForce is set when the call asked to wait.
	InForce *InForce `json:"in_force,omitempty"`
}

// Movement is who of an application's users moves.
type Movement struct {
	Share float64 `json:"share"` // 0 to 1
	// Flows says from where to where, the largest share first; empty where the
	// application is deleted. Between different hash algorithms the shares are
	// what is to be expected, and add up to less than Share: some stay by luck.
	Flows []Flow `json:"flows"`
	// Recent counts those seen within the last day; nil while no proxy has
	// told of any.
	Recent *RecentUsers `json:"recent_users,omitempty"`
}

// Flow is a share of users that one instance hands to another; "" is nobody.
type Flow = route.Flow

// RecentUsers counts the users that proxies saw within the last 24 to 25 hours.
type RecentUsers struct {
	Seen   int64 `json:"seen"`   // how many there are
	Moving int64 `json:"moving"` // of those, whom the change moves
	// Exact: counted. Otherwise estimated from a sample of 512 users, with a
	// standard deviation of 5 % for Seen.
	Exact bool `json:"exact"`
}

// Touched is an instance that a change takes from its users.
type Touched struct {
	App      string `json:"app"`      // name of the application
	Instance string `json:"instance"` // name of the instance
	How      string `json:"how"`      // draining, disabled, Removed or Readdressed
	Open     int64  `json:"open"`     // requests and streams
	Streams  int64  `json:"streams"`  // event streams among them
}

// What becomes of a Touched instance beside its states.
const (
	Removed     = "removed"
	Readdressed = "readdressed" // new requests go to another address
)

// InForce says which proxies have a revision.
type InForce struct {
	All     bool     `json:"all"`     // every live proxy has it; true also when there is none
	Nodes   []string `json:"nodes"`   // those that have it
	Waiting []string `json:"waiting"` // those that had not when the time was over
	Refused []string `json:"refused"` // those that refused it, each with its reason behind a colon
}

// Node is one lb-proxy or lb-admin.
type Node = cluster.NodeStatus

// Status is the document of the whole cluster.
type Status = cluster.Status

// StatusInstance is one instance in a Status.
type StatusInstance = cluster.InstanceStatus

// HistoryEntry is one change of the configuration.
type HistoryEntry struct {
	Revision int64     `json:"revision"`       // at which it took effect; what a rollback names
	Time     time.Time `json:"time"`           // when, by the clock of the lb-admin that was asked
	Who      string    `json:"who"`            // name of the access token
	From     string    `json:"from"`           // remote address
	Action   string    `json:"action"`         // what was called, such as apply or instance.drain
	Note     string    `json:"note,omitempty"` // what it was called with: the object, or the revision of a rollback
	// Count is the number of objects changed. Changes lists them; of a large
	// change only a single entry does.
	Count   int      `json:"count"`
	Changes []Change `json:"changes"`
}

// Health answers /health and /readyz.
type Health struct {
	Status    string    `json:"status"`            // ok, or why not
	Timestamp time.Time `json:"timestamp"`         // when it was answered, UTC
	Version   string    `json:"version,omitempty"` // of the lb-admin that answers
	// Checks names what readiness depends on: ok or the reason.
	Checks map[string]string `json:"checks,omitempty"`
}

// Event is one thing that happened.
type Event struct {
	ID   string // grows within one life of the server
	Type string // of EventTypes
	Data json.RawMessage
}

// The types of events and their data. EventReset says that events may have
// been missed: whoever keeps a picture reads it anew.
const (
	EventConfiguration = "configuration" // ConfigurationEvent
	EventHealth        = "health"        // HealthEvent
	EventNode          = "node"          // NodeEvent
	EventReset         = "reset"         // {}
)

// ConfigurationEvent tells of a new configuration.
type ConfigurationEvent struct {
	Time     time.Time `json:"time"`
	Revision int64     `json:"revision"`
	Changes  []Change  `json:"changes"` // applications, instances and settings
}

// HealthEvent tells of an instance whose health changed.
type HealthEvent struct {
	Time     time.Time `json:"time"`
	App      string    `json:"app"`
	Instance string    `json:"instance"`
	From     lb.Health `json:"from"`
	To       lb.Health `json:"to"`
	Reason   string    `json:"reason,omitempty"`
}

// NodeEvent tells of a node that came, went, restarted, or has another
// configuration in force.
type NodeEvent struct {
	Time     time.Time `json:"time"`
	ID       string    `json:"id"`
	Role     lb.Role   `json:"role"`
	Action   string    `json:"action"` // joined, left, restarted, connected, disconnected, in_force, refused, behind or ring_differs
	Revision int64     `json:"revision,omitempty"`
	Reason   string    `json:"reason,omitempty"`
}

// List is one page of a listing.
type List[T any] struct {
	Items []T `json:"items"` // those of this page
	// Continue, where it is not empty, asks for the next page (?continue=).
	Continue string `json:"continue,omitempty"`
}

// ETag returns the entity tag of an object's revision (RFC 9110 section 8.8.3).
func ETag(revision int64) string { return `"` + strconv.FormatInt(revision, 10) + `"` }

// Problem is an RFC 9457 problem document.
type Problem struct {
	Type     string    `json:"type"`               // a URN that names the kind: urn:difylb:problem:…
	Title    string    `json:"title"`              // of the HTTP status, in words
	Status   int       `json:"status"`             // the HTTP status
	Detail   string    `json:"detail,omitempty"`   // what is wrong here, for people
	Instance string    `json:"instance,omitempty"` // the path that was asked for
	Faults   lb.Faults `json:"faults,omitempty"`   // every fault of a declaration
}

// Base is the path below which the API lives.
const Base = "/api/v1"

// Explanation says where a user goes, and why.
type Explanation = route.Explanation
