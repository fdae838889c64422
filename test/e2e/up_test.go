package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What `make up` runs: one command brings up everything, what it prints to try
// works as printed, and Ctrl-C leaves nothing behind.
func TestUp_PrintedCommandsWorkAndInterruptEndsEverything(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	// The directory looks like a checkout after make build.
	if err := os.MkdirAll(filepath.Join(c.dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(programs.ctl, filepath.Join(c.dir, "bin", "lbctl")); err != nil {
		t.Fatal(err)
	}
	first := freePorts(t, 12)
	example := readFile(t, filepath.Join(repository(), "examples", "difylb.yaml"))
	for i := range 3 {
		example = strings.ReplaceAll(example, fmt.Sprint(5001+i), fmt.Sprint(first+i))
	}
	at := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", first+i) }
	up := start(t, c.dir, "up", programs.ctl, "up", "-f", c.input("difylb.yaml", []byte(example)), "--proxies", "2", "--demo",
		"--data-dir", "data", "--listen", at(3), "--ops-listen", at(5), "--http-listen", at(7), "--grpc-listen", at(8),
		"--etcd-listen-client", "http://"+at(9), "--etcd-listen-peer", "http://"+at(10))
	const last = "instance activate customer_service dify1\n"
	eventually(t, 30*time.Second, "lbctl up says what to try", func() error {
		out := up.output()
		if strings.HasSuffix(out, last) {
			return nil
		}
		return up.alive(fmt.Errorf("it says %q", out))
	})
	for i := range 2 {
		if err := probe(fmt.Sprintf("http://127.0.0.1:%d/readyz", first+5+i)); err != nil {
			t.Errorf("proxy %d: %s", i+1, err)
		}
	}
	commands := printedCommands(up.output())
	if len(commands) < 6 {
		t.Errorf("%d commands are printed: %q", len(commands), commands)
	}
	for _, command := range commands {
		cmd := exec.Command("sh", "-c", command)
		cmd.Dir, cmd.Env = c.dir, cleanEnvironment(c.dir)
		out, err := cmd.CombinedOutput()
		c.keep(command, out)
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
	up.signal(syscall.SIGINT)
	if code := up.wait(20 * time.Second); code != 0 {
		t.Errorf("exit code %d after Ctrl-C, want 0", code)
	}
	for i := range 11 {
		if !portFree(first + i) {
			t.Errorf("port %d is still taken", first+i)
		}
	}
	if err := syscall.Kill(-up.pid(), 0); err == nil {
		t.Error("a process of its group still runs")
	}
}

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
