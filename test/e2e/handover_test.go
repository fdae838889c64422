package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"difylb/test/testbed"
)

// A proxy is replaced by another process on the same port, and that by a
// third, under load that takes a new connection for each request: nobody is
// refused, no stream is cut, and the one that was replaced ends by itself.
func TestHandover_ReplacesAProxyWithoutRefusingAConnection(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.logLevel = "info"
	c.startAdmin()
	app, _ := c.chatApplication("inherited", 2, probed())
	c.apply(document(t, app))
	shared := testbed.FreeAddress(t)
	path := filepath.Join(c.dir, "handover")
	// The address of its own is opened by each, the shared one by the first.
	next := func() *proxyNode {
		return c.startProxy("--listen", shared, "--handover", path, "--shutdown-grace", "20s")
	}
	running := next()
	c.awaitNodes(1)

	proxies := func() []string { return []string{"http://" + shared} }
	calls := startLoad(t, traffic{token: app.token, users: users("caller", 50), proxies: proxies, rate: 300, tokens: 1, fresh: true})
	streams := startLoad(t, traffic{token: app.token, users: users("listener", 20), proxies: proxies, rate: 5, streams: 1, tokens: 30, gap: 60 * time.Millisecond, fresh: true})
	streams.await(5)
	for range 2 {
		calls.await(300)
		successor := next()
		served := len(calls.so())
		if code := running.Wait(25 * time.Second); code != 0 {
			t.Errorf("%s ended with %d, want 0", running.Name, code)
		}
		for _, want := range []string{"another process serves on these sockets", "stopped"} {
			if !strings.Contains(running.Log(), want) {
				t.Errorf("%s does not say %q", running.Name, want)
			}
		}
		if strings.Contains(running.Log(), "cut what was still open") {
			t.Errorf("%s cut streams", running.Name)
		}
		if !strings.Contains(successor.Log(), "took over from the predecessor") {
			t.Errorf("%s did not take over", successor.Name)
		}
		t.Logf("%s ended after %d further answers", running.Name, len(calls.so())-served)
		running = successor
		testbed.Eventually(t, 5*time.Second, "the successor makes the offer", func() error {
			st, err := os.Lstat(path)
			if err == nil && st.Mode() != fs.ModeSocket|0o600 {
				err = fmt.Errorf("%s has mode %s", path, st.Mode())
			}
			return err
		})
	}
	calls.await(300)
	open, answers := streams.stop(), calls.stop()
	noFailures(t, "calls, each on a new connection", answers)
	noFailures(t, "streams", open)
	for _, r := range open {
		if r.events != 31 {
			t.Errorf("a stream of %d events, want 31", r.events)
		}
	}
	var took []time.Duration
	for _, r := range answers {
		took = append(took, r.ended.Sub(r.begun))
	}
	t.Logf("%d calls, %s; %d streams", len(answers), spreadOf(took), len(open))
	running.Stop()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket is left after SIGTERM")
	}
}

// One that cannot serve changes nothing for the one that does.
func TestHandover_OutlivesASuccessorThatFails(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.startAdmin()
	app, _ := c.chatApplication("kept", 1, probed())
	c.apply(document(t, app))
	shared := testbed.FreeAddress(t)
	path := filepath.Join(c.dir, "handover")
	first := c.startProxy("--listen", shared, "--handover", path)
	c.awaitNodes(1)
	calls := startLoad(t, traffic{token: app.token, users: users("caller", 10), proxies: func() []string { return []string{"http://" + shared} }, rate: 50, tokens: 1, fresh: true})
	calls.await(20)

	taken := strings.TrimPrefix(first.url, "http://")
	for name, flags := range map[string][]string{
		"its ops address is taken":  {"--handover", path, "--listen", shared, "--ops-listen", strings.TrimPrefix(first.ops, "http://")},
		"an address told otherwise": {"--handover", path, "--listen", shared, "--listen", strings.Replace(taken, "127.0.0.1", "localhost", 1)},
		"no socket":                 {"--handover", c.input("plain", []byte("precious")), "--listen", shared},
	} {
		p := c.beginProxy(flags...)
		if code := p.Wait(15 * time.Second); code == 0 {
			t.Errorf("%s: exit code 0", name)
		}
		if name == "no socket" && !strings.Contains(p.Log(), "--handover") {
			t.Errorf("%s: it says %q", name, p.Log())
		}
	}
	// One without a configuration does not take over; it dies before it gives up.
	etcd := c.etcd
	c.etcd = []string{"http://" + testbed.FreeAddress(t)} // nobody listens there
	blind := c.beginProxy("--handover", path, "--listen", shared)
	c.etcd = etcd
	calls.await(200) // four seconds: longer than a proxy without a predecessor would wait
	blind.Kill()
	calls.await(50)
	if !first.Running() {
		t.Fatal("the first has ended")
	}
	successor := c.startProxy("--listen", shared, "--handover", path)
	if code := first.Wait(25 * time.Second); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	// After a crash the socket is left, and nobody answers there.
	calls.await(20)
	noFailures(t, "calls, each on a new connection", calls.stop())
	successor.Kill()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	last := c.startProxy("--listen", shared, "--handover", path)
	last.Stop()
}
