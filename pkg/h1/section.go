package h1

import (
	"bytes"
	"math"
	"math/bits"
)

const (
	maxFields  = 1<<16 - 1
	maxOptions = 32 // connection options in one head; real ones have three
)

// Field is one field line of a head or of a trailer section.
type Field struct {
	Name, Value Span // Value without the white space around it
	ID          KnownField
	// Hop is set if the field belongs to this connection: by its name (RFC
	// 9110 section 7.6.1), or because Connection names it.
	Hop bool
}

// Section is a header or trailer section. Its Fields keep the order of the
// lines and are overwritten by the next parse. The zero Section is empty.
type Section struct {
	Fields []Field

	seen, repeated fieldSet
	first          [numKnown]uint16 // index of a name's first line; valid if seen has the name

	// Parsing goes on from here, with no byte looked at twice for the end of a line.
	pos     int // where the unfinished line begins
	scanned int // no line ends in buf[pos:scanned]
}

// Has reports whether a field of that name is there.
func (s *Section) Has(id KnownField) bool { return s.seen.has(id) }

// Repeated reports whether there are two or more.
func (s *Section) Repeated(id KnownField) bool { return s.repeated.has(id) }

// First returns the value of the first line of that name; the zero Span, if there is none.
func (s *Section) First(id KnownField) Span {
	if !s.seen.has(id) {
		return Span{}
	}
	return s.Fields[s.first[id]].Value
}

// Errors of field lines.
var (
	errBareLF         = &Error{400, "a line ends without CR", "RFC 9112 section 2.2"}
	errBareCR         = &Error{400, "a CR stands without LF", "RFC 9112 section 2.2"}
	errControl        = &Error{400, "a field value holds a control byte", "RFC 9110 section 5.5"}
	errObsFold        = &Error{400, "a field line begins with white space", "RFC 9112 section 5.2"}
	errNoColon        = &Error{400, "a field line has no colon", "RFC 9112 section 5"}
	errSpaceColon     = &Error{400, "white space stands before the colon of a field line", "RFC 9112 section 5.1"}
	errFieldName      = &Error{400, "a field name is not a token", "RFC 9110 section 5.1"}
	errHeadTooLarge   = &Error{431, "the field section is too large", "RFC 6585 section 5"}
	errTooManyFields  = &Error{431, "the field section has too many fields", "RFC 6585 section 5"}
	errOption         = &Error{400, "the Connection field is malformed", "RFC 9110 section 7.6.1"}
	errOptionEndToEnd = &Error{400, "the Connection field names a field that is for all recipients", "RFC 9110 section 7.6.1"}
	errTooManyOptions = &Error{431, "the Connection field has too many options", "RFC 9110 section 7.6.1"}
	errTrailerField   = &Error{400, "the Trailer field announces what no trailer may be", "RFC 9110 section 6.5.1"}
)

func (s *Section) reset(pos int) {
	s.Fields = s.Fields[:0]
	s.seen, s.repeated = 0, 0
	s.pos, s.scanned = pos, pos
}

// nextLine returns the end of the line that begins at pos, which is the place
// of its LF, within the first bound bytes of buf. Without one it is tooLarge's
// turn where bound is reached, and more bytes are needed where it is not.
func (s *Section) nextLine(buf []byte, bound int, tooLarge *Error) (lf int, err error) {
	window := buf[:min(len(buf), bound)]
	i := bytes.IndexByte(window[s.scanned:], '\n')
	if i >= 0 {
		return s.scanned + i, nil
	}
	s.scanned = len(window)
	if len(buf) >= bound {
		return 0, tooLarge
	}
	return 0, ErrIncomplete
}

// parse reads field lines up to and with the empty line that ends them, and
// returns where that ends. Only lines that are there in full are looked into,
// and in their order: how the bytes arrived makes no difference to what comes out.
func (s *Section) parse(buf []byte, bound, fields int) (n int, err error) {
	window := buf[:min(len(buf), bound)]
	for {
		for len(s.Fields) < fields && s.parseQuickly(window) {
		}
		if n, err := s.parseSlowly(buf, bound, fields); n > 0 || err != nil {
			return n, err
		}
	}
}

// parseSlowly reads one line, whatever it is. n is where the section ends, 0
// while it goes on.
func (s *Section) parseSlowly(buf []byte, bound, fields int) (n int, err error) {
	lf, err := s.nextLine(buf, bound, errHeadTooLarge)
	if err != nil {
		return 0, err
	}
	start, end := s.pos, lf-1
	if end < start || buf[end] != '\r' {
		return 0, errBareLF
	}
	if end == start {
		return lf + 1, nil
	}
	if len(s.Fields) >= fields {
		return 0, errTooManyFields
	}
	if err := s.parseLine(buf, start, end); err != nil {
		return 0, err
	}
	s.pos, s.scanned = lf+1, lf+1
	return 0, nil
}

