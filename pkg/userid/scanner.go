package userid

import "fmt"

// Verdict is what a [Scanner] knows about the body so far.
type Verdict uint8

const (
	More   Verdict = iota // undecided: feed on, or Finish
	Found                 // decided: UserID and Source are valid, the rest of the body need not be looked at
	Absent                // decided: the body carries no user id
)

// String returns the verdict as a lower-case word.
func (v Verdict) String() string {
	switch v {
	case More:
		return "more"
	case Found:
		return "found"
	case Absent:
		return "absent"
	}
	return "unknown"
}

// SyntaxError says why and where a body is not what its media type promises. Its text is fit for the client.
type SyntaxError struct {
	Format string // "JSON" or "multipart"
	Offset int64  // of the offending byte in the body, from 0; the body's length if it ends too early
	Reason string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("malformed %s body at byte %d: %s", e.Format, e.Offset, e.Reason)
}

type format uint8

const (
	formatNone format = iota
	formatJSON
	formatMultipart
	formatURLEncoded
)

// Scanner finds the user id in a body that is pushed through it piece by piece. How the body is cut into pieces never
// changes the outcome. It keeps at most the larger of [MaxLength] and one part's header (16 KiB), and one bit for each
// level of nested JSON beyond a small fixed state; it never keeps a piece. A body of no bytes is Absent in all formats,
// as clients send a Content-Type with requests that have no body.
//
//   - JSON (RFC 8259) is checked strictly to its end, except that a UTF-8 byte order mark at the start is passed over
//     (section 8.1 allows it) and that bytes within strings need not be UTF-8. It is decided by Finish only, since of
//     repeated keys the last counts. Values nested deeper than [MaxDepth] are an error.
//   - multipart/form-data (RFC 7578) is decided by the first field user that is not empty after trimming, as soon as
//     the delimiter behind it has been seen, or by the closing delimiter. Parts with a filename are files, never the
//     user, even if the filename is empty. Content-Transfer-Encoding is ignored: RFC 7578 section 4.7 deprecates it.
//     Lines may end in LF alone, as other servers accept it.
//   - application/x-www-form-urlencoded is decided like multipart, as soon as the pair is complete. Malformed escapes
//     stand for themselves, as in [FromQuery]; such a body is never malformed.
//
// The zero value is a Scanner of a body that cannot carry a user id. Not safe for concurrent use.
type Scanner struct {
	format  format
	verdict Verdict
	err     error
	off     int64  // bytes in earlier Writes
	val     []byte // the candidate's bytes; also a part's header, while one is read
	valOff  int64  // where in the body the candidate's value starts
	id      string
	json    jsonState
	multi   multipartState
	form    formState
}

// NewScanner returns a Scanner for a body of the given Content-Type, or nil without an error if bodies of that type
// cannot carry a user id. The error is that of a multipart/form-data without one usable boundary (RFC 2046 section
// 5.1.1: 1 to 70 bytes, not ending in a space); its text is fit for a 400 answer.
func NewScanner(contentType string) (*Scanner, error) {
	if formatOf(contentType) == formatNone {
		return nil, nil
	}
	s := new(Scanner)
	if _, err := s.Reset(contentType); err != nil {
		return nil, err
	}
	return s, nil
}

// Reset makes s a Scanner for a new body, as NewScanner would, and keeps its memory for reuse. It returns false if
// bodies of that type cannot carry a user id. Ids handed out earlier stay valid.
func (s *Scanner) Reset(contentType string) (ok bool, err error) {
	*s = Scanner{format: formatOf(contentType), val: s.val[:0], json: jsonState{deeper: s.json.recycle()}}
	if s.format == formatMultipart {
		s.val = append(s.val, contentType...)
		boundary, err := boundaryOf(s.val)
		if err != nil {
			*s = Scanner{val: s.val[:0], json: s.json}
			return false, err
		}
		s.multi.init(boundary)
		s.val = s.val[:0]
	}
	return s.format != formatNone, nil
}

// Write looks at the next piece of the body. Once it has returned Found, Absent or an error, further calls return the
// same and look at nothing. The error is a [*SyntaxError] or wraps [ErrTooLong]; the verdict beside it is More.
func (s *Scanner) Write(p []byte) (Verdict, error) {
	if s.err != nil || s.verdict != More {
		return s.verdict, s.err
	}
	switch s.format {
	case formatJSON:
		s.err = s.writeJSON(p)
	case formatMultipart:
		s.err = s.writeMultipart(p)
	case formatURLEncoded:
		s.err = s.writeForm(p)
	default:
		s.verdict = Absent
	}
	s.off += int64(len(p))
	return s.verdict, s.err
}

// Finish tells s that the body has ended. It returns Found or Absent, or an error (then beside More) if one occurred
// earlier or the body ends too early. Further calls return the same.
func (s *Scanner) Finish() (Verdict, error) {
	if s.err != nil || s.verdict != More {
		return s.verdict, s.err
	}
	if s.off > 0 {
		switch s.format {
		case formatJSON:
			s.err = s.finishJSON()
		case formatMultipart:
			s.err = s.syntaxError("multipart", 0, "ends before the closing delimiter")
		case formatURLEncoded:
			s.err = s.finishForm()
		}
	}
	if s.verdict == More && s.err == nil {
		s.verdict = Absent
	}
	return s.verdict, s.err
}

// UserID returns the user id after Found, else "".
func (s *Scanner) UserID() string {
	return s.id
}

// Source returns JSON or Form after Found, else None.
func (s *Scanner) Source() Source {
	switch {
	case s.verdict != Found:
		return None
	case s.format == formatJSON:
		return JSON
	}
	return Form
}

func (s *Scanner) found(id []byte) {
	s.verdict, s.id = Found, string(id)
}

// take adds bytes to the candidate.
func (s *Scanner) take(p []byte) error {
	if len(s.val)+len(p) > MaxLength {
		return s.tooLong()
	}
	s.val = append(s.val, p...)
	return nil
}

func (s *Scanner) tooLong() error {
	return fmt.Errorf("%w: value at byte %d of the body exceeds %d bytes", ErrTooLong, s.valOff, MaxLength)
}

// syntaxError reports byte i of the current piece.
func (s *Scanner) syntaxError(format string, i int, reason string) error {
	return &SyntaxError{Format: format, Offset: s.off + int64(i), Reason: reason}
}
