package proxy

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"difylb/pkg/h1"
	"difylb/pkg/lb"
)

// clientConn is a client's HTTP/1.1 connection. Requests are read and served
// one after the other, by a goroutine or, while nothing has to be waited for, by
// pollers: run says how.
//
// A request that has come whole is served at once. One whose body is still under
// way, or that asks for another protocol, is left to a goroutine that can wait
// for further bytes while it is served.
type clientConn struct {
	wire
	lifeline
	s      *Server
	remote netip.Addr
	peer   string // remote as text
	proto  string // "http" or "https"
	shard  uint32

	in     []byte  // what has come: in[r:n] is not consumed; nil while there is nothing
	pooled *[]byte // in, if that is from the pool
	r, n   int
	next   step
	riding bool    // a poller runs it, and nothing may wait
	stuck  bool    // what is due may have to wait
	most   uint8   // how many requests may be served before it is others' turn
	unsent []byte  // what the client did not take at once while riding
	slot   bool    // of the server's, to be given back
	first  [1]byte // see ready
	quiet  bool    // the last read took all that was there
	called bool    // see lastCall
	spoken bool    // something has come
	served int64   // when the last request was over, by monotonic()
	timed  bool    // a deadline for the head that comes in is set
	x      *exchange

	// The body of the request that is served.
	kind     h1.BodyKind
	left     int64
	chunked  *h1.Chunked // nil unless chunked
	bodyEnd  bool
	whole    atomic.Bool // it has been read to its end, and is not answered yet
	expects  atomic.Bool // the client waits for 100 Continue
	saying   sync.Mutex  // held while 100 is written, which a sender does
	said     bool        // a final answer has begun: no 100 any more; guarded by saying
	stopRead atomic.Bool
	reading  bodyWait

	// Its answer.
	out     h1.Head
	outBuf  *[]byte
	pending bool // out holds a head that is not written yet
	answer  h1.BodyKind
	begun   bool // bytes of an answer have been written
	keep    bool // the connection may take another request
	broken  bool // it can't be used, not even for an answer
}

func (s *Server) newClient(conn, tcp net.Conn, proto string) *clientConn {
	c := &clientConn{s: s, proto: proto, shard: s.conns.Add(1)}
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		c.remote = a.AddrPort().Addr().Unmap()
		c.peer = c.remote.String()
	} else {
		c.peer = conn.RemoteAddr().String()
	}
	c.init(conn, tcp, c)
	return c
}

// hungUp is told that the client has ended its side: it is taken to be gone,
// as nginx and net/http do. Where the end stands in a body, or behind one that
// is still to be read, who reads it finds that out.
func (c *clientConn) hungUp(broken bool) {
	if broken || c.whole.Load() {
		c.lifeline.end(clientGone)
	}
	c.interrupt()
}

// bodyOver is the end of the request that is served.
func (c *clientConn) bodyOver() {
	c.bodyEnd = true
	c.whole.Store(true)
	if c.hup.Load() {
		c.lifeline.end(clientGone)
	}
}

// alarm is told that the client was silent for too long.
func (c *clientConn) alarm() { c.interrupt() }

var (
	errHeadSlow      = errors.New("request head came too slowly")
	errIdle          = errors.New("connection was idle for too long, or is not wanted any more")
	errSenderStopped = errors.New("request body is not wanted any more")
	errBodyLost      = errors.New("request body is not wanted any more, and can't be asked for again")
)

// ready is serveReady when bytes of a request may have come.
func (c *clientConn) ready() bool {
	c.quiet = false
	return c.serveReady()
}

