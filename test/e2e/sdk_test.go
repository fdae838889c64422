package e2e

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"difylb/test/testbed"
)

// Programs that were written for Dify work through the balancer as they are:
// here Dify's own SDK for Node, its HTTP client included.
func TestSDK_WorksThroughEachProxy(t *testing.T) {
	dir := filepath.Join(testbed.Repository(), "test", "sdk")
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("node is not installed: the scenarios of Dify's SDK are left out")
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "dify-client")); err != nil {
		t.Skip("the SDK is not installed: run `npm ci` in test/sdk (make e2e does)")
	}
	groups := []struct{ mode, user string }{{"chat", "sdk-user"}, {"completion", "sdk-user-2"}, {"workflow", "sdk-user-3"}}
	var apps []application
	c := newPair(t, func(c *cluster) []application {
		names := []string{"one", "two"}
		modes := make([][]string, len(names))
		for _, g := range groups {
			app := application{name: g.mode, token: c.userToken(), fields: probed()}
			for i, name := range names {
				token := c.instanceToken()
				modes[i] = append(modes[i], g.mode+"="+token)
				app.instances = append(app.instances, instance{name: name, token: token})
			}
			apps = append(apps, app)
		}
		for i, name := range names {
			s := c.startStandin(name, modes[i]...)
			for _, app := range apps {
				app.instances[i].addr = s.addr
			}
		}
		return apps
	})
	for _, p := range c.proxies {
		for i, g := range groups {
			runSDK(t, c, dir, p, apps[i].token, g.user, g.mode)
		}
	}
}

func runSDK(t *testing.T, c *cluster, dir string, p *proxyNode, token, user, scenarios string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "run.mjs")
	cmd.Dir = dir
	// By the environment: arguments can be seen by every user of the machine.
	cmd.Env = append(testbed.CleanEnvironment(c.dir), "BASE_URL="+p.url+"/v1", "TOKEN="+token, "USER="+user, "SCENARIOS="+scenarios)
	out, err := cmd.CombinedOutput()
	c.keep("the SDK", out)
	ran := 0
	for line := range strings.Lines(string(out)) {
		var s struct {
			Scenario string
			OK       bool
			MS       float64
			Detail   json.RawMessage
		}
		if json.Unmarshal([]byte(line), &s) != nil || s.Scenario == "" {
			t.Errorf("%s: %s says: %s", p.Name, scenarios, line)
			continue
		}
		ran++
		if !s.OK {
			t.Errorf("%s: %s failed after %.0f ms: %s", p.Name, s.Scenario, s.MS, s.Detail)
		}
	}
	if err != nil {
		t.Errorf("%s: %s: %s", p.Name, scenarios, err)
	}
	t.Logf("%s: %d scenarios of %s", p.Name, ran, scenarios)
	if ran == 0 {
		t.Errorf("%s: no scenario of %s ran", p.Name, scenarios)
	}
}
