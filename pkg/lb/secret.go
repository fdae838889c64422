package lb

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
)

// MaxTokenBytes bounds every token, a client's as well as an instance's. A
// longer one is refused before it is hashed, so that hashing cannot be made
// expensive from outside.
const MaxTokenBytes = 512

// Secret is a value that must never be shown: a user token, an instance's
// token, an admin token, the cluster key. Every way of printing it (fmt, JSON,
// text) gives a redacted form; Reveal is the only way to the bytes, which
// makes the places that use them easy to find.
type Secret string

const redacted = "[redacted]"

// Reveal returns the secret itself. Call it only where the secret is put on
// the wire or into the store.
func (s Secret) Reveal() string { return string(s) }

// Hint returns the last four characters, enough for an operator to tell two
// tokens apart, or nothing for secrets so short that four characters would
// give them away.
func (s Secret) Hint() string {
	if len(s) < 12 {
		return ""
	}
	return string(s[len(s)-4:])
}

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// Format implements fmt.Formatter, so that no verb, %q and %#v included, shows
// the secret.
func (s Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// MarshalText implements encoding.TextMarshaler with the redacted form.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Hash returns the SHA-256 under which a token is stored and looked up.
func (s Secret) Hash() TokenHash { return sha256.Sum256([]byte(s)) }

// TokenHash is the SHA-256 of a token.
type TokenHash [sha256.Size]byte

// ParseTokenHash reads the 64 hexadecimal digits that String writes.
func ParseTokenHash(s string) (TokenHash, error) {
	var h TokenHash
	if len(s) != 2*len(h) {
		return h, fmt.Errorf("a SHA-256 has %d hexadecimal digits, this has %d characters", 2*len(h), len(s))
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil {
		return TokenHash{}, fmt.Errorf("not a SHA-256 in hexadecimal digits")
	}
	return h, nil
}

func (h TokenHash) String() string { return hex.EncodeToString(h[:]) }

// ID returns the short form by which people and the REST API name a stored
// token: the first 16 hexadecimal digits of its hash.
func (h TokenHash) ID() string { return hex.EncodeToString(h[:8]) }

// NewSecret makes a token of 256 random bits, URL-safe, behind the prefix.
func NewSecret(prefix string) Secret {
	var b [32]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return Secret(prefix + base64.RawURLEncoding.EncodeToString(b[:]))
}
