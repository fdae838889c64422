package health

import (
	"fmt"
	"io"
	"log"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

var quiet = log.New(io.Discard, "", 0)

// TestMain looks for goroutines of this package that outlived the tests which started them.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if left := leftovers(); left != "" {
			fmt.Fprintln(os.Stderr, "goroutines left over:\n"+left)
			code = 1
		}
	}
	os.Exit(code)
}

func leftovers() string {
	var left []string
	for range 100 { // goroutines of the standard library need a moment to see that their connection is closed
		buf := make([]byte, 1<<20)
		left = nil
		for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if !strings.Contains(g, "TestMain") && (strings.Contains(g, "difylb/pkg/health") || strings.Contains(g, "net/http")) {
				left = append(left, g)
			}
		}
		if len(left) == 0 {
			return ""
		}
		time.Sleep(10 * time.Millisecond)
	}
	return strings.Join(left, "\n\n")
}
