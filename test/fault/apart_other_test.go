//go:build !linux

package fault

import "testing"

func apart(t *testing.T) bool {
	t.Helper()
	leaveOut(t, "namespaces of its own for network and mounts are known on Linux only")
	return false
}

func furnish() error  { return nil }
func handOver() error { return nil }

func mountDisk(t testing.TB, dir string, _ int) {
	t.Helper()
	t.Fatalf("no disk can be mounted at %s here", dir)
}
