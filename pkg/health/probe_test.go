package health

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"difylb/test/testbed"
)

const testToken Token = "app-0123456789secret"

func askOnce(t *testing.T, a *asker, tg Target) answer {
	t.Helper()
	q := newQuestion(tg)
	ctx, cancel := context.WithTimeout(t.Context(), q.timeout)
	defer cancel()
	return a.ask(ctx, &q)
}

func check(t *testing.T, got answer, want Outcome, timedOut bool, reason string) {
	t.Helper()
	if got.outcome != want || got.timedOut != timedOut || !strings.Contains(got.reason, reason) {
		t.Errorf("outcome %d, timed out %v, %q; want %d, %v, %q", got.outcome, got.timedOut, got.reason, want, timedOut, reason)
	}
	if strings.Contains(got.reason, testToken.Reveal()) {
		t.Errorf("the token shows in %q", got.reason)
	}
}

func TestProbe_HTTPAnswers(t *testing.T) {
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch p := r.URL.Path; {
		case strings.HasPrefix(p, "/status/"):
			code := 0
			fmt.Sscanf(p, "/status/%d", &code)
			w.WriteHeader(code)
			io.WriteString(w, `{"mode": "chat"}`)
		case p == "/redirect":
			http.Redirect(w, r, other.URL, http.StatusFound)
		case p == "/huge":
			io.WriteString(w, "first")
			io.WriteString(w, strings.Repeat("x", maxBodyBytes))
			io.WriteString(w, "last")
			io.WriteString(w, strings.Repeat("x", 10<<20))
		case p == "/query":
			fmt.Fprintf(w, "q=%s", r.URL.RawQuery)
		}
	}))
	defer srv.Close()

	for _, tc := range []struct {
		name, path string
		edit       func(*Target)
		want       Outcome
		reason     string
	}{
		{"200", "/status/200", nil, Success, "status 200"},
		{"204 without body", "/status/204", nil, Success, "status 204"},
		{"401", "/status/401", nil, Rejection, "does not accept its token"},
		{"403", "/status/403", nil, Rejection, "status 403"},
		{"401 expected", "/status/401", func(t *Target) { t.Check.ExpectStatus = "200,401" }, Success, "status 401"},
		{"401 without a token sent", "/status/401", func(t *Target) { t.Check.SendToken = false }, Failure, "status 401, expected 200-299"},
		{"401 without a token", "/status/401", func(t *Target) { t.Token = "" }, Failure, "status 401, expected 200-299"},
		{"400", "/status/400", nil, Failure, "status 400"},
		{"500", "/status/500", nil, Failure, "status 500, expected 200-299"},
		{"200 not expected", "/status/200", func(t *Target) { t.Check.ExpectStatus = "204" }, Failure, "status 200, expected 204"},
		{"redirect", "/redirect", nil, Failure, "status 302"},
		{"redirect expected", "/redirect", func(t *Target) { t.Check.ExpectStatus = "302" }, Success, "status 302"},
		{"body", "/status/200", func(t *Target) { t.Check.ExpectBody = `"mode"` }, Success, "with the expected text"},
		{"other body", "/status/200", func(t *Target) { t.Check.ExpectBody = "welcome" }, Failure, "without the expected text"},
		{"body of another status", "/status/500", func(t *Target) { t.Check.ExpectBody = `"mode"` }, Failure, "status 500"},
		{"huge body", "/huge", nil, Success, "status 200"},
		{"huge body, text near", "/huge", func(t *Target) { t.Check.ExpectBody = "first" }, Success, ""},
		{"huge body, text beyond the limit", "/huge", func(t *Target) { t.Check.ExpectBody = "last" }, Failure, ""},
		{"query in the path", "/query?a=b%20c", func(t *Target) { t.Check.ExpectBody = "q=a=b%20c" }, Success, ""},
		{"path without slash", "status/200", nil, Success, ""},
		{"unknown type", "/status/200", func(t *Target) { t.Check.Type = "icmp" }, Failure, `"icmp"`},
		{"bad ranges", "/status/200", func(t *Target) { t.Check.ExpectStatus = "2xx" }, Failure, `"2xx"`},
		{"bad path", "/%zz", nil, Failure, "malformed"},
		{"bad url", "/", func(t *Target) { t.URL = "http://user:hunter2@[::1" }, Failure, "URL is malformed"},
		{"no scheme", "/", func(t *Target) { t.URL = "127.0.0.1:80" }, Failure, "URL is"},
		{"token with a line end", "/", func(t *Target) { t.Token += "\r\nX: y" }, Failure, "token cannot be sent"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tg := Target{URL: srv.URL, Token: testToken, Check: Check{Path: tc.path, SendToken: true, Timeout: 10 * time.Second}}
			if tc.edit != nil {
				tc.edit(&tg)
			}
			got := askOnce(t, newAsker(nil, nil), tg)
			check(t, got, tc.want, false, tc.reason)
			if strings.Contains(got.reason, "hunter2") {
				t.Errorf("the password shows in %q", got.reason)
			}
		})
	}
	if elsewhere.Load() != 0 {
		t.Error("a redirect was followed")
	}
}

