package proxy

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"difylb/pkg/lb"
)

// clocked is an instance whose events tell when they were sent.
func clocked(events int, gap time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		for range events {
			select {
			case <-time.After(gap):
			case <-r.Context().Done():
				return
			}
			fmt.Fprintf(w, "data: {\"event\":\"message\",\"answer\":\"%d\"}\n\n", time.Now().UnixNano())
			w.(http.Flusher).Flush()
		}
	})
}

// delays reads a clocked stream and returns how long each event was under way.
func delays(t *testing.T, body io.Reader) (out []time.Duration) {
	t.Helper()
	sc := bufio.NewScanner(body)
	for sc.Scan() {
		if _, rest, ok := strings.Cut(sc.Text(), `"answer":"`); ok {
			var sent int64
			fmt.Sscanf(rest, "%d", &sent)
			out = append(out, time.Since(time.Unix(0, sent)))
		}
	}
	if sc.Err() != nil {
		t.Error(sc.Err())
	}
	return out
}

func TestRelay_EventsArriveAsTheyAreSent(t *testing.T) {
	r := newRig(t, nil, clocked(15, 30*time.Millisecond))
	begin := time.Now()
	req, _ := http.NewRequest("POST", r.url+"/v1/chat-messages", strings.NewReader(`{"user":"u","response_mode":"streaming"}`))
	req.Header.Set("Authorization", "Bearer user-token-shop")
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if d := time.Since(begin); d > 28*time.Millisecond {
		t.Logf("the head took %v: it waited for the first event, or the machine is busy", d)
	}
	d := delays(t, resp.Body)
	if len(d) != 15 {
		t.Fatalf("%d events", len(d))
	}
	slices.Sort(d)
	if d[7] > 20*time.Millisecond {
		t.Errorf("median delay %v", d[7])
	}
	eventually(t, "the stream in the access log", func() bool {
		l := r.lines("path", "/v1/chat-messages")
		return len(l) == 1 && l[0]["events"] == 15.0 && l[0]["reason"] == "ok"
	})
}

// The instance sends what it is told to, so the order of things is certain.
func TestRelay_HeadAndPiecesAreNotHeldBack(t *testing.T) {
	for _, head := range []string{
		"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n",
		"Content-Type: audio/mpeg\r\nTransfer-Encoding: chunked\r\n",
		"Content-Type: application/json\r\nContent-Length: 9\r\n",
	} {
		step := make(chan string)
		w := newRawInstance(t, func(c net.Conn, _ string) {
			for s := range step {
				if strings.Contains(head, "chunked") && !strings.HasPrefix(s, "HTTP") {
					s = fmt.Sprintf("%x\r\n%s\r\n", len(s), s)
				}
				io.WriteString(c, s)
			}
		})
		r := newRig(t, func(_ *Options, a *lb.Application) { a.Instances = []lb.Instance{instanceAt("a", w.url())} })
		c := r.dial()
		io.WriteString(c, "GET /v1/info HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-token-shop\r\n\r\n")
		step <- "HTTP/1.1 200 OK\r\n" + head + "\r\n"
		resp, err := http.ReadResponse(bufio.NewReader(c), nil) // with no byte of the body sent
		if err != nil {
			t.Fatal(err)
		}
		for _, piece := range []string{"one", "two", "six"} {
			step <- piece
			got := make([]byte, 3)
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != piece {
				t.Fatalf("%s: %q %v", head, got, err)
			}
		}
		close(step)
	}
}

func TestRelay_PingOnlyStreamPassesPings(t *testing.T) {
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for range 5 {
			io.WriteString(w, "event: ping\n\n")
			w.(http.Flusher).Flush()
			time.Sleep(5 * time.Millisecond)
		}
	}))
	if _, body := r.do("POST", "/v1/chat-messages", "u", "{}"); body != strings.Repeat("event: ping\n\n", 5) {
		t.Errorf("%q", body)
	}
}

func TestRelay_ClientGoneCancelsTheInstance(t *testing.T) {
	for _, name := range []string{"streaming", "before the head"} {
		gone := make(chan time.Time, 1)
		began := make(chan struct{})
		r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			if name == "streaming" {
				w.Header().Set("Content-Type", "text/event-stream")
				w.(http.Flusher).Flush()
			}
			close(began)
			<-r.Context().Done()
			gone <- time.Now()
		}))
		c := r.dial()
		body := `{"user":"u"}`
		fmt.Fprintf(c, "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-token-shop\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		<-began
		left := time.Now()
		c.Close()
		select {
		case at := <-gone:
			if d := at.Sub(left); d > 100*time.Millisecond {
				t.Errorf("%s: the instance was let go after %v", name, d)
			}
		case <-time.After(10 * time.Second):
			t.Fatal(name, ": the instance was never let go")
		}
		eventually(t, "client_gone in the access log", func() bool { return len(r.lines("reason", "client_gone")) == 1 })
		if e := r.p.Ejections(time.Now()); len(e) != 0 {
			t.Error("an instance was blamed", e)
		}
	}
}

