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

// An instance's name that moves takes idle connections with it, though the
// old address still answers.
func TestNames_MoveIdleConnections(t *testing.T) {
	port := testbed.FreePorts(t, 1)
	for _, host := range []string{"127.0.0.1", "127.0.0.9"} {
		ln, err := net.Listen("tcp", fmt.Sprintf("%s:%d", host, port))
		if err != nil {
			t.Skip(err)
		}
		srv := &httptest.Server{Listener: ln, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, host) })}}
		srv.Start()
		t.Cleanup(srv.Close)
	}
	dns := testbed.NewDNS(t, "127.0.0.1")
	by := names.New(names.Options{Servers: []netip.AddrPort{dns.Address}, Valid: 100 * time.Millisecond})
	r := newRig(t, func(o *Options, a *lb.Application) {
		o.Names = by
		a.Instances = []lb.Instance{instanceAt("a", fmt.Sprintf("http://dify.example.:%d", port))}
	})
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
	r.p.followNames(true)
	if idle() != 1 {
		t.Fatal("a connection to where the name leads was closed")
	}
	dns.Answer("127.0.0.9")
	if at := served(); at != "127.0.0.1" {
		t.Fatalf("served by %s before anybody has asked", at)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = by.Run(ctx) }()
	defer func() { cancel(); <-done }()
	testbed.Within(t, 30*time.Second, "the name has moved", func() bool { return by.Known("dify.example.")[0].String() == "127.0.0.9" })
	r.p.followNames(false)
	if idle() != 0 {
		t.Error("an idle connection to where the name led before is kept")
	}
	if at := served(); at != "127.0.0.9" {
		t.Errorf("served by %s after the move", at)
	}
	// What comes back late from where it led is found by the next sweep.
	dns.Answer("127.0.0.1")
	testbed.Within(t, 30*time.Second, "the name has moved back", func() bool { return by.Known("dify.example.")[0].String() == "127.0.0.1" })
	u := r.p.view.Load().apps[0].instances[0].upstream
	u.dialer.known = &by.Known("dify.example.")[0] // it was in use when that was seen
	r.p.followNames(false)
	if idle() != 1 {
		t.Fatal("there is nothing to find")
	}
	r.p.followNames(true)
	if idle() != 0 {
		t.Error("the sweep has left a connection to an address that the name has left")
	}
}
