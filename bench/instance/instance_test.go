//go:build linux

package instance

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// start runs instances until the test ends and returns the URL of each.
func start(t *testing.T) []string {
	t.Helper()
	s, err := New(2)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	var urls []string
	for _, addr := range s.Addrs() {
		urls = append(urls, "http://"+addr.String())
	}
	return urls
}

func post(t *testing.T, url string, body io.Reader) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestServer_AnswersAtEveryPort(t *testing.T) {
	tasks := make(map[string]bool)
	for _, url := range start(t) {
		for range 2 {
			resp := post(t, url+"/v1/chat-messages", strings.NewReader(`{"query":"hello"}`))
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != 200 || len(body) != AnswerSize {
				t.Errorf("%s: %s, %d bytes, %v", url, resp.Status, len(body), err)
			}
			tasks[string(body[:taskAt+taskDigits])] = true
		}
	}
	if len(tasks) != 4 {
		t.Errorf("%d tasks in 4 answers", len(tasks))
	}
}

func TestServer_StreamsAtThePaceAskedFor(t *testing.T) {
	before := time.Now()
	resp := post(t, start(t)[0]+"/v1/completion-messages", strings.NewReader(`{"inputs":{"interval_ms":20},"response_mode":"streaming"}`))
	var last time.Time
	for n := range 5 {
		event := make([]byte, EventSize)
		if _, err := io.ReadFull(resp.Body, event); err != nil {
			t.Fatal(err)
		}
		at, err := EventTime(event)
		if err != nil {
			t.Fatal(err)
		}
		if at.Before(before) || at.After(time.Now()) {
			t.Errorf("event %d is of %v", n, at)
		}
		// The second comes at any time, the others in turn; how late depends
		// on the machine, and a late one shortens the next wait.
		if n > 1 && at.Sub(before) < time.Duration(n-2)*20*time.Millisecond {
			t.Errorf("event %d came after %v", n, at.Sub(before))
		}
		if !at.After(last) {
			t.Errorf("event %d is not after the one before", n)
		}
		last = at
	}
}

func TestServer_SwallowsUploads(t *testing.T) {
	url := start(t)[1] + "/v1/files/upload"
	file := bytes.Repeat([]byte("x"), 10<<20)
	for name, body := range map[string]io.Reader{"known length": bytes.NewReader(file), "chunks": io.MultiReader(bytes.NewReader(file))} {
		resp := post(t, url, body)
		if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusCreated || len(text) != 45 {
			t.Errorf("%s: %s %q %v", name, resp.Status, text, err)
		}
	}
}

func TestServer_OutlivesNonsense(t *testing.T) {
	url := start(t)[0]
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X", strings.Repeat("x", 100<<10)) // more than a head may have
	if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
		resp.Body.Close()
		t.Error("answered", resp.Status)
	}
	if resp := post(t, url, strings.NewReader("{}")); resp.StatusCode != 200 {
		t.Errorf("afterwards: %s", resp.Status)
	}
}

func TestEventTime_RefusesOthers(t *testing.T) {
	event := []byte(eventTemplate)
	stampEvent(event, 1234567890123456789)
	if at, err := EventTime(event); err != nil || at.UnixNano() != 1234567890123456789 {
		t.Errorf("%v, %v", at, err)
	}
	for _, i := range []int{0, 20, len(eventStart) + 3, EventSize - 1} {
		bad := bytes.Clone(event)
		bad[i] = '!'
		if _, err := EventTime(bad); err == nil {
			t.Errorf("taken with byte %d changed", i)
		}
	}
	if _, err := EventTime(event[1:]); err == nil {
		t.Error("taken without its first byte")
	}
}
