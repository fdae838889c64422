package proxy

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"difylb/pkg/dify"
	"difylb/pkg/lb"
	"difylb/pkg/route"
	"difylb/pkg/userid"
)

type condition = route.Condition

// handler drives calls with net/http: HTTP/1.1 and HTTP/2 requests alike.
type handler struct {
	p *Proxy
	s *Server
}

// exchange is a call together with the sockets it is about.
type exchange struct {
	call
	s    *Server
	w    http.ResponseWriter
	r    *http.Request
	rc   *http.ResponseController
	base http.Header // upstream fields common to all attempts
	body *body       // nil when the request has none, or none was looked at yet
}

// bodyLinger is how long what is left of a request's body may take to come
// before its connection is given up.
const bodyLinger = time.Second

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.s.requests.add(1)
	defer h.s.requests.add(-1)
	x := &exchange{s: h.s, w: w, r: r, rc: http.NewResponseController(w)}
	x.p, x.start, x.method = h.p, time.Now(), r.Method
	x.reason = lb.ReasonInternal // until it is known better
	x.shard, _ = r.Context().Value(shardKey{}).(uint32)
	x.path, x.query = target(r)
	x.proto = "http"
	if r.TLS != nil {
		x.proto = "https"
	}
	if x.id = r.Header.Get("X-Request-Id"); !validRequestID(x.id) {
		x.id = newRequestID()
	}
	var trusted bool
	x.client, trusted = h.p.clientAddress(r.RemoteAddr, r.Header)
	defer x.finish()
	if r.ContentLength != 0 {
		// Without it net/http reads a body to its end before it lets an answer out.
		_ = x.rc.EnableFullDuplex()
		defer x.settleBody()
	}
	if h.p.draining.Load() {
		w.Header().Set("Connection", "close") // the client's next request is to go elsewhere
	}
	if ref := x.serve(trusted); ref != nil {
		x.refuse(ref)
	}
}

// settleBody ends the reading of the body while the handler still runs: a rest
// is read, if that is short, to use the connection further. net/http would do
// it by itself, but in full duplex too late: reaching the end then starts the
// read that waits for the client to go away, which nobody ends before the next
// request is read, and that panics ("invalid concurrent Body.Read call").
func (x *exchange) settleBody() {
	if x.body == nil || !x.body.eof {
		_ = x.rc.SetReadDeadline(time.Now().Add(bodyLinger))
		_ = x.r.Body.Close()
	}
}

// target returns path and query as they were sent. The absolute form of a
// request target (RFC 9112 section 3.2.2) is brought into origin form.
func target(r *http.Request) (path, query string) {
	t := r.RequestURI
	if _, rest, ok := strings.Cut(t, "://"); ok && !strings.HasPrefix(t, "/") {
		if i := strings.IndexAny(rest, "/?"); i < 0 {
			t = "/"
		} else if t = rest[i:]; t[0] == '?' {
			t = "/" + t
		}
	}
	path, query, _ = strings.Cut(t, "?")
	return path, query
}

// serve takes the request through its steps. It returns the refusal that ends
// it, nil when it was answered.
func (x *exchange) serve(trusted bool) *refusal {
	if ref := x.checkHead(); ref != nil {
		return ref
	}
	switch {
	case x.path == "/health":
		return x.serveHealth()
	case x.path == "/status":
		return x.serveStatus()
	case x.p.opts.FilesRoute && strings.HasPrefix(x.path, filesPrefix):
		return x.serveFile(trusted)
	case !strings.HasPrefix(x.path, "/v1/"):
		return refuse(lb.ReasonNotFound, "there is nothing here; Dify's API is under /v1/")
	}
	if ref := x.admit(); ref != nil {
		return ref
	}
	if ref := x.authorize(x.r.Header["Authorization"]); ref != nil {
		return ref
	}
	x.kind = dify.Classify(x.method, x.path)
	if ref := x.openBody(); ref != nil {
		return ref
	}
	if x.body != nil {
		defer x.body.close()
	}
	if ref := x.identify(); ref != nil {
		return ref
	}
	if ref := x.admitUser(); ref != nil {
		return ref
	}
	x.base = x.baseHeader(trusted)
	return x.forward()
}

// admit lets a request in whose target is sound and whose client keeps within
// its limit, and gives it the configuration that it will be served by.
func (x *exchange) admit() *refusal {
	if ref := checkTarget(x.path, x.query); ref != nil {
		return ref
	}
	if x.v = x.p.view.Load(); x.v == nil {
		return refuse(lb.ReasonNoInstance, "this proxy has no configuration yet")
	}
	return x.admitAddress()
}

