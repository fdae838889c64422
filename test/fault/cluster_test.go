package fault

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"difylb/pkg/standin"
	"difylb/test/testbed"
)

const (
	app  = "chat"
	rate = 30.0 // requests a second of the load
)

// shape is what a cluster is made of.
type shape struct {
	etcd       int // members; 0: the first lb-admin brings its own
	etcdFlags  []string
	admins     int
	proxies    int
	proxyFlags []string
	adminFlags []string
	// named instances are declared by names, which a name server of the test knows.
	named bool
	// secure clusters speak TLS on every wire but between the last two instances and
	// the proxies.
	secure bool
	// password is that of the cluster's user at etcd; "": it knows no users.
	password string
	// disks are file systems of so many bytes for the directories of processes.
	disks map[string]int
	// proxyEnv are environment variables of the proxies.
	proxyEnv []string
}

// cluster is one of real processes, with a relay on every wire between two of
// them. Cases use it one after the other.
type cluster struct {
	t         testing.TB // of the case that runs
	root      testing.TB // that processes end with
	dir       string
	token     string // of users
	members   []*node
	admins    []*node
	proxies   []*node
	instances []*node
	wires     map[string]*relay // by "from>to"
	users     []string
	order     map[string][]string // of a user: the owner first, as explain tells
	client    *client
	store     *clientv3.Client // past all relays
	sizes     map[string]footprint
	bumps     int
	dns       *testbed.DNS // nil: instances are declared by their addresses
	papers    *papers      // nil: everything is in clear
	proxyEnv  []string
	disks     map[string]int
	password  string // of users at etcd; "": it has none
	locked    bool   // etcd wants it
}

// node is a process that can be asked about itself.
type node struct {
	*testbed.Process
	base  string // URL of its metrics and health
	front string // URL or address where others reach it; of an instance and an lb-admin's gRPC by a relay
	token string // of an instance
}

func (n *node) pause()  { n.Signal(syscall.SIGSTOP) }
func (n *node) resume() { n.Signal(syscall.SIGCONT) }

// begin starts a process that has ended anew.
func (n *node) begin() { n.Process = n.Again() }

func (n *node) ready() error {
	switch {
	case !n.Running():
		return fmt.Errorf("%s does not run", n.Name)
	case strings.HasPrefix(n.Name, "etcd"):
		return testbed.Probe(n.base + "/health")
	case strings.HasPrefix(n.Name, "dify"):
		return testbed.Probe(n.base + "/_standin/counts")
	}
	return testbed.Probe(n.base + "/readyz")
}

// newCluster starts everything and waits until it is whole.
func newCluster(t testing.TB, s shape) *cluster {
	t.Helper()
	dir, err := os.MkdirTemp(testbed.Scratch, strings.ReplaceAll(t.Name(), "/", "-")+"-")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, root: t, dir: dir, token: "usertoken--fault-suite", wires: make(map[string]*relay), order: make(map[string][]string), proxyEnv: s.proxyEnv, disks: s.disks, password: s.password}
	for name, size := range s.disks {
		mountDisk(t, filepath.Join(dir, name), size)
	}
	var believed *x509.CertPool
	if s.secure {
		c.papers = newPapers(t, filepath.Join(dir, "papers"))
		believed = c.papers.pool
	}
	c.client = newClient(t, c.token, believed)
	if s.etcd > 0 {
		c.startEtcd(s.etcd, s.etcdFlags...)
	}
	if s.named {
		c.dns = testbed.NewDNS(t, "127.0.0.1")
		asks := []string{"--resolver", c.dns.Address.String(), "--resolver-valid", answersLive.String()}
		s.adminFlags, s.proxyFlags = append(s.adminFlags, asks...), append(s.proxyFlags, asks...)
	}
	for range s.admins {
		c.startAdmin(s.adminFlags...)
	}
	for range 3 {
		c.startInstance()
	}
	c.await(20*time.Second, "the admin token is valid", func() error { _, err := c.rest(c.admins[0], "GET", "/apps", nil); return err })
	c.declare()
	for range s.proxies {
		c.startProxy(s.proxyFlags...)
	}
	c.await(20*time.Second, "the cluster is whole", c.hale)
	for i := range 60 {
		c.users = append(c.users, fmt.Sprintf("user-%d", i))
	}
	for _, u := range c.users {
		c.order[u] = c.explained(u)
	}
	c.warm()
	return c
}

