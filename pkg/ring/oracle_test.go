package ring

import (
	"crypto/md5"
	"crypto/sha1"
	"fmt"
	"hash/crc32"
	"math/big"
	"math/rand/v2"

	"github.com/cespare/xxhash/v2"
)

// oracle is the contract's words and nothing else: a list of nodes that is
// looked through from one end to the other, and hashes as whole numbers.
type oracle struct {
	alg   Algorithm
	nodes []oracleNode
}

type oracleNode struct {
	at     *big.Int
	member int
}

// oracleHash is H as the contract defines it.
func oracleHash(alg Algorithm, key string) *big.Int {
	switch alg {
	case CRC32:
		return big.NewInt(int64(int32(crc32.ChecksumIEEE([]byte(key)))))
	case MD5:
		d := md5.Sum([]byte(key))
		return new(big.Int).SetBytes(d[:4])
	case SHA1:
		d := sha1.Sum([]byte(key))
		return new(big.Int).SetBytes(d[:4])
	case XXHash:
		return new(big.Int).SetUint64(xxhash.Sum64String(key))
	}
	panic("unknown algorithm " + alg)
}

// newOracle is for weights that need no scaling down.
func newOracle(alg Algorithm, virtualNodes int, members []Member) *oracle {
	gcd := 0
	for _, m := range members {
		if m.Weight > 0 {
			for g := max(gcd, m.Weight); ; g-- {
				if gcd%g == 0 && m.Weight%g == 0 {
					gcd = g
					break
				}
				if g == 1 {
					panic("one divides everything")
				}
			}
		}
	}
	o := &oracle{alg: alg}
	for i, m := range members {
		if m.Weight == 0 {
			continue
		}
		for v := 1; v <= virtualNodes*m.Weight/gcd; v++ {
			o.nodes = append(o.nodes, oracleNode{oracleHash(alg, fmt.Sprintf("%s#%d", m.Name, v)), i})
		}
	}
	return o
}

// nodeFor returns the node that the key at h belongs to.
func (o *oracle) nodeFor(h *big.Int) oracleNode {
	var found, first, last oracleNode
	for _, n := range o.nodes {
		// <= and >=: of two nodes at one point the later in the list counts.
		if n.at.Cmp(h) >= 0 && (found.at == nil || n.at.Cmp(found.at) <= 0) {
			found = n
		}
		if first.at == nil || n.at.Cmp(first.at) <= 0 {
			first = n
		}
		if last.at == nil || n.at.Cmp(last.at) >= 0 {
			last = n
		}
	}
	switch {
	case found.at != nil:
		return found
	case o.alg == XXHash:
		return first
	default:
		return last
	}
}

// order returns the distinct members clockwise from h.
func (o *oracle) order(h *big.Int) []int {
	if len(o.nodes) == 0 {
		return nil
	}
	start := o.nodeFor(h)
	order := []int{start.member}
	seen := map[int]bool{start.member: true}
	one := big.NewInt(1)
	for n := start; ; {
		n = o.after(new(big.Int).Add(n.at, one))
		if n.at.Cmp(start.at) == 0 {
			return order
		}
		if !seen[n.member] {
			seen[n.member] = true
			order = append(order, n.member)
		}
	}
}

// after returns the first node at or after h, wrapping to the first for every algorithm.
func (o *oracle) after(h *big.Int) oracleNode {
	var found, first oracleNode
	for _, n := range o.nodes {
		if n.at.Cmp(h) >= 0 && (found.at == nil || n.at.Cmp(found.at) <= 0) {
			found = n
		}
		if first.at == nil || n.at.Cmp(first.at) <= 0 {
			first = n
		}
	}
	if found.at != nil {
		return found
	}
	return first
}

var algorithms = []Algorithm{CRC32, MD5, SHA1, XXHash}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x6469667962)) }

func randomUser(rnd *rand.Rand) string {
	switch rnd.IntN(4) {
	case 0:
		return fmt.Sprintf("%08x-%04x-4%03x-a%03x-%012x", rnd.Uint32(), rnd.IntN(1<<16), rnd.IntN(1<<12), rnd.IntN(1<<12), rnd.Uint64N(1<<48))
	case 1:
		return fmt.Sprintf("user-%d", rnd.IntN(1e8))
	case 2:
		return fmt.Sprintf("用户%d", rnd.IntN(1e6))
	default:
		b := make([]byte, rnd.IntN(300))
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return string(b)
	}
}

func randomMembers(rnd *rand.Rand, n, maxWeight int) []Member {
	members := make([]Member, n)
	for i := range members {
		members[i] = Member{fmt.Sprintf("m%d-%x", i, rnd.Uint32()), rnd.IntN(maxWeight + 1)}
	}
	return members
}

// equalMembers returns n members of weight 1.
func equalMembers(n int) []Member {
	members := make([]Member, n)
	for i := range members {
		members[i] = Member{fmt.Sprintf("dify%d", i+1), 1}
	}
	return members
}

// randomPoint returns a point of r's key space.
func randomPoint(rnd *rand.Rand, r *Ring) Point {
	if r.kind == xxh {
		return Point(rnd.Uint64())
	}
	return Point(rnd.Uint32())
}
