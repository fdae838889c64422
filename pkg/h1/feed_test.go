package h1

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"
)

// How the bytes arrive must make no difference. Every head of these tests is
// therefore parsed three times: at once, byte by byte, and in random pieces, short
// ones each time in another buffer, as a caller's would be that grows.

type headParser interface {
	Reset()
	section() *Section
}

func (s *Section) section() *Section { return s }

// outcome is all that a caller can see of a parse.
type outcome struct {
	n    int
	err  error
	head any // nil unless the parse succeeded
}

func outcomeOf(p headParser, n int, err error) outcome {
	if err != nil {
		return outcome{0, err, nil}
	}
	switch p := p.(type) {
	case *Request:
		r := *p
		r.pos, r.scanned, r.Fields = 0, 0, append([]Field{}, r.Fields...)
		return outcome{n, nil, r}
	case *Response:
		r := *p
		r.pos, r.scanned, r.Fields = 0, 0, append([]Field{}, r.Fields...)
		return outcome{n, nil, r}
	}
	panic("unknown parser")
}

// feed parses raw whole and in pieces and fails if that makes a difference.
func feed(t *testing.T, raw []byte, p headParser, parse func([]byte) (int, error)) outcome {
	t.Helper()
	p.Reset()
	n, err := parse(raw)
	whole := outcomeOf(p, n, err)

	pieces := func(next func(at int) int) outcome {
		p.Reset()
		for at := 0; ; {
			at = min(next(at), len(raw))
			buf := raw[:at]
			if len(raw) < 4<<10 { // copies of longer ones are all that the tests would do
				buf = bytes.Clone(buf)
			}
			n, err := parse(buf)
			if err != ErrIncomplete || at == len(raw) {
				return outcomeOf(p, n, err)
			}
		}
	}
	if got := pieces(func(at int) int { return at + 1 }); !reflect.DeepEqual(got, whole) {
		t.Fatalf("%q\nat once:      %+v\nbyte by byte: %+v", raw, whole, got)
	}
	rng := rand.New(rand.NewPCG(1, uint64(len(raw))))
	for range 3 {
		if got := pieces(func(at int) int { return at + 1 + rng.IntN(1+len(raw)/3) }); !reflect.DeepEqual(got, whole) {
			t.Fatalf("%q\nat once:   %+v\nin pieces: %+v", raw, whole, got)
		}
	}
	return whole
}

func feedRequest(t *testing.T, raw string, lim *Limits) (*Request, int, error) {
	t.Helper()
	var r Request
	out := feed(t, []byte(raw), &r, func(b []byte) (int, error) { return r.Parse(b, lim) })
	if out.err == nil {
		r = out.head.(Request)
	}
	return &r, out.n, out.err
}

func feedResponse(t *testing.T, raw string, method Method, lim *Limits) (*Response, int, error) {
	t.Helper()
	var r Response
	out := feed(t, []byte(raw), &r, func(b []byte) (int, error) { return r.Parse(b, method, lim) })
	if out.err == nil {
		r = out.head.(Response)
	}
	return &r, out.n, out.err
}

// body is all that a caller can see of a chunked body.
type body struct {
	data, trailer []byte
	fields        []Field
	n             int // bytes consumed
	done, extras  bool
	err           error
}

// decode hands raw to a decoder in pieces of the sizes that next gives.
func decode(raw []byte, lim *Limits, next func() int) (b body) {
	var d Chunked
	d.Reset(lim)
	for b.n < len(raw) && !d.Done() && b.err == nil {
		piece := bytes.Clone(raw[b.n:min(len(raw), b.n+next())])
		for len(piece) > 0 && !d.Done() {
			data, k, err := d.Next(piece)
			b.data = append(b.data, data...)
			b.n += k
			if b.err = err; err != nil {
				break
			}
			if k == 0 {
				panic("a decoder that is not done consumed nothing")
			}
			piece = piece[k:]
		}
	}
	b.done, b.extras = d.Done(), d.Extras
	if b.done {
		b.trailer = append(b.trailer, d.TrailerBytes()...)
		b.fields = append(b.fields, d.Trailer()...)
	}
	return b
}

func feedChunked(t *testing.T, raw string, lim *Limits) body {
	t.Helper()
	whole := decode([]byte(raw), lim, func() int { return len(raw) })
	if whole.err != nil {
		whole.n = 0 // where within a broken body it was noticed is nobody's business
	}
	check := func(how string, got body) {
		t.Helper()
		if got.err != nil {
			got.n = 0
		}
		got.extras, whole.extras = got.extras && got.err == nil, whole.extras && whole.err == nil
		if len(got.trailer) == 0 { // "\r\n" alone is gathered only where it comes in two
			got.trailer = nil
		}
		if string(got.trailer) == CRLF {
			got.trailer = nil
		}
		if !reflect.DeepEqual(got, whole) {
			t.Fatalf("%q\nat once: %+v\n%s: %+v", raw, whole, how, got)
		}
	}
	check("at once again", decode([]byte(raw), lim, func() int { return len(raw) }))
	if len(raw) < 64<<10 {
		check("byte by byte", decode([]byte(raw), lim, func() int { return 1 }))
	}
	rng := rand.New(rand.NewPCG(2, uint64(len(raw))))
	for range 3 {
		check("in pieces", decode([]byte(raw), lim, func() int { return 1 + rng.IntN(1+len(raw)/3) }))
	}
	return whole
}

func statusOf(err error) int {
	var e *Error
	if errors.As(err, &e) {
		return e.Status
	}
	return 0
}
