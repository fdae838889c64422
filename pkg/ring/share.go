package ring

import (
	"encoding/binary"
	"math"
	"math/bits"

	"github.com/cespare/xxhash/v2"
)

// arc returns the last key of the i-th arc of the key space and its owner, -1 on
// a Ring without points. Arcs are counted from key 0, each begins after the one
// before, and the one that ends at lastKey is the last.
func (r *Ring) arc(i int) (last uint64, owner int) {
	n := len(r.owner)
	switch {
	case n == 0:
		return r.lastKey(), -1
	case i < n:
		return r.at(i), int(r.owner[i])
	case r.kind == xxh:
		return r.lastKey(), int(r.owner[0])
	default:
		return r.lastKey(), int(r.owner[n-1])
	}
}

func (r *Ring) at(i int) uint64 {
	if r.kind == xxh {
		return r.at64[i]
	}
	return uint64(r.at32[i])
}

func (r *Ring) lastKey() uint64 { return math.MaxUint64 >> (64 - r.kind.bits()) }

// keyCount is a number of keys, 0 to 2^64.
type keyCount struct{ hi, lo uint64 }

// addArc adds the keys first..last, both included.
func (c *keyCount) addArc(first, last uint64) {
	var carry uint64
	c.lo, carry = bits.Add64(c.lo, last-first, 1)
	c.hi += carry
}

// share returns the part of a key space of the given width, rounded once.
func (c keyCount) share(width uint) float64 {
	return math.Ldexp(math.Ldexp(float64(c.hi), 64)+float64(c.lo), -int(width))
}

// Share returns for every member the part of the key space that it owns, counted
// key by key (so with the rule for keys past the last point) and rounded once.
// The parts add up to 1; on a Ring without points all are 0.
func (r *Ring) Share() []float64 {
	owned := make([]keyCount, len(r.names))
	shares := make([]float64, len(r.names))
	if len(r.owner) == 0 {
		return shares
	}
	first := uint64(0)
	for i := 0; ; i++ {
		last, m := r.arc(i)
		owned[m].addArc(first, last)
		if last == r.lastKey() {
			break
		}
		first = last + 1
	}
	for m := range shares {
		shares[m] = owned[m].share(r.kind.bits())
	}
	return shares
}

// Moved returns the part of the key space whose owner, by name, is another in b
// than in a, counted key by key. Owned by nobody and owned by somebody differ.
//
// Between different algorithms it is 1, unless neither ring has a choice (both
// without points, or all on one and the same member), when it is 0. A key has
// then two unrelated points, so there is no common key space to count in. Some
// users would stay by luck, but which, and how many, depends on who the users
// are; none can be promised to stay, and 1 is the only figure that never
// understates a migration.
func Moved(a, b *Ring) float64 {
	toA := b.membersIn(a)
	if a.kind != b.kind {
		if a.placed <= 1 && b.placed <= 1 && toA(b.Owner(0)) == a.Owner(0) {
			return 0
		}
		return 1
	}
	var moved keyCount
	first := uint64(0)
	for i, j := 0, 0; ; {
		lastA, inA := a.arc(i)
		lastB, inB := b.arc(j)
		last := min(lastA, lastB)
		if inA != toA(inB) {
			moved.addArc(first, last)
		}
		if last == a.lastKey() {
			return moved.share(a.kind.bits())
		}
		if lastA == last {
			i++
		}
		if lastB == last {
			j++
		}
		first = last + 1
	}
}

// membersIn returns a function that translates members of r into those of the
// same name in other. -1 stays -1; a name that other does not have gives a number
// that is no member of it.
func (r *Ring) membersIn(other *Ring) func(int) int {
	const absent = -2
	index := make(map[string]int, len(other.names))
	for i, name := range other.names {
		index[name] = i
	}
	same := make([]int, len(r.names))
	for i, name := range r.names {
		m, ok := index[name]
		if !ok {
			m = absent
		}
		same[i] = m
	}
	return func(i int) int {
		if i < 0 {
			return i
		}
		return same[i]
	}
}

// Checksum returns a digest of the algorithm, the names in their order and every
// point with its owner: equal for rings that place every key alike and number
// their members alike, whichever process or version built them. It is XXH64 with
// seed 0 over
//
//	"difylb ring 1\n", string(algorithm),
//	uint64(len(names)), string(name) for every member,
//	uint64(Points()), then uint64(point) uint16(member) for every point,
//
// with numbers little-endian and every string behind its length as uint64. It
// is computed on every call, in time proportional to the points; keep the result.
func (r *Ring) Checksum() uint64 {
	var d xxhash.Digest
	d.Reset()
	buf := make([]byte, 0, 4096)
	str := func(s string) {
		buf = binary.LittleEndian.AppendUint64(buf, uint64(len(s)))
		buf = append(buf, s...)
	}
	flush := func(atLeast int) {
		if len(buf) > atLeast {
			d.Write(buf) // never returns an error
			buf = buf[:0]
		}
	}

	buf = append(buf, "difylb ring 1\n"...)
	str(string(r.Algorithm()))
	buf = binary.LittleEndian.AppendUint64(buf, uint64(len(r.names)))
	for _, name := range r.names {
		str(name)
		flush(2048)
	}
	buf = binary.LittleEndian.AppendUint64(buf, uint64(len(r.owner)))
	for i, m := range r.owner {
		buf = binary.LittleEndian.AppendUint64(buf, r.at(i))
		buf = binary.LittleEndian.AppendUint16(buf, m)
		flush(4000)
	}
	flush(0)
	return d.Sum64()
}
