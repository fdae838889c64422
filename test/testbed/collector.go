package testbed

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Collector is an OpenTelemetry collector that keeps what it is told.
type Collector struct {
	URL string
	// Refuse makes it answer that status instead of taking spans; set it before
	// anything is sent.
	Refuse int

	mu      sync.Mutex
	spans   []Span
	headers http.Header
	path    string
}

// Span is a span as it came.
type Span struct {
	*tracepb.Span
	Attributes map[string]any    // of the span
	Resource   map[string]string // who told
}

// NewCollector starts a collector.
func NewCollector(t testing.TB) *Collector {
	c := new(Collector)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.take(t, w, r) }))
	t.Cleanup(srv.Close)
	c.URL = srv.URL
	return c
}

func (c *Collector) take(t testing.TB, w http.ResponseWriter, r *http.Request) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		body = z
	}
	raw, err := io.ReadAll(body)
	if err != nil {
		t.Error(err)
		return
	}
	if c.Refuse != 0 {
		w.WriteHeader(c.Refuse)
		return
	}
	var req collector.ExportTraceServiceRequest
	if ct := r.Header.Get("Content-Type"); ct != "application/x-protobuf" {
		t.Errorf("collector was sent %q", ct)
	}
	if err := proto.Unmarshal(raw, &req); err != nil {
		t.Error(err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.headers, c.path = r.Header.Clone(), r.URL.Path
	for _, rs := range req.ResourceSpans {
		resource := make(map[string]string)
		for _, kv := range rs.GetResource().GetAttributes() {
			resource[kv.Key] = kv.Value.GetStringValue()
		}
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				attributes := make(map[string]any)
				for _, kv := range s.Attributes {
					attributes[kv.Key] = plainValue(kv.Value)
				}
				c.spans = append(c.spans, Span{Span: s, Attributes: attributes, Resource: resource})
			}
		}
	}
}

func plainValue(v *common.AnyValue) any {
	switch v := v.Value.(type) {
	case *common.AnyValue_StringValue:
		return v.StringValue
	case *common.AnyValue_IntValue:
		return v.IntValue
	case *common.AnyValue_DoubleValue:
		return v.DoubleValue
	}
	return v
}

// Spans returns what has come so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span(nil), c.spans...)
}

// Last returns the path and header of the last batch.
func (c *Collector) Last() (path string, header http.Header) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.path, c.headers
}
