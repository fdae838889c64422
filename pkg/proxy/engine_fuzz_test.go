package proxy

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"difylb/pkg/lb"
)

// digested are the fields whose values a digest tells.
var digested = []string{"Content-Type", "X-User-Id", "Cookie", "X-A"}

// digest tells what a request meant to who read it.
func digest(method, target string, h http.Header, body []byte) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %q %d %.8x", method, target, len(body), sha256.Sum256(body))
	for _, name := range digested {
		fmt.Fprintf(&b, " %q", h[name])
	}
	return b.String()
}

// read is a request as the reference has read it.
type read struct {
	method, path, digest string
	last                 bool
}

// reference reads a client's bytes with net/http, as far as they are whole
// requests. The one empty line before a request that we skip is skipped.
func reference(data []byte) (out []read) {
	br := bufio.NewReader(bytes.NewReader(data))
	for {
		if p, _ := br.Peek(2); string(p) == "\r\n" {
			br.Discard(2)
		}
		req, err := http.ReadRequest(br)
		if err != nil {
			return out
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return out
		}
		for _, line := range req.Header["Connection"] {
			for name := range strings.SplitSeq(line, ",") {
				req.Header.Del(strings.TrimSpace(name))
			}
		}
		target := req.RequestURI
		if i := strings.Index(target, "://"); i > 0 && target[0] != '/' {
			target = target[i+3:]
			if j := strings.IndexAny(target, "/?"); j < 0 {
				target = "/"
			} else if target = target[j:]; target[0] == '?' {
				target = "/" + target
			}
		}
		path, _, _ := strings.Cut(target, "?")
		out = append(out, read{req.Method, path, digest(req.Method, target, req.Header, body), req.Close})
		if req.Close {
			return out
		}
	}
}

// writeSplit writes data in pieces of random sizes.
func writeSplit(c net.Conn, data []byte, rnd *rand.Rand) {
	for len(data) > 0 {
		n := len(data)
		if rnd.IntN(3) > 0 {
			n = 1 + rnd.IntN(len(data))
		}
		if _, err := c.Write(data[:n]); err != nil {
			return
		}
		data = data[n:]
	}
}

// answerOf reads one final answer.
func answerOf(br *bufio.Reader, method string) (*http.Response, []byte, error) {
	for {
		resp, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			return nil, nil, err
		}
		if resp.StatusCode/100 == 1 && resp.StatusCode != 101 {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		return resp, body, err
	}
}

func patient(_ *Options, a *lb.Application) {
	for i := range a.Instances {
		a.Instances[i].MaxFails = 0
	}
	a.MissingUser = lb.MissingUserSpread
}

