package trace

import (
	"bytes"
	"context"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"difylb/test/testbed"
)

const (
	traceID   = "4bf92f3577b34da6a3ce929d0e0e4736"
	parentID  = "00f067aa0ba902b7"
	recorded  = "00-" + traceID + "-" + parentID + "-01"
	unwatched = "00-" + traceID + "-" + parentID + "-00"
)

// finished runs the tracer over what was given to it, until all is sent.
func finished(t *testing.T, tr *Tracer) Counts {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tr.Run(ctx); err != nil {
		t.Fatal(err)
	}
	return tr.Counts()
}

func newTracer(t *testing.T, edit func(*Options)) *Tracer {
	t.Helper()
	opts := Options{Endpoint: "http://127.0.0.1:1", Sample: 1, Service: "lb-proxy", Node: "p1", Version: "v1", Log: zerolog.Nop()}
	if edit != nil {
		edit(&opts)
	}
	tr, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestTracer_TellsOfRequestAndAttempts(t *testing.T) {
	c := testbed.NewCollector(t)
	tr := newTracer(t, func(o *Options) {
		o.Endpoint, o.Headers = c.URL, map[string]string{"authorization": "Bearer of-the-collector"}
	})
	start := time.Now().Add(-time.Second)
	r := tr.Begin(start, recorded, "vendor=1")
	var toInstance []string
	for _, name := range []string{"dify1", "dify2"} {
		a := r.Attempt(start.Add(100 * time.Millisecond))
		parent, state := a.Context()
		if !strings.HasPrefix(parent, "00-"+traceID+"-") || !strings.HasSuffix(parent, "-01") || state != "vendor=1" {
			t.Errorf("the instance is told %q, %q", parent, state)
		}
		toInstance = append(toInstance, strings.Split(parent, "-")[2])
		f := new(Facts)
		f.Text("difylb.instance", name)
		if name == "dify1" {
			f.Error = "connect_failed"
		}
		a.End(start.Add(200*time.Millisecond), f)
	}
	f := &Facts{Name: "POST /v1/chat-messages"}
	f.Number("http.response.status_code", 200)
	f.Number("nothing", 0)
	f.Text("empty", "")
	f.Path("url.path", strings.Repeat("x", 3000)+"\xff")
	f.Text("long", strings.Repeat("ü", 300)+"\xff")
	f.Milliseconds("difylb.first_byte_ms", 1500*time.Microsecond)
	r.End(start.Add(300*time.Millisecond), f)
	if n := finished(t, tr); n != (Counts{Exported: 3}) {
		t.Errorf("%+v", n)
	}
	spans := c.Spans()
	if len(spans) != 3 {
		t.Fatalf("%d spans", len(spans))
	}
	path, header := c.Last()
	if path != "/v1/traces" || header.Get("Authorization") != "Bearer of-the-collector" {
		t.Errorf("asked at %s with %v", path, header)
	}
	server := spans[2]
	if hex.EncodeToString(server.TraceId) != traceID || hex.EncodeToString(server.ParentSpanId) != parentID || server.Kind != tracepb.Span_SPAN_KIND_SERVER ||
		server.Name != "POST /v1/chat-messages" || server.TraceState != "vendor=1" || server.StartTimeUnixNano != uint64(start.UnixNano()) ||
		server.EndTimeUnixNano-server.StartTimeUnixNano != uint64(300*time.Millisecond) || server.Status.GetCode() != tracepb.Status_STATUS_CODE_UNSET {
		t.Errorf("%v", server.Span)
	}
	if a := server.Attributes; a["http.response.status_code"] != int64(200) || len(a["url.path"].(string)) != 2<<10 || a["difylb.first_byte_ms"] != 1.5 ||
		!strings.HasPrefix(a["long"].(string), "üü") || len(a["long"].(string)) > maxText || len(a) != 4 {
		t.Errorf("attributes %v", a)
	}
	if r := server.Resource; r["service.name"] != "lb-proxy" || r["service.instance.id"] != "p1" || r["service.version"] != "v1" {
		t.Errorf("told by %v", r)
	}
	for i, a := range spans[:2] {
		if !bytes.Equal(a.ParentSpanId, server.SpanId) || hex.EncodeToString(a.SpanId) != toInstance[i] || a.Kind != tracepb.Span_SPAN_KIND_CLIENT {
			t.Errorf("attempt %d: %v", i, a.Span)
		}
	}
	if a := spans[0]; a.Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR || a.Attributes["error.type"] != "connect_failed" {
		t.Errorf("failed attempt: %v", a.Span)
	}
}

func TestTracer_WhoDecides(t *testing.T) {
	for _, c := range []struct {
		name, parent string
		sample       float64
		recording    bool
		flags        string
	}{
		{"the client wants it", recorded, 0, true, "01"},
		{"the client does not", unwatched, 1, false, "00"},
		{"nobody, all are", "", 1, true, "01"},
		{"nobody, none is", "", 0, false, "00"},
		{"nonsense counts as nothing", "00-xyz", 1, true, "01"},
		{"zeros count as nothing", "00-00000000000000000000000000000000-0000000000000000-01", 0, false, "00"},
	} {
		tr := newTracer(t, func(o *Options) { o.Sample = c.sample })
		r := tr.Begin(time.Now(), c.parent, "")
		a := r.Attempt(time.Now())
		parent, _ := r.Context()
		if a != nil {
			parent, _ = a.Context()
		}
		fields := strings.Split(parent, "-")
		if r.Recording() != c.recording || a.Recording() != c.recording || len(fields) != 4 || fields[3] != c.flags {
			t.Errorf("%s: recording %v, the instance is told %q", c.name, r.Recording(), parent)
		}
		if own := strings.HasPrefix(c.parent, "00-"+traceID); own != (fields[1] == traceID) || fields[2] == parentID {
			t.Errorf("%s: the instance is told %q", c.name, parent)
		}
		a.End(time.Now(), nil)
		r.End(time.Now(), nil)
		want := 0
		if c.recording {
			want = 2
		}
		if n := len(tr.queue); n != want {
			t.Errorf("%s: %d spans wait, want %d", c.name, n, want)
		}
	}
}

func TestTracer_SamplesItsPart(t *testing.T) {
	tr := newTracer(t, func(o *Options) { o.Sample = 0.25 })
	traced := 0
	const n = 4000
	for range n {
		if tr.Begin(time.Now(), "", "").Recording() {
			traced++
		}
	}
	if traced < n/5 || traced > n*3/10 {
		t.Errorf("%d of %d", traced, n)
	}
}

func TestTracer_NeverWaitsForTheCollector(t *testing.T) {
	tr := newTracer(t, nil) // nobody runs it
	begin := time.Now()
	for range queueLength + 1000 {
		tr.Begin(begin, "", "").End(begin, nil)
	}
	if n := tr.Counts(); n.Dropped != 1000 || len(tr.queue) != queueLength {
		t.Errorf("%+v, %d wait", n, len(tr.queue))
	}
}

func TestTracer_CountsWhatTheCollectorRefuses(t *testing.T) {
	c := testbed.NewCollector(t)
	c.Refuse = 400
	var log bytes.Buffer
	tr := newTracer(t, func(o *Options) { o.Endpoint, o.Log = c.URL, zerolog.New(&log) })
	for range 3 {
		tr.Begin(time.Now(), "", "").End(time.Now(), nil)
	}
	if n := finished(t, tr); n != (Counts{Failed: 3}) || strings.Count(log.String(), "traces not exported") != 1 {
		t.Errorf("%+v\n%s", n, log.String())
	}
}

func TestTracer_SendsWhileItRuns(t *testing.T) {
	c := testbed.NewCollector(t)
	tr := newTracer(t, func(o *Options) { o.Endpoint = c.URL + "/other/v1/traces" })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx) }()
	tr.Begin(time.Now(), "", "").End(time.Now(), nil)
	testbed.Within(t, 10*time.Second, "the span arrives", func() bool { return len(c.Spans()) == 1 })
	if path, _ := c.Last(); path != "/other/v1/traces" {
		t.Errorf("asked at %s", path)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRequest_NilTracesNothing(t *testing.T) {
	var r *Request
	a := r.Attempt(time.Now())
	if a != nil || a.Recording() || r.Recording() {
		t.Error("nothing is traced")
	}
	a.End(time.Now(), nil)
	r.End(time.Now(), nil)
	if (*Tracer)(nil).Counts() != (Counts{}) {
		t.Error("nothing is counted")
	}
}

func TestNew_RefusesWhatIsNoCollector(t *testing.T) {
	for _, o := range []Options{
		{Endpoint: "collector:4318"}, {Endpoint: "grpc://h:4317"}, {Endpoint: "http://"}, {Endpoint: "http://u:secret@h"}, {Endpoint: "http://h?x=1"},
		{Endpoint: "http://h", Sample: 1.5}, {Endpoint: "http://h", Sample: -1},
	} {
		if _, err := New(o); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func BenchmarkTracer_NotSampled(b *testing.B) {
	tr, err := New(Options{Endpoint: "http://127.0.0.1:1"})
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		r := tr.Begin(now, "", "")
		a := r.Attempt(now)
		r.Context()
		a.End(now, nil)
		r.End(now, nil)
	}
}

// The wall clock is set back while a request runs: no span ends before it
// began, and an attempt lies within its request.
func TestTracer_ClockThatIsSetBack(t *testing.T) {
	c := testbed.NewCollector(t)
	tr := newTracer(t, func(o *Options) { o.Endpoint = c.URL })
	start := time.Now().Round(0) // times of a wall clock
	r := tr.Begin(start, recorded, "")
	a := r.Attempt(start.Add(-time.Hour))
	a.End(start.Add(-time.Hour+time.Second), new(Facts))
	r.End(start.Add(-time.Hour+2*time.Second), new(Facts))
	finished(t, tr)
	spans := c.Spans()
	if len(spans) != 2 {
		t.Fatalf("%d spans", len(spans))
	}
	for _, s := range spans {
		if s.EndTimeUnixNano < s.StartTimeUnixNano || s.StartTimeUnixNano < uint64(start.UnixNano()) {
			t.Errorf("%s begins %s after the request and lasts %d ns", s.Name, time.Duration(int64(s.StartTimeUnixNano)-start.UnixNano()), int64(s.EndTimeUnixNano-s.StartTimeUnixNano))
		}
	}
}
