package userid

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxDepth is how many arrays and objects of a JSON body may be open at once. One level costs one bit.
const MaxDepth = 1 << 20

// jsonPosition is what may come next, named after what stands before or is expected.
type jsonPosition uint8

const (
	atStart      jsonPosition = iota // a byte order mark or the value
	atMark2                          // the byte order mark's second byte
	atMark3                          // its third
	atValue                          // a value
	atFirstValue                     // a value or ']'
	atFirstKey                       // a key or '}'
	atKey                            // a key
	atColon                          //
	afterValue                       // ',' or the bracket that closes
	atEnd                            // white space only
	inString                         // a string's byte or its end
	inEscape                         // the byte after '\'
	inHex                            // a digit of \uXXXX
	inLiteral                        // the next byte of true, false or null
	afterMinus                       // a number's first digit
	afterZero                        // '.', 'e' or the end of the number
	inInteger                        // a digit, '.', 'e' or the end
	afterPoint                       // a digit
	inFraction                       // a digit, 'e' or the end
	afterE                           // a sign or digit
	afterSign                        // a digit
	inExponent                       // a digit or the end
)

var jsonExpected = [...]string{
	atStart:      "a value",
	atMark2:      "a byte order mark",
	atMark3:      "a byte order mark",
	atValue:      "a value",
	atFirstValue: "a value or ']'",
	atFirstKey:   "a string or '}'",
	atKey:        "a string",
	atColon:      "':'",
	afterValue:   "',' or a closing bracket",
	atEnd:        "the end",
	inString:     "a character of a string",
	inEscape:     "an escape",
	inHex:        "a hexadecimal digit",
	inLiteral:    "true, false or null",
	afterMinus:   "a digit",
	afterZero:    "the end of a number",
	inInteger:    "a digit",
	afterPoint:   "a digit",
	inFraction:   "a digit",
	afterE:       "a digit or a sign",
	afterSign:    "a digit",
	inExponent:   "a digit",
}

// stringRole is what the string being read is needed for.
type stringRole uint8

const (
	otherValue stringRole = iota
	otherKey
	topKey    // a key of the top-level object
	userValue // its member user
)

// jsonState is an iterative RFC 8259 reader. Invariants: 0 <= depth <= MaxDepth; top's lowest bit is the innermost
// container, 1 for an object; each 64 levels further out are a word of deeper.
type jsonState struct {
	position jsonPosition
	role     stringRole
	name     nameMatch // the top-level key being read
	wanted   bool      // the value that comes next is the user's
	capture  bool      // the number or literal being read, if any, is the user's
	hexes    uint8     // digits of \uXXXX read so far
	hex      uint16    // their value
	high     uint16    // a high surrogate that waits for its low one, or 0
	literal  string    // what is left to come of true, false or null
	depth    int
	top      uint64
	deeper   []uint64
}

// recycle returns the memory that is worth keeping for the next body.
func (j *jsonState) recycle() []uint64 {
	const keepWords = 64
	if cap(j.deeper) > keepWords {
		return nil
	}
	return j.deeper[:0]
}

func (j *jsonState) push(object uint64) {
	if j.depth > 0 && j.depth%64 == 0 {
		j.deeper = append(j.deeper, j.top)
	}
	j.top = j.top<<1 | object
	j.depth++
}

// pop closes the innermost container and returns what may follow.
func (j *jsonState) pop() jsonPosition {
	j.depth--
	j.top >>= 1
	if j.depth == 0 {
		return atEnd
	}
	if j.depth%64 == 0 {
		last := len(j.deeper) - 1
		j.top, j.deeper = j.deeper[last], j.deeper[:last]
	}
	return afterValue
}

func (j *jsonState) inObject() bool {
	return j.top&1 != 0
}

// after is where a value that is no container ends.
func (j *jsonState) after() jsonPosition {
	if j.depth == 0 {
		return atEnd
	}
	return afterValue
}

func (j *jsonState) beginKey() jsonPosition {
	j.role = otherKey
	if j.depth == 1 {
		j.role, j.name = topKey, 0
	}
	return inString
}

