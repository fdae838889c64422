package userid

import "bytes"

const (
	// maxPartHeader bounds the header of one part, in bytes.
	maxPartHeader = 16 << 10
	// maxPadding bounds the white space that transports may add to a delimiter (RFC 2046 section 5.1.1).
	maxPadding = 64
)

type multipartPosition uint8

const (
	inContent      multipartPosition = iota // of a part, or in the preamble
	afterDelimiter                          // padding, the line's end, or the first '-' of "--"
	afterReturn                             // '\n'
	afterDash                               // the second '-'
	inPartHeader
)

// multipartState reads multipart/form-data (RFC 7578, RFC 2046 section 5.1).
//
// A delimiter is a line end, "--", the boundary, padding and a line end, or instead of the last two "--", which closes
// the body. Anything else that looks like one is content, as "--boundaryX" is. The byte that a delimiter begins with
// ('\r', or '\n' if lines end in that) does not occur in it again, so a match that fails can only start anew at the
// byte that failed, and the bytes held back meanwhile are the delimiter's own: none need to be kept.
type multipartState struct {
	position  multipartPosition
	line      [len("\r\n--") + maxBoundary]byte
	length    int  // of line in use
	bareLF    bool // lines end in LF alone: delimiters are searched for without line's '\r'
	parts     bool // the preamble is over
	capture   bool // the part is a field user
	matched   int  // bytes of the delimiter seen
	consumed  int  // how many of them belong to what stands before the content
	npadding  int
	padding   [maxPadding]byte
	lineStart int   // in the part's header, of the line being read
	headerOff int64 // where in the body the part's header starts
}

func (m *multipartState) init(boundary []byte) {
	n := copy(m.line[:], "\r\n--")
	m.length = n + copy(m.line[n:], boundary)
	// In the preamble a LF will do, and the first delimiter may stand at the body's very start.
	m.bareLF = true
	m.matched, m.consumed = 1, 1
}

func (m *multipartState) delimiter() []byte {
	if m.bareLF {
		return m.line[1:m.length]
	}
	return m.line[:m.length]
}

func (s *Scanner) writeMultipart(p []byte) error {
	m := &s.multi
	for i := 0; i < len(p); {
		c := p[i]
		switch m.position {
		case inContent:
			n, err := s.partContent(p[i:])
			if err != nil {
				return err
			}
			i += n
			continue

		case afterDelimiter:
			switch {
			case c == '\n':
				s.beginPart(i, true)
			case c == '\r':
				m.position = afterReturn
			case c == '-' && m.npadding == 0:
				m.position = afterDash
			case (c == ' ' || c == '\t') && m.npadding < maxPadding:
				m.padding[m.npadding] = c
				m.npadding++
			default:
				if err := s.noDelimiter(""); err != nil {
					return err
				}
				continue
			}

		case afterReturn:
			if c != '\n' {
				if err := s.noDelimiter("\r"); err != nil {
					return err
				}
				continue
			}
			s.beginPart(i, false)

		case afterDash:
			if c != '-' {
				if err := s.noDelimiter("-"); err != nil {
					return err
				}
				continue
			}
			s.endPart()
			if s.verdict == More {
				s.verdict = Absent
			}

		case inPartHeader:
			n, err := s.partHeader(p[i:], i)
			if err != nil {
				return err
			}
			i += n
			continue
		}
		if s.verdict != More {
			return nil
		}
		i++
	}
	return nil
}

// partContent consumes content up to and including a delimiter's boundary, or all of p, which is not empty.
func (s *Scanner) partContent(p []byte) (n int, err error) {
	m := &s.multi
	delimiter := m.delimiter()
	if m.matched > 0 {
		n = commonPrefix(p, delimiter[m.matched:])
		m.matched += n
		switch {
		case m.matched == len(delimiter):
			m.position, m.npadding = afterDelimiter, 0
			return n, nil
		case n == len(p):
			return n, nil
		}
		held := delimiter[m.consumed:m.matched]
		m.matched, m.consumed = 0, 0
		return n, s.content(held)
	}
	if at := bytes.Index(p, delimiter); at >= 0 {
		m.matched = len(delimiter)
		m.position, m.npadding = afterDelimiter, 0
		return at + len(delimiter), s.content(p[:at])
	}
	tail := p[max(0, len(p)-len(delimiter)+1):]
	if at := bytes.LastIndexByte(tail, delimiter[0]); at >= 0 && bytes.HasPrefix(delimiter, tail[at:]) {
		m.matched = len(tail) - at
	}
	return len(p), s.content(p[:len(p)-m.matched])
}

