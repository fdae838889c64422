package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/route"
)

// upstream is the pool of connections to one address of one instance.
type upstream struct {
	address, host string
	tls           bool
	transport     *http.Transport
	connect       atomic.Int64 // timeout of a connection attempt; set from the newest declaration
	idleLife      atomic.Int64 // how long the instance keeps idle connections, as far as seen; 0 unknown
}

func newUpstream(in *route.Instance) *upstream {
	u := &upstream{address: in.Address, host: in.Host, tls: in.TLS}
	u.connect.Store(int64(5 * time.Second))
	u.transport = &http.Transport{
		DialContext:            u.dial,
		DisableCompression:     true, // bodies pass as they are
		MaxIdleConnsPerHost:    1024,
		IdleConnTimeout:        60 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1 only
	}
	return u
}

// serves reports whether the pool's connections lead where the declaration says.
func (u *upstream) serves(in *route.Instance) bool {
	return u.address == in.Address && u.tls == in.TLS && u.host == in.Host
}

// retire closes what is idle. What is in use is closed when it is done,
// because nobody will look for it here any more.
func (u *upstream) retire() {
	u.transport.CloseIdleConnections()
}

func (u *upstream) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	d := net.Dialer{Timeout: time.Duration(u.connect.Load()), KeepAlive: 30 * time.Second, ControlContext: forbidAddresses}
	c, err := d.DialContext(ctx, network, u.address)
	if err != nil {
		return nil, err
	}
	return &upstreamConn{Conn: c, u: u}, nil
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

// upstreamConn is a connection to an instance that is looked at before it is
// used again. When it was idle the instance may have closed it, and a request
// that is written then is lost, with no way to know that it was not begun. So
// the first write of a request asks the kernel first. If the end is already
// there, or is due by what was learnt of this instance, it fails having
// written nothing, and http.Transport takes another connection.
type upstreamConn struct {
	net.Conn
	u     *upstream
	uses  atomic.Uint64 // requests begun on it
	fresh atomic.Bool   // a request was begun on a used connection, and nothing of it written yet

	mu        sync.Mutex // guards what follows
	idleUse   uint64     // the request since whose end it is idle; not idle unless == uses
	idleSince time.Time
}

var errIdleClosed = errors.New("idle connection is closed or about to be")

// begin is told that a request is going to be written, and whether that is
// after the connection was idle for so long. It returns the request's number.
// A nil connection has none.
func (c *upstreamConn) begin(reused bool, idle time.Duration) (use uint64) {
	if c == nil {
		return 0
	}
	use = c.uses.Add(1)
	if reused {
		c.fresh.Store(true)
		if life := time.Duration(c.u.idleLife.Load()); life > 0 && idle > life-life/4 {
			c.Conn.Close()
		}
	}
	return use
}

// end is told that the connection is idle since the request of that number. It
// may be told late, when the next one has begun.
func (c *upstreamConn) end(use uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idleUse, c.idleSince = use, time.Now()
}

// unwritten reports whether the connection was in use before and nothing of
// the last request begun on it was written.
func (c *upstreamConn) unwritten() bool { return c != nil && c.fresh.Load() }

func (c *upstreamConn) Write(p []byte) (int, error) {
	if !c.fresh.Load() {
		return c.Conn.Write(p)
	}
	if closedByPeer(c.Conn) {
		c.Conn.Close()
		return 0, errIdleClosed
	}
	n, err := c.Conn.Write(p)
	if n > 0 {
		c.fresh.Store(false)
	}
	return n, err
}

func (c *upstreamConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == io.EOF || errors.Is(err, syscall.ECONNRESET) {
		c.mu.Lock()
		if c.idleUse != 0 && c.idleUse == c.uses.Load() {
			c.u.learnIdle(time.Since(c.idleSince))
		}
		c.mu.Unlock()
	}
	return n, err
}

// upstreamConnOf finds it behind TLS.
func upstreamConnOf(c net.Conn) *upstreamConn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	uc, _ := c.(*upstreamConn)
	return uc
}

// forbidAddresses refuses, after resolution, what no instance may be at: a
// name must not lead where an address may not.
func forbidAddresses(_ context.Context, _, address string, _ syscall.RawConn) error {
	return lb.CheckDialAddress(address)
}

var (
	errUpstreamTimeout = errors.New("no byte within timeouts.read")
	errClientGone      = errors.New("client went away")
)

// failure classifies why an attempt brought no answer. connected tells whether
// a connection had been made.
func failure(ctx context.Context, err error, connected bool) lb.Reason {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errUpstreamTimeout) && connected:
		return lb.ReasonUpstreamTimeout
	case errors.Is(cause, errUpstreamTimeout):
		return lb.ReasonConnectFailed
	case errors.Is(cause, errShutdown):
		return lb.ReasonShutdown
	case ctx.Err() != nil:
		return lb.ReasonClientGone
	case !connected:
		return lb.ReasonConnectFailed
	}
	for _, nonsense := range nonsenses {
		if strings.Contains(err.Error(), nonsense) {
			return lb.ReasonUpstreamInvalid
		}
	}
	return lb.ReasonUpstreamBroke
}

// nonsenses are the words by which net/http complains of an answer. It has no
// types for them.
var nonsenses = []string{"malformed", "bad Content-Length", "invalid Content-Length", "multiple Content-Length", "unsupported transfer encoding",
	"too many transfer encodings", "response headers exceeded", "chunk", "too many 1xx"}

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
