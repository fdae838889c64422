package proxy

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
)

func TestInHex(t *testing.T) {
	for _, v := range []uint32{0, 1, 9, 10, 0xf, 0x10, 0x9a, 0xa9, 0x12345678, 0x9abcdef0, 0xffffffff, 0x0f0f0f0f, 0xf0f0f0f0} {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], inHex(v))
		want := []byte(fmt.Sprintf("%08x", v))
		for i := range b { // the lowest digit first
			if b[i] != want[len(want)-1-i] {
				t.Fatalf("%#x: %q", v, b)
			}
		}
	}
}

func TestNewRequestID_IsLongAndNew(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		b := newRequestID()
		id := string(b[:])
		if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" || seen[id] {
			t.Fatalf("%q", id)
		}
		seen[id] = true
	}
}

func TestNamesConversation(t *testing.T) {
	for body, want := range map[string]bool{
		``:                                     false,
		`_`:                                    false,
		`{"query":"x","user":"u"}`:             false,
		`{"conversation_id":"","user":"u"}`:    false,
		`{"conversation_id" : "" ,"user":"u"}`: false,
		`{"conversation_id":"c"}`:              true,
		"{\"conversation_id\" \n:\t\"c\"}":     true,
		`{"conversation_id":null}`:             true, // to be looked at
		`{"response_mode":"blocking","conversation_id":"c"}`:      true,
		`{"inputs":{"conversation_id":""},"conversation_id":"c"}`: true,
		`{"conversation_idx":"c","x_conversation_id":"c"}`:        false,
		`"conversation_id"`: true,
		`"conversation_id`:  false,
		`"conversation_`:    false,
		`{"a_b_c":"__","conversation_id":"","conversation_id":"last"}`: true,
	} {
		if got := namesConversation([]byte(body)); got != want {
			t.Errorf("%s: %v", body, got)
		}
	}
}
