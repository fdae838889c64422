// Package controlplane is the wiring diagram of lb-admin: the store, embedded
// or not, the REST API, the gRPC link to the proxies, and, on the elected one,
// the prober and the keeper of the counters. It starts and ends them in order
// and decides nothing itself; tests and `lbctl up` start the real thing from
// here.
package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
	"google.golang.org/grpc"

	"difylb/pkg/admin"
	"difylb/pkg/certs"
	"difylb/pkg/cluster"
	"difylb/pkg/daemon"
	"difylb/pkg/dashboard"
	"difylb/pkg/health"
	"difylb/pkg/lb"
	"difylb/pkg/names"
	"difylb/pkg/route"
	"difylb/pkg/store"
	"difylb/pkg/store/embedded"
)

// Options are the settings of one lb-admin.
type Options struct {
	NodeID     string
	Version    string
	HTTPListen string
	GRPCListen string
	// GRPCAdvertise is what proxies dial; "" derives it from the listener.
	GRPCAdvertise string
	// Store names an external etcd. Without endpoints an embedded one runs in
	// DataDir, listening on EtcdListenClient and EtcdListenPeer.
	Store                            store.Options // Log and TLS are set here
	EtcdListenClient, EtcdListenPeer string
	DataDir                          string
	EtcdTLS                          *certs.Client // nil: in clear
	TLSCert, TLSKey, ClientCA        string
	TrustedProxies                   []netip.Prefix
	Names                            names.Options // how instances' names are found; Log is set here
	Log                              zerolog.Logger
}

// maxScrapes bounds the scrapes of metrics at one time; further ones get 503.
const maxScrapes = 4

// Plane is one lb-admin. New, then Run once.
type Plane struct {
	opts      Options
	log       zerolog.Logger
	own       *certs.Pair // of REST and gRPC; nil: in clear
	clients   *certs.Pool // that may come; nil: all
	http      net.Listener
	grpc      net.Listener
	node      lb.Node
	table     atomic.Pointer[route.Table]
	prober    *health.Prober // made by Run
	names     *names.Resolver
	ready     chan struct{} // closed when REST is served and the store was reached
	endpoints []string      // of etcd; set before ready
	leading   atomic.Bool
	reclaim   *daemon.Reclaimer

	healthChanges healthChanges // for metrics
}

// New checks the options and binds the listeners. It starts nothing. The
// listeners are closed by Run.
func New(opts Options) (*Plane, error) {
	p := &Plane{opts: opts, log: opts.Log.With().Str("component", "controlplane").Logger(), ready: make(chan struct{}), reclaim: daemon.NewReclaimer(), healthChanges: newHealthChanges()}
	opts.Names.Log = opts.Log
	p.names = names.New(opts.Names)
	var err error
	if err = p.loadTLS(); err != nil {
		return nil, err
	}
	if p.http, err = net.Listen("tcp", opts.HTTPListen); err != nil {
		return nil, fmt.Errorf("--http-listen %s: %w", opts.HTTPListen, err)
	}
	if p.grpc, err = net.Listen("tcp", opts.GRPCListen); err != nil {
		p.http.Close()
		return nil, fmt.Errorf("--grpc-listen %s: %w", opts.GRPCListen, err)
	}
	advertise := opts.GRPCAdvertise
	if advertise == "" {
		advertise = daemon.Advertised(p.grpc.Addr())
	}
	p.node = lb.Node{
		ID: opts.NodeID, Role: lb.RoleAdmin, BootID: uuid.NewString(), Version: opts.Version,
		Address: daemon.Advertised(p.http.Addr()), GRPC: advertise, TLS: p.own != nil, Started: time.Now().UTC().Truncate(time.Second),
	}
	return p, nil
}

func (p *Plane) loadTLS() (err error) {
	o := &p.opts
	if o.TLSCert == "" && o.TLSKey == "" {
		if o.ClientCA != "" {
			return daemon.Usagef("--client-ca goes with --tls-cert and --tls-key")
		}
		return nil
	}
	if p.own, err = certs.LoadPair(o.TLSCert, o.TLSKey, p.log); err != nil {
		return daemon.Usagef("--tls-cert, --tls-key: %w", err)
	}
	if o.ClientCA != "" {
		if p.clients, err = certs.LoadPool(o.ClientCA, p.log); err != nil {
			return daemon.Usagef("--client-ca: %w", err)
		}
	}
	return nil
}

