package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	stdlog "log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/h1"
)

// Server accepts client connections for a Proxy.
type Server struct {
	p     *Proxy
	heads h1.Limits     // of all messages
	slots chan struct{} // one per open connection

	http  *http.Server // serves HTTP/2
	queue *connQueue   // to it

	ctx     context.Context // parent of HTTP/2's requests
	cancel  context.CancelCauseFunc
	closing atomic.Bool   // no further request on a connection that is idle
	conns   atomic.Uint32 // numbers connections, to spread them over counter shards
	now     atomic.Pointer[dateText]

	clients  [16]clientSet
	open     gauge // connections, and what else runs for them
	requests gauge // in HTTP/2's handler, and what requests left running

	mu        sync.Mutex // guards what follows
	started   bool
	listeners map[net.Listener]struct{}
}

// clientSet is a part of the open HTTP/1.1 connections.
type clientSet struct {
	mu  sync.Mutex
	all map[*clientConn]struct{}
}

// errShutdown is why requests are cut at the end of the grace.
var errShutdown = errors.New("the proxy is shutting down")

// NewServer returns a Server. It starts nothing.
func NewServer(p *Proxy) *Server {
	lim := p.opts.Limits
	s := &Server{
		p: p, slots: make(chan struct{}, lim.MaxConnections), listeners: make(map[net.Listener]struct{}),
		heads: h1.Limits{RequestLine: lim.RequestLine, Head: lim.Head, Fields: lim.Fields}.WithDefaults(),
		queue: newConnQueue(),
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.requests.zero.L = &s.requests.mu
	s.open.zero.L = &s.open.mu
	for i := range s.clients {
		s.clients[i].all = make(map[*clientConn]struct{})
	}
	s.http = &http.Server{
		Handler:           h2handler{s},
		ReadHeaderTimeout: lim.HeadTimeout,
		IdleTimeout:       lim.IdleTimeout,
		MaxHeaderBytes:    max(1, lim.Head-4096), // net/http adds 4096 of slop
		BaseContext:       func(net.Listener) context.Context { return s.ctx },
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, shardKey{}, s.conns.Add(1))
		},
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     stdlog.New(httpErrors{p.log}, "", 0),
	}
	return s
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
// client's doing (streams that were reset) and is dropped; a panic of ours is not.
type httpErrors struct{ log zerolog.Logger }

func (e httpErrors) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("panic")) {
		e.log.Error().Str("panic", string(b)).Msg("request handler panicked")
	}
	return len(b), nil
}

// Serve accepts on a listener in clear, until Close or Shutdown. It blocks.
func (s *Server) Serve(ln net.Listener) error {
	return s.accept(ln, func(conn net.Conn) {
		c := s.newClient(conn, conn, "http")
		c.slot = true
		if s.enter(c); !c.raw || !c.park(c) {
			go c.run(false, true) // counted by open
		}
	})
}

// ServeTLS is Serve for HTTPS, HTTP/2 included. certs gives the certificate of
// each handshake.
func (s *Server) ServeTLS(ln net.Listener, certs *Certificates) error {
	config := tlsConfig(certs)
	return s.accept(ln, func(conn net.Conn) {
		s.open.add(1)
		go func() { // counted by open
			defer s.open.add(-1)
			s.handshake(tls.Server(&slotConn{Conn: conn, s: s}, config), conn)
		}()
	})
}

// handshake finds out which HTTP a client speaks, and serves it.
func (s *Server) handshake(t *tls.Conn, tcp net.Conn) {
	ctx, cancel := context.WithTimeout(s.ctx, s.p.opts.Limits.HeadTimeout)
	err := t.HandshakeContext(ctx)
	cancel()
	switch {
	case err != nil:
		t.Close()
	case t.ConnectionState().NegotiatedProtocol == "h2":
		s.queue.push(t)
	default:
		c := s.newClient(t, tcp, "https")
		s.enter(c)
		c.run(false, true)
	}
}

// slotConn gives its slot back when it closes.
type slotConn struct {
	net.Conn
	s    *Server
	once sync.Once
}

func (c *slotConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.s.giveSlot)
	return err
}

func (s *Server) giveSlot() {
	s.p.connections.Add(-1)
	<-s.slots
}

