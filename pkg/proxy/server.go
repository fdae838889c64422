package proxy

import (
	"bytes"
	"context"
	"errors"
	stdlog "log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// Server accepts client connections for a Proxy.
type Server struct {
	p     *Proxy
	http  *http.Server
	slots chan struct{} // one per open connection

	ctx    context.Context // parent of all requests
	cancel context.CancelCauseFunc
	conns  atomic.Uint32 // numbers connections, to spread them over counter shards

	requests gauge // in the handler, and what they left running

	mu      sync.Mutex
	tunnels map[net.Conn]struct{} // upgraded connections, which net/http has forgotten; guarded by mu
}

// errShutdown is why requests are cut at the end of the grace.
var errShutdown = errors.New("the proxy is shutting down")

// NewServer returns a Server. It starts nothing.
func NewServer(p *Proxy) *Server {
	lim := p.opts.Limits
	s := &Server{p: p, slots: make(chan struct{}, lim.MaxConnections), tunnels: make(map[net.Conn]struct{})}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.requests.zero.L = &s.requests.mu
	s.http = &http.Server{
		Handler:           handler{p: p, s: s},
		ReadHeaderTimeout: lim.HeadTimeout,
		IdleTimeout:       lim.IdleTimeout,
		MaxHeaderBytes:    max(1, lim.Head-4096), // net/http adds 4096 of slop
		BaseContext:       func(net.Listener) context.Context { return s.ctx },
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, shardKey{}, s.conns.Add(1))
		},
		ConnState:                    connState,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     stdlog.New(httpErrors{p.log}, "", 0),
	}
	return s
}

// connState follows a connection from request to request.
func connState(c net.Conn, state http.ConnState) {
	if state == http.StateIdle {
		_ = c.SetWriteDeadline(time.Time{}) // of the answer before
	}
	if cc, ok := c.(*clientConn); ok {
		cc.enter(state)
	}
}

// gauge counts what goes on and can be waited for to be zero. Unlike a
// sync.WaitGroup it may grow from zero while somebody waits.
type gauge struct {
	mu   sync.Mutex
	zero sync.Cond // on mu
	n    int
}

func (g *gauge) add(d int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n += d; g.n == 0 {
		g.zero.Broadcast()
	}
}

func (g *gauge) wait() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.n > 0 {
		g.zero.Wait()
	}
}

type shardKey struct{}

// httpErrors takes what net/http would log. Nearly every line of it is a
// client's doing (TLS handshakes that failed, streams that were reset) and is
// dropped; a panic of ours is not.
type httpErrors struct{ log zerolog.Logger }

func (e httpErrors) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("panic")) {
		e.log.Error().Str("panic", string(b)).Msg("request handler panicked")
	}
	return len(b), nil
}

// Serve accepts on a listener in clear, until Close or Shutdown. It blocks.
func (s *Server) Serve(ln net.Listener) error {
	err := s.http.Serve(newGatedListener(ln, s, true))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// ServeTLS is Serve for HTTPS, HTTP/2 included. certs gives the certificate of
// each handshake.
func (s *Server) ServeTLS(ln net.Listener, certs *Certificates) error {
	err := s.http.Serve(newTLSListener(newGatedListener(ln, s, false), certs))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown stops accepting and waits for open requests, streams and tunnels
// until ctx ends; then it cuts what is left and returns the number of
// connections that it cut. No handler runs any more when it returns.
func (s *Server) Shutdown(ctx context.Context) (cut int) {
	s.http.SetKeepAlivesEnabled(false)
	err := s.http.Shutdown(ctx)
	done := make(chan struct{})
	go func() { s.requests.wait(); close(done) }() // ends with the last request
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		cut = int(s.p.connections.Load())
	}
	s.Close()
	<-done
	return cut
}

// Close cuts everything at once. Handlers may still be on their way out.
func (s *Server) Close() {
	s.cancel(errShutdown)
	s.http.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.tunnels {
		c.Close()
	}
}

// tunnel lets Close cut an upgraded connection until the returned function is called.
func (s *Server) tunnel(c net.Conn) (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tunnels[c] = struct{}{}
	if s.ctx.Err() != nil {
		c.Close()
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.tunnels, c)
	}
}

// gatedListener lets as many connections in as there are slots. One more per
// listener waits accepted, further ones in the kernel's backlog: they are not
// reset.
type gatedListener struct {
	net.Listener
	s       *Server
	rewrite bool          // give net/http's own errors our shape
	closed  chan struct{} // closed by Close
	once    sync.Once
}

func newGatedListener(ln net.Listener, s *Server, rewrite bool) *gatedListener {
	return &gatedListener{Listener: ln, s: s, rewrite: rewrite, closed: make(chan struct{})}
}

// Accept takes the slot after the connection: a listener without visitors must
// not hold one that the visitors of another need.
func (l *gatedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	select {
	case l.s.slots <- struct{}{}:
	case <-l.closed:
		c.Close()
		return nil, net.ErrClosed
	}
	l.s.p.connections.Add(1)
	cc := &clientConn{Conn: c, s: l.s, rewrite: l.rewrite}
	if l.rewrite {
		cc.inspect = newInspector(&l.s.p.opts.Limits)
	}
	return cc, nil
}

func (l *gatedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}
