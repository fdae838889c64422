//go:build linux

package load

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"difylb/bench/instance"
	"difylb/bench/stdproxy"
)

// startInstances runs instances until the test ends.
func startInstances(t *testing.T) []netip.AddrPort {
	t.Helper()
	s, err := instance.New(4)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background()) // t's ends before what is in front is closed
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s.Addrs()
}

// serve runs a handler on loopback until the test ends.
func serve(t *testing.T, h http.Handler) Target {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	addr, err := netip.ParseAddrPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return Target{Addr: addr, Token: "t", UserHeader: true}
}

// startProxy runs the standard library's proxy before instances.
func startProxy(t *testing.T) Target {
	var urls []*url.URL
	for _, addr := range startInstances(t) {
		urls = append(urls, &url.URL{Scheme: "http", Host: addr.String()})
	}
	return serve(t, stdproxy.New(urls, "x"))
}

func TestRequests_AreAnsweredThroughAProxy(t *testing.T) {
	began, ended := 0, 0
	o := RequestOptions{Connections: 8, Warmup: 20 * time.Millisecond, Measure: 200 * time.Millisecond}
	r, err := Requests(t.Context(), startProxy(t), o, Window{Begin: func() { began++ }, End: func() { ended++ }})
	if err != nil || r.Failures != 0 || r.LastFail != nil {
		t.Fatalf("%d failures, the last: %v; %v", r.Failures, r.LastFail, err)
	}
	if r.Requests < 10 || r.Latency.Count() == 0 || r.Latency.Count() > r.Requests || r.Elapsed < o.Measure {
		t.Errorf("%d requests, %d latencies in %v", r.Requests, r.Latency.Count(), r.Elapsed)
	}
	if began != 1 || ended != 1 {
		t.Errorf("the window began %d and ended %d times", began, ended)
	}
}

func TestRequests_CarryTokenAndUser(t *testing.T) {
	for _, header := range []bool{true, false} {
		type request struct {
			head http.Header
			body string
		}
		first := make(chan request, 1)
		target := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				return // the last is cut off
			}
			select {
			case first <- request{r.Header.Clone(), string(b)}:
			default:
			}
		}))
		target.UserHeader = header
		if _, err := Requests(t.Context(), target, RequestOptions{Connections: 1, Measure: 20 * time.Millisecond}, Window{}); err != nil {
			t.Fatal(err)
		}
		got := <-first
		head, body := got.head, got.body
		if head.Get("Authorization") != "Bearer t" || len(body) != bodySize {
			t.Errorf("authorization %q, %d bytes of body", head.Get("Authorization"), len(body))
		}
		user := head.Get("X-User-ID")
		if (user != "") != header {
			t.Errorf("X-User-ID %q, wanted: %v", user, header)
		}
		if user == "" {
			user = head.Get("X-Load-ID")
		}
		if !strings.HasSuffix(body, `"user":"`+user+`"}`) {
			t.Errorf("user %q in the head, body %s", user, body)
		}
	}
}

func TestRequests_ComeAtTheRateAskedFor(t *testing.T) {
	r, err := Requests(t.Context(), startProxy(t), RequestOptions{Connections: 8, Rate: 500, Warmup: 50 * time.Millisecond, Measure: time.Second}, Window{})
	if err != nil || r.Failures != 0 {
		t.Fatalf("%d failures, %v", r.Failures, err)
	}
	// The times are random: 500 have a standard deviation of 22.
	if n := r.Latency.Count(); n < 380 || n > 620 {
		t.Errorf("%d requests offered in a second", n)
	}
}

func TestRequests_ThatWaitForASlowProxyCountTheWholeWait(t *testing.T) {
	target := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(50 * time.Millisecond) }))
	// One connection takes 20 a second; 200 are offered.
	r, err := Requests(t.Context(), target, RequestOptions{Connections: 1, Rate: 200, Measure: time.Second}, Window{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Requests > 21 || r.Latency.Count() < 120 {
		t.Errorf("%d answered, %d counted", r.Requests, r.Latency.Count())
	}
	// Who came in the middle still waits at the end, for about half a second:
	// a generator that waits with the proxy would report 50 ms.
	if p50 := r.Latency.Quantile(0.5); p50 < 250*time.Millisecond {
		t.Errorf("p50 %v", p50)
	}
}

func TestRequests_OutliveConnectionsThatTheProxyCloses(t *testing.T) {
	target := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") }))
	r, err := Requests(t.Context(), target, RequestOptions{Connections: 2, Measure: 100 * time.Millisecond}, Window{})
	if err != nil || r.Failures != 0 || r.Requests < 5 {
		t.Errorf("%d requests, %d failures, %v, %v", r.Requests, r.Failures, r.LastFail, err)
	}
}

func TestRequests_CountRefusals(t *testing.T) {
	target := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.Header.Get("X-User-ID"), "7") {
			http.Error(w, "no", http.StatusBadGateway)
		}
		time.Sleep(time.Millisecond)
	}))
	r, err := Requests(t.Context(), target, RequestOptions{Connections: 2, Measure: 100 * time.Millisecond}, Window{})
	if err != nil || r.Failures == 0 || r.Requests == 0 || !strings.Contains(r.LastFail.Error(), "502") {
		t.Errorf("%d requests, %d failures, %v, %v", r.Requests, r.Failures, r.LastFail, err)
	}
}

