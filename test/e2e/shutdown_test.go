package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"difylb/test/testbed"
)

// SIGTERM: not ready at once, /health says draining, streams run to their end,
// exit code 0. A second one does not wait.
func TestShutdown_LetsStreamsEnd(t *testing.T) {
	t.Parallel()
	var app application
	c := newPair(t, func(c *cluster) []application {
		app, _ = c.recordedApplication("ending", 1, unprobed())
		return []application{app}
	}, "--shutdown-delay", "1s", "--shutdown-grace", "20s")
	gentle, hard := c.proxies[0], c.proxies[1]
	open := func(p *proxyNode) <-chan reply {
		answer := make(chan reply, 1)
		go func() { // ends with the stream
			answer <- question{token: app.token, user: "late", stream: true, tokens: 30, gap: 100 * time.Millisecond}.ask(context.Background(), p.url)
		}()
		testbed.Within(t, 5*time.Second, "the stream is open", func() bool {
			n, err := testbed.Metric(p.ops, "difylb_instance_active_streams")
			return err == nil && n == 1
		})
		return answer
	}

	stream := open(gentle)
	gentle.Signal(syscall.SIGTERM)
	signalled := time.Now()
	testbed.Eventually(t, 300*time.Millisecond, "/readyz fails", func() error {
		if code, _, err := testbed.Get(gentle.ops + "/readyz"); err != nil || code != http.StatusServiceUnavailable {
			return fmt.Errorf("status %d, %v", code, err)
		}
		return nil
	})
	code, body, err := testbed.Get(gentle.url + "/health")
	if err != nil || code != http.StatusServiceUnavailable || !strings.Contains(string(body), `"draining"`) {
		t.Errorf("/health while draining: %d %s %v", code, body, err)
	}
	if r := (question{token: app.token, user: "in time"}).ask(t.Context(), gentle.url); r.failure != "" && time.Since(signalled) < 900*time.Millisecond {
		t.Errorf("within the shutdown delay: %s", r)
	}
	testbed.Eventually(t, 2*time.Second, "no new connections are taken after the delay", func() error {
		conn, err := net.DialTimeout("tcp", gentle.url[len("http://"):], time.Second)
		if err == nil {
			conn.Close()
			return errors.New("one was")
		}
		return nil
	})
	if r := <-stream; r.failure != "" || r.events != 31 {
		t.Errorf("the stream that was open: %d events, %s", r.events, r)
	}
	ended := time.Now()
	if code := gentle.Wait(10 * time.Second); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if d := time.Since(ended); d > 3*time.Second {
		t.Errorf("it took %s to end after the last stream", d)
	}

	stream = open(hard)
	hard.Signal(syscall.SIGTERM)
	testbed.Eventually(t, 2*time.Second, "/readyz fails", func() error {
		if code, _, err := testbed.Get(hard.ops + "/readyz"); err != nil || code != http.StatusServiceUnavailable {
			return fmt.Errorf("status %d, %v", code, err)
		}
		return nil
	})
	hard.Signal(syscall.SIGTERM)
	second := time.Now()
	hard.Wait(5 * time.Second)
	t.Logf("after the second SIGTERM it ended within %s, exit code %d", time.Since(second).Round(time.Millisecond), hard.ExitCode())
	if d := time.Since(second); d > 2500*time.Millisecond {
		t.Errorf("a second SIGTERM took %s", d)
	}
	if r := <-stream; r.failure == "" {
		t.Error("the second SIGTERM did not cut the stream")
	}
}

// Behind a balancer that heeds /readyz all proxies can be restarted one after
// the other, streams open and all, and no client notices.
func TestShutdown_RollingRestartLosesNoRequest(t *testing.T) {
	t.Parallel()
	var app application
	c := newPair(t, func(c *cluster) []application {
		app, _ = c.chatApplication("rolling", 2, probed())
		return []application{app}
	}, "--shutdown-delay", "1s", "--shutdown-grace", "20s")
	l := startLoad(t, traffic{token: app.token, users: users("passenger", 30), proxies: c.readyProxies(), rate: 50, streams: 4, tokens: 6, gap: 40 * time.Millisecond})
	l.await(50)
	for _, p := range c.proxies {
		p.Stop()
		p.restart()
		l.await(50) // the balancer has noticed
	}
	replies := l.stop()
	noFailures(t, "while proxies were restarted", replies)
	by := make(map[string]int)
	for _, r := range replies {
		by[r.proxy]++
	}
	t.Logf("%d answers, by proxy %v", len(replies), by)
	if len(by) != 2 {
		t.Error("one proxy had no traffic")
	}
}

// readyProxies returns what a balancer in front of the proxies knows: those
// that said lately that they are ready.
func (c *cluster) readyProxies() func() []string {
	c.t.Helper()
	var ready atomic.Value
	look := func() {
		var urls []string
		for _, p := range c.proxies {
			if testbed.Probe(p.ops+"/readyz") == nil {
				urls = append(urls, p.url)
			}
		}
		if len(urls) > 0 {
			ready.Store(urls)
		}
	}
	look()
	if ready.Load() == nil {
		c.t.Fatal("no proxy is ready")
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() { // ends with the test
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-time.After(100 * time.Millisecond):
				look()
			}
		}
	}()
	c.t.Cleanup(func() {
		close(done)
		<-ended
	})
	return func() []string { return ready.Load().([]string) }
}
