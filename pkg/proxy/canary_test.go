package proxy

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestCanary_ComesAtOnceAndSaysWhenItWasSent(t *testing.T) {
	var asked atomic.Int32
	r := newRig(t, nil, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	addr := r.serveTLS(t.TempDir())
	h2 := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	defer h2.CloseIdleConnections()
	const gap = 150 * time.Millisecond
	for _, c := range []struct {
		method, url string
		via         http.RoundTripper
		major       int
	}{
		{"GET", r.url, http.DefaultTransport, 1},
		{"POST", r.url, http.DefaultTransport, 1},
		{"POST", "https://" + addr, h2, 2},
	} {
		method := c.method
		req, _ := http.NewRequest(method, c.url+"/v1/chat-messages?user=u&lb_canary=4x150ms", strings.NewReader(`{"user":"u"}`))
		req.Header.Set("Authorization", "Bearer user-token-shop")
		resp, err := c.via.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.ProtoMajor != c.major {
			t.Errorf("%s %s: %s", method, c.url, resp.Proto)
		}
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream; charset=utf-8" || resp.Header.Get("X-Request-ID") == "" {
			t.Errorf("%s: %d %v", method, resp.StatusCode, resp.Header)
		}
		var arrived []time.Time
		var sent []time.Duration
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var e struct {
					N, Of  int
					SentUS int64 `json:"sent_us"`
					Node   string
				}
				if err := json.Unmarshal([]byte(data), &e); err != nil || e.N != len(sent)+1 || e.Of != 4 {
					t.Fatalf("%v: %s", err, data)
				}
				arrived, sent = append(arrived, time.Now()), append(sent, time.Duration(e.SentUS)*time.Microsecond)
			}
		}
		resp.Body.Close()
		if lines.Err() != nil || len(sent) != 4 {
			t.Fatalf("%d events, %v", len(sent), lines.Err())
		}
		for i := 1; i < len(sent); i++ {
			if d := sent[i] - sent[i-1]; d < gap/2 {
				t.Errorf("sent %v", sent)
			}
			// Nothing holds an event until the next: they would come together.
			if d := arrived[i].Sub(arrived[0]); d < (sent[i]-sent[0])/2 {
				t.Errorf("event %d came %v after the first, and was sent %v after it", i+1, d, sent[i]-sent[0])
			}
		}
	}
	if asked.Load() > 0 {
		t.Error("the instance was asked")
	}
	eventually(t, "all are logged", func() bool { return len(r.lines("reason", "ok")) == 3 })
	if l := r.lines("reason", "ok"); l[0]["events"] != 4.0 || l[0]["instance"] != nil {
		t.Errorf("logged %v", l)
	}
}

func TestCanary_AsksForATokenAndWithinBounds(t *testing.T) {
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }))
	for query, want := range map[string]int{
		"lb_canary=2x1ms": 200, "a=b&lb_canary=2x1ms": 200, "xlb_canary=2x1ms": 204, "lb_canary_=2x1ms": 204,
		"lb_canary=": 400, "lb_canary=1": 400, "lb_canary=x1s": 400, "lb_canary=0x1s": 400, "lb_canary=101x1ms": 400, "lb_canary=1x11s": 400,
		"lb_canary=1x1us": 400, "lb_canary=7x10s": 400, "lb_canary=-1x1s": 400, "lb_canary=1x-1s": 400, "lb_canary=1x1s&%zz": 400,
	} {
		if resp, body := r.do("GET", "/v1/info?"+query, "u", ""); resp.StatusCode != want || want == 400 && !strings.Contains(body, "bad_request") {
			t.Errorf("%s: %d %s, want %d", query, resp.StatusCode, body, want)
		}
	}
	if resp, _ := r.do("HEAD", "/v1/info?lb_canary=2x1ms", "u", ""); resp.StatusCode != 400 {
		t.Errorf("HEAD: %d", resp.StatusCode)
	}
	req, _ := http.NewRequest("GET", r.url+"/v1/info?lb_canary=2x1ms", nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 401 {
		t.Errorf("without a token: %d", resp.StatusCode)
	}
}

func TestCanary_EndsWithItsClientAndIsBounded(t *testing.T) {
	r := newRig(t, nil, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	var open []*http.Response
	for range maxCanaries {
		req, _ := http.NewRequest("GET", r.url+"/v1/info?lb_canary=6x10s", nil)
		req.Header.Set("Authorization", "Bearer user-token-shop")
		resp, err := http.DefaultClient.Do(req)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		open = append(open, resp)
	}
	if resp, body := r.do("GET", "/v1/info?lb_canary=1x1ms", "u", ""); resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one too many: %d %s", resp.StatusCode, body)
	}
	for _, resp := range open {
		resp.Body.Close()
	}
	eventually(t, "all have ended", func() bool { return canaries.Load() == 0 })
	eventually(t, "all are accounted for", func() bool { return len(r.lines("reason", "client_gone")) == maxCanaries })
}
