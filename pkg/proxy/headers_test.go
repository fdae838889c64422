package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"difylb/pkg/lb"
)

// rawInstance is an instance that keeps what it got byte for byte and answers with
// fixed bytes, on connections that it closes after one request.
type rawInstance struct {
	ln     net.Listener
	answer func(c net.Conn, head string)
	mu     sync.Mutex
	heads  []string // guarded by mu
	wg     sync.WaitGroup
}

// newRawInstance serves. answer is called once the head has been read.
func newRawInstance(t testing.TB, answer func(c net.Conn, head string)) *rawInstance {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &rawInstance{ln: ln, answer: answer}
	w.wg.Go(w.serve)
	t.Cleanup(func() { ln.Close(); w.wg.Wait() })
	return w
}

func (w *rawInstance) serve() {
	for {
		c, err := w.ln.Accept()
		if err != nil {
			return
		}
		w.wg.Go(func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			br, head := bufio.NewReader(c), ""
			for !strings.HasSuffix(head, "\r\n\r\n") {
				line, err := br.ReadString('\n')
				if head += line; err != nil {
					return
				}
			}
			w.mu.Lock()
			w.heads = append(w.heads, head)
			w.mu.Unlock()
			w.answer(c, head)
		})
	}
}

// head returns the last head that came.
func (w *rawInstance) head() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.heads) == 0 {
		return ""
	}
	return w.heads[len(w.heads)-1]
}

func (w *rawInstance) url() string { return "http://" + w.ln.Addr().String() }

// newRawInstanceRig is a rig with one instance, a rawInstance that gives the answer.
func newRawInstanceRig(t *testing.T, answer string, edit func(*Options, *lb.Application)) (*rig, *rawInstance) {
	w := newRawInstance(t, func(c net.Conn, _ string) { io.WriteString(c, answer) })
	return newRig(t, func(o *Options, a *lb.Application) {
		a.Instances = append(a.Instances, instanceAt("a", w.url()))
		if edit != nil {
			edit(o, a)
		}
	}), w
}

const answerOK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"

// fields are the lines of a head but the first, sorted.
func fields(head string) []string {
	lines := strings.Split(strings.TrimSuffix(head, "\r\n\r\n"), "\r\n")[1:]
	slices.Sort(lines)
	return lines
}

func TestHeaders_WhatAnInstanceSees(t *testing.T) {
	r, w := newRawInstanceRig(t, answerOK, nil)
	got := r.raw("GET /v1/info HTTP/1.1\r\nHost: shop.example:81\r\nAuthorization: Bearer user-token-shop\r\nX-User-ID: u\r\n" +
		"Connection: close, X-Private , keep-alive, X-Request-ID\r\nX-Private: secret\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nProxy-Authorization: x\r\nTE: deflate, trailers\r\n" +
		"Upgrade: h2c\r\nHTTP2-Settings: AAMA\r\nX_User_ID: evil\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nX-Request-ID: req-1\r\n" +
		"X-Trace-Id: t1\r\nTraceparent: 00-x\r\nAccept: text/event-stream\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Fatal(got)
	}
	want := []string{"Accept: text/event-stream", "Authorization: Bearer app-a-secret-token", "Connection: TE", "Host: " + w.ln.Addr().String(), "TE: trailers", "Traceparent: 00-x",
		"X-Forwarded-For: 127.0.0.1", "X-Forwarded-Host: shop.example:81", "X-Forwarded-Proto: http", "X-Real-IP: 127.0.0.1", "X-Request-ID: req-1", "X-Trace-Id: t1", "X-User-ID: u"}
	if f := fields(w.head()); !slices.Equal(f, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(f, "\n"), strings.Join(want, "\n"))
	}
	if !strings.Contains(got, "\r\nX-Request-ID: req-1\r\n") {
		t.Error("the request id is not in the answer", got)
	}
}

