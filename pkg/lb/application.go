package lb

// HashAlgorithm names the hash that places virtual nodes and users.
type HashAlgorithm string

// The hash algorithms. CRC32, MD5 and SHA1 place users as the OpenResty
// balancer does; XXHash is for applications that start here.
const (
	CRC32  HashAlgorithm = "crc32"
	MD5    HashAlgorithm = "md5"
	SHA1   HashAlgorithm = "sha1"
	XXHash HashAlgorithm = "xxhash"
)

// MissingUser says what happens to a request that carries no user id.
type MissingUser string

const (
	// MissingUserAuto sends Dify calls that need no user to any available
	// instance and refuses the rest.
	MissingUserAuto MissingUser = "auto"
	// MissingUserReject refuses every request without a user id.
	MissingUserReject MissingUser = "reject"
	// MissingUserSpread sends them to any available instance.
	MissingUserSpread MissingUser = "spread"
)

// State is what the operator wants of an instance.
type State string

const (
	// Active takes requests.
	Active State = "active"
	// Draining takes no new requests; open ones finish. Its users move along
	// the ring and come back when it is active again.
	Draining State = "draining"
	// Disabled takes nothing and is not probed.
	Disabled State = "disabled"
)

// CheckType says how an instance is probed.
type CheckType string

// The kinds of active probe. CheckNone leaves the instance to passive health.
const (
	CheckHTTP CheckType = "http"
	CheckTCP  CheckType = "tcp"
	CheckNone CheckType = "none"
)

// Application is a named set of instances that serve the same thing, with the
// rules for its traffic. An Application inside a Snapshot is immutable and may
// be shared; to change one, Clone it.
type Application struct {
	// Name is the key under which the application is declared.
	Name string `json:"name,omitempty"`
	// UserTokens are the tokens by which clients reach it. Without one nobody can.
	UserTokens []UserToken `json:"user_tokens"`

	ConsistentHash ConsistentHash `json:"consistent_hash"` // where users stand on the ring
	// MissingUser says what happens to a request without a user id: auto sends
	// calls that need none to any available instance and refuses the rest,
	// reject refuses all, spread sends all to any available instance.
	MissingUser MissingUser `json:"missing_user"`
	Timeouts    Timeouts    `json:"timeouts"` // how long is waited for an instance
	Retry       Retry       `json:"retry"`    // when another instance is tried
	// MaxBody bounds a request body; a larger one gets 413. 0 means the proxy's --max-body.
	MaxBody   Size        `json:"max_body"`
	RateLimit RateLimit   `json:"rate_limit"`   // how many requests per second are let in
	Check     HealthCheck `json:"health_check"` // how instances are probed
	Queue     Queue       `json:"queue"`        // where a request waits for an instance that is full
	// PreserveHost sends the client's Host to the instances instead of the
	// instance's own. An instance may say otherwise.
	PreserveHost bool `json:"preserve_host"`

	// Instances keep the order in which they were declared: of two virtual
	// nodes at one point of the ring, the later instance has it.
	Instances []Instance `json:"instances"`

	// Revision is the store's revision of the last change to the application,
	// its tokens or its instances. 0 before it is stored.
	Revision int64 `json:"-"`
}

// ConsistentHash says how the ring is built, and when a request leaves its place on it.
type ConsistentHash struct {
	// VirtualNodes is the number of points per unit of weight, from 1.
	VirtualNodes int `json:"virtual_nodes"`
	// HashAlgorithm places virtual nodes and users. crc32, md5 and sha1 place
	// them as the OpenResty balancer does; xxhash is for new applications.
	HashAlgorithm HashAlgorithm `json:"hash_algorithm"`
	// LoadFactor lets a request pass an instance that has, of this proxy's open
	// requests, more than so many times its share by weight; above 1, such as
	// 1.25. 0: requests go to their owner whatever it has to do.
	LoadFactor float64 `json:"load_factor,omitempty"`
}

// Timeouts bound the talk with an instance.
type Timeouts struct {
	Connect Duration `json:"connect"` // to make a connection, TLS included
	Read    Duration `json:"read"`    // between two bytes of an answer, not for the whole
	Send    Duration `json:"send"`    // between two writes that make progress
}

// Retry says when a request is tried on the next instance of the ring.
type Retry struct {
	Attempts int      `json:"attempts"` // further ones after the first; 0 means none
	Timeout  Duration `json:"timeout"`  // from the first attempt's start; no attempt starts later
	// NonIdempotent also retries methods such as POST after a connection broke
	// or the instance answered 502, 503 or 504.
	NonIdempotent bool `json:"non_idempotent"`
}

// Rate is a token bucket.
type Rate struct {
	PerSecond float64 `json:"rate"`  // requests per second
	Burst     int     `json:"burst"` // how many may come at once, from 1
}

