package e2e

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"difylb/test/testbed"
)

// Drain gives an instance no new request and cuts none: lbctl waits for what
// is open and comes back when it has ended.
func TestDrain_WaitsForOpenStreamsAndLosesNothing(t *testing.T) {
	t.Parallel()
	var app application
	var nodes []*standinNode
	c := newPair(t, func(c *cluster) []application {
		app, nodes = c.chatApplication("drain", 3, probed())
		return []application{app}
	})
	all := users("resident", 60)
	leaving := named(t, nodes, app.instances[0].name)
	residents := app.ownedBy(t, leaving.Name, all)
	if len(residents) < 3 {
		t.Fatalf("%s owns %d users only", leaving.Name, len(residents))
	}
	l := startLoad(t, traffic{token: app.token, users: all, proxies: c.proxyURLs, rate: 40, streams: 4, tokens: 3, gap: 10 * time.Millisecond})
	l.await(40)

	// Streams of three seconds, opened on the instance that is to leave.
	var streams sync.WaitGroup
	long := make([]reply, 4)
	for i := range long {
		streams.Add(1)
		go func() { // ends with the stream
			defer streams.Done()
			q := question{token: app.token, user: residents[i%3], stream: true, tokens: 30, gap: 100 * time.Millisecond}
			long[i] = q.ask(context.Background(), c.proxies[i%2].url)
		}()
	}
	testbed.Within(t, 5*time.Second, "the streams are open", func() bool {
		s, err := c.statusAt(c.proxies[0].url)
		return err == nil && s.Applications[app.name].Instances[leaving.Name].Streams >= int64(len(long))
	})

	asked := time.Now()
	out := c.mustLbctl("instance", "drain", app.name, leaving.Name, "--wait", "60s")
	returned := time.Now()
	streams.Wait()
	for _, r := range long {
		if r.failure != "" || r.instance != leaving.Name {
			t.Errorf("a stream that was open: %s", r)
		}
		if r.ended.After(returned.Add(200 * time.Millisecond)) {
			t.Errorf("lbctl came back %s before a stream had ended", r.ended.Sub(returned))
		}
	}
	if last := slices.MaxFunc(long, func(a, b reply) int { return a.ended.Compare(b.ended) }); returned.Sub(last.ended) > 5*time.Second {
		t.Errorf("lbctl came back %s after the last stream had ended", returned.Sub(last.ended))
	}
	if !strings.Contains(out, "drained") {
		t.Errorf("lbctl says %q", out)
	}
	before := generated(leaving.counts())
	l.await(60)
	if now := generated(leaving.counts()); now != before {
		t.Errorf("%d requests reached the drained instance", now-before)
	}
	drained := time.Now()

	c.mustLbctl("instance", "activate", app.name, leaving.Name)
	activated := time.Now()
	l.await(60)
	replies := l.stop()
	noFailures(t, "while an instance was drained and activated", replies)
	// The change is in force on both proxies within 100 ms.
	const slack = 250 * time.Millisecond
	stayed, home := 0, 0
	for _, r := range replies {
		order := app.order(t, r.user)
		if order[0] != leaving.Name {
			continue
		}
		switch {
		case r.begun.After(asked.Add(slack)) && r.begun.Before(drained):
			stayed++
			if r.instance != order[1] {
				t.Errorf("while %s drains, %s is served by %s, want %s", leaving.Name, r.user, r.instance, order[1])
			}
		case r.begun.After(activated.Add(slack)):
			home++
			if r.instance != leaving.Name {
				t.Errorf("%s is active again and %s is served by %s", leaving.Name, r.user, r.instance)
			}
		}
	}
	t.Logf("drain took %s with streams of 3 s; %d requests of its users went to the next, %d came back", returned.Sub(asked).Round(time.Millisecond), stayed, home)
	if stayed == 0 || home == 0 {
		t.Error("there was no traffic of the drained instance's users to judge by")
	}
}
