package e2e

import (
	"crypto/md5"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sort"
	"testing"

	"github.com/cespare/xxhash/v2"
)

// Placement as the contract's words have it, written anew and without an eye on
// speed: a virtual node i (1..n) of an instance sits at H(name#i), a request at
// H(app:user), and it belongs to the first virtual node at or after it.

// place maps a key onto the line of numbers. crc32 is read as signed; xxhash
// needs all 64 bits, so unsigned numbers of fewer bits are placed as they are
// and signed ones shifted, which keeps the order.
func place(t testing.TB, algorithm, key string) uint64 {
	t.Helper()
	switch algorithm {
	case "crc32":
		return uint64(int64(int32(crc32.ChecksumIEEE([]byte(key)))) + 1<<31)
	case "md5":
		sum := md5.Sum([]byte(key))
		return uint64(binary.BigEndian.Uint32(sum[:4]))
	case "sha1":
		sum := sha1.Sum([]byte(key))
		return uint64(binary.BigEndian.Uint32(sum[:4]))
	case "xxhash":
		return xxhash.Sum64String(key)
	}
	t.Fatalf("algorithm %q", algorithm)
	return 0
}

// order returns the names of the instances in the order in which they are
// tried for the user, the owner first.
func (a application) order(t testing.TB, user string) []string {
	t.Helper()
	divisor := 0
	for _, in := range a.instances {
		divisor = gcd(divisor, in.weighs())
	}
	owner := make(map[uint64]string)
	for _, in := range a.instances { // a later one takes the place of an earlier
		for i := 1; i <= a.virtualNodes()*in.weighs()/divisor; i++ {
			owner[place(t, a.hash(), fmt.Sprintf("%s#%d", in.name, i))] = in.name
		}
	}
	points := make([]uint64, 0, len(owner))
	for p := range owner {
		points = append(points, p)
	}
	sort.Slice(points, func(i, j int) bool { return points[i] < points[j] })
	at := place(t, a.hash(), a.name+":"+user)
	first := sort.Search(len(points), func(i int) bool { return points[i] >= at })
	if first == len(points) {
		first = len(points) - 1
		if a.hash() == "xxhash" {
			first = 0
		}
	}
	var names []string
	seen := make(map[string]bool)
	for i := range points {
		name := owner[points[(first+i)%len(points)]]
		if !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// ownedBy returns those of the users whom the instance owns.
func (a application) ownedBy(t testing.TB, name string, users []string) (out []string) {
	t.Helper()
	for _, u := range users {
		if a.order(t, u)[0] == name {
			out = append(out, u)
		}
	}
	return out
}
