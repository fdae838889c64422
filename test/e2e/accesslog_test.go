package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"difylb/test/testbed"
)

// Rotation: the file is renamed, SIGHUP opens another, and between them they
// hold one valid line for each request.
func TestAccessLog_RotationLosesNoLine(t *testing.T) {
	t.Parallel()
	var app application
	c := newPair(t, func(c *cluster) []application {
		app, _ = c.recordedApplication("logged", 2, unprobed())
		return []application{app}
	})
	p := c.proxies[0]
	l := startLoad(t, traffic{token: app.token, users: []string{`quo"te`, "new\nline", "ünï", "plain"}, proxies: func() []string { return []string{p.url} }, rate: 200, streams: 5, tokens: 2, gap: time.Millisecond})
	const rotations = 5
	for i := range rotations {
		l.await(60)
		if err := os.Rename(p.accessLog, fmt.Sprintf("%s.%d", p.accessLog, i)); err != nil {
			t.Fatal(err)
		}
		p.Signal(syscall.SIGHUP)
		testbed.Within(t, 5*time.Second, "the log is opened anew", func() bool {
			_, err := os.Stat(p.accessLog)
			return err == nil
		})
	}
	l.await(60)
	replies := l.stop()
	noFailures(t, "while logs rotate", replies)
	p.Stop()

	files, err := filepath.Glob(p.accessLog + "*")
	if err != nil || len(files) != rotations+1 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	ids := make(map[string]bool)
	for _, file := range files {
		text := testbed.ReadFile(t, file)
		if text != "" && !strings.HasSuffix(text, "\n") {
			t.Errorf("%s ends in the middle of a line", file)
		}
		for line := range strings.Lines(text) {
			var m struct {
				RequestID string `json:"request_id"`
				Time      time.Time
				Method    string
				Path      string
				Status    int
				Reason    string
				App       string
				Instance  string
				DurMS     *float64 `json:"dur_ms"`
				BytesIn   int64    `json:"bytes_in"`
				BytesOut  int64    `json:"bytes_out"`
				UserHash  string   `json:"user_hash"`
			}
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				t.Fatalf("%s: %s: %q", filepath.Base(file), err, line)
			}
			if m.Path != "/v1/chat-messages" {
				continue
			}
			if m.RequestID == "" || ids[m.RequestID] {
				t.Errorf("request id %q is missing or there twice", m.RequestID)
			}
			ids[m.RequestID] = true
			if m.Time.IsZero() || m.Method != "POST" || m.Status != 200 || m.Reason == "" || m.App != app.name || m.Instance == "" || m.DurMS == nil || m.BytesIn == 0 || m.BytesOut == 0 || m.UserHash == "" {
				t.Errorf("a field is missing: %s", line)
			}
		}
	}
	if len(ids) != len(replies) {
		t.Errorf("%d lines for %d requests", len(ids), len(replies))
	}
	t.Logf("%d lines in %d files", len(ids), len(files))
}
