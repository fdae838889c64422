package h1

import (
	"strings"
	"testing"
)

func TestLookup_FindsEveryNameInAnyCase(t *testing.T) {
	if knownCollisions != 0 {
		t.Fatalf("%d names share a slot: choose another hashFactor", knownCollisions)
	}
	for id, name := range knownNames {
		id := KnownField(id)
		if (name == "") != (id == UnknownField || id == Underscored) {
			t.Fatalf("%d has the name %q", id, name)
		}
		if name == "" {
			continue
		}
		if len(name) < minKnownName || len(name) > maxKnownName {
			t.Errorf("%s is outside of minKnownName and maxKnownName", name)
		}
		for _, spelling := range []string{name, strings.ToLower(name), strings.ToUpper(name)} {
			if got := lookup([]byte(spelling)); got != id {
				t.Errorf("lookup(%q) = %v, want %v", spelling, got, id)
			}
		}
		if id.String() != name {
			t.Errorf("String of %q is %q", name, id)
		}
	}
}

// Every byte of a known name is put in the place of every byte that a token
// may have: what is not the same name without regard to case must not be found.
func TestLookup_FindsNothingElse(t *testing.T) {
	for id, name := range knownNames {
		for i := range len(name) {
			for c := range 256 {
				if class[c]&isToken == 0 || c == '_' {
					continue
				}
				other := name[:i] + string(rune(c)) + name[i+1:]
				if got := lookup([]byte(other)); (got == KnownField(id)) != strings.EqualFold(other, name) {
					t.Errorf("lookup(%q) = %v", other, got)
				}
			}
		}
		if name != "" && (lookup([]byte(name+"x")) == KnownField(id) || lookup([]byte("x"+name)) == KnownField(id)) {
			t.Errorf("a longer name is taken for %s", name)
		}
	}
	for _, name := range []string{"", "x", "Hos", strings.Repeat("x", 300)} {
		if got := lookup([]byte(name)); got != UnknownField {
			t.Errorf("lookup(%q) = %v", name, got)
		}
	}
}

func TestKnownField_Sets(t *testing.T) {
	for _, id := range []KnownField{Connection, TransferEncoding, TE, Upgrade, KeepAlive, ProxyConnection, ProxyAuthorization} {
		if !id.HopByHop() || id.TrailerAllowed() {
			t.Errorf("%v: hop-by-hop %v, as trailer %v", id, id.HopByHop(), id.TrailerAllowed())
		}
	}
	for _, id := range []KnownField{UnknownField, Underscored, ETag, Server} {
		if id.HopByHop() || id.Forwarding() || !id.TrailerAllowed() {
			t.Errorf("%v: hop-by-hop %v, forwarding %v, as trailer %v", id, id.HopByHop(), id.Forwarding(), id.TrailerAllowed())
		}
	}
	if !XForwardedFor.Forwarding() || Host.HopByHop() || Host.TrailerAllowed() {
		t.Error("X-Forwarded-For or Host is in the wrong set")
	}
}

func TestHasControl_IsTheSlowOne(t *testing.T) {
	for n := range 40 {
		b := []byte(strings.Repeat("a", n))
		for i := range n {
			for c := range 256 {
				b[i] = byte(c)
				if got, want := hasControl(b), isControl(byte(c)); got != want {
					t.Fatalf("%q: %v, want %v", b, got, want)
				}
				if n > i+1 { // two neighbours: a borrow must not hide the second
					b[i+1] = 0x7f
					if !hasControl(b) {
						t.Fatalf("%q: DEL not found", b)
					}
					b[i+1] = 'a'
				}
			}
			b[i] = 'a'
		}
	}
}

func TestLookup_IsNotFooledByControlBytes(t *testing.T) {
	// Bit 0x20 makes '-' of CR and digits of DLE to EM.
	for _, name := range knownNames {
		for i := range len(name) {
			if b := []byte(name); b[i] == '-' || isDigit(b[i]) {
				if b[i] &^= 0x20; lookup(b) != UnknownField || validName(string(b)) {
					t.Errorf("lookup(%q) = %v", b, lookup(b))
				}
			}
		}
	}
}
