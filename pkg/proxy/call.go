package proxy

import (
	"net/netip"
	"strings"
	"time"

	"difylb/pkg/dify"
	"difylb/pkg/lb"
	"difylb/pkg/ring"
	"difylb/pkg/stats"
	"difylb/pkg/userid"
)

// call is one request on its way: what was decided about it, and what will be
// accounted. It decides and does no I/O, so that every engine which reads and
// writes sockets can drive it. Owned by the request's goroutine.
type call struct {
	p     *Proxy
	v     *view
	shard uint32 // of the counters
	start time.Time
	now   time.Time // the clock as it was read last: it costs more than most of what is done between two looks

	id     string // X-Request-ID
	method string
	path   string // as sent, without the query
	query  string // raw
	client netip.Addr
	proto  string // "http" or "https", as the client spoke
	kind   dify.Call

	app    *appView
	token  *lb.UserToken
	label  *stats.Label // nil for tokens without one
	user   string
	source userid.Source
	point  ring.Point

	search   search
	tried    []int
	triedBuf [4]int
	attempts int
	firstTry time.Time // when the first attempt began
	begun    bool      // bytes of an answer have gone to the client

	// For the account.
	instance  string
	status    int
	reason    lb.Reason
	bytesIn   int64
	bytesOut  int64
	firstByte time.Duration // from start; 0 none
	events    uint64        // of a stream
	upgraded  bool
}

// tick looks at the clock.
func (c *call) tick() time.Time {
	c.now = time.Now()
	return c.now
}

// refusal is an answer that the proxy makes itself.
type refusal struct {
	reason     lb.Reason
	message    string
	retryAfter time.Duration // 0: no Retry-After
	close      bool          // the connection can't be used further
}

func refuse(reason lb.Reason, message string) *refusal {
	return &refusal{reason: reason, message: message}
}

// admitAddress asks the limit per client address.
func (c *call) admitAddress() *refusal {
	r := c.v.table.Settings.RateLimit.PerIP
	if r == nil || !c.client.IsValid() {
		return nil
	}
	// Every proxy sees its own part of an address's requests.
	key := c.client.As16()
	if c.client.Is6() && !c.client.Is4In6() {
		clear(key[8:]) // one subscriber has a whole /64
	}
	if ok, after := c.p.ips.AllowPart(string(key[:]), wholeRate(r), c.p.evenPart(), c.start); !ok {
		return limited(&c.p.counts.limitedPerIP, "too many requests from this address", after)
	}
	return nil
}

// authorize finds the application. All values of the Authorization header are given.
func (c *call) authorize(values []string) *refusal {
	const hint = "; send Authorization: Bearer <user token>"
	switch len(values) {
	case 0:
		return refuse(lb.ReasonUnauthorized, "the Authorization header is missing"+hint)
	case 1:
	default:
		return refuse(lb.ReasonUnauthorized, "the Authorization header is repeated"+hint)
	}
	token, ok := bearer(values[0])
	if !ok {
		return refuse(lb.ReasonUnauthorized, "the Authorization header is malformed"+hint)
	}
	app, userToken := c.v.table.ByToken(lb.Secret(token).Hash())
	if app == nil {
		return refuse(lb.ReasonUnauthorized, "the user token is not valid")
	}
	c.app, c.token = c.v.apps[app.Slot], userToken
	if c.label = c.app.labels[userToken.Label]; c.label != nil {
		c.label.Begin(c.shard)
	}
	c.app.state.stats.Begin(c.shard)
	return nil
}

// bearer takes the token out of "Bearer <token>" (RFC 9110 section 11.4: the
// scheme is case-insensitive, one or more spaces follow it).
func bearer(value string) (string, bool) {
	const scheme = "Bearer "
	if len(value) <= len(scheme) || value[:len(scheme)] != scheme && !strings.EqualFold(value[:len(scheme)], scheme) {
		return "", false
	}
	token := strings.Trim(value[len(scheme):], " ")
	if token == "" || len(token) > lb.MaxTokenBytes {
		return "", false
	}
	for i := range len(token) {
		if c := token[i]; c == ' ' || c == ',' || c == '\t' {
			return "", false
		}
	}
	return token, true
}

// maxBody returns the bound of this application's bodies.
func (c *call) maxBody() int64 {
	if n := c.app.app.Decl.MaxBody; n > 0 {
		return int64(n)
	}
	return int64(c.p.opts.MaxBody)
}

