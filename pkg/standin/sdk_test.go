package standin

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestSDK_OfNodeWorks runs the scenarios of test/sdk against the stand-in, so that what they show
// of a balancer is about the balancer.
func TestSDK_OfNodeWorks(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("node is not installed")
	}
	dir := filepath.Join("..", "..", "test", "sdk")
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "dify-client")); err != nil {
		t.Skip("the SDK is not installed; run npm ci in test/sdk")
	}
	o := allApps("sdk")
	o.FirstToken, o.TokenGap = 5*time.Millisecond, 5*time.Millisecond // at a pace that shows a buffer
	in := start(t, o)
	for _, tt := range []struct {
		group, key string
		scenarios  int
	}{{"chat", chatKey, 12}, {"chat", flowKey, 12}, {"completion", completionKey, 3}, {"workflow", workflowKey, 3}} {
		t.Run(tt.group+" with "+tt.key, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), node, "run.mjs")
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "BASE_URL=http://"+in.addr+"/v1", "TOKEN="+tt.key, "USER=bob", "SCENARIOS="+tt.group)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			done := 0
			for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); done++ {
				var line struct {
					OK bool `json:"ok"`
				}
				if err := json.Unmarshal(lines.Bytes(), &line); err != nil || !line.OK {
					t.Errorf("%s (%v)", lines.Bytes(), err)
				}
			}
			if done != tt.scenarios {
				t.Errorf("%d scenarios, want %d", done, tt.scenarios)
			}
		})
	}
	if c := in.Counts(); c.StreamsStarted == 0 || c.StreamsFinished != c.StreamsStarted {
		t.Errorf("%d streams, %d finished", c.StreamsStarted, c.StreamsFinished)
	}
}
