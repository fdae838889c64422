package sketch

import (
	"encoding/binary"
	"errors"
	"math"
)

// Sample is a sample of the users of one application. The zero Sample is one of
// no users. It is a value that is not changed once made, so it may be shared.
type Sample struct {
	// Kind is what the points are of; see Recent.Seen.
	Kind   string
	hashes []uint64 // scrambled points, ascending, at most Size
}

// Len returns the number of users in the sample.
func (s Sample) Len() int { return len(s.hashes) }

// Exact reports whether the sample holds every user.
func (s Sample) Exact() bool { return len(s.hashes) < Size }

// Users returns how many users there are: counted where the sample is exact,
// otherwise estimated.
func (s Sample) Users() float64 {
	if s.Exact() {
		return float64(len(s.hashes))
	}
	// The Size-th lowest of n numbers drawn from 0 to 1 is Size/(n+1) in the
	// mean; one less than Size makes the estimate of n unbiased.
	return (Size - 1) / math.Ldexp(float64(s.hashes[Size-1])+1, -64)
}

// Share returns the share, 0 to 1, of the users at whose points f is true; 0
// where there are none.
func (s Sample) Share(f func(point uint64) bool) float64 {
	if len(s.hashes) == 0 {
		return 0
	}
	n := 0
	for _, h := range s.hashes {
		if f(unscramble(h)) {
			n++
		}
	}
	return float64(n) / float64(len(s.hashes))
}

// Merge returns the sample of the users of either, as if one Recent had seen
// them all. Of two kinds the one with more users stays, a's when equal: the
// points of the other mean nothing to it.
func Merge(a, b Sample) Sample {
	if a.Kind != b.Kind {
		if a.Users() < b.Users() {
			return b
		}
		return a
	}
	out := Sample{Kind: a.Kind, hashes: make([]uint64, 0, min(len(a.hashes)+len(b.hashes), Size))}
	i, j := 0, 0
	for len(out.hashes) < Size && (i < len(a.hashes) || j < len(b.hashes)) {
		switch {
		case j == len(b.hashes) || (i < len(a.hashes) && a.hashes[i] < b.hashes[j]):
			out.hashes = append(out.hashes, a.hashes[i])
			i++
		case i == len(a.hashes) || b.hashes[j] < a.hashes[i]:
			out.hashes = append(out.hashes, b.hashes[j])
			j++
		default: // the same user
			out.hashes = append(out.hashes, a.hashes[i])
			i, j = i+1, j+1
		}
	}
	return out
}

// AppendBinary appends the sample as bytes: the kind's length and the kind, then
// each scrambled point as 8 bytes, little-endian, ascending.
func (s Sample) AppendBinary(b []byte) ([]byte, error) {
	if len(s.Kind) > maxKind {
		return b, errors.New("append sample: its kind is too long")
	}
	b = append(b, byte(len(s.Kind)))
	b = append(b, s.Kind...)
	for _, h := range s.hashes {
		b = binary.LittleEndian.AppendUint64(b, h)
	}
	return b, nil
}

const maxKind = 32

var errMalformed = errors.New("read sample: malformed")

// UnmarshalBinary reads what AppendBinary wrote and refuses everything else.
func (s *Sample) UnmarshalBinary(b []byte) error {
	if len(b) == 0 || b[0] > maxKind || len(b) < 1+int(b[0]) {
		return errMalformed
	}
	kind, b := string(b[1:1+b[0]]), b[1+b[0]:]
	if len(b)%8 != 0 || len(b)/8 > Size {
		return errMalformed
	}
	var hashes []uint64
	for ; len(b) > 0; b = b[8:] {
		h := binary.LittleEndian.Uint64(b)
		if n := len(hashes); n > 0 && hashes[n-1] >= h {
			return errMalformed
		}
		hashes = append(hashes, h)
	}
	*s = Sample{Kind: kind, hashes: hashes}
	return nil
}
