package proxy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/certs"
	"difylb/pkg/lb"
)

func TestServer_ErrorsBelowTheHandlerHaveDifysShape(t *testing.T) {
	r := newRig(t, func(o *Options, _ *lb.Application) {
		o.Limits.HeadTimeout, o.Limits.BodyTimeout = 150*time.Millisecond, 150*time.Millisecond
	}, echo("a"))
	const auth = "Host: x\r\nAuthorization: Bearer user-token-shop\r\n"
	for _, tc := range []struct{ name, send, status, code string }{
		{"bad field", "GET /v1/info HTTP/1.1\r\nBad Name: x\r\n\r\n", "400", "bad_request"},
		{"no host", "GET /v1/info HTTP/1.1\r\n\r\n", "400", "bad_request"},
		{"two hosts", "GET /v1/info HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400", "bad_request"},
		{"large head", "GET /v1/info HTTP/1.1\r\n" + auth + "X: " + strings.Repeat("x", 100<<10) + "\r\n\r\n", "431", "header_too_large"},
		{"many fields", "GET /v1/info HTTP/1.1\r\n" + auth + strings.Repeat("X: y\r\n", 200) + "\r\n", "431", "header_too_large"},
		{"long target", "GET /v1/" + strings.Repeat("x", 100<<10) + " HTTP/1.1\r\n" + auth + "\r\n", "414", "uri_too_long"},
		{"expectation", "GET /v1/info HTTP/1.1\r\n" + auth + "Expect: magic\r\n\r\n", "417", "expectation_failed"},
		{"transfer coding", "POST /v1/info HTTP/1.1\r\n" + auth + "Transfer-Encoding: gzip\r\n\r\n", "501", "not_implemented"},
		{"trace", "TRACE /v1/info HTTP/1.1\r\n" + auth + "\r\n", "501", "not_implemented"},
		{"connect", "CONNECT x:443 HTTP/1.1\r\n" + auth + "\r\n", "501", "not_implemented"},
		{"version", "GET /v1/info HTTP/3.7\r\n" + auth + "\r\n", "505", "version_not_supported"},
		{"slow head", "GET /v1/info HTTP/1.1\r\nHost:", "408", "request_timeout"},
		{"slow body", "POST /v1/chat-messages HTTP/1.1\r\n" + auth + "Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{", "408", "request_timeout"},
		{"slow streamed body", "POST /v1/chat-messages HTTP/1.1\r\n" + auth + "X-User-ID: u\r\nContent-Length: 10\r\n\r\n{", "408", "request_timeout"},
		{"not routed", "GET /nowhere HTTP/1.1\r\n" + auth + "Connection: close\r\n\r\n", "404", "not_found"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r.t = t
			got := r.raw(tc.send)
			for _, want := range []string{"HTTP/1.1 " + tc.status + " ", `"code":"` + tc.code + `"`, `"status":` + tc.status, `"request_id":"`, "Content-Type: application/json", "Connection: close"} {
				if !strings.Contains(got, want) {
					t.Errorf("want %s in\n%s", want, got)
				}
			}
		})
	}
	if e := r.p.Ejections(time.Now()); len(e) != 0 {
		t.Error("an instance was blamed for slow clients", e)
	}
	c := r.dial()
	if b, _ := io.ReadAll(c); len(b) != 0 {
		t.Errorf("a connection that never sent anything was told %q", b)
	}
}

func TestServer_RefusalOfALargeUploadArrives(t *testing.T) {
	r := newRig(t, nil, echo("a"))
	for _, token := range []string{"wrong", "user-token-shop"} {
		c := r.dial()
		fmt.Fprintf(c, "POST /v1/files/upload HTTP/1.1\r\nHost: x\r\nX-User-ID: u\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n", token, 200<<20)
		go io.CopyN(c, zeros{}, 20<<20)
		time.Sleep(20 * time.Millisecond)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || (resp.StatusCode != 401 && resp.StatusCode != 413) {
			t.Errorf("%v %v", resp, err)
		}
		c.Close()
	}
}