// RateLimit bounds an application's requests; nil means no limit.
type RateLimit struct {
	PerApp  *Rate `json:"per_app,omitempty"`  // of the application; nil: no limit
	PerUser *Rate `json:"per_user,omitempty"` // of each user of it; nil: no limit
}

// HealthCheck says how instances are probed. The default asks what a user's
// request needs: GET /v1/info with the instance's token touches Dify's
// process, its database and Redis, and that very token.
type HealthCheck struct {
	// Type is the kind of probe; none leaves the instance to what its traffic shows.
	Type               CheckType `json:"type"`
	Path               string    `json:"path"`                // what an http probe GETs
	SendToken          bool      `json:"send_token"`          // with the instance's own token; without it a rejected token is not noticed
	Interval           Duration  `json:"interval"`            // from probe to probe, give or take a tenth
	Timeout            Duration  `json:"timeout"`             // for the whole probe
	HealthyThreshold   int       `json:"healthy_threshold"`   // successes in a row until healthy again; the very first success is enough
	UnhealthyThreshold int       `json:"unhealthy_threshold"` // failures in a row until unhealthy
	ExpectStatus       string    `json:"expect_status"`       // of a good answer: "200-299" or "200,204,301-302"
	ExpectBody         string    `json:"expect_body"`         // text that the body must hold; empty: any
}

// Queue is where requests wait while their instance is at its MaxInFlight.
type Queue struct {
	Size    int      `json:"size"`    // how many may wait, per instance and proxy; 0: nobody, the answer is 503 at once
	Timeout Duration `json:"timeout"` // the longest wait
}

// Settings hold for the whole cluster.
type Settings struct {
	RateLimit GlobalRateLimit `json:"rate_limit"` // limits that hold for all applications together
}

// GlobalRateLimit bounds clients before their application is known.
type GlobalRateLimit struct {
	PerIP *Rate `json:"per_ip,omitempty"` // of one client address, in all applications together; nil: no limit
}

// Document is the whole declaration that people write, apply and export.
type Document struct {
	Applications map[string]*Application `json:"applications"` // by name
	// Settings is nil when the document does not speak of them: an apply then
	// leaves them as they are.
	Settings *Settings `json:"settings,omitempty"`
}

// NewApplication returns an application with every default filled in.
func NewApplication(name string) *Application {
	a := &Application{Name: name}
	a.SetDefaults()
	return a
}

// SetDefaults fills in the defaults; decoding a declaration starts from them.
func (a *Application) SetDefaults() {
	a.ConsistentHash = ConsistentHash{VirtualNodes: 150, HashAlgorithm: CRC32}
	a.MissingUser = MissingUserAuto
	a.Timeouts = Timeouts{Connect: 5 * second, Read: 300 * second, Send: 300 * second}
	a.Retry = Retry{Attempts: 2, Timeout: 30 * second}
	a.MaxBody = 100 << 20
	a.Check.SetDefaults()
	a.Queue = Queue{Size: 100, Timeout: 30 * second}
}

// SetDefaults fills in the defaults of a check.
func (c *HealthCheck) SetDefaults() {
	*c = HealthCheck{
		Type: CheckHTTP, Path: "/v1/info", SendToken: true,
		Interval: 10 * second, Timeout: 3 * second,
		HealthyThreshold: 2, UnhealthyThreshold: 3,
		ExpectStatus: "200-299",
	}
}

const second = Duration(1e9)

// Instance returns the named instance and its place in the declared order, or nil and -1.
func (a *Application) Instance(name string) (*Instance, int) {
	for i := range a.Instances {
		if a.Instances[i].Name == name {
			return &a.Instances[i], i
		}
	}
	return nil, -1
}

// Token returns the token that the id names, or nil. An id is what
// TokenHash.ID writes, or the whole hash.
func (a *Application) Token(id string) *UserToken {
	for i := range a.UserTokens {
		if t := &a.UserTokens[i]; t.SHA256.ID() == id || t.SHA256.String() == id {
			return t
		}
	}
	return nil
}

// Clone returns a copy that shares nothing which may be changed.
func (a *Application) Clone() *Application {
	c := *a
	c.UserTokens = append([]UserToken(nil), a.UserTokens...)
	c.Instances = append([]Instance(nil), a.Instances...)
	for i := range c.Instances {
		if p := c.Instances[i].PreserveHost; p != nil {
			v := *p
			c.Instances[i].PreserveHost = &v
		}
		c.Instances[i].TLS = c.Instances[i].TLS.clone()
	}
	c.RateLimit.PerApp = cloneRate(a.RateLimit.PerApp)
	c.RateLimit.PerUser = cloneRate(a.RateLimit.PerUser)
	return &c
}

func cloneRate(r *Rate) *Rate {
	if r == nil {
		return nil
	}
	v := *r
	return &v
}
