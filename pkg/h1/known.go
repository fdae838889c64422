package h1

import (
	"encoding/binary"
	"math/bits"
)

// KnownField is a field name that a proxy has to do with. Names are recognised
// once, while the head is parsed, so that no later code compares them again.
type KnownField uint8

// The names.
const (
	UnknownField KnownField = iota
	// Underscored is any name with a '_'. CGI and WSGI make one name of
	// X_User_ID and X-User-ID: a proxy passes none on.
	Underscored

	// Framing and connection.
	Host
	ContentLength
	TransferEncoding
	Connection
	KeepAlive
	ProxyConnection
	TE
	Trailer
	Upgrade
	HTTP2Settings
	Expect

	// Authentication.
	Authorization
	ProxyAuthorization
	ProxyAuthenticate
	ProxyAuthenticationInfo
	WWWAuthenticate
	AuthenticationInfo
	Cookie
	SetCookie

	// The client, as proxies and instances are told.
	XUserID
	XRequestID
	XForwardedFor
	XForwardedProto
	XForwardedHost
	XForwardedPort
	XForwardedServer
	XForwardedPrefix
	XRealIP
	Forwarded
	Via

	// Content.
	ContentType
	ContentEncoding
	ContentRange
	ContentDisposition

	// The rest that modifies or controls (RFC 9110 sections 6.5.1 and 10), or that proxies look at.
	Accept
	AcceptEncoding
	Age
	CacheControl
	Date
	ETag
	Expires
	IdempotencyKey
	IfMatch
	IfModifiedSince
	IfNoneMatch
	IfRange
	IfUnmodifiedSince
	LastEventID
	Location
	MaxForwards
	Pragma
	Range
	RetryAfter
	Server
	UserAgent
	Vary
	Warning
	XAccelBuffering

	// What the balancer itself says when asked to explain.
	XAppType
	XDifyInstance
	XUserIDUsed
	XHashKey

	numKnown
)

// fieldSet is a set of KnownFields. The type has room for 64 of them.
type fieldSet uint64

const _ = uint(64 - numKnown) // does not compile when there are more

func bit(id KnownField) fieldSet { return 1 << (id & 63) }

func setOf(ids ...KnownField) (s fieldSet) {
	for _, id := range ids {
		s |= bit(id)
	}
	return s
}

func (s fieldSet) has(id KnownField) bool { return s>>(id&63)&1 != 0 }

var (
	// hopByHop belong to one connection (RFC 9110 section 7.6.1), with the
	// older ones that are still met.
	hopByHop = setOf(Connection, KeepAlive, ProxyConnection, TE, Trailer, TransferEncoding, Upgrade, HTTP2Settings,
		ProxyAuthorization, ProxyAuthenticate, ProxyAuthenticationInfo)

	// forwarding tell of the client.
	forwarding = setOf(XForwardedFor, XForwardedProto, XForwardedHost, XForwardedPort, XForwardedServer, XForwardedPrefix, XRealIP, Forwarded)

	// notInTrailers frame, route, authenticate, modify the request, control
	// the response or say what the content is (RFC 9110 section 6.5.1).
	notInTrailers = hopByHop | forwarding | setOf(Host, ContentLength, Expect, Authorization, WWWAuthenticate, AuthenticationInfo,
		Cookie, SetCookie, XUserID, XRequestID, Via, ContentType, ContentEncoding, ContentRange, ContentDisposition,
		Age, CacheControl, Date, Expires, IfMatch, IfModifiedSince, IfNoneMatch, IfRange, IfUnmodifiedSince, Location,
		MaxForwards, Pragma, Range, RetryAfter, Vary, Warning, XAccelBuffering, XAppType, XDifyInstance, XUserIDUsed, XHashKey)

	// notOptions are for all recipients, so that Connection must not name them
	// (RFC 9110 section 7.6.1): who does wants a proxy to lose one.
	notOptions = setOf(Host, ContentLength, Authorization, Cookie, SetCookie, XUserID, ContentType, ContentEncoding, ContentRange)
)

// HopByHop reports whether a field of this name is never passed on as it is.
func (id KnownField) HopByHop() bool { return hopByHop.has(id) }

// Forwarding reports whether a field of this name tells of the client, and is
// a lie unless it comes from a trusted proxy.
func (id KnownField) Forwarding() bool { return forwarding.has(id) }

// TrailerAllowed reports whether a field of this name may stand in a trailer
// section. A Chunked refuses the others by itself.
func (id KnownField) TrailerAllowed() bool { return !notInTrailers.has(id) }

// String returns the name as RFCs write it, "" for UnknownField and Underscored.
func (id KnownField) String() string {
	if id >= numKnown {
		return ""
	}
	return knownNames[id]
}

