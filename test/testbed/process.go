package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Process is one program under test. Its output goes to files, the ends of which
// are shown when the test fails. Safe for concurrent use.
type Process struct {
	T      testing.TB // the test that it ends with
	Name   string
	cmd    *exec.Cmd
	stdout string
	stderr string
	exited chan struct{} // closed when it has ended and been waited for
	// heirs is whether the program was started again: the files are the other's now.
	heirs atomic.Bool
}

// processes are those that run now.
var processes = &processList{running: make(map[*Process]bool)}

type processList struct {
	mu      sync.Mutex
	running map[*Process]bool // guarded by mu
}

func (l *processList) add(p *Process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running[p] = true
}

func (l *processList) remove(p *Process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.running, p)
}

func (l *processList) killAll() (killed int) {
	l.mu.Lock()
	var all []*Process
	for p := range l.running {
		all = append(all, p)
	}
	l.mu.Unlock()
	for _, p := range all {
		p.Kill()
	}
	return len(all)
}

// spawn starts commands on one thread that never ends: the death of the thread
// that started a child is what the kernel takes for the parent's death.
var spawn = sync.OnceValue(func() chan<- spawnRequest {
	requests := make(chan spawnRequest)
	go func() { // lives as long as the test binary
		runtime.LockOSThread()
		for r := range requests {
			r.done <- r.cmd.Start()
		}
	}()
	return requests
})

type spawnRequest struct {
	cmd  *exec.Cmd
	done chan error
}

// Start runs a program in dir. Output is appended to <dir>/<name>.stdout and
// .stderr, so that one that is started again goes on in the same files.
func Start(t testing.TB, dir, name, program string, args ...string) *Process {
	t.Helper()
	p := &Process{
		T: t, Name: name, exited: make(chan struct{}),
		stdout: filepath.Join(dir, name+".stdout"), stderr: filepath.Join(dir, name+".stderr"),
	}
	p.cmd = exec.Command(program, args...)
	p.cmd.Dir = dir
	p.cmd.Env = CleanEnvironment(dir)
	p.cmd.SysProcAttr = childAttributes()
	var files []*os.File
	for _, path := range []string{p.stdout, p.stderr} {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	p.cmd.Stdout, p.cmd.Stderr = files[0], files[1]
	done := make(chan error)
	spawn() <- spawnRequest{p.cmd, done}
	err := <-done
	for _, f := range files {
		f.Close()
	}
	if err != nil {
		t.Fatalf("start %s: %s", name, err)
	}
	processes.add(p)
	go func() { // ends with the process
		_ = p.cmd.Wait()
		processes.remove(p)
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.Kill()
		if p.heirs.Load() {
			return
		}
		p.checkLog()
		if t.Failed() {
			p.showTail()
		}
	})
	return p
}

// CleanEnvironment keeps settings of whoever runs the tests out of them.
func CleanEnvironment(home string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + os.TempDir(), "NO_COLOR=1"}
}

// Again starts the program anew with the same arguments; its output goes on in
// the same files.
func (p *Process) Again() *Process {
	p.T.Helper()
	p.heirs.Store(true)
	return Start(p.T, p.cmd.Dir, p.Name, p.cmd.Path, p.cmd.Args[1:]...)
}

// ExitCode is that of a process that has ended; -1 means a signal ended it.
func (p *Process) ExitCode() int { return p.cmd.ProcessState.ExitCode() }

// Alive turns waiting for a process that has ended into a failure at once:
// it returns err if the process runs.
func (p *Process) Alive(err error) error {
	p.T.Helper()
	if err != nil && !p.Running() {
		p.T.Fatalf("%s ended with %d\n%s", p.Name, p.ExitCode(), p.Log())
	}
	return err
}

// Pid is the number of the process, also when it has ended.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Running reports whether it has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Signal sends a signal; a process that has ended does not mind.
func (p *Process) Signal(s syscall.Signal) {
	p.T.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.T.Errorf("%s to %s: %s", s, p.Name, err)
	}
}

// Kill ends the process and all that it may have started, and waits for it.
func (p *Process) Kill() {
	if p.Running() {
		_ = syscall.Kill(-p.Pid(), syscall.SIGKILL)
	}
	<-p.exited
}

// Wait returns the exit code; -1 means a signal ended it.
func (p *Process) Wait(limit time.Duration) int {
	p.T.Helper()
	select {
	case <-p.exited:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		p.T.Fatalf("%s (pid %d) still runs after %s", p.Name, p.Pid(), limit)
		return 0
	}
}

// Stop asks the process to end and expects it to do so in good order.
func (p *Process) Stop() {
	p.T.Helper()
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(20 * time.Second); code != 0 {
		p.T.Errorf("%s ended with %d after SIGTERM, want 0", p.Name, code)
	}
}

// Output is what it has written to standard output.
func (p *Process) Output() string { return ReadFile(p.T, p.stdout) }

// Log is what it has written to standard error.
func (p *Process) Log() string { return ReadFile(p.T, p.stderr) }

// checkLog reports what must not stand in the log of any program, whatever was
// done to it. The second is found when the programs were built with -race.
func (p *Process) checkLog() {
	p.T.Helper()
	log := p.Log()
	for _, bad := range []string{"panic", "DATA RACE", "fatal error: "} {
		if i := strings.Index(log, bad); i >= 0 {
			p.T.Errorf("%s logged %q: %.3000s", p.Name, bad, log[i:])
		}
	}
}

func (p *Process) showTail() {
	for _, path := range []string{p.stdout, p.stderr} {
		data, err := os.ReadFile(path)
		if err != nil || len(data) == 0 {
			continue
		}
		const limit = 6 << 10
		if len(data) > limit {
			data = data[len(data)-limit:]
			data = data[bytes.IndexByte(data, '\n')+1:]
		}
		p.T.Logf("the end of %s:\n%s", filepath.Base(path), data)
	}
}

// ReadFile returns the contents of a file that must be there.
func ReadFile(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// WriteFile makes a private file, and its directory.
func WriteFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Eventually waits until f returns nil, which it must within limit.
func Eventually(t testing.TB, limit time.Duration, what string, f func() error) {
	t.Helper()
	begun := time.Now()
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Since(begun) > limit {
			t.Fatalf("%s: not within %s: %s", what, limit, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Within is Eventually for a condition without a story.
func Within(t testing.TB, limit time.Duration, what string, f func() bool) {
	t.Helper()
	Eventually(t, limit, what, func() error {
		if !f() {
			return fmt.Errorf("it is not so")
		}
		return nil
	})
}
