package ring

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
)

func TestShare_AddsUpToOne(t *testing.T) {
	rnd := newRand(20)
	for round := range 200 {
		alg := algorithms[round%len(algorithms)]
		members := randomMembers(rnd, 1+rnd.IntN(30), 5)
		members[0].Weight = 1
		sum := 0.0
		for i, s := range mustNew(t, alg, 1+rnd.IntN(200), members).Share() {
			if s < 0 || (s > 0) != (members[i].Weight > 0) {
				t.Fatalf("%s: weight %d has %v", alg, members[i].Weight, s)
			}
			sum += s
		}
		if math.Abs(sum-1) > 1e-12 {
			t.Fatalf("%s: shares add up to %v", alg, sum)
		}
	}
}

func TestShare_OfOneIsExactlyOne(t *testing.T) {
	for _, alg := range algorithms {
		for _, nodes := range []int{1, 2, 150} {
			if got := mustNew(t, alg, nodes, equalMembers(1)).Share(); got[0] != 1 {
				t.Errorf("%s×%d: %v", alg, nodes, got)
			}
		}
	}
}

// With one point each, every rule at the ends of the key space is visible and the
// shares can be computed by hand.
func TestShare_CountsTheEndsByTheRule(t *testing.T) {
	tests := []struct {
		name   string
		kind   kind
		points []node
		want   []float64
	}{
		{"last has the rest", md, []node{{1<<30 - 1, 0}, {1<<31 - 1, 1}}, []float64{0.25, 0.75}},
		{"first has the rest", xxh, []node{{1<<62 - 1, 0}, {1<<63 - 1, 1}}, []float64{0.75, 0.25}},
		{"nothing is left over", md, []node{{1<<31 - 1, 0}, {math.MaxUint32, 1}}, []float64{0.5, 0.5}},
		{"nothing is left over, 64 bits", xxh, []node{{1<<63 - 1, 0}, {math.MaxUint64, 1}}, []float64{0.5, 0.5}},
		{"key 0", crc, []node{{0, 0}, {1, 1}}, []float64{math.Ldexp(1, -32), 1 - math.Ldexp(1, -32)}},
		{"only key 0", xxh, []node{{0, 0}}, []float64{1}},
		{"only the last key", xxh, []node{{math.MaxUint64, 0}}, []float64{1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := &Ring{kind: tt.kind, names: []string{"a", "b"}[:len(tt.want)]}
			r.keep(tt.points)
			if got := r.Share(); !slices.Equal(got, tt.want) {
				t.Errorf("Share = %v, want %v", got, tt.want)
			}
			if got := Moved(r, r); got != 0 {
				t.Errorf("Moved to itself = %v", got)
			}
			other := &Ring{kind: tt.kind, names: []string{"b", "c"}}
			other.keep([]node{{5, 1}})
			if got := Moved(r, other); got != 1 {
				t.Errorf("Moved to another member = %v, want 1", got)
			}
		})
	}
}

// samples is enough for a standard deviation of at most 0.0025; the tests allow four.
const samples = 40_000

func TestShare_AgreesWithSampling(t *testing.T) {
	rnd := newRand(21)
	for _, alg := range algorithms {
		members := randomMembers(rnd, 6, 5)
		members[0].Weight = 3
		r := mustNew(t, alg, 2, members)
		hits := make([]float64, len(members))
		for range samples {
			hits[r.Owner(r.Hash("app", randomUser(rnd)+randomUser(rnd)))] += 1.0 / samples
		}
		for i, s := range r.Share() {
			if math.Abs(hits[i]-s) > 0.01 {
				t.Errorf("%s: member %d owns %.4f and is hit by %.4f", alg, i, s, hits[i])
			}
		}
	}
}

func TestMoved_AgreesWithSampling(t *testing.T) {
	rnd := newRand(22)
	for round := range 16 {
		alg := algorithms[round%len(algorithms)]
		from := randomMembers(rnd, 1+rnd.IntN(8), 4)
		to := slices.Clone(from)
		rnd.Shuffle(len(to), func(i, j int) { to[i], to[j] = to[j], to[i] })
		to = append(to[rnd.IntN(len(to)):], randomMembers(rnd, rnd.IntN(3), 4)...)
		a, b := mustNew(t, alg, 5, from), mustNew(t, alg, 5, to)
		sampled := 0.0
		for range samples {
			if p := randomPoint(rnd, a); ownerName(a, p) != ownerName(b, p) {
				sampled += 1.0 / samples
			}
		}
		moved := Moved(a, b)
		if math.Abs(moved-sampled) > 0.01 {
			t.Errorf("%s, %+v to %+v: Moved = %.4f, sampled %.4f", alg, from, to, moved, sampled)
		}
		if back := Moved(b, a); back != moved {
			t.Errorf("Moved = %v there and %v back", moved, back)
		}
	}
}

func ownerName(r *Ring, p Point) string {
	if i := r.Owner(p); i >= 0 {
		return r.Name(i)
	}
	return "nobody at all"
}