// checkHead applies the limits that net/http does not know.
func (x *exchange) checkHead() *refusal {
	lim := &x.p.opts.Limits
	switch {
	case len(x.r.RequestURI) > lim.RequestLine:
		return &refusal{reason: lb.ReasonURITooLong, message: "the request target is too long", close: true}
	case x.method == http.MethodConnect || x.method == http.MethodTrace:
		return &refusal{reason: lb.ReasonNotImplemented, message: "the method " + x.method + " is not supported", close: true}
	}
	if x.r.URL.User != nil || len(x.r.Header["Content-Type"]) > 1 { // two opinions on what the body is
		return &refusal{reason: lb.ReasonBadRequest, message: "the request head is malformed", close: true}
	}
	fields := 0
	for _, values := range x.r.Header {
		fields += len(values)
	}
	if fields > lim.Fields {
		return &refusal{reason: lb.ReasonHeaderTooLarge, message: "the request has too many header fields", close: true}
	}
	return nil
}

// openBody wraps the request's body, if it has one, and refuses one that says
// of itself that it is too large.
func (x *exchange) openBody() *refusal {
	if x.r.Body == nil || x.r.Body == http.NoBody || x.r.ContentLength == 0 {
		return nil
	}
	x.body = &body{
		src: x.r.Body, declared: x.r.ContentLength, limit: x.maxBody(), dir: x.p.opts.SpoolDir,
		timeout:  x.p.opts.Limits.BodyTimeout,
		deadline: func(t time.Time) { _ = x.rc.SetReadDeadline(t) },
	}
	x.body.idle.L = &x.body.mu
	if err := x.body.checkDeclared(); err != nil {
		return x.bodyRefusal(err)
	}
	return nil
}

var scanners = sync.Pool{New: func() any { return new(userid.Scanner) }}

// identify finds the user id: head, body, and last the query parameter that
// Dify's own GET calls carry. The body is read only as far as that needs.
func (x *exchange) identify() *refusal {
	head := userid.Head{UserIDHeaders: x.r.Header["X-User-Id"], RawQuery: x.query, Cookies: x.r.Header["Cookie"]}
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
	canCarry, err := s.Reset(x.r.Header.Get("Content-Type"))
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
	case errors.As(err, &fault):
		return &refusal{reason: fault.reason, message: fault.message, close: true}
	case x.r.Context().Err() != nil:
		return refuse(x.interrupted(), failureMessage(lb.ReasonShutdown))
	case errors.As(err, &syntax), errors.Is(err, userid.ErrTooLong):
		return refuse(lb.ReasonBadRequest, err.Error())
	}
	x.p.log.Error().Err(err).Str("request_id", x.id).Msg("request body could not be kept")
	return &refusal{reason: lb.ReasonInternal, message: "the request body could not be kept", close: true}
}

// interrupted says why the request's context has ended.
func (x *exchange) interrupted() lb.Reason {
	if errors.Is(context.Cause(x.r.Context()), errShutdown) {
		return lb.ReasonShutdown
	}
	return lb.ReasonClientGone
}

// refuse sends an answer of our own, unless the client is gone.
func (x *exchange) refuse(ref *refusal) {
	x.reason, x.status = ref.reason, ref.reason.Status()
	if ref.reason == lb.ReasonClientGone {
		// To return would send an empty 200 to whoever may still be there.
		panic(http.ErrAbortHandler)
	}
	if n := x.r.ContentLength; (n < 0 || n > 256<<10) && (x.body == nil || !x.body.eof) {
		ref.close = true // nobody is going to read that much for nothing
	}
	x.beforeWrite()
	x.bytesOut = writeRefusal(x.w, ref, x.id)
}

// beforeWrite gives the client its time to take what is written next. When the
// request is over the server takes the deadline back, see Server.connState.
func (x *exchange) beforeWrite() {
	_ = x.rc.SetWriteDeadline(time.Now().Add(x.p.opts.Limits.WriteTimeout))
}

// afterWrite is due after a write that is not the last. In HTTP/2 the deadline
// would end the stream even when nothing is being written.
func (x *exchange) afterWrite() {
	if x.r.ProtoMajor > 1 {
		_ = x.rc.SetWriteDeadline(time.Time{})
	}
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
	ap, err := netip.ParseAddrPort(x.r.RemoteAddr)
	if err != nil || !x.p.opts.StatusAllow(ap.Addr().Unmap()) || !x.p.opts.StatusAllow(x.client) {
		return refuse(lb.ReasonForbidden, "the status is not shown to this address; see --status-allow")
	}
	if x.p.opts.Status == nil {
		return refuse(lb.ReasonNotFound, "this proxy has no status")
	}
	x.serveJSON(http.StatusOK, x.p.opts.Status())
	return nil
}

func (x *exchange) serveJSON(status int, body []byte) {
	if x.method != http.MethodGet && x.method != http.MethodHead {
		x.w.Header().Set("Allow", "GET, HEAD")
		status, body = http.StatusMethodNotAllowed, []byte(`{"code":"method_not_allowed","message":"use GET","status":405,"error":"use GET","request_id":"`+x.id+"\"}\n")
	}
	h := x.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Request-Id", x.id)
	x.beforeWrite()
	x.w.WriteHeader(status)
	n, _ := x.w.Write(body)
	x.status, x.reason, x.bytesOut = status, lb.ReasonOK, int64(n)
}
