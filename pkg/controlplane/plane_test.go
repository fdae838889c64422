package controlplane_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/admin"
	"difylb/pkg/controlplane"
	"difylb/pkg/daemon"
	"difylb/pkg/lb"
	"difylb/pkg/store"
	"difylb/pkg/store/storetest"
)

type running struct {
	*controlplane.Plane
	t    *testing.T
	end  func()
	kill context.CancelCauseFunc
}

func start(t *testing.T, o controlplane.Options) *running {
	t.Helper()
	o.Log, o.Version, o.HTTPListen, o.GRPCListen = zerolog.Nop(), "test", "127.0.0.1:0", "127.0.0.1:0"
	o.EtcdListenClient, o.EtcdListenPeer = "http://127.0.0.1:0", "http://127.0.0.1:0"
	return run(t, o)
}

func run(t *testing.T, o controlplane.Options) *running {
	t.Helper()
	p, err := controlplane.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	r := &running{Plane: p, t: t, kill: cancel}
	ended := false
	r.end = func() {
		if ended {
			return
		}
		ended = true
		cancel(errors.New("test ends"))
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Error("the control plane does not end")
		}
	}
	t.Cleanup(r.end)
	select {
	case <-p.Ready():
	case err := <-done:
		done <- nil
		t.Fatal(err)
	case <-time.After(30 * time.Second):
		t.Fatal("the control plane is not ready")
	}
	return r
}

func (r *running) client(tokenFile string) *admin.Client {
	r.t.Helper()
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := admin.NewClient(admin.ClientOptions{Server: "http://" + r.Address(), Token: lb.Secret(strings.TrimSpace(string(token)))})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.Close)
	return c
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within 15 s: ", what)
		}
	}
}

// declare applies one application with one instance, probed every 100 ms.
func declare(t *testing.T, c *admin.Client, instance string) {
	t.Helper()
	doc := `{"applications":{"shop":{"user_tokens":["user-token-shop"],"health_check":{"interval":"100ms","timeout":"1s","unhealthy_threshold":2},` +
		`"instances":[{"name":"a","url":"` + instance + `","token":"app-a-secret"}]}}}`
	if _, err := c.Apply(context.Background(), []byte(doc), admin.ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
}

func status(t *testing.T, c *admin.Client) string {
	t.Helper()
	s, err := c.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if s.Applications["shop"] == nil {
		return ""
	}
	return s.Applications["shop"].Instances["a"].Status
}

func TestPlane_EmbeddedEtcdKeepsEverythingOverARestart(t *testing.T) {
	dir := t.TempDir()
	r := start(t, controlplane.Options{NodeID: "adm", DataDir: dir, Store: store.Options{Prefix: "/difylb"}})
	token := filepath.Join(dir, admin.TokenFile)
	if st, err := os.Stat(token); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("token file: %v, %v", st, err)
	}
	declare(t, r.client(token), "http://127.0.0.1:1")
	r.end()

	before, _ := os.ReadFile(token)
	r = start(t, controlplane.Options{NodeID: "adm", DataDir: dir, Store: store.Options{Prefix: "/difylb"}})
	if after, _ := os.ReadFile(token); string(after) != string(before) {
		t.Error("a second start made another token")
	}
	app, err := r.client(token).Application(context.Background(), "shop")
	if err != nil || len(app.Instances) != 1 {
		t.Fatalf("%+v, %v", app, err)
	}
}

func TestPlane_ProbesWithTheInstancesToken(t *testing.T) {
	var answer atomic.Int64
	answer.Store(200)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/info" || r.Header.Get("Authorization") != "Bearer app-a-secret" {
			w.WriteHeader(418)
			return
		}
		w.WriteHeader(int(answer.Load()))
	}))
	defer srv.Close()
	dir := t.TempDir()
	r := start(t, controlplane.Options{NodeID: "adm", DataDir: dir, Store: store.Options{Prefix: "/difylb"}})
	c := r.client(filepath.Join(dir, admin.TokenFile))
	declare(t, c, srv.URL)
	for _, want := range []struct {
		code   int64
		status string
	}{{200, "healthy"}, {500, "unhealthy"}, {401, "token_rejected"}, {200, "healthy"}} {
		answer.Store(want.code)
		eventually(t, want.status, func() bool { return status(t, c) == want.status })
	}
}

