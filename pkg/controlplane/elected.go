package controlplane

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/cluster"
	"difylb/pkg/health"
	"difylb/pkg/lb"
	"difylb/pkg/store"
)

// elected is what only one lb-admin of a cluster does: probing, and keeping
// the counters in the store.
type elected struct {
	p      *Plane
	log    zerolog.Logger
	store  *store.Store
	hub    *cluster.Hub
	prober *health.Prober

	mu      sync.Mutex // guards pending
	pending map[health.ID]lb.Verdict
	wake    chan struct{} // capacity 1: pending has something
}

func newElected(p *Plane, st *store.Store, hub *cluster.Hub) *elected {
	e := &elected{
		p: p, log: p.opts.Log.With().Str("component", "prober").Logger(), store: st, hub: hub,
		pending: make(map[health.ID]lb.Verdict), wake: make(chan struct{}, 1),
	}
	e.prober = health.NewProber(health.Options{Report: e.report, Live: hub.Live, Dial: p.dial})
	return e
}

// dial connects for probes, but never to where no instance may be, names resolved.
func (p *Plane) dial(ctx context.Context, _, address string) (net.Conn, error) {
	return p.names.Dial(ctx, address, func(_ context.Context, _, address string, _ syscall.RawConn) error {
		return lb.CheckDialAddress(address)
	})
}

// setSnapshot keeps the prober's targets current; also while another leads, so
// that taking over needs no preparation.
func (e *elected) setSnapshot(snap *lb.Snapshot) {
	var targets []health.Target
	initial := make(map[health.ID]health.Verdict)
	for _, app := range snap.Applications {
		c := app.Check
		check := health.Check{
			Type: string(c.Type), Path: c.Path, SendToken: c.SendToken, Interval: c.Interval.D(), Timeout: c.Timeout.D(),
			HealthyThreshold: c.HealthyThreshold, UnhealthyThreshold: c.UnhealthyThreshold,
			ExpectStatus: c.ExpectStatus, ExpectBody: c.ExpectBody,
		}
		for i := range app.Instances {
			in := &app.Instances[i]
			if in.State == lb.Disabled {
				continue
			}
			target := health.Target{
				App: app.Name, Instance: in.Name, URL: in.BaseURL().String(), Token: health.Token(in.Token.Reveal()), Check: check,
			}
			if t := in.TLS; t != nil {
				target.TLS = health.TLS{CA: t.CA, ServerName: t.ServerName, SkipVerify: t.InsecureSkipVerify}
			}
			targets = append(targets, target)
			if v := snap.HealthOf(app.Name, in.Name); v.Health != lb.HealthUnknown {
				initial[health.ID{App: app.Name, Instance: in.Name}] = health.Verdict{Health: health.Health(v.Health), Since: v.Since, Reason: v.Reason}
			}
		}
	}
	e.prober.SetTargets(targets, initial)
}

// report takes a transition from the prober. It only notes it: writing may
// have to wait for etcd, and probing must not.
func (e *elected) report(app, instance string, v health.Verdict) {
	id := health.ID{App: app, Instance: instance}
	e.p.healthChanges.count(v.Health)
	ev := e.log.Info()
	if v.Health == health.Unhealthy || v.Health == health.TokenRejected {
		ev = e.log.Warn()
	}
	ev.Str("app", app).Str("instance", instance).Str("health", string(v.Health)).Str("why", v.Reason).Msg("instance health changed")
	e.mu.Lock()
	e.pending[id] = lb.Verdict{Health: lb.Health(v.Health), Since: v.Since.UTC().Truncate(time.Millisecond), Reason: v.Reason, By: e.p.node.ID}
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// lead does the work of the elected one until ctx ends.
func (e *elected) lead(ctx context.Context, fence store.Fence) error {
	e.log.Info().Msg("elected: probing and keeping the counters")
	e.p.leading.Store(true)
	defer e.p.leading.Store(false)
	e.mu.Lock()
	clear(e.pending) // of an earlier time in office
	e.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	work := []func(context.Context) error{
		e.prober.Run,
		func(ctx context.Context) error { return e.hub.Lead(ctx, counterWriter{e.store, fence}) },
		func(ctx context.Context) error { return e.hub.LeaseLimits(ctx, fence.Term()) },
		func(ctx context.Context) error { return e.writeVerdicts(ctx, fence) },
	}
	ended := make(chan error, len(work)) // one each
	for _, f := range work {
		go func() { ended <- f(ctx) }() // ends with ctx
	}
	var err error
	for range work {
		if one := <-ended; one != nil && err == nil {
			err = one
		}
		cancel() // one that ends ends all
	}
	e.log.Info().AnErr("why", err).Msg("no longer elected")
	if errors.Is(err, lb.ErrConflict) {
		return nil // another leads; stand again
	}
	return err
}

// writeVerdicts stores transitions, in the order of their coming per instance,
// and tries again while etcd can't be reached. A conflict means that another
// was elected.
func (e *elected) writeVerdicts(ctx context.Context, fence store.Fence) error {
	wait := 100 * time.Millisecond
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.wake:
		case <-retry:
		}
		retry = nil
		for id, v := range e.take() {
			err := e.store.PutHealth(ctx, id.App, id.Instance, v, fence)
			switch {
			case err == nil, errors.Is(err, lb.ErrNotFound): // the instance was removed meanwhile
				wait = 100 * time.Millisecond
			case errors.Is(err, lb.ErrConflict):
				return err
			case ctx.Err() != nil:
				return nil
			default:
				e.log.Warn().Err(err).Str("app", id.App).Str("instance", id.Instance).Msg("verdict not stored, trying again")
				e.putBack(id, v)
				if retry == nil {
					retry = time.After(wait)
					wait = min(2*wait, 5*time.Second)
				}
			}
		}
	}
}

func (e *elected) take() map[health.ID]lb.Verdict {
	e.mu.Lock()
	defer e.mu.Unlock()
	taken := e.pending
	e.pending = make(map[health.ID]lb.Verdict)
	return taken
}

// putBack keeps a verdict for another try, unless a newer one has come.
func (e *elected) putBack(id health.ID, v lb.Verdict) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, newer := e.pending[id]; !newer {
		e.pending[id] = v
	}
}

// counterStore reads the store's counters for the hub.
type counterStore struct {
	store *store.Store
}

// LoadCounters implements cluster.CounterStore.
func (c counterStore) LoadCounters(ctx context.Context) ([]cluster.CounterChunk, error) {
	nodes, err := c.store.Counters(ctx)
	if err != nil {
		return nil, err
	}
	var out []cluster.CounterChunk
	for node, chunks := range nodes {
		for _, ch := range chunks {
			out = append(out, cluster.CounterChunk{Node: node, Index: ch.N, Value: ch.Data})
		}
	}
	return out, nil
}

// counterWriter writes them during one time in office.
type counterWriter struct {
	store *store.Store
	fence store.Fence
}

// PutCounters implements cluster.CounterWriter.
func (c counterWriter) PutCounters(ctx context.Context, chunk cluster.CounterChunk) error {
	return c.store.PutCounters(ctx, chunk.Node, map[int][]byte{chunk.Index: chunk.Value}, c.fence)
}
