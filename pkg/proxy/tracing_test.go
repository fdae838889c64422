package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rs/zerolog"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"difylb/pkg/lb"
	"difylb/pkg/trace"
	"difylb/test/testbed"
)

// tracedRig is a rig with a tracer, and what makes the collector have all of it.
func tracedRig(t *testing.T, sample float64, edit func(*Options, *lb.Application), handlers ...http.Handler) (*rig, func(want int) []testbed.Span) {
	t.Helper()
	c := testbed.NewCollector(t)
	tr, err := trace.New(trace.Options{Endpoint: c.URL, Sample: sample, Service: "lb-proxy", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(o *Options, a *lb.Application) {
		o.Tracer = tr
		o.UserHashKey = func() lb.Secret { return "key" }
		if edit != nil {
			edit(o, a)
		}
	}, handlers...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); tr.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; http.DefaultClient.CloseIdleConnections() })
	return r, func(want int) []testbed.Span {
		t.Helper()
		eventually(t, fmt.Sprintf("%d spans", want), func() bool { return len(c.Spans()) >= want })
		return c.Spans()
	}
}

// told answers with the trace context that it was sent.
func told() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%q %q %q", r.Header.Values("Traceparent"), r.Header.Values("Tracestate"), r.Header.Values("X-Trace-Id"))
	})
}

const (
	clientTrace  = "4bf92f3577b34da6a3ce929d0e0e4736"
	clientParent = "00-" + clientTrace + "-00f067aa0ba902b7-01"
)

func TestTracing_OffPassesTheClientsContext(t *testing.T) {
	r := newRig(t, nil, told())
	_, body := r.do("GET", "/v1/info", "u", "", "traceparent", clientParent, "tracestate", "a=1", "X-Trace-Id", "dify")
	if want := fmt.Sprintf("[%q] [%q] [%q]", clientParent, "a=1", "dify"); body != want {
		t.Errorf("the instance was told %s, want %s", body, want)
	}
}

func TestTracing_TellsOfRequestAndAttempts(t *testing.T) {
	var n atomic.Int64
	r, spans := tracedRig(t, 0, nil, breaking(&n), told())
	resp, body := r.do("GET", "/v1/parameters?user=who&x=secret", r.userOf("a"), "", "traceparent", clientParent, "tracestate", "a=1", "X-Trace-Id", "dify", "X-Request-ID", "traced")
	if resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	all := spans(3)
	if len(all) != 3 {
		t.Fatalf("%d spans", len(all))
	}
	first, second, server := all[0], all[1], all[2]
	if server.Kind != tracepb.Span_SPAN_KIND_SERVER || server.Name != "GET /v1/parameters" || hex.EncodeToString(server.TraceId) != clientTrace || hex.EncodeToString(server.ParentSpanId) != "00f067aa0ba902b7" {
		t.Errorf("%v", server.Span)
	}
	for key, want := range map[string]any{
		"http.request.method": "GET", "http.route": "/v1/parameters", "url.path": "/v1/parameters", "url.scheme": "http", "http.response.status_code": int64(200),
		"client.address": "127.0.0.1", "network.protocol.version": "1.1", "difylb.app": "shop", "difylb.instance": "b", "difylb.reason": "ok",
		"difylb.attempts": int64(2), "difylb.request_id": "traced", "difylb.token_label": "web", "difylb.user_hash": string(r.p.appendUserHash(nil, r.userOf("a"))),
	} {
		if got := server.Attributes[key]; got != want {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
	for i, a := range []testbed.Span{first, second} {
		if a.Kind != tracepb.Span_SPAN_KIND_CLIENT || !bytes.Equal(a.ParentSpanId, server.SpanId) {
			t.Errorf("attempt %d: %v", i, a.Span)
		}
	}
	if a := first; a.Attributes["difylb.instance"] != "a" || a.Attributes["error.type"] != "upstream_broke" || a.Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR {
		t.Errorf("first attempt: %v", a.Span)
	}
	if a := second; a.Attributes["difylb.instance"] != "b" || a.Attributes["http.response.status_code"] != int64(200) || a.Attributes["http.request.resend_count"] != int64(1) ||
		!strings.HasPrefix(a.Attributes["url.full"].(string), "http://127.0.0.1:") || a.Attributes["server.address"] != "127.0.0.1" {
		t.Errorf("second attempt: %v", a.Span)
	}
	if want := fmt.Sprintf("[%q] [%q] [%q]", "00-"+clientTrace+"-"+hex.EncodeToString(second.SpanId)+"-01", "a=1", "dify"); body != want {
		t.Errorf("the instance was told %s, want %s", body, want)
	}
	if text := fmt.Sprint(all); strings.Contains(text, "secret") || strings.Contains(text, "user-token") || strings.Contains(text, r.userOf("a")+" ") {
		t.Errorf("a span shows what it must not: %s", text)
	}
}

func TestTracing_TellsOfFailuresAndStreams(t *testing.T) {
	stream := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: {\"event\":\"message\"}\n\ndata: {\"event\":\"message_end\"}\n\n")
	})
	r, spans := tracedRig(t, 1, func(_ *Options, a *lb.Application) { a.Retry.Attempts = 0 }, stream)
	r.do("POST", "/v1/chat-messages", "u", `{}`, "X-Request-ID", "streamed")
	r.do("GET", "/v1/info", "u", "", "Authorization", "Bearer not-a-token", "X-Request-ID", "refused")
	if resp, err := http.Get(r.url + "/health"); err == nil {
		resp.Body.Close()
	}
	by := func(all []testbed.Span, id string) testbed.Span {
		for _, s := range all {
			if s.Attributes["difylb.request_id"] == id {
				return s
			}
		}
		t.Fatalf("no span of %q in %v", id, all)
		return testbed.Span{}
	}
	all := spans(3)
	if s := by(all, "streamed"); s.Attributes["difylb.stream_events"] != int64(2) || s.Attributes["http.response.status_code"] != int64(200) {
		t.Errorf("%v", s.Span)
	}
	if s := by(all, "refused"); s.Attributes["difylb.reason"] != "unauthorized" || s.Attributes["http.response.status_code"] != int64(401) || s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		t.Errorf("%v", s.Span)
	}
	r.app = r.app.Clone()
	r.app.Instances[0].Port = 1 // where nobody listens
	r.apply()
	r.do("GET", "/v1/info", "u", "", "X-Request-ID", "lost")
	all = spans(5)
	if s := by(all, "lost"); s.Attributes["error.type"] != "connect_failed" || s.Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR {
		t.Errorf("%v", s.Span)
	}
	if len(all) != 5 {
		t.Errorf("%d spans; of /health there should be none", len(all))
	}
}

