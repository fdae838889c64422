package dataplane_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/daemon"
	"difylb/pkg/dataplane"
	"difylb/pkg/lb"
	"difylb/pkg/store"
	"difylb/pkg/store/storetest"
)

// plane runs a proxy and ends it with the test, or before by the function it returns.
func plane(t *testing.T, endpoint, prefix, dir string) (*dataplane.Plane, func()) {
	t.Helper()
	p, err := dataplane.New(dataplane.Options{
		NodeID: "p1", Version: "test", Listen: []string{"127.0.0.1:0"}, OpsListen: "127.0.0.1:0",
		Store: store.Options{Endpoints: []string{endpoint}, Prefix: prefix}, DataDir: dir, AccessLog: filepath.Join(dir, "access.log"),
		ShutdownGrace: 5 * time.Second, MaxConnections: 100, MaxBody: 1 << 20, StatusAllow: daemon.PrivatePrefixes(), Log: zerolog.Nop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	ended := false
	end := func() {
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
		case <-time.After(20 * time.Second):
			t.Error("the proxy does not end")
		}
	}
	t.Cleanup(end)
	return p, end
}

func ready(t *testing.T, p *dataplane.Plane) {
	t.Helper()
	select {
	case <-p.Ready():
	case <-time.After(15 * time.Second):
		t.Fatal("the proxy is not ready")
	}
}

func declare(t *testing.T, st *store.Store, instance string) {
	t.Helper()
	u, _ := url.Parse(instance)
	port, _ := strconv.Atoi(u.Port())
	_, err := st.Update(context.Background(), lb.Audit{Who: "test", Action: "apply"}, func(d *store.Draft) error {
		app := lb.NewApplication("shop")
		app.Check.Type = lb.CheckNone
		app.UserTokens = []lb.UserToken{lb.NewUserToken("user-token-shop", "", false)}
		in := lb.Instance{Name: "a", Host: u.Hostname(), Port: port, Token: "app-a"}
		in.SetDefaults()
		app.Instances = []lb.Instance{in}
		d.Put(app)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func ask(t *testing.T, p *dataplane.Plane) (int, string) {
	t.Helper()
	req, _ := http.NewRequest("GET", "http://"+p.Addresses()[0]+"/v1/info?user_id=u", nil)
	req.Header.Set("Authorization", "Bearer user-token-shop")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func get(t *testing.T, url string) (int, map[string]any) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

func TestPlane_FollowsTheStore(t *testing.T) {
	endpoint, prefix := storetest.Etcd(t), storetest.Prefix(t)
	st := storetest.OpenAt(t, endpoint, prefix)
	p, end := plane(t, endpoint, prefix, t.TempDir())
	ready(t, p)
	if code, _ := ask(t, p); code != 401 {
		t.Errorf("before there is an application: %d", code)
	}
	for _, name := range []string{"one", "two"} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, name, r.Header.Get("Authorization")) }))
		defer srv.Close()
		declare(t, st, srv.URL)
		deadline := time.Now().Add(5 * time.Second)
		for {
			code, body := ask(t, p)
			if code == 200 && body == name+"Bearer app-a" {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d %s", code, body)
			}
		}
	}
	code, body := get(t, "http://"+p.OpsAddress()+"/readyz")
	if code != 200 || body["status"] != "ready" || body["etcd_connected"] != true {
		t.Errorf("%d %v", code, body)
	}
	resp, err := http.Get("http://" + p.OpsAddress() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	metrics, _ := io.ReadAll(resp.Body)
	for _, want := range []string{`difylb_requests_total{app="shop",reason="ok"}`, "difylb_config_revision ", "difylb_instance_request_duration_seconds_bucket", `difylb_requests_total{app="",reason="unauthorized"}`} {
		if !strings.Contains(string(metrics), want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	end()
	if snap := st.Current(); len(snap.Nodes) != 0 {
		deadline := time.Now().Add(5 * time.Second)
		for len(st.Current().Nodes) != 0 && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond)
		}
		if n := st.Current().Nodes; len(n) != 0 {
			t.Errorf("still registered: %+v", n)
		}
	}
}

func TestPlane_StartsAndServesWhileTheStoreIsGone(t *testing.T) {
	endpoint, prefix, dir := storetest.Etcd(t), storetest.Prefix(t), t.TempDir()
	st := storetest.OpenAt(t, endpoint, prefix)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "served") }))
	defer srv.Close()
	declare(t, st, srv.URL)
	p, end := plane(t, endpoint, prefix, dir)
	ready(t, p)
	if code, body := ask(t, p); code != 200 {
		t.Fatalf("%d %s", code, body)
	}
	end()

	p, _ = plane(t, "http://127.0.0.1:1", prefix, dir) // nobody listens there
	ready(t, p)
	if code, body := ask(t, p); code != 200 || body != "served" {
		t.Fatalf("%d %s", code, body)
	}
	code, body := get(t, "http://"+p.OpsAddress()+"/readyz")
	if code != 200 || body["etcd_connected"] != false || body["config_stale_seconds"].(float64) <= 0 {
		t.Errorf("%d %v", code, body)
	}
	code, body = get(t, "http://"+p.Addresses()[0]+"/status")
	if code != 200 || body["complete"] != false {
		t.Errorf("%d %v", code, body)
	}
}

func TestNew_SaysWhatIsWrong(t *testing.T) {
	base := dataplane.Options{NodeID: "p", Listen: []string{"127.0.0.1:0"}, DataDir: t.TempDir(), AccessLog: "off", Log: zerolog.Nop(),
		Store: store.Options{Endpoints: []string{"http://127.0.0.1:1"}, Prefix: "/x"}}
	busy := httptest.NewServer(http.NotFoundHandler())
	defer busy.Close()
	for name, edit := range map[string]func(*dataplane.Options){
		"--listen":     func(o *dataplane.Options) { o.Listen = []string{strings.TrimPrefix(busy.URL, "http://")} },
		"--ops-listen": func(o *dataplane.Options) { o.OpsListen = strings.TrimPrefix(busy.URL, "http://") },
		"--tls-listen": func(o *dataplane.Options) { o.TLSListen = []string{"127.0.0.1:0"} },
		"--tls-cert": func(o *dataplane.Options) {
			o.TLSListen = []string{"127.0.0.1:0"}
			o.TLSCert, o.TLSKey = "none", "none"
		},
		"--access-log":    func(o *dataplane.Options) { o.AccessLog = "/no/such/directory/log" },
		"--access-log: f": func(o *dataplane.Options) { o.AccessLog, o.AccessLogFormat = "-", "sead" },
		"--otlp-endpoint": func(o *dataplane.Options) { o.OTLPEndpoint = "grpc://collector:4317" },
	} {
		o := base
		edit(&o)
		if _, err := dataplane.New(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
