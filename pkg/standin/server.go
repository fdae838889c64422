package standin

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Server is one instance. Make it with New; it is safe for concurrent use.
type Server struct {
	opts      Options
	apps      map[string]App
	datasets  map[string]bool
	endpoints map[int][]*endpoint // immutable after New
	faults    Faults
	counts    counters
	requests  requestLog
	started   atomic.Uint64 // connections taken, to number them
}

// New returns a Server that serves nothing yet.
func New(o Options) *Server {
	o = o.withDefaults()
	s := &Server{opts: o, apps: make(map[string]App), datasets: make(map[string]bool), endpoints: endpointsByLength()}
	for _, a := range o.Apps {
		s.apps[a.Key] = a
	}
	for _, k := range o.DatasetKeys {
		s.datasets[k] = true
	}
	s.counts.init()
	return s
}

// Faults returns the switches for faults.
func (s *Server) Faults() *Faults { return &s.faults }

// Counts returns what has been served so far.
func (s *Server) Counts() Counts { return s.counts.snapshot() }

// Requests returns the last 100 requests, oldest first. It is empty without Options.Control.
func (s *Server) Requests() []Request { return s.requests.list() }

// World returns the World the server lives in.
func (s *Server) World() *World { return s.opts.World }

// Handler returns the instance for a server of the caller's. Slots, idle time-outs
// and the end of everything at once are those of Run only.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serveHTTP) }

// Run serves ln until ctx is done and returns when every connection is closed and
// every request has ended. Like a killed process it ends them as they are. It
// closes ln, and returns nil if it was ctx that ended it. A Server may be run
// again, on another listener, and keeps its World and counts: a restart.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	runCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	life := &lifetime{ctx: runCtx}
	gate := newGate(ln, s.opts.Slots, s.opts.Control, &s.counts)
	head := s.opts.IdleTimeout
	if s.opts.Front == Nginx {
		head = 60 * time.Second
	}
	srv := &http.Server{
		Handler:           s.Handler(),
		IdleTimeout:       s.opts.IdleTimeout,
		ReadHeaderTimeout: head,
		ErrorLog:          log.New(io.Discard, "", 0),
		BaseContext: func(net.Listener) context.Context {
			return context.WithValue(context.Background(), lifetimeKey{}, life)
		},
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, connectionKey{}, &connection{number: s.started.Add(1)})
		},
	}
	s.opts.Log("%s: serving on %s", s.opts.Name, ln.Addr())

	var wg sync.WaitGroup
	wg.Go(func() { gate.run(runCtx) })
	wg.Go(func() {
		<-runCtx.Done()
		gate.Close() // first: Close of the server waits for an Accept that may wait for a slot
		srv.Close()
	})
	err := srv.Serve(gate)
	cancel()
	wg.Wait()
	life.end()
	s.opts.Log("%s: stopped", s.opts.Name)
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// lifetime is one Run: requests wait for its end where they do not wait for the client.
type lifetime struct {
	ctx context.Context // done when Run ends

	mu    sync.Mutex
	ended bool           // guarded by mu
	wg    sync.WaitGroup // Add under mu, while not ended
}

type lifetimeKey struct{}

// begin counts a request in. It reports false when Run has ended.
func (l *lifetime) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.wg.Add(1)
	return true
}

// end waits for the requests and lets no further one in.
func (l *lifetime) end() {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	l.wg.Wait()
}

// connection is what is known of a connection of Run.
type connection struct {
	number   uint64
	requests atomic.Uint64
}

type connectionKey struct{}

// serveHTTP is the way of every request: counting, faults, front, API.
func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	life, _ := r.Context().Value(lifetimeKey{}).(*lifetime)
	if life != nil {
		if !life.begin() {
			panic(http.ErrAbortHandler)
		}
		defer life.wg.Done()
	}
	if s.opts.Control && strings.HasPrefix(r.URL.Path, controlPrefix) {
		s.serveControl(w, r)
		return
	}
	x := s.newExchange(w, r)
	defer x.end()
	if s.wreckBefore(x) {
		return
	}
	s.serveFront(x)
	s.wreckAfter(x)
}

