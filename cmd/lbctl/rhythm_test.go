package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"difylb/pkg/cluster"
)

// balancer answers as an lb-proxy in front of an application does: by its own
// stream where that is asked for, else word by word, or all at once.
func balancer(t *testing.T, knowsCanary, atOnce bool) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer user-token-000001" || r.URL.Path != "/v1/chat-messages" || r.Header.Get("X-User-ID") != "lbctl-doctor" {
			http.Error(w, `{"code":"unauthorized"}`, http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		events, gap, form := 12, 60*time.Millisecond, "event: message\ndata: {\"answer\":\"%d\"}\n\n"
		if q := r.URL.Query().Get(canaryQuery); q != "" && knowsCanary {
			n, d, _ := strings.Cut(q, "x")
			events, _ = strconv.Atoi(n)
			gap, _ = time.ParseDuration(d)
			form = "event: lb_canary\ndata: {\"n\":1,\"sent_us\":%d}\n\n"
		} else if atOnce {
			time.Sleep(600 * time.Millisecond)
			gap = 0
		}
		began := time.Now()
		for i := range events {
			time.Sleep(time.Until(began.Add(time.Duration(i) * gap)))
			fmt.Fprintf(w, form, time.Since(began).Microseconds())
			_ = http.NewResponseController(w).Flush()
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// hop forwards to an origin, and hands its answer on as pass does.
func hop(t *testing.T, origin string, pass func(w io.Writer, flush func(), body io.Reader)) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out, _ := http.NewRequestWithContext(r.Context(), r.Method, origin+r.URL.RequestURI(), r.Body)
		out.Header = r.Header.Clone()
		resp, err := http.DefaultClient.Do(out)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
		w.WriteHeader(resp.StatusCode)
		pass(w, func() { _ = http.NewResponseController(w).Flush() }, resp.Body)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// flushed flushes behind every write.
type flushed struct {
	io.Writer
	flush func()
}

func (f flushed) Write(p []byte) (int, error) {
	defer f.flush()
	return f.Writer.Write(p)
}

func atOnce(w io.Writer, flush func(), body io.Reader) { _, _ = io.Copy(flushed{w, flush}, body) }

func wholly(w io.Writer, _ func(), body io.Reader) {
	all, _ := io.ReadAll(body)
	_, _ = w.Write(all)
}

// by4KiB hands on when 4 KiB are together, and the rest at the end.
func by4KiB(w io.Writer, flush func(), body io.Reader) {
	b := bufio.NewWriterSize(flushed{w, flush}, 4096)
	_, _ = io.Copy(struct{ io.Writer }{b}, body)
	_ = b.Flush()
}

// later hands everything on after a while, in the rhythm in which it came.
func later(by func() time.Duration) func(io.Writer, func(), io.Reader) {
	return func(w io.Writer, flush func(), body io.Reader) {
		type piece struct {
			due  time.Time
			data []byte
		}
		pieces := make(chan piece, 1000)
		go func() { // ends with body
			defer close(pieces)
			for {
				buf := make([]byte, 4096)
				n, err := body.Read(buf)
				if n > 0 {
					pieces <- piece{time.Now().Add(by()), buf[:n]}
				}
				if err != nil {
					return
				}
			}
		}()
		for p := range pieces {
			time.Sleep(time.Until(p.due))
			_, _ = w.Write(p.data)
			flush()
		}
	}
}

// every hands on what has come whenever the time is over.
func every(d time.Duration) func(io.Writer, func(), io.Reader) {
	return later(func() time.Duration { return d - time.Duration(time.Now().UnixNano())%d })
}

// sung runs the doctor and returns what it finds of the canary and of the answer.
func sung(t *testing.T, r *rig, url string, proxies ...cluster.NodeStatus) (canary, answer finding) {
	t.Helper()
	r.hub.set(0, proxies...)
	_, out, _ := r.run("doctor", "-o", "json", "--canary", url, "--canary-token", "user-token-000001")
	for _, f := range decodeInto[diagnosis](t, out).Findings {
		switch f.Check {
		case "canary":
			canary = f
		case "canary answer":
			answer = f
		}
	}
	if canary.Check == "" {
		t.Fatalf("no canary: %s", out)
	}
	return canary, answer
}

func shorterRounds(t *testing.T) {
	before := rounds
	rounds = []round{{6, 60 * time.Millisecond}, {6, 60 * time.Millisecond}, {4, 250 * time.Millisecond}, {3, 500 * time.Millisecond}}
	t.Cleanup(func() { rounds = before })
}

// TestCanary_TellsABufferFromAllElse goes through hops that buffer and hops that
// do not, however slow. A machine that is too busy may leave it open, but must
// take neither for the other.
func TestCanary_TellsABufferFromAllElse(t *testing.T) {
	shorterRounds(t)
	r := newRig(t)
	origin := balancer(t, true, false)
	for _, c := range []struct {
		name, level, never string
		url                string
	}{
		{"no hop", levelOK, levelFail, origin},
		{"a hop that passes on at once", levelOK, levelFail, hop(t, origin, atOnce)},
		{"a hop 200 ms away", levelOK, levelFail, hop(t, origin, later(func() time.Duration { return 200 * time.Millisecond }))},
		{"a hop that is now near and now far", "", levelFail, hop(t, origin, later(func() time.Duration { return rand.N(80 * time.Millisecond) }))},
		{"a hop that collects for 150 ms", "", levelFail, hop(t, origin, every(150*time.Millisecond))},
		{"a hop that buffers 4 KiB", levelFail, levelOK, hop(t, origin, by4KiB)},
		{"a hop that buffers all", levelFail, levelOK, hop(t, origin, wholly)},
		{"a buffer behind a hop that passes on", levelFail, levelOK, hop(t, hop(t, origin, by4KiB), atOnce)},
	} {
		canary, answer := sung(t, r, c.url)
		if canary.Level == c.never {
			t.Errorf("%s: %+v", c.name, canary)
		}
		if c.level != "" && canary.Level != c.level {
			if canary.Level != levelWarn {
				t.Errorf("%s: %+v, want %s", c.name, canary, c.level)
			} else {
				t.Logf("%s: this machine is too busy to tell: %+v", c.name, canary)
			}
		}
		if (answer.Check == "") != (canary.Level == levelFail) || answer.Level == levelFail && canary.Level == levelOK {
			t.Errorf("%s: the answer: %+v, the canary: %+v", c.name, answer, canary)
		}
		if canary.Level == levelFail && (!strings.Contains(canary.Found, "all events came at once at the end") || !strings.Contains(canary.Advice, "between here and lb-proxy buffers")) {
			t.Errorf("%s: %+v", c.name, canary)
		}
	}
}

// TestCanary_OfTheAnswerAlone: of what the application sends only the rhythm is
// known, so it is a suspicion where nothing in front of lb-proxy buffers; with an
// older lb-proxy it is all that there is.
func TestCanary_OfTheAnswerAlone(t *testing.T) {
	r := newRig(t)
	canary, answer := sung(t, r, balancer(t, true, true))
	if canary.Level != levelOK || answer.Level != levelWarn || !strings.Contains(answer.Found, "all events came at once at the end") || !strings.Contains(answer.Advice, "between lb-proxy and Dify") {
		t.Errorf("an application that answers at once: %+v, %+v", canary, answer)
	}
	older := balancer(t, false, false)
	if canary, answer = sung(t, r, older); canary.Level != levelWarn || !strings.Contains(canary.Found, "older lb-proxy") || answer.Level != levelOK || !strings.Contains(answer.Found, "12 events") {
		t.Errorf("an older lb-proxy: %+v, %+v", canary, answer)
	}
	buffered := hop(t, older, wholly)
	if canary, answer = sung(t, r, buffered); canary.Level != levelWarn || answer.Level != levelFail {
		t.Errorf("with a hop that buffers: %+v, %+v", canary, answer)
	}
	p := played("p1", 0)
	p.Address = strings.TrimPrefix(older, "http://")
	if _, answer = sung(t, r, buffered, p); answer.Level != levelFail || !strings.Contains(answer.Advice, "what stands in front of lb-proxy buffers") {
		t.Errorf("buffered in front: %+v", answer)
	}
	p.Address = strings.TrimPrefix(hop(t, older, wholly), "http://")
	if _, answer = sung(t, r, buffered, p); !strings.Contains(answer.Advice, "between lb-proxy and Dify") {
		t.Errorf("buffered behind: %+v", answer)
	}
	if canary, _ = sung(t, r, older+"/v1/other"); canary.Level != levelFail || !strings.Contains(canary.Found, "401") {
		t.Errorf("refused: %+v", canary)
	}
}

// TestRounds_ABufferNeverPasses: whatever else delays events, in no round does a
// buffer that holds two of them pass; and what holds none is never called one.
func TestRounds_ABufferNeverPasses(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 20_000 {
		h := heard{round: rounds[r.IntN(len(rounds))]}
		n, latency := h.events, time.Duration(r.IntN(1000))*time.Millisecond
		noise := []time.Duration{0, h.gap / 5, h.gap * 3}[r.IntN(3)]
		var sent []time.Duration
		at := time.Duration(0)
		for range n {
			sent = append(sent, at)
			at += h.gap + time.Duration(r.IntN(int(h.gap))) // a sender may be late
		}
		buffered := r.IntN(2) == 0
		heap := 2 + r.IntN(n)
		for i := range n {
			arrived := sent[i]
			if buffered {
				arrived = sent[min(i-i%heap+heap-1, n-1)]
			}
			h.beats = append(h.beats, beat{sent[i], arrived + latency})
		}
		// Noise delays what arrives at one time alike, and lets nothing overtake.
		late := time.Duration(0)
		for i := range h.beats {
			if i == 0 || h.beats[i].arrived > h.beats[i-1].arrived-late {
				late = 0
				if noise > 0 {
					late = time.Duration(r.Int64N(int64(noise)))
				}
			}
			h.beats[i].arrived += late
			if i > 0 {
				h.beats[i].arrived = max(h.beats[i].arrived, h.beats[i-1].arrived)
			}
		}
		switch {
		case buffered && h.passes():
			t.Fatalf("a buffer of %d events passes: %v", heap, h.beats)
		case !buffered && noise < h.gap/2 && !h.passes():
			t.Fatalf("nothing is buffered, noise %s, gap %s, and it does not pass: %v", noise, h.gap, h.beats)
		case !buffered && noise < h.gap/2 && h.buffered():
			t.Fatalf("nothing is buffered, and it is called so: %v", h.beats)
		case buffered && noise == 0 && heap > n && !h.buffered():
			t.Fatalf("all came at the end, and it is not called buffered: %v", h.beats)
		}
	}
}

func TestRounds_WhatTheyMean(t *testing.T) {
	steady := func(r round, held time.Duration, heap int, stalled time.Duration) heard {
		h := heard{round: r, stalled: stalled}
		for i := range r.events {
			arrived := time.Duration(i-i%heap+heap-1) * r.gap
			if i%2 == 1 {
				arrived += held
			}
			h.beats = append(h.beats, beat{time.Duration(i) * r.gap, arrived})
		}
		slices.SortFunc(h.beats, func(a, b beat) int { return int(a.sent - b.sent) })
		return h
	}
	pass := func(r round) heard { return steady(r, 0, 1, 0) }
	all := func(r round) heard { return steady(r, 0, r.events, 0) }
	a, b, c, d := rounds[0], rounds[1], rounds[2], rounds[3]
	late := steady(a, 80*time.Millisecond, 1, 0)
	for _, k := range []struct {
		name, level, words string
		rounds             []heard
	}{
		{"at once", levelOK, "as they are sent", []heard{pass(a)}},
		{"the second time", levelOK, "as they are sent", []heard{late, pass(b)}},
		{"only with longer gaps", levelWarn, "held for up to 80ms", []heard{late, late, pass(c)}},
		{"only with longer gaps, this machine stood still", levelOK, "as they are sent", []heard{steady(a, 80*time.Millisecond, 1, 90*time.Millisecond), late, pass(c)}},
		{"at the end", levelFail, "all events came at once at the end", []heard{all(a), all(b), all(c), all(d)}},
		{"in heaps", levelFail, "in heaps", []heard{all(a), all(b), all(c), steady(round{6, d.gap}, 0, 3, 0)}},
		{"late to the last, this machine stood still", levelWarn, "too busy", []heard{all(a), all(b), all(c), steady(d, 0, d.events, d.gap)}},
		{"late to the last", levelWarn, "too busy", []heard{late, late, late, steady(d, 3*d.gap/4, 1, 0)}},
	} {
		if level, found := judgeRounds(k.rounds); level != k.level || !strings.Contains(found, k.words) {
			t.Errorf("%s: %s, %s", k.name, level, found)
		}
	}
}

func TestBeats_ReadsNothingElse(t *testing.T) {
	for name, c := range map[string]struct{ body, want string }{
		"an answer":    {"event: message\ndata: {\"answer\":\"x\"}\n\n", "knows lb_canary"},
		"nothing":      {"", "knows lb_canary"},
		"text":         {"data: hello\n\n", "knows lb_canary"},
		"too few":      {"data: {\"sent_us\":0}\n\n", "1 event came, 2"},
		"two of a row": {"data: {\"sent_us\":0}\n\ndata: {\"sent_us\":1000}\n\n", ""},
	} {
		got, err := beats(strings.NewReader(c.body), 2)
		if c.want == "" && (err != nil || len(got) != 2 || got[1].sent != time.Millisecond) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}
