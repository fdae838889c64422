package h1

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

const hostLine = "Host: a\r\n"

// get makes a request whose fields, behind a good Host, are the lines given.
func get(lines ...string) string {
	return "GET /v1/info HTTP/1.1\r\n" + hostLine + strings.Join(append(lines, "", ""), "\r\n")
}

func post(lines ...string) string {
	return "POST /v1/info HTTP/1.1\r\n" + hostLine + strings.Join(append(lines, "", ""), "\r\n")
}

// refused holds every rule for requests. The section of the RFC is in the error.
var refused = []struct {
	name, raw string
	want      *Error
}{
	// RFC 9112 section 2.2: lines.
	{"bare LF behind the request line", "GET / HTTP/1.1\nHost: a\r\n\r\n", errBareLF},
	{"bare LF behind a field", "GET / HTTP/1.1\r\nHost: a\n\r\n", errBareLF},
	{"bare LF as the empty line", "GET / HTTP/1.1\r\nHost: a\r\n\n", errBareLF},
	{"bare LF before the request", "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", errBareLF},
	{"bare LF twice, as if lines were unix's", "GET / HTTP/1.1\nHost: a\n\n", errBareLF},
	{"bare LF in a value", get("X: a\nY: b"), errBareLF},
	{"bare CR before the request", "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", errBareCR},
	{"bare CR in the request line", "GET / HTTP/1.1\rX\r\nHost: a\r\n\r\n", errRequestLine},
	{"bare CR at the end of the request line", "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", errRequestLine},
	{"bare CR in a value", get("X: a\rY: b"), errBareCR},
	{"bare CR at the end of a value", get("X: a\r"), errBareCR},
	{"bare CR in a name", get("X\rY: b"), errBareCR},
	{"bare CR as a line", get("\r"), errBareCR},
	{"two empty lines before the request", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", errEmptyLines},
	{"white space before the request", " GET / HTTP/1.1\r\nHost: a\r\n\r\n", errNotHTTP},
	{"TLS on the wrong port", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", errNotHTTP},
	{"PROXY protocol, version 2", "\r\n\r\n\x00\r\nQUIT\n", errEmptyLines},

	// RFC 9112 section 3: the request line.
	{"HTTP/0.9", "GET /\r\n", errRequestLine},
	{"empty target", "GET  HTTP/1.1\r\nHost: a\r\n\r\n", errRequestLine},
	{"no target", "GET HTTP/1.1\r\nHost: a\r\n\r\n", errRequestLine},
	{"two spaces before the target", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", errTarget},
	{"two spaces before the version", "GET /  HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"tab before the target", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", errRequestLine},
	{"tab before the version", "GET /\tHTTP/1.1\r\nHost: a\r\n\r\n", errRequestLine},
	{"space at the end", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", errRequestLine},
	{"space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"a second version", "GET / HTTP/1.1 HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"method that is no token", "GE(T / HTTP/1.1\r\nHost: a\r\n\r\n", errRequestLine},
	{"method in quotes", "\"GET\" / HTTP/1.1\r\nHost: a\r\n\r\n", errNotHTTP},
	{"method with NUL", "GE\x00T / HTTP/1.1\r\nHost: a\r\n\r\n", errRequestLine},
	{"method too long", strings.Repeat("M", 33) + " / HTTP/1.1\r\nHost: a\r\n\r\n", errMethodTooLong},
	{"CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", errMethodRefused},
	{"CONNECT with a path", "CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", errMethodRefused},
	{"TRACE", "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", errMethodRefused},
	{"a response", "HTTP/1.1 200 OK\r\n\r\n", errRequestLine},

	// RFC 9112 section 2.3: the version.
	{"preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", errVersion},
	{"HTTP/2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", errVersion},
	{"HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", errVersion},
	{"HTTP/0.9 by name", "GET / HTTP/0.9\r\nHost: a\r\n\r\n", errVersion},
	{"HTTP/1.10", "GET / HTTP/1.10\r\nHost: a\r\n\r\n", errRequestLine},
	{"HTTP/01.1", "GET / HTTP/01.1\r\nHost: a\r\n\r\n", errRequestLine},
	{"HTTP/1", "GET / HTTP/1\r\nHost: a\r\n\r\n", errRequestLine},
	{"HTTP/1,1", "GET / HTTP/1,1\r\nHost: a\r\n\r\n", errRequestLine},
	{"http/1.1", "GET / http/1.1\r\nHost: a\r\n\r\n", errRequestLine},
	{"HTTPS/1.1", "GET / HTTPS/1.1\r\nHost: a\r\n\r\n", errRequestLine},

	// RFC 9112 section 3.2: the target.
	{"fragment", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", errTargetFragment},
	{"fragment behind the query", "GET /a?b#c HTTP/1.1\r\nHost: a\r\n\r\n", errTargetFragment},
	{"fragment in absolute form", "GET http://a#b HTTP/1.1\r\nHost: a\r\n\r\n", errTargetFragment},
	{"user", "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", errTargetUser},
	{"user and password", "GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n", errTargetUser},
	{"asterisk with GET", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", errAsterisk},
	{"asterisk and more", "OPTIONS *a HTTP/1.1\r\nHost: a\r\n\r\n", errTarget},
	{"no slash", "GET a HTTP/1.1\r\nHost: a\r\n\r\n", errTarget},
	{"authority form with GET", "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", errTargetScheme},
	{"query alone", "GET ?a HTTP/1.1\r\nHost: a\r\n\r\n", errTarget},
	{"ftp", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", errTargetScheme},
	{"file", "GET file:///etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n", errTargetScheme},
	{"no authority", "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", errTargetHost},
	{"scheme alone", "GET http:// HTTP/1.1\r\nHost: a\r\n\r\n", errTargetScheme},
	{"one slash", "GET http:/a/ HTTP/1.1\r\nHost: a\r\n\r\n", errTargetScheme},
	{"backslash in the authority", "GET http://a\\b/ HTTP/1.1\r\nHost: a\r\n\r\n", errTargetHost},
	{"NUL in the target", "GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"DEL in the target", "GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"UTF-8 in the path", "GET /ü HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"UTF-8 in the query", "GET /?ü HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"0xFF in the query", "GET /?\xff HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"tab in the query", "GET /?a\tb HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"backslash in the path", "GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"quote in the path", "GET /\" HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"brackets in the path", "GET /[a] HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"brace in the path", "GET /{a} HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"bad escape", "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"short escape", "GET /a%4 HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"percent alone", "GET /a% HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},
	{"escape cut by the query", "GET /a%4?1 HTTP/1.1\r\nHost: a\r\n\r\n", errTargetByte},

	// RFC 9112 section 3.2 and RFC 9110 section 7.2: Host.
	{"no Host", "GET / HTTP/1.1\r\n\r\n", errHostMissing},
	{"no Host, absolute form", "GET http://a/ HTTP/1.1\r\n\r\n", errHostMissing},
	{"Host twice", get("Host: a"), errHostRepeated},
	{"Host twice, different", get("Host: b"), errHostRepeated},
	{"Host twice, in HTTP/1.0", "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", errHostRepeated},
	{"Host twice, other case", get("hOST: b"), errHostRepeated},
	{"Host empty", "GET / HTTP/1.1\r\nHost:\r\n\r\n", errHost},
	{"Host of white space", "GET / HTTP/1.1\r\nHost: \t \r\n\r\n", errHost},
	{"Host empty in HTTP/1.0", "GET / HTTP/1.0\r\nHost:\r\n\r\n", errHost},
	{"Host is not the authority", "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", errHostDiffers},
	{"Host has the port, the authority has not", "GET http://a/ HTTP/1.1\r\nHost: a:80\r\n\r\n", errHostDiffers},
	{"space before the colon of Host", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", errSpaceColon},
	{"Host behind white space", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", errObsFold},
	{"Host folded", "GET / HTTP/1.1\r\nHost:\r\n a\r\n\r\n", errObsFold},

	// RFC 9112 section 5: field lines.
	{"obs-fold with a space", get("X: a", " b"), errObsFold},
	{"obs-fold with a tab", get("X: a", "\tb"), errObsFold},
	{"obs-fold of nothing", get("X: a", " "), errObsFold},
	{"obs-fold before the first field", "GET / HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n", errObsFold},
	{"no colon", get("X"), errNoColon},
	{"no colon, with a space", get("X y"), errNoColon},
	{"no name", get(": x"), errFieldName},
	{"space before the colon", get("X : a"), errSpaceColon},
	{"tab before the colon", get("X\t: a"), errSpaceColon},
	{"space in the name", get("X y: a"), errFieldName},
	{"parenthesis in the name", get("X(y): a"), errFieldName},
	{"slash in the name", get("X/y: a"), errFieldName},
	{"at sign in the name", get("@: a"), errFieldName},
	{"NUL in the name", get("X\x00: a"), errFieldName},
	{"DEL in the name", get("X\x7f: a"), errFieldName},
	{"vertical tab before the name", get("\x0bX: a"), errFieldName},
	{"UTF-8 in the name", get("Ü: a"), errFieldName},
	{"NUL in a value", get("X: a\x00b"), errControl},
	{"NUL at the end of a long value", get("X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\x00"), errControl},
	{"vertical tab in a value", get("X: \x0ba"), errControl},
	{"form feed in a value", get("X: a\x0c"), errControl},
	{"escape in a value", get("X: \x1b[2J"), errControl},
	{"backspace in a value", get("X: aaaaaaa\x08"), errControl},
	{"DEL in a value", get("X: aaaaaaa\x7f"), errControl},

	// RFC 9110 sections 8.3, 10.1.1, 11.6.2 and 7.8: what there is one of.
	{"Content-Type twice", post("Content-Type: application/json", "Content-Type: text/plain"), errContentTypeAgain},
	{"Authorization twice", get("Authorization: Bearer a", "Authorization: Bearer a"), errAuthorizations},
	{"Authorization twice, other case", get("Authorization: Bearer a", "AUTHORIZATION: Bearer b"), errAuthorizations},
	{"Authorization twice in a request that is bad besides", get("Authorization: Bearer a", "Authorization: Bearer a", "Host: b"), errHostRepeated},
	{"Upgrade twice", get("Connection: upgrade", "Upgrade: websocket", "Upgrade: h2c"), errUpgradeAgain},
	{"Upgrade to nothing", get("Connection: upgrade", "Upgrade:"), errUpgrade},
	{"Upgrade to nonsense", get("Connection: upgrade", "Upgrade: web socket"), errUpgrade},
	{"Upgrade to an empty version", get("Connection: upgrade", "Upgrade: websocket/"), errUpgrade},
	{"Expect something else", post("Content-Length: 1", "Expect: 200-ok"), errExpectation},
	{"Expect nothing", post("Content-Length: 1", "Expect:"), errExpectation},
	{"Expect two things", post("Content-Length: 1", "Expect: 100-continue, x"), errExpectation},
	{"Expect twice", post("Content-Length: 1", "Expect: 100-continue", "Expect: 100-continue"), errExpectation},

	// RFC 9110 section 7.6.1: Connection.
	{"Connection is no list of tokens", get("Connection: keep alive"), errOption},
	{"Connection with parameters", get("Connection: close;q=1"), errOption},
	{"Connection in quotes", get(`Connection: "close"`), errOption},
	{"Connection names Host", get("Connection: close, Host"), errOptionEndToEnd},
	{"Connection names Authorization", get("Connection: authorization"), errOptionEndToEnd},
	{"Connection names Content-Length", post("Content-Length: 1", "Connection: Content-Length"), errOptionEndToEnd},
	{"Connection names X-User-ID", get("X-User-ID: u", "Connection: x-user-id"), errOptionEndToEnd},
	{"Connection names Cookie, in a second line", get("Connection: close", "Connection: Cookie"), errOptionEndToEnd},
	{"Connection with too many options", get("Connection: " + strings.Repeat("a,", 40)), errTooManyOptions},
	{"Connection with too many empty options", get("Connection: " + strings.Repeat(",", 40)), errTooManyOptions},

	// RFC 9110 section 6.5.1: Trailer.
	{"Trailer announces Content-Length", post("Transfer-Encoding: chunked", "Trailer: Content-Length"), errTrailerField},
	{"Trailer announces Host", post("Transfer-Encoding: chunked", "Trailer: X-Sum, Host"), errTrailerField},
	{"Trailer announces nonsense", post("Transfer-Encoding: chunked", "Trailer: a b"), errTrailerField},
}

// smuggling holds the requests that have been used against pairs of servers
// that did not understand them alike: CL.TE, TE.CL, TE.TE, CL.0 and their dress.
var smuggling = []struct {
	name, raw string
	want      *Error
}{
	{"CL.TE", post("Content-Length: 13", "Transfer-Encoding: chunked") + "0\r\n\r\nSMUGGLED", errLengthAndCoding},
	{"TE.CL", post("Transfer-Encoding: chunked", "Content-Length: 3") + "8\r\nSMUGGLED\r\n0\r\n\r\n", errLengthAndCoding},
	{"length of zero and coding", post("Content-Length: 0", "Transfer-Encoding: chunked"), errLengthAndCoding},
	{"nonsense for a length and coding", post("Content-Length: x", "Transfer-Encoding: chunked"), errLengthAndCoding},
	{"length and an unknown coding", post("Content-Length: 5", "Transfer-Encoding: identity"), errLengthAndCoding},
	{"xchunked", post("Transfer-Encoding: xchunked"), errCodingUnknown},
	{"xchunked with length", post("Content-Length: 4", "Transfer-Encoding: xchunked"), errLengthAndCoding},
	{"space before the colon", post("Transfer-Encoding : chunked"), errSpaceColon},
	{"tab before the colon", post("Transfer-Encoding\t: chunked"), errSpaceColon},
	{"space before the colon, with length", post("Content-Length: 4", "Transfer-Encoding : chunked"), errSpaceColon},
	{"vertical tab before the coding", post("Transfer-Encoding: \x0bchunked"), errControl},
	{"form feed behind the coding", post("Transfer-Encoding: chunked\x0c"), errControl},
	{"NUL behind the coding", post("Transfer-Encoding: chunked\x00"), errControl},
	{"CR behind the coding", post("Transfer-Encoding: chunked\r"), errBareCR},
	{"CR before the coding", post("Transfer-Encoding: \rchunked"), errBareCR},
	{"LF before the coding", post("Transfer-Encoding:\nchunked"), errBareLF},
	{"coding folded", post("Transfer-Encoding:", " chunked"), errObsFold},
	{"field folded into the one before", post("X: y", " Transfer-Encoding: chunked"), errObsFold},
	{"hidden behind a bare LF", post("X: y\nTransfer-Encoding: chunked"), errBareLF},
	{"hidden behind a bare CR", post("X: y\rTransfer-Encoding: chunked"), errBareCR},
	{"two codings in two lines", post("Transfer-Encoding: chunked", "Transfer-Encoding: x"), errCodingRepeated},
	{"two codings in two lines, reversed", post("Transfer-Encoding: x", "Transfer-Encoding: chunked"), errCodingRepeated},
	{"chunked in two lines", post("Transfer-Encoding: chunked", "transfer-encoding: chunked"), errCodingRepeated},
	{"chunked twice", post("Transfer-Encoding: chunked, chunked"), errCoding},
	{"chunked, then identity", post("Transfer-Encoding: chunked, identity"), errCodingUnknown},
	{"identity, then chunked", post("Transfer-Encoding: identity, chunked"), errCodingUnknown},
	{"identity", post("Transfer-Encoding: identity"), errCodingUnknown},
	{"gzip, then chunked", post("Transfer-Encoding: gzip, chunked"), errCodingUnknown},
	{"gzip", post("Transfer-Encoding: gzip"), errCodingUnknown},
	{"cow", post("Transfer-Encoding: cow"), errCodingUnknown},
	{"coding with a parameter", post("Transfer-Encoding: chunked;a=b"), errCoding},
	{"coding in quotes", post(`Transfer-Encoding: "chunked"`), errCoding},
	{"coding in single quotes", post(`Transfer-Encoding: 'chunked'`), errCodingUnknown},
	{"comma behind the coding", post("Transfer-Encoding: chunked,"), errCoding},
	{"comma before the coding", post("Transfer-Encoding: ,chunked"), errCoding},
	{"semicolon behind the coding", post("Transfer-Encoding: chunked;"), errCoding},
	{"no coding", post("Transfer-Encoding:"), errCoding},
	{"coding with a space in it", post("Transfer-Encoding: chun ked"), errCoding},
	{"coding with 0xFF", post("Transfer-Encoding: \xffchunked"), errCoding},
	{"coding with the Kelvin sign", post("Transfer-Encoding: chun\u212aed"), errCoding},
	{"chunked behind two colons", post("Transfer-Encoding:: chunked"), errCoding},
	{"coding in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", errCodingIn10},
	{"name in quotes", post(`"Transfer-Encoding": chunked`), errFieldName},
	{"name with a NUL", post("Transfer-Encoding\x00: chunked"), errFieldName},
	{"name behind white space", "POST / HTTP/1.1\r\n Transfer-Encoding: chunked\r\nHost: a\r\n\r\n", errObsFold},

	{"two lengths", post("Content-Length: 5", "Content-Length: 6"), errLengthRepeated},
	{"two lengths that agree", post("Content-Length: 5", "Content-Length: 5"), errLengthRepeated},
	{"two lengths, other case", post("Content-Length: 0", "content-length: 5"), errLengthRepeated},
	{"list of lengths", post("Content-Length: 5, 5"), errLength},
	{"list of different lengths", post("Content-Length: 5,6"), errLength},
	{"length with a plus", post("Content-Length: +5"), errLength},
	{"length with a minus", post("Content-Length: -5"), errLength},
	{"length of minus zero", post("Content-Length: -0"), errLength},
	{"length with a space in it", post("Content-Length: 1 0"), errLength},
	{"length with a tab in it", post("Content-Length: 1\t0"), errLength},
	{"length in hexadecimal", post("Content-Length: 0x5"), errLength},
	{"length in hexadecimal digits", post("Content-Length: a"), errLength},
	{"length with an underscore", post("Content-Length: 1_0"), errLength},
	{"length with a point", post("Content-Length: 5.0"), errLength},
	{"length with an exponent", post("Content-Length: 1e1"), errLength},
	{"length in other digits", post("Content-Length: \u0665"), errLength},
	{"length in quotes", post(`Content-Length: "5"`), errLength},
	{"length with a semicolon", post("Content-Length: 5;"), errLength},
	{"length with a vertical tab", post("Content-Length: \x0b5"), errControl},
	{"no length", post("Content-Length:"), errLength},
	{"length of 2^63", post("Content-Length: 9223372036854775808"), errLength},
	{"length of 2^64", post("Content-Length: 18446744073709551616"), errLength},
	{"length of 2^64 + 5", post("Content-Length: 18446744073709551621"), errLength},
	{"length of many zeros", post("Content-Length: 00000000000000000005"), errLength},
	{"space before the colon of the length", post("Content-Length : 5"), errSpaceColon},
	{"length folded", post("Content-Length:", " 5"), errObsFold},

	{"Host with a user", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", errHost},
	{"Host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", errHost},
	{"Host with a query", "GET / HTTP/1.1\r\nHost: a?b\r\n\r\n", errHost},
	{"Host with a fragment", "GET / HTTP/1.1\r\nHost: a#b\r\n\r\n", errHost},
	{"Host with a backslash", "GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n", errHost},
	{"Host with a scheme", "GET / HTTP/1.1\r\nHost: http://a\r\n\r\n", errHost},
	{"Host is two", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", errHost},
	{"Host is two without a space", "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", errHost},
	{"Host with a space", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", errHost},
	{"Host with a tab", "GET / HTTP/1.1\r\nHost: a\tb\r\n\r\n", errHost},
	{"Host with UTF-8", "GET / HTTP/1.1\r\nHost: ü\r\n\r\n", errHost},
	{"Host percent-encoded", "GET / HTTP/1.1\r\nHost: a%00\r\n\r\n", errHost},
	{"Host with a port that is none", "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", errHost},
	{"Host with the port of an attacker", "GET / HTTP/1.1\r\nHost: a:@evil\r\n\r\n", errHost},
	{"X-Host before a Host behind white space", "GET / HTTP/1.1\r\nX-Host: a\r\n Host: b\r\nHost: a\r\n\r\n", errObsFold},
	{"absolute target for another Host", "GET http://evil/ HTTP/1.1\r\nHost: a\r\n\r\n", errHostDiffers},
	{"authority that is two", "GET http://a,b/ HTTP/1.1\r\nHost: a,b\r\n\r\n", errTargetHost},
}

func TestRequest_Refuses(t *testing.T) {
	for _, tests := range [][]struct {
		name, raw string
		want      *Error
	}{refused, smuggling} {
		for _, tt := range tests {
			if _, _, err := feedRequest(t, tt.raw, nil); err != error(tt.want) {
				t.Errorf("%s: %q: %v, want %v", tt.name, tt.raw, err, tt.want)
			}
			// Whatever follows, be it in the same packet, does not heal it.
			if _, _, err := feedRequest(t, tt.raw+"GET / HTTP/1.1\r\nHost: a\r\n\r\n", nil); err == nil {
				t.Errorf("%s: accepted with more behind it", tt.name)
			}
		}
	}
}

// request is what a Request says, in words that a table can hold.
func describe(r *Request, raw string) string {
	b := []byte(raw)
	s := fmt.Sprintf("%s %s %s?%s host=%s", r.Method, r.MethodName.In(b), r.Path.In(b), r.Query.In(b), r.Host.In(b))
	if !r.HasQuery {
		s = fmt.Sprintf("%s %s %s host=%s", r.Method, r.MethodName.In(b), r.Path.In(b), r.Host.In(b))
	}
	switch r.Body {
	case BodyLength:
		s += fmt.Sprintf(" length=%d", r.ContentLength)
	case BodyChunked:
		s += " chunked"
	}
	for _, f := range []struct {
		set  bool
		name string
	}{
		{r.Version == HTTP10, "1.0"}, {!r.KeepAlive, "close"}, {r.ExpectContinue, "expects"}, {r.WantsUpgrade, "upgrade"}, {r.TakesTrailers, "trailers"},
		{r.DotSegments, "dots"}, {r.Form == AbsoluteForm, "absolute"}, {r.Form == AsteriskForm, "asterisk"}, {r.Secure, "https"},
	} {
		if f.set {
			s += " " + f.name
		}
	}
	for _, f := range r.Fields {
		if f.Hop && !f.ID.HopByHop() {
			s += fmt.Sprintf(" hop:%s", f.Name.In(b))
		}
	}
	return s
}

func TestRequest_Accepts(t *testing.T) {
	for _, tt := range []struct{ raw, want string }{
		{get(), "GET GET /v1/info host=a"},
		{"\r\n" + get(), "GET GET /v1/info host=a"},
		{"GET /a/b?c=d&e HTTP/1.1\r\nhost:a.b-c_d~e:8082\r\n\r\n", "GET GET /a/b?c=d&e host=a.b-c_d~e:8082"},
		{"GET /? HTTP/1.1\r\nHost: a\r\n\r\n", "GET GET /? host=a"},
		{"GET /a?b?c HTTP/1.1\r\nHost: a\r\n\r\n", "GET GET /a?b?c host=a"},
		{"GET //a//b HTTP/1.1\r\nHost: a\r\n\r\n", "GET GET //a//b host=a"},
		{"GET /%2F%c3%bC HTTP/1.1\r\nHost: a\r\n\r\n", "GET GET /%2F%c3%bC host=a"},
		{"GET /-._~!$&'()*+,;=:@ HTTP/1.1\r\nHost: a\r\n\r\n", "GET GET /-._~!$&'()*+,;=:@ host=a"},
		{"GET /?%zz|{}[]^`\"<>\\ HTTP/1.1\r\nHost: a\r\n\r\n", "GET GET /?%zz|{}[]^`\"<>\\ host=a"},
		{"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS OPTIONS  host=a asterisk"},
		{"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", "GET GET  host=a absolute"},
		{"GET HTTP://A:80/x?y HTTP/1.1\r\nHost: a:80\r\n\r\n", "GET GET /x?y host=a:80 absolute"},
		{"GET https://[::1]:443?y HTTP/1.1\r\nHost: [::1]:443\r\n\r\n", "GET GET ?y host=[::1]:443 absolute https"},
		{"GET http://b/ HTTP/1.0\r\n\r\n", "GET GET / host=b 1.0 close absolute"},
		{"GET / HTTP/1.0\r\n\r\n", "GET GET / host= 1.0 close"},
		{"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "GET GET / host= 1.0"},
		{"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", "GET GET / host= 1.0 close"},
		{"GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", "GET GET / host= length=1 1.0 close"},
		{"get / HTTP/1.1\r\nHost: a\r\n\r\n", " get / host=a"},
		{"M-SEARCH!#$%&'*+.^_`|~ / HTTP/1.1\r\nHost: a\r\n\r\n", " M-SEARCH!#$%&'*+.^_`|~ / host=a"},
		{strings.Repeat("M", 32) + " / HTTP/1.1\r\nHost: a\r\n\r\n", " " + strings.Repeat("M", 32) + " / host=a"},
		{post("Content-Length: 0"), "POST POST /v1/info host=a length=0"},
		{post("Content-Length:5\t "), "POST POST /v1/info host=a length=5"},
		{post("Content-Length: 9223372036854775807"), "POST POST /v1/info host=a length=9223372036854775807"},
		{post("Content-Length: 007"), "POST POST /v1/info host=a length=7"},
		{post("Transfer-Encoding: chunked"), "POST POST /v1/info host=a chunked"},
		{post("transfer-ENCODING:\tCHUNKED "), "POST POST /v1/info host=a chunked"},
		{post("Transfer_Encoding: x", "Content_Length: 7", "Content-Length: 5"), "POST POST /v1/info host=a length=5"},
		{post("Content-Length: 5", "Expect: 100-Continue"), "POST POST /v1/info host=a length=5 expects"},
		{post("Transfer-Encoding: chunked", "Expect: 100-continue"), "POST POST /v1/info host=a chunked expects"},
		{post("Content-Length: 0", "Expect: 100-continue"), "POST POST /v1/info host=a length=0"},
		{get("Expect: 100-continue"), "GET GET /v1/info host=a"},
		{get("Connection: close"), "GET GET /v1/info host=a close"},
		{get("Connection: ,, CLOSE ,"), "GET GET /v1/info host=a close"},
		{get("Connection: keep-alive", "Connection: x, close"), "GET GET /v1/info host=a close"},
		{get("Connection:"), "GET GET /v1/info host=a"},
		{get("Connection: Upgrade", "Upgrade: websocket"), "GET GET /v1/info host=a upgrade"},
		{get("Connection: Upgrade", "Upgrade: websocket, h2c/1, x/y"), "GET GET /v1/info host=a upgrade"},
		{get("Upgrade: websocket"), "GET GET /v1/info host=a"},
		{get("Connection: Upgrade"), "GET GET /v1/info host=a"},
		{get("TE: gzip;q=0.5, trailers"), "GET GET /v1/info host=a trailers"},
		{get("TE: trailer"), "GET GET /v1/info host=a"},
		{get("Connection: X-One, x-two, Accept, X-None", "x-one: 1", "X-TWO: 2", "Accept: a", "X-Three: 3", "accept: b"), "GET GET /v1/info host=a hop:x-one hop:X-TWO hop:Accept hop:accept"},
		{get("X-A: 1", "Connection: x_a, x-a", "X_A: 2"), "GET GET /v1/info host=a hop:X-A hop:X_A"},
		{get("Accept: a", "X: b", "Accept: c", "Cookie: d", "Cookie: e"), "GET GET /v1/info host=a"},
		{post("Transfer-Encoding: chunked", "Trailer: X-Sum, ,Server-Timing"), "POST POST /v1/info host=a chunked"},
	} {
		r, n, err := feedRequest(t, tt.raw+"next", nil)
		if err != nil || n != len(tt.raw) {
			t.Errorf("%q: %d of %d bytes, %v", tt.raw, n, len(tt.raw), err)
			continue
		}
		if got := describe(r, tt.raw); got != tt.want {
			t.Errorf("%q:\n got %s\nwant %s", tt.raw, got, tt.want)
		}
	}
}

func TestRequest_Incomplete(t *testing.T) {
	raw := "\r\n" + post("Content-Length: 5", "X: y")
	for i := range raw {
		if _, _, err := feedRequest(t, raw[:i], nil); err != ErrIncomplete {
			t.Fatalf("%q: %v", raw[:i], err)
		}
	}
}

func TestRequest_Fields(t *testing.T) {
	raw := get("Empty:", "Spaces: \t a \t b \t ", "UTF-8: bl\xc3\xa4 \xff", "X_User_ID: evil", "X-User-ID:", "x-user-id: u1", "X-USER-ID: u2", "Colon::x", "Authorization: Bearer t")
	r, _, err := feedRequest(t, raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range r.Fields {
		got = append(got, fmt.Sprintf("%s=%s/%v/%v", f.Name.In([]byte(raw)), f.Value.In([]byte(raw)), f.ID, f.ID == Underscored))
	}
	want := []string{"Host=a/Host/false", "Empty=//false", "Spaces=a \t b//false", "UTF-8=bl\xc3\xa4 \xff//false", "X_User_ID=evil//true",
		"X-User-ID=/X-User-ID/false", "x-user-id=u1/X-User-ID/false", "X-USER-ID=u2/X-User-ID/false", "Colon=:x//false", "Authorization=Bearer t/Authorization/false"}
	if !slices.Equal(got, want) {
		t.Errorf("fields\n got %q\nwant %q", got, want)
	}
	if !r.Has(XUserID) || !r.Repeated(XUserID) || r.Repeated(Authorization) || r.Has(Cookie) {
		t.Error("Has or Repeated is wrong")
	}
	if v := r.First(Authorization).In([]byte(raw)); string(v) != "Bearer t" {
		t.Errorf("First(Authorization) = %q", v)
	}
	if v := r.First(XUserID); !v.Empty() || !r.First(Cookie).Empty() {
		t.Error("First gives something for an empty or missing field")
	}
}

func TestRequest_NextHeadForgetsTheOneBefore(t *testing.T) {
	var r Request
	first := "\r\nPOST https://a/../x?y HTTP/1.1\r\nHost: a\r\nCookie: c\r\nContent-Length: 5\r\nExpect: 100-continue\r\nTE: trailers\r\nConnection: close, upgrade\r\nUpgrade: x\r\n\r\n"
	if _, err := r.Parse([]byte(first), nil); err != nil || !r.DotSegments || !r.Secure || !r.WantsUpgrade {
		t.Fatal(r, err)
	}
	if n, err := r.Parse([]byte(first+"more"), nil); n != len(first) || err != nil {
		t.Errorf("a complete head, parsed once more: %d, %v", n, err)
	}
	r.Reset()
	raw := get()
	if _, err := r.Parse([]byte(raw), nil); err != nil {
		t.Fatal(err)
	}
	if got, want := describe(&r, raw), "GET GET /v1/info host=a"; got != want || r.Has(Cookie) || r.ContentLength != -1 || !r.Authority.Empty() {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestRequest_DotSegments(t *testing.T) {
	for path, want := range map[string]bool{
		"/": false, "/v1": false, "/v1/.hidden": false, "/v1/...": false, "/v1/a..b": false, "/v1/%252e": false, "/v1/a%2eb": false, "/v1/..a": false, "/v1/%2e%2e%2e": false,
		"/.": true, "/..": true, "/./": true, "/v1/../x": true, "/v1/./x": true, "/v1/x/..": true, "/v1/%2e%2e/x": true, "/v1/.%2E/x": true, "/v1/%2e": true,
		"/v1/a/..%2fx": true, "/v1/..%5cx": true, "/v1/a%2f..": true, "/v1/%2f.": true,
	} {
		if r, _, err := feedRequest(t, "GET "+path+"?/../ HTTP/1.1\r\nHost: a\r\n\r\n", nil); err != nil || r.DotSegments != want {
			t.Errorf("%s: %v, %v", path, r.DotSegments, err)
		}
	}
}

func TestRequest_AppendTarget(t *testing.T) {
	for line, want := range map[string]string{
		"GET /a/b?c": "/a/b?c", "GET /?": "/?", "GET http://a": "/", "GET http://a?x": "/?x", "GET http://a/b": "/b", "GET http://a/b?c": "/b?c", "GET http://a/?": "/?",
		"OPTIONS *": "*", "OPTIONS http://a": "*", "OPTIONS http://a/": "/", "OPTIONS http://a?x": "/?x",
	} {
		raw := line + " HTTP/1.1\r\nHost: a\r\n\r\n"
		r, _, err := feedRequest(t, raw, nil)
		if err != nil {
			t.Fatal(line, err)
		}
		if got := string(r.AppendTarget([]byte("> "), []byte(raw))); got != "> "+want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

func TestRequest_Limits(t *testing.T) {
	line := func(n int) string { // request line of n bytes with its CRLF
		return "GET /" + strings.Repeat("x", n-len("GET / HTTP/1.1\r\n")) + " HTTP/1.1\r\n"
	}
	fields := func(n int) string { return strings.Repeat("X: y\r\n", n) }
	head := func(n int) string { // head of n bytes
		return "GET / HTTP/1.1\r\n" + hostLine + "X: " + strings.Repeat("y", n-len("GET / HTTP/1.1\r\n"+hostLine+"X: \r\n\r\n")) + "\r\n\r\n"
	}
	small := &Limits{RequestLine: 100, Head: 200, Fields: 3}
	for _, tt := range []struct {
		name, raw string
		lim       *Limits
		want      error
	}{
		{"line at the default", line(16<<10) + hostLine + "\r\n", nil, nil},
		{"line over the default", line(16<<10+1) + hostLine + "\r\n", nil, errLineTooLong},
		{"line without end", strings.Repeat("G", 20<<10), nil, errLineTooLong},
		{"line far over", line(200<<10) + hostLine + "\r\n", nil, errLineTooLong},
		{"fields at the default", "GET / HTTP/1.1\r\n" + hostLine + fields(127) + "\r\n", nil, nil},
		{"fields over the default", "GET / HTTP/1.1\r\n" + hostLine + fields(128) + "\r\n", nil, errTooManyFields},
		{"head at the default", head(64 << 10), nil, nil},
		{"head over the default", head(64<<10 + 1), nil, errHeadTooLarge},
		{"head without end", "GET / HTTP/1.1\r\nX: " + strings.Repeat("y", 70<<10), nil, errHeadTooLarge},
		{"line at the limit", line(100) + hostLine + "\r\n", small, nil},
		{"line over the limit", line(101) + hostLine + "\r\n", small, errLineTooLong},
		{"line at the limit behind an empty one", "\r\n" + line(100) + hostLine + "\r\n", small, nil},
		{"line at the limit, not ended", line(100)[:99] + "x", small, errLineTooLong},
		{"fields at the limit", "GET / HTTP/1.1\r\n" + hostLine + fields(2) + "\r\n", small, nil},
		{"fields over the limit", "GET / HTTP/1.1\r\n" + hostLine + fields(3) + "\r\n", small, errTooManyFields},
		{"head at the limit", head(200), small, nil},
		{"head over the limit", head(201), small, errHeadTooLarge},
		{"line larger than the head may be", line(300), &Limits{Head: 200}, errHeadTooLarge},
		{"gaps are filled", head(64 << 10), &Limits{Fields: 2}, nil},
		{"more fields than an index can count", get(), &Limits{Fields: 1 << 20}, nil},
	} {
		if _, _, err := feedRequest(t, tt.raw, tt.lim); err != tt.want && (tt.want == nil || err != tt.want.(*Error)) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	if got := (Limits{}).WithDefaults(); got != defaults {
		t.Errorf("WithDefaults of nothing: %+v", got)
	}
	if got := (Limits{Head: 5, Fields: 1 << 20}).WithDefaults(); got.Head != 5 || got.Fields != defaults.Fields && got.Fields != maxFields || got.Trailers != defaults.Trailers {
		t.Errorf("WithDefaults of a part: %+v", got)
	}
}

func TestValidHost(t *testing.T) {
	for host, want := range map[string]bool{
		"a": true, "a.b": true, "a.b.": true, "A-1_x~": true, "127.0.0.1": true, "127.0.0.1:80": true, "a:0": true, "a:65535": true, "xn--bcher-kva.example:8082": true,
		"[::]": true, "[::1]:80": true, "[1:2:3:4:5:6:7:8]": true, "[::ffff:1.2.3.4]": true, "[fe80::1]": true, "[1::8]": true, "[1:2:3:4:5:6:7::]": true,
		"": false, ":80": false, "a:": false, "a:65536": false, "a:99999": false, "a:123456": false, "a:+1": false, "a:80:80": false, "a b": false, "a@b": false, "a/b": false, "a%41": false, "a,b": false,
		"a;b": false, "a!": false, "a\x00": false, "ä": false, "[": false, "[]": false, "[::1": false, "::1": false, "[::1]a": false, "[::1]:": false, "[:::]": false, "[1::2::3]": false,
		"[1:2:3:4:5:6:7]": false, "[1:2:3:4:5:6:7:8:9]": false, "[1:2:3:4:5:6:7::8]": false, "[12345::]": false, "[g::]": false, "[fe80::1%25eth0]": false, "[v1.x]": false,
		"[::1.2.3]": false, "[::1.2.3.256]": false, "[::01.2.3.4]": false, "[1:]": false, "[:1]": false, "[1.2.3.4]": false, "[::1.2.3.4:5]": false, "a[::1]": false,
	} {
		if got := validHost([]byte(host)); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
}

func FuzzIPv6(f *testing.F) {
	for _, s := range []string{"::", "::1", "1:2:3:4:5:6:7:8", "::ffff:1.2.3.4", "1::8", "1:2:3:4:5:6:7::", "1:2:3:4:5:6:1.2.3.4", ":::", "1:", ":1", "::1.2.3.4.5", "1::2::3", "64:ff9b::0.0.0.0", "12345::", "::00001"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		addr, err := netip.ParseAddr(s)
		want := err == nil && addr.Is6() && addr.Zone() == "" && !strings.Contains(s, "%")
		if got := validIPv6([]byte(s)); got != want {
			t.Errorf("%q: %v, netip says %v", s, got, want)
		}
	})
}

func TestError_SaysWhereTheRuleStands(t *testing.T) {
	for _, tt := range slices.Concat(refused, smuggling) {
		if !strings.Contains(tt.want.Error(), "(RFC ") || tt.want.Reason == "" {
			t.Errorf("%v", tt.want)
		}
		switch statusOf(tt.want) {
		case 400, 401, 414, 417, 431, 501, 505:
		default:
			t.Errorf("%v has the status %d", tt.want, tt.want.Status)
		}
	}
}
