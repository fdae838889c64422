// Package health finds out which instances can be used: Threshold turns single observations into a verdict that does
// not flap, Passive ejects an instance on what live traffic of one proxy saw, and Prober asks instances actively, one
// verdict for the cluster. It refuses to know what is done with a verdict: nothing here routes, stores or logs.
// Unknown is not down: whoever has not been asked, or cannot be asked, stays usable.
package health

import (
	"fmt"
	"io"
)

// Health is what active probes know of an instance. The values are the status words of the outside.
type Health string

const (
	Unknown       Health = "unknown"        // not asked, or not often enough to say; usable
	Healthy       Health = "healthy"        // answers as it should
	Unhealthy     Health = "unhealthy"      // does not
	TokenRejected Health = "token_rejected" // answers, but 401 or 403 to its own token: a fault of the configuration
)

// Usable reports whether requests may be sent to an instance of this health. The empty string counts as Unknown.
func (h Health) Usable() bool { return h != Unhealthy && h != TokenRejected }

// Token is a secret sent to an instance. However it is printed or encoded, it shows as "[redacted]"; Reveal gives the
// secret itself.
type Token string

const redacted = "[redacted]"

// Reveal returns the secret.
func (t Token) Reveal() string { return string(t) }

// String implements fmt.Stringer.
func (Token) String() string { return redacted }

// Format implements fmt.Formatter, because verbs that do not fit a string would print the secret past String.
func (Token) Format(s fmt.State, _ rune) { io.WriteString(s, redacted) }

// MarshalText implements encoding.TextMarshaler, which encoding/json uses, too.
func (Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// ID names an instance.
type ID struct {
	App, Instance string
}

func (id ID) String() string { return id.App + "/" + id.Instance }
