package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"difylb/test/testbed"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// etcdNode is one member of an etcd cluster, as a process.
type etcdNode struct {
	*testbed.Process
	url string
}

// startEtcd starts a cluster of n members and makes it the cluster's store.
func (c *cluster) startEtcd(n int) []*etcdNode {
	c.t.Helper()
	program, err := testbed.EtcdProgram()
	if err != nil {
		c.t.Fatal(err)
	}
	port := testbed.FreePorts(c.t, 2*n)
	peer := func(i int) string { return fmt.Sprintf("http://127.0.0.1:%d", port+n+i) }
	var members []string
	for i := range n {
		members = append(members, fmt.Sprintf("etcd-%d=%s", i+1, peer(i)))
	}
	var nodes []*etcdNode
	for i := range n {
		name := fmt.Sprintf("etcd-%d", i+1)
		e := &etcdNode{url: fmt.Sprintf("http://127.0.0.1:%d", port+i)}
		e.Process = testbed.Start(c.t, c.dir, name, program, "--name", name, "--data-dir", filepath.Join(c.dir, "etcd", name),
			"--listen-client-urls", e.url, "--advertise-client-urls", e.url, "--listen-peer-urls", peer(i), "--initial-advertise-peer-urls", peer(i),
			"--initial-cluster", strings.Join(members, ","), "--log-level", "warn")
		nodes = append(nodes, e)
		c.etcd = append(c.etcd, e.url)
	}
	for _, e := range nodes {
		testbed.Eventually(c.t, 20*time.Second, e.Name+" is ready", func() error { return e.Alive(testbed.Probe(e.url + "/health")) })
	}
	return nodes
}

// store opens a client of the cluster's etcd, for what no user would do.
func (c *cluster) store(user, password string) *clientv3.Client {
	c.t.Helper()
	cl, err := clientv3.New(clientv3.Config{Endpoints: c.etcd, DialTimeout: 5 * time.Second, Username: user, Password: password})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { cl.Close() })
	return cl
}