func TestServer_ConnectionsOverTheLimitWait(t *testing.T) {
	r := newRig(t, func(o *Options, _ *lb.Application) { o.Limits.MaxConnections = 2 }, echo("a"))
	second, err := net.Listen("tcp", "127.0.0.1:0") // without visitors; it must take no slot
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.s.Serve(second) }()
	ask := func(c net.Conn) { io.WriteString(c, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n") }
	var conns []*net.TCPConn
	for range 5 {
		c := r.dial()
		ask(c)
		conns = append(conns, c)
	}
	buf := make([]byte, 1)
	for _, c := range conns[:2] {
		if _, err := c.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	conns[4].SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := conns[4].Read(buf); !os.IsTimeout(err) {
		t.Errorf("the fifth connection: %v", err)
	}
	for i, c := range conns[:3] {
		c.Close()
		next := conns[min(i+2, 4)]
		next.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := next.Read(buf); err != nil {
			t.Errorf("a connection that waited: %v", err)
		}
	}
	for _, c := range conns {
		c.Close()
	}
	second.Close()
	<-done
}

func TestServer_ShutdownLetsStreamsFinish(t *testing.T) {
	r := newRig(t, nil, clocked(10, 30*time.Millisecond))
	got := make(chan string, 1)
	go func() { _, b := r.do("GET", "/v1/info", "u", ""); got <- b }()
	eventually(t, "the stream is open", func() bool { return r.p.Connections() == 1 })
	time.Sleep(50 * time.Millisecond)
	r.p.SetDraining(true)
	resp, body := r.do("GET", "/health", "", "")
	if resp.StatusCode != 503 || !strings.Contains(body, `"status":"draining"`) || !resp.Close {
		t.Errorf("%d %s close=%v", resp.StatusCode, body, resp.Close)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if cut := r.s.Shutdown(ctx); cut != 0 {
		t.Errorf("%d cut", cut)
	}
	if b := <-got; strings.Count(b, "data:") != 10 {
		t.Errorf("the stream ended early: %q", b)
	}
	if c, err := net.Dial("tcp", r.addr); err == nil {
		c.Close()
		t.Error("a new connection was accepted")
	}
}

// Also with every slot taken, when Accept waits for one.
func TestServer_ShutdownCutsAfterTheGrace(t *testing.T) {
	r := newRig(t, func(o *Options, _ *lb.Application) { o.Limits.MaxConnections = 1 }, clocked(1000, 20*time.Millisecond))
	c, waiting := r.dial(), r.dial()
	io.WriteString(c, "GET /v1/info HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-token-shop\r\n\r\n")
	br := bufio.NewReader(c)
	if _, err := br.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if cut := r.s.Shutdown(ctx); cut != 1 {
		t.Errorf("%d cut", cut)
	}
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("shutdown took %v", d)
	}
	io.ReadAll(br)
	waiting.Close()
}

func TestServer_TablesSwapUnderLoad(t *testing.T) {
	r := newRig(t, nil, echo("a"), echo("b"), echo("c"))
	stream := newRigStream(t)
	long := instanceAt("long", stream)
	r.app.Instances = append(r.app.Instances, long)
	r.apply()
	req, _ := http.NewRequest("GET", r.url+"/v1/stream", nil)
	req.Header.Set("Authorization", "Bearer user-token-shop")
	req.Header.Set("X-User-ID", r.userOf("long"))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r.app.Instances = r.app.Instances[:3] // it goes, its stream stays

	stop := make(chan struct{})
	var swaps sync.WaitGroup
	swaps.Go(func() {
		all := slices.Clone(r.app.Instances)
		for i := range 200 {
			r.app.Instances = slices.Clone(all)
			switch i % 5 {
			case 0:
				r.app.Instances[i%3].State = lb.Draining
			case 1:
				r.app.Instances[i%3].Weight = 1 + i
			case 2:
				r.app.Instances = r.app.Instances[:2]
			case 3:
				r.app.Instances[i%3].Host = "127.0.0.1"
				r.app.Instances[i%3].PreserveHost = new(bool)
			case 4:
				r.app.Instances[i%3].URL, r.app.Instances[i%3].Host, r.app.Instances[i%3].Port = fmt.Sprintf("http://localhost:%d", all[i%3].Port), "", 0
			}
			r.apply()
			time.Sleep(time.Millisecond)
		}
		close(stop)
	})
	var failed, served atomic.Int64
	var load sync.WaitGroup
	for w := range 4 {
		load.Go(func() {
			for i := 0; i < 500 || !closed(stop); i++ {
				req, _ := http.NewRequest("POST", r.url+"/v1/chat-messages", strings.NewReader(fmt.Sprintf(`{"user":"u%d-%d"}`, w, i)))
				req.Header.Set("Authorization", "Bearer user-token-shop")
				req.Header.Set("Content-Type", "application/json")
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					failed.Add(1)
					continue
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if served.Add(1); resp.StatusCode != 200 {
					failed.Add(1)
				}
			}
		})
	}
	swaps.Wait()
	load.Wait()
	if failed.Load() != 0 || served.Load() < 2000 {
		t.Errorf("%d of %d failed", failed.Load(), served.Load())
	}
	if b, err := io.ReadAll(resp.Body); err != nil || strings.Count(string(b), "data:") != 60 {
		t.Errorf("the long stream: %d events, %v", strings.Count(string(b), "data:"), err)
	}
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// newRigStream serves a stream of 60 events over 600 ms.
func newRigStream(t *testing.T) (url string) {
	r := newRig(t, nil, clocked(60, 10*time.Millisecond))
	return "http://127.0.0.1:" + fmt.Sprint(r.app.Instances[0].Port)
}

// serveTLS has the rig serve HTTPS as well, with a certificate for one.example
// that it writes to dir, and returns where.
func (r *rig) serveTLS(dir string) (addr string) {
	r.t.Helper()
	cert, key := writeCertificate(r.t, dir, "one.example")
	pair, err := certs.LoadPair(cert, key, zerolog.Nop())
	if err != nil {
		r.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.s.ServeTLS(ln, pair) }() // the cleanup waits for it
	r.t.Cleanup(func() { r.s.Close(); <-done })
	return ln.Addr().String()
}

// writeCertificate makes a self-signed pair of files.
func writeCertificate(t testing.TB, dir, name string) (cert, key string) {
	t.Helper()
	k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kb, _ := x509.MarshalECPrivateKey(k)
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kb}), 0o600)
	os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
	return cert, key
}

