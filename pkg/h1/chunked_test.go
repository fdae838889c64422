package h1

import (
	"fmt"
	"strings"
	"testing"
)

func TestChunked_Decodes(t *testing.T) {
	for _, tt := range []struct {
		raw, data, trailers string
		extras              bool
	}{
		{"0\r\n\r\n", "", "", false},
		{"5\r\nhello\r\n0\r\n\r\n", "hello", "", false},
		{"1\r\na\r\n1\r\nb\r\nA\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "ab01234567890123456789", "", false},
		{"2\r\n\r\n\r\n0\r\n\r\n", "\r\n", "", false}, // data that looks like framing
		{"5\r\n0\r\n\r\n\r\n0\r\n\r\n", "0\r\n\r\n", "", false},
		{"c8\r\n" + strings.Repeat("x", 200) + "\r\n0\r\n\r\n", strings.Repeat("x", 200), "", false},
		{"000\r\n\r\n", "", "", true},
		{"000000000000005\r\nhello\r\n0\r\n\r\n", "hello", "", true},
		{"05\r\nhello\r\n0\r\n\r\n", "hello", "", true},
		{"5;a\r\nhello\r\n0;b=c\r\n\r\n", "hello", "", true},
		{"5; a = \"b;\\\"\tc\" ;d\r\nhello\r\n0\r\n\r\n", "hello", "", true},
		{"5;\xff\r\nhello\r\n0\r\n\r\n", "hello", "", true},
		{"0\r\nX-Sum: 1\r\nServer-Timing:  a \r\n\r\n", "", "X-Sum=1 Server-Timing=a", true},
		{"3\r\nabc\r\n0\r\nX_Sum: 1\r\nETag: \"x\"\r\n\r\n", "abc", `X_Sum=1 ETag="x"`, true},
	} {
		got := feedChunked(t, tt.raw+"GET / HTTP/1.1\r\n", nil)
		if got.err != nil || !got.done || got.n != len(tt.raw) {
			t.Errorf("%q: %d of %d bytes, done %v, %v", tt.raw, got.n, len(tt.raw), got.done, got.err)
			continue
		}
		var trailers []string
		for _, f := range got.fields {
			trailers = append(trailers, fmt.Sprintf("%s=%s", f.Name.In(got.trailer), f.Value.In(got.trailer)))
		}
		if s := strings.Join(trailers, " "); string(got.data) != tt.data || s != tt.trailers || got.extras != tt.extras {
			t.Errorf("%q: %q, trailers %q, extras %v", tt.raw, got.data, s, got.extras)
		}
	}
}

func TestChunked_Refuses(t *testing.T) {
	for _, tt := range []struct {
		name, raw string
		want      *Error
	}{
		// RFC 9112 section 7.1: sizes.
		{"no size", "\r\nhello", errChunkSize},
		{"letters", "xyz\r\n", errChunkSize},
		{"0x", "0x5\r\nhello\r\n", errChunkSize},
		{"0X", "0X5\r\nhello\r\n", errChunkSize},
		{"plus", "+5\r\nhello\r\n", errChunkSize},
		{"minus", "-5\r\nhello\r\n", errChunkSize},
		{"minus zero", "-0\r\n\r\n", errChunkSize},
		{"space before", " 5\r\nhello\r\n", errChunkSize},
		{"space behind", "5 \r\nhello\r\n", errChunkSize},
		{"tab behind", "5\t\r\nhello\r\n", errChunkSize},
		{"space before an extension", "5 ;a=b\r\nhello\r\n", errChunkSize},
		{"tab before an extension", "5\t;a=b\r\nhello\r\n", errChunkSize},
		{"space within", "1 0\r\n", errChunkSize},
		{"underscore", "1_0\r\n", errChunkSize},
		{"h", "5h\r\nhello\r\n", errChunkSize},
		{"comma", "5,a\r\nhello\r\n", errChunkSize},
		{"NUL behind", "5\x00\r\nhello\r\n", errChunkSize},
		{"vertical tab before", "\x0b5\r\nhello\r\n", errChunkSize},
		{"extension without a size", ";a\r\n", errChunkSize},
		{"other digits", "\u0665\r\n", errChunkSize},
		{"16 digits", "0000000000000005\r\nhello\r\n", errChunkTooLarge},
		{"2^60", "1000000000000000\r\n", errChunkTooLarge},
		{"2^63", "8000000000000000\r\n", errChunkTooLarge},
		{"2^64", "10000000000000000\r\n", errChunkTooLarge},
		{"2^64 + 5", "10000000000000005\r\nhello\r\n", errChunkTooLarge},
		{"2^32 + 5 in a line of zeros", "00000000000000000100000005\r\nhello\r\n", errChunkTooLarge},
		{"all ones", "ffffffffffffffff\r\n", errChunkTooLarge},

		// RFC 9112 sections 2.2 and 7.1: line ends.
		{"bare LF behind a size", "5\nhello\r\n0\r\n\r\n", errBareLF},
		{"bare CR behind a size", "5\rhello\r\n0\r\n\r\n", errBareCR},
		{"CR CR LF behind a size", "5\r\r\nhello", errBareCR},
		{"bare LF behind zero", "0\n\r\n", errBareLF},
		{"bare LF behind data", "5\r\nhello\n0\r\n\r\n", errChunkEnd},
		{"bare CR behind data", "5\r\nhello\r0\r\n\r\n", errChunkEnd},
		{"nothing behind data", "5\r\nhello0\r\n\r\n", errChunkEnd},
		{"more data than said", "5\r\nhello!\r\n0\r\n\r\n", errChunkEnd},
		{"less data than said", "6\r\nhello\r\n0\r\n\r\n", errChunkEnd},
		{"two bytes for CRLF", "5\r\nhelloXX0\r\n\r\n", errChunkEnd},
		{"bare LF as the last line", "0\r\n\n", errBareLF},
		{"bare CR as the last line", "0\r\n\rX: y\r\n\r\n", errBareCR},

		// RFC 9112 section 7.1.1: extensions.
		{"LF in an extension", "5;a\nhello\r\n0\r\n\r\n", errBareLF},
		{"LF right behind the semicolon", "2;\nxx\r\n", errBareLF},
		{"LF behind a space", "2 \nxx\r\n", errChunkSize},
		{"CR in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n", errBareCR},
		{"NUL in an extension", "5;\x00\r\nhello\r\n0\r\n\r\n", errChunkExt},
		{"DEL in an extension", "5;\x7f\r\nhello\r\n0\r\n\r\n", errChunkExt},
		{"line end in quotes", "5;a=\"\r\nhello\r\n0\r\n\r\n", errChunkExt},
		{"LF in quotes", "5;a=\"\nhello\r\n0\r\n\r\n", errBareLF},
		{"line end behind a backslash", "5;a=\"\\\r\nhello", errChunkExt},
		{"long extension", "5;" + strings.Repeat("a", 256) + "\r\nhello\r\n", errChunkExtLine},
		{"long white space", "5;" + strings.Repeat(" ", 256) + "a\r\nhello\r\n", errChunkExtLine},
		{"many extensions", strings.Repeat("1;"+strings.Repeat("a", 255)+"\r\nx\r\n", 65), errChunkExtTotal},
		{"many short extensions", strings.Repeat("1;\r\nx\r\n", 16<<10+1), errChunkExtTotal},

		// RFC 9110 section 6.5.1: trailers.
		{"Content-Length", "0\r\nContent-Length: 5\r\n\r\n", errTrailers},
		{"Transfer-Encoding", "0\r\ntransfer-encoding: chunked\r\n\r\n", errTrailers},
		{"Host", "0\r\nHost: evil\r\n\r\n", errTrailers},
		{"Authorization", "0\r\nX: y\r\nAuthorization: Bearer x\r\n\r\n", errTrailers},
		{"Cookie", "0\r\nCookie: a=b\r\n\r\n", errTrailers},
		{"Set-Cookie", "0\r\nSet-Cookie: a=b\r\n\r\n", errTrailers},
		{"Content-Type", "0\r\nContent-Type: a/b\r\n\r\n", errTrailers},
		{"Connection", "0\r\nConnection: close\r\n\r\n", errTrailers},
		{"X-User-ID", "0\r\nX-User-ID: u\r\n\r\n", errTrailers},
		{"X-Forwarded-For", "0\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n", errTrailers},
		{"obs-fold", "0\r\nX: y\r\n z\r\n\r\n", errObsFold},
		{"space before the colon", "0\r\nX : y\r\n\r\n", errSpaceColon},
		{"no colon", "0\r\nGET / HTTP/1.1\r\n\r\n", errNoColon},
		{"a request for a trailer", "0\r\nGET /:x HTTP/1.1\r\n\r\n", errFieldName},
		{"bare LF", "0\r\nX: y\n\r\n", errBareLF},
		{"control byte", "0\r\nX: \x00\r\n\r\n", errControl},
		{"too many", "0\r\n" + strings.Repeat("X: y\r\n", 129) + "\r\n", errTooManyFields},
		{"too long", "0\r\nX: " + strings.Repeat("y", 8<<10) + "\r\n\r\n", errHeadTooLarge},
		{"without end", "0\r\nX: " + strings.Repeat("y", 20<<10), errHeadTooLarge},
	} {
		if got := feedChunked(t, tt.raw, nil); got.err != error(tt.want) {
			t.Errorf("%s: %.80q: %v, want %v", tt.name, tt.raw, got.err, tt.want)
		}
	}
}

func TestChunked_Limits(t *testing.T) {
	lim := &Limits{ChunkExtLine: 4, ChunkExtTotal: 8, Trailers: 10, Fields: 1}
	for _, tt := range []struct {
		raw  string
		want error
	}{
		{"1;abc\r\nx\r\n1;abc\r\nx\r\n0\r\nA: bcd\r\n\r\n", nil}, // all at their limits
		{"1;abcd\r\nx\r\n0\r\n\r\n", errChunkExtLine},
		{"1;abc\r\nx\r\n1;abc\r\nx\r\n0;\r\n\r\n", errChunkExtTotal},
		{"0\r\nA: bcde\r\n\r\n", errHeadTooLarge},
		{"0\r\nA:\r\nB:\r\n\r\n", errTooManyFields},
	} {
		got := feedChunked(t, tt.raw, lim)
		if got.err != tt.want && (tt.want == nil || got.err != tt.want.(*Error)) || got.done != (tt.want == nil) {
			t.Errorf("%q: %v, want %v", tt.raw, got.err, tt.want)
		}
	}
	// At the defaults nothing is refused that is just within them.
	raw := strings.Repeat("1;"+strings.Repeat("a", 255)+"\r\nx\r\n", 64) + "0\r\nX: " + strings.Repeat("y", 8<<10-7) + "\r\n\r\n"
	if got := feedChunked(t, raw, nil); !got.done || got.err != nil {
		t.Error(got.done, got.err)
	}
}

func TestChunked_CutOff(t *testing.T) {
	raw := "5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n"
	for i := range raw {
		if got := feedChunked(t, raw[:i], nil); got.done || got.err != nil || got.n != i {
			t.Errorf("%q: done %v after %d bytes, %v", raw[:i], got.done, got.n, got.err)
		}
	}
}

func TestChunked_ErrorStays(t *testing.T) {
	var d Chunked // ready without Reset
	data, n, err := d.Next([]byte("5\r\nhello!"))
	if string(data) != "hello" || n != 8 || err != nil {
		t.Fatalf("%q, %d, %v", data, n, err)
	}
	for range 2 {
		if _, _, err := d.Next([]byte("!\r\n0\r\n\r\n")); err != error(errChunkEnd) || d.Done() {
			t.Error(err)
		}
	}
	d.Reset(nil)
	if _, n, err := d.Next([]byte("0\r\n\r\nmore")); n != 5 || err != nil || !d.Done() {
		t.Error(n, err)
	}
	if data, n, err := d.Next([]byte("more")); data != nil || n != 0 || err != nil {
		t.Errorf("a body that is done took %d bytes more, %v", n, err)
	}
}

// What Next returns must be part of what it was given: nothing is copied.
func TestChunked_DataIsPartOfTheInput(t *testing.T) {
	var d Chunked
	p := []byte("5\r\nhello\r\n3\r\nabc\r\n0\r\n\r\n")
	data, n, err := d.Next(p)
	if err != nil || n != 10 || &data[0] != &p[3] || cap(data) != len(data) {
		t.Fatal(data, n, err)
	}
}

func TestChunked_ResetForgetsTheBodyBefore(t *testing.T) {
	var d Chunked
	for range 3 {
		d.Reset(nil)
		for _, p := range []string{"3;a\r", "\nab", "c\r\n0\r\nX: y\r\n\r", "\n"} {
			for b := []byte(p); len(b) > 0; {
				_, n, err := d.Next(b)
				if err != nil {
					t.Fatal(err)
				}
				b = b[n:]
			}
		}
		if !d.Done() || !d.Extras || len(d.Trailer()) != 1 {
			t.Fatalf("%+v", d)
		}
	}
	d.Reset(nil)
	if d.Done() || d.Extras || len(d.Trailer()) != 0 || len(d.TrailerBytes()) != 0 {
		t.Errorf("%+v", d)
	}
}
