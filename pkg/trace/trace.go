// Package trace tells an OpenTelemetry collector about requests: one span for
// each, one below it for each attempt on an instance, sent by OTLP over HTTP.
// It decides which requests are traced (the client's own trace decides first,
// then a sample) and never lets a request wait: what the collector does not
// take in time is dropped and counted. It refuses to know how requests are
// served; what a span says is what it is given.
package trace

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Options of a Tracer.
type Options struct {
	// Endpoint is the collector, http://host:4318 or https://…; without a path
	// it is asked at /v1/traces.
	Endpoint string
	// Headers go with each batch, such as the collector's credentials. May be nil.
	Headers map[string]string
	// TLS is for https; nil: the system's roots.
	TLS *tls.Config
	// Sample is the part of the requests without a trace of their own that is
	// traced, 0 to 1.
	Sample float64
	// Service, Node and Version say who is telling.
	Service, Node, Version string
	Log                    zerolog.Logger
}

const (
	queueLength   = 4096 // spans that wait at most; further ones are dropped
	batchLength   = 512
	batchDelay    = time.Second      // the longest that a span waits for others
	exportTimeout = 10 * time.Second // for one batch, repetitions included
	lastTimeout   = 3 * time.Second  // for what is left at the end
	failureEvery  = 30 * time.Second // how often the log tells of failures
)

// Counts are what became of spans. They never go backwards.
type Counts struct {
	Exported uint64 // the collector has them
	Dropped  uint64 // the queue was full
	Failed   uint64 // the collector did not take them
}

// Tracer makes spans and exports them. All methods are safe for concurrent use.
type Tracer struct {
	opts     Options
	log      zerolog.Logger
	tracer   trace.Tracer
	exporter sdk.SpanExporter
	queue    chan sdk.ReadOnlySpan

	exported, dropped, failed atomic.Uint64
}

// New checks the options. Nothing is sent before Run.
func New(opts Options) (*Tracer, error) {
	endpoint, err := checkEndpoint(opts.Endpoint)
	if err != nil {
		return nil, err
	}
	if !(opts.Sample >= 0 && opts.Sample <= 1) {
		return nil, fmt.Errorf("sample %v is out of range; 0 to 1", opts.Sample)
	}
	settings := []otlptracehttp.Option{
		otlptracehttp.WithEndpointURL(endpoint),
		otlptracehttp.WithTimeout(exportTimeout), otlptracehttp.WithCompression(otlptracehttp.GzipCompression),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: 500 * time.Millisecond, MaxInterval: 2 * time.Second, MaxElapsedTime: exportTimeout}),
	}
	if opts.Headers != nil { // which would take those of the environment away
		settings = append(settings, otlptracehttp.WithHeaders(opts.Headers))
	}
	if opts.TLS != nil {
		settings = append(settings, otlptracehttp.WithTLSClientConfig(opts.TLS))
	}
	exporter, err := otlptracehttp.New(context.Background(), settings...) // connects to nobody yet
	if err != nil {
		return nil, fmt.Errorf("exporter of traces: %w", err)
	}
	t := &Tracer{
		opts: opts, log: opts.Log.With().Str("component", "trace").Logger(),
		exporter: exporter, queue: make(chan sdk.ReadOnlySpan, queueLength),
	}
	t.tracer = sdk.NewTracerProvider(
		sdk.WithSampler(sdk.ParentBased(sdk.AlwaysSample())), // Begin has decided
		sdk.WithSpanProcessor((*enqueuer)(t)),
		sdk.WithResource(resource.NewSchemaless(
			attribute.String("service.name", opts.Service),
			attribute.String("service.version", opts.Version),
			attribute.String("service.instance.id", opts.Node),
		)),
	).Tracer("difylb")
	return t, nil
}

func checkEndpoint(raw string) (string, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "":
		return "", fmt.Errorf("%q is not a URL such as http://collector:4318", raw)
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("%q has the scheme %q; it must be http or https (OTLP over HTTP, port 4318 as a rule)", raw, u.Scheme)
	case u.User != nil:
		return "", errors.New("holds a user name or password; give an Authorization header instead")
	case u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("%q has a query; leave it away", raw)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	return u.String(), nil
}

// Counts returns what became of spans so far. Of a nil Tracer, nothing.
func (t *Tracer) Counts() Counts {
	if t == nil {
		return Counts{}
	}
	return Counts{Exported: t.exported.Load(), Dropped: t.dropped.Load(), Failed: t.failed.Load()}
}

// enqueuer is the Tracer as the SDK sees it: it takes spans that have ended.
type enqueuer Tracer

func (*enqueuer) OnStart(context.Context, sdk.ReadWriteSpan) {}
func (*enqueuer) Shutdown(context.Context) error             { return nil }
func (*enqueuer) ForceFlush(context.Context) error           { return nil }

// OnEnd is called by the request's goroutine.
func (q *enqueuer) OnEnd(s sdk.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}
	select {
	case q.queue <- s:
	default:
		q.dropped.Add(1)
	}
}

