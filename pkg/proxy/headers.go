package proxy

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"difylb/pkg/route"
)

// hopByHop are the fields of RFC 9110 section 7.6.1 that belong to one
// connection only, with the older ones that proxies still meet. TE and Upgrade
// are treated by themselves.
var hopByHop = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// forwarding are the fields by which proxies speak of the client. From a
// client that is no trusted proxy they are lies.
var forwarding = []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Server", "X-Real-Ip"}

// removeHopByHop deletes them, and what Connection names.
func removeHopByHop(h http.Header) {
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			if name = strings.TrimSpace(name); name != "" {
				h.Del(name)
			}
		}
	}
	for _, name := range hopByHop {
		h.Del(name)
	}
}

// upgradeOf returns the protocol that a head asks for or agrees to switch to, "" for none.
func upgradeOf(h http.Header) string {
	if hasToken(h["Connection"], "upgrade") {
		return strings.Join(h["Upgrade"], ", ")
	}
	return ""
}

// hasToken reports whether a field that is a list holds the word.
func hasToken(values []string, token string) bool {
	for _, v := range values {
		for word := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(word), token) {
				return true
			}
		}
	}
	return false
}

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
func offered(asked []string, protocol string) bool {
	return protocol != "" && hasToken(asked, protocol)
}

// trailerAllowed reports whether a trailer field is passed on: nothing that
// frames, routes or authenticates (RFC 9110 section 6.5.1).
func trailerAllowed(name string) bool {
	switch name {
	case "Authorization", "Content-Encoding", "Content-Length", "Content-Range", "Content-Type", "Cookie", "Host", "Set-Cookie", "X-User-Id":
		return false
	}
	return !slices.Contains(hopByHop, name) && !slices.Contains(forwarding, name) && !strings.ContainsRune(name, '_')
}

// clientAddress returns who is asking: the peer, or, when the peer is a
// trusted proxy, the last address of X-Forwarded-For that is not.
func (p *Proxy) clientAddress(remote string, h http.Header) (client netip.Addr, trusted bool) {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}, false
	}
	peer := ap.Addr().Unmap()
	if !p.opts.TrustedProxy(peer) {
		return peer, false
	}
	client = peer
	values := h["X-Forwarded-For"]
	for i := len(values) - 1; i >= 0; i-- {
		parts := strings.Split(values[i], ",")
		for j := len(parts) - 1; j >= 0; j-- {
			a, err := netip.ParseAddr(strings.TrimSpace(parts[j]))
			if err != nil {
				return client, true
			}
			if client = a.Unmap(); !p.opts.TrustedProxy(client) {
				return client, true
			}
		}
	}
	return client, true
}

// upstreamHeader makes the head's fields for an attempt on an instance.
func (x *exchange) upstreamHeader(in *route.Instance) http.Header {
	h := x.base.Clone()
	h.Set("Authorization", in.Authorization.Reveal())
	if x.p.opts.DebugHeaders {
		h.Set("X-App-Type", x.app.app.Decl.Name)
		h.Set("X-Dify-Instance", in.Decl.Name)
		h.Set("X-User-ID-Used", headerSafe(x.user))
		h.Set("X-Hash-Key", headerSafe(x.app.app.Decl.Name+":"+x.user))
	}
	return h
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

// baseHeader makes the part of the upstream head that is the same for every
// attempt: the client's fields without what is not to be passed on, and with
// what instances are told about the client.
func (x *exchange) baseHeader(trusted bool) http.Header {
	h := x.r.Header.Clone()
	trailers := hasToken(h["Te"], "trailers")
	upgrade := upgradeOf(h)
	removeHopByHop(h)
	for name := range h {
		// X_User_ID and X-User-ID are one name to WSGI: let nobody play on that.
		if strings.ContainsRune(name, '_') {
			delete(h, name)
		}
	}
	h.Del("Expect") // answered here
	h.Del("Authorization")
	h.Del("Http2-Settings")
	if key, ok := h["Idempotency-Key"]; ok {
		// Spelt so, http.Transport would repeat even a POST that broke.
		delete(h, "Idempotency-Key")
		h["idempotency-key"] = key
	}
	if key, ok := h["X-Idempotency-Key"]; ok {
		delete(h, "X-Idempotency-Key")
		h["x-idempotency-key"] = key
	}
	x.setForwarding(h, trusted)
	h.Set("X-Request-Id", x.id)
	if trailers {
		h.Set("Te", "trailers")
	}
	if upgradeAllowed(upgrade) && x.r.ProtoAtLeast(1, 1) {
		h.Set("Connection", "Upgrade")
		h.Set("Upgrade", upgrade)
	}
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = []string{""} // keeps net/http from adding its own
	}
	return h
}

// setForwarding tells the instance about the client. What a trusted proxy says
// of those before it is kept.
func (x *exchange) setForwarding(h http.Header, trusted bool) {
	prior, proto, host := "", "", ""
	if trusted {
		prior = strings.Join(h["X-Forwarded-For"], ", ")
		proto, host = h.Get("X-Forwarded-Proto"), h.Get("X-Forwarded-Host")
	}
	for _, name := range forwarding {
		if !trusted || name == "X-Forwarded-For" || name == "X-Real-Ip" {
			h.Del(name)
		}
	}
	peer, _, err := net.SplitHostPort(x.r.RemoteAddr)
	if err != nil {
		peer = x.r.RemoteAddr
	}
	if prior != "" {
		peer = prior + ", " + peer
	}
	h.Set("X-Forwarded-For", peer)
	if x.client.IsValid() {
		h.Set("X-Real-Ip", x.client.String())
	}
	if proto == "" {
		proto = x.proto
	}
	if host == "" {
		host = x.r.Host
	}
	h.Set("X-Forwarded-Proto", proto)
	if host != "" {
		h.Set("X-Forwarded-Host", host)
	}
}

// answerHeader copies an instance's head to the client's.
func (x *exchange) answerHeader(dst, src http.Header) {
	removeHopByHop(src)
	src.Del("Authorization") // an instance that echoes it would give its token away
	for k, vv := range src {
		dst[k] = vv
	}
	dst.Set("X-Request-Id", x.id)
	if x.p.opts.DebugHeaders {
		dst.Set("X-Dify-Instance", x.instance)
		dst.Set("X-LB-Node", x.p.opts.NodeID)
	}
}