// serverTLS is for REST and gRPC; nil in clear.
func (p *Plane) serverTLS() *tls.Config {
	if p.own == nil {
		return nil
	}
	return certs.Server(p.own, p.clients)
}

// Address returns where REST is served.
func (p *Plane) Address() string { return p.http.Addr().String() }

// GRPCAddress returns where the link to the proxies is served.
func (p *Plane) GRPCAddress() string { return p.grpc.Addr().String() }

// Ready is closed when REST is served, the store answers and the first admin
// token exists.
func (p *Plane) Ready() <-chan struct{} { return p.ready }

// Endpoints returns etcd's client URLs, the embedded one's real address
// included. Valid after Ready.
func (p *Plane) Endpoints() []string { return p.endpoints }

// TokenFile returns the file that the first start writes the admin token to.
func (p *Plane) TokenFile() string { return filepath.Join(p.opts.DataDir, admin.TokenFile) }

// gcPercent is how much is allocated, of what is live, until garbage is
// collected. An lb-admin has time, and a large change makes several times as
// much garbage as there is configuration.
const gcPercent = 50

// Run serves until ctx ends, then shuts down: it leaves the election and its
// key first, so that another takes over at once, then ends REST and the link,
// then the store. It returns when all that it started has ended.
func (p *Plane) Run(ctx context.Context) (err error) {
	defer p.http.Close()
	defer p.grpc.Close()
	if os.Getenv("GOGC") == "" { // whoever sets that knows better
		defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	}
	opts := p.opts.Store
	opts.Log, opts.TLS = p.opts.Log, p.opts.EtcdTLS.Settings()
	if len(opts.Endpoints) == 0 {
		etcd := embedded.New(embedded.Options{
			DataDir: p.opts.DataDir, ListenClient: p.opts.EtcdListenClient, ListenPeer: p.opts.EtcdListenPeer,
			Name: "lb-admin", Log: p.opts.Log,
		})
		if err := etcd.Start(ctx); err != nil {
			return err
		}
		// Last of all: the store's client is closed by then.
		defer func() { err = errors.Join(err, etcd.Stop()) }()
		opts.Endpoints = etcd.Client()
	}
	p.endpoints = opts.Endpoints
	st, err := store.Open(opts)
	if err != nil {
		return err
	}
	defer st.Close()
	return p.serve(ctx, st)
}

func (p *Plane) serve(ctx context.Context, st *store.Store) error {
	probed := &lastProbes{plane: p}
	hub := cluster.NewHub(cluster.HubOptions{NodeID: p.node.ID, Log: p.opts.Log, Counters: counterStore{st}, Probes: probed, TLS: p.peerTLS()})
	elected := newElected(p, st, hub)
	probed.prober = elected.prober
	p.prober = elected.prober
	metrics := p.metrics(st, hub) // reads all of these
	rest := admin.New(admin.Options{
		Store: st, Hub: hub, Log: p.opts.Log, NodeID: p.node.ID, Version: p.node.Version,
		Table: p.table.Load, Recent: hub.Recent, LastProbes: hub.LastProbes, Announce: hub.Tell, Closing: ctx, TrustedProxies: p.opts.TrustedProxies,
		Metrics:   promhttp.HandlerFor(metrics, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}),
		Checks:    map[string]func(context.Context) error{"statistics": statistics(hub), "bootstrap": p.bootstrapped},
		Dashboard: dashboard.Handler(),
	})
	hub.OnAnnounced(rest.Announced)
	metrics.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "difylb_api_wrong_tokens_total", Help: "Requests with an access token that is not valid.",
	}, func() float64 { return float64(rest.WrongTokens()) }))
	httpServer := &http.Server{Handler: counted(metrics, rest.Handler()), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, TLSConfig: p.serverTLS()}
	grpcServer := cluster.NewServer(hub, p.serverTLS())

	// Leading and being registered end first, the rest when REST has ended.
	life, end := context.WithCancel(context.Background())
	defer end()
	var first, rest2 sync.WaitGroup
	part := func(wg *sync.WaitGroup, ctx context.Context, name string, f func(context.Context) error) {
		wg.Add(1)
		go func() { // ends with ctx
			defer wg.Done()
			if err := f(ctx); err != nil && ctx.Err() == nil {
				p.log.Error().Err(err).Str("part", name).Msg("a part of the control plane ended")
			}
		}()
	}
	part(&rest2, life, "store", st.Run)
	part(&rest2, life, "hub", hub.Run)
	part(&rest2, life, "reclaim", p.reclaim.Run)
	part(&rest2, life, "names", p.names.Run)
	part(&rest2, life, "follow", func(ctx context.Context) error { return p.follow(ctx, st, hub, elected) })
	part(&first, ctx, "bootstrap", func(ctx context.Context) error { return p.bootstrap(ctx, st, rest) })
	part(&first, ctx, "register", func(ctx context.Context) error { return st.Register(ctx, p.node) })
	part(&first, ctx, "election", func(ctx context.Context) error { return st.Campaign(ctx, p.node.ID, elected.lead) })

	served := make(chan error, 2) // one each
	go func() { served <- serveHTTP(httpServer, p.http, p.own != nil) }()
	go func() { served <- serveGRPC(grpcServer, p.grpc) }()
	p.log.Info().Str("http", p.Address()).Str("grpc", p.GRPCAddress()).Str("advertise", p.node.GRPC).Strs("etcd", p.endpoints).
		Str("node", p.node.ID).Str("version", p.node.Version).Msg("serving")

	var failed error
	running := 2
	select {
	case <-ctx.Done():
		p.log.Info().AnErr("cause", context.Cause(ctx)).Msg("shutting down")
	case failed = <-served:
		running--
	}
	first.Wait()
	bound, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := httpServer.Shutdown(bound); err != nil {
		httpServer.Close()
	}
	grpcServer.Stop() // the links never end by themselves; the proxies look for another lb-admin
	for range running {
		<-served
	}
	end()
	rest2.Wait()
	p.log.Info().Msg("stopped")
	return failed
}

