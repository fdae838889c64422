package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"difylb/pkg/h1"
	"difylb/pkg/lb"
)

// CanaryQuery is the query parameter by which whoever has a user token asks the
// proxy itself for an event stream of a known rhythm: lb_canary=10x100ms is ten
// events with 100 ms between them. It may stand behind any path below /v1/, and
// no instance sees the request. Each event says when it was sent, so that who
// reads the stream behind other proxies knows what they held back. Its head is
// that of Dify's own streams: what a hop does to one it does to the other.
const CanaryQuery = "lb_canary"

// wantsCanary is asked for every request.
func wantsCanary(query string) bool {
	const first, other = CanaryQuery + "=", "&" + CanaryQuery + "="
	return query != "" && (strings.HasPrefix(query, first) || strings.Contains(query, other))
}

// The bounds of a canary stream.
const (
	maxCanaryEvents = 100
	maxCanaryGap    = 10 * time.Second
	maxCanaryTime   = time.Minute
	maxCanaries     = 16 // at once
)

// canaries counts the streams that are under way in this process.
var canaries atomic.Int32

// serveCanary sends the stream that the query asks for.
func (x *exchange) serveCanary() *refusal {
	if x.method == http.MethodHead {
		return refuse(lb.ReasonBadRequest, CanaryQuery+" goes with GET or POST")
	}
	n, gap, err := canaryOf(x.query)
	if err != nil {
		return refuse(lb.ReasonBadRequest, err.Error())
	}
	if canaries.Add(1) > maxCanaries {
		canaries.Add(-1)
		ref := refuse(lb.ReasonRateLimited, "too many canaries at once")
		ref.retryAfter = time.Second
		return ref
	}
	defer canaries.Add(-1)
	h := x.down.begin(http.StatusOK)
	h.Field("Content-Type", "text/event-stream; charset=utf-8")
	h.Field("Date", x.s.date())
	h.Field("X-Request-ID", x.id)
	x.status, x.reason, x.begun = http.StatusOK, lb.ReasonOK, true
	ctx, release := x.line.context()
	defer release()
	if err := x.sendCanary(ctx, n, gap); err != nil {
		if x.reason = lb.ReasonClientGone; x.line.over() {
			x.reason = x.line.reason()
		}
		x.down.abort()
	}
	return nil
}

func (x *exchange) sendCanary(ctx context.Context, n int, gap time.Duration) error {
	if err := x.down.endHead(h1.BodyChunked, -1); err != nil {
		return err
	}
	tick := time.NewTicker(gap)
	defer tick.Stop()
	for i := range n {
		if i > 0 {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		event := fmt.Appendf(nil, "event: lb_canary\ndata: {\"n\":%d,\"of\":%d,\"sent_us\":%d,\"node\":%q}\n\n", i+1, n, time.Since(x.start).Microseconds(), x.p.opts.NodeID)
		if err := x.down.write(event, false); err != nil {
			return err
		}
		if i == 0 {
			x.firstByte = time.Since(x.start)
		}
		x.bytesOut += int64(len(event))
		x.events++
	}
	x.tick()
	return x.down.endAnswer(nil, nil)
}

// canaryOf reads what is asked for.
func canaryOf(query string) (events int, gap time.Duration, err error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return 0, 0, errors.New("the query is malformed")
	}
	text := values.Get(CanaryQuery)
	number, duration, _ := strings.Cut(text, "x")
	events, err = strconv.Atoi(number)
	if err == nil {
		gap, err = time.ParseDuration(duration)
	}
	switch {
	case err != nil:
		return 0, 0, fmt.Errorf("%s: %q is no number of events and time between them, such as 10x100ms", CanaryQuery, text)
	case events < 1 || events > maxCanaryEvents:
		return 0, 0, fmt.Errorf("%s: %d events; 1 to %d", CanaryQuery, events, maxCanaryEvents)
	case gap < time.Millisecond || gap > maxCanaryGap:
		return 0, 0, fmt.Errorf("%s: %s between two events; 1ms to %s", CanaryQuery, gap, maxCanaryGap)
	case time.Duration(events)*gap > maxCanaryTime:
		return 0, 0, fmt.Errorf("%s: %s takes longer than %s", CanaryQuery, text, maxCanaryTime)
	}
	return events, gap, nil
}