func commonPrefix(a, b []byte) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// noDelimiter makes content of what was held back: a delimiter's boundary, the padding, and last.
func (s *Scanner) noDelimiter(last string) error {
	m := &s.multi
	held := m.delimiter()[m.consumed:]
	m.position, m.matched, m.consumed = inContent, 0, 0
	if !m.capture {
		return nil
	}
	if err := s.content(held); err != nil {
		return err
	}
	if err := s.content(m.padding[:m.npadding]); err != nil {
		return err
	}
	return s.content([]byte(last))
}

func (s *Scanner) content(p []byte) error {
	if !s.multi.capture {
		return nil
	}
	return s.take(p)
}

// endPart decides if the part that has ended is the user's and not empty.
func (s *Scanner) endPart() {
	if !s.multi.capture {
		return
	}
	s.multi.capture = false
	if id := bytes.TrimSpace(s.val); len(id) > 0 {
		s.found(id)
	}
}

// beginPart ends the part before and starts to read a header, behind the delimiter line that byte i of the piece ends.
func (s *Scanner) beginPart(i int, bareLF bool) {
	s.endPart()
	m := &s.multi
	if !m.parts {
		m.parts, m.bareLF = true, bareLF
	}
	m.position, m.lineStart = inPartHeader, 0
	m.headerOff = s.off + int64(i) + 1
	s.val = s.val[:0]
}

// partHeader consumes a line of a part's header, or all of p, which stands at offset i of the piece.
func (s *Scanner) partHeader(p []byte, i int) (n int, err error) {
	m := &s.multi
	n = len(p)
	end := bytes.IndexByte(p, '\n')
	if end >= 0 {
		n = end + 1
	}
	if len(s.val)+n > maxPartHeader {
		return 0, s.syntaxError("multipart", i+maxPartHeader-len(s.val), "part header of more than 16384 bytes")
	}
	s.val = append(s.val, p[:n]...)
	if end < 0 {
		return n, nil
	}
	line := trimLineEnd(s.val[m.lineStart:])
	if len(line) > 0 {
		return n, s.checkHeaderLine(line)
	}
	m.capture = isUserPart(s.val[:m.lineStart])
	s.val = s.val[:0]
	s.valOff = s.off + int64(i+n)
	// The empty line's end may be that of the delimiter of a part without content (RFC 2046 section 5.1.1, body-part).
	m.position = inContent
	m.matched = len("\r\n")
	if m.bareLF {
		m.matched = len("\n")
	}
	m.consumed = m.matched
	return n, nil
}

// checkHeaderLine looks at the line of a part's header that has just been completed.
func (s *Scanner) checkHeaderLine(line []byte) error {
	m := &s.multi
	folded := m.lineStart > 0 && isBlank(line[0])
	if !folded && bytes.IndexByte(line, ':') <= 0 {
		return &SyntaxError{"multipart", m.headerOff + int64(m.lineStart), "part header line without a name and ':'"}
	}
	m.lineStart = len(s.val)
	return nil
}

// isUserPart says whether the part with the given header, which it may overwrite, is a field user: the first
// Content-Disposition counts. A parameter name* is not a name: RFC 7578 section 4.2 forbids the extended notation.
func isUserPart(header []byte) bool {
	for len(header) > 0 {
		var line []byte
		line, header = nextHeaderLine(header)
		name, value, _ := bytes.Cut(line, []byte{':'})
		if equalFold(name, "content-disposition") {
			return isUserDisposition(value)
		}
	}
	return false
}

// nextHeaderLine cuts off a line together with the folded ones that continue it, joined in place.
func nextHeaderLine(header []byte) (line, rest []byte) {
	rest = header
	for {
		end := bytes.IndexByte(rest, '\n') + 1 // every line has one
		line = append(header[:len(line)], trimLineEnd(rest[:end])...)
		rest = rest[end:]
		if len(rest) == 0 || !isBlank(rest[0]) {
			return line, rest
		}
	}
}

func isUserDisposition(disposition []byte) bool {
	kind, rest, _ := bytes.Cut(disposition, []byte{';'})
	if !equalFold(bytes.Trim(kind, " \t"), "form-data") {
		return false
	}
	params := parameters{rest}
	named, user := false, false
	for params.more() {
		name, value := params.next()
		if plain, _, _ := bytes.Cut(name, []byte{'*'}); equalFold(plain, "filename") {
			return false
		}
		if !named && equalFold(name, "name") {
			named, user = true, string(value) == fieldName
		}
	}
	return user
}

func trimLineEnd(line []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(line, []byte{'\n'}), []byte{'\r'})
}

func isBlank(c byte) bool {
	return c == ' ' || c == '\t'
}
