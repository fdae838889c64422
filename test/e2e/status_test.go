package e2e

import (
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"difylb/test/testbed"
)

// /status of any proxy is the whole cluster's, exact to the request, soon
// after, and never goes backwards, whoever ends and however.
func TestStatus_SumsAreExactAndNeverGoBack(t *testing.T) {
	t.Parallel()
	var app application
	var nodes []*standinNode
	c := newPair(t, func(c *cluster) []application {
		app, nodes = c.chatApplication("counted", 3, unprobed())
		return []application{app}
	})
	p1, p2 := c.proxies[0], c.proxies[1]
	watch := c.watchStatus(p1, app.name)

	asked := c.askMany(app, 150, p1, 0)
	asked += c.askMany(app, 101, p2, 0)
	c.exact(app, nodes, asked, 2*time.Second)

	// In good order a process reports all before it ends.
	asked += c.askMany(app, 40, p2, 0)
	p2.Stop()
	p2.restart()
	c.awaitNodes(2)
	c.exact(app, nodes, asked, 3*time.Second)

	// Killed it may lose its last five seconds, and no more.
	asked += c.askMany(app, 40, p2, 0)
	time.Sleep(6 * time.Second)
	p2.Kill()
	p2.restart()
	c.awaitNodes(2)
	c.exact(app, nodes, asked, 3*time.Second)

	// So may lb-admin, whose part it is to remember the sums of those who ended.
	time.Sleep(6 * time.Second)
	c.admins[0].Kill()
	asked += c.askMany(app, 30, p1, 0)
	c.admins[0].restart()
	c.awaitNodes(2)
	asked += c.askMany(app, 30, p2, 0)
	c.exact(app, nodes, asked, 5*time.Second)

	// One that is stopped is missed, and the document says so.
	p2.Signal(syscall.SIGSTOP)
	c.statusBecomes(p1, "a stopped proxy is missed", func(s *status) bool { return !s.Complete && s.Nodes.Reporting == 1 })
	p2.Signal(syscall.SIGCONT)
	c.statusBecomes(p1, "a proxy that goes on is seen", func(s *status) bool {
		return s.Complete && s.Nodes.Reporting == 2 && s.Nodes.Proxies == 2
	})
	asked += c.askMany(app, 10, p2, 3)
	c.exact(app, nodes, asked, 3*time.Second)
	if seen := watch(); seen < 50 {
		t.Errorf("the status was looked at %d times only", seen)
	}
}

// askMany sends n questions, several at a time, every so many-th a stream.
func (c *cluster) askMany(app application, n int, p *proxyNode, streams int) int {
	c.t.Helper()
	var wg sync.WaitGroup
	replies := make([]reply, n)
	turn := make(chan struct{}, 8) // so many at a time
	for i := range n {
		turn <- struct{}{}
		wg.Add(1)
		go func() { // ends with the answer
			defer wg.Done()
			q := question{token: app.token, user: fmt.Sprintf("asker-%d", i), stream: streams > 0 && i%streams == 0}
			replies[i] = q.ask(c.t.Context(), p.url)
			<-turn
		}()
	}
	wg.Wait()
	noFailures(c.t, fmt.Sprintf("%d questions through %s", n, p.Name), replies)
	return n
}

// exact waits until both proxies and lb-admin show so many requests, and
// compares them with what the stand-ins counted.
func (c *cluster) exact(app application, nodes []*standinNode, asked int, limit time.Duration) {
	c.t.Helper()
	served := make(map[string]uint64)
	total := uint64(0)
	for _, s := range nodes {
		served[s.Name] = generated(s.counts())
		total += served[s.Name]
	}
	if total != uint64(asked) {
		c.t.Fatalf("%d requests reached the instances, %d were sent", total, asked)
	}
	for _, base := range append(c.proxyURLs(), c.admins[0].url) {
		testbed.Eventually(c.t, limit, fmt.Sprintf("%s shows %d requests", base, asked), func() error {
			s, err := c.statusAt(base)
			if err != nil {
				return err
			}
			a := s.Applications[app.name]
			if a.TotalRequests != uint64(asked) || a.Active != 0 || a.Errors != 0 || !s.Complete {
				return fmt.Errorf("%d requests, %d errors, %d active, complete %t", a.TotalRequests, a.Errors, a.Active, s.Complete)
			}
			for name, want := range served {
				if got := a.Instances[name].Requests; got != want {
					return fmt.Errorf("%s: %d requests, it counted %d itself", name, got, want)
				}
			}
			return nil
		})
	}
}

func (c *cluster) statusBecomes(p *proxyNode, what string, is func(*status) bool) {
	c.t.Helper()
	testbed.Eventually(c.t, 15*time.Second, what, func() error {
		s, err := c.statusAt(p.url)
		if err == nil && !is(s) {
			err = fmt.Errorf("complete %t, nodes %+v", s.Complete, s.Nodes)
		}
		return err
	})
}

// watchStatus looks at the status all the time and reports a sum that went
// back. The returned function ends that and says how often it looked.
func (c *cluster) watchStatus(p *proxyNode, app string) func() int {
	done := make(chan struct{})
	looked := make(chan int)
	go func() { // ends by the returned function
		seen, highest := 0, uint64(0)
		last := make(map[string]uint64)
		for {
			if s, err := c.statusAt(p.url); err == nil {
				seen++
				a := s.Applications[app]
				if a.TotalRequests < highest {
					c.t.Errorf("total_requests went back from %d to %d", highest, a.TotalRequests)
				}
				highest = max(highest, a.TotalRequests)
				for name, in := range a.Instances {
					if in.Requests < last[name] {
						c.t.Errorf("requests of %s went back from %d to %d", name, last[name], in.Requests)
					}
					last[name] = max(last[name], in.Requests)
				}
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-done:
				looked <- seen
				return
			}
		}
	}()
	return func() int {
		close(done)
		return <-looked
	}
}