// parseQuickly reads the line at pos if it is there in full, is as most lines
// are (a known name, a value of visible bytes and spaces), and is not the empty
// one. Else it leaves all as it is. What it reads, parseSlowly would read the same way, looking at each byte three times.
func (s *Section) parseQuickly(buf []byte) bool {
	start := s.pos
	colon := start
	for {
		if colon+8 > len(buf) || colon-start > maxKnownName {
			return false
		}
		w := load(buf, colon) ^ ':'*lowBits
		if m := (w - lowBits) &^ w & highBits; m != 0 {
			colon += bits.TrailingZeros64(m) / 8
			break
		}
		colon += 8
	}
	id := lookup(buf[start:colon])
	if id == UnknownField {
		return false
	}
	from := colon + 1
	if from < len(buf) && buf[from] == ' ' {
		from++
	}
	end := from
	for {
		if end+8 > len(buf) {
			for end < len(buf) && !isControl(buf[end]) {
				end++
			}
			break
		}
		if m := suspect(load(buf, end)); m != 0 {
			end += bits.TrailingZeros64(m) / 8
			break
		}
		end += 8
	}
	if end+1 >= len(buf) || buf[end] != '\r' || buf[end+1] != '\n' {
		return false
	}
	if from < end && (isSpace(buf[from]) || isSpace(buf[end-1])) {
		return false
	}
	s.add(id, span(start, colon), span(from, end))
	s.pos, s.scanned = end+2, end+2
	return true
}

// parseLine reads the field line buf[start:end]; buf[end] is its CR.
func (s *Section) parseLine(buf []byte, start, end int) *Error {
	line := buf[:end+1]
	all, colon := uint8(0), start
	for ; colon < len(line); colon++ {
		k := class[line[colon]]
		if k&isToken == 0 {
			break // the CR at the latest
		}
		all |= k
	}
	if line[colon] != ':' || colon == start {
		return nameError(line[start:end], colon-start)
	}
	id := Underscored
	if all&isUnderscore == 0 {
		id = lookup(line[start:colon])
	}
	from, to := colon+1, end
	for from < to && isSpace(line[from]) {
		from++
	}
	for to > from && isSpace(line[to-1]) {
		to--
	}
	if value := line[from:to]; hasControl(value) {
		if bytes.IndexByte(value, '\r') >= 0 {
			return errBareCR
		}
		return errControl
	}
	s.add(id, span(start, colon), span(from, to))
	return nil
}

func (s *Section) add(id KnownField, name, value Span) {
	if id != UnknownField {
		if b := bit(id); s.seen&b != 0 {
			s.repeated |= b
		} else {
			s.seen |= b
			s.first[id] = uint16(len(s.Fields))
		}
	}
	s.Fields = append(s.Fields, Field{name, value, id, hopByHop.has(id)})
}

// nameError says what is wrong with a line whose first n bytes only are of a token.
func nameError(line []byte, n int) *Error {
	switch {
	case n == 0 && isSpace(line[0]):
		return errObsFold
	case bytes.IndexByte(line, '\r') >= 0:
		return errBareCR
	case bytes.IndexByte(line, ':') < 0:
		return errNoColon
	case n > 0 && trim(line[n:])[0] == ':':
		return errSpaceColon
	}
	return errFieldName
}

// options are what Connection asks for.
type options struct{ close, keepAlive, upgrade bool }

// connection reads the Connection fields and marks what they name.
func (s *Section) connection(buf []byte) (o options, err *Error) {
	if !s.Has(Connection) {
		return o, nil
	}
	count := 0
	for i := int(s.first[Connection]); i < len(s.Fields); i++ {
		if s.Fields[i].ID != Connection {
			continue
		}
		for list, more := s.Fields[i].Value.In(buf), true; more; {
			var name []byte
			name, list, more = nextElement(list)
			if len(name) == 0 { // RFC 9110 section 5.6.1.2: a recipient takes a few empty ones
				if count++; count > maxOptions {
					return o, errTooManyOptions
				}
				continue
			}
			if !validToken(name) {
				return o, errOption
			}
			if count++; count > maxOptions {
				return o, errTooManyOptions
			}
			if foldEqual(name, "close") {
				o.close = true
				continue
			}
			switch id := lookup(name); {
			case id == KeepAlive:
				o.keepAlive = true
			case id == Upgrade:
				o.upgrade = true
			case notOptions.has(id):
				return o, errOptionEndToEnd
			case id == UnknownField, s.seen.has(id) && !hopByHop.has(id):
				s.markHop(buf, name, id)
			}
		}
		if !s.Repeated(Connection) {
			break
		}
	}
	return o, nil
}

