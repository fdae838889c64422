package controlplane_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/admin"
	"difylb/pkg/cluster"
	"difylb/pkg/controlplane"
	"difylb/pkg/daemon"
	"difylb/pkg/dataplane"
	"difylb/pkg/lb"
	"difylb/pkg/store"
)

// startProxy runs a real lb-proxy and returns its address.
func startProxy(t *testing.T, id string, endpoints []string) string {
	t.Helper()
	p, err := dataplane.New(dataplane.Options{
		NodeID: id, Version: "test", Listen: []string{"127.0.0.1:0"}, Store: store.Options{Endpoints: endpoints, Prefix: "/difylb"},
		DataDir: t.TempDir(), AccessLog: "off", ShutdownGrace: time.Second, MaxConnections: 1000, MaxBody: 1 << 20, StatusAllow: daemon.PrivatePrefixes(), Log: zerolog.Nop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel(errors.New("test ends"))
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-p.Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("the proxy is not ready")
	}
	return "http://" + p.Addresses()[0]
}

// unadvised counts answers 429 and 503 that do not say when to come again.
var unadvised atomic.Int64

// ask makes one request and returns its status, 0 for none.
func ask(url, token string) int {
	req, _ := http.NewRequest("GET", url+"/v1/info?user=alice", nil)
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	if (resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable) && resp.Header.Get("Retry-After") == "" {
		unadvised.Add(1)
	}
	return resp.StatusCode
}

// The whole of it, over HTTP: most of the traffic comes to one proxy, and what
// the cluster lets through is what is declared.
func TestCluster_SharesLimitsByDemand(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a quarter of a minute")
	}
	var open, most atomic.Int64
	instance := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Authorization"), "slow") {
			n := open.Add(1)
			defer open.Add(-1)
			for was := most.Load(); n > was && !most.CompareAndSwap(was, n); was = most.Load() {
			}
			time.Sleep(50 * time.Millisecond) // what a slow instance does
		}
		w.WriteHeader(http.StatusOK)
	}))
	defer instance.Close()
	dir := t.TempDir()
	r := start(t, controlplane.Options{NodeID: "adm", DataDir: dir, Store: store.Options{Prefix: "/difylb"}})
	c := r.client(filepath.Join(dir, admin.TokenFile))
	proxies := []string{startProxy(t, "p1", r.Endpoints()), startProxy(t, "p2", r.Endpoints())}
	const rate, slots = 60, 6
	doc := fmt.Sprintf(`{"applications":{
"fast":{"user_tokens":["user-token-fast"],"health_check":{"type":"none"},"rate_limit":{"per_user":{"rate":%d,"burst":20}},"instances":[{"name":"a","url":%q,"token":"app-fast-secret"}]},
"slow":{"user_tokens":["user-token-slow"],"health_check":{"type":"none"},"instances":[{"name":"a","url":%q,"token":"app-slow-secret","max_in_flight":%d}]}}}`, rate, instance.URL, instance.URL, slots)
	if _, err := c.Apply(t.Context(), []byte(doc), admin.ApplyOptions{Wait: 10 * time.Second}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both proxies serve it", func() bool {
		return ask(proxies[0], "user-token-fast") == 200 && ask(proxies[1], "user-token-fast") == 200
	})

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var passed atomic.Int64
	every := func(d time.Duration, url string) {
		wg.Go(func() {
			tick := time.NewTicker(d)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					wg.Go(func() {
						if ask(url, "user-token-fast") == 200 {
							passed.Add(1)
						}
					})
				case <-ctx.Done():
					return
				}
			}
		})
	}
	every(time.Second*10/(3*9*rate), proxies[0]) // nine tenths of three times the limit
	every(time.Second*10/(3*rate), proxies[1])
	for range 12 {
		wg.Go(func() {
			for ctx.Err() == nil {
				ask(proxies[0], "user-token-slow")
			}
		})
	}
	// Shares follow the traffic, which nothing announces: they are given time.
	settle := time.NewTimer(8 * time.Second)
	<-settle.C
	most.Store(0)
	passed.Store(0)
	began := time.Now()
	settle.Reset(5 * time.Second)
	<-settle.C
	got := float64(passed.Load()) / time.Since(began).Seconds()
	if math.Abs(got-rate) > 0.1*rate {
		t.Errorf("%.1f requests a second passed, want %d within 10 %%", got, rate)
	}
	if n := unadvised.Load(); n > 0 {
		t.Errorf("%d answers 429 and 503 are without Retry-After", n)
	}
	if n := most.Load(); n < slots-1 || n > slots {
		t.Errorf("%d requests were open at once at the busy proxy, want %d less the one that the other keeps", n, slots)
	}
	resp, err := http.Get("http://" + r.Address() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	metrics, _ := io.ReadAll(resp.Body)
	for _, want := range []string{"\ndifylb_limits_leased 2\n", "\ndifylb_propagation_seconds_count 1\n", "\ndifylb_nodes_ring_differs 0\n"} {
		if !strings.Contains(string(metrics), want) {
			t.Errorf("%q is not in the metrics", want)
		}
	}
}

