//go:build !linux

package testbed

import (
	"syscall"
	"testing"
	"time"
)

func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// ResidentBytes is known on Linux only.
func ResidentBytes(testing.TB, int) (now, peak int64) { return 0, 0 }

// OpenFiles is known on Linux only.
func OpenFiles(testing.TB, int) int { return 0 }

// CPUTime is known on Linux only.
func CPUTime(testing.TB, int) time.Duration { return 0 }

// LimitFiles is possible on Linux only.
func LimitFiles(t testing.TB, _ int, _ uint64) {
	t.Helper()
	t.Skip("the limits of a process that runs can't be set here")
}
