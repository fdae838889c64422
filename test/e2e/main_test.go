// Package e2e drives the whole cluster as real processes, from outside: what a
// user, an operator or a script can see and nothing else. It builds the three
// programs, starts them on loopback with directories of their own, ends every
// one of them, and looks through all that they wrote for secrets. It knows no
// package of the balancer; the stand-in Dify is the only code it shares.
package e2e

import (
	"os"
	"testing"

	"difylb/test/testbed"
)

func TestMain(m *testing.M) { os.Exit(testbed.Main(m)) }
