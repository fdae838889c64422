package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"difylb/pkg/lb"
)

func TestEngine_ExpectContinue(t *testing.T) {
	r := newRig(t, nil, echo("a"))
	// Refused before the body: no 100, and the connection ends.
	got := r.raw("POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 401 ") || !strings.Contains(got, "Connection: close") {
		t.Errorf("%q", got)
	}
	// Accepted: one 100, and the connection lives.
	c := r.dial()
	br := bufio.NewReader(c)
	for range 2 {
		io.WriteString(c, "POST /v1/info HTTP/1.1\r\n"+goodHead+"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
		if line, _ := br.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
			t.Fatalf("%q", line)
		}
		br.ReadString('\n')
		io.WriteString(c, "hello")
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		if b, _ := io.ReadAll(resp.Body); !strings.HasSuffix(string(b), "hello") {
			t.Errorf("%q", b)
		}
	}
	// The body is there already: no 100 is due. HTTP/1.0 knows none.
	got = r.raw("POST /v1/info HTTP/1.1\r\n" + goodHead + "Connection: close\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello")
	if !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("%q", got)
	}
	c = r.dial()
	io.WriteString(c, "POST /v1/info HTTP/1.0\r\n"+goodHead+"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhel")
	io.WriteString(c, "lo")
	if b, _ := io.ReadAll(c); !strings.HasPrefix(string(b), "HTTP/1.1 200 ") {
		t.Errorf("%q", b)
	}
}

func TestEngine_HTTP10(t *testing.T) {
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "one")
		if r.URL.Path == "/v1/chunked" {
			w.(http.Flusher).Flush()
			io.WriteString(w, "two")
		}
	}))
	for _, tc := range []struct {
		request string
		answers int
		field   string
	}{
		{"GET /v1/info HTTP/1.0\r\n" + goodHead + "\r\n", 1, "Connection: close\r\n"},
		{"GET /v1/info HTTP/1.0\r\n" + goodHead + "Connection: keep-alive\r\n\r\n", 2, "Connection: keep-alive\r\n"},
		{"GET /v1/chunked HTTP/1.0\r\n" + goodHead + "Connection: keep-alive\r\n\r\n", 1, "Connection: close\r\n"},
		{"HEAD /v1/chunked HTTP/1.0\r\n" + goodHead + "\r\n", 1, "Connection: close\r\n"},
	} {
		got := r.raw(tc.request + "GET /v1/info HTTP/1.0\r\n" + goodHead + "\r\n")
		head, body, _ := strings.Cut(got, "\r\n\r\n")
		if strings.Count(got, "HTTP/1.1 200") != tc.answers || !strings.Contains(head+"\r\n", tc.field) || strings.Contains(got, "Transfer-Encoding") {
			t.Errorf("%.40q: %q", tc.request, got)
		}
		if strings.HasPrefix(tc.request, "GET /v1/chunked") && body != "onetwo" || strings.HasPrefix(tc.request, "HEAD") && body != "" {
			t.Errorf("%.40q: %q", tc.request, body)
		}
	}
}

// An answer until close that breaks off must not look complete.
func TestEngine_BrokenAnswerToHTTP10(t *testing.T) {
	r, _ := newRawInstanceRig(t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", nil)
	addr := r.serveTLS(t.TempDir())
	for _, secure := range []bool{false, true} {
		var c net.Conn
		if secure {
			var err error
			if c, err = tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}); err != nil {
				t.Fatal(err)
			}
		} else {
			c = r.dial()
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(c, "GET /v1/info HTTP/1.0\r\n"+goodHead+"\r\n")
		if b, err := io.ReadAll(c); err == nil {
			t.Errorf("TLS %v: %q looks whole", secure, b)
		}
		c.Close()
	}
}