func TestTracing_UnsampledIsStillOneTrace(t *testing.T) {
	r, spans := tracedRig(t, 0, nil, told())
	_, body := r.do("GET", "/v1/info", "u", "")
	if parent := strings.Trim(strings.Fields(body)[0], `["]`); len(parent) != 55 || !strings.HasPrefix(parent, "00-") || !strings.HasSuffix(parent, "-00") {
		t.Errorf("the instance was told %q", parent)
	}
	_, body = r.do("GET", "/v1/info", "u", "", "traceparent", strings.TrimSuffix(clientParent, "1")+"0", "tracestate", "a=1")
	if !strings.HasPrefix(body, `["00-`+clientTrace+"-") || !strings.Contains(body, `-00"] ["a=1"]`) || strings.Contains(body, "00f067aa0ba902b7") {
		t.Errorf("the instance was told %s", body)
	}
	if n := len(spans(0)); n != 0 {
		t.Errorf("%d spans", n)
	}
}

func TestTracing_OverHTTP2(t *testing.T) {
	r, spans := tracedRig(t, 0, nil, told())
	addr := r.serveTLS(t.TempDir())
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "https://"+addr+"/v1/info", nil)
	req.Header.Set("Authorization", "Bearer user-token-shop")
	req.Header.Set("X-User-ID", "u")
	req.Header.Set("Traceparent", clientParent)
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	all := spans(2)
	server := all[len(all)-1]
	if a := server.Attributes; a["network.protocol.version"] != "2" || a["url.scheme"] != "https" || hex.EncodeToString(server.TraceId) != clientTrace {
		t.Errorf("%v", server.Span)
	}
	if !strings.Contains(string(body), hex.EncodeToString(all[0].SpanId)) {
		t.Errorf("the instance was told %s, not of the attempt %x", body, all[0].SpanId)
	}
}

func TestTracing_OfSignedLinks(t *testing.T) {
	lacking := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotFound) })
	r, spans := tracedRig(t, 1, func(o *Options, _ *lb.Application) { o.FilesRoute = true }, lacking, told())
	resp, err := http.Get(r.url + "/files/0b4ee2a6-b3f0-4ff1-a8f5-f1c5c1d2e3f4/file-preview?sign=secret")
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	all := spans(2) // the instances are asked in no order that is to be known
	server := all[len(all)-1]
	if resp.StatusCode != 200 || server.Kind != tracepb.Span_SPAN_KIND_SERVER || server.Attributes["difylb.instance"] != "b" {
		t.Errorf("%d %v", resp.StatusCode, server.Span)
	}
	for _, a := range all[:len(all)-1] {
		if status := a.Attributes["http.response.status_code"]; !bytes.Equal(a.ParentSpanId, server.SpanId) || status != int64(200) && status != int64(404) {
			t.Errorf("%v", a.Span)
		}
	}
	if strings.Contains(fmt.Sprint(all), "secret") {
		t.Error("a span shows the signature")
	}
}
