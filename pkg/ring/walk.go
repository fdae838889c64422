package ring

// smallBitmap is the size of a bitmap of 256 members: what Walk carries in itself.
const smallBitmap = 4

// bitmap is a set of members.
type bitmap []uint64

// add reports whether i was not in the set before.
func (b bitmap) add(i int) bool {
	word, bit := &b[i>>6], uint64(1)<<(i&63)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}

// Walk yields the distinct members met clockwise from a point, its owner first:
// the failover order of the keys there. Members without points never appear.
// Use it by one goroutine, and do not copy it after the first Next. The zero Walk
// yields nothing.
type Walk struct {
	ring  *Ring
	pos   int // the point to look at next
	left  int // members not yet met
	small [smallBitmap]uint64
	large bitmap // instead of small where the Ring has more members than fit
}

// Walk returns a Walk that starts with the owner of p. Neither it nor Next
// allocates on a Ring of at most 256 members; beyond that the second call of
// Next allocates one bit per member.
func (r *Ring) Walk(p Point) Walk {
	if len(r.owner) == 0 {
		return Walk{}
	}
	return Walk{ring: r, pos: r.position(p), left: r.placed}
}

// Next returns the next member, false when there is no further one. It costs the
// points in between: a few on a ring of similar weights, at most Points() for the
// whole Walk.
func (w *Walk) Next() (int, bool) {
	if w.left == 0 {
		return -1, false
	}
	w.left--
	r := w.ring
	if w.left+1 == r.placed {
		// The owner is not marked yet: most walks end here, and marking may allocate.
		return int(r.owner[w.pos]), true
	}
	if w.left+2 == r.placed {
		w.markOwner()
	}
	seen := bitmap(w.small[:])
	if w.large != nil {
		seen = w.large
	}
	m, pos := r.nextUnseen(seen, w.pos)
	w.pos = pos
	return m, true
}

func (w *Walk) markOwner() {
	seen := bitmap(w.small[:])
	if n := len(w.ring.names); n > smallBitmap*64 {
		w.large = make(bitmap, (n+63)/64)
		seen = w.large
	}
	seen.add(int(w.ring.owner[w.pos]))
}

// nextUnseen returns the first member clockwise from point pos that is not in
// seen, having added it, and where it was found. There must be one.
func (r *Ring) nextUnseen(seen bitmap, pos int) (member, at int) {
	for i, m := range r.owner[pos:] {
		if seen.add(int(m)) {
			return int(m), pos + i
		}
	}
	for i, m := range r.owner[:pos] {
		if seen.add(int(m)) {
			return int(m), i
		}
	}
	panic("ring: fewer members on the points than counted")
}

// OwnerIn returns the first member clockwise from p for which allowed returns
// true, -1 if there is none. It asks in failover order, each member at most once,
// and no more after the first true, so allowed may also reserve what it grants.
// It does not allocate.
func (r *Ring) OwnerIn(p Point, allowed func(i int) bool) int {
	if len(r.owner) == 0 {
		return -1
	}
	pos := r.position(p)
	owner := int(r.owner[pos])
	switch {
	case allowed(owner):
		return owner
	case r.placed == 1:
		return -1
	case len(r.names) <= smallBitmap*64:
		var seen [smallBitmap]uint64
		return r.failover(seen[:], pos, allowed)
	default:
		return r.failoverOfMany(pos, allowed)
	}
}

// failover returns the first allowed member after the owner of point pos, which
// was asked already.
func (r *Ring) failover(seen bitmap, pos int, allowed func(i int) bool) int {
	seen.add(int(r.owner[pos]))
	for range r.placed - 1 {
		var m int
		m, pos = r.nextUnseen(seen, pos)
		if allowed(m) {
			return m
		}
	}
	return -1
}

// failoverOfMany has room on its stack for as many members as there can be. It
// stays a function of its own because everybody else's stack would pay for it.
//
//go:noinline
func (r *Ring) failoverOfMany(pos int, allowed func(i int) bool) int {
	var seen [MaxPoints / 64]uint64
	return r.failover(seen[:], pos, allowed)
}
