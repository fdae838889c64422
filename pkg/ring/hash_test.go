package ring

import (
	"strings"
	"testing"
)

// Known answers: the check value "123456789" of the CRC catalogue, RFC 1321
// and FIPS 180 test vectors, and XXH64's of the empty input.
func TestPointOf_KnownAnswers(t *testing.T) {
	tests := []struct {
		kind kind
		key  string
		want Point
	}{
		{crc, "123456789", 0xcbf43926 ^ signBit},
		{crc, "", 0 ^ signBit},
		{md, "abc", 0x90015098},
		{md, "", 0xd41d8cd9},
		{sha, "abc", 0xa9993e36},
		{xxh, "", 0xef46db3751d8e999},
	}
	for _, tt := range tests {
		if got := pointOf(tt.kind, []byte(tt.key)); got != tt.want {
			t.Errorf("%s of %q = %#x, want %#x", tt.kind.algorithm(), tt.key, uint64(got), uint64(tt.want))
		}
	}
}

func TestRaw_IsTheAlgorithmsNumber(t *testing.T) {
	tests := []struct {
		alg  Algorithm
		p    Point
		want string
	}{
		{CRC32, 0, "-2147483648"},
		{CRC32, 1 << 31, "0"},
		{CRC32, 1<<32 - 1, "2147483647"},
		{MD5, 1<<32 - 1, "4294967295"},
		{SHA1, 0, "0"},
		{XXHash, 1<<64 - 1, "18446744073709551615"},
	}
	for _, tt := range tests {
		if got := mustNew(t, tt.alg, 1, nil).Raw(tt.p); got != tt.want {
			t.Errorf("%s: Raw(%#x) = %s, want %s", tt.alg, uint64(tt.p), got, tt.want)
		}
	}
}

// checkHashes compares the four ways to a point with the whole number of the oracle.
func checkHashes(t *testing.T, r *Ring, app, user string) {
	t.Helper()
	want := oracleHash(r.Algorithm(), app+":"+user).String()
	h := r.Hasher(app)
	for name, p := range map[string]Point{
		"Hash": r.Hash(app, user), "HashBytes": r.HashBytes(app, []byte(user)),
		"Hasher.Point": h.Point(user), "Hasher.PointBytes": h.PointBytes([]byte(user)),
	} {
		if got := r.Raw(p); got != want {
			t.Errorf("%s of %q, %q by %s = %s, want %s", r.Algorithm(), app, user, name, got, want)
		}
	}
}

func TestHash_OfEveryLength(t *testing.T) {
	for _, alg := range algorithms {
		r := mustNew(t, alg, 1, nil)
		for _, app := range []string{"", "customer_service", strings.Repeat("a", 63), strings.Repeat("long", 300)} {
			for n := range 200 {
				checkHashes(t, r, app, strings.Repeat("0123456789abc", 20)[n:])
			}
			for _, n := range []int{511, 512, 513, 1 << 16} {
				checkHashes(t, r, app, strings.Repeat("z", n))
			}
		}
	}
}

func FuzzHash_AllWaysAgree(f *testing.F) {
	f.Add("customer_service", "u1@example.com")
	f.Add("", "")
	f.Add("a:b", "用户8956")
	f.Add("app", "a:b\x00\xff")
	f.Add(strings.Repeat("a", 63), strings.Repeat("u", 64))
	f.Add(strings.Repeat("a", 64), strings.Repeat("u", 1000))
	var rings []*Ring
	for _, alg := range algorithms {
		rings = append(rings, mustNew(f, alg, 10, equalMembers(3)))
	}
	f.Fuzz(func(t *testing.T, app, user string) {
		for _, r := range rings {
			checkHashes(t, r, app, user)
			if i := r.Owner(r.Hash(app, user)); i < 0 || i >= r.Len() {
				t.Errorf("%s: owner of %q, %q is %d", r.Algorithm(), app, user, i)
			}
		}
	})
}

// FuzzNew_AgreesWithOracle builds rings from foreign names and weights.
func FuzzNew_AgreesWithOracle(f *testing.F) {
	f.Add(byte(0), byte(3), "a\nb\nc", []byte{1, 1, 1}, "user")
	f.Add(byte(3), byte(9), "dify1\ndify2", []byte{0, 7}, "")
	f.Add(byte(1), byte(1), "node-1565ef4f\nnode-d382acc2", []byte{1, 1}, "u")
	f.Add(byte(2), byte(1), "a\na", []byte{1, 1}, "u")
	f.Fuzz(func(t *testing.T, alg, nodes byte, names string, weights []byte, user string) {
		var members []Member
		for i, name := range strings.SplitN(names, "\n", 8) {
			w := 0
			if i < len(weights) {
				w = int(weights[i] % 16)
			}
			members = append(members, Member{name, w})
		}
		a, vn := algorithms[int(alg)%len(algorithms)], int(nodes%8)
		r, err := New(a, vn, members)
		_, repeated := repeatedName(members)
		if (err != nil) != (vn == 0 || repeated) {
			t.Fatalf("New(%s, %d, %+v): %v", a, vn, members, err)
		}
		if err == nil {
			compareOrder(t, r, r.Hash("app", user), newOracle(a, vn, members).order(oracleHash(a, "app:"+user)))
		}
	})
}
