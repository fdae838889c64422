package proxy

import (
	"net"
	"strconv"
	"strings"
	"time"

	"difylb/pkg/h1"
	"difylb/pkg/lb"
	"difylb/pkg/trace"
)

// isTraceContext reports the two fields of W3C trace context.
func isTraceContext(name string) bool {
	return len(name) == len("traceparent") && strings.EqualFold(name, "traceparent") ||
		len(name) == len("tracestate") && strings.EqualFold(name, "tracestate")
}

// beginTrace begins the request's span, where there is a Tracer.
func (x *exchange) beginTrace() {
	if local(x.path) {
		return // others ask for it all day
	}
	var parent string
	var state []string
	parents := 0
	for i := range x.req.Fields {
		f := &x.req.Fields[i]
		if f.ID != h1.UnknownField {
			continue
		}
		switch name := x.in(f.Name); {
		case !isTraceContext(name):
		case len(name) == len("traceparent"):
			parent = x.in(f.Value)
			parents++
		default:
			state = append(state, x.in(f.Value))
		}
	}
	if parents > 1 {
		parent = "" // which of them is not to be known
	}
	x.traced = x.p.opts.Tracer.Begin(x.start, parent, strings.Join(state, ","))
}

// appendTrace tells the instance what trace its request belongs to.
func (x *exchange) appendTrace(h *h1.Head, to *target) {
	parent, state := "", ""
	if span := x.attempt.span; to == &x.attempt.to && span != nil {
		parent, state = span.Context()
	} else {
		parent, state = x.traced.Context() // nothing is recorded, or it is a stop besides
	}
	h.Field("Traceparent", parent)
	if state != "" {
		h.Field("Tracestate", state)
	}
}

// endTrace ends the request's span.
func (x *exchange) endTrace(now time.Time) {
	if !x.traced.Recording() {
		return
	}
	f := &trace.Facts{Name: x.method}
	if x.kind.Pattern != "" {
		f.Name += " " + x.kind.Pattern
		f.Text("http.route", x.kind.Pattern)
	}
	f.Text("http.request.method", x.method)
	f.Path("url.path", x.path)
	f.Text("url.scheme", x.proto)
	f.Number("http.response.status_code", int64(x.status))
	f.Number("http.request.body.size", x.bytesIn)
	f.Number("http.response.body.size", x.bytesOut)
	f.Text("network.protocol.version", x.protocolVersion())
	f.Text("user_agent.original", x.field(h1.UserAgent))
	if x.client.IsValid() {
		f.Text("client.address", x.client.String())
	}
	f.Text("difylb.request_id", x.id)
	f.Text("difylb.reason", x.reason.String())
	f.Text("difylb.instance", x.instance)
	f.Number("difylb.attempts", int64(x.attempts))
	f.Number("difylb.stream_events", int64(x.events))
	f.Milliseconds("difylb.first_byte_ms", x.firstByte)
	if x.app != nil {
		f.Text("difylb.app", x.app.app.Decl.Name)
		f.Number("difylb.revision", x.v.table.ConfigRevision)
		f.Text("difylb.token_label", x.token.Label)
		if x.user != "" {
			f.Text("difylb.user_hash", string(x.p.appendUserHash(nil, x.user)))
		}
	}
	if x.reason.IsError() || x.status >= 500 {
		f.Error = x.reason.String()
	}
	x.traced.End(now, f)
}

func (x *exchange) protocolVersion() string {
	switch {
	case isHTTP2(x.down):
		return "2"
	case x.req.Version == h1.HTTP10:
		return "1.0"
	}
	return "1.1"
}

func isHTTP2(d downstream) bool { _, is := d.(*h2stream); return is }

// endSpan ends the attempt's span; there may be none.
func (a *attempt) endSpan() {
	span := a.span
	if a.span = nil; !span.Recording() {
		return
	}
	x := a.x
	f := &trace.Facts{Name: x.method}
	f.Text("http.request.method", x.method)
	scheme := "http://"
	if a.up.tls != nil {
		scheme = "https://"
	}
	f.Path("url.full", scheme+a.to.host+x.path) // without the query, which may name the user
	if host, port, err := net.SplitHostPort(a.up.address); err == nil {
		f.Text("server.address", host)
		if n, err := strconv.ParseInt(port, 10, 64); err == nil {
			f.Number("server.port", n)
		}
	}
	f.Number("http.response.status_code", int64(a.resp.Status))
	f.Text("network.protocol.version", "1.1")
	if x.attempts > 1 {
		f.Number("http.request.resend_count", int64(x.attempts-1))
	}
	if a.route != nil {
		f.Text("difylb.instance", a.route.Decl.Name)
	} else {
		f.Text("difylb.instance", x.instance)
	}
	f.Text("difylb.reason", a.reason.String())
	f.Milliseconds("difylb.first_byte_ms", a.firstByte)
	switch {
	case a.reason != lb.ReasonOK:
		f.Error = a.reason.String()
	case a.resp.Status >= 400:
		f.Error = strconv.Itoa(a.resp.Status)
	}
	span.End(time.Now(), f)
}
