package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/lb"
	"difylb/pkg/route"
	"difylb/pkg/stats"
)

// rig is a running Proxy with the instances that a test gave it.
type rig struct {
	t        testing.TB
	p        *Proxy
	s        *Server
	addr     string
	url      string
	app      *lb.Application
	settings lb.Settings
	rev      int64
	log      *syncBuffer // access log and process log
}

// syncBuffer is a bytes.Buffer for several goroutines.
type syncBuffer struct {
	mu  sync.Mutex
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

// newRig serves one application, "shop", with the token "user-token-shop",
// whose instances are named after their handlers: a, b, c …
func newRig(t testing.TB, edit func(*Options, *lb.Application), handlers ...http.Handler) *rig {
	t.Helper()
	app := lb.NewApplication("shop")
	app.UserTokens = []lb.UserToken{lb.NewUserToken("user-token-shop", "web", false)}
	for i, h := range handlers {
		srv := httptest.NewServer(h)
		t.Cleanup(srv.Close)
		app.Instances = append(app.Instances, instanceAt(string(rune('a'+i)), srv.URL))
	}
	log := new(syncBuffer)
	opts := Options{NodeID: "node-1", Registry: stats.NewRegistry(0), Log: zerolog.New(log), AccessLog: newAccessLog(log, zerolog.New(log)), StatusAllow: func(a netip.Addr) bool { return a.IsLoopback() }}
	opts.Limits.LastCall = time.Millisecond // tests need not wait for each other's clients
	if edit != nil {
		edit(&opts, app)
	}
	r := &rig{t: t, p: New(opts), app: app, log: log}
	r.apply()
	if l := opts.AccessLog; l != nil {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); l.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
	}
	r.s = NewServer(r.p)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.s.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		r.s.Shutdown(ctx)
		r.p.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	r.addr = ln.Addr().String()
	r.url = "http://" + r.addr
	return r
}

// dial opens a raw connection to the proxy.
func (r *rig) dial() *net.TCPConn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

// raw sends bytes and returns all that comes back until the proxy closes.
func (r *rig) raw(bytes string) string {
	r.t.Helper()
	c := r.dial()
	if _, err := io.WriteString(c, bytes); err != nil {
		r.t.Fatal(err)
	}
	b, _ := io.ReadAll(c)
	return string(b)
}

// lines returns the access log's lines so far that have the field.
func (r *rig) lines(field, value string) (out []map[string]any) {
	for line := range strings.SplitSeq(r.log.String(), "\n") {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) == nil && m[field] == value {
			out = append(out, m)
		}
	}
	return out
}

// eventually waits for a condition that is about to come true.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("did not happen: ", what)
		}
	}
}

func instanceAt(name, rawURL string) lb.Instance {
	u, _ := url.Parse(rawURL)
	port, _ := strconv.Atoi(u.Port())
	in := lb.Instance{Name: name, Host: u.Hostname(), Port: port, Token: lb.Secret("app-" + name + "-secret-token")}
	in.SetDefaults()
	return in
}

func (r *rig) apply() {
	r.t.Helper()
	r.rev++
	tbl, err := route.Build(&lb.Snapshot{Revision: r.rev, ConfigRevision: r.rev, Applications: []*lb.Application{r.app.Clone()}, Settings: r.settings}, r.p.Table())
	if err != nil {
		r.t.Fatal(err)
	}
	r.p.SetTable(tbl)
}

// do sends a request with the right token, and reads the answer.
func (r *rig) do(method, path, user, body string, fields ...string) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequest(method, r.url+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer user-token-shop")
	if user != "" {
		req.Header.Set("X-User-ID", user)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(fields); i += 2 {
		req.Header.Set(fields[i], fields[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp, string(b)
}

// owner returns the instance that the ring gives a user.
func (r *rig) owner(user string) string {
	a := r.p.Table().App("shop")
	return a.Instances[a.Ring.Owner(a.Point(user))].Decl.Name
}

// userOf returns a user whose owner is the instance.
func (r *rig) userOf(instance string) string {
	for i := range 10000 {
		if u := fmt.Sprint("user-", i); r.owner(u) == instance {
			return u
		}
	}
	r.t.Fatal("no user for ", instance)
	return ""
}

func echo(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s %s", name, r.Method, r.RequestURI, r.Header.Get("Authorization"), b)
	})
}

func TestProxy_RoutesByUserAndSwapsTheToken(t *testing.T) {
	r := newRig(t, nil, echo("a"), echo("b"), echo("c"))
	for i := range 60 {
		user := fmt.Sprint("u", i)
		want := r.owner(user)
		resp, body := r.do("POST", "/v1/chat-messages?x=%2f+1", "", `{"query":"hi","user":"`+user+`"}`)
		if exp := fmt.Sprintf(`%s POST /v1/chat-messages?x=%%2f+1 Bearer app-%s-secret-token {"query":"hi","user":"%s"}`, want, want, user); resp.StatusCode != 200 || body != exp {
			t.Fatalf("%d %s\nwant %s", resp.StatusCode, body, exp)
		}
	}
}

func TestProxy_RetriesWhatCouldNotConnect(t *testing.T) {
	r := newRig(t, nil, echo("a"), echo("b"))
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.app.Instances[0].Port = dead.Addr().(*net.TCPAddr).Port
	dead.Close()
	r.apply()
	user := r.userOf("a")
	for range 5 {
		resp, body := r.do("POST", "/v1/chat-messages", "", `{"user":"`+user+`"}`)
		if resp.StatusCode != 200 || !strings.HasPrefix(body, "b POST") || !strings.Contains(body, user) {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
	}
	if e := r.p.Ejections(time.Now()); len(e) != 1 || e[0].Instance != "a" {
		t.Errorf("ejections %v", e)
	}
}

func TestProxy_AnswersMalformedHTTPInDifysShape(t *testing.T) {
	r := newRig(t, nil, echo("a"))
	c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /v1/info HTTP/1.1\r\nHost: x\r\nBad Name: y\r\n\r\n")
	b, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 400 ") || !strings.Contains(string(b), `"code":"bad_request"`) || !strings.Contains(string(b), "Connection: close") {
		t.Errorf("%v %s", err, b)
	}
}
