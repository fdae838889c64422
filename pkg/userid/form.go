package userid

import "bytes"

// fieldName is the name of the body's member or field.
const fieldName = "user"

// nameMatch compares a name that arrives byte by byte with fieldName.
// Its value is the number of bytes matched; noMatch once one differed.
type nameMatch int8

const noMatch nameMatch = -1

func (m *nameMatch) add(b byte) {
	if *m == noMatch {
		return
	}
	if int(*m) == len(fieldName) || fieldName[*m] != b {
		*m = noMatch
		return
	}
	*m++
}

func (m *nameMatch) addAll(p []byte) {
	if *m == noMatch {
		return
	}
	if rest := fieldName[*m:]; len(p) <= len(rest) && string(p) == rest[:len(p)] {
		*m += nameMatch(len(p))
		return
	}
	*m = noMatch
}

func (m nameMatch) complete() bool {
	return int(m) == len(fieldName)
}

type formPosition uint8

const (
	inFormName formPosition = iota
	inUserValue
	inOtherPair // what is left of a pair that is not the user's
)

// formState reads application/x-www-form-urlencoded (URL standard, section 5.1).
type formState struct {
	position formPosition
	name     nameMatch
	escape   [2]byte // an escape begun: '%' and perhaps a digit
	nescape  uint8   // 0 to 2, how much of escape is in use
}

func (s *Scanner) writeForm(p []byte) error {
	f := &s.form
	for i := 0; i < len(p); {
		c := p[i]
		switch {
		case f.position == inOtherPair:
			end := bytes.IndexByte(p[i:], '&')
			if end < 0 {
				return nil
			}
			i += end
			f.position, f.name = inFormName, 0
		case c == '&':
			if err := s.endPair(); err != nil || s.verdict != More {
				return err
			}
		case c == '=' && f.position == inFormName:
			if err := s.endEscape(); err != nil {
				return err
			}
			f.position = inOtherPair
			if f.name.complete() {
				f.position, s.val, s.valOff = inUserValue, s.val[:0], s.off+int64(i)+1
			}
		default:
			if err := s.formByte(c); err != nil {
				return err
			}
			if f.name == noMatch {
				f.position, f.nescape = inOtherPair, 0
			}
		}
		i++
	}
	return nil
}

// formByte decodes one more byte of a name or value.
func (s *Scanner) formByte(c byte) error {
	f := &s.form
	if f.nescape > 0 {
		if isHex(c) {
			if f.nescape == 1 {
				f.escape[1], f.nescape = c, 2
				return nil
			}
			f.nescape = 0
			return s.formDecoded(unhex(f.escape[1])<<4 | unhex(c))
		}
		if err := s.endEscape(); err != nil {
			return err
		}
	}
	switch c {
	case '%':
		f.escape[0], f.nescape = c, 1
		return nil
	case '+':
		c = ' '
	}
	return s.formDecoded(c)
}

// endEscape lets an escape that was cut short stand for itself.
func (s *Scanner) endEscape() error {
	n := s.form.nescape
	s.form.nescape = 0
	for _, c := range s.form.escape[:n] {
		if err := s.formDecoded(c); err != nil {
			return err
		}
	}
	return nil
}

func (s *Scanner) formDecoded(b byte) error {
	if s.form.position == inFormName {
		s.form.name.add(b)
		return nil
	}
	if len(s.val) == MaxLength {
		return s.tooLong()
	}
	s.val = append(s.val, b)
	return nil
}

// endPair decides if the pair that has ended is the user's and not empty.
func (s *Scanner) endPair() error {
	if err := s.endEscape(); err != nil {
		return err
	}
	if s.form.position == inUserValue {
		if id := bytes.TrimSpace(s.val); len(id) > 0 {
			s.found(id)
		}
	}
	s.form.position, s.form.name = inFormName, 0
	return nil
}

func (s *Scanner) finishForm() error {
	return s.endPair()
}