func TestPlane_AnotherTakesOverTheProbing(t *testing.T) {
	endpoint, prefix := storetest.Etcd(t), storetest.Prefix(t)
	var probes atomic.Int64
	var down atomic.Bool
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		probes.Add(1)
		if down.Load() {
			w.WriteHeader(503)
		}
	}))
	defer srv.Close()
	opts := func(id string) controlplane.Options {
		return controlplane.Options{NodeID: id, DataDir: filepath.Join(t.TempDir(), id), Store: store.Options{Endpoints: []string{endpoint}, Prefix: prefix}}
	}
	one := opts("one")
	first := start(t, one)
	token := filepath.Join(one.DataDir, admin.TokenFile)
	second := start(t, opts("two"))
	c := second.client(token) // one token is good for all lb-admins
	declare(t, c, srv.URL)
	eventually(t, "healthy", func() bool { return status(t, c) == "healthy" })
	nodes, err := c.Nodes(context.Background())
	if err != nil || len(nodes) != 2 {
		t.Fatalf("%+v, %v", nodes, err)
	}
	first.end()
	had := probes.Load()
	eventually(t, "the second probes", func() bool { return probes.Load() > had+3 })
	if s := status(t, c); s != "healthy" {
		t.Errorf("taking over made it %s", s)
	}
	down.Store(true)
	eventually(t, "unhealthy", func() bool { return status(t, c) == "unhealthy" })
}

func TestNew_SaysWhatIsWrong(t *testing.T) {
	busy := httptest.NewServer(http.NotFoundHandler())
	defer busy.Close()
	addr := strings.TrimPrefix(busy.URL, "http://")
	for name, o := range map[string]controlplane.Options{
		"--http-listen": {HTTPListen: addr, GRPCListen: "127.0.0.1:0"},
		"--grpc-listen": {HTTPListen: "127.0.0.1:0", GRPCListen: addr},
		"--client-ca":   {ClientCA: "x"},
		"--tls-cert":    {TLSCert: "none", TLSKey: "none"},
	} {
		o.Log = zerolog.Nop()
		if _, err := controlplane.New(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		} else if strings.HasSuffix(name, "listen") == (daemon.ExitCode(err) == 2) {
			t.Errorf("%s: exit code %d", name, daemon.ExitCode(err))
		}
	}
}

func TestPlane_EtcdDataDirInUse(t *testing.T) {
	dir := t.TempDir()
	start(t, controlplane.Options{NodeID: "adm", DataDir: dir, Store: store.Options{Prefix: "/difylb"}})
	p, err := controlplane.New(controlplane.Options{NodeID: "adm2", DataDir: dir, HTTPListen: "127.0.0.1:0", GRPCListen: "127.0.0.1:0",
		EtcdListenClient: "http://127.0.0.1:0", EtcdListenPeer: "http://127.0.0.1:0", Store: store.Options{Prefix: "/difylb"}, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := p.Run(ctx); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("want an error that names %s, got %v", dir, err)
	}
}

// Nobody can use an lb-admin whose first token could not be written: it is not ready.
func TestPlane_IsNotReadyWithoutItsToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := controlplane.New(controlplane.Options{NodeID: "adm", DataDir: filepath.Join(file, "below"), HTTPListen: "127.0.0.1:0", GRPCListen: "127.0.0.1:0",
		Store: store.Options{Endpoints: []string{storetest.Etcd(t)}, Prefix: storetest.Prefix(t)}, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() { cancel(); <-done }()
	eventually(t, "only the token is missing", func() bool {
		resp, err := http.Get("http://" + p.Address() + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode == http.StatusOK {
			t.Fatalf("ready without a token: %s", body)
		}
		return strings.Contains(string(body), `"bootstrap: `)
	})
	select {
	case <-p.Ready():
		t.Error("Ready is closed")
	default:
	}
}