// However slowly bytes come, the same comes of them, both ways.
func TestEngine_OneByteAtATime(t *testing.T) {
	w := newRawInstance(t, func(c net.Conn, _ string) {
		for _, b := range []byte("HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2;a=\"b\"\r\nhi\r\n1\r\n!\r\n0\r\nX-T: 1\r\n\r\n") {
			c.Write([]byte{b})
		}
		io.Copy(io.Discard, c) // a close before the body has come would be a reset
	})
	r := newRig(t, func(_ *Options, a *lb.Application) { a.Instances = []lb.Instance{instanceAt("a", w.url())} })
	c := r.dial()
	for _, b := range []byte("POST http://x/v1/info HTTP/1.1\r\n" + goodHead + "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nhi\r\n0\r\n\r\n") {
		c.Write([]byte{b})
	}
	resp, body, err := answerOf(bufio.NewReader(c), "POST")
	if err != nil || string(body) != "hi!" || resp.Trailer.Get("X-T") != "1" {
		t.Errorf("%v %q %v", resp, body, err)
	}
	if head := w.head(); !strings.HasPrefix(head, "POST /v1/info HTTP/1.1\r\n") {
		t.Errorf("%q", head)
	}
}

func TestEngine_LargeUploads(t *testing.T) {
	const size = 50 << 20
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		fmt.Fprintf(w, "%d %x %v", n, h.Sum(nil), err)
	}))
	for _, inBody := range []bool{false, true} {
		for _, chunked := range []bool{false, true} {
			var head, tail bytes.Buffer
			m := multipart.NewWriter(&head)
			m.CreateFormFile("file", "big")
			at := head.Len()
			if inBody {
				m.WriteField("user", "u")
			}
			m.Close()
			tail.Write(head.Bytes()[at:])
			head.Truncate(at)
			sum := sha256.New()
			body := io.TeeReader(io.MultiReader(&head, io.LimitReader(zeros{}, size), &tail), sum)
			total := int64(head.Len() + size + tail.Len())
			req, _ := http.NewRequest("POST", r.url+"/v1/files/upload", body)
			if req.ContentLength = total; chunked {
				req.ContentLength = -1
			}
			req.Header.Set("Authorization", "Bearer user-token-shop")
			req.Header.Set("Content-Type", m.FormDataContentType())
			if !inBody {
				req.Header.Set("X-User-ID", "u")
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if want := fmt.Sprintf("%d %x <nil>", total, sum.Sum(nil)); string(b) != want {
				t.Errorf("in body %v, chunked %v: %s, want %s", inBody, chunked, b, want)
			}
		}
	}
}

func TestEngine_PipelinedBehindAnUpload(t *testing.T) {
	r := newRig(t, nil, echo("a"))
	body := strings.Repeat("x", 300<<10)
	c := r.dial()
	go fmt.Fprintf(c, "POST /v1/info HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%sGET /v1/next HTTP/1.1\r\n%s\r\nPOST /v1/third HTTP/1.1\r\n%sTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nGET /v1/last HTTP/1.1\r\n%s\r\n", goodHead, len(body), body, goodHead, goodHead, goodHead)
	br := bufio.NewReader(c)
	for _, want := range []string{"POST /v1/info Bearer app-a-secret-token " + body, "GET /v1/next Bearer app-a-secret-token ", "POST /v1/third Bearer app-a-secret-token hi", "GET /v1/last Bearer app-a-secret-token "} {
		if _, got, err := answerOf(br, "GET"); err != nil || string(got) != "a "+want {
			t.Fatalf("%v %.100q, want %.100q", err, got, want)
		}
	}
}

