package proxy

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/names"
	"difylb/test/testbed"
)

// An instance's name that moves takes all new requests with it, though the old
// address still answers.
func TestNames_Move(t *testing.T) {
	port := testbed.FreePorts(t, 1)
	under, release := make(chan struct{}), make(chan struct{})
	for _, host := range []string{"127.0.0.1", "127.0.0.9"} {
		ln, err := net.Listen("tcp", fmt.Sprintf("%s:%d", host, port))
		if err != nil {
			t.Skip(err)
		}
		srv := &httptest.Server{Listener: ln, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/slow" {
				close(under)
				<-release
			}
			fmt.Fprint(w, host)
		})}}
		srv.Start()
		t.Cleanup(srv.Close)
	}
	dns := testbed.NewDNS(t, "127.0.0.1")
	by := names.New(names.Options{Servers: []netip.AddrPort{dns.Address}, Valid: 100 * time.Millisecond})
	r := newRig(t, func(o *Options, a *lb.Application) {
		o.Names = by
		a.Instances = []lb.Instance{instanceAt("a", fmt.Sprintf("http://dify.example.:%d", port))}
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = by.Run(ctx) }()
	defer func() { cancel(); <-done }()
	served := func() string {
		t.Helper()
		resp, body := r.do("GET", "/v1/info", "u", "")
		if resp.StatusCode != 200 {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
		return body
	}
	idle := func() (n int) {
		u := r.p.view.Load().apps[0].instances[0].upstream
		for i := range u.idle {
			u.idle[i].mu.Lock()
			n += len(u.idle[i].conns)
			u.idle[i].mu.Unlock()
		}
		return n
	}
	if at := served(); at != "127.0.0.1" {
		t.Fatalf("served by %s", at)
	}
	testbed.Within(t, 10*time.Second, "the connection is idle", func() bool { return idle() == 1 })
	r.p.followNames(true)
	if idle() != 1 {
		t.Fatal("a connection to where the name leads was closed")
	}
	before := r.p.view.Load()
	dns.Answer("127.0.0.1", "::1")
	testbed.Within(t, 30*time.Second, "the name has a second address", func() bool { by.Use("dify.example."); return len(by.Known("dify.example.")) == 2 })
	r.p.followNames(false)
	if r.p.view.Load() != before || idle() != 1 {
		t.Error("a second address has closed connections to the first")
	}
	// A request that is under way ends where it is, and its connection with it.
	slow := make(chan string)
	go func() {
		_, body := r.do("GET", "/v1/slow", "u", "")
		slow <- body
	}()
	<-under
	dns.Answer("127.0.0.9")
	testbed.Within(t, 30*time.Second, "the name has moved", func() bool { return by.Known("dify.example.")[0].String() == "127.0.0.9" })
	r.p.followNames(false)
	if idle() != 0 {
		t.Error("an idle connection to where the name led before is kept")
	}
	if at := served(); at != "127.0.0.9" {
		t.Errorf("served by %s after the move", at)
	}
	close(release)
	if at := <-slow; at != "127.0.0.1" {
		t.Errorf("what was under way was answered by %s", at)
	}
	testbed.Within(t, 10*time.Second, "one connection is left", func() bool { return r.p.Pool().Open == 1 })
	if at := served(); at != "127.0.0.9" {
		t.Errorf("served by %s after all", at)
	}
	testbed.Within(t, 10*time.Second, "that connection is idle again", func() bool { return idle() == 1 })
	testbed.Within(t, 10*time.Second, "nothing is in flight", func() bool { return r.p.view.Load().apps[0].instances[0].gate.InFlight() == 0 })
}
