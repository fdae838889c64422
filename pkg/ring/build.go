package ring

import (
	"cmp"
	"math/bits"
	"slices"
	"strconv"
	"sync"
)

// pointCounts returns how many virtual nodes each member gets; see New.
func pointCounts(virtualNodes int, members []Member) []int {
	var gcd, sum uint64
	for i := range members {
		gcd = greatestCommonDivisor(gcd, uint64(members[i].Weight))
		sum += uint64(members[i].Weight) // < 2^16 × 2^31
	}
	counts := make([]int, len(members))
	if sum == 0 {
		return counts
	}
	if uint64(virtualNodes) <= MaxPoints/(sum/gcd) {
		for i := range members {
			counts[i] = virtualNodes * int(uint64(members[i].Weight)/gcd)
		}
		return counts
	}
	scaleDown(counts, members, sum)
	return counts
}

// scaleDown divides MaxPoints in proportion to the weights, whose sum is given,
// rounding down but to no less than 1. A member due less than 1 is given its 1
// first and leaves the division; that lowers what the others are due, so it is
// repeated until nobody is due less than 1. Each round but the last settles a
// member, and the last one stays within the budget because it only rounds down.
func scaleDown(counts []int, members []Member, sum uint64) {
	budget := uint64(MaxPoints)
	for settled := true; settled; {
		settled = false
		roundSum, roundBudget := sum, budget
		for i := range members {
			w := uint64(members[i].Weight)
			// w·budget < 2^31 · 2^17
			if w > 0 && counts[i] == 0 && w*roundBudget < roundSum {
				counts[i] = 1
				sum -= w
				budget--
				settled = true
			}
		}
	}
	for i := range members {
		if w := uint64(members[i].Weight); w > 0 && counts[i] == 0 {
			counts[i] = int(w * budget / sum)
		}
	}
}

func greatestCommonDivisor(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// node is a virtual node while a Ring is built.
type node struct {
	at    uint64
	owner uint16
}

// workspace holds what a build needs and a Ring does not keep. A configuration
// is thousands of small rings: reusing it is most of the speed of compiling one.
type workspace struct {
	nodes, sorted []node
	starts        []uint32
	key           []byte
}

var workspaces = sync.Pool{New: func() any { return new(workspace) }}

// build fills in the points, given how many virtual nodes each member has.
func (r *Ring) build(counts []int) {
	total := 0
	for _, n := range counts {
		total += n
	}
	if total == 0 {
		return
	}
	ws := workspaces.Get().(*workspace)
	defer workspaces.Put(ws)

	ws.nodes = slices.Grow(ws.nodes[:0], total)
	for i, n := range counts {
		ws.appendNodes(r.kind, r.names[i], uint16(i), n)
	}
	ws.sort(r.kind.bits())
	r.keep(dropHidden(ws.sorted))
}

func (ws *workspace) appendNodes(k kind, name string, owner uint16, n int) {
	ws.key = append(append(ws.key[:0], name...), '#')
	prefix := len(ws.key)
	reg := crcOf(^uint32(0), ws.key)
	for i := 1; i <= n; i++ {
		ws.key = strconv.AppendInt(ws.key[:prefix], int64(i), 10)
		var p Point
		if k == crc {
			p = crcPoint(reg, ws.key[prefix:])
		} else {
			p = pointOf(k, ws.key)
		}
		ws.nodes = append(ws.nodes, node{uint64(p), owner})
	}
}

// indexShift returns by how much a point is shifted to give its bucket, for
// n points (n > 0) of a key space of the given width: between half a bucket and a
// whole one per point, and at least two buckets.
func indexShift(width uint, n int) uint8 {
	return uint8(width - max(1, uint(bits.Len(uint(n)))-1))
}

// sort puts nodes into ws.sorted, by point and then by member. Hashes are spread
// evenly, so distributing them over as many buckets as there are nodes leaves
// almost nothing to do.
func (ws *workspace) sort(width uint) {
	n := len(ws.nodes)
	shift := indexShift(width, n)
	buckets := 1 << (width - uint(shift))

	ws.starts = slices.Grow(ws.starts[:0], buckets+1)[:buckets+1]
	clear(ws.starts)
	for i := range ws.nodes {
		ws.starts[ws.nodes[i].at>>shift+1]++
	}
	crowd := slices.Max(ws.starts)
	for b := 1; b <= buckets; b++ {
		ws.starts[b] += ws.starts[b-1]
	}
	ws.sorted = slices.Grow(ws.sorted[:0], n)[:n]
	for _, nd := range ws.nodes {
		s := &ws.starts[nd.at>>shift]
		ws.sorted[*s] = nd
		*s++
	}

	if crowd > 64 { // names chosen to collide must not cost a quadratic build
		slices.SortFunc(ws.sorted, func(a, b node) int {
			return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.owner, b.owner))
		})
		return
	}
	// Distribution kept members in their order, and moving only over greater
	// points keeps it, so equal points stay ordered by member.
	for i := 1; i < n; i++ {
		nd, j := ws.sorted[i], i
		for ; j > 0 && ws.sorted[j-1].at > nd.at; j-- {
			ws.sorted[j] = ws.sorted[j-1]
		}
		ws.sorted[j] = nd
	}
}

// dropHidden keeps of the nodes at one point the last, in place.
func dropHidden(sorted []node) []node {
	kept := sorted[:0]
	for i, nd := range sorted {
		if i+1 == len(sorted) || sorted[i+1].at != nd.at {
			kept = append(kept, nd)
		}
	}
	return kept
}

// keep stores nodes, which are strictly ascending, and indexes them.
func (r *Ring) keep(nodes []node) {
	n := len(nodes)
	r.owner = make([]uint16, n)
	if r.kind == xxh {
		r.at64 = make([]uint64, n)
	} else {
		r.at32 = make([]uint32, n)
	}
	r.shift = indexShift(r.kind.bits(), n)
	buckets := 1 << (r.kind.bits() - uint(r.shift))
	r.index = make([]uint16, buckets+1)

	next := 0 // buckets below it are indexed
	for i, nd := range nodes {
		r.owner[i] = nd.owner
		if r.kind == xxh {
			r.at64[i] = nd.at
		} else {
			r.at32[i] = uint32(nd.at)
		}
		for ; next <= int(nd.at>>r.shift); next++ {
			r.index[next] = uint16(i)
		}
	}
	for ; next <= buckets; next++ {
		r.index[next] = uint16(n - 1)
	}
	r.placed = r.countPlaced()
}

func (r *Ring) countPlaced() int {
	var small [smallBitmap]uint64
	seen := bitmap(small[:])
	if len(r.names) > len(small)*64 {
		seen = make(bitmap, (len(r.names)+63)/64)
	}
	n := 0
	for _, m := range r.owner {
		if seen.add(int(m)) {
			n++
		}
	}
	return n
}
