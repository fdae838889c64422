package proxy

import (
	"errors"
	"net/http"

	"difylb/pkg/h1"
	"difylb/pkg/lb"
)

// inspector reads along what a client sends in clear, before net/http does,
// and refuses what net/http would put right silently: two framings in one head,
// folded lines, bare line feeds and the like. What two readers could
// understand in two ways is not passed to anybody. Owned by the connection's
// reader: net/http reads from one goroutine at a time.
type inspector struct {
	limits h1.Limits
	req    h1.Request
	head   []byte // of the head that comes in pieces; nil between heads
	body   h1.Chunked
	state  inspectState
	left   int64    // of a body of known length
	fault  *refusal // why nothing further is read
	behind bool     // bytes have passed uninspected behind an upgrade
}

type inspectState uint8

const (
	inHead inspectState = iota
	inBody
	inChunks
	inUpgrade // the client asked to switch: what follows may be anything
)

// errRefused ends the reading of a connection whose client was, or will be,
// told why.
var errRefused = errors.New("the client sent what is refused")

func newInspector(lim *Limits) *inspector {
	return &inspector{limits: h1.Limits{RequestLine: lim.RequestLine, Head: lim.Head, Fields: lim.Fields}.WithDefaults()}
}

// pass looks at bytes that have just come and returns how many of them may be
// read by net/http. Fewer than all of them means that fault is set.
func (in *inspector) pass(p []byte) int {
	for n := 0; n < len(p); {
		k, ok := in.step(p[n:])
		n += k
		if !ok {
			return n
		}
	}
	return len(p)
}

// step consumes bytes of one state. ok is false behind a fault.
func (in *inspector) step(p []byte) (n int, ok bool) {
	switch in.state {
	case inBody:
		n = int(min(int64(len(p)), in.left))
		if in.left -= int64(n); in.left == 0 {
			in.state = inHead
		}
		return n, true
	case inChunks:
		_, n, err := in.body.Next(p)
		if err != nil {
			return 0, in.refuse(err)
		}
		if in.body.Done() {
			in.state = inHead
		}
		return n, true
	case inUpgrade:
		in.behind = true
		return len(p), true
	}
	return in.stepHead(p)
}

// stepHead reads on in a head. One that comes whole is not copied.
func (in *inspector) stepHead(p []byte) (n int, ok bool) {
	buf, before := p, 0
	if in.head != nil {
		before = len(in.head)
		in.head = append(in.head, p...)
		buf = in.head
	}
	n, err := in.req.Parse(buf, &in.limits)
	switch {
	case err == h1.ErrIncomplete:
		if in.head == nil {
			in.head = append(make([]byte, 0, 1024), p...)
		}
		return len(p), true
	case err != nil:
		return 0, in.refuse(err)
	}
	switch in.head = nil; {
	case in.req.WantsUpgrade:
		in.state = inUpgrade
	case in.req.Body == h1.BodyChunked:
		in.state = inChunks
		in.body.Reset(&in.limits)
	case in.req.Body == h1.BodyLength && in.req.ContentLength > 0:
		in.state, in.left = inBody, in.req.ContentLength
	}
	in.req.Reset()
	return n - before, true
}

func (in *inspector) refuse(err error) (ok bool) {
	in.fault = refuse(lb.ReasonBadRequest, "the request is malformed")
	var e *h1.Error
	if errors.As(err, &e) {
		in.fault.message = "the request is malformed: " + e.Reason
		switch e.Status {
		case http.StatusUnauthorized:
			in.fault = refuse(lb.ReasonUnauthorized, e.Reason)
		case http.StatusRequestURITooLong:
			in.fault = refuse(lb.ReasonURITooLong, e.Reason)
		case http.StatusExpectationFailed:
			in.fault = refuse(lb.ReasonExpectationFailed, e.Reason)
		case http.StatusRequestHeaderFieldsTooLarge:
			in.fault = refuse(lb.ReasonHeaderTooLarge, e.Reason)
		case http.StatusNotImplemented:
			in.fault = refuse(lb.ReasonNotImplemented, e.Reason)
		case http.StatusHTTPVersionNotSupported:
			in.fault = refuse(lb.ReasonVersionNotSupported, e.Reason)
		}
	}
	in.head = nil
	return false
}

// midBody reports whether the fault stands in a body that is being read, not
// in the head of a request behind it.
func (in *inspector) midBody() bool { return in.state == inBody || in.state == inChunks }

// settled is told that a request was answered without switching protocols.
func (in *inspector) settled() {
	if in.state != inUpgrade {
		return
	}
	in.state = inHead
	if in.behind && in.fault == nil {
		// Nobody has looked at what came behind it.
		in.fault = refuse(lb.ReasonBadRequest, "something followed a refused upgrade")
	}
}
