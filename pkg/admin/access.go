package admin

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"difylb/pkg/lb"
)

// rank orders the roles; an unknown one may do nothing.
func (r AccessRole) rank() int {
	switch r {
	case RoleViewer:
		return 1
	case RoleOperator:
		return 2
	case RoleAdmin:
		return 3
	}
	return 0
}

// caller is who asks.
type caller struct {
	name string
	role AccessRole
	from netip.Addr // the client, behind trusted proxies
	near bool       // loopback, private or a Unix socket, and not forwarded by someone we do not trust
	hash lb.TokenHash
}

type callerKey struct{}

func callerOf(r *http.Request) caller {
	c, _ := r.Context().Value(callerKey{}).(caller)
	return c
}

// audit says who does what, for the history.
func audit(r *http.Request, action, note string) lb.Audit {
	c := callerOf(r)
	return lb.Audit{Who: c.name, From: c.address(), Action: action, Note: note}
}

func (c caller) address() string {
	if !c.from.IsValid() {
		return "local"
	}
	return c.from.String()
}

// admit finds out who asks and whether he may. It runs before anything of the
// request is looked at.
func (s *Server) admit(e *endpoint, r *http.Request) (*http.Request, error) {
	c := s.locate(r)
	if e.role != "" && s.store.Current() == nil {
		return nil, lb.Errorf(lb.ErrUnavailable, "the configuration has not been read from etcd yet")
	}
	header := r.Header.Values("Authorization")
	switch open := e.role == "" || (e.near && c.near); {
	case open && len(header) == 0:
	case e.role == "":
		// A wrong token makes what is open to all no less open.
	default:
		if err := s.authenticate(header, &c); err != nil {
			return nil, err
		}
		if c.role.rank() < e.role.rank() {
			return nil, forbidden(c, e.role)
		}
	}
	return r.WithContext(context.WithValue(r.Context(), callerKey{}, c)), nil
}

func forbidden(c caller, need AccessRole) error {
	return fail(http.StatusForbidden, "forbidden", "this needs the role %s; token %q has the role %s", need, c.name, c.role)
}

func (s *Server) authenticate(header []string, c *caller) error {
	if len(header) == 0 {
		return unauthorized("this needs an access token (Authorization: Bearer …)")
	}
	token, ok := bearer(header)
	if ok {
		// Found by its SHA-256, so the time that takes says nothing of the token.
		c.hash = token.Hash()
		if t, known := s.store.Access(c.hash); known {
			c.name, c.role = t.Name, AccessRole(t.Role)
			s.used.note(c.hash, time.Now())
			return nil
		}
	}
	// A right token passes whatever others on its address did: tokens have 256
	// random bits, so the limit protects the log and the processor, not them.
	s.wrongTokens.Add(1)
	if wait := s.penalties.failed(c.from, time.Now()); wait > 0 {
		f := fail(http.StatusTooManyRequests, "rate-limited", "too many wrong access tokens from %s", c.address())
		f.after = wait
		return f
	}
	return unauthorized("the access token is not valid")
}

func unauthorized(detail string) error {
	f := fail(http.StatusUnauthorized, "unauthorized", "%s", detail)
	f.header = http.Header{"Www-Authenticate": {`Bearer realm="difylb"`}}
	return f
}

// bearer reads the one Authorization field (RFC 6750 section 2.1).
func bearer(header []string) (lb.Secret, bool) {
	if len(header) != 1 {
		return "", false
	}
	scheme, token, ok := strings.Cut(header[0], " ")
	token = strings.TrimSpace(token)
	if !ok || !strings.EqualFold(scheme, "Bearer") || lb.CheckToken(lb.Secret(token)) != nil {
		return "", false
	}
	return lb.Secret(token), true
}

// locate finds the client's address. The last address of X-Forwarded-For that
// is not a trusted proxy's is the client's; the field means nothing when the
// connection itself is not from one.
func (s *Server) locate(r *http.Request) caller {
	addr := remoteAddr(r.RemoteAddr)
	forwarded := r.Header.Values("X-Forwarded-For")
	hops := strings.Split(strings.Join(forwarded, ","), ",")
	trusted := true
	for i := len(hops) - 1; i >= 0 && len(forwarded) > 0; i-- {
		if trusted = s.trusts(addr); !trusted {
			break
		}
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			trusted = false
			break
		}
		addr = hop.Unmap()
	}
	// Forwarded by someone we do not trust: it may come from anywhere.
	local := !addr.IsValid() && (r.RemoteAddr == "" || r.RemoteAddr == "@") // a Unix socket
	near := trusted && (local || addr.IsLoopback() || addr.IsPrivate())
	return caller{name: "-", from: addr, near: near}
}

