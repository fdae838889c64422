package e2e

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
	"syscall"
	"testing"
	"time"
)

// process is one program of the cluster. Its output goes to files, which are
// shown when the test fails.
type process struct {
	t      testing.TB
	name   string
	cmd    *exec.Cmd
	stdout string
	stderr string
	exited chan struct{} // closed when it has ended and been waited for
}

// processes are those that run now.
var processes = &processList{running: make(map[*process]bool)}

type processList struct {
	mu      sync.Mutex
	running map[*process]bool // guarded by mu
}

func (l *processList) add(p *process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running[p] = true
}

func (l *processList) remove(p *process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.running, p)
}

func (l *processList) killAll() (killed int) {
	l.mu.Lock()
	var all []*process
	for p := range l.running {
		all = append(all, p)
	}
	l.mu.Unlock()
	for _, p := range all {
		p.kill9()
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

// start runs a program in dir. Output is appended to <dir>/<name>.stdout and
// .stderr, so that one that is started again goes on in the same files.
func start(t testing.TB, dir, name, program string, args ...string) *process {
	t.Helper()
	p := &process{
		t: t, name: name, exited: make(chan struct{}),
		stdout: filepath.Join(dir, name+".stdout"), stderr: filepath.Join(dir, name+".stderr"),
	}
	p.cmd = exec.Command(program, args...)
	p.cmd.Dir = dir
	p.cmd.Env = cleanEnvironment(dir)
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
		p.kill9()
		p.checkLog()
		if t.Failed() {
			p.showTail()
		}
	})
	return p
}

// cleanEnvironment keeps settings of whoever runs the tests out of them.
func cleanEnvironment(home string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + os.TempDir(), "NO_COLOR=1"}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("%s to %s: %s", s, p.name, err)
	}
}

// kill9 ends the process and all that it may have started, and waits for it.
func (p *process) kill9() {
	if p.running() {
		_ = syscall.Kill(-p.pid(), syscall.SIGKILL)
	}
	<-p.exited
}

// wait returns the exit code; -1 means a signal ended it.
func (p *process) wait(limit time.Duration) int {
	p.t.Helper()
	select {
	case <-p.exited:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		p.t.Fatalf("%s (pid %d) still runs after %s", p.name, p.pid(), limit)
		return 0
	}
}

// stop asks the process to end and expects it to do so in good order.
func (p *process) stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	if code := p.wait(20 * time.Second); code != 0 {
		p.t.Errorf("%s ended with %d after SIGTERM, want 0", p.name, code)
	}
}

func (p *process) output() string { return readFile(p.t, p.stdout) }
func (p *process) log() string    { return readFile(p.t, p.stderr) }

// checkLog reports what must not stand in the log of any program, whatever was
// done to it. The second is found when the programs were built with -race.
func (p *process) checkLog() {
	p.t.Helper()
	log := p.log()
	for _, bad := range []string{"panic", "DATA RACE", "fatal error: "} {
		if i := strings.Index(log, bad); i >= 0 {
			p.t.Errorf("%s logged %q: %.3000s", p.name, bad, log[i:])
		}
	}
}

func (p *process) showTail() {
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
		p.t.Logf("the end of %s:\n%s", filepath.Base(path), data)
	}
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// eventually waits until f returns nil, which it must within limit.
func eventually(t testing.TB, limit time.Duration, what string, f func() error) {
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

// within is eventually for a condition without a story.
func within(t testing.TB, limit time.Duration, what string, f func() bool) {
	t.Helper()
	eventually(t, limit, what, func() error {
		if !f() {
			return fmt.Errorf("it is not so")
		}
		return nil
	})
}
