package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/route"
)

// upstream is the pool of connections to one address of one instance.
type upstream struct {
	address, host string
	tls           *tls.Config // nil in clear
	dialer        dialer
	pollers       *pollers
	pool          *poolCounts // of the proxy
	trouble       *trouble    // tells of connections that could not be made

	connect  atomic.Int64 // timeout of a connection attempt; set from the newest declaration
	idleLife atomic.Int64 // how long the instance keeps idle connections, as far as seen; 0 unknown
	retired  atomic.Bool  // nobody will look for a connection here any more

	idle []idleList // one per poller
}

// Idle connections are kept in as many lists as there are pollers, so that
// clients on different cores do not meet at one lock, and no more, so that the
// same few connections are used again and again while the caches hold them.
const (
	maxIdle      = 2048             // of all lists together, about
	minIdle      = 64               // per list
	idleLifetime = 60 * time.Second // for as long as an instance is not known to close them earlier
)

type idleList struct {
	mu    sync.Mutex // held for a few instructions only
	conns []*instanceConn
	_     [32]byte // a cache line each
}

// instanceConn is a connection to an instance. It is owned by the attempt that
// uses it, by its list while it is idle.
type instanceConn struct {
	wire
	up    *upstream
	home  atomic.Pointer[idleList] // where it is, or was last, idle
	idle  bool                     // in home; guarded by home.mu
	since atomic.Int64             // idle since, by monotonic()
	used  bool                     // has answered before
}

func newUpstream(in *route.Instance, pool *poolCounts, h *pollers) *upstream {
	u := &upstream{pool: pool, address: in.Address, host: in.Host, tls: in.TLS, pollers: h, dialer: dialer{address: in.Address}, idle: make([]idleList, h.size())}
	u.connect.Store(int64(5 * time.Second))
	return u
}

// serves reports whether the pool's connections lead where the declaration says.
func (u *upstream) serves(in *route.Instance) bool {
	return u.address == in.Address && u.tls == in.TLS && u.host == in.Host
}

// take returns an idle connection that can be expected to work, the one used
// last before others; nil without one. riding: the caller is a poller.
func (u *upstream) take(shard uint32, now int64, riding bool) *instanceConn {
	for i := range u.idle {
		at := u.list(shard + uint32(i))
		for {
			c := u.idle[at].pop()
			if c == nil {
				break
			}
			// An instance may have closed it meanwhile, or be about to: what is
			// written then is lost, with no way to know that it was not begun.
			idle := now - c.since.Load()
			if (riding && c.undisturbed(idle) || c.silent()) && !u.stale(idle) {
				u.pool.shards[at%poolShards].reused.Add(1)
				return c
			}
			u.ended(c)
			u.pool.stale.Add(1)
			c.close()
		}
	}
	return nil
}

// list returns the index of the shard's idle list.
func (u *upstream) list(shard uint32) uint32 { return shard % uint32(len(u.idle)) }

// freshFor is how long a connection is taken to be as a poller knows it. No
// instance closes one for being idle so soon.
const freshFor = int64(100 * time.Millisecond)

// undisturbed reports whether nothing has happened to a connection since it
// became idle, a moment ago, as far as its poller was told: whoever rides was
// told of all that had come before (poller.note). What came since then is no
// older than what is still on its way here. It spares a system call; false is
// no verdict.
func (c *instanceConn) undisturbed(idle int64) bool {
	return c.raw && idle < freshFor && !c.hup.Load() && !c.came.Load()
}

// ended takes note of an idle connection that the instance has closed.
func (u *upstream) ended(c *instanceConn) {
	if c.hup.Load() {
		u.learnIdle(time.Duration(monotonic() - c.since.Load()))
	}
}

func (l *idleList) pop() *instanceConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.conns)
	if n == 0 {
		return nil
	}
	c := l.conns[n-1]
	l.conns[n-1] = nil
	l.conns = l.conns[:n-1]
	c.idle = false
	return c
}

// stale reports whether a connection that was idle for so long is about to be
// closed, by what was learnt of this instance.
func (u *upstream) stale(idle int64) bool {
	life := u.idleLife.Load()
	return life > 0 && idle > life-life/4
}

