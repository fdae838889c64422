package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/rs/zerolog"

	"difylb/pkg/cluster"
	"difylb/pkg/lb"
	"difylb/pkg/route"
	"difylb/pkg/sketch"
	"difylb/pkg/store"
)

// Options are what a Server is made of.
type Options struct {
	Store *store.Store
	Hub   Hub
	Log   zerolog.Logger
	// NodeID names this lb-admin.
	NodeID  string
	Version string
	// Table returns the route table of the current configuration, to save
	// explain and dry runs from compiling one; nil, or a nil answer, lets them.
	Table func() *route.Table
	// Recent returns the sample of the users of an application that proxies saw
	// within the last day, to count those that a change moves; nil: not known.
	Recent func(app string) sketch.Sample
	// LastProbes returns what finds the newest probe of an instance; it may ask
	// another lb-admin, within a second. Nil: not known.
	LastProbes func(context.Context) func(app, instance string) *cluster.LastProbe
	// Announce tells the other lb-admins of an event, within a second; what
	// they tell goes to Server.Announced. Nil: there are none.
	Announce func(ctx context.Context, kind string, data []byte)
	// Checks are asked by /readyz beside the store, by name; each is bounded
	// by the context it is given.
	Checks map[string]func(context.Context) error
	// Metrics serves /metrics, Dashboard / and what is below it that is not
	// the API's. Nil: 404.
	Metrics, Dashboard http.Handler
	// TrustedProxies are whose X-Forwarded-For is believed. It matters:
	// /status and /metrics are open to loopback and private addresses. A
	// request forwarded by anybody else counts as from outside.
	TrustedProxies []netip.Prefix
	// Heartbeat is the pause between comments on a silent event stream; 0 means 15 s.
	Heartbeat time.Duration
	// Closing, when it is done, ends event streams and waits, so that the
	// HTTP server can shut down. Nil: they end with their clients.
	Closing context.Context
}

// Server answers the REST API. It is safe for concurrent use, starts nothing
// of its own, and has nothing to close.
type Server struct {
	store          *store.Store // immutable after New, as is all but the counters
	hub            Hub
	log            zerolog.Logger
	nodeID         string
	version        string
	table          func() *route.Table
	recent         func(app string) sketch.Sample                      // may be nil
	announce       func(ctx context.Context, kind string, data []byte) // may be nil
	lastProbes     func(context.Context) func(app, instance string) *cluster.LastProbe
	checks         map[string]func(context.Context) error
	metrics        http.Handler
	dashboard      http.Handler
	trustedProxies []netip.Prefix
	heartbeat      time.Duration
	closing        context.Context
	openapi        []byte
	router         chi.Router

	acts        acts
	penalties   penalties
	checking    chan struct{} // size 1: held while /check runs
	used        lastUsed
	wrongTokens atomic.Uint64
	wroteToken  atomic.Bool // TokenFile is this process's, not of an earlier one
}

// New makes a server.
func New(o Options) *Server {
	s := &Server{
		store: o.Store, hub: o.Hub, log: o.Log.With().Str("component", "admin").Logger(),
		nodeID: o.NodeID, version: o.Version, table: o.Table, recent: o.Recent, lastProbes: o.LastProbes, announce: o.Announce, checks: o.Checks,
		metrics: o.Metrics, dashboard: o.Dashboard, trustedProxies: o.TrustedProxies,
		heartbeat: o.Heartbeat, closing: o.Closing, checking: make(chan struct{}, 1),
	}
	if s.heartbeat <= 0 {
		s.heartbeat = 15 * time.Second
	}
	if s.closing == nil {
		s.closing = context.Background()
	}
	if s.table == nil {
		s.table = func() *route.Table { return nil }
	}
	if s.lastProbes == nil {
		s.lastProbes = func(context.Context) func(app, instance string) *cluster.LastProbe {
			return func(string, string) *cluster.LastProbe { return nil }
		}
	}
	s.openapi = describe(s.version)
	s.router = s.routes()
	return s
}

// Handler returns the whole of the admin listener's HTTP.
func (s *Server) Handler() http.Handler { return s.router }

// WrongTokens counts requests with an access token that is not valid.
func (s *Server) WrongTokens() uint64 { return s.wrongTokens.Load() }

// StaleHeader stands in an answer while etcd is away or silent: for how long
// what the answer says of the configuration may have been out of date.
const StaleHeader = "X-Config-Stale"

// methods in the order in which Allow lists them.
var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}

func (s *Server) routes() chi.Router {
	r := chi.NewRouter()
	r.Use(s.guard, middleware.GetHead)
	for i := range endpoints {
		e := &endpoints[i]
		r.Method(e.method, e.path, s.serve(e))
	}
	if s.metrics != nil {
		r.Method(http.MethodGet, "/metrics", s.serve(&endpoint{role: RoleViewer, near: true, raw: true,
			handle: func(s *Server, w http.ResponseWriter, r *http.Request, _ *query) error {
				s.metrics.ServeHTTP(w, r)
				return nil
			}}))
	}
	r.NotFound(s.unknownPath)
	r.MethodNotAllowed(s.unknownMethod)
	return r
}