// serveReady serves what has come whole. It returns true when something else
// than listening is due.
func (c *clientConn) serveReady() bool {
	for {
		if c.r < c.n {
			switch c.parse() {
			case requestWhole:
				if c.serveOne(); c.next != toListen {
					return true
				}
				if c.most--; c.riding && (c.most == 0 || len(c.unsent) > 0) {
					return true
				}
				continue
			case requestBegun:
				c.next, c.stuck = toServe, true
				return true
			case requestRefused:
				c.leave()
				c.next = toLeave
				return true
			case requestIncomplete:
			}
		}
		if c.quiet && !c.hup.Load() {
			c.rest()
			return false
		}
		if !c.raw {
			c.rest() // an ordinary read waits
		}
		p := c.first[:] // behind TLS a read waits, and who waits holds no buffer
		first := c.n == 0 && c.conn != c.tcp
		if !first {
			p = c.room()
		}
		n, err := c.read(p)
		if err == errAgain {
			if c.raw {
				c.rest()
				c.quiet = true
			}
			return false
		}
		if err != nil { // also in the midst of a head, which nobody can be told
			c.leave()
			c.next = toLeave
			return true
		}
		if first {
			copy(c.room(), p[:n])
		}
		c.quiet, c.spoken = c.drained(n, len(p)), true
		c.n += n
	}
}

// woken is called after an interruption between requests.
func (c *clientConn) woken() error {
	switch {
	case c.ended.Load() == shutdown:
		return errIdle
	case c.x == nil && c.s.closing.Load() && !c.called:
		c.lastCall()
	case c.expired() && c.readable():
		c.expect(c.s.p.opts.Limits.LastCall) // it was us who were late
	case c.expired() && c.x != nil:
		return errHeadSlow
	case c.expired():
		return errIdle
	}
	return nil
}

// lastCall lets a connection that nothing is going on for bring one more
// request. Its client may have sent that before he can know that the server
// shuts down, and would lose it.
func (c *clientConn) lastCall() {
	c.called = true
	c.expect(c.s.p.opts.Limits.LastCall)
}

// leave forgets a request that has not come whole.
func (c *clientConn) leave() {
	if c.x != nil {
		c.x.release()
		c.x = nil
	}
}

// room returns where to read to.
func (c *clientConn) room() []byte {
	switch {
	case c.n < len(c.in):
	case c.r > 0:
		c.n = copy(c.in, c.in[c.r:c.n])
		c.r = 0
	case c.pooled == nil && c.n < bufferSize:
		c.pooled = getBuffer()
		copy(*c.pooled, c.in[:c.n])
		c.in = *c.pooled
	default: // a long head; the limit of heads bounds it
		grown := make([]byte, 2*len(c.in))
		copy(grown, c.in[:c.n])
		c.drop()
		c.in = grown
	}
	return c.in[c.n:]
}

// rest prepares for a wait: nothing is held that need not be.
func (c *clientConn) rest() {
	lim := &c.s.p.opts.Limits
	if c.x == nil {
		c.timed = false
		c.empty()
		if c.s.closing.Load() {
			if !c.called {
				c.lastCall()
			}
		} else if c.spoken { // else the time for its first head goes on
			c.expectAt(c.served + int64(lim.IdleTimeout))
		}
		return
	}
	if !c.timed {
		c.timed = true
		c.expect(lim.HeadTimeout)
	}
	if c.pooled != nil {
		part := append(make([]byte, 0, c.n-c.r), c.in[c.r:c.n]...)
		c.drop()
		c.in, c.r, c.n = part, 0, len(part)
	}
}

// drop lets go of the buffer.
func (c *clientConn) drop() {
	if c.pooled != nil {
		putBuffer(c.pooled)
		c.pooled = nil
	}
	c.in = nil
}

// empty is drop where nothing that has come is left.
func (c *clientConn) empty() {
	c.drop()
	c.r, c.n = 0, 0
}

type parseResult uint8

const (
	requestIncomplete parseResult = iota
	requestWhole                  // with its body
	requestBegun                  // its head; the body is under way, or a protocol to follow
	requestRefused                // and answered
)

