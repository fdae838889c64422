package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"difylb/pkg/admin"
	"difylb/pkg/lb"
)

// canaryOptions say what is asked, and where.
type canaryOptions struct {
	url   string
	token lb.Secret
	user  string
	body  string

	target *url.URL // made by parse
}

// parse fills in what the flags leave out: the call, and the question.
func (o *canaryOptions) parse() error {
	u, err := url.Parse(o.url)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return usagef("--canary %q: it is a URL such as https://ai.example.com", o.url)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/chat-messages"
	}
	o.target = u
	if o.body == "" {
		body, err := json.Marshal(map[string]any{
			"inputs": map[string]any{}, "query": "Count slowly from 1 to 30, one number per line.", "response_mode": "streaming", "user": o.user,
		})
		if err != nil {
			return err
		}
		o.body = string(body)
	} else if !json.Valid([]byte(o.body)) {
		return usagef("--canary-body is not JSON")
	}
	return nil
}

// song is what a canary heard.
type song struct {
	events []time.Duration // when each arrived, from when it was asked
	end    time.Duration
	bytes  int64
}

const (
	// canaryEvents and canaryTime are the least of which anything can be said.
	canaryEvents = 4
	canaryTime   = 500 * time.Millisecond
	// canaryPatience bounds the whole answer, canaryBytes what is read of it.
	canaryPatience = 2 * time.Minute
	canaryBytes    = 16 << 20
	// together is how near events are that came in one heap.
	together = 5 * time.Millisecond
)

// verdict judges when the events arrived. A model writes word by word: most of
// the time of an answer lies between the first event and the last.
func (s *song) verdict() (level, found string) {
	if len(s.events) < canaryEvents {
		return levelWarn, fmt.Sprintf("%s in %s, too few to tell", plural(len(s.events), "event", "events"), roundTime(s.end))
	}
	first, last := s.events[0], s.events[len(s.events)-1]
	heaps, largest, size := 0, 0, 0
	for i, at := range s.events {
		if i == 0 || at-s.events[i-1] > together {
			heaps, size = heaps+1, 0
		}
		size++
		largest = max(largest, size)
	}
	shape := fmt.Sprintf("%d events, the first after %s, the last after %s", len(s.events), roundTime(first), roundTime(last))
	switch {
	case heaps*2 > len(s.events) && last-first > s.end/2:
		// However short it was.
	case s.end < canaryTime:
		return levelWarn, "too short to tell: " + shape
	case last-first < s.end/10:
		return levelFail, "all events came at once at the end: " + shape
	case heaps*4 <= len(s.events) && (last-first)/time.Duration(heaps) > 200*time.Millisecond:
		return levelFail, fmt.Sprintf("events came in %d heaps of up to %d: %s", heaps, largest, shape)
	}
	return levelOK, "events come as they are sent: " + shape
}

func roundTime(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// sing asks and notes when the events of the answer arrive.
func (c *cli) sing(ctx context.Context, client *http.Client, target *url.URL, o canaryOptions) (*song, error) {
	ctx, cancel := context.WithTimeout(ctx, canaryPatience)
	defer cancel()
	began := time.Now()
	resp, err := o.ask(ctx, client, target)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	s := &song{}
	r := bufio.NewReader(io.LimitReader(resp.Body, canaryBytes))
	fresh := false
	for {
		line, err := r.ReadSlice('\n')
		s.bytes += int64(len(line))
		switch {
		case bytes.HasPrefix(line, []byte("data:")):
			fresh = true
		case fresh && len(bytes.TrimSpace(line)) == 0 && err == nil:
			s.events, fresh = append(s.events, time.Since(began)), false
		}
		if err != nil && err != bufio.ErrBufferFull {
			s.end = time.Since(began)
			if err == io.EOF {
				return s, nil
			}
			return nil, fmt.Errorf("the stream broke off after %s: %w", plural(len(s.events), "event", "events"), err)
		}
	}
}

// canary listens to lb-proxy's own stream through the public address, which
// tells for certain whether something in front of lb-proxy buffers. Then it
// streams an answer of the application, whose rhythm is the model's own.
func (c *cli) canary(cmd *cobra.Command, d *diagnosis, o canaryOptions) error {
	s, err := c.resolve()
	if err != nil {
		return err
	}
	client, err := tlsClient(settings{ca: s.ca})
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	level, found, err := c.rhythm(cmd.Context(), client, o)
	switch {
	case errors.Is(err, errNoRhythm):
		d.warn("canary", "bring every lb-proxy up to this version", "%s is answered by an older lb-proxy, or by none: judging by an answer alone", o.target.Redacted())
		return c.answer(cmd, d, client, o, false)
	case err != nil:
		d.fail("canary", "see whether the address, the path and the user token are right; lbctl explain --user-token … says which application it opens", "%s: %s", o.target.Redacted(), err)
		return nil
	case level == levelFail:
		d.fail("canary", "what stands between here and lb-proxy buffers: set proxy_buffering off there (nginx), or switch off its response buffering", "%s", found)
		return nil // an answer could not come otherwise
	case level == levelWarn:
		d.warn("canary", "see what stands between here and lb-proxy", "%s", found)
	default:
		d.ok("canary", "%s", found)
	}
	return c.answer(cmd, d, client, o, level == levelOK)
}

// answer streams an answer of the application. sound: nothing in front of
// lb-proxy buffers, so what comes in heaps was sent so, or held behind it.
func (c *cli) answer(cmd *cobra.Command, d *diagnosis, client *http.Client, o canaryOptions, sound bool) error {
	const check = "canary answer"
	public, err := c.sing(cmd.Context(), client, o.target, o)
	if err != nil {
		d.fail(check, "ask the instance itself; lbctl explain says which one serves the user", "%s: %s", o.target.Redacted(), err)
		return nil
	}
	level, found := public.verdict()
	switch {
	case level == levelOK:
		d.ok(check, "%s", found)
	case level == levelWarn:
		d.warn(check, "ask for a longer answer with --canary-body", "%s", found)
	case sound:
		d.warn(check, "nothing in front of lb-proxy does it: either the application answers at once, or what stands between lb-proxy and Dify buffers, such as Dify's own nginx (proxy_buffering off)", "%s", found)
	default:
		advice := "some hop between here and the instance buffers: set proxy_buffering off (nginx), or let it heed X-Accel-Buffering: no; in Dify's own nginx, too"
		if direct := c.direct(cmd, client, o); direct != nil {
			switch l, f := direct.verdict(); l {
			case levelOK:
				advice = "straight from lb-proxy " + f + "; so what stands in front of lb-proxy buffers: set proxy_buffering off there (nginx), or switch off its response buffering"
			case levelFail:
				advice = "straight from lb-proxy it is the same; so what stands between lb-proxy and Dify buffers, such as Dify's own nginx (proxy_buffering off)"
			}
		}
		d.fail(check, advice, "%s", found)
	}
	return nil
}

// direct streams from a proxy's own address, nil where none can be reached from
// here or its port speaks TLS.
func (c *cli) direct(cmd *cobra.Command, client *http.Client, o canaryOptions) *song {
	var nodes []admin.Node
	err := c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) (err error) {
		nodes, err = cl.Nodes(ctx)
		return err
	})
	if err != nil {
		return nil
	}
	for _, n := range nodes {
		if n.Role != lb.RoleProxy || !n.Connected || n.Address == o.target.Host {
			continue
		}
		target := *o.target
		target.Scheme, target.Host = "http", n.Address
		if s, err := c.sing(cmd.Context(), client, &target, o); err == nil {
			return s
		}
	}
	return nil
}