func (s *Section) markHop(buf, name []byte, id KnownField) {
	for i := range s.Fields {
		f := &s.Fields[i]
		if id != UnknownField && f.ID == id || f.ID <= Underscored && sameFold(f.Name.In(buf), name) {
			f.Hop = true
		}
	}
}

// checkTrailer looks at what the Trailer fields announce.
func (s *Section) checkTrailer(buf []byte) *Error {
	if !s.Has(Trailer) {
		return nil
	}
	for i := range s.Fields {
		if s.Fields[i].ID != Trailer {
			continue
		}
		for list, more := s.Fields[i].Value.In(buf), true; more; {
			var name []byte
			name, list, more = nextElement(list)
			if len(name) > 0 && (!validToken(name) || !lookup(name).TrailerAllowed()) {
				return errTrailerField
			}
		}
	}
	return nil
}

// hasTrailersCoding reports whether TE says that trailers are welcome (RFC 9110 section 10.1.4).
func (s *Section) hasTrailersCoding(buf []byte) bool {
	if !s.Has(TE) {
		return false
	}
	for i := range s.Fields {
		if s.Fields[i].ID != TE {
			continue
		}
		for list, more := s.Fields[i].Value.In(buf), true; more; {
			var coding []byte
			if coding, list, more = nextElement(list); foldEqual(coding, "trailers") {
				return true
			}
		}
	}
	return false
}

// Errors of framing.
var (
	errLengthRepeated   = &Error{400, "the Content-Length field is repeated", "RFC 9112 section 6.3"}
	errLength           = &Error{400, "the Content-Length field is malformed", "RFC 9110 section 8.6"}
	errCodingRepeated   = &Error{400, "the Transfer-Encoding field is repeated", "RFC 9112 section 6.1"}
	errCoding           = &Error{400, "the Transfer-Encoding field is malformed", "RFC 9112 section 6.1"}
	errCodingUnknown    = &Error{501, "the transfer coding is not supported; only chunked is", "RFC 9112 section 6.1"}
	errCodingIn10       = &Error{400, "a message of HTTP/1.0 has a transfer coding", "RFC 9112 section 6.1"}
	errLengthAndCoding  = &Error{400, "the message has both Content-Length and Transfer-Encoding", "RFC 9112 section 6.1"}
	errContentTypeAgain = &Error{400, "the Content-Type field is repeated", "RFC 9110 section 8.3"}
)

// framing reads Content-Length and Transfer-Encoding: how long the body is,
// -1 without Content-Length, and whether it is chunked.
func (s *Section) framing(buf []byte, v Version) (length int64, chunked bool, err *Error) {
	length = -1
	if s.seen&(1<<ContentLength|1<<TransferEncoding) == 0 {
		return length, false, nil
	}
	if s.Has(TransferEncoding) {
		switch value := s.First(TransferEncoding).In(buf); {
		case s.Repeated(TransferEncoding):
			return length, false, errCodingRepeated
		case s.Has(ContentLength):
			return length, false, errLengthAndCoding
		case v == HTTP10:
			return length, false, errCodingIn10
		case !foldEqual(value, "chunked"):
			return length, false, codingError(value)
		}
		return length, true, nil
	}
	if s.Repeated(ContentLength) {
		return length, false, errLengthRepeated
	}
	if length = parseLength(s.First(ContentLength).In(buf)); length < 0 {
		return length, false, errLength
	}
	return length, false, nil
}

// codingError tells codings that are unknown to us from those that are nonsense to everybody.
func codingError(list []byte) *Error {
	unknown := false
	for more := true; more; {
		var coding []byte
		coding, list, more = nextElement(list)
		name, _, _ := bytes.Cut(coding, []byte{';'})
		if name = trim(name); !validToken(name) {
			return errCoding
		}
		unknown = unknown || !foldEqual(name, "chunked")
	}
	if unknown {
		return errCodingUnknown
	}
	return errCoding // chunked twice, or with parameters
}

// parseLength reads 1*DIGIT below 2^63; -1 if it is anything else.
func parseLength(b []byte) int64 {
	if len(b) == 0 || len(b) > 19 { // 2^63 has 19 digits, so that 19 of them fit into a uint64
		return -1
	}
	n := uint64(0)
	for _, c := range b {
		if !isDigit(c) {
			return -1
		}
		n = n*10 + uint64(c-'0')
	}
	if n > math.MaxInt64 {
		return -1
	}
	return int64(n)
}
