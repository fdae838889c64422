package browser

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"difylb/test/testbed"
)

const (
	app       = "support" // the application that the tests change
	other     = "reports" // one without traffic
	userToken = "usertoken--browser"
)

// cluster is one lb-admin with its etcd, two lb-proxies and four stand-ins, the
// last of which serves only the application without traffic.
type cluster struct {
	t       testing.TB
	dir     string
	admin   *testbed.Process
	url     string // of lb-admin
	proxies []string
	hosts   []string         // of the stand-ins
	quiet   *testbed.Process // the last of them
}

func startCluster(t testing.TB) *cluster {
	t.Helper()
	dir, err := os.MkdirTemp(testbed.Scratch, "cluster-")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, dir: dir}
	first := testbed.FreePorts(t, 12)
	at := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", first+i) }
	for i := range 4 {
		c.hosts = append(c.hosts, at(8+i))
		c.quiet = testbed.Start(t, dir, fmt.Sprintf("dify%d", i+1), testbed.Programs.Ctl, "standin", "--listen", at(8+i), "--slots", "-1",
			"--name", fmt.Sprintf("dify%d", i+1), "--app", "chat=app-chat-browser", "--app", "workflow=app-workflow-browser")
	}
	c.url = "http://" + at(0)
	c.admin = testbed.Start(t, dir, "admin-1", testbed.Programs.Admin, "--node-id", "admin-1", "--http-listen", at(0), "--grpc-listen", at(1),
		"--data-dir", filepath.Join(dir, "admin-1"), "--etcd-listen-client", "http://"+at(2), "--etcd-listen-peer", "http://"+at(3))
	c.awaitAdmin()
	c.apply(3)
	for i := range 2 {
		name, ops := fmt.Sprintf("proxy-%d", i+1), at(5+2*i)
		c.proxies = append(c.proxies, "http://"+at(4+2*i))
		p := testbed.Start(t, dir, name, testbed.Programs.Proxy, "--node-id", name, "--listen", at(4+2*i), "--ops-listen", ops,
			"--data-dir", filepath.Join(dir, name), "--etcd-endpoints", "http://"+at(2), "--access-log", "off")
		testbed.Eventually(t, 20*time.Second, name+" is ready", func() error { return p.Alive(testbed.Probe("http://" + ops + "/readyz")) })
	}
	return c
}

func (c *cluster) awaitAdmin() {
	c.t.Helper()
	testbed.Eventually(c.t, 20*time.Second, "lb-admin is ready", func() error { return c.admin.Alive(testbed.Probe(c.url + "/readyz")) })
}

func (c *cluster) tokenFile() string { return filepath.Join(c.dir, "admin-1", "admin.token") }

// adminToken is the first access token.
func (c *cluster) adminToken() string {
	return strings.TrimSpace(testbed.ReadFile(c.t, c.tokenFile()))
}

// lbctl runs the command line, which has to succeed, and returns what it says.
func (c *cluster) lbctl(args ...string) string {
	c.t.Helper()
	cmd := exec.Command(testbed.Programs.Ctl, append([]string{"--server", c.url, "--token-file", c.tokenFile()}, args...)...)
	cmd.Dir, cmd.Env = c.dir, testbed.CleanEnvironment(c.dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("lbctl %q: %s\n%s", args, err, out)
	}
	return string(out)
}

// awaitUsers waits until lb-admin has been told of users, which proxies do every
// quarter of a minute.
func (c *cluster) awaitUsers() {
	c.t.Helper()
	testbed.Eventually(c.t, time.Minute, "users of the last day are known", func() error {
		if out := c.lbctl("instance", "drain", app, "dify2", "--dry-run"); !strings.Contains(out, "seen within the last day") {
			return errors.New(out)
		}
		return nil
	})
}

// apply declares both applications, the first one on so many instances.
func (c *cluster) apply(instances int) {
	c.t.Helper()
	type object = map[string]any
	list := func(mode string, hosts ...int) (out []object) {
		for _, i := range hosts {
			out = append(out, object{"name": fmt.Sprintf("dify%d", i+1), "url": "http://" + c.hosts[i], "token": "app-" + mode + "-browser"})
		}
		return out
	}
	check := object{"interval": "500ms", "timeout": "400ms"}
	doc, err := json.Marshal(object{"applications": object{
		app:   object{"user_tokens": []string{userToken}, "health_check": check, "instances": list("chat", []int{0, 1, 2}[:instances]...)},
		other: object{"user_tokens": []string{userToken + "-2"}, "health_check": check, "instances": list("workflow", 0, 3)},
	}})
	if err != nil {
		c.t.Fatal(err)
	}
	testbed.WriteFile(c.t, filepath.Join(c.dir, "doc.json"), doc)
	c.lbctl("apply", "-f", "doc.json", "--wait", "10s")
}

// chat sends a question and reads the answer; selectors are those of the stand-in.
func (c *cluster) chat(ctx context.Context, i int, selectors string) error {
	body, err := json.Marshal(map[string]any{
		"query": "hello #standin " + selectors, "inputs": map[string]any{}, "user": fmt.Sprintf("user-%d", i), "response_mode": "streaming"})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.proxies[i%len(c.proxies)]+"/v1/chat-messages", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+userToken)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// traffic asks some 50 questions a second, and holds some streams open, until
// the function that it returns is called.
func (c *cluster) traffic() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for n := i; ctx.Err() == nil; n += 4 {
				if err := c.chat(ctx, n, "tokens=2 gap_ms=10 first_ms=30"); err != nil && ctx.Err() == nil {
					c.t.Errorf("traffic: %s", err)
					return
				}
				select {
				case <-time.After(30 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
	}
	for i := range 6 {
		all.Go(func() {
			for ctx.Err() == nil {
				if err := c.chat(ctx, 1000+i, "tokens=600 gap_ms=100"); err != nil && ctx.Err() == nil {
					c.t.Errorf("traffic: %s", err)
					return
				}
			}
		})
	}
	return func() {
		cancel()
		all.Wait()
	}
}
