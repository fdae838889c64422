// Package h1 is the framing of HTTP/1.1 as pure logic: bytes go in, values
// come out. It parses request heads, response heads and chunked bodies by the
// letter of RFC 9110 and RFC 9112, refuses whatever two implementations could
// understand in two ways, and writes heads anew. It holds offsets instead of
// bytes and allocates nothing once its slices have grown. It refuses to know
// connections, buffers' owners, time, routing and net/http; what to do with a
// message is its caller's business. docs/design/strictness.md lists where it is stricter
// than others, and why.
package h1

import "errors"

// ErrIncomplete says that the bytes so far are well-formed but end too early:
// read more and call again.
var ErrIncomplete = errors.New("http message is incomplete")

// Error says why bytes are not a message that may be passed on. After one the
// connection can't be used further, since nobody knows where the next message
// begins. All Errors are made in advance, so that a flood of nonsense
// allocates nothing; they are compared by identity.
type Error struct {
	// Status is what a server answers a request with. For a response it means
	// nothing: the proxy answers 502 whatever it says.
	Status  int
	Reason  string // a constant phrase, safe to show to the sender
	Section string // where the rule stands, e.g. "RFC 9112 section 5.1"
}

func (e *Error) Error() string { return e.Reason + " (" + e.Section + ")" }

// Limits bound what a sender can make us hold or work through. Zero or less
// means the default. The same Limits must be given to all calls that parse one message.
type Limits struct {
	RequestLine   int // bytes of a request or status line with its CRLF; 16 KiB
	Head          int // bytes of a head, all of it; 64 KiB
	Fields        int // field lines in a head or trailer section; 128, at most 65535
	ChunkExtLine  int // bytes of extensions behind one chunk size; 256
	ChunkExtTotal int // bytes of extensions in one message; 16 KiB
	Trailers      int // bytes of a trailer section with the empty line that ends it; 8 KiB
}

var defaults = Limits{
	RequestLine:   16 << 10,
	Head:          64 << 10,
	Fields:        128,
	ChunkExtLine:  256,
	ChunkExtTotal: 16 << 10,
	Trailers:      8 << 10,
}

// orDefaults returns l itself where nothing is missing, which costs the hot
// path six comparisons and no copy.
func (l *Limits) orDefaults() *Limits {
	if l == nil || *l == (Limits{}) {
		return &defaults
	}
	if l.RequestLine > 0 && l.Head > 0 && 0 < l.Fields && l.Fields <= maxFields && l.ChunkExtLine > 0 && l.ChunkExtTotal > 0 && l.Trailers > 0 {
		return l
	}
	pick := func(v, def int) int {
		if v > 0 {
			return v
		}
		return def
	}
	return &Limits{
		RequestLine:   pick(l.RequestLine, defaults.RequestLine),
		Head:          pick(l.Head, defaults.Head),
		Fields:        min(pick(l.Fields, defaults.Fields), maxFields),
		ChunkExtLine:  pick(l.ChunkExtLine, defaults.ChunkExtLine),
		ChunkExtTotal: pick(l.ChunkExtTotal, defaults.ChunkExtTotal),
		Trailers:      pick(l.Trailers, defaults.Trailers),
	}
}

// WithDefaults returns l with its gaps filled in. Limits that are used for
// every message should come from here: gaps that Parse has to fill cost an allocation.
func (l Limits) WithDefaults() Limits { return *l.orDefaults() }

// Span is a part of the buffer that was parsed. Offsets stay right when the
// caller moves the bytes to another buffer, and keep no buffer alive. The zero
// Span is empty.
type Span struct{ Start, End uint32 }

// In returns the bytes. buf must begin with the bytes that were parsed.
func (s Span) In(buf []byte) []byte { return buf[s.Start:s.End:s.End] }

// Len returns the number of bytes.
func (s Span) Len() int { return int(s.End - s.Start) }

// Empty reports whether there are none.
func (s Span) Empty() bool { return s.Start == s.End }

func span(start, end int) Span { return Span{uint32(start), uint32(end)} }

// Version is the minor version of HTTP/1.
type Version uint8

// The versions of HTTP that have this framing.
const (
	HTTP10 Version = 0
	HTTP11 Version = 1
)

// BodyKind says how the end of a message's body is found (RFC 9112 section 6.3).
type BodyKind uint8

// The kinds of bodies.
const (
	BodyNone       BodyKind = iota // the message ends with its head
	BodyLength                     // ContentLength bytes follow, which may be 0
	BodyChunked                    // decode it with Chunked
	BodyUntilClose                 // responses only: whatever comes until the connection ends, complete or not
)

// Method is a request method that is known by name.
type Method uint8

// The methods of RFC 9110 section 9 and RFC 5789.
const (
	MethodOther Method = iota // any other token; its name is in the request
	MethodGet
	MethodHead
	MethodPost
	MethodPut
	MethodPatch
	MethodDelete
	MethodOptions
	MethodConnect // never in a parsed request: refused
	MethodTrace   // likewise
)

var methodNames = [...]string{"", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"}

// String returns the method's name, "" for MethodOther.
func (m Method) String() string { return methodNames[m] }

// Idempotent reports whether a repetition has the effect of once (RFC 9110 section 9.2.2).
func (m Method) Idempotent() bool {
	switch m {
	case MethodGet, MethodHead, MethodPut, MethodDelete, MethodOptions, MethodTrace:
		return true
	}
	return false
}

// methodOf recognises a method; names are case-sensitive (RFC 9110 section 9.1).
func methodOf(name []byte) Method {
	switch string(name) { // compiled to comparisons by length: allocates nothing
	case "GET":
		return MethodGet
	case "HEAD":
		return MethodHead
	case "POST":
		return MethodPost
	case "PUT":
		return MethodPut
	case "PATCH":
		return MethodPatch
	case "DELETE":
		return MethodDelete
	case "OPTIONS":
		return MethodOptions
	case "CONNECT":
		return MethodConnect
	case "TRACE":
		return MethodTrace
	}
	return MethodOther
}