// A client may go in any phase: what was done for it ends, and nothing else.
func TestEngine_ClientGoesInAnyPhase(t *testing.T) {
	var open atomic.Int64
	began := make(chan string, 100)
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		open.Add(1)
		defer open.Add(-1)
		began <- r.URL.Path
		io.Copy(io.Discard, r.Body)
		switch r.URL.Path {
		case "/v1/quick":
			return
		case "/v1/stream":
			io.WriteString(w, "data: x\n\n")
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
	}))
	for _, phase := range []struct{ name, sent, path string }{
		{"head", "POST /v1/wait HTTP/1.1\r\nHost: x\r\nAuth", ""},
		{"body", "POST /v1/wait HTTP/1.1\r\n" + goodHead + "Content-Length: 100\r\n\r\nhalf", "/v1/wait"},
		{"chunked body", "POST /v1/wait HTTP/1.1\r\n" + goodHead + "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "/v1/wait"},
		{"waiting", "POST /v1/wait HTTP/1.1\r\n" + goodHead + "Content-Length: 2\r\n\r\nok", "/v1/wait"},
		{"waiting, more is there", "POST /v1/wait HTTP/1.1\r\n" + goodHead + "Content-Length: 2\r\n\r\nokGET /v1/wait HTTP/1.1\r\n", "/v1/wait"},
		{"streaming", "GET /v1/stream HTTP/1.1\r\n" + goodHead + "\r\n", "/v1/stream"},
		{"idle", "GET /v1/quick HTTP/1.1\r\n" + goodHead + "\r\n", "/v1/quick"},
		{"fresh", "", ""},
	} {
		for _, way := range []string{"close", "reset", "half"} {
			c := r.dial()
			io.WriteString(c, phase.sent)
			if phase.path != "" {
				if got := <-began; got != phase.path {
					t.Fatal(phase.name, got)
				}
			}
			if phase.name == "streaming" || phase.name == "idle" {
				http.ReadResponse(bufio.NewReader(c), nil)
			}
			left := time.Now()
			switch way {
			case "reset":
				c.SetLinger(0)
				c.Close()
			case "half":
				c.CloseWrite()
			default:
				c.Close()
			}
			what := phase.name + ", " + way
			eventually(t, what+": the instance is let go", func() bool { return open.Load() == 0 })
			if d := time.Since(left); d > 2*time.Second { // at once, on a machine that may be busy
				t.Errorf("%s: the instance was let go after %v", what, d)
			}
			eventually(t, what+": the connection is closed", func() bool { return r.p.Connections() == 0 })
			c.Close()
		}
	}
	if e := r.p.Ejections(time.Now()); len(e) != 0 {
		t.Error("an instance was blamed", e)
	}
}

// An instance that floods is held back by a client that reads slowly.
func TestEngine_BackpressureBoundsMemory(t *testing.T) {
	stalled := make(chan int, 1)
	w := newRawInstance(t, func(c net.Conn, _ string) {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
		piece := make([]byte, 256<<10)
		for total := 0; ; {
			c.SetWriteDeadline(time.Now().Add(400 * time.Millisecond))
			n, err := c.Write(piece)
			if total += n; err != nil || total > 512<<20 {
				stalled <- total
				return
			}
		}
	})
	r := newRig(t, func(_ *Options, a *lb.Application) { a.Instances = []lb.Instance{instanceAt("a", w.url())} })
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	c := r.dial()
	c.SetReadBuffer(16 << 10)
	io.WriteString(c, "GET /v1/info HTTP/1.1\r\n"+goodHead+"\r\n")
	n := <-stalled
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("the instance was stopped after %d KiB, the heap grew by %d KiB", n>>10, grown>>10)
	if n > 64<<20 || grown > 4<<20 {
		t.Error("an instance that floods is not held back")
	}
}

func TestEngine_Slowloris(t *testing.T) {
	r := newRig(t, func(o *Options, _ *lb.Application) {
		o.Limits.HeadTimeout, o.Limits.BodyTimeout, o.Limits.IdleTimeout = 100*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
	}, echo("a"))
	trickle := func(c net.Conn, stop chan struct{}) {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if _, err := c.Write([]byte("x")); err != nil {
					return
				}
			}
		}
	}
	for _, before := range []string{"", "GET /v1/info HTTP/1.1\r\n" + goodHead + "\r\n"} { // as the first request, and behind one
		c := r.dial()
		io.WriteString(c, before+"GET /v1/info HTTP/1.1\r\nX: ")
		stop := make(chan struct{})
		begin := time.Now()
		go trickle(c, stop)
		b, _ := io.ReadAll(c)
		close(stop)
		if !strings.Contains(string(b), "HTTP/1.1 408 ") || time.Since(begin) > 3*time.Second {
			t.Errorf("%q after %v", b, time.Since(begin))
		}
	}
	if got := r.raw("POST /v1/info HTTP/1.1\r\n" + goodHead + "Content-Length: 10\r\n\r\nhalf"); !strings.HasPrefix(got, "HTTP/1.1 408 ") {
		t.Errorf("a body that stops: %q", got)
	}
	if got := r.raw("GET /v1/info HTTP/1.1\r\n" + goodHead + "\r\n"); strings.Count(got, "HTTP/1.1 ") != 1 {
		t.Errorf("idle: %q", got)
	}
}