func TestRequests_GiveUpWhereNobodyAnswers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(l.Addr().String())
	l.Close()
	if _, err := Requests(t.Context(), Target{Addr: addr}, RequestOptions{Connections: 1, Measure: time.Second}, Window{}); err == nil {
		t.Error("no error")
	}
}

func TestStreams_DeliverEveryEvent(t *testing.T) {
	o := StreamOptions{Streams: 20, Interval: 20 * time.Millisecond, Settle: 50 * time.Millisecond, Measure: 500 * time.Millisecond}
	r, err := Streams(t.Context(), startProxy(t), o, Window{})
	if err != nil || r.Failures != 0 || r.Open != o.Streams {
		t.Fatalf("%d open, %d failures, %v, %v", r.Open, r.Failures, r.LastFail, err)
	}
	// 25 for each stream; on a busy machine some are late.
	if r.Events < 20*15 || r.Events > 20*30 || r.Delay.Count() != r.Events {
		t.Errorf("%d events, %d delays", r.Events, r.Delay.Count())
	}
	if p50 := r.Delay.Quantile(0.5); p50 <= 0 || p50 > time.Second {
		t.Errorf("delay %v", p50)
	}
}

func TestStreams_ThatEndCountAsFailures(t *testing.T) {
	target := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "data: nonsense\n\n") }))
	r, err := Streams(t.Context(), target, StreamOptions{Streams: 5, Interval: 20 * time.Millisecond, Measure: 20 * time.Millisecond}, Window{})
	if err != nil || r.Failures != 5 || r.Open != 0 {
		t.Errorf("%d open, %d failures, %v", r.Open, r.Failures, err)
	}
}

func TestUploads_ArriveWhole(t *testing.T) {
	const size = 3<<20 + 17
	for _, behind := range []bool{false, true} {
		type upload struct {
			bytes  int64
			user   string
			header bool
		}
		got := make(chan upload, 100)
		target := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			parts, err := r.MultipartReader()
			if err != nil {
				t.Error(err)
				return
			}
			u := upload{header: r.Header.Get("X-User-ID") != ""}
			for {
				part, err := parts.NextPart()
				if err == io.EOF {
					break
				} else if err != nil {
					t.Error(err)
					return
				}
				if part.FormName() == "user" {
					text, _ := io.ReadAll(part)
					u.user = string(text)
				} else {
					u.bytes, _ = io.Copy(io.Discard, part)
				}
			}
			got <- u
		}))
		target.UserHeader = false
		r, err := Uploads(t.Context(), target, UploadOptions{Connections: 2, Count: 5, Size: size, Behind: behind}, Window{})
		if err != nil || r.Failures != 0 || r.Bytes != 5*size {
			t.Fatalf("%d bytes, %d failures, %v, %v", r.Bytes, r.Failures, r.LastFail, err)
		}
		large := 0
		for range 2 + 5 {
			u := <-got
			if u.bytes == size {
				large++
			}
			if !strings.HasPrefix(u.user, "user-") || u.header == behind {
				t.Errorf("%+v", u)
			}
		}
		if large != 5 {
			t.Errorf("%d of 5 files were whole", large)
		}
	}
}

func TestUploads_PassTheInstances(t *testing.T) {
	r, err := Uploads(t.Context(), startProxy(t), UploadOptions{Connections: 2, Count: 4, Size: 5 << 20}, Window{})
	if err != nil || r.Failures != 0 || r.Bytes != 20<<20 {
		t.Errorf("%d bytes, %d failures, %v, %v", r.Bytes, r.Failures, r.LastFail, err)
	}
}

func TestHistogram_QuantilesAreClose(t *testing.T) {
	var h Histogram
	if h.Quantile(0.5) != 0 {
		t.Error("an empty one has quantiles")
	}
	for i := range 100_000 {
		h.Record(time.Duration(i) * time.Microsecond)
	}
	for _, q := range []float64{0, 0.01, 0.5, 0.99, 1} {
		want := q * 1e5 * 1e3
		if got := float64(h.Quantile(q)); got < want*0.984-2000 || got > want*1.016+2000 {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	h.Record(-time.Second)
	if h.Quantile(0) != 0 {
		t.Error("less than zero is not zero")
	}
}
