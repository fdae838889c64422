package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"difylb/test/testbed"
)

// etcd and the only lb-admin are one process here; it is killed. Proxies go on
// and start again without it, changes fail with words, nothing acknowledged is
// lost, and all is well by itself when it is back.
func TestLoss_ControlPlaneKilledUnderLoad(t *testing.T) {
	t.Parallel()
	var app application
	c := newPair(t, func(c *cluster) []application {
		app, _ = c.chatApplication("lasting", 2, probed())
		return []application{app}
	})
	p1, p2 := c.proxies[0], c.proxies[1]
	l := startLoad(t, traffic{token: app.token, users: users("constant", 40), proxies: c.proxyURLs, rate: 40, streams: 4, tokens: 3, gap: 10 * time.Millisecond})
	l.await(40)
	// Acknowledged up to the last moment.
	for i := range 20 {
		c.mustCall("PATCH", "/apps/"+app.name, map[string]any{"timeouts": map[string]any{"read": fmt.Sprintf("%ds", 100+i)}})
	}
	c.mustCall("POST", "/apps/"+app.name+"/instances", map[string]any{"name": "late", "host": "127.0.0.1", "port": 9, "token": c.instanceToken(), "weight": 0})
	before := c.settledStatus(p1, app.name)
	c.admins[0].Kill()

	r := c.lbctl("instance", "drain", app.name, app.instances[0].name)
	if r.code != 3 || !strings.Contains(r.stderr, "lb-admin") {
		t.Errorf("a change without an lb-admin: exit code %d, want 3: %s", r.code, r.stderr)
	}
	l.await(40)

	// A proxy that starts now knows only what it wrote to its disk.
	p2.Kill()
	begun := time.Now()
	p2.begin()
	testbed.Eventually(t, 6*time.Second, "a proxy serves without etcd", func() error {
		r := question{token: app.token, user: "constant-1"}.ask(t.Context(), p2.url)
		if r.failure != "" {
			return p2.Alive(fmt.Errorf("%s", r))
		}
		return nil
	})
	t.Logf("a proxy started without etcd and served after %s", time.Since(begun).Round(10*time.Millisecond))
	if log := p2.Log(); !strings.Contains(log, "last good state on disk") {
		t.Error("its log does not say that it serves by the state on disk")
	}
	c.readyzSays(p2, `"etcd_connected":false`)
	l.await(40)

	c.admins[0].restart()
	c.awaitToken()
	back := time.Now()
	c.awaitNodes(2)
	t.Logf("both proxies had caught up %s after lb-admin was ready", time.Since(back).Round(10*time.Millisecond))
	var got struct {
		Timeouts  struct{ Read string }
		Instances []struct{ Name string }
	}
	if err := json.Unmarshal(c.mustCall("GET", "/apps/"+app.name, nil), &got); err != nil {
		t.Fatal(err)
	}
	if got.Timeouts.Read != "119s" && got.Timeouts.Read != "1m59s" || len(got.Instances) != 3 || got.Instances[2].Name != "late" {
		t.Errorf("acknowledged changes are lost: read %q, instances %v", got.Timeouts.Read, got.Instances)
	}
	user := app.ownedBy(t, app.instances[0].name, users("constant", 40))[0]
	c.mustLbctl("instance", "drain", app.name, app.instances[0].name)
	for i, d := range c.inForce(app.token, user, app.instances[1].name, time.Now()) {
		t.Logf("a change after the loss was in force on %s within %s", c.proxies[i].Name, d.Round(time.Millisecond))
	}
	l.await(20)
	replies := l.stop()
	// What was under way on the proxy when it was killed is gone with it.
	for _, r := range failures(replies) {
		if r.proxy == p2.url && !r.begun.After(begun) {
			continue
		}
		t.Errorf("without a control plane: %s", r)
	}
	after := c.settledStatus(p1, app.name)
	if after < before {
		t.Errorf("total_requests went back from %d to %d", before, after)
	}
}

// readyzSays waits for a word in what a proxy says of itself.
func (c *cluster) readyzSays(p *proxyNode, want string) {
	c.t.Helper()
	testbed.Eventually(c.t, 10*time.Second, p.Name+" says "+want, func() error {
		_, body, err := testbed.Get(p.ops + "/readyz")
		if err == nil && !strings.Contains(string(body), want) {
			err = fmt.Errorf("it says %s", body)
		}
		return err
	})
}

// settledStatus returns an application's requests once the document is complete.
func (c *cluster) settledStatus(p *proxyNode, app string) (requests uint64) {
	c.t.Helper()
	testbed.Eventually(c.t, 10*time.Second, "the status is complete", func() error {
		s, err := c.statusAt(p.url)
		if err == nil && !s.Complete {
			err = fmt.Errorf("%d of %d report", s.Nodes.Reporting, s.Nodes.Proxies)
		}
		if err == nil {
			requests = s.Applications[app].TotalRequests
		}
		return err
	})
	return requests
}
