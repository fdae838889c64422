// Package ops holds what is shipped for operators to its word: the compose
// file, the systemd units, Prometheus's configuration and alerts, and the
// Grafana dashboard. It starts the same processes with the same flags on
// loopback, since no container engine or service manager is needed for that,
// and lets the operators' own tools check the files.
package ops

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"difylb/test/testbed"
)

func TestMain(m *testing.M) { os.Exit(testbed.Main(m)) }

// demand is the environment variable that turns a missing tool into a failure.
const demand = "DIFYLB_DEMAND_TOOLS"

// tool returns the path of a program that is not ours. Without it the test is
// skipped, unless demand is set.
func tool(t *testing.T, name, debian string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv(demand) != "" {
		t.Fatalf("%s is not installed (Debian package %s), and %s is set", name, debian, demand)
	}
	t.Skipf("NOT TESTED: %s is not installed; it is in the Debian package %s", name, debian)
	return ""
}

// run executes a tool of somebody else's in a directory and expects it to be content.
func run(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.Env = testbed.CleanEnvironment(t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %s\n%s", filepath.Base(program), args, err, out)
	}
	return string(out)
}

// deployed is the path of a shipped file.
func deployed(name string) string { return filepath.Join(testbed.Repository(), "deploy", name) }

// command executes a program that may fail.
func command(dir, program string, args ...string) ([]byte, error) {
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.Env = testbed.CleanEnvironment(dir)
	return cmd.CombinedOutput()
}
