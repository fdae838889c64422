package h1

import (
	"fmt"
	"strings"
	"testing"
)

// answer makes a response of the status line and fields given.
func answer(status string, lines ...string) string {
	return "HTTP/1.1 " + status + "\r\n" + strings.Join(append(lines, "", ""), "\r\n")
}

var refusedResponses = []struct {
	name, raw string
	want      *Error
}{
	// RFC 9112 section 4: the status line.
	{"two digits", answer("20 OK"), errStatusLine},
	{"four digits", answer("2000 OK"), errStatusLine},
	{"no code", answer(""), errStatusLine},
	{"no code, with a phrase", answer("OK"), errStatusLine},
	{"letters for a code", answer("abc OK"), errStatusLine},
	{"plus in the code", answer("+20 OK"), errStatusLine},
	{"code with a point", answer("200.1 OK"), errStatusLine},
	{"two spaces", answer(" 200 OK"), errStatusLine},
	{"tab for a space", "HTTP/1.1\t200 OK\r\n\r\n", errStatusLine},
	{"tab behind the code", answer("200\tOK"), errStatusLine},
	{"code below 100", answer("099 Low"), errStatusCode},
	{"code 000", answer("000 Nil"), errStatusCode},
	{"code above 599", answer("600 High"), errStatusCode},
	{"code 999", answer("999 High"), errStatusCode},
	{"NUL in the phrase", answer("200 O\x00K"), errStatusLine},
	{"CR in the phrase", answer("200 O\rK"), errStatusLine},
	{"HTTP/2.0", "HTTP/2.0 200 OK\r\n\r\n", errStatusVersion},
	{"HTTP/1.2", "HTTP/1.2 200 OK\r\n\r\n", errStatusVersion},
	{"HTTP/0.9", "HTTP/0.9 200 OK\r\n\r\n", errStatusVersion},
	{"http in lower case", "http/1.1 200 OK\r\n\r\n", errStatusLine},
	{"ICY", "ICY 200 OK and more\r\n\r\n", errStatusLine},
	{"SSH", "SSH-2.0-OpenSSH_9.6\r\n", errStatusLine},
	{"HTML alone", "<html><body>502</body></html>\r\n", errStatusLine},
	{"a request", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", errStatusLine},
	{"empty line before", "\r\n" + answer("200 OK"), errStatusLine},
	{"surplus bytes before", "xx" + answer("200 OK"), errStatusLine},
	{"bare LF", "HTTP/1.1 200 OK\n\n", errBareLF},
	{"LF alone", "\n", errBareLF},
	{"bare LF behind a field", "HTTP/1.1 200 OK\r\nX: y\n\r\n", errBareLF},

	// RFC 9112 section 5: the same field lines as in requests.
	{"obs-fold", answer("200 OK", "X: a", " b"), errObsFold},
	{"space before the colon", answer("200 OK", "Content-Length : 5"), errSpaceColon},
	{"no colon", answer("200 OK", "X"), errNoColon},
	{"name that is no token", answer("200 OK", "X{}: y"), errFieldName},
	{"control byte", answer("200 OK", "X: \x01"), errControl},
	{"bare CR", answer("200 OK", "X: a\rSet-Cookie: b"), errBareCR},
	{"Content-Type twice", answer("200 OK", "Content-Type: text/html", "Content-Type: application/json"), errContentTypeAgain},
	{"Connection is no list of tokens", answer("200 OK", "Connection: a b"), errOption},
	{"Connection names Content-Type", answer("200 OK", "Connection: Content-Type"), errOptionEndToEnd},
	{"Trailer announces Set-Cookie", answer("200 OK", "Transfer-Encoding: chunked", "Trailer: Set-Cookie"), errTrailerField},

	// RFC 9112 sections 6.1 to 6.3: framing.
	{"length and coding", answer("200 OK", "Content-Length: 5", "Transfer-Encoding: chunked"), errLengthAndCoding},
	{"two lengths", answer("200 OK", "Content-Length: 5", "Content-Length: 5"), errLengthRepeated},
	{"list of lengths", answer("200 OK", "Content-Length: 5, 5"), errLength},
	{"negative length", answer("200 OK", "Content-Length: -1"), errLength},
	{"length for HEAD and 304, too", answer("304 Not Modified", "Content-Length: x"), errLength},
	{"unknown coding", answer("200 OK", "Transfer-Encoding: gzip, chunked"), errCodingUnknown},
	{"identity", answer("200 OK", "Transfer-Encoding: identity"), errCodingUnknown},
	{"chunked twice", answer("200 OK", "Transfer-Encoding: chunked, chunked"), errCoding},
	{"two codings", answer("200 OK", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), errCodingRepeated},
	{"coding in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", errCodingIn10},
	{"coding with 204", answer("204 No Content", "Transfer-Encoding: chunked"), errBodyNotAllowed},
	{"length with 204", answer("204 No Content", "Content-Length: 5"), errBodyNotAllowed},
	{"coding with 100", answer("100 Continue", "Transfer-Encoding: chunked"), errBodyNotAllowed},
	{"length with 103", answer("103 Early Hints", "Content-Length: 1"), errBodyNotAllowed},
	{"length with 101", answer("101 Switching Protocols", "Connection: upgrade", "Upgrade: websocket", "Content-Length: 1"), errBodyNotAllowed},

	// RFC 9110 sections 15.2 and 7.8: interim responses and upgrades.
	{"interim in HTTP/1.0", "HTTP/1.0 100 Continue\r\n\r\n", errInterimIn10},
	{"101 without Upgrade", answer("101 Switching Protocols", "Connection: upgrade"), errSwitching},
	{"101 without Connection", answer("101 Switching Protocols", "Upgrade: websocket"), errSwitching},
	{"101 to two", answer("101 Switching Protocols", "Connection: upgrade", "Upgrade: websocket", "Upgrade: x"), errUpgradeAgain},
	{"101 to nonsense", answer("101 Switching Protocols", "Connection: upgrade", "Upgrade: a b"), errUpgrade},
}

func TestResponse_Refuses(t *testing.T) {
	for _, tt := range refusedResponses {
		if _, _, err := feedResponse(t, tt.raw, MethodGet, nil); err != error(tt.want) {
			t.Errorf("%s: %q: %v, want %v", tt.name, tt.raw, err, tt.want)
		}
		if _, _, err := feedResponse(t, tt.raw+answer("200 OK"), MethodGet, nil); err == nil {
			t.Errorf("%s: accepted with more behind it", tt.name)
		}
		if tt.want.Reason == "" || !strings.HasPrefix(tt.want.Section, "RFC ") {
			t.Errorf("%v does not say where it stands", tt.want)
		}
	}
}

func describeResponse(r *Response, raw string) string {
	s := fmt.Sprintf("%d %q", r.Status, r.Reason.In([]byte(raw)))
	switch r.Body {
	case BodyLength:
		s += " length"
	case BodyChunked:
		s += " chunked"
	case BodyUntilClose:
		s += " until close"
	}
	if r.ContentLength >= 0 {
		s += fmt.Sprintf(" %d", r.ContentLength)
	}
	for _, f := range []struct {
		set  bool
		name string
	}{{r.Version == HTTP10, "1.0"}, {!r.KeepAlive, "close"}, {r.Upgraded, "upgraded"}, {r.Interim(), "interim"}} {
		if f.set {
			s += " " + f.name
		}
	}
	for _, f := range r.Fields {
		if f.Hop {
			s += fmt.Sprintf(" hop:%s", f.Name.In([]byte(raw)))
		}
	}
	return s
}

func TestResponse_Accepts(t *testing.T) {
	for _, tt := range []struct {
		raw    string
		method Method
		want   string
	}{
		{answer("200 OK", "Content-Length: 5"), MethodGet, `200 "OK" length 5`},
		{answer("200 OK", "Content-Length: 0"), MethodPost, `200 "OK" length 0`},
		{answer("200 OK", "Transfer-Encoding: Chunked"), MethodPost, `200 "OK" chunked hop:Transfer-Encoding`},
		{answer("200 OK"), MethodGet, `200 "OK" until close close`},
		{answer("200 OK", "Connection: close", "Content-Length: 5"), MethodGet, `200 "OK" length 5 close hop:Connection`},
		{answer("200 OK", "Connection: keep-alive, X-Hop", "Keep-Alive: timeout=2", "X-Hop: 1", "Content-Length: 1"), MethodGet, `200 "OK" length 1 hop:Connection hop:Keep-Alive hop:X-Hop`},
		{"HTTP/1.0 200 OK\r\n\r\n", MethodGet, `200 "OK" until close 1.0 close`},
		{"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", MethodGet, `200 "OK" length 5 1.0 close`},
		{"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: Keep-Alive\r\n\r\n", MethodGet, `200 "OK" length 5 1.0 hop:Connection`},
		{"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n", MethodGet, `200 "OK" until close 1.0 close hop:Connection`},
		{answer("200 "), MethodHead, `200 ""`},
		{answer("200"), MethodHead, `200 ""`},
		{answer("200 Völlig in\tOrdnung "), MethodHead, `200 "Völlig in\tOrdnung "`},
		{answer("200 OK", "Content-Length: 5"), MethodHead, `200 "OK" 5`},
		{answer("200 OK", "Transfer-Encoding: chunked"), MethodHead, `200 "OK" hop:Transfer-Encoding`},
		{answer("304 Not Modified", "Content-Length: 5"), MethodGet, `304 "Not Modified" 5`},
		{answer("304 Not Modified", "Transfer-Encoding: chunked"), MethodGet, `304 "Not Modified" hop:Transfer-Encoding`},
		{answer("204 No Content"), MethodDelete, `204 "No Content"`},
		{answer("204 No Content", "Content-Length: 0"), MethodDelete, `204 "No Content" 0`},
		{answer("205 Reset Content", "Content-Length: 0"), MethodGet, `205 "Reset Content" length 0`},
		{answer("100 Continue"), MethodPost, `100 "Continue" interim`},
		{answer("103 Early Hints", "Link: </x>"), MethodGet, `103 "Early Hints" interim`},
		{answer("101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket"), MethodGet, `101 "Switching Protocols" close upgraded hop:Connection hop:Upgrade`},
		{answer("426 Upgrade Required", "Connection: upgrade", "Upgrade: websocket", "Content-Length: 0"), MethodGet, `426 "Upgrade Required" length 0 hop:Connection hop:Upgrade`},
		{answer("599 Odd", "Content-Length: 0"), MethodGet, `599 "Odd" length 0`},
		{answer("200 OK", "Authorization: a", "Authorization: b", "Host: x", "Host: y", "Content-Length: 0"), MethodGet, `200 "OK" length 0`},
	} {
		r, n, err := feedResponse(t, tt.raw+"HTTP", tt.method, nil)
		if err != nil || n != len(tt.raw) {
			t.Errorf("%q: %d of %d bytes, %v", tt.raw, n, len(tt.raw), err)
			continue
		}
		if got := describeResponse(r, tt.raw); got != tt.want {
			t.Errorf("%q for %v:\n got %s\nwant %s", tt.raw, tt.method, got, tt.want)
		}
	}
}

func TestResponse_InterimThenFinal(t *testing.T) {
	var r Response
	buf := []byte(answer("100 Continue") + answer("103 Early Hints", "Link: x") + answer("200 OK", "Content-Length: 2") + "ok")
	for _, want := range []int{100, 103, 200} {
		r.Reset()
		n, err := r.Parse(buf, MethodPost, nil)
		if err != nil || r.Status != want || r.Interim() != (want < 200) {
			t.Fatal(want, r.Status, err)
		}
		buf = buf[n:]
	}
	if string(buf) != "ok" || r.ContentLength != 2 || len(r.Fields) != 1 {
		t.Errorf("%q is left behind %+v", buf, r)
	}
}

func TestResponse_Limits(t *testing.T) {
	lim := &Limits{RequestLine: 30, Head: 60, Fields: 2}
	for _, tt := range []struct {
		raw  string
		want error
	}{
		{"HTTP/1.1 200 " + strings.Repeat("x", 15) + "\r\n\r\n", nil},
		{"HTTP/1.1 200 " + strings.Repeat("x", 16) + "\r\n\r\n", errStatusTooLong},
		{"HTTP/1.1 200 " + strings.Repeat("x", 100), errStatusTooLong},
		{answer("200 OK", "A: b", "C: d"), nil},
		{answer("200 OK", "A: b", "C: d", "E: f"), errTooManyFields},
		{answer("200 OK", "A: "+strings.Repeat("x", 36)), nil},
		{answer("200 OK", "A: "+strings.Repeat("x", 37)), errHeadTooLarge},
	} {
		if _, _, err := feedResponse(t, tt.raw, MethodGet, lim); err != tt.want && (tt.want == nil || err != tt.want.(*Error)) {
			t.Errorf("%q: %v, want %v", tt.raw, err, tt.want)
		}
	}
	if _, _, err := feedResponse(t, strings.Repeat("H", 100), MethodGet, &Limits{RequestLine: 90, Head: 50}); err != error(errHeadTooLarge) {
		t.Error(err)
	}
}