// etcd comes back empty: the proxy serves on, says so, and believes it when an
// operator does.
func TestCluster_ALossIsAcceptedByWhoIsAsked(t *testing.T) {
	instance := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }))
	defer instance.Close()
	etcd := "http://" + freeAddress(t)
	one := controlplane.Options{NodeID: "adm", DataDir: t.TempDir(), Store: store.Options{Prefix: "/difylb"}, EtcdListenClient: etcd}
	r := startOn(t, one)
	c := r.client(filepath.Join(one.DataDir, admin.TokenFile))
	url := startProxy(t, "p1", []string{etcd})
	declare(t, c, instance.URL)
	eventually(t, "the application is served", func() bool { return ask(url, "user-token-shop") == 200 })
	r.end()

	two := one
	two.DataDir = t.TempDir()
	r = startOn(t, two)
	c = r.client(filepath.Join(two.DataDir, admin.TokenFile))
	held := func() (n admin.Node) {
		nodes, err := c.Nodes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i := range nodes {
			if nodes[i].ID == "p1" {
				n = nodes[i]
			}
		}
		return n
	}
	eventually(t, "the proxy says what it holds back", func() bool { return held().State == cluster.NodeHeldBack })
	if code := ask(url, "user-token-shop"); code != 200 {
		t.Errorf("it does not serve on: %d", code)
	}
	n := held()
	st, err := c.Status(t.Context())
	if err != nil || len(st.Refusing) != 1 || st.Refusing[0].Node != "p1" || !st.Refusing[0].HeldBack || st.Refusing[0].RefusedRevision != n.RefusedRevision {
		t.Errorf("%+v, %v", st.Refusing, err)
	}
	if _, err := c.AcceptNode(t.Context(), "p1", admin.AcceptRequest{Revision: n.RefusedRevision + 1, Epoch: n.RefusedEpoch}); !errors.Is(err, lb.ErrConflict) {
		t.Errorf("another revision: %v", err)
	}
	n, err = acceptHeld(t, c, held)
	if err != nil || n.State != cluster.NodeOK || n.Refused != "" {
		t.Fatalf("%+v, %v", n, err)
	}
	if code := ask(url, "user-token-shop"); code != 401 {
		t.Errorf("the empty configuration is in force, and a token of the old one gets %d", code)
	}
}

func acceptHeld(t *testing.T, c *admin.Client, held func() admin.Node) (admin.Node, error) {
	t.Helper()
	n := held()
	got, err := c.AcceptNode(t.Context(), n.ID, admin.AcceptRequest{Revision: n.RefusedRevision, Epoch: n.RefusedEpoch})
	if err != nil {
		return n, err
	}
	return *got, nil
}

func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// startOn is start with etcd where the options say.
func startOn(t *testing.T, o controlplane.Options) *running {
	t.Helper()
	o.Log, o.Version, o.HTTPListen, o.GRPCListen, o.EtcdListenPeer = zerolog.Nop(), "test", "127.0.0.1:0", "127.0.0.1:0", "http://127.0.0.1:0"
	return run(t, o)
}
