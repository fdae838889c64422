// Package e2e drives the whole cluster as real processes, from outside: what a
// user, an operator or a script can see and nothing else. It builds the three
// programs, starts them on loopback with directories of their own, ends every
// one of them, and looks through all that they wrote for secrets. It knows no
// package of the balancer; the stand-in Dify is the only code it shares.
package e2e

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

// programs holds the paths of what is tested; set by TestMain.
var programs struct{ admin, proxy, ctl string }

// scratch is a directory that lives as long as the test binary; set by TestMain.
var scratch string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if scratch, err = os.MkdirTemp("", "difylb-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(scratch)
	if err := findPrograms(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// Ctrl-C does not reach the children: they have process groups of their own.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	disarm := context.AfterFunc(ctx, func() {
		fmt.Fprintln(os.Stderr, "e2e: interrupted")
		processes.killAll()
		os.RemoveAll(scratch)
		os.Exit(130)
	})
	defer disarm()
	code := m.Run()
	if left := processes.killAll(); left > 0 {
		fmt.Fprintf(os.Stderr, "e2e: %d processes were left running by tests\n", left)
		code = 1
	}
	return code
}

// findPrograms takes the binaries of DIFYLB_BIN, or builds them.
func findPrograms() error {
	dir := os.Getenv("DIFYLB_BIN")
	if dir == "" {
		dir = filepath.Join(scratch, "bin")
		if err := build(dir, "./cmd/lb-admin", "./cmd/lb-proxy", "./cmd/lbctl"); err != nil {
			return err
		}
	}
	for name, path := range map[string]*string{"lb-admin": &programs.admin, "lb-proxy": &programs.proxy, "lbctl": &programs.ctl} {
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
	cmd.Dir = repository()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", strings.Join(packages, " "), err, out)
	}
	return nil
}

// repository is the root of the checkout: tests run in their own directory.
func repository() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}

// etcdProgram builds the plain etcd, once, when a test wants one.
var etcdProgram = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(scratch, "etcd")
	return filepath.Join(dir, "etcd"), build(dir, "./test/etcd")
})
