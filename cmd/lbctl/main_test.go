package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/admin"
	"difylb/pkg/cluster"
	"difylb/pkg/lb"
	"difylb/pkg/store"
	"difylb/pkg/store/embedded"
	"difylb/pkg/store/storetest"
)

var update = flag.Bool("update", false, "write the golden files in testdata anew; review the diff")

// etcd is started by the first test that needs it and ended after the last.
var etcd struct {
	sync.Mutex
	server *embedded.Server
	dir    string
}

func TestMain(m *testing.M) {
	code := m.Run()
	if left := leftOver(); code == 0 && left != "" {
		fmt.Fprintf(os.Stderr, "goroutines are left over:\n%s\n", left)
		code = 1
	}
	if etcd.server != nil {
		if err := etcd.server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.RemoveAll(etcd.dir)
	}
	os.Exit(code)
}

// leftOver waits for what commands and servers started to end, and returns
// what does not. etcd's own, which still runs, does not count.
func leftOver() string {
	var left []string
	for range 500 {
		left = nil
		buf := make([]byte, 4<<20)
		for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			ours := strings.Contains(g, "difylb/cmd/") || strings.Contains(g, "difylb/pkg/admin") ||
				strings.Contains(g, "net/http.(*conn)") || strings.Contains(g, "net/http.(*persistConn)")
			if ours && !strings.Contains(g, "TestMain") {
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

func etcdURL(t *testing.T) string {
	t.Helper()
	etcd.Lock()
	defer etcd.Unlock()
	if etcd.server == nil {
		dir, err := os.MkdirTemp("", "lbctl-test-")
		if err != nil {
			t.Fatal(err)
		}
		etcd.dir = dir
		etcd.server = embedded.New(embedded.Options{
			DataDir: dir, ListenClient: "http://127.0.0.1:0", ListenPeer: "http://127.0.0.1:0", NoSync: true, Log: zerolog.Nop(),
		})
		if err := etcd.server.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	return etcd.server.Client()[0]
}

// bench runs commands in this process, with an environment of its own.
type bench struct {
	t     *testing.T
	env   map[string]string
	stdin string
	tweak func(*cli) // may change the run before it starts
	log   strings.Builder
}

func newBench(t *testing.T) *bench {
	t.Helper()
	home := t.TempDir()
	t.Chdir(home) // no ./data/lb-admin/admin.token of somebody else
	return &bench{t: t, env: map[string]string{"HOME": home}}
}

// run returns the exit code, and what was written to both outputs.
func (b *bench) run(args ...string) (int, string, string) {
	b.t.Helper()
	return b.runContext(b.t.Context(), args...)
}

func (b *bench) runContext(ctx context.Context, args ...string) (int, string, string) {
	b.t.Helper()
	var out, errs syncBuffer
	c := newCLI(strings.NewReader(b.stdin), &out, &errs)
	c.getenv = func(k string) string { return b.env[k] }
	if b.tweak != nil {
		b.tweak(c)
	}
	code := run(ctx, args, c)
	b.log.WriteString(out.String() + errs.String())
	return code, out.String(), errs.String()
}

// ok runs a command that must succeed and returns its output.
func (b *bench) ok(args ...string) string {
	b.t.Helper()
	code, out, errs := b.run(args...)
	if code != 0 {
		b.t.Fatalf("lbctl %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// fails runs a command that must end with the code and say all of the words.
func (b *bench) fails(want int, words string, args ...string) {
	b.t.Helper()
	code, out, errs := b.run(args...)
	if code != want {
		b.t.Errorf("lbctl %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), code, want, out, errs)
	}
	for _, w := range strings.Split(words, "|") {
		if !strings.Contains(errs, w) {
			b.t.Errorf("lbctl %s: says nothing of %q:\n%s", strings.Join(args, " "), w, errs)
		}
	}
	if want != 0 && !strings.Contains(errs, "lbctl: ") {
		b.t.Errorf("lbctl %s: the error does not say who speaks: %s", strings.Join(args, " "), errs)
	}
}

func (b *bench) file(name, content string) string {
	b.t.Helper()
	path := filepath.Join(b.env["HOME"], name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// golden compares with testdata/name.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join(sourceDir(), "testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it anew):\ngot:\n%s\nwant:\n%s", name, got, want)
	}
}

// sourceDir is where the tests stand, which change directory.
func sourceDir() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(file)
}

// rig is a bench in front of a real lb-admin's API on a real store; only
// the proxies are played.
type rig struct {
	*bench
	store  *store.Store
	hub    *playedHub
	server *httptest.Server
	tokens map[admin.AccessRole]lb.Secret
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{bench: newBench(t), tokens: make(map[admin.AccessRole]lb.Secret)}
	r.store = storetest.OpenAt(t, etcdURL(t), storetest.Prefix(t))
	for _, role := range []admin.AccessRole{admin.RoleViewer, admin.RoleOperator, admin.RoleAdmin} {
		token := lb.NewSecret("lb-")
		r.tokens[role] = token
		if err := r.store.PutAccess(t.Context(), store.AccessToken{SHA256: token.Hash(), Name: string(role), Role: store.AccessRole(role), Hint: token.Hint(), Created: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	r.hub = &playedHub{store: r.store}
	closing, end := context.WithCancel(context.Background())
	api := admin.New(admin.Options{Store: r.store, Hub: r.hub, Log: zerolog.Nop(), NodeID: "n1", Version: "1.2.3", Closing: closing})
	r.server = httptest.NewServer(api.Handler())
	t.Cleanup(func() { end(); r.server.Close() })
	r.env["LBCTL_SERVER"] = r.server.URL
	r.env["LBCTL_TOKEN"] = r.tokens[admin.RoleAdmin].Reveal()
	return r
}

// playedHub plays proxies that tests move by hand.
type playedHub struct {
	store *store.Store
	mu    sync.Mutex // guards what follows
	nodes []cluster.NodeStatus
	open  int64

	checks []cluster.NodeCheck
}

func (h *playedHub) Check(context.Context, string) []cluster.NodeCheck {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.checks
}

func (h *playedHub) set(open int64, nodes ...cluster.NodeStatus) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open, h.nodes = open, nodes
}

func (h *playedHub) Nodes() []cluster.NodeStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]cluster.NodeStatus(nil), h.nodes...)
}

func (h *playedHub) Status() *cluster.Status {
	snap := h.store.Current()
	st := &cluster.Status{Status: "running", Timestamp: time.Now(), Complete: true, Revision: snap.ConfigRevision, Applications: map[string]*cluster.ApplicationStatus{}}
	st.Nodes.Proxies, st.Nodes.Reporting = len(h.Nodes()), len(h.Nodes())
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range snap.Applications {
		as := &cluster.ApplicationStatus{Instances: map[string]*cluster.InstanceStatus{}}
		for _, in := range a.Instances {
			as.Instances[in.Name] = &cluster.InstanceStatus{Active: h.open, State: in.State, Status: lb.StatusWord(in.State, false, snap.HealthOf(a.Name, in.Name).Health)}
		}
		st.Applications[a.Name] = as
	}
	return st
}

func (h *playedHub) WaitReceipts(ctx context.Context, revision int64) ([]cluster.Lagging, error) {
	for {
		var lagging []cluster.Lagging
		for _, n := range h.Nodes() {
			if n.ConfigRevision < revision {
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

func played(id string, revision int64) cluster.NodeStatus {
	return cluster.NodeStatus{ID: id, Role: lb.RoleProxy, BootID: "b-" + id, Version: "1", Connected: true, ConfigRevision: revision}
}

// answers is a server that gives the same answers to everybody, for output
// that must not depend on revisions and times.
func answers(t *testing.T, b *bench, paths map[string]string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, ok := paths[r.Method+" "+r.URL.Path]
		if !ok {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(404)
			fmt.Fprintf(w, `{"type":"urn:x","title":"Not Found","status":404,"detail":"no answer for %s %s"}`, r.Method, r.URL.Path)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, body)
	}))
	t.Cleanup(s.Close)
	b.env["LBCTL_SERVER"], b.env["LBCTL_TOKEN"] = s.URL, "canned-token-0001"
}

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

// decodeInto reads JSON that a command printed.
func decodeInto[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}

// hangingServer answers when release is closed, or the client is gone.
func hangingServer(t *testing.T, release <-chan struct{}) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}
