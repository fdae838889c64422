package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/lb"
	"difylb/pkg/names"
)

// dialer makes TCP connections to one address, which may be a name.
type dialer struct {
	address string // host:port
	names   *names.Resolver
	name    string // in address; "": it is an IP address
	// known are the addresses that name was last seen to have; nil: none.
	// Used by FollowNames only.
	known []netip.Addr
}

// follow sets who is asked for the name; before the first dial.
func (d *dialer) follow(r *names.Resolver) {
	d.names = r
	host, _, err := net.SplitHostPort(d.address)
	if err != nil {
		return // told at each dial
	}
	if _, err := netip.ParseAddr(host); err != nil {
		d.name = host
	}
}

// dial makes a connection, within the time of ctx.
func (d *dialer) dial(ctx context.Context) (net.Conn, error) {
	return d.names.Dial(ctx, d.address, forbidAddresses)
}

// FollowNames gives instances whose names have left an address new pools, so
// that a move is followed also while the old address still answers, until ctx
// ends. Requests under way run to their end where they are. Run it once.
func (p *Proxy) FollowNames(ctx context.Context) error {
	tick := time.NewTicker(followMoved)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			p.followNames(n%int(followUsed/followMoved) == 0)
		}
	}
}

const (
	followMoved = time.Second      // how often names are compared with what they were
	followUsed  = 10 * time.Second // how often it is told which are in use
)

// followNames looks at all instances that have names; tell says whether to say
// which of them are in use, also where no connection is made for long.
func (p *Proxy) followNames(tell bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.view.Load()
	if old == nil {
		return
	}
	var fresh *view
	for slot, a := range old.apps {
		if a == nil {
			continue
		}
		var again *appView
		for i, in := range a.instances {
			d := &in.upstream.dialer
			if d.name == "" {
				continue
			}
			if tell && (in.gate.InFlight() > 0 || in.upstream.hasIdle()) {
				d.names.Use(d.name)
			}
			if !d.moved() {
				continue
			}
			if again == nil {
				again = &appView{app: a.app, state: a.state, instances: slices.Clone(a.instances), labels: a.labels}
			}
			again.instances[i] = p.elsewhere(a, i)
		}
		if again != nil {
			if fresh == nil {
				fresh = &view{table: old.table, apps: slices.Clone(old.apps)}
			}
			fresh.apps[slot] = again
		}
	}
	if fresh != nil {
		p.view.Store(fresh)
	}
}

// moved reports whether the name has left an address since it was last asked.
func (d *dialer) moved() bool {
	was, is := d.known, d.names.Known(d.name)
	if len(is) == 0 || len(was) > 0 && &was[0] == &is[0] {
		return false
	}
	d.known = is
	return slices.ContainsFunc(was, func(a netip.Addr) bool { return !slices.Contains(is, a) })
}

// elsewhere gives instance i of an application a pool of its own, as a changed
// declaration would. What live traffic met where it was says nothing about
// where it is.
func (p *Proxy) elsewhere(a *appView, i int) *instanceState {
	old := a.instances[i]
	fresh := &instanceState{stats: old.stats, gate: old.gate, slots: old.slots, decl: old.decl, upstream: p.newPool(&a.app.Instances[i], a.app.Decl.Name)}
	fresh.health.Store(old.health.Load())
	fresh.upstream.connect.Store(old.upstream.connect.Load())
	fresh.upstream.dialer.known = old.upstream.dialer.known
	a.state.instances[old.decl.Name] = fresh
	old.upstream.retire()
	return fresh
}

func (u *upstream) hasIdle() bool {
	for i := range u.idle {
		l := &u.idle[i]
		l.mu.Lock()
		n := len(l.conns)
		l.mu.Unlock()
		if n > 0 {
			return true
		}
	}
	return false
}

// forbidAddresses refuses, after resolution, what no instance may be at: a
// name must not lead where an address may not.
func forbidAddresses(_ context.Context, _, address string, _ syscall.RawConn) error {
	return lb.CheckDialAddress(address)
}

// trouble tells the operator why connections to an instance can't be made: who
// is asked only sees that they can't. Safe for concurrent use; nil tells nobody.
type trouble struct {
	log  zerolog.Logger // names the instance
	last atomic.Int64   // when it was told, by monotonic(); 0: never
	more atomic.Int64   // since then
}

// troubleEvery is how often one instance's troubles are told of.
const troubleEvery = 10 * time.Second

// tell takes an error of a connection attempt, and returns it. An attempt that
// was given up because its client went away says nothing about the instance.
func (t *trouble) tell(err error) error {
	if t == nil || errors.Is(err, context.Canceled) {
		return err
	}
	now, last := monotonic(), t.last.Load()
	if last != 0 && now-last < int64(troubleEvery) || !t.last.CompareAndSwap(last, max(now, 1)) {
		t.more.Add(1)
		return err
	}
	t.log.Warn().Err(err).Int64("more", t.more.Swap(0)).Msg("no connection to an instance")
	return err
}
