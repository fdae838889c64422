package proxy

import (
	"net/netip"
	"strings"

	"difylb/pkg/h1"
)

// upgradeAllowed reports whether a client may ask for it. Another HTTP inside
// a tunnel would carry requests that nobody has looked at.
func upgradeAllowed(upgrade string) bool {
	for word := range strings.SplitSeq(strings.ToLower(upgrade), ",") {
		if word = strings.TrimSpace(word); strings.HasPrefix(word, "h2") || strings.HasPrefix(word, "http/") || strings.HasPrefix(word, "tls/") {
			return false
		}
	}
	return upgrade != ""
}

// offered reports whether the client has asked for the protocol that the
// instance switches to.
func offered(asked, protocol string) bool {
	if protocol == "" {
		return false
	}
	for word := range strings.SplitSeq(asked, ",") {
		if strings.EqualFold(strings.TrimSpace(word), protocol) {
			return true
		}
	}
	return false
}

// clientAddress returns who is asking: the peer, or, when the peer is a
// trusted proxy, the last address of X-Forwarded-For that is not.
func (x *exchange) clientAddress() (client netip.Addr, trusted bool) {
	if !x.remote.IsValid() || !x.p.opts.TrustedProxy(x.remote) {
		return x.remote, false
	}
	client = x.remote
	values := x.all(x.values[:0], h1.XForwardedFor)
	for i := len(values) - 1; i >= 0; i-- {
		parts := strings.Split(values[i], ",")
		for j := len(parts) - 1; j >= 0; j-- {
			a, err := netip.ParseAddr(strings.TrimSpace(parts[j]))
			if err != nil {
				return client, true
			}
			if client = a.Unmap(); !x.p.opts.TrustedProxy(client) {
				return client, true
			}
		}
	}
	return client, true
}

// target says where a request goes, and as whom.
type target struct {
	host          string // for the Host field
	authorization string // "" for none
	app, instance string // for debug headers; "" for none
}

// appendRequestHead writes the head for an instance: the client's fields
// without what is not to be passed on, and with what instances are told about
// the client.
func (x *exchange) appendRequestHead(h *h1.Head, to *target) {
	src := bytesOf(x.msg)
	var scratch [256]byte
	h.Request(bytesOf(x.method), x.req.AppendTarget(scratch[:0], src))
	h.Field("Host", to.host)
	for i := range x.req.Fields {
		if f := &x.req.Fields[i]; x.passes(f) {
			h.Copy(*f, src)
		}
	}
	if to.authorization != "" {
		h.Field("Authorization", to.authorization)
	}
	x.appendForwarding(h)
	h.Field("X-Request-ID", x.id)
	if x.traced != nil {
		x.appendTrace(h, to)
	}
	options := ""
	if x.req.TakesTrailers { // RFC 9110 section 10.1.4
		h.Field("TE", "trailers")
		options = "TE"
	}
	if x.req.WantsUpgrade && to.authorization != "" {
		if upgrade := x.field(h1.Upgrade); upgradeAllowed(upgrade) {
			h.Field("Upgrade", upgrade)
			if options != "" {
				options += ", "
			}
			options += "Upgrade"
		}
	}
	if options != "" {
		h.Field("Connection", options)
	}
	if x.p.opts.DebugHeaders && to.app != "" {
		h.Field("X-App-Type", to.app)
		h.Field("X-Dify-Instance", to.instance)
		h.Field("X-User-ID-Used", headerSafe(x.user))
		h.Field("X-Hash-Key", headerSafe(to.app+":"+x.user))
	}
}

// passes reports whether a field of the client goes to the instance as it is.
// X_User_ID and X-User-ID are one name to WSGI: nobody is let play on that.
func (x *exchange) passes(f *h1.Field) bool {
	if f.Hop {
		return false
	}
	switch f.ID {
	case h1.Underscored, h1.Host, h1.ContentLength, h1.Authorization, h1.Expect, h1.XRequestID, h1.XForwardedFor, h1.XRealIP:
		return false
	case h1.XAppType, h1.XDifyInstance, h1.XUserIDUsed, h1.XHashKey:
		return !x.p.opts.DebugHeaders
	}
	if x.traced != nil && f.ID == h1.UnknownField && isTraceContext(x.in(f.Name)) {
		return false // the instance is given those of the attempt
	}
	return x.trusted || !f.ID.Forwarding()
}

// appendForwarding tells the instance about the client. What a trusted proxy
// says of those before it is kept.
func (x *exchange) appendForwarding(h *h1.Head) {
	peer := x.peer
	proto, host := x.proto, x.in(x.req.Host)
	if x.trusted {
		if prior := x.all(x.values[:0], h1.XForwardedFor); len(prior) > 0 {
			peer = strings.Join(prior, ", ") + ", " + peer
		}
		if x.req.Has(h1.XForwardedProto) {
			proto = "" // passed on as it is
		}
		if x.req.Has(h1.XForwardedHost) {
			host = ""
		}
	}
	h.Field("X-Forwarded-For", peer)
	if x.client == x.remote {
		peer = x.peer
	} else {
		peer = x.client.String()
	}
	if x.client.IsValid() {
		h.Field("X-Real-IP", peer)
	}
	if proto != "" {
		h.Field("X-Forwarded-Proto", proto)
	}
	if host != "" {
		h.Field("X-Forwarded-Host", host)
	}
}

// headerSafe replaces what a field value may not hold (RFC 9110 section 5.5).
func headerSafe(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}

// writeAnswerFields copies an instance's head to the client's. Authorization is
// left out: an instance that echoes it would give its token away.
func (x *exchange) writeAnswerFields(w fieldWriter, resp *h1.Response, src []byte) {
	debug := x.p.opts.DebugHeaders
	for i := range resp.Fields {
		f := &resp.Fields[i]
		if f.Hop {
			continue
		}
		switch f.ID {
		case h1.ContentLength, h1.Authorization, h1.XRequestID:
			continue
		case h1.XDifyInstance:
			if debug {
				continue
			}
		}
		w.Copy(*f, src)
	}
	if !resp.Has(h1.Date) { // RFC 9110 section 6.6.1
		w.Field("Date", x.s.date())
	}
	w.Field("X-Request-ID", x.id)
	if debug && x.instance != "" {
		w.Field("X-Dify-Instance", x.instance)
		w.Field("X-LB-Node", x.p.opts.NodeID)
	}
}

// announceTrailer copies what a head says of the trailer section to come.
func announceTrailer(w fieldWriter, fields []h1.Field, src []byte) {
	for _, f := range fields {
		if f.ID == h1.Trailer {
			w.Copy(f, src)
		}
	}
}

// endChunks writes the end of a chunked body, with its trailer section.
func endChunks(h *h1.Head, trailer []h1.Field, src []byte) {
	h.Buf = append(h.Buf, h1.ZeroChunk...)
	for _, f := range trailer {
		if f.ID != h1.Underscored {
			h.Copy(f, src)
		}
	}
	h.End()
}