var knownNames = [numKnown]string{
	Host:                    "Host",
	ContentLength:           "Content-Length",
	TransferEncoding:        "Transfer-Encoding",
	Connection:              "Connection",
	KeepAlive:               "Keep-Alive",
	ProxyConnection:         "Proxy-Connection",
	TE:                      "TE",
	Trailer:                 "Trailer",
	Upgrade:                 "Upgrade",
	HTTP2Settings:           "HTTP2-Settings",
	Expect:                  "Expect",
	Authorization:           "Authorization",
	ProxyAuthorization:      "Proxy-Authorization",
	ProxyAuthenticate:       "Proxy-Authenticate",
	ProxyAuthenticationInfo: "Proxy-Authentication-Info",
	WWWAuthenticate:         "WWW-Authenticate",
	AuthenticationInfo:      "Authentication-Info",
	Cookie:                  "Cookie",
	SetCookie:               "Set-Cookie",
	XUserID:                 "X-User-ID",
	XRequestID:              "X-Request-ID",
	XForwardedFor:           "X-Forwarded-For",
	XForwardedProto:         "X-Forwarded-Proto",
	XForwardedHost:          "X-Forwarded-Host",
	XForwardedPort:          "X-Forwarded-Port",
	XForwardedServer:        "X-Forwarded-Server",
	XForwardedPrefix:        "X-Forwarded-Prefix",
	XRealIP:                 "X-Real-IP",
	Forwarded:               "Forwarded",
	Via:                     "Via",
	ContentType:             "Content-Type",
	ContentEncoding:         "Content-Encoding",
	ContentRange:            "Content-Range",
	ContentDisposition:      "Content-Disposition",
	Accept:                  "Accept",
	AcceptEncoding:          "Accept-Encoding",
	Age:                     "Age",
	CacheControl:            "Cache-Control",
	Date:                    "Date",
	ETag:                    "ETag",
	Expires:                 "Expires",
	IdempotencyKey:          "Idempotency-Key",
	IfMatch:                 "If-Match",
	IfModifiedSince:         "If-Modified-Since",
	IfNoneMatch:             "If-None-Match",
	IfRange:                 "If-Range",
	IfUnmodifiedSince:       "If-Unmodified-Since",
	LastEventID:             "Last-Event-ID",
	Location:                "Location",
	MaxForwards:             "Max-Forwards",
	Pragma:                  "Pragma",
	Range:                   "Range",
	RetryAfter:              "Retry-After",
	Server:                  "Server",
	UserAgent:               "User-Agent",
	Vary:                    "Vary",
	Warning:                 "Warning",
	XAccelBuffering:         "X-Accel-Buffering",
	XAppType:                "X-App-Type",
	XDifyInstance:           "X-Dify-Instance",
	XUserIDUsed:             "X-User-ID-Used",
	XHashKey:                "X-Hash-Key",
}

// knownSlot is a place in the perfect hash of the names: the first and the
// last bytes of the name in lower case, which are all of it up to 16.
type knownSlot struct {
	first, last uint64
	id          KnownField
	length      uint8
}

const (
	minKnownName = 2
	maxKnownName = 25
	// hashFactor spreads the names over their slots without a collision; found by trying, held by a test.
	hashFactor = 0xf46ed6dd9ca4f36f
	hashBits   = 8
)

var knownSlots, knownCollisions = func() (t [1 << hashBits]knownSlot, collisions int) {
	for id, name := range knownNames {
		if name == "" {
			continue
		}
		first, last, _ := ends([]byte(name))
		slot := &t[hashName(first, last)]
		if slot.id != UnknownField {
			collisions++
		}
		*slot = knownSlot{first, last, KnownField(id), uint8(len(name))}
	}
	return t, collisions
}()

func hashName(first, last uint64) uint64 {
	return (first ^ bits.RotateLeft64(last, 29)) * hashFactor >> (64 - hashBits)
}

// ends returns the first and the last eight bytes of a name of two bytes or
// more, overlapping where it is shorter. Bit 0x20 is set in all: that makes
// lower case of letters and leaves digits and '-' alone. ok is false for a name
// with a control byte, which bit 0x20 could make one of these; no other byte
// becomes one.
func ends(name []byte) (first, last uint64, ok bool) {
	n := len(name)
	switch {
	case n >= 8:
		first, last = load(name, 0), load(name, n-8)
		return first | fold, last | fold, texts(first)&texts(last) == fold
	case n >= 4:
		first, last = load4(name, 0), load4(name, n-4)
		return first | fold>>32, last | fold>>32, texts(first)&texts(last) == fold>>32
	}
	first, last = uint64(name[0])|uint64(name[1])<<8, uint64(name[n-1])
	return first | 0x2020, last | 0x20, texts(first) == 0x2020 && texts(last) == 0x20
}

const fold = 0x20 * lowBits

// texts marks bit 0x20 of the bytes that are not below it: they have one bit of 0x60.
func texts(w uint64) uint64 { return (w | w>>1) & fold }

func load4(b []byte, i int) uint64 { return uint64(binary.LittleEndian.Uint32(b[i:])) }

// lookup recognises a name, whatever its bytes are.
func lookup(name []byte) KnownField {
	n := len(name)
	if n < minKnownName || n > maxKnownName {
		return UnknownField
	}
	first, last, ok := ends(name)
	slot := &knownSlots[hashName(first, last)]
	if slot.first != first || slot.last != last || int(slot.length) != n || !ok {
		return UnknownField
	}
	if n > 16 {
		known := knownNames[slot.id]
		for i := 8; i < n-8; i++ {
			if lower(name[i]) != lower(known[i]) {
				return UnknownField
			}
		}
	}
	return slot.id
}