// guard is around everything.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		ww := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler {
					panic(p)
				}
				s.log.Error().Str("method", r.Method).Str("path", r.URL.Path).
					Str("err", fmt.Sprint(p)).Bytes("stack", debug.Stack()).Msg("handler panicked")
				if ww.Status() == 0 {
					fail(http.StatusInternalServerError, "internal", "the server failed; its log says how").write(ww, r)
				}
			}
			// The path only: a query may hold a token.
			s.log.Debug().Str("method", r.Method).Str("path", r.URL.Path).Int("status", ww.Status()).
				Int("bytes_out", ww.BytesWritten()).Dur("dur_ms", time.Since(start)).Msg("request")
		}()
		next.ServeHTTP(ww, r)
	})
}

// serve is the frame of every call: who asks, what with, and what of errors.
func (s *Server) serve(e *endpoint) http.HandlerFunc {
	names := make([]string, len(e.query))
	for i, p := range e.query {
		names[i] = p.name
	}
	return func(w http.ResponseWriter, r *http.Request) {
		admitted, err := s.admit(e, r)
		if err != nil {
			s.refuse(w, r, err)
			return
		}
		if lag := s.store.Lag(); lag > 0 && s.store.Current() != nil {
			w.Header().Set(StaleHeader, lb.Duration(lag.Truncate(time.Second)).String())
		}
		q := &query{}
		if !e.raw {
			q = queryOf(r, names...)
		}
		if err := e.handle(s, w, admitted, q); err != nil {
			s.refuse(w, r, err)
		}
	}
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // nobody is listening
	}
	f := failureOf(err)
	if f.status >= 500 {
		s.log.Error().Str("method", r.Method).Str("path", r.URL.Path).Int("status", f.status).Err(err).Msg("call failed")
	}
	f.write(w, r)
}

func (s *Server) unknownPath(w http.ResponseWriter, r *http.Request) {
	if s.dashboard != nil && (r.Method == http.MethodGet || r.Method == http.MethodHead) && !strings.HasPrefix(r.URL.Path, Base+"/") {
		s.dashboard.ServeHTTP(w, r)
		return
	}
	fail(http.StatusNotFound, "not-found", "there is nothing at %s; %s/openapi.json lists what there is%s", r.URL.Path, Base, nearPath(r.URL.Path)).write(w, r)
}

// nearPath proposes the call whose first word is nearly that of the path.
func nearPath(path string) string {
	rest, ok := strings.CutPrefix(path, Base+"/")
	if !ok {
		return ""
	}
	var words []string
	for i := range endpoints {
		if p, ok := strings.CutPrefix(endpoints[i].path, Base+"/"); ok {
			word, _, _ := strings.Cut(p, "/")
			words = append(words, word)
		}
	}
	word, _, _ := strings.Cut(rest, "/")
	if slices.Contains(words, word) {
		return ""
	}
	return lb.DidYouMean(word, words)
}

func (s *Server) unknownMethod(w http.ResponseWriter, r *http.Request) {
	var allowed []string
	for _, m := range methods {
		look := m
		if m == http.MethodHead {
			look = http.MethodGet
		}
		if s.router.Match(chi.NewRouteContext(), look, r.URL.Path) {
			allowed = append(allowed, m)
		}
	}
	f := fail(http.StatusMethodNotAllowed, "method", "%s does not take %s; it takes %s", r.URL.Path, r.Method, strings.Join(allowed, ", "))
	f.header = http.Header{"Allow": {strings.Join(allowed, ", ")}}
	f.write(w, r)
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, status int, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	writeJSON(w, status, data)
	return nil
}

func writeJSON(w http.ResponseWriter, status int, data []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	// Errors from here on are the client's going away.
	_, _ = w.Write(append(data, '\n'))
}

// answerObject is answer with the object's ETag; a GET that knows it gets 304.
func answerObject(w http.ResponseWriter, r *http.Request, status int, revision int64, v any) error {
	tag := ETag(revision)
	w.Header().Set("ETag", tag)
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		for _, t := range tagsOf(r.Header.Values("If-None-Match")) {
			if t == "*" || strings.TrimPrefix(t, "W/") == tag {
				w.WriteHeader(http.StatusNotModified)
				return nil
			}
		}
	}
	return answer(w, status, v)
}

// settleTime bounds how long a writer waits for its own write to come back by
// the store's watch. It takes a millisecond.
const settleTime = 2 * time.Second

// update makes one change and returns the state that holds it, so that who
// wrote reads what he wrote.
func (s *Server) update(r *http.Request, action, note string, f func(*store.Draft) error) (store.Result, *lb.Snapshot, error) {
	res, err := s.store.Update(r.Context(), audit(r, action, note), f)
	if err != nil {
		return res, nil, err
	}
	return res, s.settled(r.Context(), res.Revision), nil
}

// settled returns the current state once it is at the revision. When that
// takes too long it returns what there is: the change is stored all the same.
func (s *Server) settled(ctx context.Context, revision int64) *lb.Snapshot {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	if err := s.store.WaitRevision(ctx, revision); err != nil {
		s.log.Warn().Int64("revision", revision).Err(err).Msg("a write has not come back by the watch")
	}
	return s.store.Current()
}

// patience lets the answer be written after the wait whatever the server's
// write timeout is.
func patience(w http.ResponseWriter, wait time.Duration) {
	if wait > 0 {
		// An error means that the connection knows no deadlines.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(wait + writeTime))
	}
}

// writeTime is how long a client may take to read what is on its way.
const writeTime = 30 * time.Second

// pause waits, and reports whether it waited to the end.
func (s *Server) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-s.closing.Done():
		return false
	case <-t.C:
		return true
	}
}