func (s *Server) trusts(addr netip.Addr) bool {
	for _, p := range s.trustedProxies {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

func remoteAddr(s string) netip.Addr {
	host, _, err := net.SplitHostPort(s)
	if err != nil {
		host = s
	}
	addr, _ := netip.ParseAddr(host)
	return addr.WithZone("").Unmap()
}

// penalties counts wrong tokens per client address. It holds two generations
// of at most maxPenalties addresses each: when the young one is full it becomes
// the old one, and the old one is forgotten, so that no number of addresses
// costs more than a lookup each.
type penalties struct {
	mu         sync.Mutex
	young, old map[netip.Prefix]*penalty // guarded by mu
}

type penalty struct {
	budget float64 // wrong tokens that are left before the next is slowed down
	last   time.Time
	blocks int // in a row; the wait doubles with each
	until  time.Time
}

const (
	maxPenalties   = 4096
	wrongPerMin    = 10
	firstPenalty   = time.Second
	longestPenalty = time.Minute
)

// failed notes a wrong token and returns how long the address should wait, 0
// while it is still within its budget.
func (p *penalties) failed(from netip.Addr, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entryLocked(from, now)
	e.budget = min(wrongPerMin, e.budget+now.Sub(e.last).Minutes()*wrongPerMin)
	e.last = now
	if now.Before(e.until) {
		return e.until.Sub(now)
	}
	if e.budget >= 1 {
		if e.budget == wrongPerMin {
			e.blocks = 0 // a minute of good behaviour
		}
		e.budget--
		return 0
	}
	wait := min(firstPenalty<<min(e.blocks, 10), longestPenalty)
	e.blocks++
	e.until = now.Add(wait)
	return wait
}

func (p *penalties) entryLocked(from netip.Addr, now time.Time) *penalty {
	bits := 32
	if from.Is6() {
		bits = 64 // what one customer commonly gets
	}
	key, _ := from.Prefix(bits) // of no address: one key for all of them
	if e := p.young[key]; e != nil {
		return e
	}
	e := p.old[key]
	if e == nil {
		e = &penalty{budget: wrongPerMin, last: now}
	}
	if p.young == nil || len(p.young) >= maxPenalties {
		p.young, p.old = make(map[netip.Prefix]*penalty), p.young
	}
	p.young[key] = e
	return e
}

// TokenFile is the name of the file in the data directory that holds the
// access token which the first start makes.
const TokenFile = "admin.token"

// EnsureAdminToken makes the first access token: where the store holds none, it
// writes a token of 256 random bits and the role admin to TokenFile in dataDir
// (mode 0600, in one step) and stores its hash. It logs the file's name, never
// the token; a file that an earlier life of the store left is replaced, with a
// warning. Where the store holds one already it does nothing. Of several
// lb-admins that start at once, each may make one; all of them are valid. It
// needs the store to run, and waits for its first snapshot.
func (s *Server) EnsureAdminToken(ctx context.Context, dataDir string) error {
	// Revision 0: until the store has been read at all.
	if err := s.store.WaitRevision(ctx, 0); err != nil {
		return fmt.Errorf("read access tokens: %w", err)
	}
	if len(s.store.AccessTokens()) > 0 {
		return nil
	}
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	token := lb.NewSecret(accessPrefix)
	file := filepath.Join(dataDir, TokenFile)
	_, err := os.Lstat(file)
	replaced := err == nil && !s.wroteToken.Load()
	// The file first: a token in the store that nobody knows would keep every
	// later start from making one.
	if err := writeSecretFile(file, token); err != nil {
		return fmt.Errorf("write admin token: %w", err)
	}
	s.wroteToken.Store(true)
	if replaced {
		s.log.Warn().Str("file", file).Msg("the store holds no access token, so it is new or was wiped; the token that this file held, and every other made before, is not valid any more, and a new one has taken its place")
	}
	name := "admin"
	if s.nodeID != "" {
		name = "admin@" + s.nodeID
	}
	if err := s.store.PutAccess(ctx, newAccess(name, RoleAdmin, token)); err != nil {
		return fmt.Errorf("store admin token: %w", err)
	}
	s.log.Info().Str("file", file).Msg("wrote the first admin token")
	return nil
}

// writeSecretFile writes the file whole or not at all, readable by its owner only.
func writeSecretFile(file string, secret lb.Secret) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*") // made with mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err = f.WriteString(secret.Reveal() + "\n"); err != nil {
		f.Close()
		return err
	}
	if err = f.Sync(); err != nil {
		f.Close()
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}