func TestRelay_BrokenAnswerReachesTheClientAsBroken(t *testing.T) {
	for _, tc := range []struct{ name, answer string }{
		{"length", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello"},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"},
		{"within a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nhello"},
		{"bad chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n"},
		{"stream", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata:\r\n"},
	} {
		r, _ := newRawInstanceRig(t, tc.answer, nil)
		req, _ := http.NewRequest("GET", r.url+"/v1/info", nil)
		req.Header.Set("Authorization", "Bearer user-token-shop")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(tc.name, err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err == nil || len(b) != 5 {
			t.Errorf("%s: %q, %v", tc.name, b, err)
		}
		eventually(t, "an instance's error in the access log", func() bool {
			return len(r.lines("reason", "upstream_broke"))+len(r.lines("reason", "upstream_invalid")) == 1
		})
	}
}

func TestRelay_NonsenseIs502(t *testing.T) {
	for _, answer := range []string{
		"", "garbage\r\n\r\n", "HTTP/1.1 abc OK\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", 70<<10) + "\r\n\r\n",
		strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 200),
	} {
		r, _ := newRawInstanceRig(t, answer, nil)
		resp, body := r.do("POST", "/v1/chat-messages", "u", "{}")
		if resp.StatusCode != 502 || !strings.Contains(body, `"code":"bad_gateway"`) {
			t.Errorf("%.50q: %d %s", answer, resp.StatusCode, body)
		}
	}
}

func TestRelay_InterimAnswers(t *testing.T) {
	const hint = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n"
	r, _ := newRawInstanceRig(t, hint+"HTTP/1.1 100 Continue\r\n\r\n"+hint+answerOK, nil)
	const req = "GET /v1/info HTTP/1.%d\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer user-token-shop\r\n\r\n"
	got := r.raw(fmt.Sprintf(req, 1))
	const interim = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
	if !strings.HasPrefix(got, interim+interim+"HTTP/1.1 200 OK\r\n") || strings.Count(got, "Link") != 2 {
		t.Error(got)
	}
	if got := r.raw(fmt.Sprintf(req, 0)); !strings.HasPrefix(got, "HTTP/1.1 200 OK\r\n") {
		t.Error("HTTP/1.0 client:", got)
	}
	r, _ = newRawInstanceRig(t, strings.Repeat(hint, 50)+answerOK, nil)
	if got := r.raw(fmt.Sprintf(req, 1)); strings.Count(got, "103 Early") > maxInterim || !strings.Contains(got, "HTTP/1.1 502 ") {
		t.Error("a flood of interim answers:", got)
	}
}

func TestRelay_AnswersWithoutABody(t *testing.T) {
	for _, tc := range []struct{ method, answer, want string }{
		{"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n"},
		{"DELETE", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\n"},
		{"GET", "HTTP/1.1 304 Not Modified\r\nEtag: \"x\"\r\n\r\n", "HTTP/1.1 304 Not Modified\r\nEtag: \"x\"\r\n"},
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"},
	} {
		r, _ := newRawInstanceRig(t, tc.answer, nil)
		c := r.dial()
		req := tc.method + " /v1/info HTTP/1.1\r\nHost: x\r\nX-User-ID: u\r\nAuthorization: Bearer user-token-shop\r\n"
		io.WriteString(c, req+"\r\n"+req+"Connection: close\r\n\r\n") // pipelined: a surplus byte would show
		b, _ := io.ReadAll(c)
		status, field, _ := strings.Cut(tc.want, "\r\n")
		if strings.Count(string(b), status+"\r\n") != 2 || strings.Count(string(b), field) < 2 || !strings.HasSuffix(string(b), "\r\n\r\n") || strings.Contains(string(b), "Content-Type") {
			t.Errorf("%s %.30q: %s", tc.method, tc.answer, b)
		}
	}
}

func TestRelay_BytesAreNotTouched(t *testing.T) {
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ae := r.Header["Accept-Encoding"]; len(ae) != 1 || ae[0] != "gzip" || r.Header["User-Agent"] != nil {
			t.Errorf("head %v", r.Header)
		}
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		io.WriteString(z, "compressed")
		z.Close()
	}))
	got := r.raw("GET /v1/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept-Encoding: gzip\r\nAuthorization: Bearer user-token-shop\r\n\r\n")
	_, body, _ := strings.Cut(got, "\r\n\r\n")
	z, err := gzip.NewReader(strings.NewReader(body))
	if err != nil {
		t.Fatal(err, got)
	}
	if b, _ := io.ReadAll(z); string(b) != "compressed" {
		t.Errorf("%q", b)
	}
	silent := make(chan http.Header, 1)
	r = newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		silent <- r.Header
		w.Header()["Content-Type"] = nil
		io.WriteString(w, "<html>")
	}))
	got = r.raw("GET /v1/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer user-token-shop\r\n\r\n")
	if h := <-silent; h["Accept-Encoding"] != nil || h["User-Agent"] != nil || h["Accept"] != nil {
		t.Error("invented:", h)
	}
	if strings.Contains(got, "Content-Type") {
		t.Error("invented:", got)
	}
}