// FuzzEngine_Client gives a client's bytes to the proxy and to net/http. What
// an instance gets must be what net/http reads at that place, and every
// request that both read has one answer, in order, until the proxy refuses.
func FuzzEngine_Client(f *testing.F) {
	for _, seed := range []string{
		"GET /v1/info HTTP/1.1\r\n" + goodHead + "\r\n",
		"POST /v1/chat-messages?a=b HTTP/1.1\r\n" + goodHead + "Content-Length: 5\r\nContent-Type: text/plain\r\nX-A: 1\r\nX-A: 2\r\n\r\nhelloGET /v1/x HTTP/1.1\r\n" + goodHead + "\r\n",
		"POST /v1/a HTTP/1.1\r\n" + goodHead + "Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX-T: 1\r\n\r\n\r\nHEAD /v1/b HTTP/1.1\r\n" + goodHead + "\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /v1/a HTTP/1.1\r\n" + goodHead + "Expect: 100-continue\r\nContent-Length: 2\r\n\r\nhiDELETE /v1/b HTTP/1.1\r\n" + goodHead + "\r\n",
		"POST /v1/a HTTP/1.0\r\n" + goodHead + "Connection: keep-alive\r\nContent-Length: 2\r\n\r\nhiGET http://x/v1/c?y HTTP/1.1\r\n" + goodHead + "Connection: X-A\r\nX-A: 1\r\n\r\n",
		"POST /v1/a HTTP/1.1\r\n" + goodHead + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/s HTTP/1.1\r\n" + goodHead + "\r\n",
		"POST /v1/a HTTP/1.1\r\n" + goodHead + "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
		"POST /v1/a HTTP/1.1\r\n" + goodHead + "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
		"POST /v1/a HTTP/1.1\r\n" + goodHead + "Content-Length: 50\r\n\r\nhello",
		"GET /v1/ws HTTP/1.1\r\n" + goodHead + "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\nrest",
		"POST /v1/ws HTTP/1.1\r\n" + goodHead + "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 4\r\n\r\nbodyGET /v1/b HTTP/1.1\r\n" + goodHead + "\r\n",
		"POST /v1/a HTTP/1.1\r\n" + goodHead + "Content-Type: application/json\r\nContent-Length: 12\r\n\r\n{\"user\":\"x\"}GET /v1/b HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/c HTTP/1.1\r\n" + goodHead + "\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/../x HTTP/1.1\r\n" + goodHead + "\r\nGET /v1/c HTTP/1.1\r\n" + goodHead + "\r\n",
		"GET /v1/info HTTP/1.1\r\n" + goodHead + "X-A: a\r\n b\r\n\r\n",
		"GET /v1/info HTTP/1.1\r\n" + goodHead + "X_A: a\r\nX-A:\t c \r\n\r\n\r\n\r\nGET /v1/c HTTP/1.1\r\n" + goodHead + "\r\n",
		"POST /v1/files/upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-token-shop\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 69\r\n\r\n--b\r\nContent-Disposition: form-data; name=\"user\"\r\n\r\nalice\r\n--b--\r\n..GET /v1/b HTTP/1.1\r\n" + goodHead + "\r\n",
	} {
		f.Add([]byte(seed), uint64(1))
		f.Add([]byte(seed+seed), uint64(7))
	}
	r := newRig(f, func(o *Options, a *lb.Application) { patient(o, a); o.AccessLog = nil }, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		w.Header().Set("X-Digest", fmt.Sprintf("%x", digest(r.Method, r.RequestURI, r.Header, body)))
		io.WriteString(w, "ok")
	}))
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) {
		want := reference(data)
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		go writeSplit(c, data, rand.New(rand.NewPCG(seed, 1))) // ends with c at the latest
		br, over, unread := bufio.NewReader(c), false, false
		for i, w := range want {
			resp, body, err := answerOf(br, w.method)
			if resp == nil && unread && err == io.ErrUnexpectedEOF {
				over = true // the body that nobody has read was malformed to us
				break
			}
			if err != nil {
				t.Fatalf("no answer to request %d of %d, %s: %v", i, len(want), w.digest, err)
			}
			if got := resp.Header.Get("X-Digest"); got != "" {
				if got != fmt.Sprintf("%x", w.digest) || resp.StatusCode != 200 || w.method != "HEAD" && string(body) != "ok" {
					var told []byte
					fmt.Sscanf(got, "%x", &told)
					t.Fatalf("request %d: an instance got %s, net/http reads %s", i, told, w.digest)
				}
			} else if local := w.path == "/health" || w.path == "/status"; resp.StatusCode < 400 && !local {
				t.Fatalf("request %d, %s: %s %v", i, w.digest, resp.Status, resp.Header)
			}
			unread = resp.Header.Get("X-Digest") == ""
			if over = resp.Close || w.last; over {
				if unread && w.method == "HEAD" {
					io.Copy(io.Discard, br) // we have not understood that it is HEAD
				}
				break
			}
		}
		// What follows is no whole request to net/http: nobody may answer it as one.
		c.(*net.TCPConn).CloseWrite()
		rest, err := io.ReadAll(br)
		if err != nil && errors.Is(err, errDeadline) {
			t.Fatal("the connection was not closed")
		}
		if over && len(rest) > 0 {
			t.Fatalf("behind the last answer: %q", rest)
		}
		if len(rest) > 0 && (bytes.Contains(rest, []byte("X-Digest")) || !bytes.HasPrefix(rest, []byte("HTTP/1.1 4")) && !bytes.HasPrefix(rest, []byte("HTTP/1.1 5")) && !bytes.HasPrefix(rest, []byte("HTTP/1.1 100 "))) {
			t.Fatalf("net/http reads nothing there, and we answer %q", rest)
		}
	})
}

// sayer is an instance that answers the request whose X-Say is "first" with
// given bytes, and every other properly, on the same connections.
type sayer struct {
	mu     sync.Mutex // guards all
	data   []byte
	close  bool // behind them
	seed   uint64
	faults []string
}

func (s *sayer) set(data []byte, closing bool, seed uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data, s.close, s.seed, s.faults = data, closing, seed, nil
}

func (s *sayer) serve(c net.Conn) {
	defer c.Close()
	br := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(br)
		if err == nil {
			_, err = io.Copy(io.Discard, req.Body)
		}
		if err != nil {
			if err != io.EOF && !errors.As(err, new(*net.OpError)) {
				s.mu.Lock()
				s.faults = append(s.faults, "an instance got what is no request: "+err.Error())
				s.mu.Unlock()
			}
			return
		}
		s.mu.Lock()
		data, closing, seed := s.data, s.close, s.seed
		s.mu.Unlock()
		if req.Header.Get("X-Say") != "first" {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nproper")
			continue
		}
		writeSplit(c, data, rand.New(rand.NewPCG(seed, 2)))
		if closing {
			return
		}
	}
}

