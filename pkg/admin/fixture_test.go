package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/cluster"
	"difylb/pkg/lb"
	"difylb/pkg/store"
	"difylb/pkg/store/embedded"
	"difylb/pkg/store/storetest"
)

// etcdURLs is where all tests of the package find etcd.
var etcdURLs []string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "admin-test-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	etcd := embedded.New(embedded.Options{
		DataDir: dir, ListenClient: "http://127.0.0.1:0", ListenPeer: "http://127.0.0.1:0", NoSync: true, Log: zerolog.Nop(),
	})
	if err := etcd.Start(context.Background()); err != nil {
		panic(err)
	}
	etcdURLs = etcd.Client()
	code := m.Run()
	if left := leftOver(); code == 0 && left != "" {
		fmt.Fprintf(os.Stderr, "goroutines are left over:\n%s\n", left)
		code = 1
	}
	if err := etcd.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// leftOver waits for the goroutines of handlers, clients and stores to end and
// returns those that do not. etcd's own, which still runs, do not count.
func leftOver() string {
	var left []string
	for range 500 {
		left = nil
		buf := make([]byte, 4<<20)
		for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if !strings.Contains(g, "TestMain") && (strings.Contains(g, "difylb/pkg/") || strings.Contains(g, "net/http.(*conn)") || strings.Contains(g, "net/http.(*persistConn)")) {
				left = append(left, g)
			}
		}
		if left == nil {
			return ""
		}
		time.Sleep(10 * time.Millisecond)
	}
	return strings.Join(left, "\n\n")
}

// fixture is a server on a real store, with tokens of every role.
type fixture struct {
	t      testing.TB
	store  *store.Store
	hub    *fakeHub
	server *Server
	http   *httptest.Server
	log    *syncBuffer
	tokens map[AccessRole]lb.Secret
	admin  *Client
}

func newFixture(t testing.TB, change ...func(*Options)) *fixture {
	t.Helper()
	f := &fixture{t: t, log: &syncBuffer{}, tokens: make(map[AccessRole]lb.Secret)}
	st := storetest.OpenAt(t, etcdURLs[0], storetest.Prefix(t))
	f.store = st
	for _, role := range []AccessRole{RoleViewer, RoleOperator, RoleAdmin} {
		f.tokens[role] = lb.NewSecret("lb-")
		if err := st.PutAccess(ctx, newAccess(string(role), role, f.tokens[role])); err != nil {
			t.Fatal(err)
		}
	}
	f.hub = &fakeHub{store: st}
	closing, close := context.WithCancel(context.Background())
	o := Options{Store: st, Hub: f.hub, Log: zerolog.New(f.log).Level(zerolog.DebugLevel), NodeID: "n1", Version: "1.2.3", Closing: closing}
	for _, c := range change {
		c(&o)
	}
	f.server = New(o)
	f.http = httptest.NewServer(f.server.Handler())
	t.Cleanup(func() { close(); f.http.Close() })
	f.admin = f.client(RoleAdmin)
	return f
}

func (f *fixture) client(role AccessRole) *Client {
	c, err := NewClient(ClientOptions{Server: f.http.URL, Token: f.tokens[role], HTTPClient: f.http.Client()})
	if err != nil {
		f.t.Fatal(err)
	}
	return c
}

// reply is an answer read to its end.
type reply struct {
	status int
	header http.Header
	body   string
}

func (r reply) problem(t *testing.T) Problem {
	t.Helper()
	var p Problem
	if r.header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("%d %s is no problem: %s", r.status, r.header.Get("Content-Type"), r.body)
	}
	if err := json.Unmarshal([]byte(r.body), &p); err != nil {
		t.Fatalf("%v: %s", err, r.body)
	}
	if p.Status != r.status || p.Title == "" || !strings.HasPrefix(p.Type, typePrefix) {
		t.Errorf("problem %+v with status %d", p, r.status)
	}
	return p
}

// call sends a request with the token of a role ("" sends none); headers are
// pairs of name and value.
func (f *fixture) call(role AccessRole, method, path, body string, headers ...string) reply {
	f.t.Helper()
	var token lb.Secret
	if role != "" {
		token = f.tokens[role]
	}
	return f.callWith(token, method, path, body, headers...)
}

