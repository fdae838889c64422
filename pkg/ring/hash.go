package ring

import (
	"crypto/md5"
	"crypto/sha1"
	"encoding/binary"
	"hash"
	"hash/crc32"
	"strconv"
	"sync"

	"github.com/cespare/xxhash/v2"
)

// Algorithm names the hash function of a Ring. The zero value is not valid.
//
// With md5, sha1 and xxhash a member of n points has its due share of the key
// space within 5/sqrt(n) of it. crc32 is linear, and names that differ in a digit
// are not spread as if at random: with 150 virtual nodes members of equal weight
// were seen with 0.45 to 2.4 times their due, with 1,000 still 0.6 to 1.4 times,
// where the others stay within 0.8 to 1.2 at 150. crc32 is for placements that
// must not change, xxhash for new ones.
type Algorithm string

const (
	CRC32  Algorithm = "crc32"  // IEEE, ordered as a signed 32-bit number
	MD5    Algorithm = "md5"    // first 4 bytes of the digest, big-endian, unsigned
	SHA1   Algorithm = "sha1"   // first 4 bytes of the digest, big-endian, unsigned
	XXHash Algorithm = "xxhash" // XXH64 with seed 0, unsigned
)

// Valid reports whether a Ring can be built with a.
func (a Algorithm) Valid() bool { return a.kind() != unknown }

// kind is an Algorithm that is compared in one instruction.
type kind uint8

const (
	unknown kind = iota
	crc
	md
	sha
	xxh
)

func (a Algorithm) kind() kind {
	switch a {
	case CRC32:
		return crc
	case MD5:
		return md
	case SHA1:
		return sha
	case XXHash:
		return xxh
	}
	return unknown
}

func (k kind) algorithm() Algorithm {
	return [...]Algorithm{"", CRC32, MD5, SHA1, XXHash}[k]
}

// bits is the width of the key space.
func (k kind) bits() uint {
	if k == xxh {
		return 64
	}
	return 32
}

// signBit offsets a signed 32-bit hash so that its unsigned order is ring order.
const signBit = 1 << 31

// Hash returns the point of "app:user". It does not allocate, and neither
// argument escapes.
func (r *Ring) Hash(app, user string) Point {
	if r.kind == crc {
		return crcPoint(crcByte(crcOf(^uint32(0), app), ':'), user)
	}
	return digestPoint(r.kind, app, user)
}

// HashBytes is Hash for a user id held as bytes: equal bytes, equal point.
func (r *Ring) HashBytes(app string, user []byte) Point {
	if r.kind == crc {
		return crcPoint(crcByte(crcOf(^uint32(0), app), ':'), user)
	}
	return digestPoint(r.kind, app, user)
}

// Hasher places the users of one application. It is a value, cheap to copy and
// safe for concurrent use. It gives the points that Ring.Hash gives, on any Ring
// of the same algorithm, without hashing the application's name each time where
// the algorithm allows it (crc32). The zero Hasher is not usable.
type Hasher struct {
	app   string
	state uint32 // crc32 register after "app:"
	kind  kind
}

// Hasher returns the Hasher of app.
func (r *Ring) Hasher(app string) Hasher {
	h := Hasher{app: app, kind: r.kind}
	if r.kind == crc {
		h.state = crcByte(crcOf(^uint32(0), app), ':')
	}
	return h
}

// Point returns the point of user. It does not allocate, and user does not escape.
func (h Hasher) Point(user string) Point {
	if h.kind == crc {
		return crcPoint(h.state, user)
	}
	return digestPoint(h.kind, h.app, user)
}

// PointBytes is Point for a user id held as bytes.
func (h Hasher) PointBytes(user []byte) Point {
	if h.kind == crc {
		return crcPoint(h.state, user)
	}
	return digestPoint(h.kind, h.app, user)
}

// crcTables serve eight bytes at a time. hash/crc32 is not called because it
// passes its argument through a function variable: every key would escape to
// the heap of whoever read it, and a string would have to be copied or cast.
var crcTables = func() (t [8][256]uint32) {
	t[0] = [256]uint32(*crc32.IEEETable)
	for k := 1; k < len(t); k++ {
		for i := range t[k] {
			prev := t[k-1][i]
			t[k][i] = t[0][byte(prev)] ^ prev>>8
		}
	}
	return t
}()

// crcOf advances the crc32 register over s. The register starts as all ones and
// is inverted once, at the end.
func crcOf[S string | []byte](reg uint32, s S) uint32 {
	t := &crcTables
	for len(s) >= 8 {
		reg ^= uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
		reg = t[7][byte(reg)] ^ t[6][byte(reg>>8)] ^ t[5][byte(reg>>16)] ^ t[4][reg>>24] ^
			t[3][s[4]] ^ t[2][s[5]] ^ t[1][s[6]] ^ t[0][s[7]]
		s = s[8:]
	}
	for i := range len(s) {
		reg = t[0][byte(reg)^s[i]] ^ reg>>8
	}
	return reg
}

func crcByte(reg uint32, b byte) uint32 {
	return crcTables[0][byte(reg)^b] ^ reg>>8
}

// crcPoint returns the point of the key whose beginning left the register at reg
// and whose rest is s.
func crcPoint[S string | []byte](reg uint32, s S) Point {
	return Point(^crcOf(reg, s) ^ signBit)
}

// shortKey is the longest "app:user" that is put together on the stack: an
// application's name has at most 63 bytes, and the user ids people use fit behind it.
const shortKey = 128

func digestPoint[S string | []byte](k kind, app string, user S) Point {
	n := len(app) + 1 + len(user)
	if n > shortKey {
		return longPoint(k, app, user)
	}
	var key [shortKey]byte
	i := copy(key[:], app)
	key[i] = ':'
	copy(key[i+1:], user)
	return pointOf(k, key[:n])
}

// pointOf returns the point of a whole key.
func pointOf(k kind, key []byte) Point {
	switch k {
	case crc:
		return crcPoint(^uint32(0), key)
	case md:
		sum := md5.Sum(key)
		return Point(binary.BigEndian.Uint32(sum[:]))
	case sha:
		sum := sha1.Sum(key)
		return Point(binary.BigEndian.Uint32(sum[:]))
	case xxh:
		return Point(xxhash.Sum64(key))
	}
	panic("ring: hash of an unknown algorithm " + strconv.Itoa(int(k)))
}

// longHash hashes keys of any length in pieces. The key is copied through buf
// so that it does not escape through the interface.
type longHash struct {
	h   hash.Hash
	buf [512]byte
}

var longHashes = [...]sync.Pool{
	md:  {New: func() any { return &longHash{h: md5.New()} }},
	sha: {New: func() any { return &longHash{h: sha1.New()} }},
	xxh: {New: func() any { return &longHash{h: xxhash.New()} }},
}

func longPoint[S string | []byte](k kind, app string, user S) Point {
	l := longHashes[k].Get().(*longHash)
	l.h.Reset()
	writeLong(l, app)
	writeLong(l, ":")
	writeLong(l, user)
	sum := l.h.Sum(l.buf[:0])
	var p Point
	if k == xxh {
		p = Point(binary.BigEndian.Uint64(sum))
	} else {
		p = Point(binary.BigEndian.Uint32(sum))
	}
	longHashes[k].Put(l)
	return p
}

func writeLong[S string | []byte](l *longHash, s S) {
	for len(s) > 0 {
		n := copy(l.buf[:], s)
		l.h.Write(l.buf[:n]) // a hash.Hash never returns an error
		s = s[n:]
	}
}
