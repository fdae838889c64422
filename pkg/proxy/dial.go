package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/lb"
)

// dialer makes TCP connections to one address, which may be a name. Names are
// asked for again as time goes by; where nobody answers, the addresses of the
// last answer stay good.
type dialer struct {
	address string // host:port

	mu     sync.Mutex // guards what follows; not held while a name is asked for
	known  []netip.AddrPort
	asked  time.Time
	asking bool
}

const (
	nameLifetime = 10 * time.Second       // an answer is not asked for again
	nameTimeout  = 3 * time.Second        // of a question, where an earlier answer is at hand
	attemptDelay = 250 * time.Millisecond // RFC 8305 section 5: before the next address is tried as well
)

// dial tries the addresses in turn (RFC 8305, "Happy Eyeballs") and returns
// the first connection that is made.
func (d *dialer) dial(ctx context.Context) (net.Conn, error) {
	addrs, err := d.resolve(ctx)
	if err != nil {
		return nil, err
	}
	nd := &net.Dialer{KeepAlive: 30 * time.Second, ControlContext: forbidAddresses}
	if len(addrs) == 1 {
		return nd.DialContext(ctx, "tcp", addrs[0].String())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the attempts that have lost
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	attempt := func(a netip.AddrPort) {
		conn, err := nd.DialContext(ctx, "tcp", a.String())
		select {
		case results <- result{conn, err}:
		case <-ctx.Done():
			if conn != nil {
				conn.Close()
			}
		}
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var faults []error
	for started := 0; ; {
		select {
		case <-timer.C:
			if started < len(addrs) {
				go attempt(addrs[started]) // ends with ctx
				started++
				timer.Reset(attemptDelay)
			}
		case r := <-results:
			if r.err == nil {
				return r.conn, nil
			}
			if faults = append(faults, r.err); len(faults) == len(addrs) {
				return nil, errors.Join(faults...)
			}
			timer.Reset(0)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// resolve returns the addresses to try, in order.
func (d *dialer) resolve(ctx context.Context) ([]netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(d.address)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a, uint16(n))}, nil
	}
	d.mu.Lock()
	known := d.known
	if len(known) > 0 && (d.asking || time.Since(d.asked) < nameLifetime) {
		d.mu.Unlock()
		return known, nil
	}
	d.asking = true
	d.mu.Unlock()
	if len(known) > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, nameTimeout)
		defer cancel()
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asking = false
	if err != nil || len(found) == 0 {
		if len(known) > 0 {
			d.asked = time.Now()
			return known, nil
		}
		if err == nil {
			err = fmt.Errorf("look up %s: no address", host)
		}
		return nil, err
	}
	d.known, d.asked = interleave(found, uint16(n)), time.Now()
	return d.known, nil
}

// interleave orders addresses so that the families take turns, beginning with
// that of the first (RFC 8305 section 4).
func interleave(found []netip.Addr, port uint16) []netip.AddrPort {
	var first, second []netip.Addr
	for _, a := range found {
		if a = a.Unmap(); a.Is6() == found[0].Unmap().Is6() {
			first = append(first, a)
		} else {
			second = append(second, a)
		}
	}
	out := make([]netip.AddrPort, 0, len(found))
	for i := range max(len(first), len(second)) {
		for _, family := range [][]netip.Addr{first, second} {
			if i < len(family) {
				out = append(out, netip.AddrPortFrom(family[i], port))
			}
		}
	}
	return out
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
