package e2e

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
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"difylb/test/testbed"
)

// inputDir holds what a test writes for the programs to read, secrets included.
const inputDir = "input"

// cluster is what one test runs: its processes and what they share.
type cluster struct {
	t        testing.TB
	dir      string
	admins   []*adminNode
	proxies  []*proxyNode
	etcd     []string // client URLs; set by startAdmin or the test
	etcdArgs []string // further flags towards etcd
	logLevel string
	secrets  canaries

	record sync.Mutex // guards answers
	// answers is all that REST and lbctl said, to be searched for secrets.
	answers *os.File
}

type adminNode struct {
	*testbed.Process
	url     string
	dataDir string
}

type proxyNode struct {
	*testbed.Process
	id        string
	url       string
	ops       string
	dataDir   string
	accessLog string
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	// Not t.TempDir: an interrupted run removes testbed.Scratch and all below it.
	dir, err := os.MkdirTemp(testbed.Scratch, strings.ReplaceAll(t.Name(), "/", "-")+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &cluster{t: t, dir: dir, logLevel: "debug"}
	if c.answers, err = os.Create(filepath.Join(c.dir, "answers.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the processes have ended
		c.answers.Close()
		c.secrets.search(t, c.dir)
	})
	return c
}

// newPair starts one lb-admin with its own etcd and two lb-proxies, and
// applies the applications.
func newPair(t testing.TB, apps func(*cluster) []application, proxyFlags ...string) *cluster {
	t.Helper()
	c := newCluster(t)
	c.startAdmin()
	declared := apps(c)
	c.apply(document(t, declared...))
	c.startProxy(proxyFlags...)
	c.startProxy(proxyFlags...)
	c.awaitNodes(2)
	return c
}

// keep notes an answer for the search for secrets.
func (c *cluster) keep(what string, data []byte) {
	c.record.Lock()
	defer c.record.Unlock()
	fmt.Fprintf(c.answers, "== %s\n%s\n", what, data)
}

// input writes a file that a program is to read.
func (c *cluster) input(name string, data []byte) string {
	path := filepath.Join(c.dir, inputDir, name)
	testbed.WriteFile(c.t, path, data)
	return path
}

func (c *cluster) userToken() string     { return c.secrets.secret("a user token", "usertoken--") }
func (c *cluster) instanceToken() string { return c.secrets.secret("an instance's token", "app-") }

// startAdmin starts an lb-admin; the first of a cluster without c.etcd brings
// its own etcd. It returns when the lb-admin is ready.
func (c *cluster) startAdmin(flags ...string) *adminNode {
	c.t.Helper()
	a := c.beginAdmin(flags...)
	a.awaitReady()
	c.awaitToken()
	token := strings.TrimSpace(testbed.ReadFile(c.t, c.tokenFile()))
	c.secrets.add("the admin token", token[len(token)/2-6:len(token)/2+6])
	return a
}

// awaitToken waits until the generated token opens the API.
func (c *cluster) awaitToken() {
	c.t.Helper()
	testbed.Eventually(c.t, 5*time.Second, "the admin token is valid", func() error {
		_, err := c.nodes()
		return err
	})
}

// beginAdmin starts an lb-admin and does not wait for it.
func (c *cluster) beginAdmin(flags ...string) *adminNode {
	c.t.Helper()
	name := fmt.Sprintf("admin-%d", len(c.admins)+1)
	port := testbed.FreePorts(c.t, 4)
	at := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", port+i) }
	a := &adminNode{url: "http://" + at(0), dataDir: filepath.Join(c.dir, name)}
	args := []string{
		"--node-id", name, "--http-listen", at(0), "--grpc-listen", at(1), "--data-dir", a.dataDir, "--log-level", c.logLevel,
	}
	if len(c.etcd) > 0 {
		args = append(args, "--etcd-endpoints", strings.Join(c.etcd, ","))
		args = append(args, c.etcdArgs...)
	} else {
		c.etcd = []string{"http://" + at(2)}
		args = append(args, "--etcd-listen-client", "http://"+at(2), "--etcd-listen-peer", "http://"+at(3))
	}
	args = append(args, flags...)
	a.Process = testbed.Start(c.t, c.dir, name, testbed.Programs.Admin, args...)
	c.admins = append(c.admins, a)
	return a
}

func (a *adminNode) awaitReady() {
	a.T.Helper()
	testbed.Eventually(a.T, 20*time.Second, a.Name+" is ready", func() error { return a.Alive(testbed.Probe(a.url + "/readyz")) })
}

// restart starts the process anew, on its ports and in its directory.
func (a *adminNode) restart() {
	a.T.Helper()
	a.Process = a.Again()
	a.awaitReady()
}

// tokenFile is where the first lb-admin wrote its token.
func (c *cluster) tokenFile() string { return filepath.Join(c.admins[0].dataDir, "admin.token") }

// startProxy starts an lb-proxy and returns when it is ready.
func (c *cluster) startProxy(flags ...string) *proxyNode {
	c.t.Helper()
	p := c.beginProxy(flags...)
	p.awaitReady()
	return p
}

func (c *cluster) beginProxy(flags ...string) *proxyNode {
	c.t.Helper()
	name := fmt.Sprintf("proxy-%d", len(c.proxies)+1)
	port := testbed.FreePorts(c.t, 2)
	p := &proxyNode{
		id: name, url: fmt.Sprintf("http://127.0.0.1:%d", port), ops: fmt.Sprintf("http://127.0.0.1:%d", port+1),
		dataDir: filepath.Join(c.dir, name), accessLog: filepath.Join(c.dir, name+".access"),
	}
	args := []string{
		"--node-id", name, "--listen", p.url[len("http://"):], "--ops-listen", p.ops[len("http://"):], "--data-dir", p.dataDir,
		"--etcd-endpoints", strings.Join(c.etcd, ","), "--access-log", p.accessLog, "--log-level", c.logLevel,
	}
	args = append(args, c.etcdArgs...)
	args = append(args, flags...)
	p.Process = testbed.Start(c.t, c.dir, name, testbed.Programs.Proxy, args...)
	c.proxies = append(c.proxies, p)
	return p
}

func (p *proxyNode) awaitReady() {
	p.T.Helper()
	testbed.Eventually(p.T, 20*time.Second, p.Name+" is ready", func() error { return p.Alive(testbed.Probe(p.ops + "/readyz")) })
}

// begin starts the process anew, on its ports and in its directory.
func (p *proxyNode) begin() {
	p.T.Helper()
	p.Process = p.Again()
}

func (p *proxyNode) restart() {
	p.T.Helper()
	p.begin()
	p.awaitReady()
}

// proxyURLs are the bases that clients use.
func (c *cluster) proxyURLs() []string {
	var out []string
	for _, p := range c.proxies {
		out = append(out, p.url)
	}
	return out
}

var restClient = &http.Client{Timeout: 2 * time.Minute}

// call asks the first lb-admin's REST API.
func (c *cluster) call(method, path string, body any) (status int, answer []byte, err error) {
	return c.callAt(c.admins[0].url, method, path, body)
}

func (c *cluster) callAt(base, method, path string, body any) (status int, answer []byte, err error) {
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		reader = bytes.NewReader(b)
	default:
		data, err := json.Marshal(b)
		if err != nil {
			return 0, nil, err
		}
		reader = bytes.NewReader(data)
	}
	req, err := http.NewRequest(method, base+"/api/v1"+path, reader)
	if err != nil {
		return 0, nil, err
	}
	token, err := os.ReadFile(c.tokenFile())
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	switch {
	case method == http.MethodPatch:
		req.Header.Set("Content-Type", "application/merge-patch+json")
	case reader != nil:
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := restClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	path, _, _ = strings.Cut(path, "?") // the test's own words may hold a secret
	c.keep(fmt.Sprintf("%s %s %d", method, path, resp.StatusCode), answer)
	return resp.StatusCode, answer, err
}

// mustCall is call for what has to succeed.
func (c *cluster) mustCall(method, path string, body any) []byte {
	c.t.Helper()
	status, answer, err := c.call(method, path, body)
	if err != nil || status/100 != 2 {
		c.t.Fatalf("%s %s: status %d, %v: %s", method, path, status, err, answer)
	}
	return answer
}

// apply applies a document and waits for the proxies that run.
func (c *cluster) apply(doc []byte) {
	c.t.Helper()
	c.mustCall("POST", "/apply?wait=10s", doc)
}

// result is what a command left behind.
type result struct {
	stdout, stderr string
	code           int
}

// lbctl runs the command line against the first lb-admin.
func (c *cluster) lbctl(args ...string) result {
	c.t.Helper()
	return c.command(testbed.Programs.Ctl, append([]string{"--server", c.admins[0].url, "--token-file", c.tokenFile()}, args...)...)
}

// mustLbctl is lbctl for what has to succeed.
func (c *cluster) mustLbctl(args ...string) string {
	c.t.Helper()
	r := c.lbctl(args...)
	if r.code != 0 {
		c.t.Fatalf("lbctl %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// command runs a program to its end.
func (c *cluster) command(program string, args ...string) result {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = c.dir, testbed.CleanEnvironment(c.dir), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatalf("%s: %s", program, err)
	}
	c.keep(filepath.Base(program), append(out.Bytes(), errs.Bytes()...)) // not what it was called with
	return result{stdout: out.String(), stderr: errs.String(), code: cmd.ProcessState.ExitCode()}
}

// node is what /nodes says of one.
type node struct {
	ID             string  `json:"id"`
	Role           string  `json:"role"`
	Connected      bool    `json:"connected"`
	ConfigRevision int64   `json:"config_revision"`
	RingChecksum   string  `json:"ring_checksum"`
	LagSeconds     float64 `json:"lag_seconds"`
	Refused        string  `json:"refused"`
}

func (c *cluster) nodes() ([]node, error) {
	status, body, err := c.call("GET", "/nodes", nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", status, body)
	}
	if err != nil {
		return nil, err
	}
	var list struct{ Items []node }
	err = json.Unmarshal(body, &list)
	return list.Items, err
}

// awaitNodes waits until so many proxies report and have one configuration in force.
func (c *cluster) awaitNodes(proxies int) {
	c.t.Helper()
	testbed.Eventually(c.t, 15*time.Second, fmt.Sprintf("%d proxies have the configuration", proxies), func() error {
		nodes, err := c.nodes()
		if err != nil {
			return err
		}
		nodes = slices.DeleteFunc(nodes, func(n node) bool {
			return n.Role != "proxy" || !n.Connected || n.LagSeconds > 0 || n.ConfigRevision == 0
		})
		if len(nodes) != proxies {
			return fmt.Errorf("%d of them do", len(nodes))
		}
		for _, n := range nodes {
			if n.ConfigRevision != nodes[0].ConfigRevision || n.RingChecksum != nodes[0].RingChecksum {
				return fmt.Errorf("%v and %v differ", nodes[0], n)
			}
		}
		return nil
	})
}

// status is the document of the whole cluster, as far as tests look into it.
type status struct {
	Complete bool `json:"complete"`
	Revision int64
	Nodes    struct{ Proxies, Admins, Reporting int }

	Applications map[string]struct {
		TotalRequests uint64 `json:"total_requests"`
		Errors        uint64
		Active        int64
		Instances     map[string]instanceStatus
	}
}

type instanceStatus struct {
	Requests, Errors, Retries uint64
	Active, Streams           int64
	Status, State             string
	BytesIn                   uint64 `json:"bytes_in"`
	BytesOut                  uint64 `json:"bytes_out"`
}

// statusAt asks a proxy or an lb-admin.
func (c *cluster) statusAt(base string) (*status, error) {
	code, body, err := testbed.Get(base + "/status")
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("status %d: %s", code, body)
	}
	if err != nil {
		return nil, err
	}
	c.keep("GET "+base+"/status", body)
	var s status
	return &s, json.Unmarshal(body, &s)
}
