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
	// known is the first of the addresses that name was last seen to have; nil:
	// none. Used by FollowNames only.
	known *netip.Addr
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

// FollowNames closes idle connections to addresses that an instance's name has
// left, so that a move is followed also while the old address still answers,
// until ctx ends. Requests under way are not touched; their connections follow
// within followUsed after they have become idle. Run it once.
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
	followUsed  = 10 * time.Second // how often every idle connection to a name is
)

func (p *Proxy) followNames(all bool) {
	v := p.view.Load()
	if v == nil {
		return
	}
	for _, a := range v.apps {
		if a == nil {
			continue
		}
		for _, in := range a.instances {
			if in.upstream.dialer.name != "" {
				in.upstream.followName(all)
			}
		}
	}
}

// followName closes idle connections to where the name does not lead any more,
// if it has moved or all are to be looked at.
func (u *upstream) followName(all bool) {
	d := &u.dialer
	addrs := d.names.Known(d.name)
	if len(addrs) == 0 {
		return
	}
	moved := d.known != nil && d.known != &addrs[0]
	d.known = &addrs[0]
	if !moved && !all {
		return
	}
	var left []*instanceConn
	used := false
	for i := range u.idle {
		l := &u.idle[i]
		l.mu.Lock()
		for _, c := range l.conns {
			used = true
			if a, ok := c.tcp.RemoteAddr().(*net.TCPAddr); ok && !slices.Contains(addrs, a.AddrPort().Addr().Unmap()) {
				left = append(left, c)
			}
		}
		l.mu.Unlock()
	}
	if used { // also where no connection is made for long
		d.names.Use(d.name)
	}
	for _, c := range left {
		c.evict()
	}
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
