package proxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"difylb/pkg/lb"
)

// answering answers with a status and body, and counts.
func answering(n *atomic.Int64, status int, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		io.WriteString(w, body)
	})
}

func breaking(n *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		io.Copy(io.Discard, r.Body)
		panic(http.ErrAbortHandler)
	})
}

func hanging(n *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
}

func TestRetry_Policy(t *testing.T) {
	const busy = `{"code":"too_many_requests","message":"Too many requests.","status":429}`
	for _, tc := range []struct {
		name          string
		bad           func(*atomic.Int64) http.Handler
		method        string
		nonIdempotent bool
		want          int // status; 200 is the other instance's
	}{
		{"broken GET", breaking, "GET", false, 200},
		{"broken PUT", breaking, "PUT", false, 200},
		{"broken DELETE", breaking, "DELETE", false, 200},
		{"broken POST", breaking, "POST", false, 502},
		{"broken PATCH", breaking, "PATCH", false, 502},
		{"broken POST allowed", breaking, "POST", true, 200},
		{"hanging GET", hanging, "GET", false, 200},
		{"hanging POST", hanging, "POST", false, 504},
		{"hanging POST allowed", hanging, "POST", true, 200},
		{"502 GET", func(n *atomic.Int64) http.Handler { return answering(n, 502, "<html>") }, "GET", false, 200},
		{"503 POST", func(n *atomic.Int64) http.Handler { return answering(n, 503, "<html>") }, "POST", false, 503},
		{"504 POST allowed", func(n *atomic.Int64) http.Handler { return answering(n, 504, "<html>") }, "POST", true, 200},
		{"500 GET", func(n *atomic.Int64) http.Handler { return answering(n, 500, "{}") }, "GET", false, 500},
		{"busy POST", func(n *atomic.Int64) http.Handler { return answering(n, 429, busy) }, "POST", false, 200},
		{"other 429", func(n *atomic.Int64) http.Handler { return answering(n, 429, `{"code":"rate_limit_error"}`) }, "POST", false, 429},
		{"own token refused", func(n *atomic.Int64) http.Handler { return answering(n, 401, `{"code":"unauthorized"}`) }, "POST", false, 200},
		{"404", func(n *atomic.Int64) http.Handler { return answering(n, 404, `{"code":"not_found"}`) }, "GET", false, 404},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var bad atomic.Int64
			r := newRig(t, func(_ *Options, a *lb.Application) {
				a.Retry.NonIdempotent = tc.nonIdempotent
				a.Timeouts.Read = lb.Duration(200 * time.Millisecond)
			}, tc.bad(&bad), echo("b"))
			resp, body := r.do(tc.method, "/v1/chat-messages", r.userOf("a"), `{"k":"v"}`, "Idempotency-Key", "k")
			if resp.StatusCode != tc.want || bad.Load() != 1 {
				t.Errorf("%d after %d tries: %s", resp.StatusCode, bad.Load(), body)
			}
			if tc.want == 200 && (!strings.HasPrefix(body, "b ") || !strings.HasSuffix(body, `{"k":"v"}`)) {
				t.Errorf("second instance got %q", body)
			}
		})
	}
}

func TestRetry_NobodyIsLeft(t *testing.T) {
	var n atomic.Int64
	r := newRig(t, nil, answering(&n, 503, "theirs"), answering(&n, 503, "theirs"))
	if resp, body := r.do("GET", "/v1/info", "u", ""); resp.StatusCode != 503 || body != "theirs" || n.Load() != 2 {
		t.Errorf("the last one's own answer: %d %s after %d", resp.StatusCode, body, n.Load())
	}
	n.Store(0)
	r = newRig(t, nil, answering(&n, 401, "app-a-secret-token"), answering(&n, 401, "app-b-secret-token"))
	resp, body := r.do("GET", "/v1/info", "u", "")
	if resp.StatusCode != 502 || strings.Contains(body, "secret") || resp.Header.Get("Www-Authenticate") != "" || n.Load() != 2 {
		t.Errorf("a 401 was passed on: %d %s", resp.StatusCode, body)
	}
}

func TestRetry_AttemptsAndTimeBound(t *testing.T) {
	for attempts, want := range map[int]int64{0: 1, 1: 2, 2: 3, 4: 5} {
		var n atomic.Int64
		h := breaking(&n)
		r := newRig(t, func(_ *Options, a *lb.Application) { a.Retry.Attempts = attempts }, h, h, h, h, h)
		if resp, _ := r.do("GET", "/v1/info", "u", ""); resp.StatusCode != 502 || n.Load() != want {
			t.Errorf("attempts %d: %d after %d tries", attempts, resp.StatusCode, n.Load())
		}
	}
	var n atomic.Int64
	h := hanging(&n)
	r := newRig(t, func(_ *Options, a *lb.Application) {
		a.Timeouts.Read, a.Retry.Timeout = lb.Duration(100*time.Millisecond), lb.Duration(50*time.Millisecond)
	}, h, h, h)
	if resp, _ := r.do("GET", "/v1/info", "u", ""); resp.StatusCode != 504 || n.Load() != 1 {
		t.Errorf("%d after %d tries past retry.timeout", resp.StatusCode, n.Load())
	}
}

