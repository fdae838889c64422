package testbed

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childAttributes give a child a process group of its own and let the kernel
// end it with the thread that started it, should this process be killed.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// ResidentBytes reads the resident set of a process, and the largest it ever was.
func ResidentBytes(t testing.TB, pid int) (now, peak int64) {
	t.Helper()
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kb, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "VmRSS:":
			now = kb << 10
		case "VmHWM:":
			peak = kb << 10
		}
	}
	return now, peak
}

// OpenFiles is the number of descriptors that a process holds.
func OpenFiles(t testing.TB, pid int) int {
	t.Helper()
	list, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// CPUTime is what a process has used of all cores.
func CPUTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), ") ") // the name may hold spaces
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		t.Fatalf("%q has no times", data)
	}
	ticks := 0 // a hundred a second, see proc(5) and sysconf(3)
	for _, f := range fields[11:13] {
		n, _ := strconv.Atoi(f)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// LimitFiles bounds the descriptors of a process that runs, within its hard limit.
func LimitFiles(t testing.TB, pid int, limit uint64) {
	t.Helper()
	var is unix.Rlimit
	err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &is)
	if err == nil {
		is.Cur = min(limit, is.Max)
		err = unix.Prlimit(pid, unix.RLIMIT_NOFILE, &is, nil)
	}
	if err != nil {
		t.Fatalf("limit the files of process %d: %s", pid, err)
	}
}
