// Package testbed is what tests of the three programs as real processes share:
// it finds or builds the programs, starts them so that none outlives the test
// binary, looks at them from outside (ports, logs, metrics, memory, open
// files) and waits for conditions instead of sleeping. It knows no package of
// the balancer, and not what any program is for.
package testbed

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Programs holds the paths of what is tested; set by Main.
var Programs struct{ Admin, Proxy, Ctl string }

// Scratch is a directory that lives as long as the test binary; set by Main.
var Scratch string

// Main runs the tests of a package and returns the exit code. It prepares
// Programs and Scratch, and afterwards ends what tests left running, which
// is a failure. An interrupted run leaves nothing behind either.
func Main(m *testing.M) int {
	var err error
	if Scratch, err = os.MkdirTemp("", "difylb-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(Scratch)
	if err := findPrograms(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// Ctrl-C does not reach the children: they have process groups of their own.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	disarm := context.AfterFunc(ctx, func() {
		fmt.Fprintln(os.Stderr, "testbed: interrupted")
		processes.killAll()
		os.RemoveAll(Scratch)
		os.Exit(130)
	})
	defer disarm()
	code := m.Run()
	if left := processes.killAll(); left > 0 {
		fmt.Fprintf(os.Stderr, "testbed: %d processes were left running by tests\n", left)
		code = 1
	}
	return code
}

// findPrograms takes the binaries of DIFYLB_BIN, or builds them.
func findPrograms() error {
	dir := os.Getenv("DIFYLB_BIN")
	if dir == "" {
		dir = filepath.Join(Scratch, "bin")
		if err := build(dir, "./cmd/lb-admin", "./cmd/lb-proxy", "./cmd/lbctl"); err != nil {
			return err
		}
	}
	for name, path := range map[string]*string{"lb-admin": &Programs.Admin, "lb-proxy": &Programs.Proxy, "lbctl": &Programs.Ctl} {
		*path = filepath.Join(dir, name)
		if _, err := os.Stat(*path); err != nil {
			return fmt.Errorf("DIFYLB_BIN: %w", err)
		}
	}
	return nil
}

func build(dir string, packages ...string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-o", dir + "/"}, packages...)...)
	cmd.Dir = Repository()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", strings.Join(packages, " "), err, out)
	}
	return nil
}

// Repository is the root of the checkout: tests run in their own directory,
// two below it.
func Repository() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}

// EtcdProgram takes the plain etcd of DIFYLB_TEST_ETCD, or builds it, once, when
// a test wants one.
var EtcdProgram = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("DIFYLB_TEST_ETCD"); path != "" {
		return path, nil
	}
	dir := filepath.Join(Scratch, "etcd")
	return filepath.Join(dir, "etcd"), build(dir, "./test/etcd")
})
