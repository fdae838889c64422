// Package proxy is the request path: it identifies who asks, places the
// request on an instance, relays both bodies as they come, tries the next
// instance where that is safe, and accounts for every request once. It routes
// by the Table that it is given and refuses to know where that comes from, how
// instances are probed, and how figures travel.
//
// The life of one request, and where to read it:
//
//	server.go    accept, limits of connections, shutdown
//	wire.go      a connection: waiting, reading and writing without blocking, deadlines
//	poller_*.go  who tells that something has come, or that a peer has left
//	carry.go     how connections go on without a goroutine each
//	client.go    a client's connection: requests in, answers out
//	h2.go        the same for a stream of HTTP/2
//	exchange.go  local answers, and the steps of a routed request in order
//	call.go      what decides: application, user, limits, instance, retry
//	body.go      the client's body: scanned, kept as far as needed, replayed
//	relay.go     attempts on instances, and the answer on its way back
//	sender.go    the request on its way to an instance
//	upstream.go  the pool of connections to one instance; dial.go makes them
//	tunnel.go    upgraded connections
//	stop.go      stops, which may concern several instances
//	conversation.go  conversations stay where they were begun
//	files.go     signed links go to who signed them
//	memory.go    which instance runs a task, holds a conversation, signed a file
//	headers.go   what is rewritten in both heads
//	lifeline.go  what ends a request before its time
//	view.go      a Table with the run-time state beside it
//	choose.go    which instance is next, and what load has to do with it
//	shares.go    this proxy's part of the limits that hold for the cluster
//	account.go   counters at the end of a request
//	counts.go    what else is counted, for metrics
//	accesslog.go one line per request
//	tracing.go   spans of a request and its attempts
package proxy

import (
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/lb"
	"difylb/pkg/limit"
	"difylb/pkg/names"
	"difylb/pkg/route"
	"difylb/pkg/stats"
	"difylb/pkg/trace"
)

// Options of a Proxy. Fields without a remark must be set.
type Options struct {
	NodeID   string
	Registry *stats.Registry
	Log      zerolog.Logger
	// AccessLog takes one line per request; nil: none.
	AccessLog *AccessLog
	// Tracer takes a span of each request and attempt; nil: none. Its Run is
	// the caller's.
	Tracer *trace.Tracer
	// Status returns the cluster's Status document as JSON, for GET /status.
	Status func() []byte
	// StatusAllow says who may ask for it, by address; nil: nobody.
	StatusAllow func(netip.Addr) bool
	// TrustedProxy says whose X-Forwarded-… headers are kept; nil: nobody's.
	TrustedProxy func(netip.Addr) bool
	// MaxBody bounds request bodies of applications that set no bound of their own.
	MaxBody lb.Size
	// DebugHeaders adds X-Dify-Instance and X-LB-Node to answers, and what the
	// OpenResty balancer told instances to upstream requests.
	DebugHeaders bool
	// SpoolDir holds bodies that must be read to their end before their user
	// id is known and that are too large for memory; "" is the system's
	// directory for temporary files.
	SpoolDir string
	// UserHashKey keys the hash that stands for users in the access log, so
	// that it can't be computed by who has only the log. May be empty.
	UserHashKey func() lb.Secret
	// FilesRoute passes /files/… links, which are good without a token, to the
	// instance that signed them.
	FilesRoute bool
	// Names finds the addresses of instances; nil asks as the system is set up for.
	Names *names.Resolver
	// OnEject is told when live traffic ejects an instance. It must not block. May be nil.
	OnEject func(app, instance string, until time.Time)
	// Limits of what clients may send; zero fields take the defaults.
	Limits Limits
}

// Limits of clients. The zero value of a field is its default.
type Limits struct {
	MaxConnections int           // open at once; further ones wait [65536]
	RequestLine    int           // bytes [16 KiB]
	Head           int           // bytes [64 KiB]
	Fields         int           // header fields [128]
	HeadTimeout    time.Duration // for a whole head [30s]
	BodyTimeout    time.Duration // between two bytes of a body [60s]
	IdleTimeout    time.Duration // of a kept connection [75s]
	LastCall       time.Duration // that a kept connection may still bring a request in when the server shuts down; the answer then ends it [1s]
	WriteTimeout   time.Duration // a client that takes nothing of its answer for so long is gone [60s]
	IPKeys         int           // addresses that per_ip limits remember [65536]
	UserKeys       int           // users that per_user limits remember, per application [65536]
}

func (l *Limits) setDefaults() {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	defTime := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	def(&l.MaxConnections, 65536)
	def(&l.RequestLine, 16<<10)
	def(&l.Head, 64<<10)
	def(&l.Fields, 128)
	def(&l.IPKeys, 65536)
	def(&l.UserKeys, 65536)
	defTime(&l.HeadTimeout, 30*time.Second)
	defTime(&l.BodyTimeout, 60*time.Second)
	defTime(&l.IdleTimeout, 75*time.Second)
	defTime(&l.WriteTimeout, 60*time.Second)
	defTime(&l.LastCall, time.Second)
}

