package h1

// Request is a request head. The zero Request is ready to parse one; Reset it
// before the next. It belongs to one goroutine at a time.
type Request struct {
	Section // the header fields

	Method     Method
	Version    Version
	Form       TargetForm
	Secure     bool // absolute form with the scheme https
	HasQuery   bool // the target has a '?', be the query empty or not
	MethodName Span

	Target    Span // as it was sent
	Path      Span // without the query; empty for "http://host", where it means "/", and for "*"
	Query     Span // behind the '?'
	Authority Span // of the absolute form; equals Host where that was sent
	Host      Span // Host field, or the Authority in HTTP/1.0 without one; host[:port], or empty in HTTP/1.0

	// DotSegments is set if the path has a segment that is "." or "..", plain
	// or percent-encoded, with %2F and %5C taken for '/': somebody behind us
	// would resolve it and end elsewhere.
	DotSegments bool

	Body          BodyKind
	ContentLength int64 // -1 without the field

	KeepAlive      bool // the client lets the connection live (RFC 9112 section 9.3)
	ExpectContinue bool // it waits for 100 before it sends the body that there is
	WantsUpgrade   bool // it asks for another protocol, those in the Upgrade field (RFC 9110 section 7.8)
	TakesTrailers  bool // TE: trailers

	state parseState
	size  int // of the head, once it is complete
}

// TargetForm is the form of a request target (RFC 9112 section 3.2).
type TargetForm uint8

// The forms. CONNECT, which has one of its own, is refused.
const (
	OriginForm   TargetForm = iota // "/path?query"
	AbsoluteForm                   // "http://host/path?query"
	AsteriskForm                   // "*", with OPTIONS only
)

type parseState uint8

const (
	atStart parseState = iota
	inStartLine
	inFields
	complete
)

const (
	maxMethod   = 32
	versionSize = len(" HTTP/1.1")
)

// Errors of requests.
var (
	errEmptyLines     = &Error{400, "more than one empty line stands before the request", "RFC 9112 section 2.2"}
	errNotHTTP        = &Error{400, "this is not a request of HTTP", "RFC 9112 section 3"}
	errRequestLine    = &Error{400, "the request line is malformed", "RFC 9112 section 3"}
	errLineTooLong    = &Error{414, "the request line is too long", "RFC 9112 section 3"}
	errMethodTooLong  = &Error{501, "the method is longer than any that is known", "RFC 9112 section 3"}
	errMethodRefused  = &Error{501, "the method is not supported", "RFC 9110 section 9.3"}
	errVersion        = &Error{505, "the HTTP version is not supported; use HTTP/1.1", "RFC 9110 section 15.6.6"}
	errHostMissing    = &Error{400, "the Host field is missing", "RFC 9112 section 3.2"}
	errHostRepeated   = &Error{400, "the Host field is repeated", "RFC 9112 section 3.2"}
	errHost           = &Error{400, "the Host field is not a host with an optional port", "RFC 9110 section 7.2"}
	errHostDiffers    = &Error{400, "the Host field differs from the target's authority", "RFC 9112 section 3.2.2"}
	errExpectation    = &Error{417, "only the expectation 100-continue can be met", "RFC 9110 section 10.1.1"}
	errUpgrade        = &Error{400, "the Upgrade field is malformed", "RFC 9110 section 7.8"}
	errUpgradeAgain   = &Error{400, "the Upgrade field is repeated", "RFC 9110 section 7.8"}
	errAuthorizations = &Error{401, "the Authorization field is repeated", "RFC 9110 section 11.6.2"}
)

// Reset forgets the head, so that Parse begins with the next one.
func (r *Request) Reset() {
	*r = Request{Section: Section{Fields: r.Fields[:0]}}
}

// Parse reads a head from the beginning of buf and returns its size in bytes,
// which is where the body begins. With ErrIncomplete the caller appends what
// arrives next to the same bytes, here or in a larger buffer, and calls again:
// work done is not done twice. Any other error is an *Error. One empty line
// before the request is skipped (RFC 9112 section 2.2) and counts as part of the head.
// lim may be nil.
//
// All Spans are offsets into buf; the fields of r mean nothing until Parse has
// returned without an error, and stay until Reset.
func (r *Request) Parse(buf []byte, lim *Limits) (n int, err error) {
	lim = lim.orDefaults()
	switch r.state {
	case atStart:
		if err := r.begin(buf); err != nil {
			return 0, err
		}
		r.state = inStartLine
		fallthrough
	case inStartLine:
		bound, tooLarge := r.pos+lim.RequestLine, errLineTooLong
		if bound > lim.Head {
			bound, tooLarge = lim.Head, errHeadTooLarge
		}
		lf, err := r.nextLine(buf, bound, tooLarge)
		if err != nil {
			return 0, err
		}
		if err := r.requestLine(buf, r.pos, lf); err != nil {
			return 0, err
		}
		r.reset(lf + 1)
		r.state = inFields
		fallthrough
	case inFields:
		if n, err = r.parse(buf, lim.Head, lim.Fields); err != nil {
			return 0, err
		}
		if err := r.finish(buf); err != nil {
			return 0, err
		}
		r.size = n
		r.state = complete
	}
	return r.size, nil
}