// await is Eventually for the case that runs.
func (c *cluster) await(limit time.Duration, what string, f func() error) {
	c.t.Helper()
	testbed.Eventually(c.t, limit, what, f)
}

// all are the processes whose size is looked at.
func (c *cluster) all() []*node {
	return slices.Concat(c.members, c.admins, c.proxies)
}

func address(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// wire puts a relay between one process and an address of another.
func (c *cluster) wire(from, to, target string) *relay {
	c.t.Helper()
	r := newRelay(c.root, target)
	c.wires[from+">"+to] = r
	return r
}

// between are the relays from a process to all whose names begin so.
func (c *cluster) between(from, to string) (out []*relay) {
	c.t.Helper()
	for _, name := range slices.Sorted(maps.Keys(c.wires)) {
		if strings.HasPrefix(name, from+">"+to) {
			out = append(out, c.wires[name])
		}
	}
	if len(out) == 0 {
		c.t.Fatalf("no wire from %s to %s", from, to)
	}
	return out
}

// damage does the same to several wires.
func (c *cluster) damage(wires []*relay, d damage) {
	c.t.Helper()
	for _, r := range wires {
		r.set(c.t, d)
	}
}

func (c *cluster) startEtcd(n int, flags ...string) {
	c.t.Helper()
	program, err := testbed.EtcdProgram()
	if err != nil {
		c.t.Fatal(err)
	}
	port := testbed.FreePorts(c.t, 3*n)
	peer := func(i int) string { return "http://" + address(port+n+i) }
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("etcd-%d=%s", i+1, peer(i)))
	}
	var endpoints []string
	for i := range n {
		m := &node{base: "http://" + address(port+2*n+i), front: address(port + i)}
		at := c.scheme() + m.front
		name := fmt.Sprintf("etcd-%d", i+1)
		args := []string{"--name", name, "--data-dir", filepath.Join(c.dir, name), "--listen-client-urls", at, "--advertise-client-urls", at, "--listen-metrics-urls", m.base,
			"--listen-peer-urls", peer(i), "--initial-advertise-peer-urls", peer(i), "--initial-cluster", strings.Join(list, ","), "--log-level", "error"}
		if p := c.papers; p != nil {
			args = append(args, "--cert-file", p.crt("etcd"), "--key-file", p.key("etcd"), "--client-cert-auth", "--trusted-ca-file", p.crt("ca"))
		}
		m.Process = testbed.Start(c.root, c.dir, name, program, append(args, flags...)...)
		c.members = append(c.members, m)
		endpoints = append(endpoints, at)
	}
	for _, m := range c.members {
		c.await(20*time.Second, m.Name+" is ready", m.ready)
	}
	c.open(endpoints)
	if c.password != "" {
		c.lock()
	}
}

// open makes the test's own client of the store.
func (c *cluster) open(endpoints []string) {
	c.t.Helper()
	config := clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop()}
	if c.papers != nil {
		config.TLS = testbed.Trusting
	}
	if c.locked {
		config.Username, config.Password = "root", c.password
	}
	cl, err := clientv3.New(config)
	if err != nil {
		c.t.Fatal(err)
	}
	c.store = cl
	c.root.Cleanup(func() { cl.Close() })
}

// endpoints are the URLs of etcd for a process, through relays of its own.
func (c *cluster) endpoints(from string) string {
	var urls []string
	for _, m := range c.members {
		urls = append(urls, c.scheme()+c.wire(from, m.Name, m.front).addr)
	}
	return strings.Join(urls, ",")
}

func (c *cluster) startAdmin(flags ...string) *node {
	c.t.Helper()
	name := fmt.Sprintf("admin-%d", len(c.admins)+1)
	port := testbed.FreePorts(c.t, 4)
	a := &node{base: c.scheme() + address(port)}
	// The proxies share this wire: an lb-admin tells them all one address.
	a.front = c.wire("proxies", name, address(port+1)).addr
	args := []string{"--node-id", name, "--http-listen", address(port), "--grpc-listen", address(port + 1), "--grpc-advertise", a.front,
		"--data-dir", filepath.Join(c.dir, name)}
	if len(c.members) > 0 {
		args = append(args, "--etcd-endpoints", c.endpoints(name))
	} else {
		args = append(args, "--etcd-listen-client", "http://"+address(port+2), "--etcd-listen-peer", "http://"+address(port+3))
	}
	if p := c.papers; p != nil {
		args = append(args, "--tls-cert", p.crt("admin"), "--tls-key", p.key("admin"), "--client-ca", p.crt("ca"))
		args = append(args, p.towards("etcd")...)
	}
	args = append(args, c.credentials()...)
	a.Process = testbed.Start(c.root, c.dir, name, testbed.Programs.Admin, append(args, flags...)...)
	c.admins = append(c.admins, a)
	c.await(20*time.Second, name+" is ready", a.ready)
	if c.store == nil {
		c.open([]string{"http://" + address(port+2)})
	}
	return a
}

