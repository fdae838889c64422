// Package dataplane is the wiring diagram of lb-proxy: it follows the store,
// compiles what it sees, puts it in force, keeps the last good state on disk,
// and starts and ends everything in order. The order of a shutdown stands
// here, once. It decides nothing about requests; tests and `lbctl up` start
// the real thing from here.
package dataplane

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"difylb/pkg/certs"
	"difylb/pkg/cluster"
	"difylb/pkg/daemon"
	"difylb/pkg/lb"
	"difylb/pkg/names"
	"difylb/pkg/proxy"
	"difylb/pkg/stats"
	"difylb/pkg/store"
	"difylb/pkg/trace"
)

// Options are the settings of one lb-proxy.
type Options struct {
	NodeID  string
	Version string
	// Listen are the addresses for clients in clear, TLSListen those for HTTPS.
	Listen, TLSListen []string
	TLSCert, TLSKey   string
	// Handover is the path of the unix socket at which the listening sockets
	// are taken over from a proxy that runs, and offered to the next; "" for
	// neither.
	Handover string
	// OpsListen serves metrics, readiness and profiles; "" serves none.
	OpsListen string
	Store     store.Options // Log and TLS are set here
	// EtcdTLS and AdminTLS are for etcd and for lb-admins that speak TLS; nil
	// means in clear, and the system's roots.
	EtcdTLS, AdminTLS *certs.Client
	// DataDir holds the last good state.
	DataDir   string
	AccessLog string // file, "-" or "off"
	// What is written there; see proxy.AccessLogOptions.
	AccessLogFormat string
	AccessLogUsers  bool
	AccessLogSample float64
	AccessLogSlow   time.Duration
	// OTLPEndpoint is the collector that spans go to; "" traces nothing. The
	// rest is of use with it only; see trace.Options.
	OTLPEndpoint   string
	OTLPHeaders    map[string]string
	OTLPTLS        *tls.Config
	TraceSample    float64
	ShutdownGrace  time.Duration
	ShutdownDelay  time.Duration
	MaxConnections int
	MaxBody        lb.Size
	TrustedProxies daemon.Prefixes
	Names          names.Options // how instances' names are found; Log is set here
	StatusAllow    daemon.Prefixes
	DebugHeaders   bool
	SpoolDir       string
	FilesRoute     bool // see proxy.Options
	Log            zerolog.Logger
	// Now stops the process at once when it ends: a second signal. May be nil.
	Now context.Context
}

// Plane is one lb-proxy. New, then Run once.
type Plane struct {
	opts Options
	log  zerolog.Logger
	node lb.Node

	store     *store.Store
	proxy     *proxy.Proxy
	server    *proxy.Server
	link      *cluster.Link
	names     *names.Resolver
	accessLog *proxy.AccessLog
	tracer    *trace.Tracer // nil: off
	certs     *certs.Pair   // nil: no TLS for clients
	apply     *applier
	reclaim   *daemon.Reclaimer

	listeners []*gate // clear, then TLS
	ops       net.Listener
	heir      *daemon.Inheritance // what a predecessor passed on; nil: there is none
	offer     *daemon.Offer       // nil: off, or the path is still the predecessor's

	ejected chan struct{} // capacity 1: live traffic has ejected an instance
	ready   chan struct{} // closed when clients are served

	registry *stats.Registry
}