func TestRetry_BodyIsReplayed(t *testing.T) {
	const busy = `{"code":"too_many_requests","status":429}`
	for _, size := range []int{0, 10, 5000, 60000, 500000} {
		for _, chunked := range []bool{false, true} {
			var n atomic.Int64
			r := newRig(t, nil, answering(&n, 429, busy), answering(&n, 429, busy), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				fmt.Fprintf(w, "%d %v", len(b), strings.Contains(string(b), `"user":"`))
			}))
			// The user id is in the body, so all of it is kept, in a file where it is long.
			body := fmt.Sprintf(`{"pad":%q,"user":%q}`, strings.Repeat("x", size), r.userOf("a"))
			req, _ := http.NewRequest("POST", r.url+"/v1/chat-messages", io.MultiReader(strings.NewReader(body)))
			if !chunked {
				req.ContentLength = int64(len(body))
			}
			req.Header.Set("Authorization", "Bearer user-token-shop")
			req.Header.Set("Content-Type", "application/json")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(got) != fmt.Sprintf("%d true", len(body)) {
				t.Errorf("size %d chunked %v: %d %s", len(body), chunked, resp.StatusCode, got)
			}
		}
	}
}

// The client is still sending when the first instance says that it is busy:
// the retry must not wait for the rest.
func TestRetry_WhileTheClientIsStillSending(t *testing.T) {
	const busy = `{"code":"too_many_requests","status":429}`
	early := newRawInstance(t, func(c net.Conn, _ string) {
		fmt.Fprintf(c, "HTTP/1.1 429 Too Many Requests\r\nContent-Length: %d\r\n\r\n%s", len(busy), busy)
		io.Copy(io.Discard, c)
	})
	asked := make(chan struct{})
	r := newRig(t, nil, http.NotFoundHandler(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(asked)
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	}))
	r.app.Instances[0] = instanceAt("a", early.url())
	r.apply()
	c := r.dial()
	fmt.Fprintf(c, "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer user-token-shop\r\nX-User-ID: %s\r\nContent-Length: 10\r\n\r\n01234", r.userOf("a"))
	<-asked
	io.WriteString(c, "56789")
	if b, _ := io.ReadAll(c); !strings.HasSuffix(string(b), "\r\n\r\n0123456789") {
		t.Errorf("%s", b)
	}
}

func TestRetry_ConnectionClosedWhileIdleCostsNothing(t *testing.T) {
	srv := httptest.NewUnstartedServer(echo("a"))
	srv.Config.IdleTimeout = 50 * time.Millisecond
	srv.Start()
	defer srv.Close()
	r := newRig(t, func(_ *Options, a *lb.Application) {
		a.Instances = []lb.Instance{instanceAt("a", srv.URL)}
	})
	for i := range 200 {
		if i == 1 {
			time.Sleep(100 * time.Millisecond) // seen closed once, the time is known
		} else if i%2 == 0 {
			// Around the very moment at which the instance closes.
			time.Sleep(45*time.Millisecond + time.Duration(i)*50*time.Microsecond)
		}
		if resp, body := r.do("POST", "/v1/chat-messages", "", `{"user":"u"}`); resp.StatusCode != 200 {
			t.Fatalf("request %d: %d %s", i, resp.StatusCode, body)
		}
	}
}

func TestRetry_PassiveEjectionTrialAndReturn(t *testing.T) {
	var down atomic.Bool
	var na atomic.Int64
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		na.Add(1)
		if down.Load() {
			w.WriteHeader(503)
		}
		io.WriteString(w, "a")
	}), echo("b"))
	r.app.Instances[0].FailTimeout = lb.Duration(300 * time.Millisecond)
	r.apply()
	user := r.userOf("a")
	down.Store(true)
	for range 10 {
		if resp, body := r.do("GET", "/v1/info", user, ""); resp.StatusCode != 200 || !strings.HasPrefix(body, "b ") {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
	}
	if na.Load() != 3 {
		t.Errorf("%d requests went to a, max_fails is 3", na.Load())
	}
	if e := r.p.Ejections(time.Now()); len(e) != 1 || e[0].Instance != "a" {
		t.Errorf("ejections %v", e)
	}
	down.Store(false)
	eventually(t, "the user comes back", func() bool {
		_, body := r.do("GET", "/v1/info", user, "")
		return body == "a"
	})
}

func TestRetry_HealthDrainAndFailOpen(t *testing.T) {
	r := newRig(t, nil, echo("a"), echo("b"))
	user := r.userOf("a")
	at := func() string { _, body := r.do("GET", "/v1/info", user, ""); return body[:1] }
	verdict := func(a, b lb.Health) {
		r.p.SetHealth(map[string]map[string]lb.Verdict{"shop": {"a": {Health: a}, "b": {Health: b}}})
	}
	if got := at(); got != "a" {
		t.Fatal(got)
	}
	verdict(lb.Unhealthy, lb.Healthy)
	if got := at(); got != "b" {
		t.Error("unhealthy:", got)
	}
	verdict(lb.TokenRejected, lb.Healthy)
	if got := at(); got != "b" {
		t.Error("token rejected:", got)
	}
	before := r.p.FailOpen()
	verdict(lb.Unhealthy, lb.Unhealthy)
	if got := at(); got != "a" || r.p.FailOpen() != before+1 {
		t.Error("fail open:", got, r.p.FailOpen())
	}
	verdict(lb.Healthy, lb.Healthy)
	for _, state := range []lb.State{lb.Draining, lb.Disabled} {
		r.app.Instances[0].State = state
		r.apply()
		if got := at(); got != "b" {
			t.Error(state, got)
		}
	}
	r.app.Instances[0].State = lb.Active
	r.apply()
	if got := at(); got != "a" {
		t.Error("the user did not come back:", got)
	}
	r.app.Instances[0].Weight = 0
	r.apply()
	if got := at(); got != "b" {
		t.Error("weight 0:", got)
	}
	r.app.Instances[1].State = lb.Disabled
	r.apply()
	if resp, body := r.do("GET", "/v1/info", user, ""); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(body, "no_instance_available") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}
