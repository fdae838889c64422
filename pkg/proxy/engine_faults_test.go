package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"difylb/pkg/h1"
	"difylb/pkg/lb"
)

// An instance that switches protocols before it has the request leaves no
// place where the body ends and the other protocol begins.
func TestEngine_NoUpgradeBeforeTheRequestIsWhole(t *testing.T) {
	w := newRawInstance(t, func(c net.Conn, _ string) {
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		io.Copy(io.Discard, c)
	})
	r := newRig(t, func(_ *Options, a *lb.Application) { a.Instances = []lb.Instance{instanceAt("a", w.url())} })
	c := r.dial()
	io.WriteString(c, "POST /v1/ws HTTP/1.1\r\n"+goodHead+"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 10\r\n\r\nhalf")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 502 {
		t.Fatalf("%v %v", resp, err)
	}
}

// An early final answer and 100 Continue are written by two goroutines: 100
// must come first or not at all.
func TestEngine_ContinueNeverFollowsTheAnswer(t *testing.T) {
	r := newRig(t, func(o *Options, _ *lb.Application) { o.AccessLog = nil }, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(415)
	}))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 40 {
				got := r.raw("POST /v1/files/upload HTTP/1.1\r\n" + goodHead + "Connection: close\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
				rest := strings.TrimPrefix(got, "HTTP/1.1 100 Continue\r\n\r\n")
				if !strings.HasPrefix(rest, "HTTP/1.1 415 ") || strings.Count(rest, "HTTP/1.1 ") != 1 {
					t.Errorf("%q", got)
				}
			}
		})
	}
	wg.Wait()
	// The order that chance does not bring: the answer's head is being made
	// when the body is asked for.
	server, client := tcpPair(t)
	c := r.s.newClient(server, server, "http")
	defer c.close()
	c.x = newExchange(r.s, c, &c.lifeline)
	defer c.leave()
	head := "POST /v1/files/upload HTTP/1.1\r\n" + goodHead + "Expect: 100-continue\r\nContent-Length: 10\r\n\r\n"
	c.in, c.n = []byte(head), len(head)
	if c.parse() != requestBegun || !c.expects.Load() {
		t.Fatal("a request that expects 100 was not read as one")
	}
	c.keep = true
	c.begin(413)
	if err := c.endHead(h1.BodyLength, 0); err != nil || c.keep {
		t.Fatal(err, c.keep)
	}
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}
	if err := c.write100(); err != nil {
		t.Fatal(err)
	}
	server.Close()
	if b, _ := io.ReadAll(client); !bytes.HasPrefix(b, []byte("HTTP/1.1 413 ")) || bytes.Contains(b, []byte("Continue")) {
		t.Errorf("%q", b)
	}
}

// tcpPair is a connection's two ends.
func tcpPair(t testing.TB) (server, client *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return s.(*net.TCPConn), c.(*net.TCPConn)
}

type owned struct{}

func (owned) hungUp(bool) {}
func (owned) alarm()      {}

// A cut holds, also where the writer is just about to grant its peer more time.
func TestEngine_CutOffIsNotUndoneByTheNextWrite(t *testing.T) {
	server, client := tcpPair(t)
	defer client.Close()
	w := new(wire)
	w.init(server, server, owned{})
	defer w.close()
	w.cutOff()
	begin := time.Now()
	for n := 0; ; n += 1 << 20 {
		if _, err := w.write(make([]byte, 1<<20), time.Minute); err != nil {
			break
		}
		if n > 64<<20 {
			t.Fatal("all was taken")
		}
	}
	if d := time.Since(begin); d > 10*time.Second {
		t.Error("a write that was cut off took", d)
	}
}

// A small chunked body is carried by a goroutine of its own, which may be done
// before its request begins to wait: the time limit must hold all the same.
func TestEngine_ReadTimeoutBehindACarriedBody(t *testing.T) {
	r := newRig(t, func(o *Options, a *lb.Application) {
		a.Timeouts.Read = lb.Duration(50 * time.Millisecond)
		a.Retry.Attempts = 0
		a.Instances[0].MaxFails = 0
	}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 12 {
				c := r.dial()
				io.WriteString(c, "POST /v1/chat-messages HTTP/1.1\r\n"+goodHead+"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil || resp.StatusCode != 504 {
					t.Error(resp, err)
					return
				}
				c.Close()
			}
		})
	}
	wg.Wait()
}

// A 204 has no length, nor has an interim answer (RFC 9110 section 8.6), though
// WSGI servers send one.
func TestEngine_NoContentHasNoLength(t *testing.T) {
	r, _ := newRawInstanceRig(t, "HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\nHTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", nil)
	if got := r.raw("DELETE /v1/x HTTP/1.1\r\n" + goodHead + "Connection: close\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 ") || strings.Contains(got, "Content-Length") {
		t.Errorf("%q", got)
	}
}