// setUser places the call by its user id, "" for none.
func (c *call) setUser(user string, source userid.Source) *refusal {
	if len(user) > userid.MaxLength {
		return refuse(lb.ReasonBadRequest, "the user id is too long")
	}
	c.user, c.source = user, source
	if user != "" {
		c.point = c.app.app.Point(user)
		return nil
	}
	switch missing := c.app.app.Decl.MissingUser; {
	case missing == lb.MissingUserSpread:
	case missing == lb.MissingUserAuto && c.kind.Known && !c.kind.NeedsUser:
	default:
		return refuse(lb.ReasonUserIDRequired, "a user id is required: header X-User-ID, query or cookie user_id, or the field user of the body")
	}
	c.point = c.app.app.RandomPoint()
	return nil
}

// admitUser asks the limits per user and per application, the narrow one
// first, so that what it refuses costs the others nothing.
func (c *call) admitUser() *refusal {
	st, limits, even := c.app.state, c.app.app.Decl.RateLimit, c.p.evenPart()
	if limits.PerUser != nil && c.user != "" {
		if ok, after := st.users.AllowPart(c.user, wholeRate(limits.PerUser), even, c.start); !ok {
			return limited(&c.p.counts.limitedPerUser, "too many requests of this user", after)
		}
	}
	if limits.PerApp != nil {
		ok, after := st.bucket.Allow(wholeRate(limits.PerApp).Part(st.lease.Part(even, c.start), even), c.start)
		st.asked.count(c.shard, ok)
		if !ok {
			return limited(&c.p.counts.limitedPerApp, "too many requests for this application", after)
		}
	}
	return nil
}

// note notes that an attempt on instance i begins.
func (c *call) note(i int) {
	if c.tried == nil {
		c.tried = c.triedBuf[:0]
	}
	c.tried = append(c.tried, i)
	if c.attempts++; c.attempts == 1 {
		c.firstTry = c.now
	}
	c.instance = c.app.app.Instances[i].Decl.Name
}

// mayRetry is the retry policy: whether another instance may be tried after an
// attempt that ended for that reason before a byte of its answer went to the
// client. Whether there is one, and whether the body can be sent again, is for
// others to say.
func (c *call) mayRetry(reason lb.Reason, status int, now time.Time) bool {
	r := &c.app.app.Decl.Retry
	if c.begun || c.attempts > r.Attempts || now.Sub(c.firstTry) >= r.Timeout.D() {
		return false
	}
	switch reason {
	case lb.ReasonConnectFailed, lb.ReasonBusy, lb.ReasonTokenRejected:
		return true // nothing was started
	case lb.ReasonUpstreamBroke, lb.ReasonUpstreamInvalid, lb.ReasonUpstreamTimeout:
		return r.NonIdempotent || idempotent(c.method)
	case lb.ReasonUpstreamError:
		return (r.NonIdempotent || idempotent(c.method)) && gatewayStatus(status)
	}
	return false
}

// idempotent reports the methods of RFC 9110 section 9.2.2.
func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE":
		return true
	}
	return false
}

// gatewayStatus reports statuses that say "not me, not now" rather than "your
// request broke me".
func gatewayStatus(status int) bool { return status >= 502 && status <= 504 }

// judge classifies an instance's answer by its head. Bodies may say more later.
func judge(status int) lb.Reason {
	switch {
	case status == 401:
		// The instance was sent its own token. A 403 may be about this request
		// alone (a file of another application); it is passed on.
		return lb.ReasonTokenRejected
	case status >= 500:
		return lb.ReasonUpstreamError
	}
	return lb.ReasonOK
}

// observe feeds passive health with the end of an attempt on instance i.
func (c *call) observe(i int, reason lb.Reason, status int, now time.Time) {
	in, decl := c.app.instances[i], c.app.app.Instances[i].Decl
	switch reason {
	case lb.ReasonConnectFailed, lb.ReasonUpstreamBroke, lb.ReasonUpstreamInvalid, lb.ReasonUpstreamTimeout, lb.ReasonTokenRejected:
	case lb.ReasonUpstreamError:
		if !gatewayStatus(status) {
			return // a 500 may be this request's own fault
		}
	case lb.ReasonOK:
		in.passive.Success(now)
		return
	default:
		return
	}
	if !in.passive.Fail(now, decl.MaxFails, decl.FailTimeout.D()) {
		return
	}
	c.p.counts.ejections.Add(1)
	c.p.log.Warn().Str("app", c.app.app.Decl.Name).Str("instance", decl.Name).Stringer("reason", reason).
		Dur("for", decl.FailTimeout.D()).Msg("instance ejected")
	if c.p.opts.OnEject != nil {
		c.p.opts.OnEject(c.app.app.Decl.Name, decl.Name, in.passive.EjectedUntil(now))
	}
}