func TestHeaders_TrustedProxyIsBelieved(t *testing.T) {
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	inner := netip.MustParsePrefix("10.0.0.0/8")
	r, w := newRawInstanceRig(t, answerOK, func(o *Options, a *lb.Application) {
		o.TrustedProxy = func(ip netip.Addr) bool { return loopback.Contains(ip) || inner.Contains(ip) }
		a.PreserveHost = true
	})
	for _, tc := range []struct{ sent, forwarded, real string }{
		{"X-Forwarded-For: 7.7.7.7, 8.8.8.8, 10.0.0.2\r\n", "7.7.7.7, 8.8.8.8, 10.0.0.2, 127.0.0.1", "8.8.8.8"},
		{"X-Forwarded-For: 7.7.7.7\r\nX-Forwarded-For: 9.9.9.9\r\n", "7.7.7.7, 9.9.9.9, 127.0.0.1", "9.9.9.9"},
		{"X-Forwarded-For: 10.1.1.1\r\n", "10.1.1.1, 127.0.0.1", "10.1.1.1"},
		{"X-Forwarded-For: 6.6.6.6, junk\r\n", "6.6.6.6, junk, 127.0.0.1", "127.0.0.1"},
		{"X-Forwarded-For: ::ffff:5.5.5.5\r\n", "::ffff:5.5.5.5, 127.0.0.1", "5.5.5.5"},
		{"", "127.0.0.1", "127.0.0.1"},
	} {
		r.raw("GET /v1/info HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nAuthorization: Bearer user-token-shop\r\n" + tc.sent + "X-Forwarded-Proto: https\r\nX-Forwarded-Host: front.example\r\nX-Real-IP: 6.6.6.6\r\n\r\n")
		for _, want := range []string{"X-Forwarded-For: " + tc.forwarded, "X-Real-IP: " + tc.real, "X-Forwarded-Proto: https", "X-Forwarded-Host: front.example", "Host: shop.example"} {
			if !slices.Contains(fields(w.head()), want) {
				t.Errorf("%q: want %q in\n%s", tc.sent, want, w.head())
			}
		}
	}
}

