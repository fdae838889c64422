package proxy

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"difylb/pkg/lb"
)

// stopCounter is an instance that runs tasks named after it and notes stops.
type stopCounter struct {
	name  string
	hang  bool
	mu    sync.Mutex
	stops []string // token and body; guarded by mu
}

func (s *stopCounter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	if strings.HasSuffix(r.URL.Path, "/stop") {
		s.mu.Lock()
		s.stops = append(s.stops, r.Header.Get("Authorization")+" "+string(b))
		s.mu.Unlock()
		if s.hang {
			<-r.Context().Done()
		}
		io.WriteString(w, `{"result":"success"}`)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprintf(w, "data: {\"event\":\"message\",\"task_id\":\"task-%s\",\"answer\":\"x\"}\n\n", s.name)
	w.(http.Flusher).Flush()
}

func (s *stopCounter) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.stops)
}

func TestStop_GoesWhereTheTaskIs(t *testing.T) {
	s := []*stopCounter{{name: "a"}, {name: "b"}, {name: "c", hang: true}, {name: "d"}}
	r := newRig(t, func(_ *Options, a *lb.Application) { a.Queue.Size = 0 }, s[0], s[1], s[2], s[3])
	r.app.Instances[1].Domain, r.app.Instances[3].Domain = "shared", "shared"
	r.app.Instances[0].MaxInFlight = 1
	r.apply()
	user := r.userOf("a")
	r.do("POST", "/v1/chat-messages", user, "{}")
	stop := `{"user":"` + user + `"}`

	r.app.Instances[0].State = lb.Draining // the user has moved, the task has not
	r.apply()
	r.p.view.Load().apps[0].instances[0].gate.Force() // full: a stop passes
	if resp, body := r.do("POST", "/v1/chat-messages/task-a/stop", "", stop); resp.StatusCode != 200 || !strings.Contains(body, "success") {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	r.p.view.Load().apps[0].instances[0].gate.Release()
	if s[0].count() != 1 || s[1].count()+s[2].count()+s[3].count() != 0 {
		t.Errorf("stops of a known task: %d %d %d %d", s[0].count(), s[1].count(), s[2].count(), s[3].count())
	}
	r.app.Instances[0].State = lb.Active
	r.apply()
	begin := time.Now()
	r.do("POST", "/v1/chat-messages/task-unknown/stop", "", stop)
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("the answer waited %v for an instance that hangs", d)
	}
	eventually(t, "one stop for each domain", func() bool {
		return s[0].count() == 2 && s[1].count()+s[3].count() == 1 && s[2].count() == 1
	})
	for _, c := range s {
		for _, got := range c.stops {
			if want := "Bearer app-" + c.name + "-secret-token " + stop; got != want {
				t.Errorf("%s got %q, want %q", c.name, got, want)
			}
		}
	}
}

func TestLimits_RatesAndQueue(t *testing.T) {
	release := make(chan struct{})
	var once sync.Once
	open := func() { once.Do(func() { close(release) }) }
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/hold" {
			<-release
		}
	}))
	t.Cleanup(open)
	burst := func(want int, user func(i int) string) {
		t.Helper()
		passed := 0
		for i := range 8 {
			resp, body := r.do("GET", "/v1/info", user(i), "")
			switch {
			case resp.StatusCode == 200:
				passed++
			case resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" || !strings.Contains(body, "rate_limited"):
				t.Fatalf("%d %v %s", resp.StatusCode, resp.Header, body)
			}
		}
		if passed != want {
			t.Errorf("%d of a burst passed, want %d", passed, want)
		}
	}
	one, many := func(int) string { return "one" }, func(i int) string { return fmt.Sprint("m", i) }
	rate := &lb.Rate{PerSecond: 0.01, Burst: 4}
	r.app.RateLimit.PerUser = rate
	r.apply()
	burst(4, one)
	burst(8, many)
	r.app.RateLimit = lb.RateLimit{PerApp: rate}
	r.apply()
	burst(4, many)
	r.app.RateLimit = lb.RateLimit{}
	r.settings.RateLimit.PerIP = rate
	r.p.SetProxies(2) // half of it is ours
	r.apply()
	burst(2, many)
	r.settings.RateLimit.PerIP = nil
	r.p.SetProxies(1)

	r.app.Instances[0].MaxInFlight = 1
	r.app.Queue = lb.Queue{Size: 1, Timeout: lb.Duration(300 * time.Millisecond)}
	r.apply()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer open()
	wg.Go(func() { r.do("GET", "/v1/hold", "holder", "") })
	gate := r.p.view.Load().apps[0].instances[0].gate
	eventually(t, "the gate is full", func() bool { return gate.InFlight() == 1 })
	timedOut := make(chan int, 1)
	wg.Go(func() { resp, _ := r.do("GET", "/v1/info", "first", ""); timedOut <- resp.StatusCode })
	eventually(t, "one waits", func() bool { return gate.Waiting() == 1 })
	if resp, body := r.do("GET", "/v1/info", "first", ""); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(body, "queue is full") {
		t.Errorf("queue full: %d %s", resp.StatusCode, body)
	}
	if got := <-timedOut; got != 503 {
		t.Errorf("queue timeout: %d", got)
	}
	wg.Go(func() { resp, _ := r.do("GET", "/v1/info", "second", ""); timedOut <- resp.StatusCode })
	eventually(t, "one waits again", func() bool { return gate.Waiting() == 1 })
	open()
	if got := <-timedOut; got != 200 {
		t.Errorf("waited: %d", got)
	}
}
