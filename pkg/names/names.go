// Package names connects to addresses that may be names: it asks the name
// servers that it is given, or the system's, asks again as time goes by, and
// tries the addresses of an answer in turn. Where nobody answers, those of the
// last answer stay good. It refuses to know what is at an address, and who may
// be connected to.
package names

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

const (
	// Valid is how long an answer is not asked for again, unless Options say
	// otherwise. DNS has a life for each answer, which the standard library
	// does not tell.
	Valid = 10 * time.Second
	// slowFor is how long an address that failed stands behind others.
	slowFor = 10 * time.Second
	// staleWait is how long who wants to connect waits for a new answer where
	// there is an old one.
	staleWait = 300 * time.Millisecond
	// failureLife is how long a name that has no address at all is not asked for again.
	failureLife = time.Second
	// questionTimeout bounds one question, all servers and repetitions together.
	questionTimeout = 15 * time.Second
	// usedFor is how long a name is followed after it was last used.
	usedFor = time.Minute
	// keptFor is how long the answer for a name that nobody uses is kept.
	keptFor = time.Hour
	// followEvery is how often Run looks at the names in use.
	followEvery = time.Second
)

// Options configure a Resolver.
type Options struct {
	// Servers are the name servers to ask, the first before the others; none
	// means what the system is set up for.
	Servers []netip.AddrPort
	// Valid is how long an answer is not asked for again; 0 means Valid.
	Valid time.Duration
	Log   zerolog.Logger
}

// Resolver remembers the addresses of names. Safe for concurrent use.
type Resolver struct {
	log    zerolog.Logger
	valid  time.Duration
	lookUp func(ctx context.Context, host string) ([]netip.Addr, error)

	mu    sync.Mutex // guards all below; not held while anybody is asked
	names map[string]*name
	slow  map[netip.AddrPort]time.Time // when it last refused or lost against another
}

// name is what is known of one. Guarded by Resolver.mu.
type name struct {
	addrs    []netip.Addr // of the last good answer; immutable
	due      time.Time    // when the answer is too old
	used     time.Time
	err      error         // of the last question; nil: it was answered
	question chan struct{} // closed at the end of the one under way; nil: there is none
}

// New returns a Resolver that knows nothing yet. It starts nothing.
func New(opts Options) *Resolver {
	return &Resolver{
		log: opts.Log.With().Str("component", "names").Logger(), valid: cmp.Or(opts.Valid, Valid), lookUp: lookUp(opts.Servers),
		names: make(map[string]*name), slow: make(map[netip.AddrPort]time.Time),
	}
}

// Run asks again for the names in use, so that who connects need not wait for
// that, until ctx ends. Without it names are asked for when they are needed.
func (r *Resolver) Run(ctx context.Context) error {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	var questions sync.WaitGroup
	defer questions.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, host := range r.outdated() {
			questions.Go(func() { r.ask(ctx, host) })
		}
	}
}

// outdated lists the names in use whose answers are too old, and forgets those
// that nobody has used for long.
func (r *Resolver) outdated() (hosts []string) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for host, n := range r.names {
		switch idle := now.Sub(n.used); {
		case n.question != nil:
		case idle > keptFor:
			delete(r.names, host)
		case idle < usedFor && !now.Before(n.due):
			hosts = append(hosts, host)
		}
	}
	for a, at := range r.slow {
		if now.Sub(at) > slowFor {
			delete(r.slow, a)
		}
	}
	return hosts
}

// Failing returns how many names in use had no answer when they were last
// asked for.
func (r *Resolver) Failing() int {
	now, failing := time.Now(), 0
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.names {
		if n.err != nil && now.Sub(n.used) < usedFor {
			failing++
		}
	}
	return failing
}

// Known returns the addresses of a name's last good answer without asking
// anybody, nil without one. The slice is to be read only; it stays the same
// until an answer differs from it.
func (r *Resolver) Known(host string) []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.names[host]; n != nil {
		return n.addrs
	}
	return nil
}

// Use says that a name is in use though nobody connects: Run asks for it on.
func (r *Resolver) Use(host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.names[host]; n != nil {
		n.used = time.Now()
	}
}

// addresses returns the addresses of a host to try, in order. It waits for an
// answer as long as ctx allows if there is none yet, and briefly if there is
// one that is too old.
func (r *Resolver) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	now := time.Now()
	r.mu.Lock()
	n := r.names[host]
	if n == nil {
		n = &name{}
		r.names[host] = n
	}
	n.used = now
	known, question := n.addrs, n.question
	switch {
	case now.Before(n.due): // also where it failed a moment ago
		err := n.err
		r.mu.Unlock()
		if len(known) == 0 {
			return nil, err
		}
		return known, nil
	case question == nil:
		question = make(chan struct{})
		n.question = question
		r.mu.Unlock()
		// Not under ctx: the answer is of use to others when this caller has left.
		go r.answer(context.Background(), host, n, question) // ends within questionTimeout
	case len(known) > 0: // somebody waits already
		r.mu.Unlock()
		return known, nil
	default:
		r.mu.Unlock()
	}
	var patience <-chan time.Time
	if len(known) > 0 {
		timer := time.NewTimer(staleWait)
		defer timer.Stop()
		patience = timer.C
	}
	select {
	case <-question:
	case <-patience:
		return known, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("look up %s: no answer: %w", host, ctx.Err())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(n.addrs) == 0 {
		return nil, n.err
	}
	return n.addrs, nil
}

// ask asks for a name unless that is under way.
func (r *Resolver) ask(ctx context.Context, host string) {
	r.mu.Lock()
	n := r.names[host]
	if n == nil || n.question != nil {
		r.mu.Unlock()
		return
	}
	question := make(chan struct{})
	n.question = question
	r.mu.Unlock()
	r.answer(ctx, host, n, question)
}

