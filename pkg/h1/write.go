package h1

import (
	"errors"
	"strconv"
)

// What stands around and behind the data of chunks.
const (
	CRLF      = "\r\n"
	ZeroChunk = "0\r\n"     // trailer fields and CRLF follow
	LastChunk = "0\r\n\r\n" // the same without trailers
)

// AppendChunkHeader appends the size line of a chunk with n bytes of data,
// which CRLF must follow. n is above 0: a chunk without data ends a body, and is LastChunk.
func AppendChunkHeader(dst []byte, n int) []byte {
	if n <= 0 {
		panic("h1: chunk without data")
	}
	return append(strconv.AppendInt(dst, int64(n), 16), CRLF...)
}

// ErrUnsafe says that something to be written would not have been read as the
// one thing it was meant to be: a name that is no token, a value or target with a control byte.
var ErrUnsafe = errors.New("write http head: byte that is not allowed there")

// Head is a head that is being written, to an instance or a client: a start
// line, fields, End. Whatever is handed to it, no line can be smuggled in:
// what may not stand where it is put is left out and ErrUnsafe kept in Err, to
// be looked at once before Buf is sent. Fields of a trailer section are written the same way.
type Head struct {
	Buf []byte // grows by append; the caller owns it
	Err error
}

// Request writes a request line of HTTP/1.1.
func (h *Head) Request(method, target []byte) {
	if !validToken(method) || !validTarget(target) {
		h.Err = ErrUnsafe
		return
	}
	h.Buf = append(h.Buf, method...)
	h.Buf = append(h.Buf, ' ')
	h.Buf = append(h.Buf, target...)
	h.Buf = append(h.Buf, " HTTP/1.1\r\n"...)
}

func validTarget(target []byte) bool {
	for _, c := range target {
		if class[c]&isQuery == 0 {
			return false
		}
	}
	return len(target) > 0
}

// Status writes a status line of HTTP/1.1. An empty reason means the usual
// phrase, if there is one.
func (h *Head) Status(code int, reason []byte) {
	if code < 100 || code > 599 || hasControl(reason) {
		h.Err = ErrUnsafe
		return
	}
	h.Buf = append(h.Buf, "HTTP/1.1 "...)
	h.Buf = append(h.Buf, byte('0'+code/100), byte('0'+code/10%10), byte('0'+code%10), ' ')
	if len(reason) > 0 {
		h.Buf = append(h.Buf, reason...)
	} else {
		h.Buf = append(h.Buf, StatusText(code)...)
	}
	h.Buf = append(h.Buf, CRLF...)
}

// Field writes a field line. White space around the value is not trimmed; who
// reads it will.
func (h *Head) Field(name, value string) { h.FieldBytes(name, bytesOf(value)) }

// FieldBytes is Field for a value that is not a string.
func (h *Head) FieldBytes(name string, value []byte) {
	if !validName(name) || hasControl(value) {
		h.Err = ErrUnsafe
		return
	}
	b := append(h.Buf, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	h.Buf = append(b, CRLF...)
}

// FieldInt is Field for a number, Content-Length above all.
func (h *Head) FieldInt(name string, value int64) {
	if !validName(name) {
		h.Err = ErrUnsafe
		return
	}
	b := append(h.Buf, name...)
	b = append(b, ": "...)
	b = strconv.AppendInt(b, value, 10)
	h.Buf = append(b, CRLF...)
}

// validName is validToken, faster for names that are known.
func validName(name string) bool { return lookup(bytesOf(name)) != UnknownField || validToken(name) }

// Copy writes a field that was parsed. src is what it was parsed from. Parsing
// has checked it; it is looked at again all the same, eight bytes at a time, because a
// Span together with the wrong buffer must not become a hole.
func (h *Head) Copy(f Field, src []byte) {
	colon := int(f.Name.End)
	if f.Name.Empty() {
		h.Err = ErrUnsafe
		return
	}
	if int(f.Value.Start) == colon+len(": ") && string(src[colon:f.Value.Start]) == ": " {
		line := src[f.Name.Start:f.Value.End] // as we would write it
		if hasControl(line) {
			h.Err = ErrUnsafe
			return
		}
		h.Buf = append(append(h.Buf, line...), CRLF...)
		return
	}
	name, value := f.Name.In(src), f.Value.In(src)
	if hasControl(name) || hasControl(value) {
		h.Err = ErrUnsafe
		return
	}
	b := append(h.Buf, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	h.Buf = append(b, CRLF...)
}

// End writes the empty line behind the last field.
func (h *Head) End() { h.Buf = append(h.Buf, CRLF...) }

// StatusText returns the usual phrase for a status (RFC 9110 section 15, RFC
// 6585 and others), "" for one that has none.
func StatusText(code int) string {
	if code < 0 || code >= len(statusTexts) {
		return ""
	}
	return statusTexts[code]
}

var statusTexts = [...]string{
	100: "Continue", 101: "Switching Protocols", 102: "Processing", 103: "Early Hints",
	200: "OK", 201: "Created", 202: "Accepted", 203: "Non-Authoritative Information", 204: "No Content",
	205: "Reset Content", 206: "Partial Content", 207: "Multi-Status",
	300: "Multiple Choices", 301: "Moved Permanently", 302: "Found", 303: "See Other", 304: "Not Modified",
	307: "Temporary Redirect", 308: "Permanent Redirect",
	400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found",
	405: "Method Not Allowed", 406: "Not Acceptable", 407: "Proxy Authentication Required", 408: "Request Timeout",
	409: "Conflict", 410: "Gone", 411: "Length Required", 412: "Precondition Failed", 413: "Content Too Large",
	414: "URI Too Long", 415: "Unsupported Media Type", 416: "Range Not Satisfiable", 417: "Expectation Failed",
	421: "Misdirected Request", 422: "Unprocessable Content", 423: "Locked", 425: "Too Early", 426: "Upgrade Required",
	428: "Precondition Required", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
	500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable",
	504: "Gateway Timeout", 505: "HTTP Version Not Supported", 511: "Network Authentication Required",
}