func (c *cluster) startProxy(flags ...string) *node {
	c.t.Helper()
	name := fmt.Sprintf("proxy-%d", len(c.proxies)+1)
	port := testbed.FreePorts(c.t, 2)
	p := &node{front: c.scheme() + address(port), base: "http://" + address(port+1)}
	etcd := c.store.Endpoints()[0]
	if len(c.members) > 0 {
		etcd = c.endpoints(name)
	} else {
		etcd = "http://" + c.wire(name, "etcd-1", strings.TrimPrefix(etcd, "http://")).addr
	}
	listen := []string{"--listen", address(port)}
	if c.papers != nil {
		listen = []string{"--listen", "", "--tls-listen", address(port), "--tls-cert", c.papers.crt("front"), "--tls-key", c.papers.key("front")}
		listen = append(append(listen, c.papers.towards("etcd")...), c.papers.towards("admin")...)
	}
	args := []string{"--node-id", name, "--ops-listen", address(port + 1), "--data-dir", filepath.Join(c.dir, name),
		"--etcd-endpoints", etcd, "--access-log", "off", "--debug-headers"}
	args = append(append(args, listen...), c.credentials()...)
	if c.disks[name] > 0 {
		args = append(args, "--access-log", filepath.Join(c.dir, name, "access.log"))
	}
	args = append(args, flags...)
	program := testbed.Programs.Proxy
	if len(c.proxyEnv) > 0 {
		args = slices.Concat(c.proxyEnv, []string{program}, args)
		program = "/usr/bin/env"
	}
	p.Process = testbed.Start(c.root, c.dir, name, program, args...)
	c.proxies = append(c.proxies, p)
	c.await(20*time.Second, name+" is ready", p.ready)
	return p
}

// startInstance starts a stand-in as Dify ships: behind an nginx that keeps
// idle connections for 65 s, so that none is closed just as it is used unless
// a case wants that.
func (c *cluster) startInstance() {
	c.t.Helper()
	n := len(c.instances) + 1
	name, listen := fmt.Sprintf("dify-%d", n), testbed.FreeAddress(c.t)
	in := &node{base: "http://" + listen, token: fmt.Sprintf("app-chat-of-instance-%d", n)}
	c.instances = append(c.instances, in)
	target := listen
	if c.https(in) {
		target = c.papers.terminate(c.root, listen)
	}
	in.front = c.wire("proxies", name, target).addr
	in.Process = testbed.Start(c.root, c.dir, name, testbed.Programs.Ctl, "standin", "--listen", listen, "--name", name, "--slots", "-1", "--nginx", "--control", "--app", "chat="+in.token)
	c.await(10*time.Second, name+" is ready", in.ready)
}

func (c *cluster) doors() (out []door) {
	for _, p := range c.proxies {
		out = append(out, door{p.Name, p.front})
	}
	return out
}

// url is where an instance is declared to be.
func (c *cluster) url(in *node) string {
	switch {
	case c.https(in):
		return "https://" + in.front
	case c.dns == nil:
		return "http://" + in.front
	}
	_, port, _ := strings.Cut(in.front, ":")
	return "http://" + in.Name + ".test:" + port
}

// declaration is the application as the cluster is to have it.
func (c *cluster) declaration() map[string]any {
	var list []any
	for _, in := range c.instances {
		one := map[string]any{"name": in.Name, "url": c.url(in), "token": in.token, "fail_timeout": "1s"}
		if c.https(in) {
			one["tls"] = map[string]any{"ca": c.papers.ca.PEM}
		}
		list = append(list, one)
	}
	return map[string]any{
		"user_tokens":  []any{c.token},
		"timeouts":     map[string]any{"connect": "1s", "read": "20s"},
		"health_check": map[string]any{"interval": "500ms", "timeout": "400ms", "healthy_threshold": 2, "unhealthy_threshold": 2},
		"instances":    list,
	}
}

