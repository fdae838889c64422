package lb

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// The patterns of names. Instance names also come from configurations written
// elsewhere, so they may hold capitals.
var (
	appName      = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,62}$`)
	instanceName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)
	hostName     = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?$`)
	labelText    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:@/ -]{0,62}$`)
	numericHost  = regexp.MustCompile(`^[0-9.]+$`)
)

// Bounds of a declaration.
const (
	MaxInstances    = 4096
	MaxVirtualNodes = 65536
	MaxLoadFactor   = 1000
	MaxWeight       = 65535
	maxLongTime     = 24 * 3600 * second
)

// Validate returns every fault of the document, in the order in which it is
// written: applications by name, instances as declared. Tokens must be
// resolved (see Resolve).
func (d *Document) Validate() Faults {
	var fs Faults
	owners := make(map[TokenHash]string)
	for _, name := range d.names() {
		path := "applications." + name
		app := d.Applications[name]
		if app.Name != name {
			fs.Add(path+".name", "%q is not the key %q under which it is declared; leave name away or make them equal", app.Name, name)
		}
		fs = append(fs, app.Validate(path)...)
		for i, t := range app.UserTokens {
			if t.Ref != "" {
				continue
			}
			if other, taken := owners[t.SHA256]; taken && other != name {
				fs.Add(fmt.Sprintf("%s.user_tokens[%d]", path, i), "this token belongs to application %q already; a token belongs to one application only", other)
				continue
			}
			owners[t.SHA256] = name
		}
	}
	if d.Settings != nil {
		fs = append(fs, d.Settings.Validate("settings")...)
	}
	return fs
}

func (d *Document) names() []string {
	names := make([]string, 0, len(d.Applications))
	for n := range d.Applications {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Validate returns the faults of the settings.
func (s *Settings) Validate(path string) Faults {
	var fs Faults
	validateRate(&fs, JoinPath(path, "rate_limit.per_ip"), s.RateLimit.PerIP)
	return fs
}

// ValidApplicationName reports whether the name may name an application.
func ValidApplicationName(name string) bool { return appName.MatchString(name) }

// Validate returns the faults of one application, with paths below path.
func (a *Application) Validate(path string) Faults {
	var fs Faults
	at := func(key string) string { return JoinPath(path, key) }
	if !appName.MatchString(a.Name) {
		fs.Add(path, "%q is not a name for an application: 1 to 63 of a-z, 0-9, '_', '.', '-', beginning with a letter or digit", a.Name)
	}
	seen := make(map[string]int)
	for i, t := range a.UserTokens {
		p := fmt.Sprintf("%s[%d]", at("user_tokens"), i)
		if t.Ref == "" && t.SHA256 == (TokenHash{}) {
			fs.Add(p, "is empty; give a token, {token: …, label: …} or {id: …} of a stored one")
			continue
		}
		if first, twice := seen[t.ID()]; twice {
			fs.Add(p, "is the same token as user_tokens[%d]", first)
		}
		seen[t.ID()] = i
		if t.Label != "" && !labelText.MatchString(t.Label) {
			fs.Add(p+".label", "%q is not a label: up to 63 letters, digits, spaces and _.:@/-", t.Label)
		}
	}
	ch := a.ConsistentHash
	between(&fs, at("consistent_hash.virtual_nodes"), ch.VirtualNodes, 1, MaxVirtualNodes)
	oneOf(&fs, at("consistent_hash.hash_algorithm"), ch.HashAlgorithm, CRC32, MD5, SHA1, XXHash)
	if f := ch.LoadFactor; f != 0 && !(f > 1 && f <= MaxLoadFactor) {
		fs.Add(at("consistent_hash.load_factor"), "%v is out of range; more than 1, at most %d (1.25 lets an instance have a quarter more than its share), or 0 to leave load out of account", f, MaxLoadFactor)
	}
	oneOf(&fs, at("missing_user"), a.MissingUser, MissingUserAuto, MissingUserReject, MissingUserSpread)
	positive(&fs, at("timeouts.connect"), a.Timeouts.Connect)
	positive(&fs, at("timeouts.read"), a.Timeouts.Read)
	positive(&fs, at("timeouts.send"), a.Timeouts.Send)
	between(&fs, at("retry.attempts"), a.Retry.Attempts, 0, 16)
	positive(&fs, at("retry.timeout"), a.Retry.Timeout)
	if a.MaxBody < 0 {
		fs.Add(at("max_body"), "%d is negative", a.MaxBody)
	}
	validateRate(&fs, at("rate_limit.per_app"), a.RateLimit.PerApp)
	validateRate(&fs, at("rate_limit.per_user"), a.RateLimit.PerUser)
	fs = append(fs, a.Check.Validate(at("health_check"))...)
	between(&fs, at("queue.size"), a.Queue.Size, 0, 1_000_000)
	positive(&fs, at("queue.timeout"), a.Queue.Timeout)
	if len(a.Instances) > MaxInstances {
		fs.Add(at("instances"), "%d instances; an application has at most %d", len(a.Instances), MaxInstances)
	}
	names := make(map[string]int)
	for i := range a.Instances {
		in := &a.Instances[i]
		p := fmt.Sprintf("%s[%d]", at("instances"), i)
		if first, twice := names[in.Name]; twice && in.Name != "" {
			fs.Add(p+".name", "%q is the name of instances[%d] already; a name is unique in its application", in.Name, first)
		} else {
			names[in.Name] = i
		}
		fs = append(fs, in.Validate(p)...)
	}
	return fs
}

// Validate returns the faults of the check.
func (c *HealthCheck) Validate(path string) Faults {
	var fs Faults
	at := func(key string) string { return JoinPath(path, key) }
	oneOf(&fs, at("type"), c.Type, CheckHTTP, CheckTCP, CheckNone)
	if !strings.HasPrefix(c.Path, "/") || !printable(c.Path) || strings.ContainsAny(c.Path, " #") {
		fs.Add(at("path"), "%q is not a path; it begins with / and holds neither spaces nor #", c.Path)
	}
	if c.Interval < 100*second/1000 || c.Interval > maxLongTime {
		fs.Add(at("interval"), "%s is out of range; 100ms to 24h", c.Interval)
	}
	if c.Timeout < 10*second/1000 || c.Timeout > 3600*second {
		fs.Add(at("timeout"), "%s is out of range; 10ms to 1h", c.Timeout)
	}
	between(&fs, at("healthy_threshold"), c.HealthyThreshold, 1, 1000)
	between(&fs, at("unhealthy_threshold"), c.UnhealthyThreshold, 1, 1000)
	if !validStatusRanges(c.ExpectStatus) {
		fs.Add(at("expect_status"), "%q is not a list of statuses such as \"200-299\" or \"200,204,301-302\"", c.ExpectStatus)
	}
	return fs
}

func validStatusRanges(s string) bool {
	for _, part := range strings.Split(s, ",") {
		lo, hi, isRange := strings.Cut(strings.TrimSpace(part), "-")
		a, err := strconv.Atoi(lo)
		b := a
		if isRange && err == nil {
			b, err = strconv.Atoi(hi)
		}
		if err != nil || a < 100 || b > 599 || a > b {
			return false
		}
	}
	return true
}

// Validate returns the faults of one instance, with paths below path.
func (in *Instance) Validate(path string) Faults {
	var fs Faults
	at := func(key string) string { return JoinPath(path, key) }
	if in.Name == "" {
		fs.Add(at("name"), "is missing; every instance has a name")
	} else if !instanceName.MatchString(in.Name) {
		fs.Add(at("name"), "%q is not a name for an instance: 1 to 63 letters, digits, '_', '.', '-', beginning with a letter or digit", in.Name)
	}
	in.validateAddress(&fs, at)
	if in.Token == "" {
		fs.Add(at("token"), "is missing; it is the token that the instance itself expects (app-…)")
	} else if err := CheckToken(in.Token); err != nil {
		fs.Add(at("token"), "%s", err)
	}
	between(&fs, at("weight"), in.Weight, 0, MaxWeight)
	between(&fs, at("max_fails"), in.MaxFails, 0, 1_000_000)
	positive(&fs, at("fail_timeout"), in.FailTimeout)
	between(&fs, at("max_in_flight"), in.MaxInFlight, 0, 1_000_000)
	if in.Domain != "" && !instanceName.MatchString(in.Domain) {
		fs.Add(at("domain"), "%q is not a name of 1 to 63 letters, digits, '_', '.', '-'", in.Domain)
	}
	oneOf(&fs, at("state"), in.State, Active, Draining, Disabled)
	if in.TLS != nil {
		in.TLS.validate(&fs, at("tls"), in.BaseURL().Scheme != "http")
	}
	return fs
}

func (in *Instance) validateAddress(fs *Faults, at func(string) string) {
	switch {
	case in.URL != "" && in.Host != "":
		fs.Add(at("url"), "stands beside host %q; give one of the two", in.Host)
	case in.URL != "" && in.Port != 0:
		fs.Add(at("port"), "%d stands beside url %q; write the port into the url", in.Port, in.URL)
	case in.URL != "":
		validateURL(fs, at("url"), in.URL)
	case in.Host == "":
		fs.Add(at("host"), "is missing; give host (and port) or url")
	default:
		validateHost(fs, at("host"), in.Host)
		between(fs, at("port"), in.Port, 1, 65535)
	}
}

func validateURL(fs *Faults, path, raw string) {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Hostname() == "" || !printable(raw):
		fs.Add(path, "%q is not a URL such as https://api.dify.ai or http://10.0.0.7:5001", raw)
	case u.Scheme != "http" && u.Scheme != "https":
		fs.Add(path, "%q has the scheme %q; it must be http or https", raw, u.Scheme)
	case u.User != nil:
		fs.Add(path, "holds a user name or password; a Dify instance takes its token, see the field token")
	case (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		fs.Add(path, "%q has a path or query; leave it away, requests bring their own (/v1/…)", raw)
	default:
		if p := u.Port(); p != "" {
			n, err := strconv.Atoi(p)
			if err != nil || n < 1 || n > 65535 {
				fs.Add(path, "%q has the port %s; it must be 1 to 65535", raw, p)
			}
		}
		validateHost(fs, path, u.Hostname())
	}
}

// validateHost refuses, beside what is no host, the addresses that a balancer
// must never be talked into visiting: link-local ones, where cloud metadata
// lives, unspecified and multicast ones.
func validateHost(fs *Faults, path, host string) {
	if ip, err := netip.ParseAddr(host); err == nil {
		if why := ForbiddenAddress(ip); why != "" {
			fs.Add(path, "%q is %s, which no instance can have", host, why)
		}
		return
	}
	if len(host) > 253 || !hostName.MatchString(host) || numericHost.MatchString(host) {
		fs.Add(path, "%q is not a host name or IP address", host)
	}
}

// ForbiddenAddress says why an address must not be an instance's, or returns
// "". It is asked about declared addresses and again about those that a name
// resolved to.
func ForbiddenAddress(ip netip.Addr) string {
	ip = ip.Unmap()
	switch {
	case ip.IsUnspecified():
		return "the unspecified address"
	case ip.IsMulticast():
		return "a multicast address"
	case ip.IsLinkLocalUnicast():
		return "a link-local address"
	case ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "the broadcast address"
	}
	return ""
}

// CheckDialAddress is ForbiddenAddress for the ip:port that a name resolved to:
// what a dialer's control hook is given just before it connects.
func CheckDialAddress(address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if why := ForbiddenAddress(ap.Addr().WithZone("")); why != "" {
		return fmt.Errorf("%s is %s", ap.Addr(), why)
	}
	return nil
}

// CheckToken reports what keeps a token from being sent as a Bearer token
// (RFC 6750 section 2.1, somewhat wider: visible ASCII). The error never
// holds the token.
func CheckToken(t Secret) error {
	s := t.Reveal()
	if s == "" {
		return fmt.Errorf("is empty")
	}
	if len(s) > MaxTokenBytes {
		return fmt.Errorf("has %d bytes; at most %d", len(s), MaxTokenBytes)
	}
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return fmt.Errorf("holds a space, a control character or one outside ASCII at byte %d", i)
		}
	}
	return nil
}

func validateRate(fs *Faults, path string, r *Rate) {
	if r == nil {
		return
	}
	if !(r.PerSecond > 0) || r.PerSecond > 1e9 {
		fs.Add(JoinPath(path, "rate"), "%v is out of range; more than 0 requests per second, at most 1e9 (for no limit leave the block away)", r.PerSecond)
	}
	between(fs, JoinPath(path, "burst"), r.Burst, 1, 1_000_000_000)
}

func between(fs *Faults, path string, v, lo, hi int) {
	if v < lo || v > hi {
		fs.Add(path, "%d is out of range; %d to %d", v, lo, hi)
	}
}

func positive(fs *Faults, path string, d Duration) {
	if d <= 0 || d > maxLongTime {
		fs.Add(path, "%s is out of range; more than 0, at most 24h", d)
	}
}

func oneOf[T ~string](fs *Faults, path string, v T, allowed ...T) {
	names := make([]string, len(allowed))
	for i, a := range allowed {
		if v == a {
			return
		}
		names[i] = string(a)
	}
	fs.Add(path, "%q is not one of %s%s", string(v), strings.Join(names, ", "), DidYouMean(string(v), names))
}

// printable reports whether s holds visible ASCII and spaces only.
func printable(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// DidYouMean returns "; did you mean X?" for the nearest of the candidates,
// or "" when none is near.
func DidYouMean(word string, candidates []string) string {
	best, bestDist := "", 3
	if len(word) <= 4 {
		bestDist = 2
	}
	for _, c := range candidates {
		if d := editDistance(strings.ToLower(word), strings.ToLower(c)); d < bestDist || (d == bestDist && best == "" && d < len(c)/2) {
			best, bestDist = c, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// editDistance is Damerau's optimal string alignment: insertions, deletions,
// substitutions and swaps of neighbours cost one each.
func editDistance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}

// Resolve fills in what a declaration may leave to what is stored already
// (nil when nothing is): lists that it does not speak of (nil; an empty list
// empties), the token of an instance that keeps its name, and user tokens
// named by id. It normalizes addresses. Faults: references to tokens that are
// not stored.
func (a *Application) Resolve(stored *Application, path string) Faults {
	var fs Faults
	if stored != nil && a.UserTokens == nil {
		a.UserTokens = stored.UserTokens
	}
	if stored != nil && a.Instances == nil {
		a.Instances = stored.Instances
	}
	// Never nil from here on, and never shared with what is stored.
	a.UserTokens = append([]UserToken{}, a.UserTokens...)
	a.Instances = append([]Instance{}, a.Instances...)
	for i := range a.Instances {
		in := &a.Instances[i]
		in.Normalize()
		if in.Token == "" && stored != nil {
			if old, _ := stored.Instance(in.Name); old != nil {
				in.Token = old.Token
			}
		}
	}
	for i := range a.UserTokens {
		t := &a.UserTokens[i]
		var old *UserToken
		if stored != nil {
			old = stored.Token(t.ID())
		}
		switch {
		case t.Ref != "" && old == nil:
			fs.Add(fmt.Sprintf("%s.user_tokens[%d].id", path, i), "%q is not the id of a stored token of this application; give the token itself", t.Ref)
		case old != nil:
			t.Ref, t.SHA256, t.Created = "", old.SHA256, old.Created
			if t.Hint == "" {
				t.Hint = old.Hint
			}
		}
	}
	return fs
}
