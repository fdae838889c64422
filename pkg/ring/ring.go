// Package ring places keys on members by consistent hashing over names and
// weights, and says who comes next when a member may not be used. A Ring is
// immutable once built: health, drain and ejection are the caller's facts and
// come in as a predicate, so that a member's bounce rebuilds nothing and its
// keys return to it. The package refuses to know what a member is (addresses,
// tokens, applications' settings), where rings are stored and when they are
// replaced.
//
// Virtual node i (1..n) of a member sits at H("name#i"), a request at
// H("app:user"), and it belongs to the first virtual node at or after it. With
// crc32, md5 and sha1 a key past the last node belongs to the last node, and
// failover goes on from there to the first; with xxhash it wraps to the first.
// Of two nodes at one point the member later in the list has it. Except for
// xxhash this is bit for bit the placement of the OpenResty balancer recorded
// in testdata.
package ring

import (
	"errors"
	"fmt"
	"strconv"
)

// MaxPoints is the largest number of virtual nodes on one Ring, and so also the
// largest number of members: every member with a weight keeps at least one.
const MaxPoints = 65536

// MaxWeight is the largest weight New takes.
const MaxWeight = 1<<31 - 1

// Member is something that keys are placed on.
type Member struct {
	Name   string // unique in its Ring; hashed as its bytes are
	Weight int    // share relative to the other members; 0: on no point of the ring
}

// Point is the position of a key on a Ring, mapped so that unsigned order is
// ring order: 0 to 2^32-1 for crc32 (offset by 2^31, because it is ordered as
// a signed number), md5 and sha1, 0 to 2^64-1 for xxhash. It means something
// only to rings of the algorithm it was made with. Ring.Raw gives the number
// the algorithm itself defines.
type Point uint64

// Ring is a placement of keys on members. It is immutable and safe for
// concurrent use. Members are known by their index in the list given to New.
type Ring struct {
	kind   kind
	names  []string // of all members, declared order
	placed int      // members that own a point

	// Point i is at at32[i] or, for xxhash, at64[i], strictly ascending;
	// owner[i] is its member. The other slice is nil.
	at32  []uint32
	at64  []uint64
	owner []uint16

	// index[b] is the first point at or after b<<shift, at most Points()-1; one
	// entry more than there are buckets. It turns the search into a probe or two.
	index []uint16
	shift uint8
}

// New builds the Ring of members in their declared order. A member gets
// virtualNodes × Weight ÷ (greatest common divisor of the weights) points. Where
// the sum would pass MaxPoints, all are scaled down together and rounded down,
// but to no less than 1. Where even that 1 is more than a member's due,
// the others give the difference in proportion, so that the sum stays within
// MaxPoints.
//
// It refuses an unknown algorithm, virtualNodes < 1, a weight below 0 or above
// MaxWeight, more than MaxPoints members, and a repeated name. No members, or
// none with a weight, is a Ring without points. The slice is not kept.
//
// A member can end up with fewer points than its number where its nodes share a
// point with others; if it loses all of them it is on no point, as in the
// balancer whose placement this is.
func New(alg Algorithm, virtualNodes int, members []Member) (*Ring, error) {
	k := alg.kind()
	if k == unknown {
		return nil, fmt.Errorf("unknown hash algorithm %q", string(alg))
	}
	if virtualNodes < 1 {
		return nil, fmt.Errorf("virtual nodes %d: less than 1", virtualNodes)
	}
	if err := check(members); err != nil {
		return nil, err
	}
	r := &Ring{kind: k, names: make([]string, len(members))}
	for i := range members {
		r.names[i] = members[i].Name
	}
	r.build(pointCounts(virtualNodes, members))
	return r, nil
}

func check(members []Member) error {
	if len(members) > MaxPoints {
		return fmt.Errorf("%d members: more than %d", len(members), MaxPoints)
	}
	for i := range members {
		switch w := members[i].Weight; {
		case w < 0:
			return fmt.Errorf("member %q: weight %d is negative", members[i].Name, w)
		case w > MaxWeight:
			return fmt.Errorf("member %q: weight %d is more than %d", members[i].Name, w, MaxWeight)
		}
	}
	if name, ok := repeatedName(members); ok {
		return fmt.Errorf("member %q: %w", name, errRepeatedName)
	}
	return nil
}

var errRepeatedName = errors.New("name is declared twice")

func repeatedName(members []Member) (string, bool) {
	if len(members) <= 16 { // most rings: comparing all is cheaper than a map
		for i := range members {
			for j := range i {
				if members[i].Name == members[j].Name {
					return members[i].Name, true
				}
			}
		}
		return "", false
	}
	seen := make(map[string]struct{}, len(members))
	for i := range members {
		if _, ok := seen[members[i].Name]; ok {
			return members[i].Name, true
		}
		seen[members[i].Name] = struct{}{}
	}
	return "", false
}

// Algorithm returns the hash algorithm the Ring was built with.
func (r *Ring) Algorithm() Algorithm { return r.kind.algorithm() }

// Points returns how many distinct points the Ring has, at most MaxPoints.
func (r *Ring) Points() int { return len(r.owner) }

// Len returns the number of members, those of weight 0 included.
func (r *Ring) Len() int { return len(r.names) }

// Name returns the name of member i, 0 <= i < Len().
func (r *Ring) Name(i int) string { return r.names[i] }

// Owner returns the member that p belongs to, -1 when the Ring has no points.
// It does not allocate.
func (r *Ring) Owner(p Point) int {
	if len(r.owner) == 0 {
		return -1
	}
	return int(r.owner[r.position(p)])
}

// position returns the index of the point that p belongs to. The Ring must have points.
func (r *Ring) position(p Point) int {
	if r.kind != xxh {
		// The search ends on the last point when p is past it, which is the rule.
		return search(r.at32, r.index, r.shift, uint32(p))
	}
	i := search(r.at64, r.index, r.shift, uint64(p))
	if r.at64[i] < uint64(p) {
		return 0
	}
	return i
}

// search returns the first i with at[i] >= p, len(at)-1 if there is none.
func search[P uint32 | uint64](at []P, index []uint16, shift uint8, p P) int {
	b := uint64(p) >> (shift & 63)
	lo, hi := int(index[b]), int(index[b+1])
	// A bucket holds about one point. Only names chosen to collide get here.
	for hi-lo > 16 {
		if mid := int(uint(lo+hi) / 2); at[mid] < p {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	for lo < hi && at[lo] < p {
		lo++
	}
	return lo
}

// Raw returns p as the number that the Ring's algorithm defines, in decimal:
// signed 32 bits for crc32, unsigned 32 bits for md5 and sha1, unsigned 64 bits
// for xxhash (hence text: such a number does not survive most JSON readers).
func (r *Ring) Raw(p Point) string {
	if r.kind == crc {
		return strconv.FormatInt(int64(int32(uint32(p)^signBit)), 10)
	}
	return strconv.FormatUint(uint64(p), 10)
}