func (c *cluster) declare() {
	c.t.Helper()
	c.await(10*time.Second, "the application is declared", func() error {
		_, err := c.rest(c.admins[0], "POST", "/apply", map[string]any{"applications": map[string]any{app: c.declaration()}})
		return err
	})
}

var restClient = &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: testbed.Trusting}}

// refused is an answer of REST that is no success.
type refused struct {
	status int
	body   string
}

func (r *refused) Error() string { return fmt.Sprintf("status %d: %.300s", r.status, r.body) }

// rest asks one lb-admin's API. The error is a *refused where it answered.
func (c *cluster) rest(a *node, method, path string, body any) (*http.Response, error) {
	resp, _, err := c.restBody(a, method, path, body)
	return resp, err
}

func (c *cluster) restBody(a *node, method, path string, body any) (*http.Response, []byte, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, nil, err
	}
	req, err := http.NewRequest(method, a.base+"/api/v1"+path, bytes.NewReader(data))
	if err != nil {
		return nil, nil, err
	}
	token, err := os.ReadFile(filepath.Join(c.dir, "admin-1", "admin.token"))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	if body == nil {
		req.Body, req.ContentLength = http.NoBody, 0
	}
	resp, err := restClient.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = &refused{resp.StatusCode, string(answer)}
	}
	return resp, answer, err
}

// explained returns the failover order of a user as the cluster tells it.
func (c *cluster) explained(user string) (order []string) {
	c.t.Helper()
	_, body, err := c.restBody(c.admins[0], "GET", "/explain?app="+app+"&user="+user, nil)
	var e struct {
		Owner string
		Order []struct{ Instance string }
	}
	if err == nil {
		err = json.Unmarshal(body, &e)
	}
	if err != nil || len(e.Order) != len(c.instances) || e.Order[0].Instance != e.Owner {
		c.t.Fatalf("explain %s: %v: %s", user, err, body)
	}
	for _, step := range e.Order {
		order = append(order, step.Instance)
	}
	return order
}

func (c *cluster) owner(user string) string { return c.order[user][0] }

// resident is a user whom the instance owns.
func (c *cluster) resident(in *node) string {
	c.t.Helper()
	for _, u := range c.users {
		if c.owner(u) == in.Name {
			return u
		}
	}
	c.t.Fatalf("%s owns no user", in.Name)
	return ""
}

// elected is the lb-admin that says so, and those who do not.
func (c *cluster) elected() (leader *node, others []*node) {
	c.t.Helper()
	c.await(15*time.Second, "one lb-admin is elected", func() error {
		leader, others = nil, nil
		for _, a := range c.admins {
			n, err := testbed.Metric(a.base, "difylb_admin_leader")
			switch {
			case err != nil:
				return err
			case n == 1 && leader != nil:
				return fmt.Errorf("both %s and %s lead", leader.Name, a.Name)
			case n == 1:
				leader = a
			default:
				others = append(others, a)
			}
		}
		if leader == nil {
			return fmt.Errorf("none of %d", len(c.admins))
		}
		return nil
	})
	return leader, others
}

// etcdLeader is the member of etcd that leads, and those that do not.
func (c *cluster) etcdLeader() (leader *node, others []*node) {
	c.t.Helper()
	c.await(15*time.Second, "etcd has a leader", func() error {
		leader, others = nil, nil
		for _, m := range c.members {
			if n, err := testbed.Metric(m.base, "etcd_server_is_leader"); err == nil && n == 1 {
				leader = m
			} else {
				others = append(others, m)
			}
		}
		if leader == nil {
			return fmt.Errorf("none of %d", len(c.members))
		}
		return nil
	})
	return leader, others
}

// change makes a change that moves nobody at one lb-admin, and returns its revision.
func (c *cluster) change(a *node) (revision int64, err error) {
	c.bumps++
	resp, err := c.rest(a, "PATCH", "/apps/"+app, map[string]any{"queue": map[string]any{"size": 100 + c.bumps%50}})
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.Trim(resp.Header.Get("ETag"), `"`), 10, 64)
}

