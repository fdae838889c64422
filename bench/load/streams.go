//go:build linux

package load

import (
	"context"
	"fmt"
	"time"

	"difylb/bench/instance"
)

// StreamOptions say what to stream.
type StreamOptions struct {
	// Streams are open at once, each on a connection of its own.
	Streams int
	// Interval is the time between two events of one stream, below 4 s.
	Interval time.Duration
	// Settle is waited after the first event of the last stream, before Measure.
	Settle, Measure time.Duration
}

// StreamResult is what was measured. Failures count from the first stream on,
// the rest within Measure.
type StreamResult struct {
	Open     int   // streams at the end
	Events   int64 // received
	Failures int64
	LastFail error // nil without failures
	Elapsed  time.Duration
	// Delay is the time from the instance's write of an event to its arrival here.
	Delay Histogram
}

// opening is how many streams may be without their first event at once.
const opening = 64

// Streams opens streams of many users, measures, and closes them. All are open
// before the measured time begins.
func Streams(ctx context.Context, target Target, o StreamOptions, w Window) (StreamResult, error) {
	inputs := fmt.Sprintf(`{"interval_ms":%d}`, o.Interval.Milliseconds())
	s := &streams{opts: o, texts: requestTexts(target, "/v1/completion-messages", inputs, "streaming")}
	err := run(target, func(cl *client) error {
		s.client, cl.script = cl, s
		return s.run(ctx, w)
	})
	if s.client != nil {
		s.result.Failures, s.result.LastFail = s.failures, s.last
	}
	return s.result, err
}

type streams struct {
	*client
	opts     StreamOptions
	texts    [][]byte
	result   StreamResult
	counting bool
	asked    int
	opened   int // with a first event
	lostAny  int
}

func (s *streams) run(ctx context.Context, w Window) error {
	for s.opened+s.lostAny < s.opts.Streams {
		for s.asked < s.opts.Streams && s.asked < s.opened+s.lostAny+opening {
			c, err := s.connect(s.asked)
			if err != nil {
				return err
			}
			s.asked++
			if err := s.ask(c, s.texts[c.number%userCount]); err != nil {
				return err
			}
		}
		if err := s.poll(ctx, time.Second); err != nil {
			return err
		}
	}
	if err := s.pollFor(ctx, s.opts.Settle); err != nil {
		return err
	}
	w.begin()
	s.counting = true
	start := time.Now()
	if err := s.pollFor(ctx, s.opts.Measure); err != nil {
		return err
	}
	w.end()
	s.result.Elapsed = time.Since(start)
	s.result.Open = s.opened
	return nil
}

func (s *streams) pollFor(ctx context.Context, d time.Duration) error {
	for end := time.Now().Add(d); ; {
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		if err := s.poll(ctx, left); err != nil {
			return err
		}
	}
}

// body cuts the stream into events, wherever the proxy has cut it.
func (s *streams) body(c *conn, part []byte) error {
	for len(part) > 0 {
		event := part
		if len(c.event) > 0 || len(part) < instance.EventSize {
			n := min(len(part), instance.EventSize-len(c.event))
			c.event = append(c.event, part[:n]...)
			part = part[n:]
			if event = c.event; len(event) < instance.EventSize {
				return nil
			}
			c.event = c.event[:0]
		} else {
			event, part = part[:instance.EventSize], part[instance.EventSize:]
		}
		sent, err := instance.EventTime(event)
		if err != nil {
			return err
		}
		if !c.opened {
			c.opened = true
			s.opened++
		}
		if s.counting {
			s.result.Events++
			s.result.Delay.Record(time.Since(sent))
		}
	}
	return nil
}

func (s *streams) broke(c *conn) error {
	if s.lostAny++; c.opened {
		s.opened--
	}
	return nil
}

// answered counts a stream that ended, which none should: the connection is
// given up in ready.
func (s *streams) answered(*conn, bool) {}

func (s *streams) ready(c *conn) error {
	c.busy = true
	return s.lost(c, fmt.Errorf("the stream ended"))
}

func (s *streams) refill(*conn) {}
