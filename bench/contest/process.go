//go:build linux

package contest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is one program that the contest started and will end.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    string        // file with what it said
	grace  time.Duration // to end by itself before it is killed
	exited chan struct{} // closed when it has ended
	err    error         // how it ended; read after exited
}

// start runs a command on the given CPUs, all if there are none, with its
// output in a file of dir. It ends by stop; should the contest die first, the
// kernel tells it to end as well.
func start(dir, name string, cpus []int, command ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".out"), grace: 5 * time.Second, exited: make(chan struct{})}
	if len(cpus) > 0 {
		command = append([]string{"taskset", "-c", cpuList(cpus)}, command...)
	}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.cmd = exec.Command(command[0], command[1:]...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() { // ends with the process; stop waits for it
		defer close(p.exited)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

func cpuList(cpus []int) string {
	var s []string
	for _, c := range cpus {
		s = append(s, strconv.Itoa(c))
	}
	return strings.Join(s, ",")
}

// stop ends the process by its id and returns when it has ended. A second call
// does nothing.
func (p *process) stop() {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		select {
		case <-p.exited:
			return
		default:
		}
		pids := p.pids() // workers of one that must be killed would stay behind
		_ = p.cmd.Process.Signal(sig)
		if sig == syscall.SIGKILL {
			for _, pid := range pids[1:] {
				_ = syscall.Kill(pid, sig)
			}
		}
		select {
		case <-p.exited:
			return
		case <-time.After(p.grace):
		}
	}
	<-p.exited
}

// await calls ready until it returns nil, the process has ended, or 30 s are over.
func (p *process) await(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.exited:
			return fmt.Errorf("%s ended: %w; it said %s", p.name, errors.Join(p.err, err), p.said())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w; it said %s", p.name, err, p.said())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *process) said() string {
	b, _ := os.ReadFile(p.log)
	return fmt.Sprintf("%q", b[max(0, len(b)-500):])
}

// pids returns the process and its descendants, itself first.
func (p *process) pids() []int {
	pids := []int{p.cmd.Process.Pid}
	for i := 0; i < len(pids); i++ {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[i]))
		for _, file := range threads {
			list, _ := os.ReadFile(file)
			for _, f := range strings.Fields(string(list)) {
				if pid, err := strconv.Atoi(f); err == nil {
					pids = append(pids, pid)
				}
			}
		}
	}
	return pids
}

// cpuTime returns the user and system time of the process and its descendants
// so far. It is what utime and stime of /proc/<pid>/stat add up to, in
// nanoseconds instead of ticks of 10 ms: the CPU-time clock of each process
// (clock_getcpuclockid(3)), which counts threads that have ended, too.
func (p *process) cpuTime() time.Duration {
	var sum time.Duration
	for _, pid := range p.pids() {
		var ts unix.Timespec
		const schedClock = 2 // CPUCLOCK_SCHED
		if unix.ClockGettime(int32(^pid<<3|schedClock), &ts) == nil {
			sum += time.Duration(ts.Nano())
		}
	}
	return sum
}

// resident returns the resident memory of the process and its descendants in
// bytes. Pages that they share count once for each.
func (p *process) resident() (bytes int64) {
	for _, pid := range p.pids() {
		bytes += residentOf(pid)
	}
	return bytes
}

func residentOf(pid int) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for line := range bytes.Lines(text) {
		if f := bytes.Fields(line); len(f) >= 2 && string(f[0]) == "Rss:" {
			kib, _ := strconv.ParseInt(string(f[1]), 10, 64)
			return kib << 10
		}
	}
	return 0
}

// syscalls counts the system calls of a process and its descendants with one
// kernel counter for each thread.
type syscalls struct{ counters []int }

// countSyscalls begins to count. It fails where the kernel does not let us.
func (p *process) countSyscalls() (*syscalls, error) {
	var text []byte
	var err error
	for _, root := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		if text, err = os.ReadFile(root + "/events/raw_syscalls/sys_enter/id"); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	id, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return nil, err
	}
	s := &syscalls{}
	for _, pid := range p.pids() {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		for _, dir := range threads {
			tid, _ := strconv.Atoi(filepath.Base(dir))
			attr := &unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: id, Bits: unix.PerfBitInherit}
			attr.Size = uint32(unix.PERF_ATTR_SIZE_VER0)
			fd, err := unix.PerfEventOpen(attr, tid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
			if err != nil {
				s.close()
				return nil, fmt.Errorf("perf_event_open: %w", err)
			}
			s.counters = append(s.counters, fd)
		}
	}
	return s, nil
}

func (s *syscalls) count() (n uint64) {
	for _, fd := range s.counters {
		var b [8]byte
		if got, err := unix.Read(fd, b[:]); err == nil && got == 8 {
			n += nativeUint64(b)
		}
	}
	return n
}

func (s *syscalls) close() {
	for _, fd := range s.counters {
		_ = unix.Close(fd)
	}
}
