package proxy

import (
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"difylb/pkg/dify"
	"difylb/pkg/h1"
	"difylb/pkg/lb"
	"difylb/pkg/route"
	"difylb/pkg/trace"
	"difylb/pkg/userid"
)

type condition = route.Condition

// exchange is a call together with the two sides it goes between. The owner is
// the goroutine that serves the client. Exchanges are used again: nothing may
// hold on to one, or to a part of it, when release is called.
type exchange struct {
	call
	s    *Server
	down downstream
	line *lifeline

	// msg is the request's head, and its body where that came along. It is one
	// string: every value that is taken out of it costs nothing. It stands in
	// memory that is used again when the exchange is released, or lighten is
	// called: who keeps a value for longer, clones it.
	msg string
	// lasting: values are kept for longer by others, so msg is an ordinary
	// string. Spans are, until they are exported, and what net/http is given for
	// the head of an answer.
	lasting bool
	*heads
	remote  netip.Addr // the peer
	peer    string     // the same as text
	trusted bool       // it is one whose word about the client counts

	away    bool // it goes on later, at stage
	stage   stage
	nextTry int   // for fromTry
	body    *body // nil when the request has none
	attempt attempt

	traced *trace.Request // nil: not, see tracing.go
}

// heads are what an exchange needs until the body of the answer: of a stream
// that has left (see leave) they are nil.
type heads struct {
	req     h1.Request  // spans into msg
	resp    h1.Response // of the attempt
	ownBody body        // what the exchange's body points to
	values  [4]string   // scratch
	text    []byte      // what msg stands in
	ownID   [idLength]byte
}

// textKept is up to which size the memory of a request's text is used again.
const textKept = 4 << 10

var headsPool = sync.Pool{New: func() any {
	h := new(heads)
	h.req.Fields, h.resp.Fields = make([]h1.Field, 0, 24), make([]h1.Field, 0, 24)
	return h
}}

// reset forgets everything but the room for fields and text.
func (h *heads) reset() {
	if scribble {
		for i := range h.text {
			h.text[i] = '?'
		}
		for i := range h.ownID {
			h.ownID[i] = '?'
		}
	}
	req, resp, text := h.req.Fields[:0], h.resp.Fields[:0], h.text[:0]
	*h = heads{text: text}
	h.req.Fields, h.resp.Fields = req, resp
}

// setText makes msg of bytes that stay the caller's.
func (x *exchange) setText(p []byte) {
	if x.lasting || len(p) > textKept {
		x.msg = string(p)
		return
	}
	x.text = append(x.text[:0], p...)
	x.msg = stringOf(x.text)
}

// setOwnID gives the request an id of ours, which lives as long as its text.
func (x *exchange) setOwnID() {
	if x.lasting {
		id := newRequestID()
		x.id = string(id[:])
		return
	}
	x.ownID = newRequestID()
	x.id = stringOf(x.ownID[:])
}

// downstream is the side of a client: HTTP/1.1, or a stream of HTTP/2. An
// answer is a head (begin, its fields, endHead), data, and where data did not
// say so itself, its end. The owner of the exchange calls it; only readBody may be
// called by another goroutine meanwhile.
type downstream interface {
	bodySource
	// begin starts the head of an answer.
	begin(status int) fieldWriter
	// endHead ends it and says what body follows. The head may wait for the first data.
	endHead(kind h1.BodyKind, length int64) error
	// write writes data of the answer's body. Nothing of it waits.
	write(p []byte, last bool) error
	// flush sends a head that still waits for data.
	flush() error
	// endAnswer ends the answer, if its last data has not; with a trailer section.
	endAnswer(trailer []h1.Field, src []byte) error
	// trailer returns the trailer section of the request's body, once that is read.
	trailer() (fields []h1.Field, src []byte)
	// stopReading ends a readBody of another goroutine, and lets it be called again.
	stopReading(stop bool)
	// interim writes an interim answer, whole.
	interim(status int, fields func(fieldWriter)) error
	// closeAfter has the connection closed behind the answer. Before endHead.
	closeAfter()
	// abort breaks the answer off, so that the client notices. Nothing may follow.
	abort()
}

// fieldWriter takes the fields of a head that is being written.
type fieldWriter interface {
	Field(name, value string)
	Copy(f h1.Field, src []byte)
}