// begin skips an empty line and looks at the first byte: what can't become a
// request, such as a TLS handshake on the wrong port, need not be waited for.
func (r *Request) begin(buf []byte) error {
	start := 0
	if len(buf) > 0 && buf[0] == '\r' {
		if len(buf) < 2 {
			return ErrIncomplete
		}
		if buf[1] != '\n' {
			return errBareCR
		}
		start = 2
	}
	if len(buf) == start {
		return ErrIncomplete
	}
	switch c := buf[start]; {
	case class[c]&isToken != 0:
		r.reset(start)
		return nil
	case c == '\n':
		return errBareLF
	case c == '\r' && start > 0:
		return errEmptyLines
	}
	return errNotHTTP
}

// requestLine reads buf[start:lf].
func (r *Request) requestLine(buf []byte, start, lf int) *Error {
	end := lf - 1
	if buf[end] != '\r' { // begin has seen that the line has a first byte
		return errBareLF
	}
	space := start
	for class[buf[space]]&isToken != 0 {
		space++
	}
	switch {
	case space-start > maxMethod:
		return errMethodTooLong
	case buf[space] != ' ':
		return errRequestLine
	}
	version := end - versionSize
	if version <= space {
		return errRequestLine
	}
	switch v := buf[version:end]; {
	case string(v) == " HTTP/1.1":
		r.Version = HTTP11
	case string(v) == " HTTP/1.0":
		r.Version = HTTP10
	case string(v[:6]) == " HTTP/" && isDigit(v[6]) && v[7] == '.' && isDigit(v[8]):
		return errVersion
	default:
		return errRequestLine
	}
	r.MethodName = span(start, space)
	r.Method = methodOf(buf[start:space])
	if r.Method >= MethodConnect {
		return errMethodRefused
	}
	return r.target(buf, space+1, version)
}

// finish reads what the fields together mean.
func (r *Request) finish(buf []byte) error {
	if err := r.host(buf); err != nil {
		return err
	}
	length, chunked, err := r.framing(buf, r.Version)
	if err != nil {
		return err
	}
	r.ContentLength = length
	switch {
	case chunked:
		r.Body = BodyChunked
	case length >= 0:
		r.Body = BodyLength
	}
	if r.Repeated(ContentType) {
		return errContentTypeAgain
	}
	o, err := r.connection(buf)
	if err != nil {
		return err
	}
	r.KeepAlive = !o.close && (r.Version == HTTP11 || o.keepAlive)
	if r.seen&(1<<Expect|1<<Upgrade|1<<TE|1<<Trailer) != 0 {
		if err := r.rare(buf, o); err != nil {
			return err
		}
	}
	// Last, so that its 401 is given to requests alone that are well-formed otherwise.
	if r.Repeated(Authorization) {
		return errAuthorizations
	}
	return nil
}

// rare reads the fields that few requests have.
func (r *Request) rare(buf []byte, o options) *Error {
	if r.Has(Expect) {
		if r.Repeated(Expect) || !foldEqual(r.First(Expect).In(buf), "100-continue") {
			return errExpectation
		}
		// In HTTP/1.0 it has no meaning (RFC 9110 section 10.1.1).
		r.ExpectContinue = r.Version == HTTP11 && (r.Body == BodyChunked || r.ContentLength > 0)
	}
	if r.Has(Upgrade) {
		if err := r.checkUpgrade(buf); err != nil {
			return err
		}
		r.WantsUpgrade = o.upgrade && r.Version == HTTP11
	}
	r.TakesTrailers = r.hasTrailersCoding(buf)
	return r.checkTrailer(buf)
}

// checkUpgrade looks at the form of the Upgrade field, which is passed on:
// a list of name[/version].
func (s *Section) checkUpgrade(buf []byte) *Error {
	if s.Repeated(Upgrade) {
		return errUpgradeAgain
	}
	for list, more := s.First(Upgrade).In(buf), true; more; {
		var protocol []byte
		protocol, list, more = nextElement(list)
		name := protocol
		for i, c := range protocol {
			if c == '/' {
				if !validToken(protocol[i+1:]) {
					return errUpgrade
				}
				name = protocol[:i]
				break
			}
		}
		if !validToken(name) {
			return errUpgrade
		}
	}
	return nil
}

// AppendTarget appends the target as it is sent to an origin server: origin
// form, or "*" (RFC 9112 section 3.2). buf is what was parsed.
func (r *Request) AppendTarget(dst, buf []byte) []byte {
	switch {
	case r.Form == OriginForm:
		return append(dst, r.Target.In(buf)...)
	case r.Form == AsteriskForm, r.Method == MethodOptions && r.Path.Empty() && !r.HasQuery:
		return append(dst, '*') // RFC 9112 section 3.2.4: the last proxy makes "*" of "OPTIONS http://host"
	case r.Path.Empty():
		dst = append(dst, '/')
	default:
		dst = append(dst, r.Path.In(buf)...)
	}
	if r.HasQuery {
		dst = append(dst, '?')
		dst = append(dst, r.Query.In(buf)...)
	}
	return dst
}