func (f *fixture) callWith(token lb.Secret, method, path, body string, headers ...string) reply {
	f.t.Helper()
	req, err := http.NewRequest(method, f.http.URL+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token.Reveal())
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := f.http.Client().Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(data)}
}

// want is call for an expected status.
func (f *fixture) want(status int, role AccessRole, method, path, body string, headers ...string) reply {
	f.t.Helper()
	r := f.call(role, method, path, body, headers...)
	if r.status != status {
		f.t.Fatalf("%s %s: %d, want %d: %s", method, path, r.status, status, r.body)
	}
	return r
}

const shop = `
applications:
  shop:
    user_tokens: [{token: user-token-shop-1, label: web}]
    instances:
      - {name: dify1, host: 10.0.0.1, token: app-token-dify1-aaaa}
      - {name: dify2, host: 10.0.0.2, port: 8080, token: app-token-dify2-bbbb}
  desk:
    user_tokens: [user-token-desk-1]
    instances:
      - {name: only, url: "https://api.dify.ai", token: app-token-only-cccc}
settings:
  rate_limit: {per_ip: {rate: 200, burst: 100}}
`

func (f *fixture) applyShop() *ApplyResult {
	f.t.Helper()
	res, err := f.admin.Apply(context.Background(), []byte(shop), ApplyOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	return res
}

// fakeHub plays proxies that tests move by hand.
type fakeHub struct {
	store *store.Store
	mu    sync.Mutex // guards all below
	nodes []cluster.NodeStatus
	open  int64

	checks []cluster.NodeCheck

	ejectedBy map[string][]string // by instance
}

func (h *fakeHub) Check(context.Context, string) []cluster.NodeCheck {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.checks
}

func (h *fakeHub) set(open int64, nodes ...cluster.NodeStatus) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open, h.nodes = open, nodes
}

func (h *fakeHub) Nodes() []cluster.NodeStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]cluster.NodeStatus(nil), h.nodes...)
}

func (h *fakeHub) Status() *cluster.Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	snap := h.store.Current()
	st := &cluster.Status{Status: "running", Timestamp: time.Now(), Complete: true, Revision: snap.ConfigRevision, Applications: map[string]*cluster.ApplicationStatus{}}
	for _, n := range h.nodes {
		if n.Role == lb.RoleProxy {
			st.Nodes.Proxies++
			if n.Connected {
				st.Nodes.Reporting++
			}
		}
	}
	for _, a := range snap.Applications {
		as := &cluster.ApplicationStatus{Instances: map[string]*cluster.InstanceStatus{}}
		for _, in := range a.Instances {
			by := h.ejectedBy[in.Name]
			as.Instances[in.Name] = &cluster.InstanceStatus{
				Active: h.open, State: in.State, EjectedBy: by,
				Status: lb.StatusWord(in.State, len(by) > 0, snap.HealthOf(a.Name, in.Name).Health),
			}
		}
		st.Applications[a.Name] = as
	}
	return st
}

func (h *fakeHub) WaitReceipts(ctx context.Context, revision int64) ([]cluster.Lagging, error) {
	for {
		var lagging []cluster.Lagging
		for _, n := range h.Nodes() {
			if n.Role == lb.RoleProxy && n.ConfigRevision < revision {
				lagging = append(lagging, cluster.Lagging{Node: n.ID, ConfigRevision: n.ConfigRevision, Refused: n.Refused})
			}
		}
		if lagging == nil {
			return nil, nil
		}
		select {
		case <-ctx.Done():
			return lagging, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

var _ Hub = (*cluster.Hub)(nil)

func proxy(id string, revision int64) cluster.NodeStatus {
	return cluster.NodeStatus{ID: id, Role: lb.RoleProxy, BootID: "b-" + id, Version: "1", Connected: true, ConfigRevision: revision, State: cluster.NodeOK}
}

// syncBuffer is a log that may be read while it is written.
type syncBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