// listen serves connections until the test ends.
func listen(t testing.TB, serve func(net.Conn)) net.Listener {
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
			wg.Go(func() { serve(c) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln
}

// FuzzEngine_Instance gives an instance's bytes to a client through the proxy,
// and to net/http. The client gets what net/http reads, or a refusal, or a
// part that is broken off; and the next request gets its own answer.
func FuzzEngine_Instance(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n1\r\n!\r\n0\r\nX-T: 1\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nsurplus",
		"HTTP/1.1 200 OK\r\n\r\nuntil the end",
		"HTTP/1.0 200 OK\r\n\r\nuntil the end",
		"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nX-A: 1\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nbytes",
		"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: 29\r\n\r\n{\"code\":\"too_many_requests\"}\r\n",
		"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno",
		"HTTP/1.1 500 X\r\nContent-Length: 0\r\nX-A: a\r\nX-A: b\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n8\r\ndata: x\n\r\n",
		"", "garbage", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
	} {
		f.Add([]byte(seed), uint64(0), false)
		f.Add([]byte(seed), uint64(3), true)
	}
	f.Add([]byte("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"), uint64(22), true) // an answer to HEAD has no body
	say := new(sayer)
	ln := listen(f, say.serve)
	r := newRig(f, func(o *Options, a *lb.Application) {
		a.Instances = []lb.Instance{instanceAt("a", "http://"+ln.Addr().String())}
		patient(o, a)
		a.Timeouts.Read = lb.Duration(2 * time.Second)
		o.AccessLog = nil
	})
	f.Fuzz(func(t *testing.T, data []byte, seed uint64, head bool) {
		data = bytes.Clone(data) // an instance may be writing it when the next input is made of it
		method := "GET"
		if head {
			method = "HEAD"
		}
		wantBR := bufio.NewReader(bytes.NewReader(data))
		want, wantBody, wantErr := answerOf(wantBR, method)
		untilClose := wantErr == nil && want.ContentLength < 0 && want.TransferEncoding == nil
		_, err := wantBR.Peek(1)
		surplus := wantErr == nil && err == nil
		// What net/http does not take for a whole answer must end, or the proxy waits.
		say.set(data, wantErr != nil || untilClose || seed%2 == 0 || len(data) > 0 && bytes.HasPrefix(data, []byte("HTTP/1.1 1")), seed)
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { c.Close() }()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		br := bufio.NewReader(c)
		fmt.Fprintf(c, "%s /v1/info HTTP/1.1\r\n%sX-Say: first\r\n\r\n", method, goodHead)
		got, body, err := answerOf(br, method)
		switch {
		case got == nil:
			t.Fatal("no answer at all: ", err)
		case errors.Is(err, errDeadline):
			t.Fatal("the answer hangs")
		case err != nil: // broken off, which says that this is not all
			if want == nil || got.StatusCode != want.StatusCode || !untilClose && wantErr == nil && !bytes.HasPrefix(wantBody, body) {
				t.Fatalf("broken off: %d %q; net/http reads %v %q, %v", got.StatusCode, body, want, wantBody, wantErr)
			}
		case got.Header.Get("X-Request-Id") == "":
			t.Fatalf("%v", got.Header)
		case (got.StatusCode == 502 || got.StatusCode == 504) && (bytes.Contains(body, []byte(`"code":"bad_gateway"`)) || bytes.Contains(body, []byte(`"code":"gateway_timeout"`)) || method == "HEAD"):
		case wantErr != nil:
			t.Fatalf("complete: %v %q; net/http: %v", got, body, wantErr)
		case got.StatusCode != want.StatusCode || !bytes.Equal(body, wantBody) || !slices.Equal(got.Header["X-A"], want.Header["X-A"]) && want.Header["Connection"] == nil || !slices.Equal(got.Header["Content-Type"], want.Header["Content-Type"]):
			t.Fatalf("%v %q\nnet/http reads %v %q", got, body, want, wantBody)
		}
		if err != nil || got.Close {
			if rest, _ := io.ReadAll(br); len(rest) > 0 {
				t.Fatalf("behind the answer: %q", rest)
			}
			c.Close()
			if c, err = net.Dial("tcp", r.addr); err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(10 * time.Second))
			br = bufio.NewReader(c)
		}
		fmt.Fprintf(c, "GET /v1/info HTTP/1.1\r\n%s\r\n", goodHead)
		got, body, err = answerOf(br, "GET")
		late := surplus && err == nil && got.StatusCode == 502 // it came when the connection was in use again
		if !late && (err != nil || got.StatusCode != 200 || string(body) != "proper") {
			t.Fatalf("the next request: %v %q %v", got, body, err)
		}
		say.mu.Lock()
		defer say.mu.Unlock()
		if len(say.faults) > 0 {
			t.Fatal(say.faults)
		}
	})
}