// accept lets as many connections in as there are slots. One more per listener
// waits accepted, further ones in the kernel's backlog: they are not reset.
func (s *Server) accept(ln net.Listener, serve func(net.Conn)) error {
	if !s.start(ln) {
		ln.Close()
		return nil
	}
	defer s.stop(ln)
	for pause := time.Duration(0); ; {
		conn, err := ln.Accept()
		if err != nil {
			if s.closing.Load() || errors.Is(err, net.ErrClosed) {
				return nil
			}
			// Most likely no descriptor is left; others will close theirs.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.p.log.Warn().Err(err).Dur("pause", pause).Msg("connection not accepted")
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
			}
			continue
		}
		pause = 0
		// The slot comes after the connection: a listener without visitors must
		// not hold one that the visitors of another need.
		select {
		case s.slots <- struct{}{}: // also while the server closes: it was accepted
		default:
			select {
			case s.slots <- struct{}{}:
			case <-s.queue.closed:
				conn.Close()
				return nil
			}
		}
		s.p.connections.Add(1)
		serve(conn)
	}
}

// start begins to listen; false when the server is closed.
func (s *Server) start(ln net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	s.listeners[ln] = struct{}{}
	if !s.started {
		s.started = true
		s.open.add(1)
		go func() { // ends with queue
			defer s.open.add(-1)
			_ = s.http.Serve(s.queue)
		}()
		s.p.pollers.start()
	}
	return true
}

func (s *Server) stop(ln net.Listener) {
	ln.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, ln)
}

// enter and left keep the books of HTTP/1.1 connections.
func (s *Server) enter(c *clientConn) {
	s.open.add(1)
	s.p.pollers.watch(&c.wire, c.shard) // before others know of it
	c.expect(s.p.opts.Limits.HeadTimeout)
	set := &s.clients[c.shard%uint32(len(s.clients))]
	set.mu.Lock()
	set.all[c] = struct{}{}
	set.mu.Unlock()
}

func (s *Server) left(c *clientConn) {
	set := &s.clients[c.shard%uint32(len(s.clients))]
	set.mu.Lock()
	delete(set.all, c)
	set.mu.Unlock()
	if c.slot {
		s.giveSlot()
	}
	s.open.add(-1)
}

// each calls f for every HTTP/1.1 connection. f must not block.
func (s *Server) each(f func(*clientConn)) {
	for i := range s.clients {
		set := &s.clients[i]
		set.mu.Lock()
		for c := range set.all {
			f(c)
		}
		set.mu.Unlock()
	}
}

// close ends accepting.
func (s *Server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing.Store(true)
	for ln := range s.listeners {
		ln.Close()
	}
	s.queue.Close()
}

// Shutdown stops accepting and waits for open requests, streams and tunnels
// until ctx ends; then it cuts what is left and returns the number of
// connections that it cut. Nothing of a request runs any more when it returns.
func (s *Server) Shutdown(ctx context.Context) (cut int) {
	s.close()
	s.each(func(c *clientConn) { c.interrupt() }) // idle ones leave
	s.http.SetKeepAlivesEnabled(false)
	err := s.http.Shutdown(ctx)
	done := make(chan struct{})
	go func() { // ends with the last request
		s.open.wait()
		s.requests.wait()
		close(done)
	}()
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
	s.p.pollers.close()
	return cut
}

// Close cuts everything at once. Requests may still be on their way out.
func (s *Server) Close() {
	s.close()
	s.cancel(errShutdown)
	s.http.Close()
	s.each(func(c *clientConn) {
		c.lifeline.end(shutdown)
		c.cutOff()
	})
}

// dateText is the Date field of one second.
type dateText struct {
	unix int64
	text string
}

// date returns the time as the Date field has it (RFC 9110 section 5.6.7).
func (s *Server) date() string {
	now := time.Now()
	d := s.now.Load()
	if d == nil || d.unix != now.Unix() {
		d = &dateText{now.Unix(), now.UTC().Format(http.TimeFormat)}
		s.now.Store(d)
	}
	return d.text
}

// connQueue is a listener for connections that somebody else has accepted.
type connQueue struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newConnQueue() *connQueue {
	return &connQueue{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// push hands a connection over; it is closed when nobody takes it.
func (q *connQueue) push(c net.Conn) {
	select {
	case q.conns <- c:
	case <-q.closed:
		c.Close()
	}
}

func (q *connQueue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

func (q *connQueue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

func (q *connQueue) Addr() net.Addr { return queueAddr{} }

type queueAddr struct{}

func (queueAddr) Network() string { return "queue" }
func (queueAddr) String() string  { return "queue" }