// put makes a connection idle whose last answer is complete.
func (u *upstream) put(c *instanceConn, shard uint32, now int64) {
	if c.hup.Load() || u.retired.Load() {
		c.close()
		return
	}
	l := &u.idle[u.list(shard)]
	c.used = true
	c.since.Store(now)
	if c.home.Load() != l { // storing costs much more than looking
		c.home.Store(l)
	}
	c.expectAt(now + int64(idleLifetime))
	l.mu.Lock()
	if len(l.conns) >= max(minIdle, maxIdle/len(u.idle)) {
		l.mu.Unlock()
		c.close()
		return
	}
	c.idle = true
	l.conns = append(l.conns, c)
	l.mu.Unlock()
	if u.retired.Load() || c.hup.Load() { // which may not have found it
		c.evict()
	}
}

// evict closes the connection if it is idle, and reports whether it was.
func (c *instanceConn) evict() bool {
	l := c.home.Load()
	if l == nil {
		return false
	}
	l.mu.Lock()
	mine := c.idle
	if mine {
		c.idle = false
		i := slices.Index(l.conns, c)
		l.conns = slices.Delete(l.conns, i, i+1)
	}
	l.mu.Unlock()
	if mine {
		c.close()
	}
	return mine
}

// hungUp is told that the instance has ended its side.
func (c *instanceConn) hungUp(bool) { c.disturbed() }

// alarm is told that the connection was idle, or an instance silent, for too long.
func (c *instanceConn) alarm() { c.disturbed() }

// retire closes what is idle. What is in use is closed when it is done.
func (u *upstream) retire() {
	u.retired.Store(true)
	for i := range u.idle {
		for {
			c := u.idle[i].pop()
			if c == nil {
				break
			}
			c.close()
		}
	}
}

// dial makes a new connection. shard says for whom, as far as that is known.
func (u *upstream) dial(ctx context.Context, shard uint32) (*instanceConn, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(u.connect.Load()))
	defer cancel()
	tcp, err := u.dialer.dial(ctx)
	if err != nil {
		u.pool.failed.Add(1)
		return nil, u.trouble.tell(err)
	}
	c := &instanceConn{up: u}
	var conn = tcp
	if u.tls != nil {
		t := tls.Client(tcp, u.tls)
		if err := t.HandshakeContext(ctx); err != nil {
			tcp.Close()
			u.pool.failed.Add(1)
			return nil, u.trouble.tell(err)
		}
		conn = t
	}
	u.pool.dialled.Add(1)
	c.init(conn, tcp, c)
	u.pollers.watch(&c.wire, shard)
	return c, nil
}

// close closes the connection. Its owner only may call it, once.
func (c *instanceConn) close() {
	c.up.pool.closed.Add(1)
	c.wire.close()
}

// learnIdle takes note of a connection that the instance has closed after it
// was idle for so long. A shorter life is believed at once, a longer one by
// and by: a restart closes young and old connections alike.
func (u *upstream) learnIdle(life time.Duration) {
	if known := time.Duration(u.idleLife.Load()); known != 0 && life > known {
		life = known + (life-known)/4
	}
	u.idleLife.Store(int64(max(life, 1)))
}

var (
	errUpstreamTimeout = errors.New("no byte within timeouts.read")
	errClientGone      = errors.New("client went away")
)

// failureMessage is what the client reads.
func failureMessage(reason lb.Reason) string {
	switch reason {
	case lb.ReasonConnectFailed:
		return "the instance could not be reached"
	case lb.ReasonUpstreamTimeout:
		return "the instance did not answer in time"
	case lb.ReasonUpstreamInvalid:
		return "the instance sent an answer that is not HTTP"
	case lb.ReasonTokenRejected:
		return "the instance does not accept the token it is configured with"
	case lb.ReasonShutdown:
		return "the proxy is shutting down"
	}
	return "the instance broke the connection off"
}

// disturbed closes an idle connection, and wakes the attempt that uses another.
func (c *instanceConn) disturbed() {
	hup, idle := c.hup.Load(), monotonic()-c.since.Load()
	if !c.evict() {
		c.interrupt()
	} else if hup {
		c.up.learnIdle(time.Duration(idle))
	}
}
