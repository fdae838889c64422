package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
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
	return d.DialContext(ctx, network, u.address)
}

// forbidAddresses refuses, after resolution, what no instance may be at: a
// name must not lead where an address may not.
func forbidAddresses(_ context.Context, _, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if why := lb.ForbiddenAddress(ap.Addr().WithZone("")); why != "" {
		return fmt.Errorf("%s is %s", ap.Addr(), why)
	}
	return nil
}

var (
	errUpstreamTimeout = errors.New("no byte within timeouts.read")
	errClientGone      = errors.New("client went away")
)

// failure classifies why an attempt brought no answer. connected tells whether
// a connection had been made.
func failure(ctx context.Context, err error, connected bool) lb.Reason {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errUpstreamTimeout):
		return lb.ReasonUpstreamTimeout
	case errors.Is(cause, errShutdown):
		return lb.ReasonShutdown
	case ctx.Err() != nil:
		return lb.ReasonClientGone
	case !connected:
		return lb.ReasonConnectFailed
	case strings.Contains(err.Error(), "malformed") || strings.Contains(err.Error(), "bad Content-Length") ||
		strings.Contains(err.Error(), "unsupported transfer encoding") || strings.Contains(err.Error(), "response headers exceeded"):
		return lb.ReasonUpstreamInvalid
	}
	return lb.ReasonUpstreamBroke
}

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
