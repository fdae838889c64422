package lb

import (
	"encoding/json"
	"net"
	"net/url"
	"strconv"
	"time"
)

// Instance is one address that serves an application, with its own token.
type Instance struct {
	// Name is unique in the application. It, and nothing else of the
	// instance, decides where on the ring the instance stands.
	Name string `json:"name"`
	// Host and Port, or URL, say where it is; URL is for https and wins. A
	// declaration gives one of the two forms.
	Host string `json:"host,omitempty"`
	Port int    `json:"port,omitempty"` // default 80
	URL  string `json:"url,omitempty"`
	// Token is what the instance itself wants to see ("app-…").
	Token Secret `json:"token"`
	// Weight scales its share of new users, 0 to 65535; 0 takes none.
	Weight int `json:"weight"`
	// MaxFails failures of live traffic within FailTimeout eject the instance
	// for FailTimeout, in the proxy that saw them. 0 never ejects.
	MaxFails    int      `json:"max_fails"`
	FailTimeout Duration `json:"fail_timeout"`
	// MaxInFlight bounds the requests open at once over the whole cluster; 0 means no bound.
	MaxInFlight int `json:"max_in_flight"`
	// Domain: instances of equal, non-empty domain share database, Redis and
	// storage. Empty: a world of its own.
	Domain string `json:"domain"`
	// State is what the operator wants: active takes requests; draining takes
	// no new ones, open ones finish; disabled takes nothing and is not probed.
	State State `json:"state"`
	// PreserveHost overrides the application's; nil: what that says.
	PreserveHost *bool `json:"preserve_host,omitempty"`
	// TLS is for https URLs only; nil: the system's authorities, and the URL's host.
	TLS *InstanceTLS `json:"tls,omitempty"`

	// Revision is the store's revision of the last change to the instance. 0 before it is stored.
	Revision int64 `json:"-"`
}

// SetDefaults fills in the defaults; decoding a declaration starts from them.
// Host, port and URL have none here: Normalize gives them.
func (in *Instance) SetDefaults() {
	in.Weight = 1
	in.MaxFails = 3
	in.FailTimeout = 30 * second
	in.State = Active
}

// Normalize brings the address into its stored form: a port where host has
// none.
func (in *Instance) Normalize() {
	if in.URL == "" && in.Port == 0 {
		in.Port = 80
	}
}

// BaseURL returns the instance's address as a URL without a path. It is only
// meaningful for an instance that passed Validate.
func (in *Instance) BaseURL() *url.URL {
	if in.URL == "" {
		return &url.URL{Scheme: "http", Host: hostPort(in.Host, in.Port, 80)}
	}
	u, err := url.Parse(in.URL)
	if err != nil {
		return &url.URL{Scheme: "http", Host: "invalid"}
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}
}

// Address returns host:port to dial.
func (in *Instance) Address() string {
	u := in.BaseURL()
	if u.Port() != "" {
		return u.Host
	}
	if u.Scheme == "https" {
		return net.JoinHostPort(u.Hostname(), "443")
	}
	return net.JoinHostPort(u.Hostname(), "80")
}

// hostPort leaves the scheme's own port away, as a Host header does.
func hostPort(host string, port, standard int) string {
	if port == 0 || port == standard {
		if net.ParseIP(host) != nil && net.ParseIP(host).To4() == nil {
			return "[" + host + "]"
		}
		return host
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// MarshalJSON writes the instance without its token: token_hint stands for it.
// MarshalSecret writes the token too.
func (in Instance) MarshalJSON() ([]byte, error) {
	type plain Instance
	return json.Marshal(struct {
		plain
		Token any    `json:"token,omitempty"` // shadows the field
		Hint  string `json:"token_hint,omitempty"`
	}{plain: plain(in), Hint: in.Token.Hint()})
}

// MarshalSecret is MarshalJSON with the token, for the store and for an
// export that asks for secrets.
func (in Instance) MarshalSecret() ([]byte, error) {
	type plain Instance
	return json.Marshal(struct {
		plain
		Token string `json:"token,omitempty"`
	}{plain: plain(in), Token: in.Token.Reveal()})
}

// UserToken is a client's credential as the cluster keeps it: its hash.
type UserToken struct {
	SHA256   TokenHash
	Hint     string // the token's last four characters; empty for short ones
	Label    string // the operator's name for it, counted in usage statistics; may be empty
	Disabled bool   // answers 401 as if it did not exist
	Created  time.Time
	// Ref is set, and SHA256 is not, while a declaration names a stored token
	// by its id ({id: 3f2a…, label: web}). Resolve replaces it.
	Ref string
}

// MarshalJSON writes what may be shown: the id, never the hash. A weak token
// could be guessed from its hash.
func (t UserToken) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		ID       string     `json:"id"`
		Hint     string     `json:"token_hint,omitempty"`
		Label    string     `json:"label,omitempty"`
		Disabled bool       `json:"disabled,omitempty"`
		Created  *time.Time `json:"created,omitempty"`
	}{t.ID(), t.Hint, t.Label, t.Disabled, timeOrNil(t.Created)})
}

// ID returns the token's short name.
func (t UserToken) ID() string {
	if t.Ref != "" {
		return t.Ref
	}
	return t.SHA256.ID()
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// NewUserToken keeps a token: the hash, the hint, the rest as given.
func NewUserToken(token Secret, label string, disabled bool) UserToken {
	return UserToken{SHA256: token.Hash(), Hint: token.Hint(), Label: label, Disabled: disabled}
}
