//go:build !linux

package testbed

import (
	"syscall"
	"testing"
)

func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// ResidentBytes is known on Linux only.
func ResidentBytes(testing.TB, int) (now, peak int64) { return 0, 0 }

// OpenFiles is known on Linux only.
func OpenFiles(testing.TB, int) int { return 0 }