var exchanges = sync.Pool{New: func() any {
	x := new(exchange)
	x.attempt.x = x
	return x
}}

func newExchange(s *Server, down downstream, line *lifeline) *exchange {
	x := exchanges.Get().(*exchange)
	x.p, x.s, x.down, x.line = s.p, s, down, line
	x.reason = lb.ReasonInternal // until it is known better
	x.lasting = s.p.opts.Tracer != nil
	if x.heads == nil {
		x.heads = headsPool.Get().(*heads)
	}
	x.attempt.resp = &x.resp
	return x
}

// release gives the exchange back.
func (x *exchange) release() {
	h := x.heads
	*x = exchange{heads: h}
	x.attempt.x = x
	if h != nil {
		h.reset()
	}
	exchanges.Put(x)
}

// bytesOf returns the bytes of a string, which must not be written.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// in returns the part of the head that a span stands for.
func (x *exchange) in(s h1.Span) string { return x.msg[s.Start:s.End] }

// field returns the first value of a field, "" without one.
func (x *exchange) field(id h1.KnownField) string { return x.in(x.req.First(id)) }

// all appends the values of all fields of that name to dst.
func (x *exchange) all(dst []string, id h1.KnownField) []string {
	if !x.req.Has(id) {
		return dst
	}
	if !x.req.Repeated(id) {
		return append(dst, x.field(id))
	}
	for i := range x.req.Fields {
		if x.req.Fields[i].ID == id {
			dst = append(dst, x.in(x.req.Fields[i].Value))
		}
	}
	return dst
}

// run serves the request whose head is in msg and parsed into req, to its account.
func (x *exchange) run(start time.Time, proto string) {
	x.start, x.now, x.proto = start, start, proto
	if x.method = x.req.Method.String(); x.method == "" {
		x.method = x.in(x.req.MethodName)
	}
	if x.path = x.in(x.req.Path); x.path == "" {
		if x.path = "/"; x.req.Form == h1.AsteriskForm {
			x.path = "*"
		}
	}
	x.query = x.in(x.req.Query)
	if x.id = x.field(h1.XRequestID); !validRequestID(x.id) {
		x.setOwnID()
	}
	x.client, x.trusted = x.clientAddress()
	if x.p.opts.Tracer != nil {
		x.beginTrace()
	}
	x.stage = fromStart
	x.goOn()
}

// stage is where an exchange goes on that is away.
type stage uint8

const (
	fromStart stage = iota
	fromTry         // instance nextTry is to be asked, as soon as it has room
	fromAsk         // a connection is to be made
	fromWait        // the request is to be written, and its wait to be waited
	fromWrite       // the instance has not taken all of the request
	fromHead        // of the answer is waited for
	fromBody        // likewise
	fromLate        // the head is there, or what came instead
)

// waits reports whether bytes of the instance are what is waited for.
func (s stage) waits() bool { return s == fromHead || s == fromBody }

// leave has the exchange go on later, behind a wait for its instance, or on a
// goroutine that may wait. Until then nothing of it runs.
func (x *exchange) leave(at stage) { x.away, x.stage = true, at }

// riding reports whether a poller runs the exchange, so that it must not wait.
func (x *exchange) riding() bool {
	c, ok := x.down.(*clientConn)
	return ok && c.riding
}

// goOn takes the exchange from its stage to where it leaves, or to its account.
func (x *exchange) goOn() {
	x.away = false
	defer func() {
		if !x.away {
			x.finish()
		}
	}()
	if ref := x.goOnFrom(x.stage); ref != nil {
		x.refuse(ref)
	}
}

func (x *exchange) goOnFrom(at stage) *refusal {
	a := &x.attempt
	switch at {
	case fromStart:
		return x.serve()
	case fromTry:
		return x.tryAll(nil, x.nextTry)
	case fromAsk:
		return x.tryAll(a.pursue(true))
	case fromBody:
		defer a.account()
		a.endRelay()
		return nil
	case fromWait:
		if a.wait(); x.away {
			return nil
		}
	case fromWrite:
		if a.writeRest(); x.away {
			return nil
		}
	}
	if x.riding() && !a.plain() {
		x.leave(fromLate)
		return nil
	}
	return x.tryAll(a.pursue(!a.settle()))
}

