package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"difylb/test/testbed"
)

// demo is the cluster of `make up`, on ports of its own, in a directory that
// looks like a checkout after make build.
type demo struct {
	*cluster
	up    *testbed.Process
	first int // of its ports
}

// demoPorts are those of `make up`, in the order in which demo takes its own.
var demoPorts = []int{5001, 5002, 5003, 8082, 8083, 9182, 9183, 9180, 9190, 2379, 2380}

func (d *demo) port(usual int) int { return d.first + slices.Index(demoPorts, usual) }

func (d *demo) at(usual int) string { return fmt.Sprintf("127.0.0.1:%d", d.port(usual)) }

var demoPort = regexp.MustCompile(`\b(5001|5002|5003|8082|8083|9182|9183|9180|9190|2379|2380)\b`)

// moved puts the demo's ports in place of the usual ones.
func (d *demo) moved(text string) string {
	return demoPort.ReplaceAllStringFunc(text, func(usual string) string {
		n, _ := strconv.Atoi(usual)
		return strconv.Itoa(d.port(n))
	})
}

func startDemo(t testing.TB) *demo {
	t.Helper()
	d := &demo{cluster: newCluster(t), first: testbed.FreePorts(t, len(demoPorts))}
	if err := os.Symlink(filepath.Dir(testbed.Programs.Ctl), filepath.Join(d.dir, "bin")); err != nil {
		t.Fatal(err)
	}
	example := d.moved(testbed.ReadFile(t, filepath.Join(testbed.Repository(), "examples", "difylb.yaml")))
	testbed.WriteFile(t, filepath.Join(d.dir, "examples", "difylb.yaml"), []byte(example))
	d.up = testbed.Start(t, d.dir, "up", testbed.Programs.Ctl, "up", "-f", "examples/difylb.yaml", "--proxies", "2", "--demo",
		"--listen", d.at(8082), "--ops-listen", d.at(9182), "--http-listen", d.at(9180), "--grpc-listen", d.at(9190),
		"--etcd-listen-client", "http://"+d.at(2379), "--etcd-listen-peer", "http://"+d.at(2380))
	const last = "instance activate customer_service dify1\n"
	testbed.Eventually(t, 40*time.Second, "lbctl up says what to try", func() error {
		out := d.up.Output()
		if strings.HasSuffix(out, last) {
			return nil
		}
		return d.up.Alive(fmt.Errorf("it says %q", out))
	})
	return d
}

// What `make up` runs: one command brings up everything, what it prints to try
// works as printed, and Ctrl-C leaves nothing behind.
func TestUp_PrintedCommandsWorkAndInterruptEndsEverything(t *testing.T) {
	t.Parallel()
	d := startDemo(t)
	for _, usual := range []int{9182, 9183, 9180} {
		if err := testbed.Probe("http://" + d.at(usual) + "/readyz"); err != nil {
			t.Error(err)
		}
	}
	commands := printedCommands(d.up.Output())
	if len(commands) < 6 {
		t.Errorf("%d commands are printed: %q", len(commands), commands)
	}
	for _, command := range commands {
		cmd := exec.Command("sh", "-c", command)
		cmd.Dir, cmd.Env = d.dir, testbed.CleanEnvironment(d.dir)
		out, err := cmd.CombinedOutput()
		d.keep(command, out)
		want := ""
		switch {
		case strings.Contains(command, "chat-messages"):
			want = `"event":"message_end"`
		case strings.Contains(command, "curl"):
			want = `"status":"running"`
		case strings.Contains(command, "explain"):
			want = "alice"
		case strings.Contains(command, "status"):
			want = "customer_service"
		case strings.Contains(command, "drain"):
			want = "drained"
		case strings.Contains(command, "activate"):
			want = "active"
		}
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s\nsays (%v), want %q in it:\n%s", command, err, want, out)
		}
	}
	before := len(d.up.Log())
	d.up.Signal(syscall.SIGINT)
	if code := d.up.Wait(20 * time.Second); code != 0 {
		t.Errorf("exit code %d after Ctrl-C, want 0", code)
	}
	if said := d.up.Log()[before:]; complaint.MatchString(said) {
		t.Errorf("an orderly end is logged as trouble: %s", said)
	}
	for _, usual := range demoPorts {
		if !testbed.PortFree(d.port(usual)) {
			t.Errorf("port %d is still taken", d.port(usual))
		}
	}
	if err := syscall.Kill(-d.up.Pid(), 0); err == nil {
		t.Error("a process of its group still runs")
	}
}

// complaint is a line of the console's log that is worse than informational.
var complaint = regexp.MustCompile(`(?m)^\S+ (WRN|ERR|FTL|PNC) `)

// printedCommands are the indented lines after "Try", with continued lines joined.
func printedCommands(out string) (commands []string) {
	_, out, _ = strings.Cut(out, "\nTry")
	_, out, _ = strings.Cut(out, "\n")
	for line := range strings.Lines(strings.ReplaceAll(out, "\\\n", " ")) {
		if line = strings.TrimSpace(line); line != "" {
			commands = append(commands, line)
		}
	}
	return commands
}
