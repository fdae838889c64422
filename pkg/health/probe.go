package health

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode"
)

const (
	maxBodyBytes   = 64 << 10
	maxHeadBytes   = 64 << 10
	maxReasonBytes = 200
)

// answer is what one probe found.
type answer struct {
	outcome  Outcome
	timedOut bool   // the time given ran out before it was decided
	reason   string // for people; without secrets
	latency  time.Duration
}

// asker asks instances over the network. Safe for concurrent use.
type asker struct {
	dial      dialFunc
	transport *http.Transport
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

func newAsker(dial dialFunc, tlsConfig *tls.Config) *asker {
	if dial == nil {
		dial = (&net.Dialer{KeepAlive: -1}).DialContext
	}
	a := &asker{dial: dial}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	a.transport = &http.Transport{
		DialContext:            a.dial,
		TLSClientConfig:        tlsConfig.Clone(),
		Protocols:              protocols,
		DisableKeepAlives:      true, // an idle connection holds one of a Dify container's few slots
		DisableCompression:     true, // 64 KiB shall be 64 KiB, and the expected text findable
		MaxResponseHeaderBytes: maxHeadBytes,
	}
	return a
}

// transportFor returns the transport by which q is asked. One of its own keeps nothing, so it may be forgotten.
func (a *asker) transportFor(q *question) *http.Transport {
	if q.tls == (TLS{}) {
		return a.transport
	}
	t := a.transport.Clone()
	t.TLSClientConfig = q.config(a.transport.TLSClientConfig)
	return t
}

// ask asks q once. It blocks until there is an answer or ctx ends, which is its only limit of time.
func (a *asker) ask(ctx context.Context, q *question) answer {
	start := time.Now()
	var ans answer
	switch {
	case q.fault != nil:
		return answer{outcome: Failure, reason: q.fault.Error()}
	case q.kind == CheckTCP:
		ans = a.connect(ctx, q)
	default:
		ans = a.get(ctx, q)
	}
	ans.latency = time.Since(start)
	ans.reason = printable(ans.reason, q.token)
	return ans
}

func (a *asker) connect(ctx context.Context, q *question) answer {
	conn, err := a.dial(ctx, "tcp", q.address)
	if err != nil {
		return broken(ctx, q, "", err)
	}
	conn.Close()
	return answer{outcome: Success, reason: "connected"}
}

func (a *asker) get(ctx context.Context, q *question) answer {
	// RoundTrip and not Client.Do: it follows no redirect, so the token goes nowhere but to its instance.
	resp, err := a.transportFor(q).RoundTrip(q.request().WithContext(ctx))
	if err != nil {
		return broken(ctx, q, "", err)
	}
	defer resp.Body.Close()
	if !q.status.Contains(resp.StatusCode) {
		return unexpected(q, resp.StatusCode)
	}
	// The body is read also if nothing is expected in it: an instance that breaks off or hangs in the middle of
	// its answer is not well.
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBodyBytes))
	if q.body != "" && bytes.Contains(body, []byte(q.body)) {
		return answer{outcome: Success, reason: fmt.Sprintf("status %d with the expected text", resp.StatusCode)}
	}
	if err != nil {
		return broken(ctx, q, fmt.Sprintf("status %d, then in the body: ", resp.StatusCode), err)
	}
	if q.body != "" {
		return answer{outcome: Failure, reason: fmt.Sprintf("status %d without the expected text", resp.StatusCode)}
	}
	return answer{outcome: Success, reason: fmt.Sprintf("status %d", resp.StatusCode)}
}

// unexpected judges a status that is not expected. 401 and 403 are about the token only if one was sent.
func unexpected(q *question, status int) answer {
	if q.token != "" && (status == http.StatusUnauthorized || status == http.StatusForbidden) {
		return answer{outcome: Rejection, reason: fmt.Sprintf("status %d: the instance does not accept its token", status)}
	}
	return answer{outcome: Failure, reason: fmt.Sprintf("status %d, expected %s", status, q.status)}
}

// broken judges a probe that got no whole answer.
func broken(ctx context.Context, q *question, where string, err error) answer {
	if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return answer{outcome: Failure, timedOut: true, reason: fmt.Sprintf("%sno answer within %v", where, q.timeout)}
	}
	return answer{outcome: Failure, reason: where + err.Error()}
}

// printable makes a reason fit for logs and tables: an error may quote bytes of the instance, which may hold
// anything, the token included.
func printable(s string, token Token) string {
	if token != "" {
		s = strings.ReplaceAll(s, token.Reveal(), redacted)
	}
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if len(s) > maxReasonBytes {
		s = strings.ToValidUTF8(s[:maxReasonBytes], "") + "…"
	}
	return s
}