func TestServer_HTTPSAndHTTP2(t *testing.T) {
	gone := make(chan struct{}, 1)
	r := newRig(t, func(o *Options, _ *lb.Application) { o.Limits.WriteTimeout = 150 * time.Millisecond }, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Forwarded-Proto") != "https" {
			t.Error("X-Forwarded-Proto", r.Header)
		}
		events, gap := 10, 30*time.Millisecond
		if r.URL.Path == "/v1/slow" {
			events, gap = 2, 400*time.Millisecond // more than the write timeout between two
		} else if r.URL.Path == "/v1/endless" {
			events = 1000
			defer func() { gone <- struct{}{} }()
		}
		clocked(events, gap).ServeHTTP(w, r)
	}))
	dir := t.TempDir()
	addr := r.serveTLS(dir)
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr}
	get := func(ctx context.Context, path string) *http.Response {
		req, _ := http.NewRequestWithContext(ctx, "POST", "https://"+addr+path, strings.NewReader(`{"user":"u"}`))
		req.Header.Set("Authorization", "Bearer user-token-shop")
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	resp := get(context.Background(), "/v1/quick")
	d := delays(t, resp.Body)
	resp.Body.Close()
	if slices.Sort(d); resp.ProtoMajor != 2 || len(d) != 10 || d[5] > 20*time.Millisecond {
		t.Errorf("%s, delays %v", resp.Proto, d)
	}
	resp = get(context.Background(), "/v1/slow")
	if d := delays(t, resp.Body); len(d) != 2 {
		t.Errorf("a quiet stream had %d events", len(d))
	}
	resp.Body.Close()
	ctx, cancel := context.WithCancel(context.Background())
	resp = get(ctx, "/v1/endless")
	cancel()
	resp.Body.Close()
	select {
	case <-gone:
	case <-time.After(5 * time.Second):
		t.Error("the instance was not let go")
	}
	dial := func(cfg *tls.Config) (*tls.Conn, error) {
		cfg.InsecureSkipVerify = true
		return tls.Dial("tcp", addr, cfg)
	}
	if c, err := dial(&tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		c.Close()
		t.Error("TLS 1.1 was accepted")
	}
	c, err := dial(&tls.Config{NextProtos: []string{"http/1.1"}})
	if err != nil || c.ConnectionState().NegotiatedProtocol != "http/1.1" {
		t.Fatal(err)
	}
	c.Close()
	writeCertificate(t, dir, "two.example")
	eventually(t, "the new certificate", func() bool {
		c, err := dial(&tls.Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].DNSNames[0] == "two.example"
	})
}

func BenchmarkProxy_Blocking(b *testing.B) {
	answer := []byte(strings.Repeat("x", 600))
	r := newRig(b, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Write(answer)
	}))
	body := `{"query":"` + strings.Repeat("q", 200) + `","user":"u"}`
	req := fmt.Appendf(nil, "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-token-shop\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	c := r.dial()
	c.SetDeadline(time.Time{})
	br := bufio.NewReader(c)
	b.ReportAllocs()
	for b.Loop() {
		c.Write(req)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 200 {
			b.Fatal(resp, err)
		}
		io.Copy(io.Discard, resp.Body)
	}
}

// A client that has sent a request on a kept connection while the server
// begins to shut down gets its answer, and is told that it was the last.
func TestServer_KeptConnectionsHaveALastCall(t *testing.T) {
	r := newRig(t, func(o *Options, _ *lb.Application) { o.Limits.LastCall = 10 * time.Second }, echo("a"))
	const request = "GET /v1/info HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-token-shop\r\n\r\n"
	c := r.dial()
	br := bufio.NewReader(c)
	io.WriteString(c, request)
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.Close {
		t.Fatal(resp, err)
	} else if _, err := io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	done := make(chan int, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		done <- r.s.Shutdown(ctx)
	}()
	eventually(t, "the server closes", r.s.closing.Load)
	io.WriteString(c, request)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 200 || !resp.Close {
		t.Fatal(resp, err)
	}
	if b, err := io.ReadAll(resp.Body); err != nil || len(b) == 0 {
		t.Fatal(err)
	}
	c.Close()
	if cut := <-done; cut != 0 {
		t.Errorf("%d connections cut", cut)
	}
}