func TestProbe_WhatIsSent(t *testing.T) {
	var mu sync.Mutex
	var seen *http.Request
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = r
	}))
	defer srv.Close()
	for _, tc := range []struct {
		tg               Target
		path, auth, host string
	}{
		{Target{URL: srv.URL, Token: testToken, Check: Check{SendToken: true}}, "/v1/info", "Bearer " + testToken.Reveal(), srv.Listener.Addr().String()},
		{Target{URL: srv.URL + "/dify/", Token: testToken, Host: "dify.example", Check: Check{Path: "/health"}}, "/dify/health", "", "dify.example"},
		{Target{URL: strings.Replace(srv.URL, "http://", "http://user:pass@", 1), Check: Check{SendToken: true}}, "/v1/info", "", srv.Listener.Addr().String()},
	} {
		check(t, askOnce(t, newAsker(nil, nil), tc.tg), Success, false, "status 200")
		mu.Lock()
		if seen.Method != "GET" || seen.URL.Path != tc.path || seen.Header.Get("Authorization") != tc.auth || seen.Host != tc.host || !seen.Close {
			t.Errorf("%s %s, auth %q, host %s, close %v", seen.Method, seen.URL, seen.Header.Get("Authorization"), seen.Host, seen.Close)
		}
		mu.Unlock()
	}
}

// listen serves each connection with serve until the test ends; the connection is closed when serve returns.
func listen(t *testing.T, serve func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return "http://" + ln.Addr().String()
}

// untilClosed reads until the other side hangs up.
func untilClosed(c *net.TCPConn) { io.Copy(io.Discard, c) }

func readHead(c net.Conn) {
	if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
		r.Body.Close()
	}
}