// Proxy routes and relays. Make one with New, give it a Table, then Serve.
type Proxy struct {
	opts Options
	log  zerolog.Logger

	view          atomic.Pointer[view] // nil before the first SetTable
	ips           *limit.Buckets
	tasks         *memory // task → instance
	conversations *memory // conversation → instance
	files         *memory // file → address
	draining      atomic.Bool

	pollers     *pollers      // nil where there is none to be had
	failOpen    atomic.Uint64 // requests sent to an instance that was not usable
	connections atomic.Int64  // open client connections
	counts      counts
	pool        poolCounts

	even atomic.Uint64 // math.Float64bits of this proxy's part of what is not leased

	mu     sync.Mutex // guards all below; held by SetTable and its kin only
	states map[string]*appState
	health map[string]map[string]lb.Verdict
	place  place           // among those who share the limits
	hasher *limit.Hasher   // nil before SetLimitSecret
	secret lb.Secret       // that it was made of
	leased map[string]bool // applications of which something is leased
	window window
}

// New returns a Proxy that answers 503 to everything until SetTable. It owns
// descriptors until Close. On Linux the first one of a process doubles GOMAXPROCS
// (see Cores), half of which wait for the network.
func New(opts Options) *Proxy {
	opts.Limits.setDefaults()
	if opts.MaxBody == 0 {
		opts.MaxBody = 100 << 20
	}
	deny := func(netip.Addr) bool { return false }
	if opts.StatusAllow == nil {
		opts.StatusAllow = deny
	}
	if opts.TrustedProxy == nil {
		opts.TrustedProxy = deny
	}
	if opts.Names == nil {
		opts.Names = names.New(names.Options{Log: opts.Log})
	}
	p := &Proxy{
		opts: opts, log: opts.Log.With().Str("component", "proxy").Logger(),
		ips:           limit.NewBuckets(opts.Limits.IPKeys),
		tasks:         newMemory(taskLifetime),
		conversations: newMemory(0),
		files:         newMemory(time.Hour),
		states:        make(map[string]*appState),
	}
	p.setPlace(place{proxies: 1})
	if h, err := newPollers(); err != nil {
		p.log.Warn().Err(err).Msg("clients that leave are noticed late")
	} else {
		p.pollers = h
	}
	return p
}

// SetTable puts a Table in force. Requests under way keep the one that they
// began with. It may be called at any time, and blocks for as long as building
// the view takes; requests never wait for it.
func (p *Proxy) SetTable(t *route.Table) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.view.Store(p.newView(t))
}

// SetHealth takes the probers' verdicts, by application and instance; what is
// missing is unknown. The maps must not be changed afterwards: one that is the
// same as before is taken to hold the same.
func (p *Proxy) SetHealth(health map[string]map[string]lb.Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if sameMap(p.health, health) {
		return
	}
	before := p.health
	p.health = health
	for name, st := range p.states {
		if !sameMap(before[name], health[name]) {
			st.setHealth(health[name])
		}
	}
}

// SetDraining says that this proxy is about to stop: GET /health answers 503,
// and clients are asked to open their next connection elsewhere. Requests are
// served as before.
func (p *Proxy) SetDraining(draining bool) { p.draining.Store(draining) }

// Draining reports what SetDraining said.
func (p *Proxy) Draining() bool { return p.draining.Load() }

// Close closes the idle connections to all instances. Call it after
// Server.Shutdown; connections that are in use close when they are done.
func (p *Proxy) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, st := range p.states {
		st.retire()
	}
	p.pollers.close()
}

// Table returns the Table in force, nil before the first.
func (p *Proxy) Table() *route.Table {
	if v := p.view.Load(); v != nil {
		return v.table
	}
	return nil
}

// FailOpen returns how many requests went to instances that were not usable,
// because none was.
func (p *Proxy) FailOpen() uint64 { return p.failOpen.Load() }

// Connections returns the number of open client connections.
func (p *Proxy) Connections() int64 { return p.connections.Load() }

// Ejection is an instance that live traffic has thrown out.
type Ejection struct {
	App, Instance string
	Until         time.Time
}

// Ejections lists the instances that are ejected now.
func (p *Proxy) Ejections(now time.Time) []Ejection {
	v := p.view.Load()
	if v == nil {
		return nil
	}
	var out []Ejection
	for _, a := range v.apps {
		if a == nil {
			continue
		}
		for i, in := range a.instances {
			if in.passive.Ejected(now) {
				out = append(out, Ejection{a.app.Decl.Name, a.app.Instances[i].Decl.Name, in.passive.EjectedUntil(now)})
			}
		}
	}
	return out
}

// sameMap reports whether two maps are one.
func sameMap[V any](a, b map[string]V) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}
