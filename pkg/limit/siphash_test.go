package limit

import "testing"

// The vectors are those of the paper (appendix A) and of its reference code:
// key 00 01 … 0f, message 00 01 … of the length.
func TestHasher_IsSipHash(t *testing.T) {
	var secret [16]byte
	for i := range secret {
		secret[i] = byte(i)
	}
	h := NewHasher(secret)
	message := ""
	want := map[int]uint64{0: 0x726fdb47dd0e0e31, 1: 0x74f839c593dc67fd, 7: 0xab0200f58b01d137, 8: 0x93f5f5799a932462, 15: 0xa129ca6149be45e5}
	for n := range 16 {
		if w, ok := want[n]; ok && h.Hash(message) != w {
			t.Errorf("%d bytes: %#x, want %#x", n, h.Hash(message), w)
		}
		message += string([]byte{byte(n)})
	}
	if h.Hash("alice") == NewHasher([16]byte{1}).Hash("alice") {
		t.Error("the secret makes no difference")
	}
}
