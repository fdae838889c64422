//go:build linux

package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

const (
	bodySize  = 250 // of a blocking call
	userCount = 1000
)

// RequestOptions say how to call: a POST of 250 bytes of JSON, answered with 600.
type RequestOptions struct {
	// Connections are kept alive, and opened again when the proxy closes them.
	Connections int
	// Rate is how many requests are sent in a second, at times that are random
	// but the same in every run. 0 sends the next request of a connection as
	// soon as the one before is answered.
	Rate float64
	// Warmup goes before Measure.
	Warmup, Measure time.Duration
}

// RequestResult is what was measured. Failures count from the first request on,
// the rest within Measure.
type RequestResult struct {
	Requests int64 // answered with 2xx
	Failures int64
	LastFail error // nil without failures
	Elapsed  time.Duration
	// Latency counts from when a request should have been sent to the end of
	// its answer, so that a proxy that keeps clients waiting can't hide it by
	// that (coordinated omission). Those that have no answer at the end count
	// with the time that they have waited until then.
	Latency Histogram
}

// Requests loads the target with blocking calls of many users.
func Requests(ctx context.Context, target Target, o RequestOptions, w Window) (RequestResult, error) {
	r := &requests{opts: o, window: w, texts: requestTexts(target, "/v1/chat-messages", `{}`, "blocking"), random: rand.New(rand.NewPCG(1, 2))}
	err := run(target, func(cl *client) error {
		r.client, cl.script = cl, r
		return r.run(ctx)
	})
	if r.client != nil {
		r.result.Failures, r.result.LastFail = r.failures, r.last
	}
	return r.result, err
}

// requestTexts returns one request for each user.
func requestTexts(t Target, path, inputs, mode string) [][]byte {
	texts := make([][]byte, userCount)
	for i := range texts {
		start := `{"inputs":` + inputs + `,"query":"`
		end := fmt.Sprintf(`","response_mode":"%s","conversation_id":"","user":"user-%04d"}`, mode, i)
		body := start + strings.Repeat("q", max(1, bodySize-len(start)-len(end))) + end
		texts[i] = []byte(head(t, path, "application/json", i, int64(len(body))) + body)
	}
	return texts
}

func head(t Target, path, contentType string, user int, length int64) string {
	name := "X-Load-ID"
	if t.UserHeader {
		name = "X-User-ID"
	}
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nUser-Agent: bench\r\nAccept: */*\r\nContent-Type: %s\r\n%s: user-%04d\r\nContent-Length: %d\r\n\r\n",
		path, t.Addr, t.Token, contentType, name, user, length)
}

type requests struct {
	*client
	opts   RequestOptions
	window Window
	texts  [][]byte
	random *rand.Rand
	result RequestResult

	start    time.Time
	counting bool
	from     time.Duration // when counting began, since the start
	next     time.Duration // when the next request is due, with a Rate
	sent     int
	idle     []*conn // with a Rate
}

func (r *requests) run(ctx context.Context) error {
	for i := range r.opts.Connections {
		c, err := r.connect(i)
		if err != nil {
			return err
		}
		r.idle = append(r.idle, c)
	}
	r.start = time.Now()
	if r.opts.Rate == 0 {
		for _, c := range r.idle {
			if err := r.ready(c); err != nil {
				return err
			}
		}
	}
	for {
		now := time.Since(r.start)
		until := r.opts.Warmup
		if r.counting {
			until = r.from + r.opts.Measure
		}
		if now >= until {
			if r.counting {
				r.finishAt(now)
				return nil
			}
			r.window.begin()
			r.counting, r.from = true, time.Since(r.start)
			continue
		}
		if r.opts.Rate > 0 {
			if err := r.sendDue(now); err != nil {
				return err
			}
			if len(r.idle) > 0 {
				until = min(until, r.next)
			}
		}
		if err := r.poll(ctx, until-time.Since(r.start)); err != nil {
			return err
		}
	}
}

// sendDue sends what is due on connections that are free. What finds none
// free goes out later, and its latency counts from now all the same.
func (r *requests) sendDue(now time.Duration) error {
	for r.next <= now && len(r.idle) > 0 {
		// First in, first out: every connection is used.
		c := r.idle[0]
		r.idle = r.idle[1:]
		c.due = r.next
		r.step()
		if err := r.send(c); err != nil {
			return err
		}
	}
	return nil
}

func (r *requests) step() {
	r.next += time.Duration(r.random.ExpFloat64() / r.opts.Rate * float64(time.Second))
}

func (r *requests) send(c *conn) error {
	r.sent++
	return r.ask(c, r.texts[r.sent*7%userCount])
}

func (r *requests) finishAt(now time.Duration) {
	r.window.end()
	r.result.Elapsed = now - r.from
	if r.opts.Rate == 0 {
		return
	}
	for _, c := range r.conns {
		if c != nil && c.busy && c.due >= r.from {
			r.result.Latency.Record(now - c.due)
		}
	}
	for ; r.next < now; r.step() {
		r.result.Latency.Record(now - r.next)
	}
}

func (r *requests) answered(c *conn, good bool) {
	if r.counting && good {
		r.result.Requests++
		if c.due >= r.from {
			r.result.Latency.Record(time.Since(r.start) - c.due)
		}
	}
}

func (r *requests) ready(c *conn) error {
	if r.opts.Rate > 0 {
		r.idle = append(r.idle, c)
		return nil
	}
	c.due = time.Since(r.start)
	return r.send(c)
}

func (r *requests) broke(old *conn) error {
	r.idle = remove(r.idle, old)
	c, err := r.connect(old.number)
	if err != nil {
		return err
	}
	return r.ready(c)
}

func (r *requests) refill(*conn)             {}
func (r *requests) body(*conn, []byte) error { return nil }

func remove(list []*conn, c *conn) []*conn {
	for i := range list {
		if list[i] == c {
			return append(list[:i:i], list[i+1:]...)
		}
	}
	return list
}