// lighten lets go of what was needed to begin a stream: it is for as long as a
// stream lives that memory counts.
func (x *exchange) lighten() {
	if x.heads == nil || x.traced != nil {
		return
	}
	if x.req.Method == h1.MethodOther {
		x.method = strings.Clone(x.method)
	}
	x.countBody()
	x.dropBody()
	a := &x.attempt
	a.resp, a.head, a.out, a.to = nil, nil, h1.Head{}, target{}
	if a.r == a.n {
		a.dropInput()
	}
	x.kind.TaskID, x.kind.Conversation, x.search.id = "", "", ""
	id, path := len(x.id), len(x.path)
	x.msg = x.id + x.path + x.user
	x.id, x.path, x.user = x.msg[:id], x.msg[id:id+path], x.msg[id+path:]
	x.query = ""
	x.heads.reset()
	headsPool.Put(x.heads)
	x.heads = nil
}

// serve takes the request through its steps. It returns the refusal that ends
// it, nil when it was answered.
func (x *exchange) serve() *refusal {
	if x.riding() && !x.prompt() {
		x.leave(fromStart)
		return nil
	}
	switch {
	case x.path == "/health":
		return x.serveHealth()
	case x.path == "/status":
		return x.serveStatus()
	case x.p.opts.FilesRoute && strings.HasPrefix(x.path, filesPrefix):
		return x.serveFile()
	case !strings.HasPrefix(x.path, "/v1/"):
		return refuse(lb.ReasonNotFound, "there is nothing here; Dify's API is under /v1/")
	}
	if ref := x.admit(); ref != nil {
		return ref
	}
	if ref := x.authorize(x.all(x.values[:0], h1.Authorization)); ref != nil {
		return ref
	}
	if wantsCanary(x.query) {
		return x.serveCanary() // not for any instance
	}
	x.kind = dify.Classify(x.method, x.path)
	if x.body != nil {
		x.body.limit = x.maxBody()
		if err := x.body.checkDeclared(); err != nil {
			return x.bodyRefusal(err)
		}
	}
	if ref := x.identify(); ref != nil {
		return ref
	}
	if ref := x.admitUser(); ref != nil {
		return ref
	}
	return x.forward()
}

// prompt reports whether serving the request waits for nobody but the instance,
// as far as can be seen from outside.
func (x *exchange) prompt() bool {
	return strings.HasPrefix(x.path, "/v1/") && !strings.HasSuffix(x.path, "/stop") && !wantsCanary(x.query)
}

// admit lets a request in whose target is sound and whose client keeps within
// its limit, and gives it the configuration that it will be served by.
func (x *exchange) admit() *refusal {
	if x.req.DotSegments || strings.IndexByte(x.path, '\\') >= 0 {
		return refuse(lb.ReasonBadRequest, "the request target holds a dot segment; send the path without it")
	}
	if x.v = x.p.view.Load(); x.v == nil {
		return refuse(lb.ReasonNoInstance, "this proxy has no configuration yet")
	}
	return x.admitAddress()
}

var scanners = sync.Pool{New: func() any { return new(userid.Scanner) }}

// identify finds the user id: head, body, and last the query parameter that
// Dify's own GET calls carry. The body is read only as far as that needs.
func (x *exchange) identify() *refusal {
	ids := x.all(x.values[:0], h1.XUserID)
	cookies := x.all(ids, h1.Cookie)[len(ids):]
	head := userid.Head{UserIDHeaders: ids, RawQuery: x.query, Cookies: cookies}
	user, source := head.Before()
	if user == "" && x.body != nil {
		var ref *refusal
		if user, source, ref = x.scanBody(); ref != nil {
			return ref
		}
	}
	if user == "" {
		user, source = head.After()
	}
	return x.setUser(user, source)
}

func (x *exchange) scanBody() (string, userid.Source, *refusal) {
	s := scanners.Get().(*userid.Scanner)
	defer scanners.Put(s)
	canCarry, err := s.Reset(x.field(h1.ContentType))
	if err != nil {
		return "", userid.None, refuse(lb.ReasonBadRequest, err.Error())
	}
	if !canCarry {
		return "", userid.None, nil
	}
	verdict, err := x.body.scan(s)
	if err != nil {
		return "", userid.None, x.bodyRefusal(err)
	}
	if verdict == userid.Found {
		return s.UserID(), s.Source(), nil
	}
	return "", userid.None, nil
}