func (s *Scanner) writeJSON(p []byte) error {
	j := &s.json
	at := j.position
	for i := 0; i < len(p); i++ {
		c := p[i]
	again:
		switch at {
		case inString:
			if n := plainPrefix(p[i:]); n > 0 {
				if j.role >= topKey {
					if err := s.takeText(p[i : i+n]); err != nil {
						return err
					}
				}
				i += n
				if i == len(p) {
					j.position = at
					return nil
				}
				c = p[i]
			}
			switch c {
			case '"':
				var err error
				if at, err = s.endString(); err != nil {
					return err
				}
			case '\\':
				at = inEscape
			default:
				return s.jsonError(i, c, at)
			}

		case atFirstKey, atKey:
			switch {
			case c == '"':
				at = j.beginKey()
			case c == '}' && at == atFirstKey:
				at = j.pop()
			case !isSpace(c):
				return s.jsonError(i, c, at)
			}

		case atColon:
			if c == ':' {
				at = atValue
			} else if !isSpace(c) {
				return s.jsonError(i, c, at)
			}

		case afterValue:
			switch {
			case c == ',':
				at = atValue
				if j.inObject() {
					at = atKey
				}
			case c == '}' && j.inObject(), c == ']' && !j.inObject():
				at = j.pop()
			case !isSpace(c):
				return s.jsonError(i, c, at)
			}

		case atStart, atValue, atFirstValue:
			if isSpace(c) {
				if at == atStart {
					at = atValue
				}
				continue
			}
			if c == ']' && at == atFirstValue {
				at = j.pop()
				continue
			}
			next := s.beginValue(c, i)
			if next == atStart {
				if at == atStart && c == byteOrderMark[0] {
					at = atMark2
					continue
				}
				if c == '{' || c == '[' {
					return s.syntaxError("JSON", i, fmt.Sprintf("nested deeper than %d levels", MaxDepth))
				}
				return s.jsonError(i, c, at)
			}
			if j.capture {
				s.val = append(s.val, c)
			}
			at = next

		case atMark2, atMark3:
			if c != byteOrderMark[at-atStart] {
				return s.jsonError(i, c, at)
			}
			at++ // atMark2 to atMark3 to atValue

		case inEscape:
			if c == 'u' {
				at, j.hexes, j.hex = inHex, 0, 0
				continue
			}
			b := unescaped[c]
			if b == 0 {
				return s.jsonError(i, c, at)
			}
			at = inString
			if err := s.takeRune(rune(b)); err != nil {
				return err
			}

		case inHex:
			if !isHex(c) {
				return s.jsonError(i, c, at)
			}
			j.hex = j.hex<<4 | uint16(unhex(c))
			if j.hexes++; j.hexes == 4 {
				at = inString
				if err := s.takeCodeUnit(j.hex); err != nil {
					return err
				}
			}

		case inLiteral:
			if c != j.literal[0] {
				return s.jsonError(i, c, at)
			}
			if j.capture {
				s.val = append(s.val, c)
			}
			if j.literal = j.literal[1:]; j.literal == "" {
				at = j.after()
			}

		case atEnd:
			if !isSpace(c) {
				return s.jsonError(i, c, at)
			}

		default: // within a number
			if at == inInteger || at == inFraction || at == inExponent {
				start := i
				for i < len(p) && isDigit(p[i]) {
					i++
				}
				if j.capture {
					if err := s.take(p[start:i]); err != nil {
						return err
					}
				}
				if i == len(p) {
					j.position = at
					return nil
				}
				c = p[i]
			}
			next := nextInNumber(at, c)
			switch next {
			case atStart:
				return s.jsonError(i, c, at)
			case afterValue:
				at = j.after()
				goto again // c belongs to what follows the number
			}
			if j.capture {
				if err := s.take(p[i : i+1]); err != nil {
					return err
				}
			}
			at = next
		}
	}
	j.position = at
	return nil
}

const byteOrderMark = "\xef\xbb\xbf"

// beginValue returns the position behind a value's first byte c, or atStart if c begins none.
func (s *Scanner) beginValue(c byte, i int) jsonPosition {
	j := &s.json
	j.role, j.capture = otherValue, false
	if j.wanted {
		// Whatever it turns out to be, it takes the place of an earlier one.
		j.wanted, s.val, s.valOff = false, s.val[:0], s.off+int64(i)
		switch c {
		case '"':
			j.role = userValue
		case '{', '[', 'n':
		default:
			j.capture = true
		}
	}
	switch c {
	case '"':
		return inString
	case '{':
		if j.depth < MaxDepth {
			j.push(1)
			return atFirstKey
		}
	case '[':
		if j.depth < MaxDepth {
			j.push(0)
			return atFirstValue
		}
	case 't':
		j.literal = "rue"
		return inLiteral
	case 'f':
		j.literal = "alse"
		return inLiteral
	case 'n':
		j.literal = "ull"
		return inLiteral
	case '-':
		return afterMinus
	case '0':
		return afterZero
	case '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return inInteger
	}
	return atStart
}