// Run sends spans in batches until ctx ends, and then what is left, for a few
// seconds at most.
func (t *Tracer) Run(ctx context.Context) error {
	// What the library has to say beside errors that it returns would go to
	// standard error as it is, between the lines of the log.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { t.log.Warn().Err(err).Msg("tracing") }))
	tick := time.NewTicker(batchDelay)
	defer tick.Stop()
	var batch []sdk.ReadOnlySpan
	var told time.Time
	send := func(ctx context.Context, limit time.Duration) {
		if len(batch) == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		if err := t.exporter.ExportSpans(ctx, batch); err != nil {
			t.failed.Add(uint64(len(batch)))
			if now := time.Now(); now.Sub(told) > failureEvery {
				told = now
				t.log.Warn().Err(err).Int("spans", len(batch)).Msg("traces not exported")
			}
		} else {
			t.exported.Add(uint64(len(batch)))
		}
		clear(batch)
		batch = batch[:0]
	}
	for ctx.Err() == nil {
		select {
		case s := <-t.queue:
			if batch = append(batch, s); len(batch) >= batchLength {
				send(ctx, exportTimeout)
			}
		case <-tick.C:
			send(ctx, exportTimeout)
		case <-ctx.Done():
		}
	}
	last, cancel := context.WithTimeout(context.Background(), lastTimeout)
	defer cancel()
	for more := true; more; {
		select {
		case s := <-t.queue:
			if batch = append(batch, s); len(batch) >= batchLength {
				send(last, lastTimeout)
			}
		default:
			more = false
		}
	}
	send(last, lastTimeout)
	return t.exporter.Shutdown(last)
}

// w3c is the format of the context that travels with requests
// (https://www.w3.org/TR/trace-context/).
var w3c propagation.TraceContext

// carrier holds the two fields of a context.
type carrier struct{ parent, state string }

func (c *carrier) Get(key string) string {
	switch key {
	case "traceparent":
		return c.parent
	case "tracestate":
		return c.state
	}
	return ""
}

func (c *carrier) Set(key, value string) {
	switch key {
	case "traceparent":
		c.parent = value
	case "tracestate":
		c.state = value
	}
}

func (c *carrier) Keys() []string { return []string{"traceparent", "tracestate"} }

// Request is a request of which it is decided whether it is traced. Its methods
// take nil for one that is not even told of. Owned by the goroutine that serves
// the request.
type Request struct {
	t     *Tracer
	start time.Time
	ctx   context.Context // nil, and span too, where nothing is recorded
	span  trace.Span

	// Of a request that is not recorded: what the instance is told.
	id    trace.TraceID
	state string
}

// Begin begins the span of a request. The two values are those of the fields
// Traceparent and Tracestate, "" without: a valid one says which trace the
// request belongs to, and whether that is recorded.
func (t *Tracer) Begin(start time.Time, traceparent, tracestate string) *Request {
	r := &Request{t: t, start: start}
	ctx := context.Background()
	var parent trace.SpanContext
	if traceparent != "" {
		ctx = w3c.Extract(ctx, &carrier{parent: traceparent, state: tracestate})
		parent = trace.SpanContextFromContext(ctx)
	}
	switch {
	case parent.IsSampled(), !parent.IsValid() && rand.Float64() < t.opts.Sample:
		r.ctx, r.span = t.tracer.Start(ctx, "request", trace.WithTimestamp(start), trace.WithSpanKind(trace.SpanKindServer))
	case parent.IsValid():
		r.id, r.state = parent.TraceID(), parent.TraceState().String()
	default:
		binary.LittleEndian.PutUint64(r.id[:8], rand.Uint64())
		binary.LittleEndian.PutUint64(r.id[8:], rand.Uint64()|1) // never all zeros
	}
	return r
}

// Recording reports whether the request is traced, so that it is worth saying
// something of it.
func (r *Request) Recording() bool { return r != nil && r.span != nil }

// Context returns the values of Traceparent and Tracestate for what belongs to
// the request and is no Attempt.
func (r *Request) Context() (traceparent, tracestate string) {
	if r.Recording() {
		return contextOf(r.ctx)
	}
	const zero = "00-00000000000000000000000000000000-0000000000000000-00"
	text := []byte(zero)
	hex.Encode(text[3:35], r.id[:])
	var span [8]byte
	binary.LittleEndian.PutUint64(span[:], rand.Uint64()|1)
	hex.Encode(text[36:52], span[:])
	return string(text), r.state
}

// End ends the span.
func (r *Request) End(now time.Time, f *Facts) {
	if r.Recording() {
		f.set(r.span)
		r.span.End(trace.WithTimestamp(r.at(now)))
	}
}

// at is a time of the request by the clock as it was at its start: spans keep
// their order and their lengths when the wall clock is set meanwhile.
func (r *Request) at(t time.Time) time.Time { return r.start.Add(max(0, t.Sub(r.start))) }

// Attempt is a traced request's attempt on an instance. Its methods but Context
// take nil for one that is not traced.
type Attempt struct {
	of   *Request
	ctx  context.Context
	span trace.Span
}

// Attempt begins the span of an attempt; nil where nothing is recorded.
func (r *Request) Attempt(start time.Time) *Attempt {
	if !r.Recording() {
		return nil
	}
	a := &Attempt{of: r}
	a.ctx, a.span = r.t.tracer.Start(r.ctx, "attempt", trace.WithTimestamp(r.at(start)), trace.WithSpanKind(trace.SpanKindClient))
	return a
}

// Recording reports whether the attempt is traced.
func (a *Attempt) Recording() bool { return a != nil }

// Context returns the values of Traceparent and Tracestate for the instance.
func (a *Attempt) Context() (traceparent, tracestate string) { return contextOf(a.ctx) }

// End ends the span.
func (a *Attempt) End(now time.Time, f *Facts) {
	if a == nil {
		return
	}
	f.set(a.span)
	a.span.End(trace.WithTimestamp(a.of.at(now)))
}

func contextOf(ctx context.Context) (string, string) {
	var c carrier
	w3c.Inject(ctx, &c)
	return c.parent, c.state
}

// cut bounds a text that someone else has chosen, and takes it out of the
// memory that it is a part of.
func cut(s string, bound int) string {
	if len(s) > bound {
		s = s[:bound]
	}
	return strings.Clone(strings.ToValidUTF8(s, "\uFFFD"))
}