// Shutdown ends every phase when its time is over, and waits for nobody longer.
func TestEngine_ShutdownInAnyPhase(t *testing.T) {
	for _, phase := range []struct {
		name, sent string
		began      bool
	}{
		{"fresh", "", false},
		{"head", "POST /v1/wait HTTP/1.1\r\nHost: x\r\nAuth", false},
		{"body", "POST /v1/wait HTTP/1.1\r\n" + goodHead + "Content-Length: 100\r\n\r\nhalf", true},
		{"scanned body", "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-token-shop\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", false},
		{"waiting", "GET /v1/wait HTTP/1.1\r\n" + goodHead + "\r\n", true},
		{"slow reader", "GET /v1/flood HTTP/1.1\r\n" + goodHead + "\r\n", true},
		{"tunnel", upgradeRequest, true},
	} {
		began := make(chan struct{}, 1)
		r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			began <- struct{}{}
			switch r.URL.Path {
			case "/v1/ws":
				echoUpgrade("websocket").ServeHTTP(w, r)
			case "/v1/flood":
				for {
					if _, err := w.Write(make([]byte, 64<<10)); err != nil {
						return
					}
				}
			default:
				io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
			}
		}))
		c := r.dial()
		if phase.name == "slow reader" {
			c.SetReadBuffer(4 << 10)
		}
		io.WriteString(c, phase.sent)
		if phase.began {
			<-began
		}
		var wg sync.WaitGroup
		if phase.name == "slow reader" { // it takes a little at a time, without end
			wg.Go(func() {
				tick := time.NewTicker(2 * time.Millisecond)
				defer tick.Stop()
				for buf := make([]byte, 1<<10); ; <-tick.C {
					if _, err := c.Read(buf); err != nil {
						return
					}
				}
			})
		}
		eventually(t, "the connection is there", func() bool { return r.p.Connections() == 1 })
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
		begin := time.Now()
		r.s.Shutdown(ctx)
		cancel()
		if d := time.Since(begin); d > 2*time.Second {
			t.Errorf("%s: shutdown took %v", phase.name, d)
		}
		if r.p.Connections() != 0 {
			t.Error(phase.name, ": a connection is left")
		}
		c.Close()
		wg.Wait()
	}
}

// A panic costs its connection, not the process, and gives everything back.
func TestEngine_PanicCostsOneConnection(t *testing.T) {
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	r := newRig(t, func(o *Options, a *lb.Application) {
		o.Status = func() []byte { panic("status") }
		o.OnEject = func(string, string, time.Time) { panic("eject") }
		b := instanceAt("b", "http://"+dead.Addr().String())
		b.MaxFails = 1
		a.Instances = append(a.Instances, b)
	}, echo("a"))
	user := r.userOf("b")
	for _, request := range []string{"GET /status HTTP/1.1\r\nHost: x\r\n\r\n", "GET /v1/info HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-token-shop\r\nX-User-ID: " + user + "\r\n\r\n"} {
		if got := r.raw(request); strings.HasPrefix(got, "HTTP/1.1 2") {
			t.Errorf("%q", got)
		}
	}
	eventually(t, "connections are closed", func() bool { return r.p.Connections() == 0 })
	if n := strings.Count(r.log.String(), "request handler panicked"); n != 2 {
		t.Errorf("%d panics in the log", n)
	}
	if resp, _ := r.do("GET", "/v1/info", r.userOf("a"), ""); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
}

// A client that is not done sending when the instance breaks off has done
// nothing wrong.
func TestEngine_HTTP2UploadToAnInstanceThatBreaks(t *testing.T) {
	w := newRawInstance(t, func(c net.Conn, _ string) { c.(*net.TCPConn).SetLinger(0) })
	r := newRig(t, func(_ *Options, a *lb.Application) { a.Instances = []lb.Instance{instanceAt("a", w.url())} })
	addr := r.serveTLS(t.TempDir())
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	body, more := io.Pipe()
	defer more.Close()
	go io.WriteString(more, "half")
	req, _ := http.NewRequest("POST", "https://"+addr+"/v1/files/upload", body)
	req.Header.Set("Authorization", "Bearer user-token-shop")
	req.Header.Set("X-User-ID", "u")
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 502 || resp.ProtoMajor != 2 {
		t.Errorf("%s %s", resp.Status, b)
	}
}