// answer asks and takes note.
func (r *Resolver) answer(ctx context.Context, host string, n *name, question chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	found, err := r.lookUp(ctx, host)
	for i := range found {
		found[i] = found[i].Unmap()
	}
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("look up %s: no address", host)
	}
	found = interleave(found)
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	defer close(question)
	before, failed := n.addrs, n.err
	n.question = nil
	if errors.Is(ctx.Err(), context.Canceled) { // nobody wants to know any more
		n.err, n.due = err, now
		return
	}
	n.err = err
	n.due = now.Add(r.valid - rand.N(r.valid/10)) // so that names do not stay in step
	switch {
	case err == nil && !sameAddresses(before, found):
		n.addrs = found
		if len(before) > 0 {
			r.log.Info().Str("name", host).Stringers("from", stringers(before)).Stringers("to", stringers(found)).Msg("a name has other addresses now")
		}
	case err == nil && failed != nil:
		r.log.Info().Str("name", host).Msg("a name is answered for again")
	case err != nil && len(before) == 0:
		n.due = now.Add(failureLife)
	case err != nil && failed == nil:
		r.log.Warn().Err(err).Str("name", host).Stringers("addresses", stringers(before)).Msg("no answer for a name; its last addresses stay in use")
	}
}

func stringers(addrs []netip.Addr) []fmt.Stringer {
	out := make([]fmt.Stringer, len(addrs))
	for i, a := range addrs {
		out[i] = a
	}
	return out
}

// sameAddresses compares sets: servers answer in changing order, and one that
// is kept keeps new connections where the others are.
func sameAddresses(a, b []netip.Addr) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(x netip.Addr) bool { return !slices.Contains(b, x) })
}

// Control sees the address of each connection to be made, and can forbid it;
// see net.Dialer.
type Control func(ctx context.Context, network, address string, c syscall.RawConn) error

// attemptDelay is how long one address is tried before the next is tried as
// well (RFC 8305 section 5).
const attemptDelay = 250 * time.Millisecond

// Dial connects by TCP to host:port. The addresses of a name are tried in turn
// (RFC 8305, "Happy Eyeballs"), those that failed last behind the others; the
// first connection that is made is returned, and no other is left behind. ctx
// bounds all of it.
func (r *Resolver) Dial(ctx context.Context, address string, control Control) (net.Conn, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("port %q of %s: %w", service, address, err)
	}
	found, err := r.addresses(ctx, host)
	if err != nil {
		return nil, err
	}
	nd := &net.Dialer{KeepAlive: 30 * time.Second, ControlContext: control}
	if len(found) == 1 {
		return nd.DialContext(ctx, "tcp", netip.AddrPortFrom(found[0], uint16(port)).String())
	}
	return r.race(ctx, nd, r.order(found, uint16(port)), attemptDelay)
}

// order puts addresses that failed a short time ago behind the others.
func (r *Resolver) order(found []netip.Addr, port uint16) []netip.AddrPort {
	now := time.Now()
	good, bad := make([]netip.AddrPort, 0, len(found)), []netip.AddrPort(nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range found {
		ap := netip.AddrPortFrom(a, port)
		if at, known := r.slow[ap]; known && now.Sub(at) < slowFor {
			bad = append(bad, ap)
		} else {
			good = append(good, ap)
		}
	}
	return append(good, bad...)
}

// race tries several addresses, a pause between the starts, and waits until
// every attempt has ended.
func (r *Resolver) race(ctx context.Context, nd *net.Dialer, addrs []netip.AddrPort, pause time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	type result struct {
		at   int
		conn net.Conn
		err  error
	}
	results := make(chan result, len(addrs)) // one each
	running, started := 0, 0
	start := func() {
		at := started
		started++
		running++
		go func() { // ends with ctx
			conn, err := nd.DialContext(ctx, "tcp", addrs[at].String())
			results <- result{at, conn, err}
		}()
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	defer func() { // those that have lost
		cancel()
		for range running {
			if l := <-results; l.conn != nil {
				l.conn.Close()
			}
		}
	}()
	start()
	var faults []error
	for {
		select {
		case <-timer.C:
		case got := <-results:
			running--
			if got.err == nil {
				r.note(addrs[:started], got.at)
				return got.conn, nil
			}
			faults = append(faults, got.err)
			if running == 0 && started == len(addrs) || ctx.Err() != nil {
				return nil, errors.Join(faults...)
			}
		}
		if started < len(addrs) {
			start()
			timer.Reset(pause)
		}
	}
}

// note remembers which addresses were tried before or beside the one that answered.
func (r *Resolver) note(tried []netip.AddrPort, winner int) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, a := range tried {
		if i < winner {
			r.slow[a] = now
		} else if i == winner {
			delete(r.slow, a)
		}
	}
}

// interleave orders addresses so that the families take turns, beginning with
// that of the first (RFC 8305 section 4).
func interleave(found []netip.Addr) []netip.Addr {
	var first, second []netip.Addr
	for _, a := range found {
		if a.Is6() == found[0].Is6() {
			first = append(first, a)
		} else {
			second = append(second, a)
		}
	}
	out := make([]netip.Addr, 0, len(found))
	for i := range max(len(first), len(second)) {
		for _, family := range [][]netip.Addr{first, second} {
			if i < len(family) {
				out = append(out, family[i])
			}
		}
	}
	return out
}

// ParseServer reads the address of a name server: an IP address, and a port
// that is 53 unless it is given.
func ParseServer(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		return ap, fmt.Errorf("%q is not the address of a name server such as 10.0.0.2:53 or [fd00::2]:53", s)
	}
	return ap, nil
}
