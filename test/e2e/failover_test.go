package e2e

import (
	"fmt"
	"testing"
	"time"

	"difylb/test/testbed"
)

// An instance that is killed takes with it what it was at work on, and nothing
// else: its users are served by the next one of the ring from the next request
// on, and return when it is back.
func TestFailover_KilledInstanceLosesOnlyWhatItWasWorkingOn(t *testing.T) {
	t.Parallel()
	var app application
	var nodes []*standinNode
	c := newPair(t, func(c *cluster) []application {
		app, nodes = c.chatApplication("failover", 3, probed())
		return []application{app}
	})
	all := users("traveller", 60)
	l := startLoad(t, traffic{token: app.token, users: all, proxies: c.proxyURLs, rate: 60, streams: 3, tokens: 3, gap: 15 * time.Millisecond})
	l.await(60)
	victim := named(t, nodes, app.instances[1].name)
	orphans := app.ownedBy(t, victim.Name, all)
	if len(orphans) == 0 {
		t.Fatalf("%s owns none of the users", victim.Name)
	}
	begun := time.Now()
	victim.Kill()
	killed := time.Now()
	l.await(150)

	victim.restart()
	testbed.Eventually(t, 10*time.Second, "its users are back", func() error {
		for _, u := range orphans {
			for _, p := range c.proxies {
				q := question{token: app.token, user: u}
				if r := q.ask(t.Context(), p.url); r.failure != "" {
					return fmt.Errorf("%s", r)
				} else if r.instance != victim.Name {
					return fmt.Errorf("%s is on %s through %s", u, r.instance, p.Name)
				}
			}
		}
		return nil
	})
	back := time.Now()
	l.await(60)
	replies := l.stop()

	lost := failures(replies)
	for _, r := range lost {
		if r.begun.After(killed) || r.ended.Before(begun) || app.order(t, r.user)[0] != victim.Name {
			t.Errorf("was not under way on %s when it was killed, and failed: %s", victim.Name, r)
		}
	}
	t.Logf("%d answers, %d were under way on the killed instance and failed, its %d users moved", len(replies), len(lost), len(orphans))
	moved := 0
	for _, r := range after(replies, killed) {
		order := app.order(t, r.user)
		switch {
		case r.failure != "":
		case order[0] != victim.Name:
			if r.instance != order[0] {
				t.Errorf("%s belongs to %s, which lives, and was served by %s", r.user, order[0], r.instance)
			}
		case r.begun.After(back):
			if r.instance != victim.Name {
				t.Errorf("%s belongs to %s, which is back, and was served by %s", r.user, victim.Name, r.instance)
			}
		case r.instance == order[1]:
			moved++
		case r.instance != victim.Name: // between its start and back both are right
			t.Errorf("%s of the killed %s was served by %s, want %s", r.user, victim.Name, r.instance, order[1])
		}
	}
	if moved == 0 {
		t.Error("no request of its users was served by the next instance of the ring")
	}
}
