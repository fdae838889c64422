package proxy

import (
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain checks that nothing which tests started is left: no goroutine, no
// descriptor.
func TestMain(m *testing.M) {
	before := openFiles()
	code := m.Run()
	http.DefaultClient.CloseIdleConnections()
	if code == 0 {
		if left := leftovers(before); left != "" {
			fmt.Fprintln(os.Stderr, left)
			code = 1
		}
	}
	os.Exit(code)
}

// leftovers waits for goroutines on their way out, and describes those that stay.
func leftovers(files int) string {
	var stacks []string
	for range 100 {
		stacks = nil
		buf := make([]byte, 4<<20)
		buf = buf[:runtime.Stack(buf, true)]
		for g := range strings.SplitSeq(string(buf), "\n\n") {
			if strings.Contains(g, "difylb/pkg/proxy.leftovers") || strings.Contains(g, "os/signal") ||
				!strings.Contains(g, "net/http") && !strings.Contains(g, "difylb/") {
				continue
			}
			stacks = append(stacks, g)
		}
		if len(stacks) == 0 && openFiles() <= files+2 { // the poller's own two
			return ""
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Sprintf("%d goroutines left, %d descriptors more than before\n%s", len(stacks), openFiles()-files, strings.Join(stacks, "\n\n"))
}

// openFiles counts this process's descriptors; 0 where that can't be asked.
func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}