// New checks the options, binds the listeners or takes them over, and opens
// files, so that what can be wrong shows before anything runs. It starts
// nothing. The listeners are closed by Run.
func New(opts Options) (_ *Plane, err error) {
	p := &Plane{
		opts: opts, log: opts.Log.With().Str("component", "dataplane").Logger(),
		ejected: make(chan struct{}, 1), ready: make(chan struct{}), reclaim: daemon.NewReclaimer(),
	}
	defer func() {
		if err != nil {
			p.closeListeners()
		}
	}()
	if p.accessLog, err = proxy.OpenAccessLog(proxy.AccessLogOptions{
		Path: opts.AccessLog, Format: opts.AccessLogFormat, Users: opts.AccessLogUsers,
		Sample: opts.AccessLogSample, Slow: opts.AccessLogSlow, Log: opts.Log,
	}); err != nil {
		return nil, daemon.Usagef("--access-log: %w", err)
	}
	if p.tracer, err = newTracer(opts); err != nil {
		return nil, err
	}
	if err := p.inherit(); err != nil {
		return nil, err
	}
	if err := p.listen(); err != nil {
		return nil, err
	}
	opts.Store.Log = opts.Log
	opts.Store.TLS = opts.EtcdTLS.Settings()
	if p.store, err = store.Open(opts.Store); err != nil {
		return nil, err
	}
	p.node = lb.Node{
		ID: opts.NodeID, Role: lb.RoleProxy, BootID: uuid.NewString(), Version: opts.Version,
		Address: daemon.Advertised(p.listeners[0].Addr()), Started: time.Now().UTC().Truncate(time.Second),
	}
	p.registry = stats.NewRegistry(proxy.Cores())
	opts.Names.Log = opts.Log
	p.names = names.New(opts.Names)
	p.link = cluster.NewLink(cluster.LinkOptions{Node: p.node, Registry: p.registry, Log: opts.Log, TLS: opts.AdminTLS.Settings(), Check: p.check})
	p.proxy = proxy.New(proxy.Options{
		NodeID: opts.NodeID, Registry: p.registry, Log: opts.Log, AccessLog: p.accessLog, Tracer: p.tracer,
		Names: p.names, Status: p.status, StatusAllow: opts.StatusAllow.Contains, TrustedProxy: opts.TrustedProxies.Contains,
		MaxBody: opts.MaxBody, DebugHeaders: opts.DebugHeaders, SpoolDir: opts.SpoolDir, FilesRoute: opts.FilesRoute,
		UserHashKey: func() lb.Secret { return p.apply.clusterKey() },
		OnEject: func(string, string, time.Time) {
			select {
			case p.ejected <- struct{}{}:
			default:
			}
		},
		Limits: proxy.Limits{MaxConnections: opts.MaxConnections},
	})
	p.server = proxy.NewServer(p.proxy)
	p.apply = newApplier(p.node.ID, p.store, p.proxy, p.link, newLastGood(opts.DataDir), p.log)
	p.apply.applied = func() { p.reclaim.Keeps(p.store.Objects()) }
	return p, nil
}

// newTracer returns nil where nothing is to be traced.
func newTracer(opts Options) (*trace.Tracer, error) {
	if opts.OTLPEndpoint == "" {
		return nil, nil
	}
	t, err := trace.New(trace.Options{
		Endpoint: opts.OTLPEndpoint, Headers: opts.OTLPHeaders, TLS: opts.OTLPTLS, Sample: opts.TraceSample,
		Service: "lb-proxy", Node: opts.NodeID, Version: opts.Version, Log: opts.Log,
	})
	if err != nil {
		return nil, daemon.Usagef("--otlp-endpoint: %w", err)
	}
	return t, nil
}

func (p *Plane) listen() error {
	bind := func(flag, addr string) (*gate, error) {
		if p.heir != nil {
			if ln := p.heir.Take(daemon.Socket{Flag: flag, Address: addr}); ln != nil {
				return newGate(ln), nil
			}
		}
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("--%s %s: %w", flag, addr, err)
		}
		return newGate(ln.(*net.TCPListener)), nil
	}
	if len(p.opts.Listen)+len(p.opts.TLSListen) == 0 {
		return daemon.Usagef("--listen: no address; give --listen or --tls-listen")
	}
	for _, addr := range p.opts.Listen {
		ln, err := bind("listen", addr)
		if err != nil {
			return err
		}
		p.listeners = append(p.listeners, ln)
	}
	if len(p.opts.TLSListen) > 0 {
		if p.opts.TLSCert == "" || p.opts.TLSKey == "" {
			return daemon.Usagef("--tls-listen goes with --tls-cert and --tls-key")
		}
		var err error
		if p.certs, err = certs.LoadPair(p.opts.TLSCert, p.opts.TLSKey, p.opts.Log); err != nil {
			return daemon.Usagef("--tls-cert, --tls-key: %w", err)
		}
	}
	for _, addr := range p.opts.TLSListen {
		ln, err := bind("tls-listen", addr)
		if err != nil {
			return err
		}
		p.listeners = append(p.listeners, ln)
	}
	if p.opts.OpsListen == "" {
		return nil
	}
	var err error
	if p.ops, err = net.Listen("tcp", p.opts.OpsListen); err != nil {
		return fmt.Errorf("--ops-listen %s: %w", p.opts.OpsListen, err)
	}
	return nil
}