func TestHeaders_WhatAClientSees(t *testing.T) {
	r, _ := newRawInstanceRig(t, "HTTP/1.1 200 Fine\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Length: 2\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nX-Version: 1.16\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Encoding: gzip\r\nX-Request-Id: theirs\r\n\r\nok",
		func(o *Options, _ *lb.Application) { o.DebugHeaders = true })
	got := r.raw("GET /v1/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer user-token-shop\r\nX-Request-ID: mine\r\n\r\n")
	head, body, _ := strings.Cut(got, "\r\n\r\n")
	want := []string{"Connection: close", "Content-Encoding: gzip", "Content-Length: 2", "Date: Mon, 01 Jan 2024 00:00:00 GMT", "Set-Cookie: a=1", "Set-Cookie: b=2", "X-Dify-Instance: a", "X-LB-Node: node-1", "X-Request-ID: mine", "X-Version: 1.16"}
	if f := fields(head); body != "ok" || !slices.Equal(f, want) {
		t.Errorf("%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

func TestHeaders_RequestID(t *testing.T) {
	r, w := newRawInstanceRig(t, answerOK, nil)
	for _, sent := range []string{"", "has space", strings.Repeat("x", 129), `"quoted"`, "ünï"} {
		got := r.raw("GET /v1/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer user-token-shop\r\nX-Request-ID: " + sent + "\r\n\r\n")
		_, rest, _ := strings.Cut(got, "X-Request-ID: ")
		id, _, _ := strings.Cut(rest, "\r\n")
		if len(id) != 32 || !slices.Contains(fields(w.head()), "X-Request-ID: "+id) {
			t.Errorf("sent %q: answer has %q, instance got\n%s", sent, id, w.head())
		}
	}
}

func TestHeaders_TargetByteForByte(t *testing.T) {
	r, w := newRawInstanceRig(t, answerOK, nil)
	for _, target := range []string{
		"/v1/info", "/v1/info?", "/v1/a%2Fb%2fc", "/v1/a%20b+c", "/v1/%C3%BC", "/v1//double//", "/v1/a;b=c", "/v1/x?a=1&a=2&&=&b", "/v1/x?%zz", "/v1/x?u=%2e%2e/..", "/v1/x?q=a?b",
		"/v1/.hidden", "/v1/...", "/v1/a..b", "/v1/%252e%252e/x", "/v1/x?y=/../z", "/v1/'()*!$&,:@~", "/v1/a%2eb", "/v1/x?back\\slash",
	} {
		r.raw("GET " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-User-ID: u\r\nAuthorization: Bearer user-token-shop\r\n\r\n")
		if want := "GET " + target + " HTTP/1.1\r\n"; !strings.HasPrefix(w.head(), want) {
			t.Errorf("sent %q, instance got %q", want, strings.SplitN(w.head(), "\r\n", 2)[0])
		}
		r.raw("GET http://other.example" + target + " HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\nX-User-ID: u\r\nAuthorization: Bearer user-token-shop\r\n\r\n")
		if want := "GET " + target + " HTTP/1.1\r\n"; !strings.HasPrefix(w.head(), want) || !strings.Contains(w.head(), "X-Forwarded-Host: other.example\r\n") {
			t.Errorf("absolute form of %q, instance got\n%s", want, w.head())
		}
	}
}

func TestHeaders_TargetsRefused(t *testing.T) {
	r, w := newRawInstanceRig(t, answerOK, nil)
	for target, status := range map[string]string{
		"/v1/../x": "400", "/v1/./x": "400", "/v1/x/..": "400", "/v1/%2e%2e/x": "400", "/v1/.%2E/x": "400", "/v1/%2e/x": "400", "/v1/a/..%2fx": "400", "/v1/%2e%2e%2f%2e%2e%2fconsole": "400", "/v1/..%5cx": "400",
		"/v1/a\\..\\b": "400", "/v1/x#frag": "400", "/v1/\xc3\xbc": "400", "/v1/x?q=\xff": "400", "http://user@host/v1/x": "400",
		"/v1": "404", "/": "404", "/v1x/info": "404", "/console/api": "404", "//v1/info": "404", "/V1/info": "404", "http://x": "404", "http://host": "400", "*": "404",
		"/v1/" + strings.Repeat("x", 17<<10): "414", "/v1/" + strings.Repeat("x", 100<<10): "414",
	} {
		method := "GET "
		if target == "*" {
			method = "OPTIONS "
		}
		got := r.raw(method + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-User-ID: u\r\nAuthorization: Bearer user-token-shop\r\n\r\n")
		if !strings.HasPrefix(got, "HTTP/1.1 "+status+" ") {
			t.Errorf("%.60q: want %s, got %.80q", target, status, got)
		}
	}
	if h := w.head(); h != "" {
		t.Errorf("an instance was asked:\n%s", h)
	}
}

func TestHeaders_DebugHeadersForInstances(t *testing.T) {
	r, w := newRawInstanceRig(t, answerOK, func(o *Options, _ *lb.Application) { o.DebugHeaders = true })
	r.raw("GET /v1/info?user_id=a%0d%0aEvil:1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Hash-Key: lie\r\nAuthorization: Bearer user-token-shop\r\n\r\n")
	for _, want := range []string{"X-App-Type: shop", "X-Dify-Instance: a", "X-User-ID-Used: a??Evil:1", "X-Hash-Key: shop:a??Evil:1"} {
		if !slices.Contains(fields(w.head()), want) {
			t.Errorf("want %q in\n%s", want, w.head())
		}
	}
}

func TestHeaders_TrailersBothWays(t *testing.T) {
	got := make(chan http.Header, 1)
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		got <- r.Trailer
		w.Header().Set("Trailer", "X-Sum")
		io.WriteString(w, "body")
		w.(http.Flusher).Flush()
		w.Header().Set("X-Sum", "42")
		w.Header().Set(http.TrailerPrefix+"X-Late", "43")
	}))
	for _, user := range []string{"", "X-User-ID: u\r\n"} { // spooled, streamed
		answer := r.raw("POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: X-Check\r\nContent-Type: application/json\r\nAuthorization: Bearer user-token-shop\r\n" + user +
			"\r\nc\r\n{\"user\":\"u\"}\r\n0\r\nX-Check: abc\r\nX-Unannounced: 1\r\n\r\n")
		if !strings.Contains(answer, "X-Sum: 42\r\n") || !strings.Contains(answer, "X-Late: 43\r\n") {
			t.Errorf("trailers of the answer: %s", answer)
		}
		if tr := <-got; tr.Get("X-Check") != "abc" || tr["Authorization"] != nil {
			t.Errorf("trailers of the request: %v", tr)
		}
	}
}

func TestHeaders_ConnectionCannotTakeOursAway(t *testing.T) {
	r, w := newRawInstanceRig(t, answerOK, nil)
	r.raw("POST /v1/info HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nX-User-ID: u\r\nAuthorization: Bearer user-token-shop\r\nConnection: close, X-Forwarded-For, X-Real-IP, X-Request-ID\r\n\r\nhi")
	for _, want := range []string{"Authorization: Bearer app-a-secret-token", "X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "Content-Length: 2", "Host: " + w.ln.Addr().String()} {
		if !slices.Contains(fields(w.head()), want) {
			t.Errorf("want %q in\n%s", want, w.head())
		}
	}
}
