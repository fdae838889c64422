package proxy

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"difylb/pkg/h1"
)

// h2handler serves the streams of HTTP/2, which net/http takes apart. Each
// request is written down as the HTTP/1.1 head that means the same, and read by
// the same parser: what is refused there is refused here, and what follows
// does not know the difference.
type h2handler struct{ s *Server }

// h2stream is one of them: the downstream of its exchange.
type h2stream struct {
	lifeline
	s      *Server
	w      http.ResponseWriter
	r      *http.Request
	rc     *http.ResponseController
	status int
	wrote  bool // bytes may wait in net/http's buffer
	gone   bool // the answer is to be broken off
	// stopped: what of the request's body has not been read never will be.
	stopped atomic.Bool
}

func (h h2handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := h.s
	s.requests.add(1)
	defer s.requests.add(-1)
	d := &h2stream{s: s, w: w, r: r, rc: http.NewResponseController(w)}
	stop := context.AfterFunc(r.Context(), func() {
		if errors.Is(context.Cause(r.Context()), errShutdown) || s.ctx.Err() != nil {
			d.end(shutdown)
		} else {
			d.end(clientGone)
		}
	})
	defer stop()
	x := newExchange(s, d, &d.lifeline)
	x.lasting = true
	defer x.release()
	x.shard, _ = r.Context().Value(shardKey{}).(uint32)
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		x.remote = ap.Addr().Unmap()
		x.peer = x.remote.String()
	} else {
		x.peer = r.RemoteAddr
	}
	head := d.head()
	if _, err := x.req.Parse(head, &s.heads); err != nil {
		x.req.Reset()
		x.start, x.proto, x.client = time.Now(), "https", x.remote
		x.setOwnID()
		if err == h1.ErrIncomplete {
			err = nil
		}
		x.refuse(headRefusal(err))
		x.finish()
	} else {
		x.msg = stringOf(head)
		if r.ContentLength != 0 && r.Body != nil && r.Body != http.NoBody {
			x.body = &x.ownBody
			*x.body = body{src: d, declared: r.ContentLength, dir: s.p.opts.SpoolDir}
		}
		x.run(time.Now(), "https")
	}
	if d.gone {
		panic(http.ErrAbortHandler) // resets the stream
	}
}

// head writes the request down.
func (d *h2stream) head() []byte {
	r := d.r
	b := append(make([]byte, 0, 1024), r.Method...)
	b = append(b, ' ')
	b = append(b, r.RequestURI...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, r.Host...)
	b = append(b, h1.CRLF...)
	field := func(name, value string) {
		b = append(b, name...)
		b = append(b, ": "...)
		b = append(b, value...)
		b = append(b, h1.CRLF...)
	}
	for name, values := range r.Header {
		switch name {
		case "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Expect", "Trailer", "Host":
			continue // told in HTTP/2's own words, or not at all
		}
		for _, v := range values {
			field(name, v)
		}
	}
	for name := range r.Trailer {
		field("Trailer", name)
	}
	switch {
	case r.ContentLength > 0:
		field("Content-Length", strconv.FormatInt(r.ContentLength, 10))
	case r.ContentLength < 0:
		field("Transfer-Encoding", "chunked")
	}
	return append(b, h1.CRLF...)
}

func (d *h2stream) readBody(p []byte) (int, error) {
	_ = d.rc.SetReadDeadline(time.Now().Add(d.s.p.opts.Limits.BodyTimeout))
	n, err := d.r.Body.Read(p)
	_ = d.rc.SetReadDeadline(time.Time{}) // it must not end the wait for the answer
	if n > 0 {
		return n, nil // the error comes again
	}
	if d.stopped.Load() {
		return 0, errBodyLost
	}
	return 0, err
}

func (d *h2stream) trailer() ([]h1.Field, []byte) {
	var fields []h1.Field
	var text []byte
	for name, values := range d.r.Trailer {
		for _, v := range values {
			at := uint32(len(text))
			text = append(append(text, name...), v...)
			mid := at + uint32(len(name))
			fields = append(fields, h1.Field{Name: h1.Span{Start: at, End: mid}, Value: h1.Span{Start: mid, End: uint32(len(text))}})
		}
	}
	return fields, text
}

func (d *h2stream) stopReading(stop bool) {
	if stop {
		d.stopped.Store(true)
		_ = d.r.Body.Close()
	}
}

// headerFields writes fields into an http.Header.
type headerFields struct{ h http.Header }

func (f headerFields) Field(name, value string) { f.h.Add(name, value) }

func (f headerFields) Copy(field h1.Field, src []byte) {
	f.h.Add(string(field.Name.In(src)), string(field.Value.In(src)))
}

func (d *h2stream) begin(status int) fieldWriter {
	d.status = status
	h := d.w.Header()
	clear(h)
	return headerFields{h}
}

func (d *h2stream) closeAfter() {}

func (d *h2stream) endHead(kind h1.BodyKind, length int64) error {
	h := d.w.Header()
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // keeps net/http from guessing one
	}
	if kind == h1.BodyLength || kind == h1.BodyNone && length >= 0 {
		h.Set("Content-Length", strconv.FormatInt(length, 10))
	}
	d.beforeWrite()
	d.w.WriteHeader(d.status)
	d.wrote = true
	return nil
}

// beforeWrite gives the client its time to take what is written next,
// afterWrite takes that limit away: in HTTP/2 it would end the stream even
// when nothing is being written.
func (d *h2stream) beforeWrite() {
	_ = d.rc.SetWriteDeadline(time.Now().Add(d.s.p.opts.Limits.WriteTimeout))
}

func (d *h2stream) afterWrite() { _ = d.rc.SetWriteDeadline(time.Time{}) }

func (d *h2stream) write(p []byte, last bool) error {
	d.beforeWrite()
	if len(p) > 0 {
		if _, err := d.w.Write(p); err != nil {
			return errClientGone
		}
		d.wrote = true
	}
	if last {
		return nil
	}
	return d.flush()
}

func (d *h2stream) flush() error {
	if !d.wrote {
		return nil
	}
	d.wrote = false
	if err := d.rc.Flush(); err != nil {
		return errClientGone
	}
	d.afterWrite()
	return nil
}

func (d *h2stream) endAnswer(trailer []h1.Field, src []byte) error {
	h := d.w.Header()
	for _, f := range trailer {
		if f.ID != h1.Underscored {
			h.Add(http.TrailerPrefix+string(f.Name.In(src)), string(f.Value.In(src)))
		}
	}
	return nil
}

func (d *h2stream) interim(status int, fields func(fieldWriter)) error {
	h := d.w.Header()
	clear(h)
	fields(headerFields{h})
	d.beforeWrite()
	d.w.WriteHeader(status)
	d.afterWrite()
	clear(h)
	return nil
}

func (d *h2stream) abort() { d.gone = true }