func TestProbe_WireFaults(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()

	for _, tc := range []struct {
		name     string
		url      string
		serve    func(*net.TCPConn)
		timedOut bool
		reason   string
	}{
		{"refuse", "http://" + gone.Addr().String(), nil, false, "connection refused"},
		{"hang before the answer", "", untilClosed, true, "no answer within 150ms"},
		{"slow header", "", func(c *net.TCPConn) {
			readHead(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			for i := 0; ; i++ {
				if _, err := fmt.Fprintf(c, "X-%d: y\r\n", i); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}, true, "no answer within 150ms"},
		{"hang in the body", "", func(c *net.TCPConn) {
			readHead(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
			untilClosed(c)
		}, true, "status 200, then in the body: no answer"},
		{"close at once", "", func(*net.TCPConn) {}, false, ""},
		{"reset", "", func(c *net.TCPConn) {
			readHead(c)
			c.SetLinger(0)
		}, false, ""},
		{"reset in the body", "", func(c *net.TCPConn) {
			readHead(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
		}, false, "status 200, then in the body: unexpected EOF"},
		{"huge head", "", func(c *net.TCPConn) {
			readHead(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			for range 1000 {
				if _, err := io.WriteString(c, "X: "+strings.Repeat("y", 1000)+"\r\n"); err != nil {
					return
				}
			}
			untilClosed(c)
		}, false, ""},
		{"nonsense that quotes the token", "", func(c *net.TCPConn) {
			readHead(c)
			io.WriteString(c, "\x1b[31m "+testToken.Reveal()+strings.Repeat("z", 1000)+"\r\n\r\n")
		}, false, "malformed HTTP"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			base := tc.url
			if base == "" {
				base = listen(t, tc.serve)
			}
			tg := Target{URL: base, Token: testToken, Check: Check{SendToken: true, Timeout: 5 * time.Second}}
			if tc.timedOut {
				tg.Check.Timeout = 150 * time.Millisecond
			}
			got := askOnce(t, newAsker(nil, nil), tg)
			check(t, got, Failure, tc.timedOut, tc.reason)
			if got.reason == "" || len(got.reason) > maxReasonBytes+3 || strings.ContainsAny(got.reason, "\x1b\r\n") {
				t.Errorf("reason %q", got.reason)
			}
		})
	}
}

func TestProbe_TCP(t *testing.T) {
	base := listen(t, func(*net.TCPConn) {})
	check(t, askOnce(t, newAsker(nil, nil), Target{URL: base, Check: Check{Type: CheckTCP}}), Success, false, "connected")
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	check(t, askOnce(t, newAsker(nil, nil), Target{URL: "http://" + gone.Addr().String(), Check: Check{Type: CheckTCP}}), Failure, false, "connection refused")

	for base, want := range map[string]string{
		"http://dify.example": "dify.example:80", "https://dify.example": "dify.example:443",
		"https://dify.example:8443/x": "dify.example:8443", "http://[::1]": "[::1]:80",
	} {
		if q := newQuestion(Target{URL: base, Check: Check{Type: CheckTCP}}); q.address != want || q.fault != nil {
			t.Errorf("%s: %s, %v", base, q.address, q.fault)
		}
	}
}

func TestProbe_DialsAsItIsTold(t *testing.T) {
	var connections atomic.Int64
	base := listen(t, func(*net.TCPConn) { connections.Add(1) })
	var asked []string
	a := newAsker(func(_ context.Context, _, address string) (net.Conn, error) {
		asked = append(asked, address)
		return nil, errors.New("address is not allowed")
	}, nil)
	for _, kind := range []string{CheckHTTP, CheckTCP} {
		check(t, askOnce(t, a, Target{URL: base, Check: Check{Type: kind}}), Failure, false, "address is not allowed")
	}
	if len(asked) != 2 || "http://"+asked[0] != base || connections.Load() != 0 {
		t.Errorf("asked about %v, %d connections", asked, connections.Load())
	}
}

func TestProbe_HTTPSIsVerified(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	srv.Config.ErrorLog = quiet
	srv.StartTLS()
	defer srv.Close()
	tg := Target{URL: srv.URL, Check: Check{Timeout: 10 * time.Second}}
	check(t, askOnce(t, newAsker(nil, nil), tg), Failure, false, "certificate")
	trusted := srv.Client().Transport.(*http.Transport).TLSClientConfig
	check(t, askOnce(t, newAsker(nil, trusted), tg), Success, false, "status 200")
}

func TestProbe_HTTPSAsTheTargetSays(t *testing.T) {
	ours, other := testbed.NewCA(t, "ours"), testbed.NewCA(t, "other")
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.TLS.ServerName) }))
	srv.Config.ErrorLog = quiet
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{ours.Issue("dify.internal")}}
	srv.StartTLS()
	defer srv.Close()
	for _, c := range []struct {
		tls     TLS
		outcome Outcome
		reason  string
	}{
		{TLS{CA: ours.PEM, ServerName: "dify.internal"}, Success, "with the expected text"},
		{TLS{SkipVerify: true, ServerName: "dify.internal"}, Success, "with the expected text"},
		{TLS{CA: other.PEM, ServerName: "dify.internal"}, Failure, "unknown authority"},
		{TLS{CA: ours.PEM, ServerName: "dify.example"}, Failure, "not dify.example"},
		{TLS{ServerName: "dify.internal"}, Failure, "certificate"},
		{TLS{CA: "nothing"}, Failure, "holds no certificate"},
	} {
		tg := Target{URL: srv.URL, TLS: c.tls, Check: Check{Timeout: 10 * time.Second, ExpectBody: "dify.internal"}}
		check(t, askOnce(t, newAsker(nil, nil), tg), c.outcome, false, c.reason)
	}
	a := Target{URL: srv.URL, TLS: TLS{CA: ours.PEM}}
	b := a
	if b.TLS.CA = other.PEM; a.asksSame(b) {
		t.Error("another authority counts as the same question")
	}
}

func TestQuestion_Defaults(t *testing.T) {
	q := newQuestion(Target{URL: "http://h", Check: Check{Interval: -1}})
	if q.fault != nil || q.kind != "http" || q.url.String() != "http://h/v1/info" || q.timeout != 3*time.Second ||
		q.interval != 10*time.Second || q.rise != 2 || q.fall != 3 || q.status.String() != "200-299" {
		t.Errorf("%+v", q)
	}
	if q := newQuestion(Target{URL: "http://h", Check: Check{Interval: 1}}); q.interval != minInterval {
		t.Errorf("interval of 1 ns gives %v", q.interval)
	}
}