func TestRelay_ReadTimeout(t *testing.T) {
	set := func(_ *Options, a *lb.Application) { a.Timeouts.Read = lb.Duration(150 * time.Millisecond) }
	hang := func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); <-r.Context().Done() }
	t.Run("before the head", func(t *testing.T) {
		r := newRig(t, set, http.HandlerFunc(hang))
		resp, body := r.do("POST", "/v1/chat-messages", "", `{"user":"u"}`)
		if resp.StatusCode != 504 || !strings.Contains(body, "gateway_timeout") {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	})
	t.Run("after the head", func(t *testing.T) {
		r := newRig(t, set, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "data: x\n\n")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}))
		req, _ := http.NewRequest("GET", r.url+"/v1/info", nil)
		req.Header.Set("Authorization", "Bearer user-token-shop")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); err == nil || string(b) != "data: x\n\n" {
			t.Errorf("%q %v", b, err)
		}
		resp.Body.Close()
		eventually(t, "upstream_timeout", func() bool { return len(r.lines("reason", "upstream_timeout")) == 1 })
	})
	t.Run("not while bytes come", func(t *testing.T) {
		r := newRig(t, set, clocked(10, 50*time.Millisecond)) // 500 ms in all
		if _, body := r.do("GET", "/v1/info", "u", ""); strings.Count(body, "data:") != 10 {
			t.Errorf("%q", body)
		}
	})
	t.Run("not while the client is slow", func(t *testing.T) {
		r := newRig(t, set, echo("a"))
		c := r.dial()
		io.WriteString(c, "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer user-token-shop\r\nX-User-ID: u\r\nContent-Length: 2\r\n\r\na")
		time.Sleep(400 * time.Millisecond) // more than twice the time limit
		io.WriteString(c, "b")
		if b, _ := io.ReadAll(c); !strings.HasPrefix(string(b), "HTTP/1.1 200 ") {
			t.Errorf("%s", b)
		}
	})
	t.Run("send", func(t *testing.T) {
		done := make(chan struct{})
		r := newRig(t, func(_ *Options, a *lb.Application) { a.Timeouts.Send = lb.Duration(150 * time.Millisecond) }, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-done // takes nothing
		}))
		defer close(done)
		req, _ := http.NewRequest("POST", r.url+"/v1/files/upload", io.LimitReader(zeros{}, 50<<20))
		req.Header.Set("Authorization", "Bearer user-token-shop")
		req.Header.Set("X-User-ID", "u")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 504 {
			t.Error(resp.StatusCode)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestRelay_EarlyAnswerDoesNotWaitForTheBody(t *testing.T) {
	r, _ := newRawInstanceRig(t, "HTTP/1.1 415 Unsupported Media Type\r\nContent-Length: 2\r\n\r\nno", nil)
	c := r.dial()
	io.WriteString(c, "POST /v1/files/upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-token-shop\r\nX-User-ID: u\r\nContent-Length: 1000\r\n\r\nfirst")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 415 {
		t.Fatalf("%v %v", resp, err)
	}
	if b, err := io.ReadAll(resp.Body); string(b) != "no" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	eventually(t, "the end of the request", func() bool { return len(r.lines("path", "/v1/files/upload")) == 1 })
}

func TestRelay_BothWaysAtOnce(t *testing.T) {
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Content-Type", "text/event-stream")
		buf := make([]byte, 1)
		for {
			if _, err := r.Body.Read(buf); err != nil {
				return
			}
			w.Write(buf)
			w.(http.Flusher).Flush()
		}
	}))
	c := r.dial()
	io.WriteString(c, "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-token-shop\r\nX-User-ID: u\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := '1'; i <= '5'; i++ {
		got := make([]byte, 1)
		if _, err := io.ReadFull(resp.Body, got); err != nil || rune(got[0]) != i {
			t.Fatalf("%q %v", got, err)
		}
		if i < '5' {
			fmt.Fprintf(c, "1\r\n%c\r\n", i+1)
		} else {
			io.WriteString(c, "0\r\n\r\n")
		}
	}
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Error(err)
	}
}

