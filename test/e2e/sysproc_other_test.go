//go:build !linux

package e2e

import (
	"syscall"
	"testing"
)

func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// residentBytes is known on Linux only.
func residentBytes(testing.TB, int) (now, peak int64) { return 0, 0 }

// openFiles is known on Linux only.
func openFiles(testing.TB, int) int { return 0 }