func limited(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// With three etcd and two lb-admins one of each may die: traffic does not
// notice, changes and probes go on within seconds.
func TestEtcd_LeaderAndAdminMayDie(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	members := c.startEtcd(3)
	c.startAdmin()
	c.startAdmin()
	app, nodes := c.chatApplication("resilient", 3, probed())
	c.apply(document(t, app))
	c.startProxy()
	c.startProxy()
	c.awaitNodes(2)
	l := startLoad(t, traffic{token: app.token, users: users("steady", 40), proxies: c.proxyURLs, rate: 30, streams: 4, tokens: 3, gap: 10 * time.Millisecond})
	l.await(30)

	leader := leaderOf(t, members)
	leader.Kill()
	lost := time.Now()
	user := app.ownedBy(t, app.instances[0].name, users("steady", 40))[0]
	next := app.order(t, user)[1]
	c.changeSoon(c.admins[0], "POST", "/apps/"+app.name+"/instances/"+app.instances[0].name+"/drain")
	wrote := time.Since(lost)
	took := c.inForce(app.token, user, next, time.Now())
	t.Logf("%s, etcd's leader, was killed: a change went through after %s and was in force after %v more", leader.Name, wrote.Round(time.Millisecond), took)
	if wrote > 5*time.Second {
		t.Errorf("changes were not possible for %s", wrote)
	}

	// The lb-admin that probes, if the first is it; the other one takes over.
	prober, other := c.admins[0], c.admins[1]
	if n, err := testbed.Metric(c.admins[1].url, "difylb_admin_leader"); err == nil && n == 1 {
		prober, other = other, prober
	}
	prober.Kill()
	lost = time.Now()
	c.changeSoon(other, "POST", "/apps/"+app.name+"/instances/"+app.instances[0].name+"/activate")
	c.inForce(app.token, user, app.instances[0].name, time.Now())
	victim := named(t, nodes, app.instances[2].name)
	noFailures(t, "while etcd's leader and an lb-admin died", l.stop())
	victim.Kill()
	testbed.Within(t, 25*time.Second, "the other lb-admin probes", func() bool {
		s, err := c.statusAt(c.proxies[0].url)
		return err == nil && s.Applications[app.name].Instances[victim.Name].Status == "unhealthy"
	})
	t.Logf("the probing lb-admin was killed: the other one saw an instance die %s later", time.Since(lost).Round(100*time.Millisecond))
	for _, p := range c.proxies {
		c.statusBecomes(p, "the status is complete with one lb-admin", func(s *status) bool {
			return s.Complete && s.Nodes.Proxies == 2 && s.Nodes.Admins == 1
		})
	}
}

func leaderOf(t testing.TB, members []*etcdNode) *etcdNode {
	t.Helper()
	for _, e := range members {
		if n, err := testbed.Metric(e.url, "etcd_server_is_leader"); err == nil && n == 1 {
			return e
		}
	}
	t.Fatal("no member of etcd leads")
	return nil
}

// changeSoon repeats a change until it goes through.
func (c *cluster) changeSoon(a *adminNode, method, path string) {
	c.t.Helper()
	testbed.Eventually(c.t, 15*time.Second, method+" "+path, func() error {
		status, answer, err := c.callAt(a.url, method, path, nil)
		if err == nil && status/100 != 2 {
			if status != http.StatusServiceUnavailable {
				c.t.Errorf("%s %s without a leader: status %d: %s", method, path, status, answer)
			}
			err = fmt.Errorf("status %d: %s", status, answer)
		}
		return err
	})
}

// etcd wants a password: a wrong one is told in words, by lb-admin and by a
// proxy, and is not shown.
func TestEtcd_WrongPasswordIsTold(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.startEtcd(1)
	right, wrong := c.secrets.secret("etcd's password", ""), c.secrets.secret("a wrong password", "")
	cl := c.store("", "")
	ctx := limited(t)
	for _, step := range []func() error{
		func() error { _, err := cl.RoleAdd(ctx, "root"); return err },
		func() error { _, err := cl.UserAdd(ctx, "root", right); return err },
		func() error { _, err := cl.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := cl.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	file := c.input("password", []byte(wrong+"\n"))
	c.etcdArgs = []string{"--etcd-user", "root", "--etcd-password-file", file}
	a := c.beginAdmin()
	p := c.beginProxy()
	for _, n := range []struct {
		*testbed.Process
		url string
	}{{a.Process, a.url}, {p.Process, p.ops}} {
		testbed.Eventually(t, 15*time.Second, n.Name+" says that the password is refused", func() error {
			code, body, err := testbed.Get(n.url + "/readyz")
			if err != nil {
				return n.Alive(err)
			}
			if code != http.StatusServiceUnavailable {
				return fmt.Errorf("/readyz answers %d %s", code, body)
			}
			if text := string(body); !strings.Contains(text, "authentication failed") && !strings.Contains(text, "password") {
				return fmt.Errorf("/readyz says %s", body)
			}
			if log := n.Log(); !strings.Contains(log, "authentication") && !strings.Contains(log, "password") {
				return fmt.Errorf("its log says nothing of it")
			}
			return nil
		})
	}
	a.Kill()
	p.Kill()
	testbed.WriteFile(t, file, []byte(right+"\n"))
	a.restart()
	c.awaitToken()
	app, _ := c.recordedApplication("guarded", 1, unprobed())
	c.apply(document(t, app))
	p.restart()
	if r := (question{token: app.token, user: "u"}).ask(t.Context(), p.url); r.failure != "" {
		t.Errorf("with the right password: %s", r)
	}
}

// The processes of a cluster may start in any order.
func TestEtcd_NotThereAtStart(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	// Ports that nobody serves yet: the lb-admin with the embedded etcd comes last.
	client, peer := testbed.FreeAddress(t), testbed.FreeAddress(t)
	c.etcd = []string{"http://" + client}
	p := c.beginProxy()
	testbed.Eventually(t, 10*time.Second, "a proxy without etcd says so", func() error {
		code, body, err := testbed.Get(p.ops + "/readyz")
		if err != nil {
			return p.Alive(err)
		}
		if code != http.StatusServiceUnavailable || !strings.Contains(string(body), "no configuration") {
			return fmt.Errorf("/readyz: %d %s", code, body)
		}
		if !strings.Contains(p.Log(), "etcd does not answer") {
			return fmt.Errorf("its log does not")
		}
		return nil
	})
	r := question{token: c.userToken(), user: "early"}.ask(t.Context(), p.url)
	if r.status != http.StatusServiceUnavailable || !strings.Contains(r.detail, "no_instance_available") {
		t.Errorf("a client without a configuration gets: %s", r)
	}
	c.etcd = nil
	c.startAdmin("--etcd-listen-client", "http://"+client, "--etcd-listen-peer", "http://"+peer)
	app, _ := c.recordedApplication("belated", 1, unprobed())
	c.apply(document(t, app))
	testbed.Eventually(t, 15*time.Second, "the proxy found etcd by itself", func() error {
		if r := (question{token: app.token, user: "late"}).ask(t.Context(), p.url); r.failure != "" {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
	p.awaitReady()
}

// One key with rubbish keeps its last good value and is shown; all else goes on.
func TestEtcd_PoisonedKeyKeepsItsLastGoodValue(t *testing.T) {
	t.Parallel()
	var apps []application
	c := newPair(t, func(c *cluster) []application {
		for _, name := range []string{"poisoned", "spared"} {
			app, _ := c.recordedApplication(name, 2, unprobed())
			apps = append(apps, app)
		}
		return apps
	})
	cl := c.store("", "")
	for _, key := range []string{"/difylb/apps/poisoned", "/difylb/instances/poisoned/" + apps[0].instances[0].name} {
		if _, err := cl.Put(limited(t), key, `{"weight": "rubbish`); err != nil {
			t.Fatal(err)
		}
	}
	for _, base := range []string{c.proxies[0].ops, c.proxies[1].ops, c.admins[0].url} {
		testbed.Within(t, 5*time.Second, "the metrics of "+base+" show two faulty keys", func() bool {
			n, err := testbed.Metric(base, "difylb_config_faulty_keys")
			return err == nil && n == 2
		})
	}
	for _, p := range c.proxies {
		for _, app := range apps {
			for _, u := range users("unharmed", 8) {
				if r := (question{token: app.token, user: u}).ask(t.Context(), p.url); r.failure != "" || r.instance != app.order(t, u)[0] {
					t.Errorf("with a poisoned key: %s of %s is served by %s: %s", u, app.name, r.instance, r)
				}
			}
		}
		if log := p.Log(); !strings.Contains(log, "apps/poisoned") {
			t.Errorf("%s does not log the key", p.Name)
		}
	}
	// Other changes go on.
	user := apps[1].ownedBy(t, apps[1].instances[0].name, users("mover", 30))[0]
	c.mustLbctl("instance", "drain", "spared", apps[1].instances[0].name)
	c.inForce(apps[1].token, user, apps[1].instances[1].name, time.Now())
	// A proxy that starts now has no last good value of etcd's, but one on disk or none: it must not refuse the rest.
	c.proxies[1].Stop()
	c.proxies[1].restart()
	if r := (question{token: apps[1].token, user: user}).ask(t.Context(), c.proxies[1].url); r.failure != "" {
		t.Errorf("a proxy started beside a poisoned key: %s", r)
	}
}

// Who declares the object anew has said what belongs there: the rubbish goes.
func TestEtcd_PoisonedKeyIsHealedByApply(t *testing.T) {
	t.Parallel()
	var app application
	c := newPair(t, func(c *cluster) []application {
		app, _ = c.recordedApplication("healed", 2, unprobed())
		return []application{app}
	})
	cl := c.store("", "")
	faulty := func(want float64) {
		t.Helper()
		for _, p := range c.proxies {
			testbed.Within(t, 5*time.Second, fmt.Sprintf("%s shows %v faulty keys", p.Name, want), func() bool {
				n, err := testbed.Metric(p.ops, "difylb_config_faulty_keys")
				return err == nil && n == want
			})
		}
	}
	for _, key := range []string{"/difylb/apps/healed", "/difylb/instances/healed/" + app.instances[0].name} {
		if _, err := cl.Put(limited(t), key, `{"weight": "rubbish`); err != nil {
			t.Fatal(err)
		}
	}
	faulty(2)
	c.apply(document(t, app))
	faulty(0)
	for _, u := range users("patient", 8) {
		if r := (question{token: app.token, user: u}).ask(t.Context(), c.proxies[1].url); r.failure != "" || r.instance != app.order(t, u)[0] {
			t.Errorf("after it was declared anew, %s is served by %s: %s", u, r.instance, r)
		}
	}
}

// A store that lost everything is not believed: proxies serve on.
func TestEtcd_WipedStoreIsNotBelieved(t *testing.T) {
	t.Parallel()
	var app application
	c := newPair(t, func(c *cluster) []application {
		app, _ = c.recordedApplication("remembered", 2, unprobed())
		return []application{app}
	})
	c.admins[0].Stop()
	if err := os.RemoveAll(filepath.Join(c.admins[0].dataDir, "etcd")); err != nil {
		t.Fatal(err)
	}
	c.admins[0].restart()
	for _, p := range c.proxies {
		c.readyzSays(p, `"refused"`)
		if r := (question{token: app.token, user: "u"}).ask(t.Context(), p.url); r.failure != "" {
			t.Errorf("after the store was wiped: %s", r)
		}
		if code, _, err := testbed.Get(p.ops + "/readyz"); err != nil || code != http.StatusOK {
			t.Errorf("%s is not ready: %d, %v", p.Name, code, err)
		}
	}
}

// etcd hangs with its connections open, which nothing but silence tells, and
// then dies: lb-admin answers with words and in time, proxies stay ready and
// say how old their configuration is, and all is well by itself afterwards.
func TestEtcd_GoneWhileTheOthersLive(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	etcd := c.startEtcd(1)[0]
	c.startAdmin()
	app, _ := c.chatApplication("patient", 2, probed())
	c.apply(document(t, app))
	c.startProxy()
	c.startProxy()
	c.awaitNodes(2)
	user := app.ownedBy(t, app.instances[0].name, users("patient", 30))[0]
	l := startLoad(t, traffic{token: app.token, users: users("patient", 30), proxies: c.proxyURLs, rate: 30, streams: 4, tokens: 3, gap: 10 * time.Millisecond})
	drain := []string{"instance", "drain", app.name, app.instances[0].name}

	etcd.Signal(syscall.SIGSTOP)
	begun := time.Now()
	r := c.lbctl(drain...)
	t.Logf("etcd hangs: a change was refused after %s: %s", time.Since(begun).Round(10*time.Millisecond), strings.TrimSpace(r.stderr))
	if r.code != 1 || !strings.Contains(r.stderr, "etcd does not answer") || strings.Contains(r.stderr, "deadline") {
		t.Errorf("etcd hangs: lbctl ends with %d, want 1: %s", r.code, r.stderr)
	}
	if d := time.Since(begun); d > 8*time.Second {
		t.Errorf("etcd hangs: lbctl took %s to say so", d)
	}
	for _, p := range c.proxies {
		testbed.Eventually(t, 25*time.Second, p.Name+" knows that its configuration may be old", func() error {
			lag, err := testbed.Metric(p.ops, "difylb_config_lag_seconds")
			if err == nil && lag == 0 {
				err = fmt.Errorf("the metric shows no lag")
			}
			return err
		})
		if err := testbed.Probe(p.ops + "/readyz"); err != nil {
			t.Errorf("%s is not ready without etcd: %s", p.Name, err)
		}
	}
	if err := testbed.Probe(c.admins[0].url + "/readyz"); err == nil {
		t.Error("lb-admin says that it is ready without etcd")
	}
	etcd.Signal(syscall.SIGCONT)
	back := time.Now()
	c.changeSoon(c.admins[0], "POST", "/apps/"+app.name+"/instances/"+app.instances[0].name+"/drain")
	took := c.inForce(app.token, user, app.instances[1].name, time.Now())
	t.Logf("etcd goes on: a change went through after %s and was in force after %v more", time.Since(back).Round(10*time.Millisecond), took)

	etcd.Kill()
	r = c.lbctl("instance", "activate", app.name, app.instances[0].name)
	if r.code != 1 || !strings.Contains(r.stderr, "etcd") {
		t.Errorf("etcd is dead: lbctl ends with %d, want 1: %s", r.code, r.stderr)
	}
	l.await(30)
	etcd.Process = etcd.Again()
	c.changeSoon(c.admins[0], "POST", "/apps/"+app.name+"/instances/"+app.instances[0].name+"/activate")
	c.inForce(app.token, user, app.instances[0].name, time.Now())
	c.awaitNodes(2)
	noFailures(t, "without etcd", l.stop())
}
