package h1

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

var roomy = Limits{Head: 4 << 20, RequestLine: 4 << 20, Fields: maxFields}.WithDefaults()

// drip gives a parser one byte more at a time and returns how long that took.
func drip(t *testing.T, r *Request, head []byte) time.Duration {
	r.Reset()
	start := time.Now()
	for i := 1; i <= len(head); i++ {
		if _, err := r.Parse(head[:i], &roomy); (err == nil) != (i == len(head)) {
			t.Fatalf("%d bytes of %d: %v", i, len(head), err)
		}
	}
	return time.Since(start)
}

// A head that comes a byte at a time must cost per byte what it costs in one
// piece, or a slow client buys seconds of our time with kilobytes of its own.
func TestRequest_ByteByByteIsLinear(t *testing.T) {
	for name, head := range map[string]func(size int) []byte{
		"one long field": dripHead,
		"one long target": func(size int) []byte {
			return []byte("GET /" + strings.Repeat("x", size) + " HTTP/1.1\r\nHost: a\r\n\r\n")
		},
		"many fields": func(size int) []byte {
			return []byte("GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", size/6) + "\r\n")
		},
		"white space only": func(size int) []byte {
			return []byte("GET / HTTP/1.1\r\nHost: a\r\nX:" + strings.Repeat(" ", size) + "\r\n\r\n")
		},
	} {
		// Counted: each call begins to look where the one before it ended.
		var r Request
		raw, fields := head(16<<10), 0
		for i := 1; i < len(raw); i++ {
			if _, err := r.Parse(raw[:i], &roomy); err != ErrIncomplete || r.scanned != i && i > 1 || len(r.Fields) < fields {
				t.Fatalf("%s: after %d bytes the search for a line's end goes on at %d, %v", name, i, r.scanned, err)
			}
			fields = len(r.Fields)
		}
		// Timed: 16 times the bytes would take 256 times as long if any were
		// looked at again and again. The best of many rounds, since other processes
		// take the processor away, until it is good enough.
		small, large := time.Hour, time.Hour
		for round := 0; large > 80*small || round == 0; round++ {
			if round == 30 {
				t.Errorf("%s: 16 KiB in %v, 256 KiB in %v", name, small, large)
				break
			}
			small = min(small, drip(t, &r, raw))
			large = min(large, drip(t, &r, head(256<<10)))
		}
	}
}

// The costliest head within the default limits: as many connection options as
// are taken, each to be looked for among as many fields as are taken.
func TestRequest_WorstHeadIsCheap(t *testing.T) {
	head := []byte("GET / HTTP/1.1\r\nHost: a\r\nConnection: " + strings.TrimSuffix(strings.Repeat(strings.Repeat("x", 400)+"y,", 32), ",") + "\r\n" +
		strings.Repeat(strings.Repeat("x", 400)+": \r\n", 120) + "\r\n")
	best := time.Hour
	var r Request
	for range 20 {
		r.Reset()
		start := time.Now()
		if _, err := r.Parse(head, nil); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(start))
	}
	if best > 50*time.Millisecond {
		t.Errorf("%v for %d bytes", best, len(head))
	}
}

func TestParsing_AllocatesNothing(t *testing.T) {
	lim := Limits{}.WithDefaults()
	var (
		req  Request
		resp Response
		d    Chunked
		h    Head
	)
	bad := []byte("GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n")
	rare := []byte("POST http://a/%2e?x HTTP/1.1\r\nHost: a\r\nConnection: close, x, upgrade\r\nX: y\r\nUpgrade: websocket/13\r\nTE: trailers\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n")
	body := []byte("5;a=\"b\"\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n")
	for name, f := range map[string]func(){
		"request":                  func() { req.Reset(); _, _ = req.Parse(requestHead, &lim) },
		"request without limits":   func() { req.Reset(); _, _ = req.Parse(requestHead, nil) },
		"request with zero limits": func() { req.Reset(); _, _ = req.Parse(requestHead, new(Limits)) },
		"request with all there is": func() {
			req.Reset()
			if _, err := req.Parse(rare, &lim); err != nil {
				t.Fatal(err)
			}
		},
		"request in two pieces": func() { req.Reset(); _, _ = req.Parse(requestHead[:200], &lim); _, _ = req.Parse(requestHead, &lim) },
		"refused request":       func() { req.Reset(); _, _ = req.Parse(bad, &lim) },
		"response":              func() { resp.Reset(); _, _ = resp.Parse(responseHead, MethodGet, &lim) },
		"chunked": func() {
			d.Reset(&lim)
			for p := body; !d.Done(); {
				_, n, err := d.Next(p)
				if err != nil {
					t.Fatal(err)
				}
				p = p[n:]
			}
		},
		"head": func() {
			h.Buf = h.Buf[:0]
			h.Status(200, nil)
			h.Field("X", "y")
			h.FieldInt("Content-Length", 1<<40)
			h.End()
			h.Buf = AppendChunkHeader(h.Buf, 200)
		},
	} {
		f() // slices grow once
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	// However much is pipelined behind a body, only its trailers are kept.
	d = Chunked{}
	d.Reset(&lim)
	if _, _, err := d.Next(append([]byte("0\r\nX: y\r\n\r\n"), bytes.Repeat([]byte{'x'}, 1<<20)...)); err != nil || !d.Done() || cap(d.TrailerBytes()) > 2*lim.Trailers {
		t.Errorf("%v, %d bytes kept", err, cap(d.TrailerBytes()))
	}
}
