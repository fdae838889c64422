// Package fault lets a whole cluster of real processes, under steady load, meet
// one fault after the other: processes die, hang and come back, wires go silent,
// break and trickle, the store fills up, forgets and lies. It counts what
// clients notice of it, and holds each case to what is promised; the figures
// of the last full run stand in docs/reliability.md. It knows no package of the
// balancer; the stand-in Dify is the only code it shares.
package fault

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"difylb/test/testbed"
)

var (
	long   = flag.Bool("long", false, "every case, streams of up to 30 s, longer faults")
	update = flag.Bool("update", false, "write the table into docs/reliability.md; with -long and all tests only, and nothing may be skipped")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if *update && !*long {
		fmt.Fprintln(os.Stderr, "-update writes the table of the long form: -long is missing")
		os.Exit(2)
	}
	if err := furnish(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := testbed.Main(m)
	if err := handOver(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if rows := results.rows(); len(rows) > 0 && (*long || testing.Verbose()) {
		fmt.Print("\n", table(rows), "\n")
		if *update && code == 0 {
			if err := updatePage(rows); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
		}
	}
	os.Exit(code)
}

// leaveOut skips a test that this machine can't run. With -update it fails:
// the table would lose a section.
func leaveOut(t *testing.T, format string, args ...any) {
	t.Helper()
	if *update {
		t.Fatalf("the table needs it, but "+format, args...)
	}
	t.Skipf(format, args...)
}

// either is a value for the short form and one for the long form.
func either[T any](short, full T) T {
	if *long {
		return full
	}
	return short
}
