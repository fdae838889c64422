package proxy

import (
	"net/http"
	"net/netip"
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
	s *Server // nil in tests that need no tunnels
}

// exchange is a call together with the sockets it is about.
type exchange struct {
	call
	s    *Server
	w    http.ResponseWriter
	r    *http.Request
	rc   *http.ResponseController
	base http.Header // upstream fields common to all attempts
	body *body       // nil when the request has none
}

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{s: h.s, w: w, r: r, rc: http.NewResponseController(w)}
	x.p, x.start, x.method = h.p, time.Now(), r.Method
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
	if ref := x.serve(trusted); ref != nil {
		x.refuse(ref)
	}
}

// target returns path and query as they were sent. The absolute form of a
// request target (RFC 9112 section 3.2.2) is brought into origin form.
func target(r *http.Request) (path, query string) {
	t := r.RequestURI
	if !strings.HasPrefix(t, "/") {
		t = r.URL.RequestURI()
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
	case !strings.HasPrefix(x.path, "/v1/"):
		return refuse(lb.ReasonNotFound, "there is nothing here; Dify's API is under /v1/")
	}
	if ref := checkTarget(x.path); ref != nil {
		return ref
	}
	if x.v = x.p.view.Load(); x.v == nil {
		return refuse(lb.ReasonNoInstance, "this proxy has no configuration yet")
	}
	if ref := x.admitAddress(); ref != nil {
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

// checkHead applies the limits that net/http does not know.
func (x *exchange) checkHead() *refusal {
	lim := &x.p.opts.Limits
	switch {
	case len(x.r.RequestURI) > lim.RequestLine:
		return &refusal{reason: lb.ReasonURITooLong, message: "the request target is too long", close: true}
	case x.method == http.MethodConnect || x.method == http.MethodTrace:
		return &refusal{reason: lb.ReasonNotImplemented, message: "the method " + x.method + " is not supported", close: true}
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
	if x.r.Context().Err() != nil {
		return refuse(lb.ReasonClientGone, "")
	}
	switch e := err.(type) {
	case *bodyError:
		return &refusal{reason: e.reason, message: e.message, close: true}
	case *userid.SyntaxError:
		return refuse(lb.ReasonBadRequest, e.Error())
	}
	if err == userid.ErrTooLong {
		return refuse(lb.ReasonBadRequest, err.Error())
	}
	x.p.log.Error().Err(err).Str("request_id", x.id).Msg("request body could not be kept")
	return &refusal{reason: lb.ReasonInternal, message: "the request body could not be kept", close: true}
}

// refuse sends an answer of our own, unless the client is gone.
func (x *exchange) refuse(ref *refusal) {
	x.reason = ref.reason
	if ref.reason == lb.ReasonClientGone {
		x.status = ref.reason.Status()
		return
	}
	x.status, x.bytesOut = writeRefusal(x.w, ref, x.id)
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
	if err != nil || !x.p.opts.StatusAllow(ap.Addr()) || !x.p.opts.StatusAllow(x.client) {
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
	x.w.Header().Set("Content-Type", "application/json")
	x.w.Header().Set("Cache-Control", "no-store")
	x.w.WriteHeader(status)
	n, _ := x.w.Write(body)
	x.status, x.bytesOut = status, int64(n)
}
