package proxy

import (
	"bytes"
	"context"
	"errors"
	stdlog "log"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"difylb/pkg/lb"
)

// Server accepts client connections for a Proxy.
type Server struct {
	p     *Proxy
	http  *http.Server
	slots chan struct{} // one per open connection

	ctx    context.Context // parent of all requests
	cancel context.CancelCauseFunc
	conns  atomic.Uint32 // numbers connections, to spread them over counter shards

	mu      sync.Mutex
	tunnels map[net.Conn]struct{} // upgraded connections, which net/http has forgotten
	wg      sync.WaitGroup        // tunnels
}

// errShutdown is why requests are cut at the end of the grace.
var errShutdown = errors.New("the proxy is shutting down")

// NewServer returns a Server. It starts nothing.
func NewServer(p *Proxy) *Server {
	s := &Server{p: p, slots: make(chan struct{}, p.opts.Limits.MaxConnections), tunnels: make(map[net.Conn]struct{})}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	lim := p.opts.Limits
	s.http = &http.Server{
		Handler:           handler{p: p, s: s},
		ReadHeaderTimeout: lim.HeadTimeout,
		IdleTimeout:       lim.IdleTimeout,
		MaxHeaderBytes:    lim.Head - 4096, // net/http adds 4096 of slop
		BaseContext:       func(net.Listener) context.Context { return s.ctx },
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, shardKey{}, s.conns.Add(1))
		},
		ErrorLog: stdlog.New(ignoreHTTPErrors{}, "", 0),
	}
	return s
}

type shardKey struct{}

// ignoreHTTPErrors drops what net/http would log: every line of it is a
// client's doing (TLS handshakes that failed, streams that were reset) or an
// abort of ours, which the account names already.
type ignoreHTTPErrors struct{}

func (ignoreHTTPErrors) Write(b []byte) (int, error) { return len(b), nil }

// Serve accepts on a listener in clear, until Close or Shutdown. It blocks.
func (s *Server) Serve(ln net.Listener) error {
	err := s.http.Serve(&gatedListener{Listener: ln, s: s, rewrite: true})
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// ServeTLS is Serve for HTTPS, HTTP/2 included. certs gives the certificate of
// each handshake.
func (s *Server) ServeTLS(ln net.Listener, certs *Certificates) error {
	err := s.http.Serve(newTLSListener(&gatedListener{Listener: ln, s: s}, certs))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown stops accepting and waits for open requests, streams and tunnels
// until ctx ends; then it cuts what is left and returns the number of
// connections that it cut.
func (s *Server) Shutdown(ctx context.Context) int {
	s.http.SetKeepAlivesEnabled(false)
	err := s.http.Shutdown(ctx)
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }() // ends with the last tunnel
	select {
	case <-done:
		if err == nil {
			return 0
		}
	case <-ctx.Done():
	}
	cut := int(s.p.connections.Load())
	s.Close()
	<-done
	return cut
}

// Close cuts everything at once.
func (s *Server) Close() {
	s.cancel(errShutdown)
	s.http.Close()
	s.mu.Lock()
	for c := range s.tunnels {
		c.Close()
	}
	s.mu.Unlock()
}

// tunnel registers an upgraded connection until the returned function is called.
func (s *Server) tunnel(c net.Conn) (end func()) {
	s.wg.Add(1)
	s.mu.Lock()
	s.tunnels[c] = struct{}{}
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		delete(s.tunnels, c)
		s.mu.Unlock()
		s.wg.Done()
	}
}

// gatedListener lets as many connections in as there are slots. Further ones
// wait in the kernel's backlog: they are not reset.
type gatedListener struct {
	net.Listener
	s       *Server
	rewrite bool // give net/http's own errors our shape
	closed  atomic.Bool
}

func (l *gatedListener) Accept() (net.Conn, error) {
	select {
	case l.s.slots <- struct{}{}:
	case <-l.s.ctx.Done():
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.s.slots
		return nil, err
	}
	l.s.p.connections.Add(1)
	return &clientConn{Conn: c, s: l.s, rewrite: l.rewrite}, nil
}

// clientConn gives its slot back when it closes.
type clientConn struct {
	net.Conn
	s       *Server
	rewrite bool
	once    sync.Once
}

func (c *clientConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.s.p.connections.Add(-1)
		<-c.s.slots
	})
	return err
}

// ownError begins every answer that net/http's server makes without asking the
// handler: for heads that it could not read.
var ownError = []byte("\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")

// Write passes everything on, but for those answers, which get the shape that
// clients of Dify understand. Nothing else begins that way: an answer of the
// handler carries a Date.
func (c *clientConn) Write(b []byte) (int, error) {
	if !c.rewrite || len(b) > 1024 || !bytes.HasPrefix(b, []byte("HTTP/1.1 ")) {
		return c.Conn.Write(b)
	}
	line := bytes.IndexByte(b, '\r')
	if line < 12 || !bytes.HasPrefix(b[line:], ownError) {
		return c.Conn.Write(b)
	}
	status, _ := strconv.Atoi(string(b[9:12]))
	ref := refusalOfStatus(status)
	c.s.p.opts.Registry.Unrouted(0, ref.reason)
	id := newRequestID()
	body := errorBody(ref.reason, ref.message, id)
	head := "HTTP/1.1 " + strconv.Itoa(ref.reason.Status()) + " " + http.StatusText(ref.reason.Status()) +
		"\r\nContent-Type: application/json\r\nX-Request-Id: " + id +
		"\r\nDate: " + time.Now().UTC().Format(http.TimeFormat) +
		"\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\nConnection: close\r\n\r\n"
	if _, err := c.Conn.Write(append([]byte(head), body...)); err != nil {
		return 0, err
	}
	return len(b), nil
}

func refusalOfStatus(status int) *refusal {
	switch status {
	case http.StatusRequestHeaderFieldsTooLarge:
		return refuse(lb.ReasonHeaderTooLarge, "the request head is too large")
	case http.StatusNotImplemented:
		return refuse(lb.ReasonNotImplemented, "the transfer coding is not supported; only chunked is")
	case http.StatusHTTPVersionNotSupported:
		return refuse(lb.ReasonVersionNotSupported, "the HTTP version is not supported; use HTTP/1.1")
	case http.StatusExpectationFailed:
		return refuse(lb.ReasonExpectationFailed, "only Expect: 100-continue is supported")
	}
	return refuse(lb.ReasonBadRequest, "the request is malformed")
}