func (p *Plane) closeListeners() {
	for _, ln := range p.listeners {
		ln.Close()
	}
	if p.ops != nil {
		p.ops.Close()
	}
	if p.heir != nil {
		p.heir.Close()
	}
	if p.offer != nil {
		p.offer.Close()
	}
}

// Addresses returns where clients are served, clear listeners first.
func (p *Plane) Addresses() []string {
	out := make([]string, len(p.listeners))
	for i, ln := range p.listeners {
		out[i] = ln.Addr().String()
	}
	return out
}

// OpsAddress returns where the ops listener is, "" without one.
func (p *Plane) OpsAddress() string {
	if p.ops == nil {
		return ""
	}
	return p.ops.Addr().String()
}

// Ready is closed when a configuration is in force and clients are served.
func (p *Plane) Ready() <-chan struct{} { return p.ready }

// ReopenLogs opens the access log anew, as SIGHUP asks.
func (p *Plane) ReopenLogs() {
	if p.accessLog != nil {
		p.accessLog.Reopen()
	}
}

// Run serves until ctx ends, then shuts down in order:
//
//	not ready → wait the shutdown delay → stop accepting → let requests end up
//	to the grace → cut the rest → send the last counters → release the node's
//	key → end everything else
//
// A successor that has taken the sockets over ends it likewise, without the
// delay: nobody need be told to go elsewhere. It returns when all that it started has ended.
func (p *Plane) Run(ctx context.Context) error {
	// The parts that must outlive the requests run under a context of their own.
	life, end := context.WithCancel(context.Background())
	defer end()
	var parts sync.WaitGroup
	run := func(name string, f func(context.Context) error) {
		parts.Add(1)
		go func() { // ends with life
			defer parts.Done()
			if err := f(life); err != nil && life.Err() == nil {
				p.log.Error().Err(err).Str("part", name).Msg("a part of the proxy ended")
			}
		}()
	}
	run("store", p.store.Run)
	run("apply", p.apply.run)
	run("save", p.apply.save)
	run("names", p.names.Run)
	run("follow names", p.proxy.FollowNames)
	run("link", p.link.Run)
	run("reclaim", p.reclaim.Run)
	run("gc", func(ctx context.Context) error { return daemon.TuneGC(ctx, gcFloor) })
	run("register", func(ctx context.Context) error { return p.store.Register(ctx, p.node) })
	run("ejections", p.reportEjections)
	run("shares", p.shareLimits)
	if p.accessLog != nil {
		run("access log", p.accessLog.Run)
	}
	if p.tracer != nil {
		run("trace", p.tracer.Run)
	}
	if p.ops != nil {
		run("ops", p.serveOps)
	}

	served := make(chan error, len(p.listeners))
	accepting, failed := p.startAccepting(ctx, served)
	delay := p.opts.ShutdownDelay
	if failed == nil && accepting > 0 {
		failed = p.succeed()
	}
	if failed != nil { // the predecessor serves on
		delay = 0
		p.retire(accepting)
	} else {
		offering, withdraw := context.WithCancel(ctx)
		defer withdraw()
		succeeded := make(chan struct{})
		if p.offer != nil {
			run("handover", func(context.Context) error { p.offerSockets(offering, succeeded); return nil })
		}
		select {
		case <-ctx.Done():
			p.log.Info().AnErr("cause", context.Cause(ctx)).Dur("delay", delay).Dur("grace", p.opts.ShutdownGrace).Msg("shutting down")
		case <-succeeded:
			delay = 0
			p.log.Info().Dur("grace", p.opts.ShutdownGrace).Msg("another process serves on these sockets; shutting down")
			p.retire(accepting)
		case failed = <-served:
			accepting--
			p.log.Error().Err(failed).Msg("listener failed")
		}
		withdraw() // a process that shuts down has nothing to offer
	}
	p.shutdown(delay)
	for range accepting {
		<-served
	}
	p.proxy.Close()
	flush, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	if err := p.link.Flush(flush); err != nil {
		p.log.Warn().Err(err).Msg("the last counters were not acknowledged")
	}
	cancel()
	end()
	parts.Wait()
	if err := p.store.Close(); err != nil {
		p.log.Debug().Err(err).Msg("store closed")
	}
	p.log.Info().Msg("stopped")
	return failed
}