// parse takes the next request from what has come.
func (c *clientConn) parse() parseResult {
	if c.x == nil {
		c.x = newExchange(c.s, c, &c.lifeline)
	}
	x := c.x
	buf := c.in[c.r:c.n]
	size, err := x.req.Parse(buf, &c.s.heads)
	if err != nil {
		if err == h1.ErrIncomplete {
			return requestIncomplete
		}
		c.refuse(headRefusal(err))
		return requestRefused
	}
	result, whole := requestWhole, size
	c.kind, c.left = x.req.Body, 0
	switch {
	case x.req.Body == h1.BodyChunked:
		result = requestBegun
	case x.req.Body == h1.BodyLength && x.req.ContentLength > int64(len(buf)-size):
		result = requestBegun
		c.left = x.req.ContentLength
	case x.req.Body == h1.BodyLength:
		whole += int(x.req.ContentLength)
	}
	x.setText(buf[:whole])
	if c.r += whole; c.r == c.n {
		c.empty() // an answer may take long
	}
	c.bodyEnd = result == requestWhole
	if expects := !c.bodyEnd && x.req.ExpectContinue; c.expects.Load() != expects { // storing costs much more than looking
		c.expects.Store(expects)
	}
	if x.req.Body != h1.BodyNone && x.req.ContentLength != 0 {
		b := &x.ownBody // which is zero
		b.src, b.declared, b.dir = c, x.req.ContentLength, c.s.p.opts.SpoolDir
		if c.bodyEnd {
			p := bytesOf(x.msg)[size:]
			b.mem, b.kept, b.read, b.eof = p[:len(p):len(p)], int64(len(p)), int64(len(p)), true
		}
		x.body = b
	}
	if x.req.Body == h1.BodyChunked {
		c.chunked = &h1.Chunked{}
		c.chunked.Reset(&c.s.heads)
	}
	if x.req.WantsUpgrade {
		result = requestBegun
	}
	return result
}

// headRefusal is the answer to a head that can't be read.
func headRefusal(err error) *refusal {
	var e *h1.Error
	if !errors.As(err, &e) {
		return refuse(lb.ReasonBadRequest, "the request is malformed")
	}
	switch e.Status {
	case http.StatusUnauthorized:
		return refuse(lb.ReasonUnauthorized, e.Reason)
	case http.StatusRequestURITooLong:
		return refuse(lb.ReasonURITooLong, e.Reason)
	case http.StatusExpectationFailed:
		return refuse(lb.ReasonExpectationFailed, e.Reason)
	case http.StatusRequestHeaderFieldsTooLarge:
		return refuse(lb.ReasonHeaderTooLarge, e.Reason)
	case http.StatusNotImplemented:
		return refuse(lb.ReasonNotImplemented, e.Reason)
	case http.StatusHTTPVersionNotSupported:
		return refuse(lb.ReasonVersionNotSupported, e.Reason)
	}
	return refuse(lb.ReasonBadRequest, "the request is malformed: "+e.Reason)
}

// refuse answers a request whose head has not been understood, or not come.
func (c *clientConn) refuse(ref *refusal) {
	x := c.x
	x.req.Reset() // half of a head says nothing
	x.shard, x.remote, x.client, x.peer = c.shard, c.remote, c.remote, c.peer
	x.start, x.proto = time.Now(), c.proto
	x.setOwnID()
	c.keep, c.begun, c.bodyEnd = false, false, false
	ref.close = true
	x.refuse(ref)
	x.finish()
}

// serveOne serves the request that was parsed.
func (c *clientConn) serveOne() {
	x := c.x
	c.relax()
	c.timed = false
	c.keep, c.begun, c.said = x.req.KeepAlive, false, false
	if c.bodyEnd {
		c.bodyOver()
	}
	x.shard, x.remote, x.peer = c.shard, c.remote, c.peer
	x.run(time.Now(), c.proto)
	if c.leftOr(toEnd); c.next == toEnd && !(c.riding && !c.bodyEnd) {
		c.endOne()
	}
}

// endOne ends what was begun with the request. The connection takes another, or
// is to be closed.
func (c *clientConn) endOne() {
	if c.broken {
		c.keep = false
	} else if !c.bodyEnd {
		c.skipBody()
	}
	c.chunked = nil
	if !c.bodyEnd {
		c.keep = false
	}
	c.whole.Store(false)
	c.served = clock(c.x.now)
	c.leave()
	if c.next = toListen; !c.keep {
		c.next = toLeave
	}
}

