package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// A hop that buffers is found by a stream whose rhythm is known: lb-proxy sends
// it itself and writes into each event when it was sent. An event that arrives
// together with a later one was held for at least the time between the two, on
// however fast or slow a machine; so where every event arrived less than half a
// gap late nothing buffers. What is late may have other reasons, too: then the
// gaps are made longer, which a busy machine or network does not follow and a
// buffer does.

// canaryQuery is what asks an lb-proxy for the stream.
const canaryQuery = "lb_canary"

// rounds are tried until one passes.
var rounds = []round{{10, 100 * time.Millisecond}, {10, 100 * time.Millisecond}, {6, 500 * time.Millisecond}, {5, 2 * time.Second}}

type round struct {
	events int
	gap    time.Duration
}

// beat is one event: when it was sent, by the sender's clock, and when it
// arrived, by ours. What lies between them is known but for a constant.
type beat struct {
	sent, arrived time.Duration
}

// heard is what came of a round.
type heard struct {
	round
	beats   []beat
	stalled time.Duration // for how long this process itself stood still at most
}

// held returns for how long the event that was held longest was held longer
// than the one that was held shortest, and how many arrived with the next one.
func (h *heard) held() (longest time.Duration, together int) {
	if len(h.beats) == 0 {
		return 0, 0
	}
	late := func(b beat) time.Duration { return b.arrived - b.sent }
	first := slices.MinFunc(h.beats, func(a, b beat) int { return cmp.Compare(late(a), late(b)) })
	for i, b := range h.beats {
		longest = max(longest, late(b)-late(first))
		if i > 0 && b.arrived-h.beats[i-1].arrived < (b.sent-h.beats[i-1].sent)/4 {
			together++
		}
	}
	return longest, together
}

// passes: no event waited for the next one.
func (h *heard) passes() bool {
	longest, together := h.held()
	return len(h.beats) == h.events && together == 0 && longest < h.gap/2
}

// buffered: most events waited for a later one, and not for us.
func (h *heard) buffered() bool {
	_, together := h.held()
	return 2*together >= len(h.beats)-1 && h.stalled < h.gap/4
}

// judgeRounds says what the rounds mean, of which at most the last passed.
func judgeRounds(all []heard) (level, found string) {
	last := &all[len(all)-1]
	longest, together := last.held()
	busy := slices.ContainsFunc(all, func(h heard) bool { return h.stalled >= h.gap/4 })
	shape := fmt.Sprintf("%d events, one every %s", last.events, last.gap)
	switch {
	case last.passes() && (last.gap == all[0].gap || busy):
		return levelOK, fmt.Sprintf("events come as they are sent: %s, none held for more than %s", shape, longest.Truncate(time.Millisecond)+time.Millisecond)
	case last.passes():
		slow, _ := all[len(all)-2].held()
		return levelWarn, fmt.Sprintf("events come late, held for up to %s, but not until later ones come: %s arrived apart", slow.Round(time.Millisecond), shape)
	case last.buffered() && together == last.events-1:
		return levelFail, fmt.Sprintf("all events came at once at the end: %s", shape)
	case last.buffered():
		return levelFail, fmt.Sprintf("events came in heaps: %d of %s together with a later one", together, shape)
	}
	return levelWarn, fmt.Sprintf("events came up to %s late (%s), and this machine stood still for %s: too busy a machine or network to tell",
		longest.Round(time.Millisecond), shape, last.stalled.Round(time.Millisecond))
}

// errNoRhythm: what answered knows nothing of the parameter.
var errNoRhythm = errors.New("this is no stream of an lb-proxy that knows " + canaryQuery)

// listen asks for one round.
func (c *cli) listen(ctx context.Context, client *http.Client, o canaryOptions, r round) (heard, error) {
	ctx, cancel := context.WithTimeout(ctx, canaryPatience)
	defer cancel()
	target := *o.target
	q := url.Values{canaryQuery: {fmt.Sprintf("%dx%s", r.events, r.gap)}}.Encode()
	if target.RawQuery != "" {
		q = target.RawQuery + "&" + q
	}
	target.RawQuery = q
	resp, err := o.ask(ctx, client, &target)
	if err != nil {
		return heard{}, err
	}
	defer resp.Body.Close()
	h := heard{round: r}
	var watch sync.WaitGroup
	watching, stop := context.WithCancel(ctx)
	watch.Go(func() { h.stalled = standstill(watching) })
	h.beats, err = beats(resp.Body, r.events)
	stop()
	watch.Wait()
	return h, err
}

// standstill returns for how long a goroutine that wants to run every 10 ms
// could not, at most, until ctx ends.
func standstill(ctx context.Context) (longest time.Duration) {
	const every = 10 * time.Millisecond
	tick := time.NewTimer(every)
	defer tick.Stop()
	for {
		began := time.Now()
		select {
		case <-tick.C:
			longest = max(longest, time.Since(began)-every)
			tick.Reset(every)
		case <-ctx.Done():
			return max(longest, time.Since(began)-every)
		}
	}
}

// beats reads the stream. All that one read brings has arrived at one time.
func beats(body io.Reader, want int) ([]beat, error) {
	began := time.Now()
	stamped := &stampedReader{r: io.LimitReader(body, canaryBytes)}
	lines := bufio.NewReader(stamped)
	var out []beat
	for {
		line, err := lines.ReadBytes('\n')
		if data, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			var e struct {
				SentUS *int64 `json:"sent_us"`
			}
			if json.Unmarshal(data, &e) != nil || e.SentUS == nil {
				return nil, errNoRhythm
			}
			out = append(out, beat{time.Duration(*e.SentUS) * time.Microsecond, stamped.at.Sub(began)})
		}
		switch {
		case err == nil:
		case err != io.EOF:
			return nil, fmt.Errorf("the stream broke off after %s: %w", plural(len(out), "event", "events"), err)
		case len(out) == 0:
			return nil, errNoRhythm
		case len(out) != want:
			return nil, fmt.Errorf("%s came, %d were asked for", plural(len(out), "event", "events"), want)
		default:
			return out, nil
		}
	}
}

// stampedReader knows when the newest bytes arrived.
type stampedReader struct {
	r  io.Reader
	at time.Time
}

func (s *stampedReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.at = time.Now()
	return n, err
}

// rhythm listens until a round passes or all have been tried.
func (c *cli) rhythm(ctx context.Context, client *http.Client, o canaryOptions) (level, found string, err error) {
	var all []heard
	for _, r := range rounds {
		h, err := c.listen(ctx, client, o, r)
		if err != nil {
			return "", "", err
		}
		if all = append(all, h); h.passes() {
			break
		}
	}
	level, found = judgeRounds(all)
	return level, found, nil
}

// ask sends what the canary asks, and returns the answer if that is a stream.
func (o *canaryOptions) ask(ctx context.Context, client *http.Client, target *url.URL) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), strings.NewReader(o.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+o.token.Reveal())
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("X-User-ID", o.user)
	resp, err := client.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(text))
	}
	if kind := resp.Header.Get("Content-Type"); !strings.HasPrefix(kind, "text/event-stream") {
		resp.Body.Close()
		return nil, fmt.Errorf("the answer is %q and no event stream", kind)
	}
	return resp, nil
}
