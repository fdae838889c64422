package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"difylb/pkg/lb"
)

// clientConn is a client's connection. It gives its slot back when it closes,
// and answers in our shape where net/http's server answers, or only hangs up,
// without asking the handler. Behind TLS it can do the former only.
type clientConn struct {
	net.Conn
	s       *Server
	rewrite bool
	once    sync.Once
	inspect *inspector // nil behind TLS
	refused bool       // the client was told; owned by the reader

	// What is known of the head that is being read.
	handling atomic.Bool  // there is none: a request is being handled
	headSize atomic.Int64 // bytes since the last request
	lineSize atomic.Int64 // bytes since the last end of a line
}

func (c *clientConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.s.p.connections.Add(-1)
		<-c.s.slots
	})
	return err
}

// closeLinger is how long a client may go on sending after an answer that ends
// its connection. Closing earlier would answer its bytes with a reset, and the
// reset would overtake the answer.
const closeLinger = 2 * time.Second

// CloseWrite tells the client that nothing more comes, and waits until it has
// hung up or its time is over. net/http calls it before it closes a connection
// whose client may still be sending.
func (c *clientConn) CloseWrite() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return nil
	}
	if err := half.CloseWrite(); err != nil {
		return err
	}
	_ = c.Conn.SetReadDeadline(time.Now().Add(closeLinger))
	buf := getBuffer()
	defer putBuffer(buf)
	for {
		if _, err := c.Conn.Read(*buf); err != nil {
			return nil
		}
	}
}

// enter is told when a request has been read and when it is over.
func (c *clientConn) enter(state http.ConnState) {
	c.handling.Store(state == http.StateActive)
	if state == http.StateIdle {
		c.headSize.Store(0)
		c.lineSize.Store(0)
		if c.inspect != nil {
			c.inspect.settled()
		}
	}
}

// read reads what may be passed on. What is refused is never seen by net/http:
// the client is told once the requests before it are answered.
func (c *clientConn) read(p []byte) (int, error) {
	in := c.inspect
	if in == nil {
		return c.Conn.Read(p)
	}
	for in.fault != nil {
		if !c.handling.Load() {
			return 0, c.tell(in.fault)
		}
		if in.midBody() {
			return 0, errRefused // the handler answers for the body that it reads
		}
		if _, err := c.Conn.Read(p); err != nil { // net/http only wants to know whether the client leaves
			return 0, err
		}
	}
	n, err := c.Conn.Read(p)
	if passed := in.pass(p[:n]); passed < n {
		if passed > 0 {
			return passed, nil
		}
		if !c.handling.Load() {
			return 0, c.tell(in.fault)
		}
		if in.midBody() {
			return 0, errRefused
		}
		return c.read(p)
	}
	return n, err
}

// tell answers a refusal once.
func (c *clientConn) tell(ref *refusal) error {
	if !c.refused {
		c.refused = true
		_ = c.Conn.SetWriteDeadline(time.Now().Add(time.Second))
		_ = c.answer(ref)
		_ = c.CloseWrite()
	}
	return errRefused
}

// Read watches heads come in. One that does not come to its end in time is
// told so here: net/http would only hang up.
func (c *clientConn) Read(p []byte) (int, error) {
	n, err := c.read(p)
	if !c.rewrite || c.handling.Load() {
		return n, err
	}
	if n > 0 {
		c.headSize.Add(int64(n))
		if i := bytes.LastIndexByte(p[:n], '\n'); i >= 0 {
			c.lineSize.Store(int64(n - i - 1))
		} else {
			c.lineSize.Add(int64(n))
		}
	}
	if err != nil && errors.Is(err, os.ErrDeadlineExceeded) && c.headSize.Load() > 0 {
		_ = c.Conn.SetWriteDeadline(time.Now().Add(time.Second))
		c.answer(refuse(lb.ReasonRequestTimeout, "the request head came too slowly"))
	}
	return n, err
}

// ownError begins every answer that net/http's server makes without asking the
// handler: for heads that it could not read.
var ownError = []byte("\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")

// Write passes everything on, but for those answers, which get the shape that
// clients of Dify understand. Nothing else looks like them: what the handler
// answers carries an X-Request-Id.
func (c *clientConn) Write(b []byte) (int, error) {
	if c.refused {
		return len(b), nil // net/http's opinion of what it did not see
	}
	if !c.rewrite || len(b) > 1024 || !bytes.HasPrefix(b, []byte("HTTP/1.")) {
		return c.Conn.Write(b)
	}
	line := bytes.IndexByte(b, '\r')
	if line < 12 {
		return c.Conn.Write(b)
	}
	status, _ := strconv.Atoi(string(b[9:12]))
	unasked := status == http.StatusExpectationFailed && !bytes.Contains(b, []byte("X-Request-Id: "))
	if !unasked && !bytes.HasPrefix(b[line:], ownError) {
		return c.Conn.Write(b)
	}
	if err := c.answer(c.refusalOfStatus(status)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// answer writes a refusal past net/http.
func (c *clientConn) answer(ref *refusal) error {
	c.s.p.opts.Registry.Unrouted(0, ref.reason)
	id := newRequestID()
	body := errorBody(ref.reason, ref.message, id)
	head := "HTTP/1.1 " + strconv.Itoa(ref.reason.Status()) + " " + http.StatusText(ref.reason.Status()) +
		"\r\nContent-Type: application/json\r\nX-Request-Id: " + id + challenge(ref.reason) +
		"\r\nDate: " + time.Now().UTC().Format(http.TimeFormat) +
		"\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\nConnection: close\r\n\r\n"
	_, err := io.WriteString(c.Conn, head+string(body))
	return err
}

func (c *clientConn) refusalOfStatus(status int) *refusal {
	switch status {
	case http.StatusRequestHeaderFieldsTooLarge:
		if c.lineSize.Load() >= int64(c.s.p.opts.Limits.Head) { // no line has ended: it is the request line
			return refuse(lb.ReasonURITooLong, "the request target is too long")
		}
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

// challenge is the field that a 401 carries (RFC 9110 section 11.6.1).
func challenge(reason lb.Reason) string {
	if reason != lb.ReasonUnauthorized {
		return ""
	}
	return "\r\nWww-Authenticate: " + bearerChallenge
}