// gcFloor is what is allocated at least between two garbage collections. A
// proxy lives on a few MiB and at full load allocates hundreds a second.
const gcFloor = 32 << 20

// firstState bounds how long clients wait at the door for a configuration.
const firstState = 3 * time.Second

// startAccepting serves clients as soon as there is something to serve them
// by. Without any state they get a 503 after a while, rather than silence; but
// they are not taken from a predecessor that serves them.
func (p *Plane) startAccepting(ctx context.Context, served chan<- error) (listeners int, err error) {
	patience := firstState
	if p.heir != nil {
		patience = firstStateOfHeir
	}
	wait := time.NewTimer(patience)
	defer wait.Stop()
	select {
	case <-p.apply.first:
	case <-wait.C:
		if p.heir != nil {
			p.closeListeners()
			return 0, fmt.Errorf("--handover %s: no configuration after %s: etcd does not answer and there is no last good state on disk; the proxy that runs serves on", p.opts.Handover, patience)
		}
		p.log.Error().Str("etcd", p.store.Status().LastError).Msg("no configuration: etcd does not answer and there is no last good state on disk")
	case <-ctx.Done():
		p.closeListeners()
		return 0, nil
	}
	for i, ln := range p.listeners {
		go func() { // ends with the server's Shutdown
			if i < len(p.opts.Listen) {
				served <- p.server.Serve(ln)
			} else {
				served <- p.server.ServeTLS(ln, p.certs)
			}
		}()
	}
	p.log.Info().Strs("addresses", p.Addresses()).Str("node", p.node.ID).Str("version", p.node.Version).Msg("serving")
	select {
	case <-p.apply.first:
		close(p.ready)
	default:
		go func() { // ends with the first state or the process
			select {
			case <-p.apply.first:
				close(p.ready)
			case <-ctx.Done():
			}
		}()
	}
	return len(p.listeners), nil
}

func (p *Plane) shutdown(delay time.Duration) {
	now := p.opts.Now
	if now == nil {
		now = context.Background()
	}
	p.proxy.SetDraining(true)
	select {
	case <-time.After(delay):
	case <-now.Done():
	}
	grace, cancel := context.WithTimeoutCause(now, p.opts.ShutdownGrace, errors.New("the grace is over"))
	defer cancel()
	if cut := p.server.Shutdown(grace); cut > 0 {
		p.log.Warn().Int("connections", cut).AnErr("cause", context.Cause(grace)).Msg("cut what was still open")
	}
}

// reportEjections tells the lb-admins what live traffic has thrown out, at
// once when it happens and when it is over.
func (p *Plane) reportEjections(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	since := make(map[[2]string]time.Time)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.ejected:
		case <-tick.C:
		}
		now := time.Now()
		list := p.proxy.Ejections(now)
		fresh := make(map[[2]string]time.Time, len(list))
		out := make([]cluster.Ejection, 0, len(list))
		changed := len(list) != len(since)
		for _, e := range list {
			key := [2]string{e.App, e.Instance}
			at, known := since[key]
			if !known {
				at, changed = now, true
			}
			fresh[key] = at
			out = append(out, cluster.Ejection{App: e.App, Instance: e.Instance, Since: at})
		}
		since = fresh
		if changed {
			p.link.SetEjections(out)
		}
	}
}

func (p *Plane) status() []byte {
	b, err := json.Marshal(p.link.Status())
	if err != nil {
		p.log.Error().Err(err).Msg("status document not written")
		return []byte("{}\n")
	}
	return append(b, '\n')
}
