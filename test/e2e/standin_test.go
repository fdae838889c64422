package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"difylb/pkg/standin"
	"difylb/test/testbed"
)

// standinNode is a stand-in Dify as a process, which can be killed.
type standinNode struct {
	*testbed.Process
	addr string
}

// startStandin runs an instance; apps are MODE=TOKEN.
func (c *cluster) startStandin(name string, apps ...string) *standinNode {
	c.t.Helper()
	s := &standinNode{addr: testbed.FreeAddress(c.t)}
	args := []string{"standin", "--listen", s.addr, "--name", name, "--slots", "-1", "--control"}
	for _, a := range apps {
		args = append(args, "--app", a)
	}
	s.Process = testbed.Start(c.t, c.dir, name, testbed.Programs.Ctl, args...)
	s.awaitReady()
	return s
}

func (s *standinNode) awaitReady() {
	s.T.Helper()
	testbed.Eventually(s.T, 10*time.Second, s.Name+" is ready", func() error { return s.Alive(testbed.Probe("http://" + s.addr + "/_standin/counts")) })
}

func (s *standinNode) restart() {
	s.T.Helper()
	s.Process = s.Again()
	s.awaitReady()
}

func (s *standinNode) counts() standin.Counts {
	s.T.Helper()
	var c standin.Counts
	s.control("counts", &c)
	return c
}

func (s *standinNode) control(what string, answer any) {
	s.T.Helper()
	code, body, err := testbed.Get("http://" + s.addr + "/_standin/" + what)
	if err != nil || code != http.StatusOK {
		s.T.Fatalf("%s: %s: status %d, %v", s.Name, what, code, err)
	}
	if err := json.Unmarshal(body, answer); err != nil {
		s.T.Fatalf("%s: %s: %s", s.Name, what, err)
	}
}

// fault puts faults in force in place of those there were.
func (s *standinNode) fault(faults ...standin.Fault) {
	s.T.Helper()
	body, err := json.Marshal(map[string]any{"clear": true, "add": faults})
	if err != nil {
		s.T.Fatal(err)
	}
	resp, err := testbed.Looker.Post("http://"+s.addr+"/_standin/faults", "application/json", bytes.NewReader(body))
	if err != nil {
		s.T.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		s.T.Fatalf("%s: faults: status %d", s.Name, resp.StatusCode)
	}
}

// generated is how many runs were asked of it, probes and look-ups left out.
func generated(c standin.Counts) (n uint64) {
	for _, by := range c.Requests["POST /v1/chat-messages"] {
		n += by
	}
	return n
}

// chatApplication starts n stand-ins and declares a chat application on them.
func (c *cluster) chatApplication(name string, n int, fields map[string]any) (application, []*standinNode) {
	c.t.Helper()
	app := application{name: name, token: c.userToken(), fields: fields}
	var nodes []*standinNode
	for i := range n {
		token := c.instanceToken()
		s := c.startStandin(fmt.Sprintf("dify%d-%s", i+1, name), "chat="+token)
		nodes = append(nodes, s)
		app.instances = append(app.instances, instance{name: s.Name, addr: s.addr, token: token, fields: map[string]any{"fail_timeout": "1s"}})
	}
	return app, nodes
}

func named(t testing.TB, nodes []*standinNode, name string) *standinNode {
	t.Helper()
	for _, s := range nodes {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no stand-in is named %q", name)
	return nil
}

func faultOf(kind standin.FaultKind) standin.Fault { return standin.Fault{Kind: kind} }