// peerTLS is for asking other lb-admins: with the certificate that this one
// shows itself, and who may have signed theirs.
func (p *Plane) peerTLS() func() *tls.Config {
	if p.own == nil {
		return nil
	}
	return (&certs.Client{CAs: p.clients, Own: p.own}).Config
}

// bootstrapped is the check that what a new store needs is there: scripts wait
// for /readyz and then use the token file.
func (p *Plane) bootstrapped(context.Context) error {
	select {
	case <-p.ready:
		return nil
	default:
		return errors.New("the store is not prepared yet, or the first admin token is not stored")
	}
}

// statistics is the check that /status is worth showing after a start.
func statistics(hub *cluster.Hub) func(context.Context) error {
	return func(context.Context) error {
		if !hub.Ready() {
			return errors.New("the stored counters are not loaded, or not every proxy has reported yet")
		}
		return nil
	}
}

func serveHTTP(s *http.Server, ln net.Listener, secure bool) error {
	var err error
	if secure {
		err = s.ServeTLS(ln, "", "")
	} else {
		err = s.Serve(ln)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func serveGRPC(s *grpc.Server, ln net.Listener) error {
	if err := s.Serve(ln); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// bootstrap makes what a new store needs. While etcd can't be reached it says
// so and tries again: the processes of a cluster may start in any order.
func (p *Plane) bootstrap(ctx context.Context, st *store.Store, rest *admin.Server) error {
	wait := 250 * time.Millisecond
	for {
		err := st.Init(ctx)
		if err == nil {
			err = rest.EnsureAdminToken(ctx, p.opts.DataDir)
		}
		if err == nil {
			close(p.ready)
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		p.log.Error().Err(err).Strs("etcd", p.endpoints).Msg("the store is not ready, trying again")
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
		wait = min(2*wait, 5*time.Second)
	}
}

// follow hands each new snapshot to those who need it.
func (p *Plane) follow(ctx context.Context, st *store.Store, hub *cluster.Hub, e *elected) error {
	changed, cancel := st.Subscribe()
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		snap := st.Current()
		if snap == nil {
			continue
		}
		hub.SetSnapshot(snap)
		e.setSnapshot(snap)
		table, err := route.Build(snap, p.table.Load())
		if err != nil {
			p.log.Error().Err(err).Int64("revision", snap.Revision).Msg("configuration does not compile")
			continue
		}
		p.table.Store(table)
		p.reclaim.Keeps(st.Objects())
	}
}
