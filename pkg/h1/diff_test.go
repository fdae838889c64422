package h1

import (
	"bufio"
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// net/http is the reference: what this package accepts, it must accept, too,
// and understand alike. What it accepts and we refuse stands in the table
// stricter, and in docs/design/strictness.md with the reasons.

var stricter = []struct {
	rule, raw string
	want      *Error
}{
	{"line ends", "GET / HTTP/1.1\nHost: a\n\n", errBareLF},
	{"version", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", errVersion},
	{"version", "PRI * HTTP/2.0\r\n\r\n", errVersion},
	{"method", strings.Repeat("M", 33) + " / HTTP/1.1\r\nHost: a\r\n\r\n", errMethodTooLong},
	{"method", "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", errMethodRefused},
	{"method", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", errMethodRefused},
	{"target form", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", errAsterisk},
	{"target form", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", errTargetScheme},
	{"target form", "GET mailto:a HTTP/1.1\r\nHost: a\r\n\r\n", errTargetScheme},
	{"user information", "GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n", errTargetUser},
	{"fragment", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", errTargetFragment},
	{"bytes of the target", "GET /ü HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"bytes of the target", "GET /?\xff HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"bytes of the path", "GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"bytes of the path", "GET /{a} HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"Host missing", "GET / HTTP/1.1\r\n\r\n", errHostMissing},
	{"Host malformed", "GET / HTTP/1.1\r\nHost:\r\n\r\n", errHost},
	{"Host malformed", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", errHost},
	{"Host malformed", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", errHost},
	{"Host malformed", "GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n", errHost},
	{"Host and authority", "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", errHostDiffers},
	{"obs-fold", "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", errObsFold},
	{"length and coding", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", errLengthAndCoding},
	{"coding in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", errCodingIn10},
	{"length repeated", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", errLengthRepeated},
	{"length of many digits", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 00000000000000000005\r\n\r\n", errLength},
	{"single fields", "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: a\r\nAuthorization: a\r\n\r\n", errAuthorizations},
	{"single fields", "GET / HTTP/1.1\r\nHost: a\r\nContent-Type: a\r\nContent-Type: a\r\n\r\n", errContentTypeAgain},
	{"single fields", "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: a\r\nUpgrade: b\r\n\r\n", errUpgradeAgain},
	{"Upgrade malformed", "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: a b\r\n\r\n", errUpgrade},
	{"Expect", "GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n", errExpectation},
	{"Connection malformed", "GET / HTTP/1.1\r\nHost: a\r\nConnection: a b\r\n\r\n", errOption},
	{"Connection names end-to-end fields", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Host\r\n\r\n", errOptionEndToEnd},
	{"many connection options", "GET / HTTP/1.1\r\nHost: a\r\nConnection: " + strings.Repeat("a,", 33) + "\r\n\r\n", errTooManyOptions},
	{"Trailer announces what is forbidden", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: Host\r\n\r\n", errTrailerField},
	{"limits", "GET /" + strings.Repeat("x", 16<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n", errLineTooLong},
	{"limits", "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", errHeadTooLarge},
	{"limits", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", 128) + "\r\n", errTooManyFields},
}

var stricterResponses = []struct {
	rule, raw string
	want      *Error
}{
	{"line ends", "HTTP/1.1 200 OK\nX: y\n\n", errBareLF},
	{"status", "HTTP/1.1 099 Low\r\n\r\n", errStatusCode},
	{"status", "HTTP/1.1 600 High\r\n\r\n", errStatusCode},
	{"status", "HTTP/1.1 +20 OK\r\n\r\n", errStatusLine},
	{"status line", "HTTP/1.1  200 OK\r\n\r\n", errStatusLine},
	{"status line", "HTTP/1.1 200 O\x00K\r\n\r\n", errStatusLine},
	{"version", "HTTP/2.0 200 OK\r\n\r\n", errStatusVersion},
	{"obs-fold", "HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n", errObsFold},
	{"length and coding", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", errLengthAndCoding},
	{"length repeated", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", errLengthRepeated},
	{"coding in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", errCodingIn10},
	{"body with 204 or 1xx", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", errBodyNotAllowed},
	{"body with 204 or 1xx", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", errBodyNotAllowed},
	{"interim in HTTP/1.0", "HTTP/1.0 100 Continue\r\n\r\n", errInterimIn10},
	{"101 without Upgrade", "HTTP/1.1 101 Switching Protocols\r\n\r\n", errSwitching},
	{"single fields", "HTTP/1.1 200 OK\r\nContent-Type: a\r\nContent-Type: b\r\n\r\n", errContentTypeAgain},
	{"Connection malformed", "HTTP/1.1 200 OK\r\nConnection: a b\r\n\r\n", errOption},
}

var stricterBodies = []struct {
	rule, raw string
	want      *Error
}{
	{"white space behind a chunk size", "5 \r\nhello\r\n0\r\n\r\n", errChunkSize},
	{"digits of a chunk size", "0000000000000005\r\nhello\r\n0\r\n\r\n", errChunkTooLarge},
	{"chunk extensions", "5;\x00\r\nhello\r\n0\r\n\r\n", errChunkExt},
	{"chunk extensions", "5;\"\r\nhello\r\n0\r\n\r\n", errChunkExt},
	{"limits", "5;" + strings.Repeat("a", 300) + "\r\nhello\r\n0\r\n\r\n", errChunkExtLine},
	{"forbidden trailers", "5\r\nhello\r\n0\r\nHost: a\r\n\r\n", errTrailers},
}

func reader(raw []byte) *bufio.Reader { return bufio.NewReaderSize(bytes.NewReader(raw), 256<<10) }

func TestStricter_ThanNetHTTP(t *testing.T) {
	for _, tt := range stricter {
		if _, err := http.ReadRequest(reader([]byte(tt.raw))); err != nil {
			t.Errorf("%s: %.80q: net/http refuses it, too: %v", tt.rule, tt.raw, err)
		}
		if _, err := new(Request).Parse([]byte(tt.raw), nil); err != error(tt.want) {
			t.Errorf("%s: %.80q: %v, want %v", tt.rule, tt.raw, err, tt.want)
		}
	}
	for _, tt := range stricterResponses {
		if _, err := http.ReadResponse(reader([]byte(tt.raw)), nil); err != nil {
			t.Errorf("%s: %.80q: net/http refuses it, too: %v", tt.rule, tt.raw, err)
		}
		if _, err := new(Response).Parse([]byte(tt.raw), MethodGet, nil); err != error(tt.want) {
			t.Errorf("%s: %.80q: %v, want %v", tt.rule, tt.raw, err, tt.want)
		}
	}
	for _, tt := range stricterBodies {
		if _, err := io.ReadAll(httputil.NewChunkedReader(reader([]byte(tt.raw)))); err != nil {
			t.Errorf("%s: %.80q: net/http refuses it, too: %v", tt.rule, tt.raw, err)
		}
		if got := feedChunked(t, tt.raw, nil); got.err != error(tt.want) {
			t.Errorf("%s: %.80q: %v, want %v", tt.rule, tt.raw, got.err, tt.want)
		}
	}
}

// headerOf makes of our fields what net/http would.
func headerOf(s *Section, buf []byte, omit ...string) http.Header {
	h := make(http.Header)
	for _, f := range s.Fields {
		key := textproto.CanonicalMIMEHeaderKey(string(f.Name.In(buf)))
		if !slices.Contains(omit, key) {
			h[key] = append(h[key], string(f.Value.In(buf)))
		}
	}
	return h
}

// checkHeader compares the fields, but for those which net/http takes out or
// puts in: we keep Connection and leave Pragma alone.
func checkHeader(t *testing.T, got, want http.Header, omit ...string) {
	t.Helper()
	for _, name := range append(omit, "Cache-Control") {
		got.Del(name)
		want.Del(name)
	}
	if !maps.EqualFunc(got, want, slices.Equal[[]string]) {
		t.Fatalf("fields\n got %q\nnet/http has %q", got, want)
	}
}

// checkSection holds every field of an accepted section to what is promised of it.
func checkSection(t *testing.T, s *Section, buf []byte) {
	t.Helper()
	for _, f := range s.Fields {
		name, value := f.Name.In(buf), f.Value.In(buf)
		if !validToken(name) || slowHasControl(value) || !bytes.Equal(trim(value), value) {
			t.Fatalf("field %q: %q", name, value)
		}
		if (f.ID == Underscored) != bytes.Contains(name, []byte("_")) || f.ID.HopByHop() && !f.Hop {
			t.Fatalf("field %q is %v, hop %v", name, f.ID, f.Hop)
		}
		if f.ID > Underscored && !strings.EqualFold(f.ID.String(), string(name)) || f.ID != UnknownField && !s.Has(f.ID) {
			t.Fatalf("field %q is taken for %v", name, f.ID)
		}
	}
}

func FuzzRequest(f *testing.F) {
	for _, tt := range slices.Concat(refused, smuggling) {
		f.Add([]byte(tt.raw))
	}
	for _, tt := range stricter {
		if len(tt.raw) < 4<<10 {
			f.Add([]byte(tt.raw))
		}
	}
	f.Add(requestHead)
	f.Add([]byte("\r\n" + get("Connection: Upgrade, x-a", "Upgrade: websocket", "X-A: b", "TE: trailers")))
	f.Add([]byte("OPTIONS https://[::1]:80?x HTTP/1.1\r\nHost: [::1]:80\r\nPragma: no-cache\r\n\r\n"))
	f.Add([]byte(post("Transfer-Encoding: chunked", "Trailer: x") + "1\r\na\r\n0\r\nx: y\r\n\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, n, err := feedRequest(t, string(raw), nil)
		if err != nil {
			if s := statusOf(err); err != ErrIncomplete && s != 400 && s != 401 && s != 414 && s != 417 && s != 431 && s != 501 && s != 505 {
				t.Fatalf("%v has the status %d", err, s)
			}
			return
		}
		checkSection(t, &r.Section, raw)
		head := bytes.TrimPrefix(raw, []byte(CRLF))
		ref, err := http.ReadRequest(reader(head))
		if err != nil {
			t.Fatalf("net/http refuses %q: %v", raw[:n], err)
		}
		get := func(s Span) string { return string(s.In(raw[:n])) }
		if get(r.MethodName) != ref.Method || r.Method != MethodOther && r.Method.String() != ref.Method || get(r.Target) != ref.RequestURI || get(r.Host) != ref.Host && get(r.Authority) != ref.Host {
			t.Fatalf("%q %q %q, net/http: %q %q %q", get(r.MethodName), get(r.Target), get(r.Host), ref.Method, ref.RequestURI, ref.Host)
		}
		if r.Form != AsteriskForm {
			path, err := url.PathUnescape(get(r.Path))
			if err != nil || path != ref.URL.Path || get(r.Query) != ref.URL.RawQuery || r.HasQuery != (ref.URL.RawQuery != "" || ref.URL.ForceQuery) {
				t.Fatalf("path %q, query %q, net/http: %q, %q", get(r.Path), get(r.Query), ref.URL.Path, ref.URL.RawQuery)
			}
		}
		if ref.Close != !r.KeepAlive || ref.ProtoMinor != int(r.Version) {
			t.Fatalf("%q: keep-alive %v in 1.%d, net/http: close %v in 1.%d", raw[:n], r.KeepAlive, r.Version, ref.Close, ref.ProtoMinor)
		}
		chunked := len(ref.TransferEncoding) == 1
		length := max(r.ContentLength, 0)
		if (r.Body == BodyChunked) != chunked || !chunked && length != ref.ContentLength || (r.Body == BodyLength) != (r.ContentLength >= 0) || r.Body == BodyUntilClose {
			t.Fatalf("%q: body %d of %d bytes, net/http: %v of %d", raw[:n], r.Body, r.ContentLength, ref.TransferEncoding, ref.ContentLength)
		}
		omit := []string{"Host", "Transfer-Encoding"}
		if chunked {
			omit = append(omit, "Trailer")
		}
		checkHeader(t, headerOf(&r.Section, raw, omit...), ref.Header, omit...)

		// Written anew it must mean the same.
		var h Head
		h.Request(r.MethodName.In(raw), r.AppendTarget(nil, raw))
		for _, fl := range r.Fields {
			h.Copy(fl, raw)
		}
		h.End()
		var again Request
		if _, err := again.Parse(h.Buf, &Limits{RequestLine: 1 << 20, Head: 1 << 20}); h.Err != nil || err != nil && err != error(errHostMissing) && (r.Version == HTTP11 || statusOf(err) == 0) {
			t.Fatalf("%q written anew is %q: %v, %v", raw[:n], h.Buf, h.Err, err)
		}
	})
}

func FuzzResponse(f *testing.F) {
	for _, tt := range refusedResponses {
		f.Add([]byte(tt.raw), false)
	}
	for _, tt := range stricterResponses {
		f.Add([]byte(tt.raw), true)
	}
	f.Add(responseHead, false)
	f.Add([]byte(answer("200", "Content-Length: 5", "Connection: x", "X: y")), true)
	f.Add([]byte("HTTP/1.0 304 x\r\nConnection: keep-alive\r\n\r\n"), false)
	f.Add([]byte(answer("101 S", "Connection: upgrade", "Upgrade: a/b")), false)
	f.Fuzz(func(t *testing.T, raw []byte, isHead bool) {
		method := MethodGet
		if isHead {
			method = MethodHead
		}
		r, n, err := feedResponse(t, string(raw), method, nil)
		if err != nil {
			if err != ErrIncomplete && statusOf(err) == 0 {
				t.Fatal(err)
			}
			return
		}
		checkSection(t, &r.Section, raw)
		ref, err := http.ReadResponse(reader(raw), &http.Request{Method: method.String()})
		if err != nil {
			t.Fatalf("net/http refuses %q: %v", raw[:n], err)
		}
		if r.Status != ref.StatusCode || int(r.Version) != ref.ProtoMinor {
			t.Fatalf("%d in 1.%d, net/http: %d in 1.%d", r.Status, r.Version, ref.StatusCode, ref.ProtoMinor)
		}
		// net/http does not know that 101 ends HTTP.
		if !r.Upgraded && ref.Close != !r.KeepAlive {
			t.Fatalf("%q: keep-alive %v, net/http: close %v", raw[:n], r.KeepAlive, ref.Close)
		}
		switch r.Body {
		case BodyNone:
			if ref.Body != http.NoBody && isHead {
				t.Fatalf("%q: no body, net/http: %d", raw[:n], ref.ContentLength)
			}
			if isHead && ref.ContentLength != r.ContentLength {
				t.Fatalf("%q: length %d, net/http: %d", raw[:n], r.ContentLength, ref.ContentLength)
			}
		case BodyLength:
			if ref.ContentLength != r.ContentLength {
				t.Fatalf("%q: length %d, net/http: %d", raw[:n], r.ContentLength, ref.ContentLength)
			}
		case BodyChunked:
			if len(ref.TransferEncoding) != 1 {
				t.Fatalf("%q: chunked, net/http: %v", raw[:n], ref.TransferEncoding)
			}
		case BodyUntilClose:
			if ref.ContentLength != -1 || !ref.Close {
				t.Fatalf("%q: until close, net/http: %d, %v", raw[:n], ref.ContentLength, ref.Close)
			}
		}
		checkHeader(t, headerOf(&r.Section, raw), ref.Header, "Transfer-Encoding", "Trailer", "Connection")
	})
}

func FuzzChunked(f *testing.F) {
	for _, raw := range []string{
		"0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n", "5;a=\"\\\"b\" ;c\r\nhello\r\n00\r\nX: y\r\n\r\n", "ffffffffffffffff\r\n", "0x5\r\nhello\r\n", "5 \r\nhello\r\n0\r\n\r\n",
		"5\nhello\n0\n\n", "2;\nxx\r\n0\r\n\r\n", "1\r\na\r\n1\r\nb\r\nA\r\n0123456789\r\n0\r\nX: y\r\nZ: z\r\n\r\n", "0\r\nHost: a\r\n\r\n", "0\r\nX: y\r\n z\r\n\r\n", "+1\r\na\r\n0\r\n\r\n",
	} {
		f.Add([]byte(raw))
	}
	for _, tt := range stricterBodies {
		f.Add([]byte(tt.raw))
	}
	f.Fuzz(func(t *testing.T, raw []byte) { diffBody(t, raw) })
}

// FuzzTrailers looks at what stands behind the last chunk.
func FuzzTrailers(f *testing.F) {
	for _, s := range []string{"\r\n", "X: y\r\n\r\n", "X: y\r\nX: z\r\netag:\r\n\r\nmore", "Host: a\r\n\r\n", "X : y\r\n\r\n", " X: y\r\n\r\n", "X_Y: \xff\r\n\r\n", "\n", "X: y\n\n", "content-length: 1\r\n\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) { diffBody(t, append([]byte("0\r\n"), raw...)) })
}

// diffBody decodes a body that is chunked, also with net/http.
func diffBody(t *testing.T, raw []byte) {
	got := feedChunked(t, string(raw), nil)
	if !got.done {
		return
	}
	data, err := io.ReadAll(httputil.NewChunkedReader(reader(raw)))
	if err != nil || !bytes.Equal(data, got.data) {
		t.Fatalf("%q:\n got %q\nnet/http has %q, %v", raw, got.data, data, err)
	}
	// The trailers, and where the body ends, as its server would see it.
	const next = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
	stream := append([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"), raw[:got.n]...)
	br := reader(append(stream, next...))
	ref, err := http.ReadRequest(br)
	if err != nil {
		t.Fatal(err)
	}
	if data, err = io.ReadAll(ref.Body); err != nil || !bytes.Equal(data, got.data) {
		t.Fatalf("%q:\n got %q\nnet/http has %q, %v", raw, got.data, data, err)
	}
	trailer := Section{Fields: got.fields}
	if h := headerOf(&trailer, got.trailer); !maps.EqualFunc(h, ref.Trailer, slices.Equal[[]string]) {
		t.Fatalf("%q: trailers %q, net/http has %q", raw, h, ref.Trailer)
	}
	for _, f := range got.fields {
		if !f.ID.TrailerAllowed() {
			t.Fatalf("%q: trailer %v", raw, f.ID)
		}
	}
	if rest, err := io.ReadAll(br); err != nil || string(rest) != next {
		t.Fatalf("%q: net/http leaves %q, %v", raw, rest, err)
	}
	// Without extras the bytes may be passed on as they are: a writer that knows the sizes would have made the same.
	if !got.extras {
		var again []byte
		for rest, data := raw[:got.n], got.data; len(data) > 0; {
			size, err := strconv.ParseUint(string(rest[:bytes.IndexByte(rest, '\r')]), 16, 60)
			if err != nil {
				t.Fatalf("%q is said to hold nothing but data: %v", raw, err)
			}
			chunk := append(AppendChunkHeader(nil, int(size)), data[:size]...)
			again = append(append(again, chunk...), CRLF...)
			rest, data = rest[len(chunk)+2:], data[size:]
		}
		if again = append(again, LastChunk...); !bytes.EqualFold(again, raw[:got.n]) {
			t.Fatalf("%q is said to hold nothing but data, which would be %q", raw, again)
		}
	}
}