// bodyLinger is how long what is left of a request's body may take to come
// before its connection is given up, bodyRest how much it may be.
const (
	bodyLinger = time.Second
	bodyRest   = 256 << 10
)

// skipBody reads a body that nobody wanted to its end, if that is short: a
// connection is used again only behind the end of a request.
func (c *clientConn) skipBody() {
	if !c.keep || c.expects.Load() || c.left > bodyRest {
		c.keep = false
		return
	}
	buf := getBuffer()
	defer putBuffer(buf)
	until := monotonic() + int64(bodyLinger)
	for total := 0; !c.bodyEnd; {
		n, err := c.readBodyBy(*buf, until)
		if total += n; err == io.EOF {
			return
		}
		if err != nil || total > bodyRest {
			c.keep = false
			return
		}
	}
}

// readBody implements bodySource.
func (c *clientConn) readBody(p []byte) (int, error) {
	return c.readBodyBy(p, monotonic()+int64(c.s.p.opts.Limits.BodyTimeout))
}

func (c *clientConn) readBodyBy(p []byte, due int64) (int, error) {
	for {
		if c.bodyEnd {
			return 0, io.EOF
		}
		n, err := c.readSome(p, due)
		if err != nil {
			return 0, err
		}
		if n, err = c.decode(p[:n]); n > 0 || err != nil {
			return n, err
		}
	}
}