// gather keeps what is written, to be written at once.
type gather struct {
	net.Conn
	hold bool
	held []byte
}

func (g *gather) Write(p []byte) (int, error) {
	if g.hold {
		g.held = append(g.held, p...)
		return len(p), nil
	}
	return g.Conn.Write(p)
}

// What an instance says behind its answer must not become the next one's, also
// where TLS has read it along.
func TestEngine_SurplusBehindTLSIsNoticed(t *testing.T) {
	cert, key := writeCertificate(t, t.TempDir(), "one.example")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		more   string
		late   bool
		silent bool
	}{{"nothing", "", false, true}, {"with the answer", "x", false, false}, {"behind it", "x", true, false}} {
		server, client := tcpPair(t)
		answered := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			g := &gather{Conn: server}
			s := tls.Server(g, &tls.Config{Certificates: []tls.Certificate{pair}})
			if s.Handshake() != nil {
				return
			}
			if tc.late {
				io.WriteString(s, "answer")
				<-answered
				io.WriteString(s, tc.more)
				return
			}
			g.hold = true // two records in one segment
			io.WriteString(s, "answer")
			io.WriteString(s, tc.more)
			g.Conn.Write(g.held)
			<-answered
		})
		c := tls.Client(client, &tls.Config{InsecureSkipVerify: true})
		w := new(wire)
		w.init(c, client, owned{})
		buf := make([]byte, 6)
		if _, err := io.ReadFull(c, buf); err != nil {
			t.Fatal(err)
		}
		close(answered)
		if tc.silent {
			for range 3 {
				if !w.silent() {
					t.Error(tc.name, ": a connection without a byte is not silent")
				}
			}
		} else {
			eventually(t, tc.name+": the byte is seen", func() bool { return !w.silent() })
		}
		w.close()
		server.Close()
		wg.Wait()
	}
}

// An instance may close an idle connection in the moment in which it is used.
// Where the request may be made twice, that costs nothing, also where there is
// no other instance.
func TestEngine_IdleConnectionThatEndsAsItIsUsed(t *testing.T) {
	ln := listen(t, func(c net.Conn) {
		defer c.Close()
		br := bufio.NewReader(c)
		for n := range 2 {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			io.Copy(io.Discard, req.Body)
			if n == 0 {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		}
	})
	r := newRig(t, func(_ *Options, a *lb.Application) {
		a.Instances = []lb.Instance{instanceAt("a", "http://"+ln.Addr().String())}
		a.Instances[0].MaxFails = 0
	})
	for i, tc := range []struct {
		method string
		status int
	}{{"GET", 200}, {"GET", 200}, {"DELETE", 200}, {"POST", 502}} {
		if resp, body := r.do(tc.method, "/v1/info", "u", ""); resp.StatusCode != tc.status {
			t.Errorf("%d, %s: %d %s", i, tc.method, resp.StatusCode, body)
		}
	}
}

// A 404 that comes while the body is under way is judged by one goroutine, the
// body carried by another.
func TestEngine_EarlyNotFoundOfAConversation(t *testing.T) {
	notFound := `{"code":"not_found","message":"Conversation Not Exists.","status":404}`
	serve := func(c net.Conn) {
		defer c.Close()
		br := bufio.NewReader(c)
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				return
			}
			if line == "\r\n" {
				break
			}
		}
		io.CopyN(io.Discard, br, 1000)
		io.WriteString(c, "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: "+strconv.Itoa(len(notFound))+"\r\n\r\n"+notFound)
		io.Copy(io.Discard, br)
	}
	one, two := listen(t, serve), listen(t, serve)
	r := newRig(t, func(_ *Options, a *lb.Application) {
		for name, ln := range map[string]net.Listener{"a": one, "b": two} {
			in := instanceAt(name, "http://"+ln.Addr().String())
			in.Domain = name
			a.Instances = append(a.Instances, in)
		}
	})
	for range 10 {
		c := r.dial()
		const size = 60 << 10 // it is kept, and could be sent again
		io.WriteString(c, "DELETE /v1/conversations/abc HTTP/1.1\r\n"+goodHead+"Content-Type: application/json\r\nContent-Length: "+strconv.Itoa(size)+"\r\n\r\n")
		var wg sync.WaitGroup
		wg.Go(func() {
			for n := 0; n < size; n += 1 << 10 {
				if _, err := c.Write(bytes.Repeat([]byte{' '}, 1<<10)); err != nil {
					return
				}
			}
		})
		resp, body, err := answerOf(bufio.NewReader(c), "DELETE")
		if err != nil || resp.StatusCode != 404 || string(body) != notFound {
			t.Errorf("%v %s %v", resp, body, err)
		}
		wg.Wait()
		c.Close()
	}
}
