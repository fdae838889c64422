package health

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// How an instance is asked.
const (
	CheckHTTP = "http" // GET, judged by status and body
	CheckTCP  = "tcp"  // a connection can be made
	CheckNone = "none" // not asked: Unknown for ever, and usable
)

// Check says how, how often and how strictly an instance is asked. Zero values mean the defaults in brackets; SendToken
// and ExpectBody have none.
type Check struct {
	Type               string        // [http]
	Path               string        // of an HTTP check, may hold a query [/v1/info]
	SendToken          bool          // send the instance's token as bearer token
	Interval           time.Duration // from the start of one probe to the start of the next [10s]
	Timeout            time.Duration // for the whole probe: resolve, connect, TLS, answer, body [3s]
	HealthyThreshold   int           // [2]
	UnhealthyThreshold int           // [3]
	ExpectStatus       string        // in the form of ParseStatusRanges [200-299]
	ExpectBody         string        // must occur in the first 64 KiB of the body; empty: any body
}

// Target is an instance to probe. Comparable: two equal Targets are probed alike.
type Target struct {
	App, Instance string
	URL           string // base URL, http or https; a path in it comes before that of the check
	Host          string // Host header; empty: that of the URL
	Token         Token
	TLS           TLS // of an https URL
	Check         Check
	// Revision is compared and not looked into. A change of it means what a change of the URL means: forget what
	// was counted and probe at once. Leave it empty if the fields above say all.
	Revision string
}

// TLS says whom an https instance must prove to be. Zero values mean what Options.TLS says, and the URL's host.
type TLS struct {
	CA         string // PEM with the authorities that are believed; empty: those of Options.TLS
	ServerName string // that the certificate must be for; empty: the URL's host
	SkipVerify bool   // believe any certificate
}

func (t Target) id() ID { return ID{t.App, t.Instance} }

// asksSame reports whether t and u ask the same question of the same place, so that answers to one count for the
// other. How often it is asked and how answers are counted may differ.
func (t Target) asksSame(u Target) bool {
	u.Check.Interval, u.Check.Timeout = t.Check.Interval, t.Check.Timeout
	u.Check.HealthyThreshold, u.Check.UnhealthyThreshold = t.Check.HealthyThreshold, t.Check.UnhealthyThreshold
	return t == u
}

const (
	defaultInterval     = 10 * time.Second
	defaultTimeout      = 3 * time.Second
	defaultRise         = 2
	defaultFall         = 3
	defaultPath         = "/v1/info"
	defaultExpectStatus = "200-299"

	// minInterval keeps a slip of the pen from turning the prober into a load generator.
	minInterval = 10 * time.Millisecond
)

// question is a Target made ready to be asked, with all defaults applied. Immutable.
type question struct {
	kind     string
	url      *url.URL
	address  string // host:port of a TCP check
	host     string
	token    Token // empty: send none
	timeout  time.Duration
	interval time.Duration
	rise     int
	fall     int
	status   StatusRanges
	body     string
	tls      TLS
	roots    *x509.CertPool // of tls.CA; nil without
	fault    error          // cannot be asked at all; every probe fails with it
}

func newQuestion(t Target) question {
	c := t.Check
	q := question{
		kind:     cmp.Or(c.Type, CheckHTTP),
		host:     t.Host,
		timeout:  positive(c.Timeout, defaultTimeout),
		interval: max(minInterval, positive(c.Interval, defaultInterval)),
		rise:     positive(c.HealthyThreshold, defaultRise),
		fall:     positive(c.UnhealthyThreshold, defaultFall),
		body:     c.ExpectBody,
		tls:      t.TLS,
	}
	if c.SendToken {
		q.token = t.Token
	}
	switch q.kind {
	case CheckNone:
	case CheckTCP:
		var u *url.URL
		if u, q.fault = parseBase(t.URL); q.fault == nil {
			q.address = address(u)
		}
	case CheckHTTP:
		if q.url, q.fault = probeURL(t.URL, cmp.Or(c.Path, defaultPath)); q.fault == nil {
			q.status, q.fault = ParseStatusRanges(cmp.Or(c.ExpectStatus, defaultExpectStatus))
		}
		if q.fault == nil && t.TLS.CA != "" {
			if q.roots = x509.NewCertPool(); !q.roots.AppendCertsFromPEM([]byte(t.TLS.CA)) {
				q.fault = fmt.Errorf("the authorities' text (tls.ca) holds no certificate")
			}
		}
		if q.fault == nil && !sendable(q.token.Reveal()) {
			q.fault = fmt.Errorf("the token cannot be sent in a header")
		}
	default:
		q.fault = fmt.Errorf("health check type %q is not known", q.kind)
	}
	return q
}

func positive[T time.Duration | int](v, otherwise T) T {
	if v > 0 {
		return v
	}
	return otherwise
}

func parseBase(base string) (*url.URL, error) {
	u, err := url.Parse(base)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the instance's URL is malformed") // err would quote it, with a password if it has one
	case u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "":
		return nil, fmt.Errorf("the instance's URL is not an http or https URL with a host")
	}
	return u, nil
}

func probeURL(base, path string) (*url.URL, error) {
	u, err := parseBase(base)
	if err != nil {
		return nil, err
	}
	p, err := url.Parse("/" + strings.TrimLeft(path, "/"))
	if err != nil {
		return nil, fmt.Errorf("health check path %q is malformed", path)
	}
	// Joined by hand, because URL.JoinPath would tidy up what the operator may mean, and drops the first slash.
	raw := strings.TrimRight(u.EscapedPath(), "/") + p.EscapedPath()
	out := &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimRight(u.Path, "/") + p.Path, RawPath: raw, RawQuery: p.RawQuery}
	return out, nil
}

func address(u *url.URL) string {
	port := "80"
	if u.Scheme == "https" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))
}

// sendable reports whether s can stand in a header field (RFC 9110 section 5.5).
func sendable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
}

// config returns how to speak TLS to the instance, on top of what base says for all; base if that is all there is.
func (q *question) config(base *tls.Config) *tls.Config {
	if q.tls == (TLS{}) {
		return base
	}
	c := base.Clone()
	if c == nil {
		c = new(tls.Config)
	}
	if q.roots != nil {
		c.RootCAs = q.roots
	}
	if q.tls.ServerName != "" {
		c.ServerName = q.tls.ServerName
	}
	c.InsecureSkipVerify = c.InsecureSkipVerify || q.tls.SkipVerify
	return c
}

func (q *question) request() *http.Request {
	r := &http.Request{
		Method:     http.MethodGet,
		URL:        q.url,
		Host:       q.host,
		Proto:      "HTTP/1.1",
		ProtoMajor: 1,
		ProtoMinor: 1,
		Close:      true,
		Header:     http.Header{"User-Agent": {"difylb-health"}, "Accept": {"*/*"}},
	}
	if q.token != "" {
		r.Header.Set("Authorization", "Bearer "+q.token.Reveal())
	}
	return r
}
