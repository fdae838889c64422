package standin

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// exchange is one request and its answer as they are counted, recorded and, by
// faults, spoilt. It is the ResponseWriter everything else writes to.
type exchange struct {
	s       *Server
	w       http.ResponseWriter
	r       *http.Request
	pattern string // of the endpoint; "" until known
	record  *Request
	reused  bool // not the first request of its connection

	status   int
	out      int64
	in       int64
	sum      hash.Hash // of the body, if recorded
	complete bool      // the body was read to its end
	hijacked bool

	trickle time.Duration // between two bytes, if > 0
	missing int64         // bytes announced that will not come
}

func (s *Server) newExchange(w http.ResponseWriter, r *http.Request) *exchange {
	x := &exchange{s: s, w: w, r: r}
	var connNumber, sequence uint64
	if conn, ok := r.Context().Value(connectionKey{}).(*connection); ok {
		connNumber, sequence = conn.number, conn.requests.Add(1)
	}
	x.reused = sequence > 1
	if s.opts.Control {
		x.sum = sha256.New()
		x.record = s.requests.begin(r, connNumber, sequence)
	}
	r.Body = &bodyReader{x: x, body: r.Body}
	s.counts.add(func(c *Counts) { c.InFlight++ })
	return x
}

// end counts and records. It runs even if the handler panics to drop the connection.
func (x *exchange) end() {
	if x.record != nil && !x.hijacked && !x.complete {
		io.Copy(io.Discard, x.r.Body) // to know the whole body, even if the API did not care
	}
	pattern := x.pattern
	if pattern == "" {
		pattern = "other"
	}
	key := x.r.Method + " " + pattern
	x.s.counts.add(func(c *Counts) {
		c.InFlight--
		c.Total++
		if c.Requests[key] == nil {
			if len(c.Requests) >= maxDigests { // methods are the client's to invent
				key = "other"
			}
			if c.Requests[key] == nil {
				c.Requests[key] = make(map[int]uint64)
			}
		}
		c.Requests[key][x.status]++
		c.BytesIn += uint64(x.in)
		c.BytesOut += uint64(x.out)
	})
	if x.record != nil {
		x.s.requests.end(x.record, x.status, x.in, hex.EncodeToString(x.sum.Sum(nil)), x.complete)
	}
}

func (x *exchange) Header() http.Header { return x.w.Header() }

func (x *exchange) WriteHeader(status int) {
	if x.status == 0 {
		x.status = status
		if n, err := strconv.ParseInt(x.Header().Get("Content-Length"), 10, 64); err == nil && x.missing > 0 {
			x.Header().Set("Content-Length", strconv.FormatInt(n+x.missing, 10))
		}
	}
	x.w.WriteHeader(status)
}

func (x *exchange) Write(p []byte) (int, error) {
	if x.status == 0 {
		x.WriteHeader(http.StatusOK)
	}
	if x.trickle <= 0 {
		n, err := x.w.Write(p)
		x.out += int64(n)
		return n, err
	}
	for i := range p {
		if i > 0 && !sleep(x.r.Context(), x.trickle) {
			return i, x.r.Context().Err()
		}
		if _, err := x.w.Write(p[i : i+1]); err != nil {
			return i, err
		}
		x.out++
		if err := x.Flush(); err != nil {
			return i + 1, err
		}
	}
	return len(p), nil
}

// Flush sends what was written.
func (x *exchange) Flush() error { return http.NewResponseController(x.w).Flush() }

// take takes the connection from net/http, with all written so far sent. If that is
// not possible (HTTP/2, or a recorder) it gives up the request.
func (x *exchange) take() net.Conn {
	if x.status != 0 {
		x.Flush()
	}
	c, _, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	x.hijacked = true
	return c
}

// reset ends the connection by a TCP reset.
func (x *exchange) reset() {
	c := x.take()
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		l.SetLinger(0)
	}
	c.Close()
}

// cut ends the connection in an orderly way, however much of the answer is missing.
func (x *exchange) cut() { x.take().Close() }

// bodyReader counts and hashes a request body as it is read.
type bodyReader struct {
	x    *exchange
	body io.ReadCloser
}

func (b *bodyReader) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	b.x.in += int64(n)
	if b.x.sum != nil {
		b.x.sum.Write(p[:n])
	}
	if err == io.EOF {
		b.x.complete = true
	}
	return n, err
}

func (b *bodyReader) Close() error { return b.body.Close() }
