package limit

import (
	"encoding/binary"
	"math/bits"
)

// Hasher names keys without telling them: a 64-bit pseudo-random function of the key under a secret that all who
// must agree on the names share (SipHash-2-4, Aumasson and Bernstein 2012). Who does not know the secret can neither
// find out a key from its name nor make two keys of one name.
type Hasher struct {
	k0, k1 uint64
}

// NewHasher takes the secret.
func NewHasher(secret [16]byte) *Hasher {
	return &Hasher{binary.LittleEndian.Uint64(secret[:8]), binary.LittleEndian.Uint64(secret[8:])}
}

// Hash returns the name of a key, never 0.
func (h *Hasher) Hash(key string) uint64 {
	s := sip{0x736f6d6570736575 ^ h.k0, 0x646f72616e646f6d ^ h.k1, 0x6c7967656e657261 ^ h.k0, 0x7465646279746573 ^ h.k1}
	rest := key
	for len(rest) >= 8 {
		s.word(le64(rest))
		rest = rest[8:]
	}
	last := uint64(len(key)) << 56
	for i := range len(rest) {
		last |= uint64(rest[i]) << (8 * i)
	}
	s.word(last)
	s.v2 ^= 0xff
	for range 4 {
		s.round()
	}
	if name := s.v0 ^ s.v1 ^ s.v2 ^ s.v3; name != 0 {
		return name
	}
	return 1
}

func le64(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

type sip struct{ v0, v1, v2, v3 uint64 }

func (s *sip) word(m uint64) {
	s.v3 ^= m
	s.round()
	s.round()
	s.v0 ^= m
}

func (s *sip) round() {
	s.v0 += s.v1
	s.v1 = bits.RotateLeft64(s.v1, 13) ^ s.v0
	s.v0 = bits.RotateLeft64(s.v0, 32)
	s.v2 += s.v3
	s.v3 = bits.RotateLeft64(s.v3, 16) ^ s.v2
	s.v0 += s.v3
	s.v3 = bits.RotateLeft64(s.v3, 21) ^ s.v0
	s.v2 += s.v1
	s.v1 = bits.RotateLeft64(s.v1, 17) ^ s.v2
	s.v2 = bits.RotateLeft64(s.v2, 32)
}