// nextInNumber returns the position behind c within a number, afterValue if the number has ended before c, or atStart
// if neither is allowed. Further digits of a run need not be shown to it.
func nextInNumber(at jsonPosition, c byte) jsonPosition {
	switch at {
	case afterMinus:
		if c == '0' {
			return afterZero
		}
		if isDigit(c) {
			return inInteger
		}
		return atStart
	case afterPoint:
		if isDigit(c) {
			return inFraction
		}
		return atStart
	case afterE:
		if c == '+' || c == '-' {
			return afterSign
		}
		fallthrough
	case afterSign:
		if isDigit(c) {
			return inExponent
		}
		return atStart
	case afterZero, inInteger:
		if c == '.' {
			return afterPoint
		}
		fallthrough
	case inFraction:
		if c == 'e' || c == 'E' {
			return afterE
		}
	}
	return afterValue
}

func (s *Scanner) finishJSON() error {
	j := &s.json
	at := j.position
	if at >= afterMinus && nextInNumber(at, ' ') == afterValue {
		at = j.after()
	}
	if at != atEnd {
		return s.syntaxError("JSON", 0, "ends where "+jsonExpected[at]+" is expected")
	}
	if len(s.val) > 0 {
		s.found(s.val)
	}
	return nil
}

// endString returns the position behind a string's closing quote.
func (s *Scanner) endString() (jsonPosition, error) {
	j := &s.json
	switch j.role {
	case topKey:
		j.wanted = j.name.complete()
		return atColon, nil
	case otherKey:
		return atColon, nil
	case userValue:
		if err := s.flushSurrogate(); err != nil {
			return atStart, err
		}
	}
	return j.after(), nil
}

// takeText adds a run of unescaped bytes to the key or value being read.
func (s *Scanner) takeText(p []byte) error {
	if s.json.role == topKey {
		s.json.name.addAll(p)
		return nil
	}
	if err := s.flushSurrogate(); err != nil {
		return err
	}
	return s.take(p)
}

// takeCodeUnit adds what \uXXXX stands for.
func (s *Scanner) takeCodeUnit(unit uint16) error {
	j := &s.json
	if j.role != userValue {
		return s.takeRune(rune(unit))
	}
	r := rune(unit)
	if j.high != 0 {
		if pair := utf16.DecodeRune(rune(j.high), r); pair != utf8.RuneError {
			j.high = 0
			return s.takeRune(pair)
		}
	}
	if utf16.IsSurrogate(r) && unit < lowSurrogates {
		err := s.flushSurrogate()
		j.high = unit
		return err
	}
	return s.takeRune(r)
}

const lowSurrogates = 0xdc00

// takeRune adds what an escape stands for; a lone surrogate becomes U+FFFD.
func (s *Scanner) takeRune(r rune) error {
	switch s.json.role {
	case topKey:
		if r >= utf8.RuneSelf {
			s.json.name = noMatch
		} else {
			s.json.name.add(byte(r))
		}
	case userValue:
		if err := s.flushSurrogate(); err != nil {
			return err
		}
		var utf [utf8.UTFMax]byte
		return s.take(utf[:utf8.EncodeRune(utf[:], r)])
	}
	return nil
}

// flushSurrogate lets a high surrogate that no low one follows count as U+FFFD.
func (s *Scanner) flushSurrogate() error {
	if s.json.high == 0 {
		return nil
	}
	s.json.high = 0
	return s.take([]byte("\uFFFD"))
}

func (s *Scanner) jsonError(i int, c byte, at jsonPosition) error {
	return s.syntaxError("JSON", i, fmt.Sprintf("%q where %s is expected", c, jsonExpected[at]))
}

func isSpace(c byte) bool {
	return c == ' ' || c == '\n' || c == '\r' || c == '\t'
}

// unescaped maps the byte after '\' to what the two stand for; 0 is no escape.
var unescaped = [256]byte{
	'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t',
}

// plainPrefix returns how many bytes p begins with that stand for themselves in a string: neither '"' nor '\' nor a
// control byte. Eight bytes are looked at in one step, since most of a body's bytes are inside of strings.
func plainPrefix(p []byte) int {
	n := 0
	for ; len(p)-n >= 8; n += 8 {
		if m := special(binary.LittleEndian.Uint64(p[n:])); m != 0 {
			return n + bits.TrailingZeros64(m)/8
		}
	}
	for n < len(p) && p[n] >= ' ' && p[n] != '"' && p[n] != '\\' {
		n++
	}
	return n
}

// special returns a mask whose lowest bit set is in the lowest byte of x that is '"', '\' or a control byte, or 0 if
// there is none. Subtracting makes a byte's high bit 1 if the byte was smaller; a borrow into the next byte can only
// come from a byte that is itself found. Bytes of 0x80 and above are masked out.
func special(x uint64) uint64 {
	const (
		ones  = 0x0101010101010101
		highs = ones << 7
	)
	return (((x ^ ones*'"') - ones) | ((x ^ ones*'\\') - ones) | (x - ones*' ')) &^ x & highs
}