// echoUpgrade switches protocols and returns all bytes.
func echoUpgrade(protocol string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\nSec-WebSocket-Accept: x\r\nX-Got: %s\r\n\r\nhello", protocol, r.Header.Get("Upgrade"))
		io.Copy(c, rw)
	})
}

const upgradeRequest = "GET /v1/ws HTTP/1.1\r\nHost: x\r\nX-User-ID: u\r\nAuthorization: Bearer user-token-shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: y\r\n\r\n"

func TestRelay_UpgradeIsTunnelledBothWays(t *testing.T) {
	r := newRig(t, func(o *Options, _ *lb.Application) { o.DebugHeaders = true }, echoUpgrade("websocket"))
	c := r.dial()
	io.WriteString(c, upgradeRequest+"early") // bytes right behind the head
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" || resp.Header.Get("Connection") != "Upgrade" || resp.Header.Get("X-Got") != "websocket" || resp.Header.Get("X-Dify-Instance") != "a" {
		t.Fatalf("%v %v", resp, err)
	}
	got := make([]byte, 10)
	if io.ReadFull(br, got); string(got) != "helloearly" {
		t.Fatalf("%q", got)
	}
	big := make([]byte, 1<<20)
	for i := range big {
		big[i] = byte(i * 7)
	}
	go c.Write(big)
	back := make([]byte, len(big))
	if _, err := io.ReadFull(br, back); err != nil || !slices.Equal(big, back) {
		t.Fatal("the tunnel changed bytes", err)
	}
	c.Close()
	eventually(t, "the tunnel in the access log", func() bool {
		l := r.lines("path", "/v1/ws")
		return len(l) == 1 && l[0]["upgraded"] == true && l[0]["status"] == 101.0 && l[0]["bytes_out"] == float64(len(big)+10)
	})
}

func TestRelay_UpgradeRefusedOrUnasked(t *testing.T) {
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, "no")
	}))
	c := r.dial()
	io.WriteString(c, upgradeRequest)
	if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 403 {
		t.Errorf("%v %v", resp, err)
	}
	r = newRig(t, nil, echoUpgrade("websocket"))
	if resp, body := r.do("GET", "/v1/info", "u", ""); resp.StatusCode != 502 {
		t.Errorf("switched unasked: %d %s", resp.StatusCode, body)
	}
	r = newRig(t, nil, echoUpgrade("other"))
	if got := r.raw(strings.Replace(upgradeRequest, "Connection: Upgrade", "Connection: Upgrade, close", 1)); !strings.HasPrefix(got, "HTTP/1.1 502 ") {
		t.Errorf("switched to another: %s", got)
	}
	r = newRig(t, nil, echo("a")) // HTTP/2 in a tunnel would be out of sight
	if got := r.raw(strings.Replace(strings.Replace(upgradeRequest, "websocket", "h2c", 1), "Connection: Upgrade", "Connection: Upgrade, close", 1)); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("h2c: %s", got)
	}
}

func TestRelay_TunnelIsCutAtTheEndOfTheGrace(t *testing.T) {
	r := newRig(t, nil, echoUpgrade("websocket"))
	c := r.dial()
	io.WriteString(c, upgradeRequest)
	br := bufio.NewReader(c)
	if _, err := http.ReadResponse(br, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if n := r.s.Shutdown(ctx); n != 1 {
		t.Errorf("%d connections cut", n)
	}
	if _, err := io.ReadAll(br); errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestRelay_ClientThatTakesNothingIsGivenUp(t *testing.T) {
	var ended atomic.Bool
	r := newRig(t, func(o *Options, _ *lb.Application) { o.Limits.WriteTimeout = 100 * time.Millisecond }, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer ended.Store(true)
		for {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}))
	c := r.dial()
	c.SetReadBuffer(4096)
	io.WriteString(c, "GET /v1/info HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-token-shop\r\n\r\n")
	eventually(t, "the instance is let go", ended.Load)
	eventually(t, "client_gone", func() bool { return len(r.lines("reason", "client_gone")) == 1 })
}
