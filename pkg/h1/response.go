package h1

// Response is a response head. The zero Response is ready to parse one; Reset
// it before the next. It belongs to one goroutine at a time.
type Response struct {
	Section // the header fields

	Status  int // 100 to 599
	Version Version
	Reason  Span // phrase behind the status; may be empty

	// Body is BodyNone for 1xx, 204, 304, and for all answers to HEAD,
	// whatever the fields say; and BodyUntilClose where they say nothing. With the
	// last nobody can tell a complete answer from one that broke off: whether that is
	// good enough is for the proxy to decide.
	Body          BodyKind
	ContentLength int64 // -1 without the field; what a body would have where there is none

	KeepAlive bool // the connection can take another request once the body is read to its end
	Upgraded  bool // 101: from here on the connection speaks what the Upgrade field names

	state parseState
	size  int
}

// Errors of responses.
var (
	errStatusLine     = &Error{502, "the status line is malformed", "RFC 9112 section 4"}
	errStatusTooLong  = &Error{502, "the status line is too long", "RFC 9112 section 4"}
	errStatusCode     = &Error{502, "the status code is not one of 100 to 599", "RFC 9110 section 15"}
	errStatusVersion  = &Error{502, "the HTTP version is neither 1.0 nor 1.1", "RFC 9112 section 2.3"}
	errInterimIn10    = &Error{502, "a response of HTTP/1.0 is interim", "RFC 9110 section 15.2"}
	errBodyNotAllowed = &Error{502, "the response announces a body where its status allows none", "RFC 9110 section 8.6"}
	errSwitching      = &Error{502, "the response switches protocols without saying to which", "RFC 9110 section 15.2.2"}
)

// Interim reports whether another response follows (1xx but 101).
func (r *Response) Interim() bool { return r.Status < 200 && r.Status != 101 }

// Reset forgets the head, so that Parse begins with the next one.
func (r *Response) Reset() {
	*r = Response{Section: Section{Fields: r.Fields[:0]}}
}

// Parse reads a head from the beginning of buf, like Request.Parse. method is
// that of the request that is answered: what body follows depends on it (RFC 9112
// section 6.3). No line is skipped: a byte before a status line is a surplus
// byte of the response before. lim may be nil.
func (r *Response) Parse(buf []byte, method Method, lim *Limits) (n int, err error) {
	lim = lim.orDefaults()
	switch r.state {
	case atStart, inStartLine:
		r.state = inStartLine
		bound, tooLarge := lim.RequestLine, errStatusTooLong
		if bound > lim.Head {
			bound, tooLarge = lim.Head, errHeadTooLarge
		}
		lf, err := r.nextLine(buf, bound, tooLarge)
		if err != nil {
			return 0, err
		}
		if err := r.statusLine(buf, lf); err != nil {
			return 0, err
		}
		r.reset(lf + 1)
		r.state = inFields
		fallthrough
	case inFields:
		if n, err = r.parse(buf, lim.Head, lim.Fields); err != nil {
			return 0, err
		}
		if err := r.finish(buf, method); err != nil {
			return 0, err
		}
		r.size = n
		r.state = complete
	}
	return r.size, nil
}

// statusLine reads buf[:lf]. RFC 9112 section 4 wants a space behind the code
// also where no phrase follows; servers exist that leave it out, and nothing
// else can be meant, so that both are taken.
func (r *Response) statusLine(buf []byte, lf int) *Error {
	const codeAt, codeEnd = len("HTTP/1.1 "), len("HTTP/1.1 200")
	end := lf - 1
	if end < 0 || buf[end] != '\r' {
		return errBareLF
	}
	if end < codeEnd || string(buf[:5]) != "HTTP/" || buf[codeAt-1] != ' ' {
		return errStatusLine
	}
	switch string(buf[5 : codeAt-1]) {
	case "1.1":
		r.Version = HTTP11
	case "1.0":
		r.Version = HTTP10
	default:
		return errStatusVersion
	}
	for _, c := range buf[codeAt:codeEnd] {
		if !isDigit(c) {
			return errStatusLine
		}
		r.Status = r.Status*10 + int(c-'0')
	}
	if r.Status < 100 || r.Status > 599 {
		return errStatusCode
	}
	r.Reason = span(end, end)
	if end > codeEnd {
		r.Reason = span(codeEnd+1, end)
		if buf[codeEnd] != ' ' || hasControl(r.Reason.In(buf)) {
			return errStatusLine
		}
	}
	return nil
}

// finish reads what status, fields and the request's method together mean.
func (r *Response) finish(buf []byte, method Method) error {
	length, chunked, err := r.framing(buf, r.Version)
	if err != nil {
		return err
	}
	if r.Repeated(ContentType) {
		return errContentTypeAgain
	}
	o, err := r.connection(buf)
	if err != nil {
		return err
	}
	if err := r.checkTrailer(buf); err != nil {
		return err
	}
	r.ContentLength = length
	switch {
	case r.Status < 200 || r.Status == 204:
		// A length of 0 is superfluous but says what is so (seen from WSGI servers with 204).
		if chunked || length > 0 {
			return errBodyNotAllowed
		}
		if r.Status < 200 && r.Version == HTTP10 {
			return errInterimIn10
		}
	case r.Status == 304, method == MethodHead:
		// The fields tell what GET would have had.
	case chunked:
		r.Body = BodyChunked
	case length >= 0:
		r.Body = BodyLength
	default:
		r.Body = BodyUntilClose
	}
	if r.Has(Upgrade) {
		if err := r.checkUpgrade(buf); err != nil {
			return err
		}
	}
	if r.Status == 101 {
		if !o.upgrade || !r.Has(Upgrade) {
			return errSwitching
		}
		r.Upgraded = true
	}
	r.KeepAlive = !o.close && (r.Version == HTTP11 || o.keepAlive) && r.Body != BodyUntilClose && !r.Upgraded
	return nil
}
