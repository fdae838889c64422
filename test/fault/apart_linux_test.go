package fault

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"difylb/test/testbed"
)

// Some faults need a network and file systems that nobody else uses. Tests of
// those run in another process of this program, in namespaces of its own.
// apartRows is set there: the file that rows are handed over in.
const apartRows = "DIFYLB_FAULT_ROWS"

// apart reports whether this process has namespaces of its own. If not, it
// runs the test in one that has, or skips it where that is not allowed.
func apart(t *testing.T) bool {
	t.Helper()
	if os.Getenv(apartRows) != "" {
		return true
	}
	probe := exec.Command("true")
	probe.SysProcAttr = ownNamespaces()
	if err := probe.Run(); err != nil {
		leaveOut(t, "namespaces of its own for network and mounts are not allowed here (CAP_SYS_ADMIN, or user namespaces for everybody): %s", err)
	}
	etcd, err := testbed.EtcdProgram() // nobody there has a network to fetch it by
	if err != nil {
		t.Fatal(err)
	}
	rows := filepath.Join(t.TempDir(), "rows.json")
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.timeout=20m"}
	if *long {
		args = append(args, "-long")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.SysProcAttr = ownNamespaces()
	cmd.Env = append(os.Environ(), apartRows+"="+rows, "DIFYLB_BIN="+filepath.Dir(testbed.Programs.Admin), "DIFYLB_TEST_ETCD="+etcd)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it ends what it has started
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in namespaces of its own: %s\n%s", err, out)
	} else {
		t.Logf("in namespaces of its own:\n%s", out)
	}
	if strings.Contains(string(out), "--- SKIP") {
		leaveOut(t, "it was skipped in namespaces of its own:\n%s", out)
	}
	data, err := os.ReadFile(rows)
	var list []storedRow
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err != nil {
		t.Errorf("no rows were handed over: %s", err)
	}
	for _, r := range list {
		results.add(row(r))
	}
	return false
}

// ownNamespaces asks for them; who is not root becomes that in one of users.
func ownNamespaces() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		a.Cloneflags |= syscall.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return a
}

// furnish makes new namespaces fit to live in: mounts stay in them, and the
// loopback interface works.
func furnish() error {
	if os.Getenv(apartRows) == "" {
		return nil
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err == nil {
		err = unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, lo)
	}
	if err == nil {
		lo.SetUint16(lo.Uint16() | unix.IFF_UP)
		err = unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo)
	}
	if err != nil {
		return fmt.Errorf("start the loopback interface: %w", err)
	}
	return nil
}

// handOver tells the process outside what was found.
func handOver() error {
	path := os.Getenv(apartRows)
	if path == "" {
		return nil
	}
	list := []storedRow{}
	for _, r := range results.rows() {
		list = append(list, storedRow(r))
	}
	data, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// storedRow is a row that JSON can hold.
type storedRow row

func (r storedRow) MarshalJSON() ([]byte, error) {
	return json.Marshal([]any{r.section, r.place, r.fault, r.promise, r.sent, r.failed, r.cut, r.moved, r.misplaced, r.whole, r.remark})
}

func (r *storedRow) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, &[]any{&r.section, &r.place, &r.fault, &r.promise, &r.sent, &r.failed, &r.cut, &r.moved, &r.misplaced, &r.whole, &r.remark})
}

// mountDisk puts a file system of so many bytes at a directory, until the test ends.
func mountDisk(t testing.TB, dir string, size int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		t.Fatalf("mount a disk at %s: %s", dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %s", dir, err)
		}
	})
}

// fillDisk leaves no byte free on a disk. The returned function frees them.
func fillDisk(t testing.TB, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 64 << 10; size > 0; {
		_, err := f.Write(make([]byte, size))
		switch {
		case errors.Is(err, syscall.ENOSPC):
			size /= 16
		case err != nil:
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// rules are what the packet filter has been told.
type rules struct {
	t    testing.TB
	told [][]string
}

// filter tells the packet filter of this network namespace rules about packets
// that come in over loopback, until forget. It skips the test where there is none.
func filter(t testing.TB, list ...[]string) *rules {
	t.Helper()
	r := &rules{t: t}
	t.Cleanup(r.forget)
	for _, words := range list {
		if err := iptables(append([]string{"-A", "INPUT"}, words...)...); err != nil {
			t.Fatal(err)
		}
		r.told = append(r.told, words)
	}
	return r
}

func (r *rules) forget() {
	r.t.Helper()
	for _, words := range r.told {
		if err := iptables(append([]string{"-D", "INPUT"}, words...)...); err != nil {
			r.t.Error(err)
		}
	}
	r.told = nil
}

func iptables(words ...string) error {
	cmd := exec.Command("iptables", words...)
	cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE="+filepath.Join(testbed.Scratch, "xtables.lock"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("iptables %s: %w: %s", strings.Join(words, " "), err, out)
	}
	return nil
}

// hasFilter skips a test where packets can't be dropped.
func hasFilter(t *testing.T) {
	t.Helper()
	if err := iptables("-A", "INPUT", "-p", "tcp", "--dport", "1", "-m", "statistic", "--mode", "random", "--probability", "0.5", "-j", "DROP"); err != nil {
		t.Skipf("packets can't be dropped here: %s", err)
	}
	if err := iptables("-F", "INPUT"); err != nil {
		t.Fatal(err)
	}
}