// bodyRefusal answers for a body that can't be read or understood.
func (x *exchange) bodyRefusal(err error) *refusal {
	var fault *bodyError
	var syntax *userid.SyntaxError
	switch {
	case x.line.over():
		return refuse(x.line.reason(), failureMessage(lb.ReasonShutdown))
	case errors.As(err, &fault):
		return &refusal{reason: fault.reason, message: fault.message, close: true}
	case errors.As(err, &syntax), errors.Is(err, userid.ErrTooLong):
		return refuse(lb.ReasonBadRequest, err.Error())
	}
	x.p.log.Error().Err(err).Str("request_id", x.id).Msg("request body could not be kept")
	return &refusal{reason: lb.ReasonInternal, message: "the request body could not be kept", close: true}
}

// refuse sends an answer of our own, unless the client is gone.
func (x *exchange) refuse(ref *refusal) {
	x.reason, x.status = ref.reason, ref.reason.Status()
	x.tick()
	if ref.reason == lb.ReasonClientGone {
		x.down.abort() // not an empty answer for whoever may still be there
		return
	}
	x.bytesOut = x.answer(ref)
}

// answer writes a refusal and returns the size of its body.
func (x *exchange) answer(ref *refusal) int64 {
	body := errorBody(ref.reason, ref.message, x.id)
	h := x.down.begin(ref.reason.Status())
	h.Field("Content-Type", "application/json")
	h.Field("X-Request-ID", x.id)
	switch {
	case ref.reason == lb.ReasonUnauthorized:
		h.Field("WWW-Authenticate", bearerChallenge)
	case ref.reason.Status() == http.StatusServiceUnavailable && ref.retryAfter == 0:
		h.Field("Retry-After", "1")
	}
	if ref.retryAfter > 0 {
		h.Field("Retry-After", strconv.Itoa(retryAfterSeconds(ref.retryAfter)))
	}
	h.Field("Date", x.s.date())
	if ref.close {
		x.down.closeAfter()
	}
	return x.answerBody(body)
}

// answerBody ends an answer of our own.
func (x *exchange) answerBody(body []byte) int64 {
	kind := h1.BodyLength
	if x.req.Method == h1.MethodHead {
		kind = h1.BodyNone
	}
	if err := x.down.endHead(kind, int64(len(body))); err != nil {
		return 0
	}
	if kind == h1.BodyNone {
		_ = x.down.endAnswer(nil, nil)
		return 0
	}
	if err := x.down.write(body, true); err != nil {
		return 0
	}
	return int64(len(body))
}

// serveHealth answers GET /health: whether this proxy takes traffic.
func (x *exchange) serveHealth() *refusal {
	body := []byte(`{"status":"ok","timestamp":"` + x.start.UTC().Format(time.RFC3339) + `"}` + "\n")
	status := http.StatusOK
	if x.p.draining.Load() {
		body = []byte(`{"status":"draining","timestamp":"` + x.start.UTC().Format(time.RFC3339) + `"}` + "\n")
		status = http.StatusServiceUnavailable
	}
	x.serveJSON(status, body)
	return nil
}

// serveStatus answers GET /status: the whole cluster, for those who may see it.
func (x *exchange) serveStatus() *refusal {
	if !x.p.opts.StatusAllow(x.remote) || !x.p.opts.StatusAllow(x.client) {
		return refuse(lb.ReasonForbidden, "the status is not shown to this address; see --status-allow")
	}
	if x.p.opts.Status == nil {
		return refuse(lb.ReasonNotFound, "this proxy has no status")
	}
	x.serveJSON(http.StatusOK, x.p.opts.Status())
	return nil
}

func (x *exchange) serveJSON(status int, body []byte) {
	allowed := x.method == http.MethodGet || x.method == http.MethodHead
	if !allowed {
		status, body = http.StatusMethodNotAllowed, []byte(`{"code":"method_not_allowed","message":"use GET","status":405,"error":"use GET","request_id":"`+x.id+"\"}\n")
	}
	h := x.down.begin(status)
	if !allowed {
		h.Field("Allow", "GET, HEAD")
	}
	h.Field("Content-Type", "application/json")
	h.Field("Cache-Control", "no-store")
	h.Field("X-Request-ID", x.id)
	h.Field("Date", x.s.date())
	x.status, x.reason, x.bytesOut = status, lb.ReasonOK, x.answerBody(body)
}

// stringOf returns bytes as a string that is good for as long as they are.
func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
