package h1

// Errors of targets.
var (
	errTarget         = &Error{400, "the request target is malformed", "RFC 9112 section 3.2"}
	errTargetByte     = &Error{400, "the request target holds a byte that must be percent-encoded", "RFC 3986 section 3.3"}
	errTargetFragment = &Error{400, "the request target has a fragment", "RFC 9112 section 3.2"}
	errTargetUser     = &Error{400, "the request target has user information", "RFC 9110 section 4.2.4"}
	errTargetScheme   = &Error{400, "the request target has a scheme other than http and https", "RFC 9112 section 3.2.2"}
	errTargetHost     = &Error{400, "the request target's authority is not a host with an optional port", "RFC 9112 section 3.2.2"}
	errAsterisk       = &Error{400, "the target * goes with OPTIONS only", "RFC 9112 section 3.2.4"}
)

// target reads the request target buf[start:end], in which a space would be a malformed byte.
func (r *Request) target(buf []byte, start, end int) *Error {
	if start == end {
		return errRequestLine
	}
	r.Target = span(start, end)
	switch {
	case buf[start] == '/':
		r.Form = OriginForm
		return r.pathAndQuery(buf, start, end)
	case buf[start] == '*' && end == start+1:
		if r.Method != MethodOptions {
			return errAsterisk
		}
		r.Form = AsteriskForm
		r.Path, r.Query = span(end, end), span(end, end)
		return nil
	}
	r.Form = AbsoluteForm
	return r.absolute(buf, start, end)
}

// absolute reads "http://host:port/path?query".
func (r *Request) absolute(buf []byte, start, end int) *Error {
	target := buf[start:end]
	switch {
	case len(target) > len("http://") && foldEqual(target[:len("http://")], "http://"):
		start += len("http://")
	case len(target) > len("https://") && foldEqual(target[:len("https://")], "https://"):
		start += len("https://")
		r.Secure = true
	default:
		return absoluteError(target)
	}
	slash := start
	for slash < end && buf[slash] != '/' && buf[slash] != '?' && buf[slash] != '#' {
		if buf[slash] == '@' {
			return errTargetUser
		}
		slash++
	}
	r.Authority = span(start, slash)
	if !validHost(r.Authority.In(buf)) {
		return errTargetHost
	}
	return r.pathAndQuery(buf, slash, end)
}

// absoluteError tells other schemes from what is no URI at all.
func absoluteError(target []byte) *Error {
	for i, c := range target {
		if c == ':' && i > 0 {
			return errTargetScheme
		}
		if class[c]&isHost == 0 && c != '+' {
			break
		}
	}
	return errTarget
}

// pathAndQuery reads buf[start:end], which begins with '/', or with '?' or
// nothing in the absolute form. The path is held to RFC 3986 because it is what
// requests are routed by. The query is only held to visible ASCII: browsers and
// programs send more in it than the RFC allows, and nobody draws a boundary in there.
func (r *Request) pathAndQuery(buf []byte, start, end int) *Error {
	all, i := uint8(0), start
	for ; i < end; i++ {
		k := class[buf[i]]
		if k&isPath == 0 {
			break
		}
		all |= k
	}
	r.Path, r.Query = span(start, i), span(end, end)
	if i < end && buf[i] == '?' {
		i++
		r.HasQuery, r.Query = true, span(i, end)
		for i < end && class[buf[i]]&isQuery != 0 {
			i++
		}
	}
	if i < end {
		if buf[i] == '#' {
			return errTargetFragment
		}
		return errTargetByte
	}
	if all&isDotOrPct != 0 {
		path := r.Path.In(buf)
		if !validEscapes(path) {
			return errTargetByte
		}
		r.DotSegments = hasDotSegments(path)
	}
	return nil
}

// validEscapes reports whether two hexadecimal digits follow every '%'.
func validEscapes(path []byte) bool {
	for i, c := range path {
		if c == '%' && (i+2 >= len(path) || hexValue[path[i+1]]|hexValue[path[i+2]] == notHex) {
			return false
		}
	}
	return true
}