// inForce returns nil when every proxy has at least the revision.
func (c *cluster) inForce(revision int64) error {
	for _, p := range c.proxies {
		n, err := testbed.Metric(p.base, "difylb_config_revision")
		if err == nil && int64(n) < revision {
			err = fmt.Errorf("%s has revision %d of %d", p.Name, int64(n), revision)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// document is /status as far as it matters here.
type document struct {
	Complete     bool
	Nodes        struct{ Proxies, Admins, Reporting int }
	Applications map[string]struct {
		TotalRequests uint64 `json:"total_requests"`
		Active        int64
		Instances     map[string]struct {
			Requests uint64
			Active   int64
			Streams  int64
			Status   string
			Since    time.Time
		}
	}
}

func (c *cluster) status(base string) (d document, err error) {
	code, body, err := testbed.Get(base + "/status")
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("status %d: %.200s", code, body)
	}
	if err == nil {
		err = json.Unmarshal(body, &d)
	}
	return d, err
}

// hale returns nil when nothing is wrong with the cluster as far as it says:
// every process is ready, all proxies know the newest configuration and see all
// lb-admins, one of these is elected, the figures are complete and every
// instance is healthy for every proxy.
func (c *cluster) hale() error {
	for _, n := range slices.Concat(c.all(), c.instances) {
		if err := n.ready(); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	leaders := 0.0
	for _, a := range c.admins {
		n, err := testbed.Metric(a.base, "difylb_admin_leader")
		if err != nil {
			return err
		}
		leaders += n
	}
	if leaders != 1 {
		return fmt.Errorf("%v lb-admins are elected", leaders)
	}
	for _, p := range c.proxies {
		for name, want := range map[string]float64{
			"difylb_config_lag_seconds": 0, "difylb_config_faulty_keys": 0, "difylb_instance_ejected": 0, "difylb_admins_connected": float64(len(c.admins)),
		} {
			if n, err := testbed.Metric(p.base, name); err != nil {
				return err
			} else if n != want {
				return fmt.Errorf("%s: %s is %v, want %v", p.Name, name, n, want)
			}
		}
		d, err := c.status(p.front)
		switch {
		case err != nil:
			return err
		case !d.Complete || d.Nodes.Proxies != len(c.proxies) || d.Nodes.Admins != len(c.admins) || d.Nodes.Reporting != len(c.proxies):
			return fmt.Errorf("%s: complete %t, nodes %+v", p.Name, d.Complete, d.Nodes)
		}
		for _, in := range c.instances {
			if s := d.Applications[app].Instances[in.Name].Status; s != "healthy" {
				return fmt.Errorf("%s: %s is %q", p.Name, in.Name, s)
			}
		}
	}
	return nil
}

// home returns nil when a user of each instance is served by it through every proxy.
func (c *cluster) home() error {
	for _, p := range c.proxies {
		for _, in := range c.instances {
			u := c.resident(in)
			if r := c.client.send(call, u, 0, door{p.Name, p.front}); r.failure != "" || r.instance != in.Name {
				return fmt.Errorf("%s belongs to %s: %s", u, in.Name, r)
			}
		}
	}
	return nil
}

// counts is what a stand-in says of itself.
func (in *node) counts() (n standin.Counts, err error) {
	code, body, err := testbed.Get(in.base + "/_standin/counts")
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("status %d", code)
	}
	if err == nil {
		err = json.Unmarshal(body, &n)
	}
	return n, err
}

// served is how many requests of users a stand-in has answered or begun to.
func (in *node) served() (n uint64, err error) {
	counts, err := in.counts()
	for _, path := range []string{"POST /v1/chat-messages", "POST /v1/files/upload"} {
		for _, by := range counts.Requests[path] {
			n += by
		}
	}
	return n, err
}

// spoil puts faults of a stand-in in force, in place of those there were.
func (c *cluster) spoil(in *node, faults ...standin.Fault) {
	c.t.Helper()
	body, err := json.Marshal(map[string]any{"clear": true, "add": faults})
	if err != nil {
		c.t.Fatal(err)
	}
	resp, err := testbed.Looker.Post(in.base+"/_standin/faults", "application/json", bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		c.t.Fatalf("%s: faults: status %d", in.Name, resp.StatusCode)
	}
}

// limited bounds a call of the store.
func (c *cluster) limited() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	c.t.Cleanup(cancel)
	return ctx
}