// readSome reads bytes of the body as they are, and perhaps what is behind it.
func (c *clientConn) readSome(p []byte, due int64) (int, error) {
	if c.kind == h1.BodyLength {
		p = p[:min(int64(len(p)), c.left)]
	}
	if c.r < c.n {
		n := copy(p, c.in[c.r:c.n])
		c.r += n
		return n, nil
	}
	if c.expects.CompareAndSwap(true, false) {
		if err := c.write100(); err != nil {
			return 0, errClientGone
		}
	}
	c.empty()
	b := &c.reading
	b.c, b.p, b.n, b.err = c, p, 0, nil
	c.expectAt(due)
	err := c.await(b)
	c.relax()
	b.p = nil
	if err == nil {
		err = b.err
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return b.n, err
}

func (c *clientConn) write100() error {
	c.saying.Lock()
	defer c.saying.Unlock()
	if c.said {
		return nil
	}
	_, err := c.wire.write([]byte("HTTP/1.1 100 Continue\r\n\r\n"), c.s.p.opts.Limits.WriteTimeout)
	return err
}

// decode takes the framing off bytes of the body, in place. What is behind
// its end goes back to the input.
func (c *clientConn) decode(p []byte) (int, error) {
	if c.kind == h1.BodyLength {
		if c.left -= int64(len(p)); c.left == 0 {
			c.bodyOver()
		}
		return len(p), nil
	}
	to := 0
	for from := 0; from < len(p); {
		data, n, err := c.chunked.Next(p[from:])
		if err != nil {
			return 0, &bodyError{lb.ReasonBadRequest, "the request body is malformed: " + reasonOf(err)}
		}
		to += copy(p[to:], data)
		if from += n; c.chunked.Done() {
			c.bodyOver()
			c.giveBack(p[from:])
			break
		}
	}
	return to, nil
}

func reasonOf(err error) string {
	var e *h1.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return err.Error()
}

// giveBack puts bytes before those that were not consumed.
func (c *clientConn) giveBack(p []byte) {
	if len(p) == 0 {
		return
	}
	in := append(append(make([]byte, 0, len(p)+c.n-c.r), p...), c.in[c.r:c.n]...)
	c.drop()
	c.in, c.r, c.n = in, 0, len(in)
}

// bodyWait waits for bytes of a body.
type bodyWait struct {
	c   *clientConn
	p   []byte
	n   int
	err error
}

func (b *bodyWait) ready() bool {
	n, err := b.c.read(b.p)
	if err == errAgain {
		return false
	}
	b.n, b.err = n, err
	return true
}

func (b *bodyWait) woken() error {
	switch c := b.c; {
	case c.stopRead.Load():
		return errSenderStopped
	case c.ended.Load() == shutdown:
		return errClientGone
	case c.expired():
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (c *clientConn) trailer() ([]h1.Field, []byte) {
	if c.chunked == nil || !c.chunked.Done() {
		return nil, nil
	}
	return c.chunked.Trailer(), c.chunked.TrailerBytes()
}

func (c *clientConn) stopReading(stop bool) {
	c.stopRead.Store(stop)
	if stop {
		c.interrupt()
	}
}

// begin implements downstream.
func (c *clientConn) begin(status int) fieldWriter {
	if c.outBuf == nil {
		c.outBuf = getBuffer()
	}
	c.out.Buf, c.out.Err = (*c.outBuf)[:0], nil
	c.out.Status(status, nil)
	return &c.out
}

func (c *clientConn) closeAfter() { c.keep = false }

func (c *clientConn) endHead(kind h1.BodyKind, length int64) error {
	if c.x.req.ExpectContinue {
		c.saying.Lock()
		c.said = true
		c.saying.Unlock()
	}
	c.answer = kind
	http10 := c.x.req.Version == h1.HTTP10
	switch kind {
	case h1.BodyLength:
		c.out.FieldInt("Content-Length", length)
	case h1.BodyNone:
		if length >= 0 {
			c.out.FieldInt("Content-Length", length)
		}
	default:
		if !http10 {
			c.answer = h1.BodyChunked
			c.out.Field("Transfer-Encoding", "chunked")
			break
		}
		c.answer = h1.BodyUntilClose
		c.keep = false
	}
	if c.s.closing.Load() || c.s.p.draining.Load() {
		c.keep = false // the client's next request is to go elsewhere
	}
	if !c.whole.Load() && (c.expects.Load() || c.x.req.ContentLength > bodyRest) {
		c.keep = false // nobody is going to read that much for nothing
	}
	switch {
	case !c.keep:
		c.out.Field("Connection", "close")
	case http10:
		c.out.Field("Connection", "keep-alive")
	}
	c.out.End()
	c.pending = true
	if c.out.Err != nil {
		c.abort()
		return c.out.Err
	}
	return nil
}

// send writes bytes to the client.
func (c *clientConn) send(p []byte) error {
	c.begun = true
	if c.riding && !c.broken {
		return c.sendNow(p)
	}
	if !c.broken {
		if _, err := c.wire.write(p, c.s.p.opts.Limits.WriteTimeout); err == nil {
			return nil
		}
	}
	c.broken = true
	return errClientGone
}

// sendNow is send while riding: it does not wait, and keeps what is left.
func (c *clientConn) sendNow(p []byte) error {
	if len(c.unsent) > 0 {
		c.unsent = append(c.unsent, p...)
		return nil
	}
	n, err := c.writeRaw(p)
	switch err {
	case nil:
		return nil
	case errAgain:
		c.unsent, c.x.attempt.clogged = append(c.unsent, p[n:]...), true
		return nil
	}
	c.broken = true
	return errClientGone
}

func (c *clientConn) flush() error {
	if !c.pending {
		return nil
	}
	return c.sendOut()
}

// sendOut writes what was gathered in out.
func (c *clientConn) sendOut() error {
	err := c.send(c.out.Buf)
	c.pending = false
	putBuffer(c.outBuf)
	c.outBuf, c.out.Buf = nil, nil
	return err
}

func (c *clientConn) write(p []byte, last bool) error {
	if len(p) == 0 && !last {
		return nil
	}
	if c.outBuf == nil {
		if c.answer != h1.BodyChunked {
			return c.send(p)
		}
		c.outBuf = getBuffer()
		c.out.Buf = (*c.outBuf)[:0]
	}
	if c.answer == h1.BodyNone {
		return c.sendOut()
	}
	chunked := c.answer == h1.BodyChunked
	if chunked && len(p) > 0 {
		c.out.Buf = h1.AppendChunkHeader(c.out.Buf, len(p))
	}
	if len(p) > cap(c.out.Buf)-len(c.out.Buf)-16 { // not worth copying
		if err := c.sendOut(); err != nil {
			return err
		}
		if err := c.send(p); err != nil || !chunked {
			return err
		}
		tail := h1.CRLF
		if last {
			tail = h1.CRLF + h1.LastChunk
		}
		return c.send([]byte(tail))
	}
	c.out.Buf = append(c.out.Buf, p...)
	if chunked {
		if len(p) > 0 {
			c.out.Buf = append(c.out.Buf, h1.CRLF...)
		}
		if last {
			c.out.Buf = append(c.out.Buf, h1.LastChunk...)
		}
	}
	return c.sendOut()
}

// endAnswer implements downstream: it is due where write was not told of the
// last data.
func (c *clientConn) endAnswer(trailer []h1.Field, src []byte) error {
	if c.answer != h1.BodyChunked {
		if c.pending {
			return c.sendOut()
		}
		return nil
	}
	if c.outBuf == nil {
		c.outBuf = getBuffer()
		c.out.Buf = (*c.outBuf)[:0]
	}
	endChunks(&c.out, trailer, src)
	return c.sendOut()
}

// interim implements downstream. HTTP/1.0 knows none (RFC 9110 section 15.2).
func (c *clientConn) interim(status int, fields func(fieldWriter)) error {
	if c.x.req.Version == h1.HTTP10 {
		return nil
	}
	fields(c.begin(status))
	c.out.End()
	c.saying.Lock()
	err := c.sendOut()
	c.saying.Unlock()
	c.begun = false // of the final answer
	return err
}

func (c *clientConn) abort() {
	c.keep, c.broken = false, true
	if c.answer != h1.BodyUntilClose || !c.begun {
		return
	}
	if c.raw {
		c.resetOnClose() // an ordinary end would look like that of the answer
	} else if t, ok := c.tcp.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
		if c.conn != c.tcp {
			_ = t.Close() // and so would TLS's own
		}
	}
}

// finish closes the connection. An answer that is on its way gets there first.
func (c *clientConn) finish() {
	if c.lingers() {
		c.linger()
	}
	c.close()
	c.leave()
	c.drop()
	if c.outBuf != nil {
		putBuffer(c.outBuf)
	}
	c.s.left(c)
}

// closeLinger is how long a client may go on sending after an answer that ends
// its connection. Closing earlier would answer its bytes with a reset, and the
// reset would overtake the answer.
const closeLinger = 2 * time.Second

// lingers reports whether closing has to wait for the client.
func (c *clientConn) lingers() bool { return c.begun && !c.broken && !c.hup.Load() }

func (c *clientConn) linger() {
	if c.raw {
		c.lingerRaw()
		return
	}
	half, ok := c.conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.relax()
	_ = c.conn.SetDeadline(time.Now().Add(closeLinger))
	if c.over() { // the cut may have come before, and nobody is to be waited for
		_ = c.conn.SetDeadline(time.Now().Add(cutGrace))
	}
	buf := getBuffer()
	defer putBuffer(buf)
	for {
		if _, err := c.conn.Read(*buf); err != nil || c.over() {
			return
		}
	}
}

func (c *clientConn) lingerRaw() {
	if c.closeWriteRaw() != nil {
		return
	}
	if c.expect(closeLinger); c.over() {
		c.expect(cutGrace)
	}
	_ = c.await((*lingerWait)(c))
}

// lingerWait waits for a client's end.
type lingerWait clientConn

func (c *lingerWait) ready() bool {
	buf := getBuffer()
	defer putBuffer(buf)
	for {
		if _, err := c.read(*buf); err != nil {
			return err != errAgain
		}
	}
}

func (c *lingerWait) woken() error {
	if c.over() || c.expired() {
		return errIdle
	}
	return nil
}
