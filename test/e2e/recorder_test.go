package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// recorder is an instance inside the test: it notes what arrives and when, and
// shares the test's clock. It answers chat messages as far as clients here
// look, and anything else with its name.
type recorder struct {
	name string
	addr string

	mu   sync.Mutex
	seen []arrival         // guarded by mu
	sent map[int]time.Time // of a streamed event; guarded by mu
	next int               // number of the next event; guarded by mu
}

// arrival is one request that was not a probe.
type arrival struct {
	method, target string
	header         http.Header
	size           int64
	sha256         string
}

func startRecorder(t testing.TB, name string) *recorder {
	t.Helper()
	r := &recorder{name: name, sent: make(map[int]time.Time)}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	srv := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() { // ends with Close
		defer close(done)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return r
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if req.URL.Path == "/v1/info" {
		fmt.Fprintf(w, `{"name":%q}`, r.name)
		return
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return // the proxy gave it up
	}
	sum := sha256.Sum256(body)
	r.mu.Lock()
	r.seen = append(r.seen, arrival{req.Method, req.RequestURI, req.Header.Clone(), int64(len(body)), hex.EncodeToString(sum[:])})
	r.mu.Unlock()
	var ask struct {
		Mode   string `json:"response_mode"`
		Inputs struct {
			Standin struct {
				Tokens int
				GapMS  int `json:"gap_ms"`
			} `json:"_standin"`
		}
	}
	if strings.HasPrefix(req.Header.Get("Content-Type"), "application/json") {
		_ = json.Unmarshal(body, &ask) // some tests send what is no JSON
	}
	if ask.Mode == "streaming" {
		r.stream(w, req, ask.Inputs.Standin.Tokens, time.Duration(ask.Inputs.Standin.GapMS)*time.Millisecond)
		return
	}
	fmt.Fprintf(w, `{"event":"message","answer":"[%s] hello"}`, r.name)
}

// stream sends numbered events and notes when each was on its way.
func (r *recorder) stream(w http.ResponseWriter, req *http.Request, events int, gap time.Duration) {
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	_ = out.Flush()
	for range events {
		select {
		case <-time.After(gap):
		case <-req.Context().Done():
			return
		}
		r.mu.Lock()
		n := r.next
		r.next++
		r.sent[n] = time.Now()
		r.mu.Unlock()
		fmt.Fprintf(w, "data: {\"event\":\"message\",\"answer\":\"[%s]\",\"number\":%d}\n\n", r.name, n)
		if out.Flush() != nil {
			return
		}
	}
	fmt.Fprint(w, "data: {\"event\":\"message_end\"}\n\n")
}

func (r *recorder) sentAt(number int) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent[number]
}

// arrivals returns what came since the last call.
func (r *recorder) arrivals() []arrival {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.seen
	r.seen = nil
	return out
}

// recordedApplication declares an application on n recorders.
func (c *cluster) recordedApplication(name string, n int, fields map[string]any) (application, []*recorder) {
	c.t.Helper()
	app := application{name: name, token: c.userToken(), fields: fields}
	var recorders []*recorder
	for i := range n {
		r := startRecorder(c.t, fmt.Sprintf("rec%d-%s", i+1, name))
		recorders = append(recorders, r)
		app.instances = append(app.instances, instance{name: r.name, addr: r.addr, token: c.instanceToken()})
	}
	return app, recorders
}
