package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Every event is passed on as it arrives: a proxy that buffered would hold back
// all of them to the end, one that waits for more bytes some of them for one gap.
func TestStream_EventsArriveAsTheyAreSent(t *testing.T) {
	const rounds, events, gap = 4, 15, 30 * time.Millisecond
	var rec *recorder
	var app application
	c := newPair(t, func(c *cluster) []application {
		var recorders []*recorder
		app, recorders = c.recordedApplication("streaming", 1, unprobed())
		rec = recorders[0]
		return []application{app}
	})
	// A busy machine can only make it later, so the best of a few rounds counts.
	for round := range rounds {
		var delays []time.Duration
		for _, p := range c.proxies {
			got := arrivalsOf(t, p.url, question{token: app.token, user: "listener", stream: true, tokens: events, gap: gap})
			if len(got) != events {
				t.Fatalf("%d events arrived, want %d", len(got), events)
			}
			for number, at := range got {
				sent := rec.sentAt(number)
				if sent.IsZero() {
					t.Fatalf("event %d was never sent", number)
				}
				delays = append(delays, at.Sub(sent))
			}
		}
		s := spreadOf(delays)
		t.Logf("%d events from the instance to the client: %s", len(delays), s)
		if s.p90 < 20*time.Millisecond {
			return
		}
		if round == rounds-1 {
			t.Errorf("p90 is %s, want below 20 ms", s.p90)
		}
	}
}

// arrivalsOf returns when each numbered event of a stream arrived.
func arrivalsOf(t testing.TB, proxy string, q question) map[int]time.Time {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, proxy+"/v1/chat-messages", bytes.NewReader(q.body()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+q.token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := clients.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got := make(map[int]time.Time)
	in := bufio.NewScanner(resp.Body)
	for in.Scan() {
		at := time.Now()
		var e struct {
			Event  string
			Number int
		}
		if data, ok := strings.CutPrefix(in.Text(), "data: "); ok {
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				t.Fatal(err)
			}
			if e.Event == "message" {
				got[e.Number] = at
			}
		}
	}
	if err := in.Err(); err != nil {
		t.Fatal(err)
	}
	return got
}
