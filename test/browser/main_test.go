// Package browser looks at the dashboard as its readers do: a real Chromium,
// driven by the DevTools protocol, on a cluster of real processes with traffic.
// It knows no package of the balancer, and of the page only what can be seen:
// words, roles, names of fields and buttons.
package browser

import (
	"os"
	"testing"

	"difylb/test/testbed"
)

func TestMain(m *testing.M) { os.Exit(testbed.Main(m)) }
