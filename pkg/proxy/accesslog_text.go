package proxy

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"time"
	"unicode/utf8"
)

// secondText is a second as it is written.
type secondText struct {
	unix int64
	text [len(timeLayout)]byte
}

const timeLayout = "2006-01-02T15:04:05"

// appendTime writes a time as RFC 3339 in UTC, to the millisecond. The second
// is put into words once for all requests that end in it.
func (l *AccessLog) appendTime(b []byte, t time.Time) []byte {
	unix := t.Unix()
	s := l.second.Load()
	if s == nil || s.unix != unix {
		s = &secondText{unix: unix}
		t.UTC().AppendFormat(s.text[:0], timeLayout)
		l.second.Store(s)
	}
	b = append(b, s.text[:]...)
	ms := t.Nanosecond() / int(time.Millisecond)
	return append(b, '.', byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10), 'Z')
}

// appendThousandths writes a duration as a number of units with three decimals.
func appendThousandths(b []byte, d, unit time.Duration) []byte {
	n := (max(d, 0) + unit/2000) / (unit / 1000)
	b = strconv.AppendInt(b, int64(n/1000), 10)
	r := n % 1000
	return append(b, '.', byte('0'+r/100), byte('0'+r/10%10), byte('0'+r%10))
}

// appendUserHash writes what stands for a user where he must not be named: half
// of SHA-256's first half over the cluster's key and the id. Without the key it
// can't be computed from an id that is guessed.
func (p *Proxy) appendUserHash(b []byte, user string) []byte {
	var space [256]byte
	msg := space[:0]
	if p.opts.UserHashKey != nil {
		msg = append(msg, p.opts.UserHashKey().Reveal()...)
	}
	msg = append(append(msg, 0), user...)
	sum := sha256.Sum256(msg)
	return hex.AppendEncode(b, sum[:8])
}

// plain says which bytes stand in a JSON string as they are.
var plain = func() (set [256]bool) {
	for c := range set {
		set[c] = c >= 0x20 && c < 0x7f && c != '"' && c != '\\'
	}
	return set
}()

// plainPrefix returns how many bytes s begins with that are plain.
func plainPrefix(s string) int {
	const (
		ones  = 0x0101010101010101
		highs = ones << 7
	)
	n := 0
	for b := bytesOf(s); len(b)-n >= 8; n += 8 { // eight at once, as long as all are
		w := binary.LittleEndian.Uint64(b[n:])
		quote, escape := w^ones*'"', w^ones*'\\'
		if ((quote-ones)|(escape-ones)|(w-ones*' ')|(w+ones)|w)&highs != 0 {
			break
		}
	}
	for n < len(s) && plain[s[n]] {
		n++
	}
	return n
}

// appendJSONString writes s as a JSON string (RFC 8259 section 7): control
// bytes escaped, what is not UTF-8 replaced.
func appendJSONString(b []byte, s string) []byte {
	const hexDigits = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		n := plainPrefix(s[i:])
		b = append(b, s[i:i+n]...)
		i += n
		if i == len(s) {
			break
		}
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
			i++
		case c < utf8.RuneSelf:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			i++
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			b = utf8.AppendRune(b, r)
			i += n
		}
	}
	return append(b, '"')
}
