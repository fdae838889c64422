package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// A change that REST has acknowledged is in force on both proxies within
// 100 ms, which is seen by a request that is routed differently, and no
// request fails because of it.
func TestPropagation_ChangesAreInForceWithin100ms(t *testing.T) {
	const changes = 50
	var app application
	c := newPair(t, func(c *cluster) []application {
		app, _ = c.recordedApplication("moving", 2, unprobed())
		return []application{app}
	})
	user := app.ownedBy(t, app.instances[0].name, users("mover", 50))[0]
	home, away := app.instances[0].name, app.instances[1].name
	at := "/apps/" + app.name + "/instances/" + home
	// Three ways out and back again.
	ways := [][2]func() (int, []byte, error){
		{func() (int, []byte, error) { return c.call("POST", at+"/drain", nil) }, func() (int, []byte, error) { return c.call("POST", at+"/activate", nil) }},
		{func() (int, []byte, error) { return c.call("PATCH", at, map[string]any{"weight": 0}) }, func() (int, []byte, error) { return c.call("PATCH", at, map[string]any{"weight": 1}) }},
		{func() (int, []byte, error) { return c.call("POST", at+"/disable", nil) }, func() (int, []byte, error) { return c.call("POST", at+"/activate", nil) }},
	}
	l := startLoad(t, traffic{token: app.token, users: users("bystander", 40), proxies: c.proxyURLs, rate: 40, streams: 4, tokens: 3, gap: 10 * time.Millisecond})
	l.await(10)
	var took []time.Duration
	for i := range changes {
		want := []string{away, home}[i%2]
		status, answer, err := ways[(i/2)%len(ways)][i%2]()
		if err != nil || status != 200 {
			t.Fatalf("change %d: status %d, %v: %s", i, status, err, answer)
		}
		took = append(took, c.inForce(app.token, user, want, time.Now())...)
	}
	noFailures(t, "while the configuration changed", l.stop())
	s := spreadOf(took)
	t.Logf("%d changes, each on %d proxies, from the answer of REST to a request routed by it: %s", changes, len(c.proxies), s)
	if s.p90 > 100*time.Millisecond {
		t.Errorf("p90 is %s, want at most 100 ms", s.p90)
	}
}

// inForce returns, for each proxy, how long after the moment the user is
// served by the instance.
func (c *cluster) inForce(token, user, want string, since time.Time) []time.Duration {
	c.t.Helper()
	took := make([]time.Duration, len(c.proxies))
	problems := make([]error, len(c.proxies))
	var wg sync.WaitGroup
	for i, p := range c.proxies {
		wg.Add(1)
		go func() { // ends with the change or after 5 s
			defer wg.Done()
			for {
				asked := time.Now()
				r := question{token: token, user: user}.ask(c.t.Context(), p.url)
				switch {
				case r.failure != "":
					problems[i] = fmt.Errorf("%s", r)
					return
				case r.instance == want:
					// In force when the request was placed, which is nearer to its start.
					took[i] = asked.Sub(since)
					return
				case time.Since(since) > 5*time.Second:
					problems[i] = fmt.Errorf("%s is still served by %s on %s, want %s", user, r.instance, p.Name, want)
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
	}
	wg.Wait()
	for _, err := range problems {
		if err != nil {
			c.t.Error(err)
		}
	}
	return took
}