// hasDotSegments looks at the path's segments as somebody sees them who
// decodes once and takes '\' for '/'.
func hasDotSegments(path []byte) bool {
	dots, others := 0, 0 // in the segment so far
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' {
			c = hexValue[path[i+1]]<<4 | hexValue[path[i+2]]
			i += 2
		}
		switch c {
		case '.':
			dots++
		case '/', '\\':
			if others == 0 && (dots == 1 || dots == 2) {
				return true
			}
			dots, others = 0, 0
		default:
			others++
		}
	}
	return others == 0 && (dots == 1 || dots == 2)
}

// host checks the Host field, and the authority of an absolute target against it.
func (r *Request) host(buf []byte) *Error {
	if !r.Has(Host) {
		if r.Version == HTTP11 {
			return errHostMissing
		}
		r.Host = r.Authority
		return nil
	}
	if r.Repeated(Host) {
		return errHostRepeated
	}
	r.Host = r.First(Host)
	host := r.Host.In(buf)
	if !validHost(host) {
		return errHost
	}
	// RFC 9112 section 3.2.2 has a proxy replace Host. Who sends two that
	// differ hopes that somebody behind us looks at the other one.
	if r.Form == AbsoluteForm && !sameFold(host, r.Authority.In(buf)) {
		return errHostDiffers
	}
	return nil
}

// validHost reports whether b is a host with an optional port: a name of
// letters, digits and "-._~", an IPv4 address, or an IPv6 address in brackets. RFC
// 3986 would have sub-delimiters and percent-encoding in names, too; no name
// that can be looked up has them, and a comma is what two joined Host fields look like.
func validHost(b []byte) bool {
	end := 0
	if len(b) > 0 && b[0] == '[' {
		for end < len(b) && b[end] != ']' {
			end++
		}
		if end == len(b) || !validIPv6(b[1:end]) {
			return false
		}
		end++
	} else {
		for end < len(b) && class[b[end]]&isHost != 0 {
			end++
		}
	}
	if end == 0 {
		return false
	}
	return end == len(b) || b[end] == ':' && validPort(b[end+1:])
}

func validPort(b []byte) bool {
	if len(b) == 0 || len(b) > 5 {
		return false
	}
	n := 0
	for _, c := range b {
		if !isDigit(c) {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return n <= 65535
}

// validIPv6 reports whether b is an IPv6 address as RFC 3986 section 3.2.2 writes it, without a zone.
func validIPv6(b []byte) bool {
	groups, elided := 0, false
	for i := 0; ; {
		if i+1 < len(b) && b[i] == ':' && b[i+1] == ':' { // at the beginning, or the second colon behind a group
			if elided {
				return false
			}
			elided = true
			if i += 2; i == len(b) {
				break
			}
		} else if i > 0 {
			if i >= len(b) || b[i] != ':' {
				return false
			}
			i++
		}
		digits := i
		for i < len(b) && i-digits < 5 && hexValue[b[i]] != notHex {
			i++
		}
		if i < len(b) && b[i] == '.' {
			if !validIPv4(b[digits:]) {
				return false
			}
			groups += 2
			break
		}
		if i == digits || i-digits > 4 {
			return false
		}
		groups++
		if i == len(b) {
			break
		}
	}
	if elided {
		return groups <= 7
	}
	return groups == 8
}

func validIPv4(b []byte) bool {
	for part := range 4 {
		n, digits := 0, 0
		for digits < len(b) && digits < 4 && isDigit(b[digits]) {
			n = n*10 + int(b[digits]-'0')
			digits++
		}
		if digits == 0 || n > 255 || digits > 1 && b[0] == '0' {
			return false
		}
		b = b[digits:]
		if part < 3 {
			if len(b) == 0 || b[0] != '.' {
				return false
			}
			b = b[1:]
		}
	}
	return len(b) == 0
}
