package proxy

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"
)

// A connection behind TLS waits for its next request without a buffer.
func TestServer_IdleTLSHoldsNoBuffer(t *testing.T) {
	const conns = 200
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }))
	addr := r.serveTLS(t.TempDir())
	heap := func() uint64 {
		var m runtime.MemStats
		for range 3 { // pools live through one
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	ask := func(c net.Conn) {
		io.WriteString(c, "GET /v1/info HTTP/1.1\r\n"+goodHead+"\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); string(b) != "ok" || err != nil {
			t.Fatalf("%q %v", b, err)
		}
	}
	before := heap()
	var all []net.Conn
	for range conns {
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		all = append(all, c)
		ask(c)
	}
	// Both ends of each, the test's own included.
	per := (heap() - before) / conns
	t.Logf("%d bytes per connection, both ends", per)
	if per > 16<<10+8<<10 {
		t.Errorf("%d bytes per connection", per)
	}
	for _, c := range all {
		ask(c)
	}
}