// serveFront sends the request where the deployment would.
func (s *Server) serveFront(x *exchange) {
	path := x.r.URL.EscapedPath()
	h := x.Header()
	if s.opts.Front == Nginx {
		h.Set("Server", "nginx/1.29.1")
		if x.r.ContentLength > s.opts.BodyLimitBytes {
			h.Set("Connection", "close")
			writeHTML(x, Nginx, http.StatusRequestEntityTooLarge)
			return
		}
		x.r.Body = http.MaxBytesReader(x, x.r.Body, s.opts.BodyLimitBytes)
		if !strings.HasPrefix(path, "/v1") && !strings.HasPrefix(path, "/files") {
			writeHTML(x, Nginx, http.StatusNotFound) // the web front end
			return
		}
	} else {
		h.Set("Server", "gunicorn")
		if x.r.ProtoAtLeast(1, 1) && !x.r.Close {
			h.Set("Connection", "keep-alive") // gunicorn says so always
		}
	}
	h.Set("X-Version", s.opts.Version)
	h.Set("X-Env", "PRODUCTION")
	switch {
	case path == "/v1":
		x.pattern = "/v1"
		h.Set("Location", "/v1/")
		h.Set("Content-Length", "0")
		x.WriteHeader(http.StatusPermanentRedirect)
	case path == "/health" && s.opts.Front == Direct:
		x.pattern = "/health"
		s.writeJSON(x, 200, object{{"pid", 1}, {"status", "ok"}, {"version", s.opts.Version}})
	case strings.HasPrefix(path, "/files/"):
		x.pattern = "/files/"
		s.serveSignedFile(x)
	case strings.HasPrefix(path, "/v1/"):
		s.serveAPI(x, path)
	default:
		writeHTML(x, s.opts.Front, http.StatusNotFound)
	}
}

// serveAPI finds the endpoint, the app and the user, and answers errors.
func (s *Server) serveAPI(x *exchange, path string) {
	err := s.callEndpoint(x, path)
	if err == nil {
		return
	}
	var tooLarge *http.MaxBytesError
	var e *apiError
	switch {
	case errors.As(err, &tooLarge):
		writeHTML(x, s.opts.Front, http.StatusRequestEntityTooLarge)
	case errors.As(err, &e):
		s.writeError(x, e)
	default:
		s.writeError(x, errorOfCode("internal_server_error"))
	}
}

func (s *Server) callEndpoint(x *exchange, path string) error {
	if s.opts.Control && path == upgradePath {
		x.pattern = upgradePath
		return s.serveUpgrade(x)
	}
	e, params, allow := s.route(x.r.Method, path)
	switch {
	case e == nil && len(allow) == 0:
		return errNoPath
	case e == nil && x.r.Method == http.MethodOptions:
		x.Header().Set("Allow", strings.Join(allow, ", "))
		x.Header().Set("Content-Length", "0")
		x.WriteHeader(200)
		return nil
	case e == nil:
		return methodNotAllowed(allow)
	}
	x.pattern = e.pattern
	c := &call{s: s, w: x, r: x.r, params: params, sel: s.opts.selectors()}
	if err := s.authorize(c, e.key); err != nil {
		return err
	}
	if err := c.findUser(e); err != nil {
		return err
	}
	if c.user != nil {
		s.counts.user(c.user.name)
	}
	return e.serve(s, c)
}

// authorize looks the key up by value and kind, as the API does.
func (s *Server) authorize(c *call, kind keyKind) error {
	if kind == noKey {
		return nil
	}
	token, err := bearer(c.r)
	if err != nil {
		return err
	}
	known := s.datasets[token]
	if kind == appKey {
		c.app, known = s.apps[token]
	}
	s.counts.token(token, known)
	if _, revoked := s.faults.takeKind(c.r.URL.Path, BadToken); revoked || !known {
		return unauthorized("Access token is invalid")
	}
	if kind == appKey && c.app.Disabled {
		return errDisabled
	}
	return nil
}

func bearer(r *http.Request) (string, error) {
	scheme, token, ok := strings.Cut(strings.TrimSpace(r.Header.Get("Authorization")), " ")
	if !ok {
		return "", unauthorized("Authorization header must be provided and start with 'Bearer'")
	}
	if !strings.EqualFold(scheme, "bearer") {
		return "", unauthorized("Authorization scheme must be 'Bearer'")
	}
	return strings.TrimSpace(token), nil
}

// findUser looks for the end user in the one place where the endpoint has it.
func (c *call) findUser(e *endpoint) error {
	var name string
	switch e.user {
	case nowhere:
		return nil
	case inQuery:
		name = c.r.URL.Query().Get("user")
	case inJSON:
		if err := c.readJSON(); err != nil {
			return err
		}
		name = bodyUser(c.body["user"])
	case inForm:
		if err := c.readForm(); err != nil {
			return err
		}
		name = c.upload.fields["user"]
	}
	if name == "" {
		if e.must {
			return invalidParam("Arg user must be provided.")
		}
		name = anonymousUser
	}
	c.user = c.s.opts.World.endUser(c.app.ID, name)
	return nil
}
