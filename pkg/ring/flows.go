package ring

// Flow is the part of the key space, 0 to 1, that one member hands to another;
// names, because the two stand on different Rings. "" is nobody.
type Flow struct {
	From, To string
	Share    float64
}

// Flows returns between which members keys move from a to b, counted key by key
// as Moved does, in no order. The shares add up to Moved.
//
// Between different algorithms keys have no common space (see Moved). The shares
// are then what is to be expected of users who are many, as if the two points
// of a user had nothing to do with each other; those who stay by luck are in no
// Flow, so the shares add up to less than Moved.
func Flows(a, b *Ring) []Flow {
	type pair struct{ from, to int }
	var out []Flow
	name := func(r *Ring, i int) string {
		if i < 0 {
			return ""
		}
		return r.names[i]
	}
	if a.kind != b.kind {
		if Moved(a, b) == 0 {
			return nil
		}
		for i, x := range a.shares() {
			for j, y := range b.shares() {
				if f := (Flow{name(a, i-1), name(b, j-1), x * y}); f.Share > 0 && f.From != f.To {
					out = append(out, f)
				}
			}
		}
		return out
	}
	toA := b.membersIn(a)
	moved := make(map[pair]*keyCount)
	first := uint64(0)
	for i, j := 0, 0; ; {
		lastA, inA := a.arc(i)
		lastB, inB := b.arc(j)
		last := min(lastA, lastB)
		if inA != toA(inB) {
			c := moved[pair{inA, inB}]
			if c == nil {
				c = new(keyCount)
				moved[pair{inA, inB}] = c
			}
			c.addArc(first, last)
		}
		if last == a.lastKey() {
			break
		}
		if lastA == last {
			i++
		}
		if lastB == last {
			j++
		}
		first = last + 1
	}
	for p, c := range moved {
		out = append(out, Flow{name(a, p.from), name(b, p.to), c.share(a.kind.bits())})
	}
	return out
}

// shares is Share with nobody's before the members'.
func (r *Ring) shares() []float64 {
	out := append([]float64{0}, r.Share()...)
	if len(r.owner) == 0 {
		out[0] = 1
	}
	return out
}