func TestMoved_AtItsEdges(t *testing.T) {
	empty := func(a Algorithm) *Ring { return mustNew(t, a, 150, []Member{{"a", 0}}) }
	one := func(a Algorithm, name string) *Ring { return mustNew(t, a, 150, []Member{{name, 1}}) }
	three := func(a Algorithm) *Ring { return mustNew(t, a, 150, equalMembers(3)) }
	tests := []struct {
		name string
		a, b *Ring
		want float64
	}{
		{"same", three(CRC32), three(CRC32), 0},
		{"from nothing", empty(CRC32), three(CRC32), 1},
		{"nothing to nothing", empty(XXHash), empty(XXHash), 0},
		{"renamed", one(XXHash, "a"), one(XXHash, "b"), 1},
		{"other algorithm", three(CRC32), three(MD5), 1},
		{"other algorithm, nobody", empty(CRC32), empty(MD5), 0},
		{"other algorithm, the only member", one(CRC32, "a"), one(XXHash, "a"), 0},
		{"other algorithm, another only member", one(CRC32, "a"), one(XXHash, "b"), 1},
		{"other algorithm, from nothing", empty(CRC32), one(XXHash, "a"), 1},
		{"other algorithm, one of three", one(CRC32, "dify1"), three(XXHash), 1},
	}
	for _, tt := range tests {
		if got := Moved(tt.a, tt.b); got != tt.want {
			t.Errorf("%s: Moved = %v, want %v", tt.name, got, tt.want)
		}
		if got := Moved(tt.b, tt.a); got != tt.want {
			t.Errorf("%s, back: Moved = %v, want %v", tt.name, got, tt.want)
		}
	}
}

// The numbers are compared between proxies of different versions: a change here
// is a change of the protocol.
func TestChecksum_IsStable(t *testing.T) {
	weighted := []Member{{"dify1", 1}, {"dify2", 2}, {"dify3", 0}}
	tests := []struct {
		ring *Ring
		want uint64
	}{
		{mustNew(t, CRC32, 150, nil), 0xaabc91ad89bf8af5},
		{mustNew(t, CRC32, 150, equalMembers(3)), 0xecf33c23725870b3},
		{mustNew(t, MD5, 150, weighted), 0xd1d8527f85b3e7dd},
		{mustNew(t, SHA1, 150, weighted), 0x241334ce84ebc8e1},
		{mustNew(t, XXHash, 150, weighted), 0x5ac3a9a97aac9d9b},
		{mustNew(t, XXHash, 70, equalMembers(1000)), 0xc1724cd9f7dfed57},
	}
	for i, tt := range tests {
		if got := tt.ring.Checksum(); got != tt.want {
			t.Errorf("ring %d: %#x, want %#x", i, got, tt.want)
		}
	}
}

func TestChecksum_IsOverTheDocumentedBytes(t *testing.T) {
	for _, r := range []*Ring{
		mustNew(t, SHA1, 150, nil),
		mustNew(t, CRC32, 150, equalMembers(4)),
		mustNew(t, XXHash, 70, equalMembers(1000)),
		mustNew(t, MD5, 2, []Member{{strings.Repeat("long", 5000), 1}, {"", 1}}),
	} {
		var want bytes.Buffer
		str := func(s string) { fmt.Fprintf(&want, "%s%s", le64(uint64(len(s))), s) }
		want.WriteString("difylb ring 1\n")
		str(string(r.Algorithm()))
		want.Write(le64(uint64(r.Len())))
		for i := range r.Len() {
			str(r.Name(i))
		}
		want.Write(le64(uint64(r.Points())))
		for i := range r.Points() {
			want.Write(le64(r.at(i)))
			want.Write(le64(uint64(r.owner[i]))[:2])
		}
		if got := r.Checksum(); got != xxhash.Sum64(want.Bytes()) {
			t.Errorf("%s, %d members: Checksum = %#x, want %#x", r.Algorithm(), r.Len(), got, xxhash.Sum64(want.Bytes()))
		}
	}
}

func le64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

func TestChecksum_TellsRingsApart(t *testing.T) {
	seen := map[uint64]int{}
	for i, r := range []*Ring{
		mustNew(t, CRC32, 150, []Member{{"a", 1}, {"b", 1}}),
		mustNew(t, CRC32, 151, []Member{{"a", 1}, {"b", 1}}),
		mustNew(t, CRC32, 150, []Member{{"b", 1}, {"a", 1}}),
		mustNew(t, CRC32, 150, []Member{{"a", 1}, {"b", 2}}),
		mustNew(t, CRC32, 150, []Member{{"a", 1}, {"b", 1}, {"c", 0}}),
		mustNew(t, CRC32, 150, []Member{{"ab", 1}}),
		mustNew(t, MD5, 150, []Member{{"a", 1}, {"b", 1}}),
		mustNew(t, CRC32, 150, []Member{{"ab", 0}}),
		mustNew(t, CRC32, 150, []Member{{"a", 0}, {"b", 0}}),
		mustNew(t, MD5, 150, nil),
	} {
		if j, ok := seen[r.Checksum()]; ok {
			t.Errorf("rings %d and %d have one checksum", i, j)
		}
		seen[r.Checksum()] = i
	}
	a := mustNew(t, CRC32, 150, []Member{{"a", 3}, {"b", 6}})
	b := mustNew(t, CRC32, 150, []Member{{"a", 1}, {"b", 2}})
	if a.Checksum() != b.Checksum() {
		t.Error("the same points under other weights differ")
	}
}
