package h1

import (
	"bytes"
	"fmt"
	"testing"
)

// requestHead is what an SDK behind a proxy sends: ten fields, 386 bytes.
var requestHead = []byte("POST /v1/chat-messages HTTP/1.1\r\n" +
	"Host: dify.example.com:8082\r\n" +
	"User-Agent: python-requests/2.32.3\r\n" +
	"Accept-Encoding: gzip, deflate, br\r\n" +
	"Accept: */*\r\n" +
	"Connection: keep-alive\r\n" +
	"Authorization: Bearer usertoken--customer-service-v1\r\n" +
	"Content-Type: application/json\r\n" +
	"X-Request-ID: 4bf92f3577b34da6a3ce929d0e0e4736\r\n" +
	"X-Trace-Id: 00f067aa0ba902b7-00f067aa0ba902b7-00f067aa0b\r\n" +
	"Content-Length: 250\r\n\r\n")

// responseHead is what Dify behind its nginx answers: eight fields.
var responseHead = []byte("HTTP/1.1 200 OK\r\n" +
	"Server: nginx/1.27.3\r\n" +
	"Date: Mon, 23 Nov 2026 08:10:10 GMT\r\n" +
	"Content-Type: application/json; charset=utf-8\r\n" +
	"Content-Length: 600\r\n" +
	"Connection: keep-alive\r\n" +
	"X-Version: 1.16.0\r\n" +
	"X-Env: PRODUCTION\r\n" +
	"Access-Control-Allow-Origin: *\r\n\r\n")

func BenchmarkRequest(b *testing.B) {
	b.ReportAllocs()
	b.SetBytes(int64(len(requestHead)))
	lim := Limits{}.WithDefaults()
	var r Request
	for b.Loop() {
		r.Reset()
		if _, err := r.Parse(requestHead, &lim); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkResponse(b *testing.B) {
	b.ReportAllocs()
	b.SetBytes(int64(len(responseHead)))
	lim := Limits{}.WithDefaults()
	var r Response
	for b.Loop() {
		r.Reset()
		if _, err := r.Parse(responseHead, MethodPost, &lim); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkChunked_200 decodes an event per chunk, as a streaming Dify sends them.
func BenchmarkChunked_200(b *testing.B) {
	const perBody = 64
	chunk := append(AppendChunkHeader(nil, 200), bytes.Repeat([]byte{'x'}, 200)...)
	body := append(bytes.Repeat(append(chunk, CRLF...), perBody), LastChunk...)
	b.ReportAllocs()
	b.SetBytes(200)
	lim := Limits{}.WithDefaults()
	var d Chunked
	for n := 0; n < b.N; n += perBody {
		d.Reset(&lim)
		for p := body; !d.Done(); {
			_, k, err := d.Next(p)
			if err != nil {
				b.Fatal(err)
			}
			p = p[k:]
		}
	}
}

// BenchmarkHead_Relay writes the request's head anew, as a proxy would.
func BenchmarkHead_Relay(b *testing.B) {
	b.ReportAllocs()
	var r Request
	if _, err := r.Parse(requestHead, nil); err != nil {
		b.Fatal(err)
	}
	var h Head
	for b.Loop() {
		h.Buf, h.Err = h.Buf[:0], nil
		h.Request(r.MethodName.In(requestHead), r.Target.In(requestHead))
		for _, f := range r.Fields {
			if f.Hop || f.ID == Authorization {
				continue
			}
			h.Copy(f, requestHead)
		}
		h.Field("Authorization", "Bearer app-9VSEFXR2qoMRoUHfmzxClGhe")
		h.End()
		if h.Err != nil {
			b.Fatal(h.Err)
		}
	}
}

// BenchmarkRequest_Drip is a head of 64 KiB that comes a byte at a time; its
// time per byte is what shows that nothing is looked at again and again.
func BenchmarkRequest_Drip(b *testing.B) {
	for _, size := range []int{8 << 10, 64 << 10} {
		head := dripHead(size)
		b.Run(fmt.Sprint(size>>10, "KiB"), func(b *testing.B) {
			lim := Limits{Head: 1 << 20}.WithDefaults()
			b.SetBytes(int64(len(head)))
			var r Request
			for b.Loop() {
				r.Reset()
				for i := 1; i <= len(head); i++ {
					if _, err := r.Parse(head[:i], &lim); err != nil && err != ErrIncomplete {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// dripHead is one long field, which is the worst for a search that starts over.
func dripHead(size int) []byte {
	return append(append([]byte("GET / HTTP/1.1\r\nHost: a\r\nX: "), bytes.Repeat([]byte{'v'}, size)...), "\r\n\r\n"...)
}
