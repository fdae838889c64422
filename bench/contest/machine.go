//go:build linux

package contest

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func nativeUint64(b [8]byte) uint64 { return binary.NativeEndian.Uint64(b[:]) }

// plan says which CPUs do what.
type plan struct {
	Proxy     []int // the first for one core, both for two
	Load      []int // the generator, and what else is not measured
	Instances []int
	// Shared says that with two cores for the proxy the generator has none of
	// its own, so that the rate on two cores says little.
	Shared bool
}

// planFor divides the CPUs that we may use.
func planFor(cpus []int) plan {
	switch n := len(cpus); {
	case n >= 4:
		return plan{Proxy: cpus[:2], Load: cpus[2:3], Instances: cpus[3:4]}
	case n == 3:
		return plan{Proxy: cpus[:2], Load: cpus[2:3], Instances: cpus[2:3], Shared: false}
	case n == 2:
		return plan{Proxy: cpus[:2], Load: cpus[1:], Instances: cpus[1:], Shared: true}
	}
	return plan{Shared: true} // one: nothing to divide
}

func (p plan) proxy(cores int) []int { return p.Proxy[:min(cores, len(p.Proxy))] }

func (p plan) String() string {
	if len(p.Proxy) == 0 {
		return "everything on one CPU: the figures are worth little"
	}
	s := fmt.Sprintf("proxy on CPU %d (two cores: %s), generator on CPU %s, instances on CPU %s", p.Proxy[0], cpuList(p.Proxy), cpuList(p.Load), cpuList(p.Instances))
	if p.Shared {
		s += "; on two cores the proxy shares one with generator and instances"
	}
	return s
}

// allowedCPUs returns the CPUs that this process may run on.
func allowedCPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	var cpus []int
	for i := 0; len(cpus) < set.Count(); i++ {
		if set.IsSet(i) {
			cpus = append(cpus, i)
		}
	}
	return cpus, nil
}

// pinSelf moves all threads of this process to the given CPUs. Later threads
// inherit that.
func pinSelf(cpus []int) error {
	if len(cpus) == 0 {
		return nil
	}
	var set unix.CPUSet
	for _, c := range cpus {
		set.Set(c)
	}
	threads, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		return err
	}
	for _, dir := range threads {
		tid, _ := strconv.Atoi(filepath.Base(dir))
		if err := unix.SchedSetaffinity(tid, &set); err != nil && err != unix.ESRCH {
			return fmt.Errorf("sched_setaffinity: %w", err)
		}
	}
	runtime.GOMAXPROCS(len(cpus))
	return nil
}

// raiseLimit allows us, and whom we start, as many descriptors as may be.
func raiseLimit() (int, error) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("getrlimit: %w", err)
	}
	l.Cur = l.Max
	// By package syscall: what that one sets, os/exec hands down to children.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("setrlimit: %w", err)
	}
	return int(min(l.Cur, 1<<20)), nil
}

// Machine says where figures come from.
type Machine struct {
	CPU         string `json:"cpu"`
	CPUs        int    `json:"cpus"`
	Kernel      string `json:"kernel"`
	System      string `json:"system"`
	Go          string `json:"go"`
	Descriptors int    `json:"descriptors"`
	Plan        string `json:"plan"`
	// LoadBefore is the load average of the last minute before the start: well
	// above 0 the machine was busy, and the figures are worth less.
	LoadBefore string `json:"load_before"`
}

func describe(cpus []int, p plan, descriptors int) Machine {
	m := Machine{CPUs: len(cpus), Go: runtime.Version(), Descriptors: descriptors, Plan: p.String(), CPU: "unknown", System: "unknown"}
	m.CPU = field("/proc/cpuinfo", "model name", ":", m.CPU)
	m.System = strings.Trim(field("/etc/os-release", "PRETTY_NAME", "=", m.System), `"`)
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.LoadBefore, _, _ = strings.Cut(string(load), " ")
	}
	return m
}

// field returns the value of the first line "key <sep> value" of a file.
func field(file, key, sep, otherwise string) string {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if k, v, found := strings.Cut(line, sep); found && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return otherwise
}

// firstLine returns the first line that a command says, "" if it does not run.
func firstLine(command string, args ...string) string {
	out, err := exec.Command(command, args...).CombinedOutput()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}
