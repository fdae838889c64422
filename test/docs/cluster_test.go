package docs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// bin returns the directory of the three programs: $DIFYLB_BIN, else one that
// they are built into, once.
func bin(t *testing.T) string {
	t.Helper()
	dir, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var built = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("DIFYLB_BIN"); dir != "" {
		for _, name := range []string{"lb-admin", "lb-proxy", "lbctl"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
				return "", fmt.Errorf("DIFYLB_BIN: %w", err)
			}
		}
		return filepath.Abs(dir)
	}
	dir := filepath.Join(scratch, "built")
	cmd := exec.Command("go", "build", "-o", dir+"/", "./cmd/...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return dir, nil
})

// scratch is removed when the tests have ended.
var scratch string

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "difylb-docs-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if up != nil {
		if err := up.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "lbctl up:", err)
			code = 1
		}
	}
	os.RemoveAll(scratch)
	os.Exit(code)
}

// run executes a program and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(bin(t), name), args...)
	cmd.Dir = scratch
	cmd.Env = cleanEnv("")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %s\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// cleanEnv is the environment without what would change the programs, and with
// a home directory of its own.
func cleanEnv(path string) []string {
	var out []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		switch {
		case strings.HasPrefix(name, "LB_"), strings.HasPrefix(name, "LBCTL_"):
		case name == "HOME", name == "XDG_CONFIG_HOME", name == "PATH" && path != "", strings.HasSuffix(strings.ToLower(name), "_proxy"):
		default:
			out = append(out, e)
		}
	}
	out = append(out, "HOME="+scratch, "NO_COLOR=1")
	if path != "" {
		out = append(out, "PATH="+path)
	}
	return out
}

// upCluster is the cluster that `make up` would start, in a directory of its own.
type upCluster struct {
	dir string // holds bin, examples and data, as a checkout does
	cmd *exec.Cmd
	log *bytes.Buffer // written by cmd; read after it has ended
	end chan error    // 1: how cmd ended
}

// ports are those that the pages name.
var ports = []string{":8082", ":8083", "127.0.0.1:9180", "127.0.0.1:9182", "127.0.0.1:9183", "127.0.0.1:9190",
	"127.0.0.1:2379", "127.0.0.1:2380", "127.0.0.1:5001", "127.0.0.1:5002", "127.0.0.1:5003"}

var (
	up     *upCluster // started by the first test that needs it; ended by TestMain
	upOnce sync.Once
	upErr  error
)

var errPorts = errors.New("taken")

// startedCluster returns the cluster that all tests share. Where another
// program holds one of its ports it waits for that, and then skips the test.
func startedCluster(t *testing.T) *upCluster {
	t.Helper()
	dir := bin(t)
	upOnce.Do(func() { up, upErr = start(dir) })
	if errors.Is(upErr, errPorts) {
		t.Skipf("NOT TESTED: %s; the documentation's commands need the default ports. End what holds them and run this again", upErr)
	}
	if upErr != nil {
		t.Fatal(upErr)
	}
	return up
}

func start(programs string) (*upCluster, error) {
	if err := awaitPorts(2 * time.Minute); err != nil {
		return nil, err
	}
	c := &upCluster{dir: filepath.Join(scratch, "difylb"), log: new(bytes.Buffer), end: make(chan error, 1)}
	if err := os.MkdirAll(filepath.Join(c.dir, "examples"), 0o755); err != nil {
		return nil, err
	}
	if err := os.Symlink(programs, filepath.Join(c.dir, "bin")); err != nil {
		return nil, err
	}
	if err := os.CopyFS(filepath.Join(c.dir, "examples"), os.DirFS(filepath.Join(root, "examples"))); err != nil {
		return nil, err
	}
	// What `make up` runs, see the Makefile.
	c.cmd = exec.Command("bin/lbctl", "up", "-f", "examples/difylb.yaml", "--proxies", "2", "--demo")
	c.cmd.Dir, c.cmd.Env = c.dir, cleanEnv("")
	c.cmd.Stderr = c.log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for the tests first
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	said := make(chan struct{})
	drained := make(chan struct{})
	go func() { // ends with the program
		defer close(drained)
		var text []byte
		buf := make([]byte, 4096)
		for seen := false; ; {
			n, err := stdout.Read(buf)
			text = append(text, buf[:n]...)
			if !seen && bytes.Contains(text, []byte("difylb is up")) {
				seen = true
				close(said)
			}
			if err != nil {
				return
			}
		}
	}()
	go func() { // ends with the program
		<-drained
		c.end <- c.cmd.Wait()
	}()
	select {
	case <-said:
		return c, c.awaitReady()
	case err := <-c.end:
		return nil, fmt.Errorf("lbctl up ended: %w\n%s", err, c.log)
	case <-time.After(60 * time.Second):
		err := c.stop()
		return nil, fmt.Errorf("lbctl up is not up after 60 s (%v)\n%s", err, c.log)
	}
}

// awaitReady waits until every instance has been probed.
func (c *upCluster) awaitReady() error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		body, err := fetch("http://127.0.0.1:8083/status", "")
		if err == nil && strings.Contains(body, `"complete":true`) && strings.Count(body, `"healthy"`) == 7 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the cluster is not whole after 30 s: %v %s", err, body)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (c *upCluster) stop() error {
	if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	select {
	case err := <-c.end:
		return err
	case <-time.After(30 * time.Second):
		_ = c.cmd.Process.Kill()
		<-c.end
		return fmt.Errorf("it did not end within 30 s of an interrupt\n%s", c.log)
	}
}

func awaitPorts(wait time.Duration) error {
	deadline := time.Now().Add(wait)
	said := false
	for {
		taken := ""
		for _, addr := range ports {
			ln, err := net.Listen("tcp", addr)
			if err != nil {
				taken = addr
				break
			}
			ln.Close()
		}
		switch {
		case taken == "":
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("port %s is %w", taken, errPorts)
		case !said:
			said = true
			fmt.Fprintf(os.Stderr, "port %s is taken; waiting up to %s for it\n", taken, wait)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// fetch gets a URL, with the access token of a file if one is named.
func fetch(url, tokenFile string) (string, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	if tokenFile != "" {
		token, err := os.ReadFile(tokenFile)
		if err != nil {
			return "", err
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: status %d", url, resp.StatusCode)
	}
	return string(body), err
}

const blockTime = 90 * time.Second

// shell runs a block as a reader would type it: exported variables last from
// block to block, given that state is the same file.
func (c *upCluster) shell(text, state string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), blockTime)
	defer cancel()
	script := `[ -e "$DOCS_STATE" ] && . "$DOCS_STATE"
trap 'declare -px > "$DOCS_STATE"' EXIT
set -euo pipefail
` + text
	cmd := exec.CommandContext(ctx, "bash", "-c", script)
	cmd.Dir = c.dir
	cmd.Env = append(cleanEnv(filepath.Join(c.dir, "bin")+":"+os.Getenv("PATH")), "DOCS_STATE="+state)
	// A group of its own, so that what a block leaves running ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	err := cmd.Wait()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // nothing is left, as a rule
	if ctx.Err() != nil {
		err = fmt.Errorf("not done after %s", blockTime)
	}
	return out.String(), err
}
